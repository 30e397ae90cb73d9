"""What callers and apps do wrong: each gets its own clear answer, and the server serves on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Server, serving

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# max_multiplexing = 4
# keep_alive = 60
# startup_timeout = 20
# termination_grace = 1
# ///
import asyncio, json, os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path, body = scope["path"], b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            print("the caller left while it sent")
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status, headers = 200, [(b"content-type", b"application/json")]
    if path.endswith("/cancel"):
        print("asked to cancel", path)
    elif path == "/nap":
        await asyncio.sleep(json.loads(body)["s"])
    elif path == "/exit":
        os._exit(7)
    elif path == "/headers":
        headers.append((b"x-long", b"x" * 20_000))
    elif path in ("/more", "/less"):
        headers.append((b"content-length", b"10"))
        body = b"0123456789abcdef" if path == "/more" else b"0123"
    elif path == "/json":
        try:
            json.loads(body)
        except ValueError:
            status, body = 422, b'{"detail":[{"loc":["body"],"msg":"JSON decode error","type":"json_invalid"}]}'
    elif path != "/":
        status, body = 404, json.dumps({"detail": f"Path {path} not found"}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
MOST = 200_000
UNKNOWN = "01940000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    (folder / "odd.py").write_text(APP)
    environ = {"VARVEL_MAX_BODY": str(MOST), "VARVEL_BUFFER_BODY": "50000", "VARVEL_RATE_LIMIT": "0"}
    with serving(folder / "data", "--no-examples", environ=environ) as running:
        running.varvel("deploy", f"{folder}/odd.py:app")
        yield running


@pytest.fixture(scope="module")
def other(server: Server) -> str:
    """The key of a second owner."""
    return str(json.loads(server.varvel("owners", "add", "other", "--json").stdout)["key"])


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """With the first owner's key. After each test the server must still serve, within its usual time."""
    with server.client() as made:
        yield made
        answer = made.post("/run/me/odd", json={"still": "here"}, timeout=20)
        assert (answer.status_code, answer.json()) == (200, {"still": "here"})


def _refused(answer: httpx.Response, status: int, kind: str) -> str:
    """Assert the shape of an error of the data plane; its detail."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"detail", "error_type"}
    assert body["error_type"] == answer.headers["x-fal-error-type"] == kind
    assert answer.headers["x-fal-request-id"]
    return str(body["detail"])


def _platform_refused(answer: httpx.Response, status: int, kind: str) -> str:
    """Assert the shape of an error of the Platform API; its message."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert {"type", "message", "request_id"} <= set(error)
    assert error["type"] == kind
    assert error["request_id"] == answer.headers["x-request-id"]
    return str(error["message"])


def _done(client: httpx.Client, request_id: str) -> dict[str, Any]:
    for _ in range(1200):
        answer = client.get(f"/queue/me/odd/requests/{request_id}/status")
        if answer.status_code == 200:
            return dict(answer.json())
        time.sleep(0.02)
    raise AssertionError("the request did not end")


def _recorded(client: httpx.Client, request_id: str) -> dict[str, Any]:
    parameters = {"endpoint_id": "me/odd", "request_id": request_id}
    for _ in range(200):
        items = client.get("/v1/serverless/requests/by-endpoint", params=parameters).json()["items"]
        if items:
            return dict(items[0])
        time.sleep(0.05)
    raise AssertionError("the request has no record")


# -- who and what


def test_an_unknown_app_is_not_found_at_either_door(client: httpx.Client) -> None:
    for path in ("/run/me/nothing", "/queue/me/nothing", "/run/nobody/odd"):
        assert "not found" in _refused(client.post(path, json={}), 404, "not_found")
    _platform_refused(client.get("/v1/serverless/apps/me/nothing/queue"), 404, "not_found")


def test_an_unknown_route_is_the_apps_to_refuse_and_an_unknown_page_ours(client: httpx.Client) -> None:
    answer = client.post("/run/me/odd/nowhere", json={})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Path /nowhere not found"})
    _refused(client.get("/nowhere"), 404, "not_found")
    _refused(client.post("/run/me", json={}), 404, "not_found")
    _platform_refused(client.get("/v1/nowhere"), 404, "not_found")
    _platform_refused(client.put("/v1/serverless/apps"), 405, "validation_error")


