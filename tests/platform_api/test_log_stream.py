"""Log lines of real apps, followed live while the server is killed, and told apart by filters: one truth for both."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.platform_api.reading import Follower, Lines, history
from tests.platform_api.world import World

KILLS = int(os.environ.get("VARVEL_KILLS", "2"))
PRINTS = 100
"""Lines of one request."""
TALKER = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 2
# max_multiplexing = 4
# keep_alive = 60
# ///
import asyncio, json, logging, os, sys


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
    wish = json.loads(body)
    for number in range(wish.get("count", 0)):
        print(f"{os.getpid()} {number}")
        await asyncio.sleep(wish["gap"])
    for level, text in wish.get("say", []):
        if level == "stdout":
            print(text)
        elif level == "stderr":
            print(text, file=sys.stderr)
        elif level == "traceback":
            try:
                raise RuntimeError(text)
            except RuntimeError:
                logging.exception("it broke")
        else:
            logging.getLogger("talker").log(getattr(logging, level.upper()), text)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})
"""


@pytest.fixture(scope="module")
def talker(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("talker") / "talker.py"
    path.write_text(TALKER)
    world.deploy("me", path, "talker")
    return "me/talker"


class Chatter(threading.Thread):
    """Keeps requests that print in the queue, whatever becomes of the server."""

    def __init__(self, client: httpx.Client, app: str) -> None:
        super().__init__(daemon=True)
        self._client, self._app = client, app
        self.ending = threading.Event()
        self.accepted: list[str] = []

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                answer = self._client.post(f"/queue/{self._app}", json={"count": PRINTS, "gap": 0.002}, timeout=2)
                if answer.status_code == 200:
                    self.accepted.append(answer.json()["request_id"])
            except httpx.TransportError:
                pass
            time.sleep(0.2)


def now(offset: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset))


def wait_until_done(client: httpx.Client, app: str, requests: list[str]) -> None:
    deadline = time.monotonic() + 60
    for request_id in requests:
        while client.get(f"/queue/{app}/requests/{request_id}/status").status_code == 202:
            assert time.monotonic() < deadline, f"{request_id} does not end"
            time.sleep(0.05)


@pytest.mark.timeout(120 + 60 * KILLS)
def test_a_stream_that_is_resumed_over_kills_of_the_server_has_no_gap_and_no_repeat(world: World, talker: str) -> None:
    params = {"app_id": talker, "start": now(-1)}
    dice = random.Random(7)
    with world.client("me") as client, world.caller("me") as caller:
        follower, chatter = Follower(world.client("me"), params), Chatter(caller, talker)
        follower.start()
        chatter.start()
        try:
            for _ in range(KILLS):
                seen = len(follower.ids)
                deadline = time.monotonic() + 30
                while len(follower.ids) < seen + 2 * PRINTS and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(dice.random() * 0.4)
                world.server.kill()
                world.server.start()
        finally:
            chatter.ending.set()
            chatter.join(5)
        wait_until_done(caller, talker, chatter.accepted)
        kept = history(client, params)
        follower.until(kept[-1]["timestamp"])
        follower.end()
        follower.join(20)
    assert follower.connections >= KILLS + 1
    assert not follower.others
    assert all(earlier < later for earlier, later in pairwise(follower.ids)), "a line came twice, or out of order"
    assert follower.ids == [line["timestamp"] for line in follower.lines]
    assert follower.lines == kept, "the stream and the history are not the same lines"
    assert_no_line_is_missing(kept)


def assert_no_line_is_missing(kept: list[dict[str, Any]]) -> None:
    """What a runner printed for a request is there from the first line on, in order, up to where it was cut off."""
    printed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in kept:
        pid, _, number = line["message"].partition(" ")
        if pid.isdigit():
            printed[line["labels"]["fal_request_id"], pid].append(int(number))
    assert len(printed) > KILLS
    for numbers in printed.values():
        assert numbers == list(range(len(numbers)))
    whole = {request_id for (request_id, _), numbers in printed.items() if len(numbers) == PRINTS}
    assert whole == {request_id for request_id, _ in printed}, "a request that ended has lost its last lines"


def since(fence: dict[str, Any], lines: Lines) -> Lines:
    """From that line on."""
    return [line for line in lines if line["timestamp"] >= fence["timestamp"]]


SAID = [
    ["stdout", "plain words here"],
    ["stderr", "plain trouble"],
    ["info", "information of a.b-c"],
    ["warning", "wörter mit Umlaut, and words here"],
    ["error", "words, here"],
    ["traceback", "as asked"],
    ["stdout", 'a quote " and a \\ and {braces}'],
    ["stdout", "PLAIN Words HERE"],
]


def filters(request_id: str, job_id: str, revision: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Parameters and label conditions."""
    yield {}, None
    yield {"level": "warning"}, None
    yield {"level": "STDERR"}, None
    yield {"search": "words here"}, None
    yield {"search": "plain"}, None
    yield {"search": "a.b-c"}, None
    yield {"search": 'quote " and'}, None
    yield {"search": "UMLAUT"}, None
    yield {"traceback": "false"}, None
    yield {"request_id": request_id}, None
    yield {"job_id": job_id, "run_source": "gateway"}, None
    yield {"revision": revision, "level": "error"}, None
    for kind in ("equals", "not_equals"):
        yield {}, [{"key": "fal_request_id", "value": request_id, "condition_type": kind}]
    for kind in ("in", "not_in"):
        yield {}, [{"key": "fal_request_id", "value": [request_id, "another"], "condition_type": kind}]
    yield {"search": "plain"}, [{"key": "fal_endpoint", "value": "/", "condition_type": "equals"}]
    yield {}, [{"key": "no_such_label", "value": "x", "condition_type": "not_equals"}]


def test_a_live_stream_passes_the_lines_that_the_history_has_for_the_same_filter(world: World, talker: str) -> None:
    with world.client("me") as client, world.caller("me") as caller:
        # A request that waits for its lines: its id and runner are known before they are printed.
        caller.post(f"/run/{talker}", json={"say": [["stdout", "warm"]]})
        (warm,) = history(client, {"app_id": talker, "search": "warm", "start": now(-60)})[-1:]
        submitted = caller.post(f"/queue/{talker}", json={"count": 1, "gap": 1.5, "say": SAID}).json()["request_id"]
        begin = now(-60)
        chosen = list(filters(submitted, warm["labels"]["fal_job_id"], warm["revision"]))
        followers = []
        for params, labels in chosen:
            followers.append(Follower(world.client("me"), {"app_id": talker, **params}, labels))
            followers[-1].start()
        assert all(follower.open.wait(10) for follower in followers)
        first = caller.post(f"/run/{talker}", json={"say": [["stdout", "the first of all"]]})
        for _ in range(3):
            assert caller.post(f"/run/{talker}", json={"say": SAID}).status_code == 200
        wait_until_done(caller, talker, [submitted])
        opened = first.headers["x-fal-request-id"]
        (fence,) = history(client, {"request_id": opened, "start": begin})
        expected = [
            since(fence, history(client, {"app_id": talker, "start": begin, **each}, labels)) for each, labels in chosen
        ]
        for lines, follower in zip(expected, followers, strict=True):
            follower.until(lines[-1]["timestamp"], 5)
        for follower in followers:
            follower.end()
        for follower in followers:
            follower.join(20)
    for condition, lines, follower in zip(chosen, expected, followers, strict=True):
        assert since(fence, follower.lines) == lines, condition
    lengths = {len(lines) for lines in expected}
    assert len(lengths) > 5, "the filters do not tell lines apart"
    assert min(lengths) > 0
