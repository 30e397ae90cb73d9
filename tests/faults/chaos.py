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
    answered: set[str] = field(default_factory=set)
    """Direct calls whose whole answer came, with status 200."""
    refused: Counter[int] = field(default_factory=Counter)
    served_at: list[float] = field(default_factory=list)
    """When a direct call was answered."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def all(self) -> list[str]:
        """Every request that must have one record and one bill."""
        return [*self.acknowledged, *self.answered]

    def healed_after(self, struck: float) -> float:
        """Seconds from a kill to the first direct call that was answered after it."""
        return next((at - struck for at in self.served_at if at > struck), float("inf"))


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
                        self.ledger.refused[answer.status_code] += 1
                time.sleep(0.01)


class Calls(threading.Thread):
    """Calls directly, one call after another, until told to stop; notes each whole answer and when it came."""

    def __init__(self, server: Server, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self.server, self.ledger = server, ledger
        self.ending = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, headers=self.server.headers, timeout=30) as client:
            while not self.ending.is_set():
                try:
                    answer = client.post("/run/me/victim", json={"n": -1})
                except httpx.TransportError:
                    time.sleep(0.02)
                    continue
                with self.ledger.lock:
                    if answer.status_code == 200:
                        self.ledger.answered.add(answer.headers["x-fal-request-id"])
                        self.ledger.served_at.append(time.monotonic())
                    else:
                        self.ledger.refused[answer.status_code] += 1
                time.sleep(0.02)


def _children(server: Server, *, engine: bool) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        try:
            if ("varvel.telemetry.engine" in " ".join(child.cmdline())) is engine:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _strike(server: Server, victim: str, dice: random.Random) -> float:
    """Kill, and when that was."""
    if victim == "server":
        server.kill()
        struck = time.monotonic()
        server.start()
        return struck
    targets = _children(server, engine=victim == "telemetry")
    if targets:
        dice.choice(targets).kill()
    return time.monotonic()


@dataclass
class Verdict:
    """What the ledger and the server say of each other after the last kill."""

    acknowledged: int
    lost: list[str]
    wrong: list[str]
    records_missing: list[str]
    records_twice: list[str]
    unbilled: list[str]
    answered: int = 0
    healed: list[tuple[str, float]] = field(default_factory=list)
    """What was killed, and seconds to the next direct call that was answered."""
    drained: float = 0.0
    """Seconds from the last kill until all was over, recorded and billed."""
    refused: dict[int, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not (self.lost or self.wrong or self.records_missing or self.records_twice or self.unbilled)

    def heal_times(self) -> str:
        """Mean and longest time to heal after kills of each kind, in seconds."""
        kinds = {victim: [after for kind, after in self.healed if kind == victim] for victim, _ in self.healed}
        return ", ".join(
            f"{kind} {sum(each) / len(each):.2f} s (at most {max(each):.2f})" for kind, each in kinds.items()
        )

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {self.answered} direct, {len(self.lost)} lost, "
            f"{len(self.wrong)} with another's result, {len(self.records_missing)} without a record, "
            f"{len(self.records_twice)} recorded twice, {len(self.unbilled)} not billed once; "
            f"healed after {self.heal_times()}; all over {self.drained:.1f} s after the last kill; "
            f"refused meanwhile: {self.refused}"
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
        loads: list[Load | Calls] = [Load(server, ledger, number) for number in range(1, 4)]
        loads.append(Calls(server, ledger))
        for load in loads:
            load.start()
        struck = []
        for number in range(rounds):
            time.sleep(pause + dice.random() * pause)
            victim = victims[number % len(victims)]
            struck.append((victim, _strike(server, victim, dice)))
            print(f"round {number + 1}/{rounds}: killed {victim}; {len(ledger.acknowledged)} acknowledged", flush=True)
        _one_more(ledger, struck[-1][1])
        for load in loads:
            load.ending.set()
        for load in loads:
            load.join(30)
        lost, wrong = _wait_for_the_end(server, ledger, timeout=120)
        verdict = _judge(server, ledger, since, lost, wrong)
        verdict.healed = [(victim, ledger.healed_after(at)) for victim, at in struck]
        verdict.drained = time.monotonic() - struck[-1][1]
        return verdict
    finally:
        if server.process is not None:
            server.stop()


def _one_more(ledger: Ledger, struck: float) -> None:
    """Wait for the first direct call that is answered after the last kill."""
    deadline = time.monotonic() + 30
    while ledger.healed_after(struck) == float("inf") and time.monotonic() < deadline:
        time.sleep(0.05)


def _judge(server: Server, ledger: Ledger, since: str, lost: list[str], wrong: list[str]) -> Verdict:
    deadline = time.monotonic() + 60
    while True:
        counts, units = _records(server, since)
        missing = [item for item in ledger.all if counts[item] == 0]
        unbilled = [item for item in ledger.all if units.get(item) != 1]
        if not (missing or unbilled) or time.monotonic() > deadline:
            break
        time.sleep(1)
    return Verdict(
        acknowledged=len(ledger.acknowledged),
        answered=len(ledger.answered),
        lost=lost,
        wrong=wrong,
        records_missing=missing,
        records_twice=[item for item, count in counts.items() if count > 1],
        unbilled=unbilled,
        refused=dict(ledger.refused),
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
