"""The first five minutes, on the real model: what a new user sees."""

from __future__ import annotations

import subprocess

import pytest
from tests.serving import ROOT, VARVEL


@pytest.mark.timeout(600)
def test_the_demo_reads_a_page_shows_every_trace_and_its_commands_work_as_pasted() -> None:
    done = subprocess.run([*VARVEL, "demo"], capture_output=True, text=True, timeout=580, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Falconer Supply Company" in done.stdout
    assert '"billable_units": 1' in done.stdout
    assert "page 1 of 1" in done.stdout
    assert done.stdout.count("pasted: the same text came back") == 3
