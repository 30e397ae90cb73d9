"""The command line against a real server, as a person or a script uses it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import ROOT, VARVEL, Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("cli") / "data", "--no-examples") as running:
        running.varvel("deploy", str(ROOT / "examples" / "echo" / "app.py:app"), "--message", "first")
        yield running


def told(server: Server, *arguments: str) -> Any:
    return json.loads(server.varvel(*arguments, "--json").stdout)


def eventually(server: Server, *arguments: str) -> Any:
    """What a command finds, as soon as it finds something."""
    for _ in range(100):
        if found := told(server, *arguments):
            return found
        time.sleep(0.1)
    raise AssertionError(f"varvel {' '.join(arguments)} finds nothing")


def start(server: Server, *arguments: str) -> subprocess.Popen[str]:
    environ = {**server.environ, "VARVEL_URL": server.url, "VARVEL_KEY": server.key}
    return subprocess.Popen(
        [*VARVEL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT
    )


def test_a_call_through_the_queue_prints_logs_to_stderr_and_the_answer_to_stdout(server: Server) -> None:
    done = server.varvel("call", "me/echo", "print=hello", "n=3")
    assert json.loads(done.stdout) == {"print": "hello", "n": 3}
    assert "hello" in done.stderr.splitlines()


def test_a_direct_call_answers_the_same(server: Server) -> None:
    assert json.loads(server.varvel("call", "me/echo", "n=3", "--sync").stdout) == {"n": 3}


def test_input_comes_from_stdin_or_a_file_too(server: Server, tmp_path: Path) -> None:
    assert json.loads(server.varvel("call", "me/echo", "-i", "-", stdin='{"from": "stdin"}').stdout) == {
        "from": "stdin"
    }
    (tmp_path / "in.json").write_text('["a list"]')
    assert json.loads(server.varvel("call", "me/echo", "-i", f"@{tmp_path}/in.json").stdout) == ["a list"]


def test_a_file_in_a_call_becomes_a_url_that_the_app_can_fetch(server: Server, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("read me")
    answer = json.loads(server.varvel("call", "me/echo", f"file=@{tmp_path}/note.txt").stdout)
    with server.client() as client:
        assert client.get(answer["file"]).text == "read me"


@pytest.mark.parametrize("how", [["--sync"], []])
def test_an_app_that_answers_an_error_ends_in_exit_code_1(server: Server, how: list[str]) -> None:
    done = server.varvel("call", "me/echo", "status=422", *how, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "HTTP 422" in done.stderr


def test_an_unknown_app_ends_in_5_and_a_wrong_key_in_4(server: Server) -> None:
    assert server.varvel("call", "me/nope", "n=1", check=False).returncode == 5
    assert server.varvel("apps", "--key", "wrong:key", check=False).returncode == 4


def test_ctrl_c_cancels_the_request_that_is_being_waited_for(server: Server) -> None:
    child = start(server, "call", "me/echo", "sleep=30")
    assert child.stderr is not None
    request_id = child.stderr.readline().split()[1]
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130
    with server.client() as client:
        # A running one is only asked to stop; what counts is that the server was told.
        assert client.put(f"/queue/me/echo/requests/{request_id}/cancel").status_code in (202, 400)


def test_a_detached_call_prints_its_request_and_ends(server: Server) -> None:
    request_id = server.varvel("call", "me/echo", "n=1", "--detach").stdout.strip()
    found = eventually(server, "requests", "me/echo", "--request", request_id)
    assert [item["status_code"] for item in found] == [200]


def test_records_log_lines_and_analytics_of_a_call_can_be_read_back(server: Server) -> None:
    server.varvel("call", "me/echo", "print=read me back")
    lines = server.varvel("logs", "me/echo", "--search", "back", "--json").stdout.splitlines()
    assert json.loads(lines[-1])["message"] == "read me back"
    assert eventually(server, "requests", "--limit", "1")[0]["endpoint_id"] == "me/echo"
    [row] = told(server, "analytics", "--summary", "--metric", "request_count")["summary"]
    assert (row["endpoint_id"], row["request_count"] > 0) == ("me/echo", True)


def test_a_followed_log_shows_a_line_that_comes_later(server: Server) -> None:
    child = start(server, "logs", "me/echo", "-f", "-n", "0", "--json")
    try:
        assert child.stdout is not None
        time.sleep(1.5)
        server.varvel("call", "me/echo", "print=live line", "-q")
        assert json.loads(child.stdout.readline())["message"] == "live line"
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode == 130


def test_files_go_up_and_come_back_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "up.bin").write_bytes(bytes(range(256)) * 5000)
    server.varvel("files", "put", f"{tmp_path}/up.bin", "deep/")
    [entry] = told(server, "files", "ls", "deep")
    assert (entry["name"], entry["size"]) == ("up.bin", 1_280_000)
    server.varvel("files", "mv", "deep/up.bin", "moved.bin")
    server.varvel("files", "get", "moved.bin", f"{tmp_path}/down.bin")
    assert (tmp_path / "down.bin").read_bytes() == (tmp_path / "up.bin").read_bytes()
    assert told(server, "files", "verify")["mismatched"] == []
    server.varvel("files", "rm", "moved.bin")
    assert server.varvel("files", "get", "moved.bin", f"{tmp_path}/x", check=False).returncode == 5
    assert not (tmp_path / "x").exists()


def test_a_refused_deployment_shows_the_traceback_once_and_ends_in_1(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1 / 0\n")
    done = server.varvel("deploy", f"{tmp_path}/app.py", "--name", "broken", check=False)
    assert done.returncode == 1
    assert done.stderr.count('File "app.py", line 1') == 1
    assert server.varvel("apps", "show", "me/broken", check=False).returncode == 5


def test_apps_can_be_scaled_rolled_back_and_deleted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def app(scope, receive, send): ...\n")
    first = told(server, "deploy", f"{tmp_path}/app.py", "--name", "brief", "--set", "keep_alive=5")
    second = told(server, "deploy", f"{tmp_path}/app.py", "--name", "brief", "-m", "again")
    assert told(server, "apps", "scale", "me/brief", "--max-concurrency", "1")["scaling"]["max_concurrency"] == 1
    back = told(server, "apps", "rollback", "me/brief", first["revision_id"])
    assert back["revision"]["revision_id"] == first["revision_id"]
    listed = told(server, "apps", "revisions", "me/brief")
    assert [(item["revision_id"], item["is_current"]) for item in listed] == [
        (second["revision_id"], False),
        (first["revision_id"], True),
    ]
    server.varvel("apps", "delete", "me/brief", "--yes")
    assert [app["name"] for app in told(server, "apps")["apps"]] == ["echo"]


def test_keys_owners_and_the_queue_are_looked_after(server: Server) -> None:
    made = told(server, "keys", "create", "for a script")
    assert server.varvel("apps", "--key", made["key"]).returncode == 0
    assert server.varvel("keys", "--key", made["key"], check=False).returncode == 4
    server.varvel("keys", "delete", made["key_id"])
    assert server.varvel("apps", "--key", made["key"], check=False).returncode == 4
    bob = server.varvel("owners", "add", "bob").stdout.strip()
    assert json.loads(server.varvel("apps", "--key", bob, "--json").stdout) == {"apps": []}
    assert told(server, "queue", "size", "me/echo") == {"queue_size": 0}
    server.varvel("queue", "flush", "me/echo", "--yes")


def test_the_doctor_is_content_with_a_server_that_runs(server: Server) -> None:
    found = told(server, "doctor")
    assert found["findings"][0]["name"] == "server"
    assert {item["state"] for item in found["findings"]} <= {"ok", "limited"}
