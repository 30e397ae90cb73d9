"""What people meet at a terminal: a place that is wrong, a stream that takes little, a key that is lost."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import ROOT, VARVEL, Server, serving

from varvel.cli import main
from varvel.cli.connection import DEFAULT_URL, find_place
from varvel.cli.deploy import split_path
from varvel.cli.files import inner

VARIABLES = ("VARVEL_URL", "VARVEL_KEY", "FAL_KEY", "VARVEL_DATA")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("terminals") / "data", "--no-examples") as running:
        running.varvel("deploy", str(ROOT / "examples" / "echo" / "app.py:app"))
        for number in range(3):
            running.varvel("call", "me/echo", f"n={number}", "-q")
        yield running


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command line with no variable of its own but these."""
    whole = {**{key: value for key, value in os.environ.items() if key not in VARIABLES}, **environ}
    return subprocess.run([*VARVEL, *arguments], capture_output=True, text=True, env=whole, cwd=ROOT, timeout=120)


def on_a_terminal(columns: int, server: Server, *arguments: str, data: Path | None = None) -> list[str]:
    """Lines as a terminal of this width gets them, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {**server.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    environ.pop("COLUMNS", None)
    child = subprocess.Popen(
        [*VARVEL, *arguments, "--data", str(data or server.data)], stdout=theirs, stderr=theirs, env=environ, cwd=ROOT
    )
    os.close(theirs)
    got = bytearray()
    with os.fdopen(ours, "rb", buffering=0) as stream:
        while True:
            try:
                part = stream.read(65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            got += part
    assert child.wait(timeout=60) == 0, got.decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", got.decode()).split("\r\n")


# -- where the server is


def test_the_data_folder_says_where_its_server_is_and_which_key_it_knows(server: Server) -> None:
    done = run("apps", "--json", "--data", str(server.data))
    assert [app["name"] for app in json.loads(done.stdout)["apps"]] == ["echo"]
    assert find_place(None, None, server.data).url == server.url


def test_a_url_needs_no_scheme_and_an_unknown_folder_leads_to_the_default(tmp_path: Path) -> None:
    assert find_place("127.0.0.1:9", None, tmp_path).url == "http://127.0.0.1:9"
    assert find_place(None, None, tmp_path).url == DEFAULT_URL


def test_the_tls_port_is_trusted_through_the_data_folder_and_else_it_is_said_how(
    server: Server, tmp_path: Path
) -> None:
    assert run("apps", "--url", f"https://{server.tls}", "--data", str(server.data)).returncode == 0
    done = run("meta", "--url", f"https://{server.tls}", "--data", str(tmp_path))
    assert done.returncode == 3
    assert "--data" in done.stderr
    done = run("meta", "--url", f"http://{server.tls}", "--data", str(server.data))
    assert done.returncode == 3
    assert "https" in done.stderr


def test_a_401_says_which_key_was_shown_or_where_one_was_looked_for(server: Server, tmp_path: Path) -> None:
    done = run("apps", "--url", server.url, "--data", str(tmp_path))
    assert done.returncode == 4
    assert str(tmp_path / "admin.key") in done.stderr
    done = run("apps", "--url", server.url, FAL_KEY="a:b")
    assert done.returncode == 4
    assert "FAL_KEY" in done.stderr


# -- what streams and terminals take


def test_output_that_is_ascii_only_is_whole_and_still_json(server: Server) -> None:
    done = subprocess.run(
        [*VARVEL, "call", "me/echo", "x=grüße", "print=漢", "--data", str(server.data)],
        capture_output=True,
        env={**server.environ, "PYTHONIOENCODING": "ascii"},
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["x"] == "grüße"
    done = subprocess.run(
        [*VARVEL, "analytics", "--data", str(server.data)],
        capture_output=True,
        env={**server.environ, "PYTHONIOENCODING": "ascii"},
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_disk_that_takes_no_output_is_told_without_a_traceback(server: Server) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*VARVEL, "apps", "--data", str(server.data)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=server.environ,
            cwd=ROOT,
            timeout=60,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["apps"], ["requests"], ["analytics"], ["usage"], ["runners", "me/echo"], ["doctor"]]
)
def test_a_terminal_of_80_columns_takes_every_table(server: Server, words: list[str]) -> None:
    lines = on_a_terminal(80, server, *words)
    assert max(map(len, lines)) <= 80
    assert "echo" in " ".join(lines) or words[0] in ("runners", "doctor")


def test_a_word_longer_than_a_terminal_is_wide_is_folded_in_its_column(server: Server, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.symlink_to(server.data, target_is_directory=True)
    lines = on_a_terminal(80, server, "doctor", data=long)
    assert max(map(len, lines)) <= 80
    assert str(long / "tls" / "ca.pem") in "".join(line[15:].strip() for line in lines).replace(" ", "")


def test_an_id_is_never_cut_not_even_where_it_does_not_fit(server: Server) -> None:
    [newest, *_] = json.loads(server.varvel("requests", "me/echo", "--json").stdout)
    assert any(newest["request_id"] in line for line in on_a_terminal(40, server, "requests", "me/echo"))


def test_numbers_are_drawn_over_time(server: Server) -> None:
    server.varvel("requests", "me/echo")
    lines = on_a_terminal(100, server, "analytics", "me/echo", "--metric", "request_count")
    [row] = [line for line in lines if "request_count" in line]
    assert row.rstrip().endswith("█")
    rows = server.varvel("analytics", "me/echo", "--rows").stdout
    assert rows.splitlines()[0].startswith("bucket")
    assert "█" in "".join(on_a_terminal(100, server, "usage"))
    assert "█" in "".join(on_a_terminal(100, server, "runners", "me/echo", "--since", "10m"))


def test_one_request_is_shown_with_the_time_it_waited_and_ran(server: Server) -> None:
    [newest, *_] = json.loads(server.varvel("requests", "me/echo", "--json").stdout)
    told = server.varvel("requests", "me/echo", "--request", newest["request_id"]).stdout
    assert {"waited", "ran", "units"} <= {line.split()[0] for line in told.splitlines()}


# -- what is not there


@pytest.mark.parametrize("words", [["logs"], ["logs", "-f"], ["requests"], ["analytics"], ["usage"], ["metrics"]])
def test_an_app_that_is_not_there_is_told_instead_of_nothing(server: Server, words: list[str]) -> None:
    done = server.varvel(words[0], "me/nope", *words[1:], check=False)
    assert done.returncode == 5
    assert "There is no app me/nope" in done.stderr


def test_a_query_that_finds_nothing_says_so_beside_an_empty_answer(server: Server) -> None:
    done = server.varvel("requests", "me/echo", "--status", "error")
    assert (done.stdout, done.returncode) == ("", 0)
    assert "no request" in done.stderr
    assert server.varvel("requests", "me/echo", "--status", "error", "--json").stdout == "[]\n"


def test_what_cannot_stand_in_a_header_or_a_path_is_wrong_usage_or_not_there(server: Server) -> None:
    assert server.varvel("call", "me/echo", "n=1", "--hint", "a\nb", check=False).returncode == 2
    done = server.varvel("apps", "show", "me/echo?x", check=False)
    assert (done.returncode, "echo?x" in done.stderr) == (5, True)


def test_a_question_that_nobody_can_answer_names_the_flag(server: Server) -> None:
    done = server.varvel("queue", "flush", "me/echo", check=False, stdin="")
    assert done.returncode == 2
    assert "--yes" in done.stderr


def test_a_followed_log_says_once_that_the_server_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--no-examples") as server:
        server.varvel("deploy", str(ROOT / "examples" / "echo" / "app.py:app"))
        child = subprocess.Popen(
            [*VARVEL, "logs", "me/echo", "-f", "-n", "1", "--data", str(server.data), "--url", server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=server.environ,
            cwd=ROOT,
        )
        try:
            assert child.stdout is not None
            assert "deployed" in child.stdout.readline()
            server.kill()
            time.sleep(3)
            server.start()
            server.varvel("call", "me/echo", "print=back again", "-q")
            while "back again" not in (line := child.stdout.readline()):
                assert line
        finally:
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)
        assert child.returncode == 130
        assert 1 <= said.count("trying again") <= 2  # the connection broke, then nobody answered


def test_ctrl_c_in_a_call_says_what_became_of_the_request(server: Server) -> None:
    child = subprocess.Popen(
        [*VARVEL, "call", "me/echo", "sleep=30", "--data", str(server.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=server.environ,
        cwd=ROOT,
    )
    assert child.stderr is not None
    request_id = child.stderr.readline().split()[1]
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert request_id in said
    assert "Traceback" not in said


# -- what cannot be deployed or started


def test_a_folder_is_no_target_but_the_file_in_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "main.py").write_text("")
    assert main.run(["deploy", str(tmp_path)]) == 2
    assert "main.py" in capsys.readouterr().err
    assert split_path(str(tmp_path / "main.py"))[1] == "main.py"


def test_a_folder_that_is_too_large_is_refused_with_what_makes_it_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def app(scope, receive, send): ...\n")
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "weights.bin").open("wb") as file:
        file.truncate(2**30)
    started = time.monotonic()
    done = server.varvel("deploy", str(tmp_path / "app.py"), check=False)
    assert done.returncode == 1
    assert "models/ (1024.0 MiB)" in done.stderr
    assert time.monotonic() - started < 60


def test_a_build_is_told_without_its_list_of_packages(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import six\nasync def app(scope, receive, send): ...\n")
    (tmp_path / "requirements.txt").write_text("six\n")
    done = server.varvel("deploy", str(tmp_path / "app.py"), "--name", "built", timeout=300)
    assert "building environment" in done.stderr
    assert " + six" not in done.stderr
    found = server.varvel("logs", "me/built", "--search", "six", "--source", "grpc-register").stdout
    assert " + six" in found
    server.varvel("apps", "delete", "me/built", "--yes")


def test_requirements_that_cannot_be_are_told_once_and_in_the_words_of_uv(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def app(scope, receive, send): ...\n")
    (tmp_path / "requirements.txt").write_text("httptools==0.0.0\n")
    done = server.varvel("deploy", str(tmp_path / "app.py"), "--name", "impossible", check=False)
    assert done.returncode == 1
    assert "httptools==0.0.0" in done.stderr
    assert done.stderr.rstrip().endswith("the requirements could not be installed, as said above")


def test_a_port_that_is_taken_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, variable in (("--port", "VARVEL_PORT"), ("--tls-port", "VARVEL_TLS_PORT")):
            ports = {"--port": "0", "--tls-port": "0", flag: str(port)}
            flags = [word for pair in ports.items() for word in pair]
            done = run("up", "--data", str(tmp_path / "data"), "--no-examples", *flags)
            assert done.returncode == 1
            assert all(word in done.stderr for word in (str(port), f"{flag} ", variable))
            assert "Traceback" not in done.stderr


def test_a_host_that_is_none_of_this_machine_is_named(tmp_path: Path) -> None:
    done = run("up", "--data", str(tmp_path / "data"), "--host", "no.such.host.invalid", "--no-examples")
    assert done.returncode == 1
    assert "no.such.host.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_app_that_could_not_be_deployed_at_the_start_is_named_when_the_server_is_ready(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def (:\n")
    with serving(tmp_path / "data", "--app", str(tmp_path / "app.py")) as server:
        deadline = time.monotonic() + 20
        while "not deployed: app.py" not in server.log() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "not valid Python" in server.log()
        assert "not deployed: app.py" in server.log()


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_a_data_folder_that_cannot_be_is_said_before_anything_starts(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "taken"
    place.write_text("a file")
    place = place if kind == "file" else place / "below"
    done = run("up", "--data", str(place))
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert "VARVEL_DATA" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_in_the_storage_does_not_climb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["files", "rm", "a/../../x"]) == 2
    assert "'..'" in capsys.readouterr().err
    assert inner("a/..b") == "a/..b"


# -- when the key is lost


def test_a_lost_key_is_made_anew_in_the_folder_of_a_stopped_server(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--no-examples") as server:
        (data / "admin.key").unlink()
        assert run("apps", "--data", str(data)).returncode == 4
        refused = run("keys", "recover", "--data", str(data))
        assert refused.returncode == 1
        assert "in use" in refused.stderr
        assert json.loads(run("doctor", "--json", "--data", str(data)).stdout)["findings"][1]["state"] == "wrong"
        server.stop()
        assert run("keys", "recover", "nobody", "--data", str(data)).returncode == 5
        made = run("keys", "recover", "--data", str(data))
        assert made.returncode == 0, made.stderr
        assert (data / "admin.key").stat().st_mode & 0o077 == 0
        server.start()
        assert run("keys", "--data", str(data)).returncode == 0
        assert made.stdout.strip() == server.key


def test_there_is_no_key_to_recover_where_no_server_was(tmp_path: Path) -> None:
    done = run("keys", "recover", "--data", str(tmp_path))
    assert done.returncode == 5
    assert list(tmp_path.iterdir()) == []