@pytest.mark.parametrize(
    "header", [None, "Key nobody:wrong", "Key", "Bearer x.y.z", "Basic bWU6bWU=", "Key \u00e9:\u00e9"]
)
def test_a_private_app_wants_a_key_that_is_one(server: Server, client: httpx.Client, header: str | None) -> None:
    headers = httpx.Headers([] if header is None else [(b"Authorization", header.encode("latin-1"))])
    for path in ("/run/me/odd", "/queue/me/odd"):
        _refused(httpx.post(f"{server.url}{path}", json={}, headers=headers), 401, "unauthorized")
    _refused(httpx.get(f"{server.url}/queue/me/odd/requests/{UNKNOWN}/status", headers=headers), 401, "unauthorized")
    answer = httpx.get(f"{server.url}/v1/serverless/apps", headers=headers)
    _platform_refused(answer, 401, "authorization_error")


def test_another_owners_app_is_not_there_for_its_callers_and_forbidden_to_look_into(
    server: Server, client: httpx.Client, other: str
) -> None:
    request_id = client.post("/queue/me/odd", json={}).json()["request_id"]
    _done(client, request_id)
    with server.client(headers={"Authorization": f"Key {other}"}) as stranger:
        _refused(stranger.post("/run/me/odd", json={}), 404, "not_found")
        _refused(stranger.post("/queue/me/odd", json={}), 404, "not_found")
        for method, rest in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel"), ("GET", "/status/stream")):
            answer = stranger.request(method, f"/queue/me/odd/requests/{request_id}{rest}")
            assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})
        listed = stranger.get("/v1/serverless/requests/by-endpoint", params={"endpoint_id": "me/odd"})
        _platform_refused(listed, 403, "authorization_error")
        _platform_refused(stranger.get("/v1/serverless/apps/me/odd/queue"), 403, "authorization_error")
        _platform_refused(stranger.delete("/v1/serverless/apps/me/odd/queue"), 403, "authorization_error")
        assert stranger.get("/v1/serverless/apps").json()["apps"] == []


# -- bodies and headers


def test_malformed_json_is_refused_by_whoever_reads_it(client: httpx.Client) -> None:
    raw: dict[str, Any] = {"content": b'{"a": ', "headers": {"content-type": "application/json"}}
    answer = client.post("/run/me/odd/json", **raw)
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "json_invalid")
    request_id = client.post("/queue/me/odd/json", **raw).json()["request_id"]
    assert _done(client, request_id)["error"] == "Invalid status code: 422"
    assert client.get(f"/queue/me/odd/requests/{request_id}").status_code == 422
    _platform_refused(client.post("/v1/keys", **raw), 400, "validation_error")
    for path in ("/tokens/", "/tokens/realtime", "/storage/upload/initiate?storage_type=fal-cdn-v3"):
        _refused(client.post(path, **raw), 400, "bad_request")


@pytest.mark.parametrize("announced", [True, False])
def test_an_oversized_body_is_refused_and_no_app_sees_it(client: httpx.Client, announced: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MOST // 10_000 + 1):
            yield b"x" * 10_000

    for path in ("/run/me/odd", "/queue/me/odd"):
        _refused(client.post(path, content=b"x" * (MOST + 1) if announced else pieces()), 413, "bad_request")
    body = b"x" * (MOST + 1) if announced else pieces()
    _platform_refused(client.post("/v1/keys", content=body), 413, "validation_error")


def test_a_body_of_the_largest_size_passes(client: httpx.Client) -> None:
    body = json.dumps("x" * (MOST - 2)).encode()
    assert client.post("/run/me/odd", content=body).content == body
    request_id = client.post("/queue/me/odd", content=body).json()["request_id"]
    _done(client, request_id)
    assert client.get(f"/queue/me/odd/requests/{request_id}").content == body


def test_headers_over_the_limit_are_refused_on_both_ways(client: httpx.Client) -> None:
    long = {"X-Long": "x" * 70_000}
    _refused(client.post("/run/me/odd", json={}, headers=long), 431, "bad_request")
    _refused(client.post("/queue/me/odd", json={}, headers=long), 431, "bad_request")
    _platform_refused(client.get("/v1/serverless/apps", headers=long), 431, "validation_error")
    assert "larger than" in _refused(client.post("/run/me/odd/headers", json={}), 502, "runner_incomplete_response")


# -- requests of the queue


@pytest.mark.parametrize("request_id", ["nothing", "42", "%2e%2e", UNKNOWN, UNKNOWN[:-1] + "g", "x" * 5000])
def test_a_request_id_that_is_none_or_unknown_is_not_found(client: httpx.Client, request_id: str) -> None:
    for method, rest in (("GET", "/status"), ("GET", ""), ("GET", "/status/stream"), ("PUT", "/cancel")):
        answer = client.request(method, f"/queue/me/odd/requests/{request_id}{rest}")
        assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})


