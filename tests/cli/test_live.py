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

from varvel.cli import resume
from varvel.cli.connection import Place
from varvel.cli.session import Session


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


def test_both_ways_to_write_a_path_are_one_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    server.varvel("files", "put", f"{tmp_path}/one.txt", "/data/both/one.txt")
    assert [item["name"] for item in told(server, "files", "ls", "both")] == ["one.txt"]
    server.varvel("files", "mv", "both/one.txt", "/data/other/")
    server.varvel("files", "get", "/data/other/one.txt", f"{tmp_path}/back.txt")
    assert (tmp_path / "back.txt").read_text() == "one"
    server.varvel("files", "rm", "/data/other/one.txt")


def test_an_upload_in_parts_goes_on_where_it_was(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(range(256)) * (resume.LARGE // 256) + b"tail")
    session = Session(Place(server.url, server.key, server.data), json_output=True)
    with server.client() as client:
        base = f"{resume.ROOT}/file/multipart/large.bin"
        upload_id = client.post(f"{base}/initiate").json()["upload_id"]
        whole = large.read_bytes()[: resume.PART]
        client.put(f"{base}/{upload_id}/1", files={resume.FIELD: whole}).raise_for_status()
        client.put(f"{base}/{upload_id}/2", files={resume.FIELD: b"not what is there"}).raise_for_status()
    resume.Record(session, large, "large.bin").write(upload_id)
    session.close()
    done = server.varvel("files", "put", str(large), "/data/large.bin")
    assert "2 parts that are there" in done.stderr
    server.varvel("files", "get", "large.bin", f"{tmp_path}/down.bin")
    assert (tmp_path / "down.bin").read_bytes() == large.read_bytes()
    assert list((tmp_path / "cache" / "varvel" / "uploads").iterdir()) == []


def test_an_upload_whose_parts_are_gone_begins_anew(server: Server, tmp_path: Path) -> None:
    server.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    large = tmp_path / "large.bin"
    large.write_bytes(b"x" * resume.LARGE)
    session = Session(Place(server.url, server.key, server.data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        resume.Record(session, large, "anew.bin").write("an-upload-that-is-gone")
    server.varvel("files", "put", str(large), "anew.bin")
    assert [item["size"] for item in told(server, "files", "ls", "anew.bin")] == [resume.LARGE]


def test_rows_leave_as_files_and_as_lines(server: Server, tmp_path: Path) -> None:
    server.varvel("call", "me/echo", "n=export", "-q")
    server.varvel("export", "requests", "-o", f"{tmp_path}/rows.parquet")
    assert (tmp_path / "rows.parquet").read_bytes()[:4] == b"PAR1"
    lines = server.varvel("export", "requests", "--app", "me/echo", "--since", "1h").stdout.splitlines()
    assert {json.loads(line)["app"] for line in lines} == {"me/echo"}
    assert server.varvel("focus").stdout.startswith("BilledCost,")
    assert server.varvel("export", "nothing", check=False).returncode == 1


def test_what_an_app_costs_did_and_was_can_be_read(server: Server) -> None:
    server.varvel("call", "me/echo", "n=watch", "-q")
    assert told(server, "usage", "me/echo", "--summary")["summary"][0]["app"] == "echo"
    assert told(server, "billing") == {"username": "me", "credits": {"current_balance": 0.0, "currency": "USD"}}
    assert "deployment_ended" in [item["category"] for item in told(server, "events", "me/echo")]
    assert [item["message"] for item in told(server, "revisions", "me/echo")] == ["first"]
    history = told(server, "runners", "me/echo", "--since", "10m")["history"]
    assert max(item["running"] + item["idle"] for item in history) >= 1
    assert "fal_app_queue_size" in {item["name"] for item in told(server, "metrics", "me/echo")}
    assert server.varvel("metrics", "--raw").stdout.startswith("# HELP")
    assert told(server, "meta")["webhook_ip_ranges"]


def test_keys_are_replaced_with_an_overlap(server: Server) -> None:
    old = told(server, "keys", "create", "to replace", "--expires", "90d")
    new = told(server, "keys", "rotate", old["key_id"], "--overlap", "0")
    assert server.varvel("apps", "--key", new["key"]).returncode == 0
    assert server.varvel("apps", "--key", old["key"], check=False).returncode == 4
    [shown] = [item for item in told(server, "keys") if item["key_id"] == new["key_id"]]
    assert shown["last_used_at"] is not None


def test_log_drains_are_made_switched_and_deleted(server: Server) -> None:
    made = told(server, "drains", "create", "https://127.0.0.1:9/logs", "--secret", "s" * 64)
    assert told(server, "drains", "disable", made["drain_id"])["active"] is False
    assert [item["drain_id"] for item in told(server, "drains")["drains"]] == [made["drain_id"]]
    server.varvel("drains", "delete", made["drain_id"])
    assert told(server, "drains") == {"drains": []}


def test_lines_are_chosen_by_their_labels(server: Server) -> None:
    server.varvel("call", "me/echo", "print=labelled", "-q")
    found = server.varvel("logs", "me/echo", "--label", "fal_source=gateway", "--label", "fal_request_id!=x", "--json")
    assert "labelled" in [json.loads(line)["message"] for line in found.stdout.splitlines()]
    none = server.varvel("logs", "me/echo", "--label", "fal_source=grpc-run,cron", "--json")
    assert none.stdout == ""


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


def test_credit_is_given_listed_and_left(server: Server) -> None:
    given = told(server, "credits", "add", "me", "24.50", "--note", "a start")
    assert (given["amount"], given["currency"], given["note"]) == ("24.50", "USD", "a start")
    told(server, "credits", "add", "me", "-4.25")
    assert [each["amount"] for each in told(server, "credits", "list")["credits"]] == ["24.50", "-4.25"]
    assert told(server, "billing")["credits"] == {"current_balance": 20.25, "currency": "USD"}, "seconds cost nothing"
    unknown = server.varvel("credits", "add", "nobody-here", "1", check=False)
    assert (unknown.returncode, "no owner nobody-here" in unknown.stderr) == (5, True)
