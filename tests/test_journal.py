"""The server's own log lines."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from varvel import journal


def test_lines_go_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    journal.configure("info")
    log = structlog.get_logger("test")
    log.info("one")
    monkeypatch.setattr(sys, "stderr", second)
    first.close()
    log.info("two")
    assert '"event": "two"' in second.getvalue()