def test_cancel_of_a_finished_request_is_400_and_changes_nothing(client: httpx.Client) -> None:
    submitted = client.post("/queue/me/odd", json={"n": 1}).json()
    _done(client, submitted["request_id"])
    answer = client.put(submitted["cancel_url"])
    assert (answer.status_code, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert client.get(submitted["response_url"]).json() == {"n": 1}


def test_a_result_before_the_end_is_400_in_the_words_that_clients_wait_for(client: httpx.Client) -> None:
    submitted = client.post("/queue/me/odd/nap", json={"s": 1}).json()
    answer = client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()) == (400, {"detail": "Request is still in progress"})
    _done(client, submitted["request_id"])
    assert client.get(submitted["response_url"]).json() == {"s": 1}


# -- apps that misbehave


def test_an_app_that_fails_on_import_is_refused_with_its_traceback_and_the_old_one_goes_on(
    server: Server, client: httpx.Client, folder: Path
) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "odd.py").write_text(APP + "\n\nraise RuntimeError('broken on purpose')\n")
    done = server.varvel("deploy", f"{folder}/broken/odd.py:app", check=False)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "Traceback" in told
    assert "RuntimeError: broken on purpose" in told
    assert client.post("/run/me/odd", json={"old": True}).json() == {"old": True}
    revisions = client.get("/v1/serverless/apps/me/odd/revisions")
    assert revisions.status_code == 200


def test_an_app_that_never_becomes_ready_is_refused_and_the_old_one_goes_on(
    server: Server, client: httpx.Client, folder: Path
) -> None:
    slow = APP.replace("startup_timeout = 20", "startup_timeout = 2").replace(
        'if scope["type"] == "lifespan":', 'if scope["type"] == "lifespan":\n        await asyncio.sleep(600)', 1
    )
    (folder / "slow").mkdir()
    (folder / "slow" / "odd.py").write_text(slow)
    done = server.varvel("deploy", f"{folder}/slow/odd.py:app", check=False)
    assert done.returncode != 0
    assert "not ready after 2 seconds" in done.stdout + done.stderr
    assert client.post("/run/me/odd", json={"old": True}).json() == {"old": True}


def test_an_app_that_does_not_start_any_more_answers_504_within_its_start_up_time(
    server: Server, client: httpx.Client, folder: Path
) -> None:
    grumpy = APP.replace("startup_timeout = 20", "startup_timeout = 8")
    grumpy = grumpy.replace(
        'if scope["type"] == "lifespan":',
        'if scope["type"] == "lifespan":\n'
        '        if os.path.exists(os.environ["VARVEL_DATA_DIR"] + "/grumpy"):\n'
        "            await asyncio.sleep(600)",
        1,
    )
    (folder / "grumpy").mkdir()
    (folder / "grumpy" / "grumpy.py").write_text(grumpy)
    server.varvel("deploy", f"{folder}/grumpy/grumpy.py:app")
    assert client.post("/run/me/grumpy", json={}).status_code == 200
    up = client.post("/v1/serverless/files/file/local/grumpy", files={"file_upload": ("grumpy", b"!")})
    assert up.status_code == 200
    _refused(client.post("/run/me/grumpy/exit", json={}), 503, "runner_disconnected")
    answer = client.post("/run/me/grumpy", json={}, timeout=40)
    assert answer.headers["x-fal-needs-retry"] == "1"
    _refused(answer, 504, "startup_timeout")


