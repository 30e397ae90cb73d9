"""SIGKILL under load, again and again: nothing acknowledged is lost, nothing ends twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
KILLS = 5


def child(folder: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.queue.load", str(folder), mode]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str], least: int) -> list[list[str]]:
    """At least so many lines of the child, then all that it said before it was killed."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(least)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return [line.split() for line in lines if line.endswith("\n")]


def test_nothing_acknowledged_is_lost_and_nothing_ends_twice_over_kills(tmp_path: Path) -> None:
    acked: set[str] = set()
    cancelled: set[str] = set()
    for round_ in range(KILLS):
        before = set(cancelled)
        for word, request_id in lines_of(child(tmp_path, "load"), 150 * (round_ + 1)):
            if word == "acked":
                acked.add(request_id)
            elif word == "cancelled":
                cancelled.add(request_id)
            else:
                assert request_id not in before, "a cancelled request ran after a restart"
    drain = child(tmp_path, "drain")
    said, _ = drain.communicate(timeout=60)
    assert drain.returncode == 0
    assert not {line.split()[1] for line in said.splitlines()} & cancelled

    database = sqlite3.connect(tmp_path / "state.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    results = {name for (name,) in database.execute("SELECT request_id FROM queue_results")}
    statuses: dict[str, int] = {}
    records: dict[str, Counter[str]] = {"requests": Counter(), "billing": Counter()}
    for kind, body in database.execute("SELECT kind, body FROM outbox WHERE kind IN ('requests', 'billing')"):
        for line in body.splitlines():
            row = msgspec.json.decode(line)
            records[kind][row["request_id"]] += 1
            if kind == "requests":
                statuses[row["request_id"]] = row["status_code"]
    database.close()
    assert len(acked) > 100
    assert acked <= results
    assert cancelled
    assert {statuses[name] for name in cancelled} == {499}
    for counts in records.values():
        assert set(counts) == results
        assert set(counts.values()) == {1}
