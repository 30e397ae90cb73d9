"""The telemetry store is away or slow: calls go on, queries say so, nothing is lost, and it catches up."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import Server, serving

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# max_multiplexing = 8
# keep_alive = 60
# ///
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/")
async def answer(request: Request) -> dict:
    body = await request.json()
    print("line", body["n"])
    return body
"""
RUN, QUEUE = "/run/me/talker", "/queue/me/talker"
SLOW = "SELECT count() AS c FROM numbers(1000000000000) WHERE sipHash64(number) = 7"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("td")
    (folder / "app").mkdir()
    (folder / "app" / "talker.py").write_text(APP)
    with serving(folder / "data", "--no-examples", environ={"VARVEL_RATE_LIMIT": "0"}) as running:
        running.varvel("deploy", f"{folder}/app/talker.py:app")
        yield running


def _engine(server: Server) -> psutil.Process | None:
    for child in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "varvel.telemetry.engine" in child.cmdline():
                return child
    return None


def _ready(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/readyz").json())


def _until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@contextmanager
def _no_store(server: Server) -> Iterator[None]:
    """Kill the store, and hold its folder so that it cannot start again."""
    handle = os.open(server.data / "telemetry.lock", os.O_RDWR | os.O_CLOEXEC)
    engine = _engine(server)
    assert engine is not None
    engine.kill()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.001)
    _until(lambda: _ready(server)["telemetry"] == "down")
    try:
        yield
    finally:
        os.close(handle)


def _unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["type"] == "server_error"
    assert "nothing is lost" in answer.json()["error"]["message"]
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert int(answer.headers["retry-after"]) >= 1


def test_calls_go_on_without_the_store_and_it_catches_up_in_order(server: Server) -> None:
    with server.client() as client:
        with _no_store(server):
            ids = []
            for n in range(30):
                answer = client.post(RUN, json={"n": n})
                assert answer.json() == {"n": n}
                ids.append(answer.headers["x-fal-request-id"])
            ids += [client.post(QUEUE, json={"n": n}).json()["request_id"] for n in range(30, 60)]
            for request_id in ids[30:]:
                path = f"{QUEUE}/requests/{request_id}"
                _until(lambda path=path: client.get(f"{path}/status?logs=1").status_code == 200)  # type: ignore[misc]
            status = client.get(f"{QUEUE}/requests/{ids[59]}/status?logs=1").json()
            assert [line["message"] for line in status["logs"]] == ["line 59"]

            by_endpoint = {"endpoint_id": "me/talker"}
            for path, expand in (("requests/by-endpoint", "billing"), ("analytics", "summary,request_count")):
                _unavailable(client.get(f"/v1/serverless/{path}", params={**by_endpoint, "expand": expand}))
            _unavailable(client.post("/v1/serverless/logs/history", params={"app_id": "me/talker"}))
            for path in ("/v1/serverless/apps", "/v1/serverless/metrics", "/v1/serverless/apps/me/talker/queue"):
                assert client.get(path).status_code == 200
            assert _ready(server) == {"ready": True, "telemetry": "down"}
            _until(lambda: any(each.stat().st_size for each in (server.data / "spool").glob("*.ndjson")))
        _until(lambda: _ready(server)["telemetry"] == "up")

        def found() -> list[dict[str, Any]]:
            params = {"endpoint_id": "me/talker", "limit": "100", "expand": "billing"}
            answer = client.get("/v1/serverless/requests/by-endpoint", params=params)
            return list(answer.json()["items"]) if answer.status_code == 200 else []

        _until(lambda: {item["request_id"] for item in found()} >= set(ids))
        records = [item["request_id"] for item in found()]
        assert len(records) == len(set(records)) == 60
        _until(lambda: all(item["billable_units"] is not None for item in found()))

        def lines() -> list[str]:
            answer = client.post("/v1/serverless/logs/history", params={"search": "line ", "limit": "1000"})
            return [item["message"] for item in answer.json()["items"]][::-1] if answer.status_code == 200 else []

        _until(lambda: len(lines()) >= 60)
        assert sorted(lines(), key=lambda line: int(line.split()[1])) == [f"line {n}" for n in range(60)]
        assert lines()[:30] == [f"line {n}" for n in range(30)]
        _until(lambda: not list((server.data / "spool").glob("*.ndjson")))


def _ask_store(server: Server, sql: str) -> str:
    transport = httpx.HTTPTransport(uds=str(server.data / "telemetry.sock"))
    with httpx.Client(transport=transport, base_url="http://store", timeout=20) as store:
        answer = store.post("/", content=sql)
        assert answer.status_code == 200, answer.text
        return answer.text


def test_a_slow_query_holds_up_no_call_and_ends_with_its_client(server: Server) -> None:
    _until(lambda: _ready(server)["telemetry"] == "up")
    _ask_store(server, "RENAME TABLE requests TO requests_kept")
    _ask_store(server, f"CREATE VIEW requests AS SELECT requests_kept.* FROM requests_kept, ({SLOW}) AS slow")
    try:
        with server.client() as client:
            asked = time.monotonic()
            with pytest.raises(httpx.ReadTimeout):
                client.get("/v1/serverless/requests/by-endpoint?endpoint_id=me/talker", timeout=3)
            assert time.monotonic() - asked >= 3
            assert time.monotonic() - asked < 10  # else its own time limit has ended it
            began = time.monotonic()
            assert client.post(RUN, json={"n": "beside"}).status_code == 200
            assert time.monotonic() - began < 2
            _until(lambda: not _running(server), 10)
    finally:
        _ask_store(server, "DROP VIEW requests")
        _ask_store(server, "RENAME TABLE requests_kept TO requests")
    with server.client() as client:
        _until(lambda: client.get("/v1/serverless/requests/by-endpoint?endpoint_id=me/talker").status_code == 200)


def _running(server: Server) -> list[str]:
    """Queries that run in the store now."""
    text = _ask_store(server, "SELECT query FROM system.processes WHERE query NOT LIKE '%system.processes%'")
    return [line for line in text.splitlines() if "requests" in line]
