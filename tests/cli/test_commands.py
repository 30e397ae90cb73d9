from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from varvel.cli import main
from varvel.cli.connection import UNREACHABLE, Failure, Refused, checked, find_place
from varvel.cli.deploy import split_path
from varvel.cli.files import inner
from varvel.cli.logs import label_filter
from varvel.cli.resume import MOST_PARTS, PART, Piece, patiently, plan
from varvel.cli.times import later, moment
from varvel.cli.up import setting_flags
from varvel.lock import DataFolderLock
from varvel.settings import Settings

NOBODY = ["--url", "http://127.0.0.1:9"]


def test_every_setting_is_a_flag_of_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert {flag.name for flag in setting_flags()} == {item.name for item in fields(Settings)}
    assert main.run(["up", "--help"]) == 0
    assert "--tls-port" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nope"], 2),
        (["call"], 2),
        (["apps", "show", "noslash"], 2),
        (["deploy", "no/such/file.py"], 2),
        (["logs", "--since", "yesterday-ish"], 2),
        (["call", "me/x", "notapair"], 2),
        (["call", "me/x", "-i", "{broken"], 2),
        (["call", "me/x", "image=@no/such/file"], 2),
        (["files", "put", "no/such/file", "x"], 2),
        (["apps", *NOBODY], 3),
        (["call", "me/x", *NOBODY], 3),
        (["--version"], 0),
        (["up", "--port", "notanumber"], 2),
        (["up", "--port", "70000"], 1),
        (["up", "--tls-port=-1"], 1),
        (["up", "--log-level", "loud"], 1),
        (["up", "--max-body=-1"], 1),
        (["up", "--result-ttl", "nan"], 1),
        (["help"], 0),
        (["help", "call"], 0),
    ],
)
def test_exit_codes_say_what_went_wrong(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VARVEL_URL", NOBODY[1])
    assert main.run(arguments) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_message_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["apps", *NOBODY])
    told = capsys.readouterr()
    assert told.out == ""
    assert "start one with 'varvel up'" in told.err


def test_a_data_folder_with_a_broken_settings_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "varvel.toml").write_text("colour = 1\n")
    assert main.run(["up", "--data", str(tmp_path)]) == 1
    assert "colour" in capsys.readouterr().err


def test_a_control_port_is_taken_and_said_to_be_only_reserved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = DataFolderLock(tmp_path)
    try:
        assert main.run(["up", "--data", str(tmp_path), "--control-port", "9999"]) == 1
    finally:
        lock.release()
    told = capsys.readouterr().err
    assert "nothing will listen on control port 9999" in told
    assert "in use" in told


def test_the_key_comes_from_the_flag_then_the_environment_then_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VARVEL_KEY", "FAL_KEY", "VARVEL_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "admin.key").write_text("file:key\n")
    assert find_place(None, None, tmp_path).key == "file:key"
    monkeypatch.setenv("FAL_KEY", "fal:key")
    assert find_place(None, None, tmp_path).key == "fal:key"
    monkeypatch.setenv("VARVEL_KEY", "own:key")
    assert find_place(None, None, tmp_path).key == "own:key"
    assert find_place(None, "flag:key", tmp_path).key == "flag:key"
    assert find_place("http://x:1/", None, tmp_path).url == "http://x:1"


@pytest.mark.parametrize(
    ("status", "body", "said", "code"),
    [
        (400, {"error": {"type": "validation_error", "message": "bad start"}}, "bad start", 1),
        (401, {"error": {"message": "Authentication required"}}, "Authentication required", 4),
        (403, {"detail": "no", "error_type": "forbidden"}, "no", 4),
        (404, {"detail": "Path /x not found"}, "Path /x not found", 5),
        (422, {"detail": [{"loc": ["body"], "msg": "missing"}]}, "missing", 1),
        (503, "down", "down", 1),
    ],
)
def test_errors_of_every_shape_become_one_message(status: int, body: Any, said: str, code: int) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(Refused) as caught:
        checked(httpx.Response(status, text=content))
    assert said in caught.value.message
    assert f"HTTP {status}" in caught.value.message
    assert caught.value.code == code


def test_an_age_becomes_a_moment() -> None:
    now = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
    assert moment("2h", now) == "2026-01-02T10:00:00.000Z"
    assert moment("1d", now) == "2026-01-01T12:00:00.000Z"
    assert moment("2026-01-01") == "2026-01-01"
    assert moment(None) is None
    with pytest.raises(Failure):
        moment("soon")


def test_a_path_is_split_in_folder_and_target(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("")
    assert split_path(f"{tmp_path}/app.py::Hello") == (tmp_path.resolve(), "app.py:Hello")
    assert split_path(f"{tmp_path}/app.py") == (tmp_path.resolve(), "app.py")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("x", "x"),
        ("/data/x", "x"),
        ("/data/a/b/", "a/b/"),
        ("/data", ""),
        ("/data/", ""),
        ("/", ""),
        ("data/x", "data/x"),
    ],
)
def test_a_path_as_apps_see_it_is_the_same_file(typed: str, meant: str) -> None:
    assert inner(typed) == meant


def test_an_absolute_path_outside_of_the_storage_is_refused() -> None:
    with pytest.raises(Failure, match="/data/"):
        inner("/database/x")


def test_parts_cover_a_file_once_and_are_never_too_many() -> None:
    assert plan(10, 4) == [Piece(1, 0, 4), Piece(2, 4, 4), Piece(3, 8, 2)]
    huge = plan(MOST_PARTS * PART + 1)
    assert len(huge) <= MOST_PARTS
    assert sum(piece.size for piece in huge) == MOST_PARTS * PART + 1


def test_a_part_is_sent_again_while_the_server_is_away_but_not_when_it_refuses() -> None:
    problems = [Failure("away", UNREACHABLE), Failure("away", UNREACHABLE)]
    heard: list[str] = []

    def once() -> str:
        if problems:
            raise problems.pop()
        return "etag"

    assert patiently(once, lambda problem: heard.append(problem.message), pause=0.001) == "etag"
    assert heard == ["away", "away"]
    problems = [Failure("full", 1)]
    with pytest.raises(Failure, match="full"):
        patiently(once, lambda _: None, pause=0.001)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("a=1", "equals", "1"),
        ("a!=1", "not_equals", "1"),
        ("a=1,2", "in", ["1", "2"]),
        ("a!=1,2", "not_in", ["1", "2"]),
    ],
)
def test_conditions_on_labels_are_typed_as_they_are_read(text: str, kind: str, value: object) -> None:
    assert label_filter(text) == {"key": "a", "value": value, "condition_type": kind}


def test_what_is_no_condition_on_a_label_is_refused() -> None:
    with pytest.raises(Failure):
        label_filter("!=x")


def test_a_span_may_lie_ahead() -> None:
    assert later("1d", datetime(2026, 1, 2, 12, 0, tzinfo=UTC)) == "2026-01-03T12:00:00.000Z"
