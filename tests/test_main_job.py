"""The main job as a person does it: start, deploy, call with real clients, read back, restart, read again."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Server, serving

APP = """
# /// script
# dependencies = []
# [tool.varvel]
# max_multiplexing = 4
# keep_alive = 30
# ///
import sys
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.post("/")
def greet(body: dict, response: Response) -> dict:
    print("greeting", body["name"])
    response.headers["x-fal-billable-units"] = "2"
    return {"hello": body["name"]}


@app.post("/fail")
def fail() -> None:
    raise RuntimeError("as asked")


@app.post("/stream")
def stream() -> StreamingResponse:
    return StreamingResponse((f'data: {{"i": {i}}}\\n\\n' for i in range(3)), media_type="text/event-stream")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("main")
    (folder / "app").mkdir()
    (folder / "app" / "greeter.py").write_text(APP)
    with serving(folder / "data", "--no-examples") as running:
        running.varvel("deploy", f"{folder}/app/greeter.py:app")
        yield running


def _wait(server: Server, request_id: str) -> dict[str, Any]:
    with server.client() as client:
        for _ in range(600):
            answer = client.get(f"/queue/me/greeter/requests/{request_id}/status?logs=1")
            if answer.status_code == 200:
                return dict(answer.json())
            assert answer.status_code == 202
            time.sleep(0.05)
    raise AssertionError("the request did not end")


def _record(server: Server, request_id: str, endpoint: str = "me/greeter") -> dict[str, Any]:
    with server.client() as client:
        for _ in range(100):
            answer = client.get(
                "/v1/serverless/requests/by-endpoint",
                params={"endpoint_id": endpoint, "request_id": request_id, "expand": "payloads,billing"},
            )
            assert answer.status_code == 200, answer.text
            items = answer.json()["items"]
            if items and items[0]["billable_units"] is not None:
                return dict(items[0])
            time.sleep(0.05)
    raise AssertionError("the request has no record with billing")


