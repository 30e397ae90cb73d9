"""The first five minutes, on the real model: what a new user sees."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.serving import ROOT, VARVEL, Server


@pytest.mark.timeout(600)
def test_the_demo_reads_a_page_shows_every_trace_and_its_commands_work_as_pasted() -> None:
    done = subprocess.run([*VARVEL, "demo"], capture_output=True, text=True, timeout=580, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Falconer Supply Company" in done.stdout
    assert '"billable_units": 1' in done.stdout
    assert "page 1 of 1" in done.stdout
    assert done.stdout.count("pasted: the same text came back") == 3


@pytest.mark.timeout(600)
def test_a_first_start_that_was_interrupted_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--no-demo")
    ports = ["--port", str(server.port), "--tls-port", str(server.tls_port)]
    with server.stderr_path.open("w") as stderr:
        first = subprocess.Popen(
            [*VARVEL, "up", "--data", str(server.data), "--no-demo", *ports],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=ROOT,
        )
    deadline = time.monotonic() + 120
    while "me/echo is deployed" not in server.log() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 0
    assert "me/ocr is deployed" not in server.log()
    assert "Traceback" not in server.log()
    server.start(timeout=500)
    try:
        apps = json.loads(server.varvel("apps", "--json").stdout)["apps"]
        assert {app["name"] for app in apps} == {"echo", "hello", "ocr"}
        assert not (server.data / "first-start").exists()
    finally:
        server.stop()
