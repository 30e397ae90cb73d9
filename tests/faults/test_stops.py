"""How a server ends: at once by SIGKILL and nothing of it stays, or by SIGTERM and what runs may finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest

from tests.serving import Server, serving

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# max_multiplexing = 2
# keep_alive = 60
# termination_grace = 2
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
    asked = json.loads(body or b"{}")
    print("began")
    await asyncio.sleep(asked.get("sleep", 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
"""
CALL = "/run/me/napper"
QUEUE = "/queue/me/napper"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each test ends and starts it."""
    folder = tmp_path_factory.mktemp("stops")
    (folder / "app").mkdir()
    (folder / "app" / "napper.py").write_text(APP)
    with serving(folder / "data", "--no-examples", environ={"VARVEL_SHUTDOWN_GRACE": "20"}) as running:
        running.varvel("deploy", f"{folder}/app/napper.py:app")
        yield running


def _submit(client: httpx.Client, **asked: float) -> str:
    answer = client.post(QUEUE, json=asked)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def _kill(server: Server) -> None:
    if server.process is not None:
        server.process.kill()


def _until(server: Server, request_id: str, status: str) -> None:
    with server.client() as client:
        for _ in range(600):
            if client.get(f"{QUEUE}/requests/{request_id}/status").json()["status"] == status:
                return
            time.sleep(0.02)
    raise AssertionError(f"{request_id} did not come to {status}")


def test_a_killed_server_leaves_no_process_behind(server: Server) -> None:
    with server.client(headers={**server.headers, "X-Fal-No-Retry": "1"}) as client:
        running = _submit(client, sleep=120)
    _until(server, running, "IN_PROGRESS")
    time.sleep(1.5)  # a warmed parent starts beside the first runner
    family = psutil.Process(server.pid).children(recursive=True)
    assert len(family) >= 3  # a runner, a warmed parent, the telemetry store
    server.kill()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not [each.cmdline() for each in alive]
    server.start()
    with server.client() as client:
        answer = client.get(f"{QUEUE}/requests/{running}")
        assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")


def test_a_server_that_is_killed_while_it_starts_leaves_the_folder_to_the_next(server: Server) -> None:
    server.stop()
    began = time.monotonic()
    server.start()
    usual = time.monotonic() - began
    server.kill()
    for part in (0.6, 0.9):  # its telemetry store is starting
        killing = threading.Timer(usual * part, _kill, [server])
        killing.start()
        with suppress(AssertionError):  # it says that the server did not become ready
            server.start()
        killing.join()
        server.kill()
    server.start()
    with server.client() as client:
        assert client.get("/readyz").json()["telemetry"] == "up"
    family = psutil.Process(server.pid).children(recursive=True)
    assert sum("varvel.telemetry.engine" in each.cmdline() for each in family) == 1


def test_what_runs_ends_within_the_grace_and_what_waits_runs_after_the_restart(server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor(1) as threads:
        running = _submit(client, sleep=2)
        _until(server, running, "IN_PROGRESS")
        direct = threads.submit(client.post, CALL, json={"sleep": 2, "direct": 1})
        time.sleep(0.3)
        waiting = [_submit(client, n=n) for n in range(5)]
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        answer = direct.result()
        assert (answer.status_code, answer.json()) == (200, {"sleep": 2, "direct": 1})
    server.start()
    with server.client() as client:
        assert client.get(f"{QUEUE}/requests/{running}").json() == {"sleep": 2}
        for n, request_id in enumerate(waiting):
            _until(server, request_id, "COMPLETED")
            assert client.get(f"{QUEUE}/requests/{request_id}").json() == {"n": n}
        records = client.get("/v1/serverless/requests/by-endpoint", params={"endpoint_id": "me/napper"}).json()["items"]
        mine = [item for item in records if item["request_id"] in (running, *waiting)]
        assert len(mine) == 6
        assert {item["status_code"] for item in mine} == {200}


def test_streams_that_are_open_hold_up_no_stop_and_end_cleanly(server: Server) -> None:
    with server.client() as client:
        running = [_submit(client, sleep=0.8) for _ in range(2)]
        waiting = _submit(client)
        _until(server, running[0], "IN_PROGRESS")
    seen: dict[str, str] = {}

    def follow(name: str, method: str, path: str) -> None:
        with server.client() as client, client.stream(method, path) as answer:
            assert answer.status_code == 200
            seen[name] = ""
            for text in answer.iter_text():
                seen[name] += text
            seen[name] += "<ended>"

    followers = [
        threading.Thread(target=follow, args=arguments)
        for arguments in (
            ("logs", "POST", "/v1/serverless/logs/stream?app_id=me/napper"),
            ("waiting", "GET", f"{QUEUE}/requests/{waiting}/status/stream"),
            ("running", "GET", f"{QUEUE}/requests/{running[0]}/status/stream"),
        )
    ]
    for follower in followers:
        follower.start()
    while len(seen) < 3:
        time.sleep(0.02)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 12
    for follower in followers:
        follower.join(5)
    assert all(text.endswith("<ended>") for text in seen.values()), seen
    assert '"COMPLETED"' in seen["running"]
    assert '"IN_QUEUE"' in seen["waiting"]
    server.start()
    _until(server, waiting, "COMPLETED")