def test_the_first_start_prints_the_key_once_and_keeps_it_private(server: Server) -> None:
    assert any(server.key in line for line in server.stdout)
    assert (server.data / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_queued_request_leaves_a_result_a_record_a_bill_and_log_lines(server: Server) -> None:
    with server.client() as client:
        submitted = client.post("/queue/me/greeter", json={"name": "Ada"})
        assert submitted.status_code == 200
        request_id = submitted.json()["request_id"]
        status = _wait(server, request_id)
        assert status["status"] == "COMPLETED"
        assert [line["message"] for line in status["logs"]] == ["greeting Ada"]
        assert client.get(submitted.json()["response_url"]).json() == {"hello": "Ada"}
        record = _record(server, request_id)
        assert (record["status_code"], record["billable_units"]) == (200, 2)
        assert (record["json_input"], record["json_output"]) == ({"name": "Ada"}, {"hello": "Ada"})
        logs = client.post("/v1/serverless/logs/history", params={"request_id": request_id}).json()["items"]
        assert [line["message"] for line in logs] == ["greeting Ada"]
        assert logs[0]["app"] == "me/greeter"


def test_the_python_client_works_unmodified_over_tls(server: Server) -> None:
    program = """
    import fal_client, json
    ran = fal_client.run("me/greeter", arguments={"name": "run"})
    seen = []
    note = lambda update: seen.append(type(update).__name__)
    arguments = {"name": "subscribe"}
    subscribed = fal_client.subscribe("me/greeter", arguments=arguments, with_logs=True, on_queue_update=note)
    handle = fal_client.submit("me/greeter", arguments={"name": "submit"})
    submitted = handle.get()
    streamed = list(fal_client.stream("me/greeter", arguments={}))
    print(json.dumps([ran, subscribed, submitted, streamed, seen[-1]]))
    """
    environ = {
        "PATH": "/usr/bin:/bin",
        "FAL_KEY": server.key,
        "FAL_RUN_HOST": f"{server.tls}/run",
        "FAL_QUEUE_RUN_HOST": f"{server.tls}/queue",
        "SSL_CERT_FILE": str(server.ca),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    ran, subscribed, submitted, streamed, last = json.loads(done.stdout)
    assert (ran, subscribed, submitted) == ({"hello": "run"}, {"hello": "subscribe"}, {"hello": "submit"})
    assert (streamed, last) == ([{"i": 0}, {"i": 1}, {"i": 2}], "Completed")


def test_curl_and_the_command_line_reach_the_same_app(server: Server) -> None:
    command = ["curl", "-sS", "-H", f"Authorization: Key {server.key}", "-H", "content-type: application/json"]
    command += ["-d", '{"name": "curl"}', f"{server.url}/run/me/greeter"]
    curl = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(curl.stdout) == {"hello": "curl"}
    assert json.loads(server.varvel("call", "me/greeter", "name=cli", "--json").stdout) == {"hello": "cli"}


def test_what_ran_is_in_analytics_metrics_and_the_list_of_apps(server: Server) -> None:
    with server.client() as client:
        assert client.post("/run/me/greeter", json={"name": "Grace"}).json() == {"hello": "Grace"}
        analytics = client.get(
            "/v1/serverless/analytics",
            params={"endpoint_id": "me/greeter", "expand": "summary,request_count,p50_duration"},
        ).json()
        assert sum(row["request_count"] for row in analytics["summary"]) >= 1
        metrics = client.get("/v1/serverless/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'fal_app_runners{application="me/greeter"' in metrics.text
        apps = client.get("/v1/serverless/apps", params={"expand": "endpoints"}).json()["apps"]
        assert [app["endpoint_id"] for app in apps] == ["me/greeter"]
        assert client.get("/v1/serverless/apps/me/greeter/queue").json() == {"queue_size": 0}


def test_an_error_in_the_app_is_the_callers_answer_and_its_traceback_is_in_the_logs(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/run/me/greeter/fail", json={})
        assert answer.status_code == 500
        request_id = answer.headers["x-fal-request-id"]
        record = _record(server, request_id, "me/greeter/fail")
        assert (record["status_code"], record["billable_units"]) == (500, 0)
        logs = client.post(
            "/v1/serverless/logs/history", params={"request_id": request_id, "traceback": "true"}
        ).json()["items"]
        assert any("RuntimeError: as asked" in line["message"] for line in logs)


def test_files_go_up_and_down(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        up = client.post("/v1/serverless/files/file/local/notes/a.txt", files={"file_upload": ("a.txt", b"varvel")})
        assert (up.status_code, up.json()) == (200, True)
        assert client.get("/v1/serverless/files/file/notes/a.txt").content == b"varvel"
        assert [item["path"] for item in client.get("/v1/serverless/files/list/notes").json()] == ["notes/a.txt"]


def test_everything_is_still_there_after_a_restart_and_after_sigkill(server: Server) -> None:
    with server.client() as client:
        request_id = client.post("/queue/me/greeter", json={"name": "before"}).json()["request_id"]
    _wait(server, request_id)
    for end in (server.stop, server.kill):
        end()
        server.start()
        with server.client() as client:
            assert client.get(f"/queue/me/greeter/requests/{request_id}").json() == {"hello": "before"}
            assert _record(server, request_id)["billable_units"] == 2
            logs = client.post("/v1/serverless/logs/history", params={"request_id": request_id}).json()["items"]
            assert [line["message"] for line in logs] == ["greeting before"]
            assert client.post("/run/me/greeter", json={"name": "after"}).json() == {"hello": "after"}
            assert client.get("/v1/serverless/files/file/notes/a.txt").content == b"varvel"


def test_a_second_server_on_the_same_folder_refuses(server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "varvel.cli.main", "up", "--data", str(server.data), "--port", "0", "--tls-port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert "in use" in second.stderr + second.stdout


def test_a_private_app_wants_a_key_and_an_unknown_one_is_not_found(server: Server) -> None:
    assert httpx.post(f"{server.url}/run/me/greeter", json={}).status_code == 401
    wrong = httpx.post(f"{server.url}/run/me/greeter", json={}, headers={"Authorization": "Key nobody:wrong"})
    assert wrong.status_code == 401
    with server.client() as client:
        assert client.post("/run/me/nothing", json={}).status_code == 404
