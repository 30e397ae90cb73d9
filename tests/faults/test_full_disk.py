"""A disk that is full, for real: what cannot be kept is refused clearly, nothing is half-written, and it heals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.disk import Disk
from tests.serving import Server, serving

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# max_multiplexing = 4
# keep_alive = 60
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
    print("serving", asked.get("n"))
    await asyncio.sleep(asked.get("sleep", 0))
    answer = b"x" * asked.get("size", 0) or body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
"""
QUEUE = "/queue/me/keeper"
RUN = "/run/me/keeper"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    made = Disk(tmp_path_factory.mktemp("full") / "data")
    made.folder.mkdir()
    try:
        made.mount()
    except OSError as problem:
        pytest.skip(f"mounting a small file system is not allowed here: {problem}")
    yield made
    made.unmount()


@pytest.fixture(scope="module")
def app(disk: Disk) -> Path:
    folder = disk.folder.parent / "app"
    folder.mkdir()
    (folder / "keeper.py").write_text(APP)
    return folder / "keeper.py"


@pytest.fixture(scope="module")
def server(disk: Disk, app: Path) -> Iterator[Server]:
    environ = {"VARVEL_RATE_LIMIT": "0", "VARVEL_BUFFER_BODY": "50000"}
    with serving(disk.folder, "--no-examples", environ=environ) as running:
        running.varvel("deploy", f"{app}:app")
        yield running


def _full(answer: httpx.Response) -> None:
    """Assert that the reply says in its part's shape that there is no room."""
    assert answer.status_code == 507, answer.text
    body = answer.json()
    message = body["error"]["message"] if "error" in body else body["detail"]
    assert message == "No room is left on the disk; free some and try again."


def _upload(client: httpx.Client, path: str, size: int) -> httpx.Response:
    return client.post(f"/v1/serverless/files/file/local/{path}", files={"file_upload": ("f", b"v" * size)})


def _ended(client: httpx.Client, request_id: str) -> dict[str, Any]:
    for _ in range(600):
        answer = client.get(f"{QUEUE}/requests/{request_id}/status")
        if answer.status_code == 200:
            return dict(answer.json())
        time.sleep(0.05)
    raise AssertionError("the request did not end")


def test_a_full_disk_is_told_keeps_what_was_acknowledged_and_heals(server: Server, disk: Disk, app: Path) -> None:
    with server.client() as client:
        assert client.post(RUN, json={"n": "before"}).status_code == 200
        assert _upload(client, "old.txt", 10).status_code == 200
        running = client.post(QUEUE, json={"n": "running", "sleep": 1.5}).json()["request_id"]
        time.sleep(0.5)
        before = disk.files("files", "uploads", "spill", "apps")
        disk.fill()

        for n in range(5):
            _full(client.post(QUEUE, json={"n": n, "pad": "x" * 20_000}))
        _full(client.post(QUEUE, content=b'{"pad": "' + b"x" * 500_000 + b'"}'))
        _full(_upload(client, "new.txt", 300_000))
        _full(_upload(client, "old.txt", 300_000))
        head = {"content-type": "application/octet-stream", "x-fal-file-name": "f"}
        _full(client.post("/files/upload", content=b"x" * 300_000, headers=head))
        _full(client.post("/v1/keys", json={"alias": "late", "scope": "API"}))
        _full(client.post(RUN, json={"n": "direct", "pad": "x" * 20_000}))
        deployed = server.varvel("deploy", f"{app}:app", check=False)
        assert deployed.returncode != 0
        assert "No room is left on the disk" in deployed.stdout + deployed.stderr
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/serverless/apps").status_code == 200
        assert client.get("/v1/serverless/files/file/old.txt").content == b"v" * 10

        # It ended meanwhile, and there was no room to write that down.
        time.sleep(1.5)
        assert client.get(f"{QUEUE}/requests/{running}/status").json()["status"] == "IN_PROGRESS"
        assert disk.files("files", "uploads", "spill", "apps") == before
        disk.free()

        assert _ended(client, running)["status"] == "COMPLETED"
        assert client.get(f"{QUEUE}/requests/{running}").json() == {"n": "running", "sleep": 1.5}
        assert client.post(RUN, json={"n": "after"}).json() == {"n": "after"}
        assert _upload(client, "new.txt", 300_000).status_code == 200
        submitted = client.post(QUEUE, content=b'{"pad": "' + b"x" * 500_000 + b'"}').json()["request_id"]
        _ended(client, submitted)
        server.varvel("deploy", f"{app}:app")
        assert client.post(RUN, json={"n": "again"}).json() == {"n": "again"}


def test_records_and_lines_catch_up_when_there_is_room_again(server: Server, disk: Disk) -> None:
    with server.client() as client:
        wanted = client.post(RUN, json={"n": "shortly before"}).headers["x-fal-request-id"]
        disk.fill()
        for n in range(20):
            client.post(RUN, json={"n": f"in need {n}"})
        time.sleep(1)
        disk.free()
        after = client.post(RUN, json={"n": "shortly after"}).headers["x-fal-request-id"]
        found: set[str] = set()
        lines: list[str] = []
        for _ in range(150):
            page = client.get("/v1/serverless/requests/by-endpoint", params={"endpoint_id": "me/keeper"})
            history = client.post("/v1/serverless/logs/history", params={"app_id": "me/keeper", "limit": "1000"})
            if page.status_code == history.status_code == 200:
                found = {item["request_id"] for item in page.json()["items"]}
                lines = [item["message"] for item in history.json()["items"]]
                if {wanted, after} <= found and "serving shortly after" in lines:
                    break
            time.sleep(0.2)
        assert {wanted, after} <= found
        assert {"serving shortly before", "serving shortly after"} <= set(lines)
        # What was printed in between was held in memory.
        assert sum(line.startswith("serving in need") for line in lines) == 20
        assert client.get("/readyz").json() == {"ready": True, "telemetry": "up"}


def test_a_server_that_died_on_a_full_disk_comes_back_when_there_is_room(server: Server, disk: Disk) -> None:
    with server.client() as client:
        waiting = client.post(QUEUE, json={"n": "waiting", "sleep": 0.5}).json()["request_id"]
    disk.fill()
    server.kill()
    disk.free()
    server.start()
    with server.client() as client:
        assert _ended(client, waiting)["status"] == "COMPLETED"
        assert client.post(RUN, json={"n": "alive"}).json() == {"n": "alive"}
