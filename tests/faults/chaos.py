"""Kills parts of a loaded server, over and over, and holds a ledger of what was acknowledged.

`make chaos` runs it for longer; a short form is in the tests. Each round loads the queue and sends SIGKILL to
the server, to a runner, or to the telemetry store. At the end every acknowledged request must have come to one
end, with one record and one billing event, none lost and none twice.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.serving import Server

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 2
# max_multiplexing = 8
# keep_alive = 20
# ///
import asyncio, json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    print("serving", body.decode())
    await asyncio.sleep(0.02)
    headers = [(b"content-type", b"application/json"), (b"x-fal-billable-units", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
VICTIMS = ("server", "runner", "telemetry")


@dataclass
class Ledger:
    """What the server acknowledged: request id -> what was sent."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load(threading.Thread):
    """Submits without pause until told to stop, and notes each acknowledgement."""

    def __init__(self, server: Server, ledger: Ledger, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.ledger, self.number = server, ledger, number
        self.ending = threading.Event()

    def run(self) -> None:
        count = 0
        headers = self.server.headers
        with httpx.Client(base_url=self.server.url, headers=headers, timeout=10) as client:
            while not self.ending.is_set():
                count += 1
                sent = self.number * 1_000_000 + count
                try:
                    answer = client.post("/queue/me/victim", json={"n": sent})
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                with self.ledger.lock:
                    if answer.status_code == 200:
                        self.ledger.acknowledged[answer.json()["request_id"]] = sent
                    else:
                        self.ledger.refused += 1
                time.sleep(0.01)


def _children(server: Server, *, engine: bool) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        try:
            if ("varvel.telemetry.engine" in " ".join(child.cmdline())) is engine:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _strike(server: Server, victim: str, dice: random.Random) -> None:
    if victim == "server":
        server.kill()
        server.start()
        return
    targets = _children(server, engine=victim == "telemetry")
    if targets:
        dice.choice(targets).kill()


@dataclass
class Verdict:
    """What the ledger and the server say of each other after the last kill."""

    acknowledged: int
    lost: list[str]
    wrong: list[str]
    records_missing: list[str]
    records_twice: list[str]
    unbilled: list[str]

    @property
    def holds(self) -> bool:
        return not (self.lost or self.wrong or self.records_missing or self.records_twice or self.unbilled)

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {len(self.lost)} lost, {len(self.wrong)} with another's result, "
            f"{len(self.records_missing)} without a record, {len(self.records_twice)} recorded twice, "
            f"{len(self.unbilled)} not billed once"
        )


def _wait_for_the_end(server: Server, ledger: Ledger, timeout: float) -> tuple[list[str], list[str]]:
    """Ids that did not complete, and ids whose result is not what was sent."""
    waiting, wrong = dict(ledger.acknowledged), []
    deadline = time.monotonic() + timeout
    with server.client() as client:
        while waiting and time.monotonic() < deadline:
            for request_id, sent in list(waiting.items()):
                path = f"/queue/me/victim/requests/{request_id}"
                if client.get(f"{path}/status").status_code != 200:
                    continue
                del waiting[request_id]
                answer = client.get(path)
                if answer.status_code != 200 or answer.json() != {"n": sent}:
                    wrong.append(f"{request_id}: {answer.status_code} {answer.text[:200]}")
            time.sleep(0.1)
    return list(waiting), wrong


def _records(server: Server, since: str) -> tuple[Counter[str], dict[str, float | None]]:
    """How often each request id is in the list of requests, and its billable units."""
    counts: Counter[str] = Counter()
    units: dict[str, float | None] = {}
    cursor: str | None = None
    with server.client() as client:
        while True:
            parameters = {"endpoint_id": "me/victim", "expand": "billing", "limit": "100", "start": since}
            answer = client.get(
                "/v1/serverless/requests/by-endpoint", params=parameters | ({"cursor": cursor} if cursor else {})
            )
            if answer.status_code in (429, 503):
                time.sleep(0.5)
                continue
            answer.raise_for_status()
            page = answer.json()
            counts.update(item["request_id"] for item in page["items"])
            units |= {item["request_id"]: item["billable_units"] for item in page["items"]}
            cursor = page["next_cursor"]
            if not cursor:
                return counts, units


def run(folder: Path, rounds: int, *, seed: int, pause: float, victims: tuple[str, ...] = VICTIMS) -> Verdict:
    """Load a server in `folder`, kill `rounds` times, let it finish, and judge."""
    dice = random.Random(seed)
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "victim.py").write_text(APP)
    server = Server(folder / "data", "--no-examples", environ={"VARVEL_RATE_LIMIT": "0"})
    server.start()
    ledger = Ledger()
    try:
        server.varvel("deploy", f"{folder}/app/victim.py:app")
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
        loads = [Load(server, ledger, number) for number in range(1, 4)]
        for load in loads:
            load.start()
        for number in range(rounds):
            time.sleep(pause + dice.random() * pause)
            victim = victims[number % len(victims)]
            _strike(server, victim, dice)
            print(f"round {number + 1}/{rounds}: killed {victim}; {len(ledger.acknowledged)} acknowledged", flush=True)
        for load in loads:
            load.ending.set()
        for load in loads:
            load.join(30)
        lost, wrong = _wait_for_the_end(server, ledger, timeout=120)
        return _judge(server, ledger, since, lost, wrong)
    finally:
        if server.process is not None:
            server.stop()


def _judge(server: Server, ledger: Ledger, since: str, lost: list[str], wrong: list[str]) -> Verdict:
    deadline = time.monotonic() + 60
    while True:
        counts, units = _records(server, since)
        missing = [item for item in ledger.acknowledged if counts[item] == 0]
        unbilled = [item for item in ledger.acknowledged if units.get(item) != 1]
        if not (missing or unbilled) or time.monotonic() > deadline:
            break
        time.sleep(1)
    return Verdict(
        acknowledged=len(ledger.acknowledged),
        lost=lost,
        wrong=wrong,
        records_missing=missing,
        records_twice=[item for item, count in counts.items() if count > 1],
        unbilled=unbilled,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="varvel-chaos-") as folder:
        verdict = run(Path(folder), options.rounds, seed=options.seed, pause=options.pause)
    print(f"seed {options.seed}: {verdict}")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
