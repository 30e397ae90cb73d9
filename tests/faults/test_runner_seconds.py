"""Usage after the server was killed: what its runners really came to, less a heartbeat at most, and nothing twice."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.serving import ROOT, Server, serving

HEARTBEAT = 1.0
LATE = 2.0
"""Seconds that a heartbeat may be late on a machine that has much else to do."""


def ask(server: Server, path: str, **params: str) -> Any:
    with server.client() as client:
        answer = client.get(f"/v1/serverless/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def quantity(server: Server) -> float:
    found = ask(server, "usage", expand="summary")["summary"]
    return float(sum(line["quantity"] for line in found))


def billed_since(server: Server, seen: set[str]) -> tuple[str, float]:
    """Id and begin of set-up of the one runner that is not in `seen`."""
    events = ask(server, "apps/me/echo/events", category="runner_setup")["events"]
    (new,) = [event for event in events if event["payload"]["job_id"] not in seen]
    return new["payload"]["job_id"], datetime.fromisoformat(new["created_at"]).timestamp()


def test_a_killed_server_loses_less_than_a_heartbeat_of_runner_seconds(tmp_path: Path) -> None:
    """The tick is longer than the test, so that without heartbeats all of it would be lost."""
    environ = {"VARVEL_USAGE_TICK": "600", "VARVEL_USAGE_HEARTBEAT": str(HEARTBEAT), "VARVEL_FRESH_IDLE": "600"}
    target = str(ROOT / "examples" / "echo" / "app.py")
    seen: set[str] = set()
    with serving(tmp_path / "data", "--app", target, environ=environ) as server:
        least = most = 0.0
        for _ in range(2):
            if seen:
                with server.client() as client:
                    assert client.post("/run/me/echo", json={}).status_code == 200
            runner, begin = billed_since(server, seen)
            seen.add(runner)
            while time.time() < begin + 6:
                time.sleep(0.05)
            before = time.time()
            server.kill()
            after = time.time()
            server.start()
            least += before - begin - HEARTBEAT - LATE
            most += after - begin + 0.001  # the event's time has milliseconds
            told = quantity(server)
            assert least <= told <= most
        server.kill()
        server.start()
        assert quantity(server) == told, "nothing ran, and nothing comes twice"