def test_an_app_that_exits_in_a_request_answers_503_and_is_started_again(client: httpx.Client) -> None:
    answer = client.post("/run/me/odd/exit", json={})
    _refused(answer, 503, "runner_disconnected")
    assert answer.headers["x-fal-needs-retry"] == "1"
    assert _recorded(client, answer.headers["x-fal-request-id"])["status_code"] == 503
    once = {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 1}})}
    submitted = client.post("/queue/me/odd/exit", json={}, headers=once).json()
    assert _done(client, submitted["request_id"])["error_type"] == "runner_disconnected"
    _refused(client.get(submitted["response_url"]), 503, "runner_disconnected")
    lines = client.post("/v1/serverless/logs/history", params={"app_id": "me/odd", "search": "ended unasked"}).json()
    assert lines["items"]


@pytest.mark.parametrize("path", ["/more", "/less"])
def test_an_answer_of_another_length_than_announced_is_502(client: httpx.Client, path: str) -> None:
    _refused(client.post(f"/run/me/odd{path}", json={}), 502, "runner_incomplete_response")
    once = {"X-Fal-No-Retry": "1"}
    submitted = client.post(f"/queue/me/odd{path}", json={}, headers=once).json()
    assert _done(client, submitted["request_id"])["error_type"] == "runner_incomplete_response"
    _refused(client.get(submitted["response_url"]), 502, "runner_incomplete_response")


# -- clients that go away


def _talk(server: Server, text: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    made.sendall(text.replace(b"KEY", server.key.encode()))
    return made


def test_a_client_that_leaves_while_it_sends_is_recorded_as_gone(server: Server, client: httpx.Client) -> None:
    for size in (1000, MOST - 1):  # held in memory, and passed on as it comes
        head = b"POST /run/me/odd HTTP/1.1\r\nhost: x\r\nauthorization: Key KEY\r\ncontent-length: %d\r\n\r\n" % size
        _talk(server, head + b"x" * (size // 2)).close()
    for path in ("/queue/me/odd", "/v1/keys"):
        head = (
            b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Key KEY\r\ncontent-length: 9000\r\n\r\nhalf" % path.encode()
        )
        _talk(server, head).close()
    gone: list[dict[str, Any]] = []
    for _ in range(100):
        page = client.get(
            "/v1/serverless/requests/by-endpoint", params={"endpoint_id": "me/odd", "status": "user_error"}
        )
        gone = [item for item in page.json().get("items", []) if item["status_code"] == 499]
        if len(gone) >= 2:
            break
        time.sleep(0.1)
    assert len(gone) == 2


def test_a_client_that_leaves_before_its_answer_has_its_call_cancelled(server: Server, client: httpx.Client) -> None:
    body = b'{"s": 3}'
    head = b"POST /run/me/odd/nap HTTP/1.1\r\nhost: x\r\nauthorization: Key KEY\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    leaving = _talk(server, head + body)
    time.sleep(0.5)
    leaving.close()
    search = {"app_id": "me/odd", "search": "asked to cancel /nap"}
    for _ in range(100):
        lines = client.post("/v1/serverless/logs/history", params=search).json()["items"]
        if lines:
            break
        time.sleep(0.1)
    assert lines[0]["message"] == "asked to cancel /nap/cancel"
    assert _recorded(client, lines[0]["labels"]["fal_request_id"])["status_code"] == 499


def test_what_is_not_http_at_all_is_refused_and_a_crowd_of_it_stops_nobody(
    server: Server, client: httpx.Client
) -> None:
    def nonsense(n: int) -> bytes:
        with _talk(server, b"\x16\x03\x01 this is not http %d\r\n\r\n" % n) as made:
            return made.recv(200)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(nonsense, range(100)))
    assert all(answer.startswith(b"HTTP/1.1 400") for answer in answers)
