"""Parameters that operations share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import TypeAdapter, ValidationError

from varvel.errors import InvalidRequest
from varvel.platform.parameters import (
    CommaList,
    Flag,
    bucket_window,
    endpoint_parts,
    instant,
    time_range,
    zone_of,
)

NOW = datetime(2025, 3, 10, 12, 30, tzinfo=UTC).timestamp()


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (["a", "b,c", "a"], ["a", "b", "c"]),
        (" a , ,b ", ["a", "b"]),
        (None, None),
        ([str(n) for n in range(50)], [str(n) for n in range(50)]),
    ],
)
def test_lists_may_be_repeated_and_comma_separated(given: Any, words: list[str] | None) -> None:
    assert CommaList().split(given) == words


@pytest.mark.parametrize("given", ["", ",", [], ",".join(str(n) for n in range(51))])
def test_a_list_holds_1_to_50_values(given: Any) -> None:
    with pytest.raises(Exception, match="1 to 50"):
        CommaList().split(given)


def test_a_list_of_choices_names_the_value_that_is_none_of_them() -> None:
    assert CommaList(("a", "b")).split("b,a") == ["b", "a"]
    with pytest.raises(Exception, match=r"'\(c\)' is none of a, b"):
        CommaList(("a", "b")).split("a,{c}")


@pytest.mark.parametrize(
    ("value", "answer"), [("true", True), ("1", True), ("false", False), ("null", None), ("", None), (None, None)]
)
def test_a_flag_may_be_null(value: Any, answer: bool | None) -> None:
    assert TypeAdapter(Flag).validate_python(value) is answer


def test_a_flag_is_nothing_else() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Flag).validate_python("maybe")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2025-01-01", "2025-01-01T00:00:00+00:00"),
        ("2025-01-01T10:00:00Z", "2025-01-01T10:00:00+00:00"),
        ("2025-01-01T10:00:00.123456Z", "2025-01-01T10:00:00.123456+00:00"),
        ("2025-01-01T10:00:00+02:00", "2025-01-01T08:00:00+00:00"),
        ("2025-01-01T10:00:00 02:00", "2025-01-01T08:00:00+00:00"),
        ("2025-01-01T10:00", "2025-01-01T10:00:00+00:00"),
    ],
)
def test_times_and_dates_are_read(text: str, at: str) -> None:
    assert instant(text, "start") == seconds(at)


def test_a_date_begins_in_the_zone_asked_for() -> None:
    assert instant("2025-07-01", "start", ZoneInfo("America/New_York")) == seconds("2025-07-01T04:00:00+00:00")


@pytest.mark.parametrize(
    "text", ["", "x", "yesterday", "2025-13-01", "2025-01-01T25:00:00Z", "0001-01-01", "9999-12-31", "12", "1e9", "\0"]
)
def test_other_texts_are_refused_by_the_name_of_the_parameter(text: str) -> None:
    with pytest.raises(InvalidRequest, match="start"):
        instant(text, "start")


def test_a_range_is_the_last_day_unless_it_is_given() -> None:
    span = time_range(None, None, now=NOW)
    assert (span.start, span.end) == (NOW - 86_400, NOW)
    span = time_range(None, "2025-01-02", now=NOW)
    assert (span.start, span.end) == (seconds("2025-01-01T00:00:00+00:00"), seconds("2025-01-02T00:00:00+00:00"))
    assert span.start_us == 1_735_689_600_000_000


@pytest.mark.parametrize(("start", "end"), [("2025-01-02", "2025-01-01"), ("2025-03-11", None), ("2025-01-01", None)])
def test_a_range_that_is_backwards_or_too_long_is_refused(start: str, end: str | None) -> None:
    with pytest.raises(InvalidRequest, match="start"):
        time_range(start, end, now=NOW, at_most=30 * 86_400)


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Etc/GMT+5"])
def test_every_iana_zone_is_known(name: str) -> None:
    assert zone_of(name).key == name


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "utc+1", "Europe"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="timezone"):
        zone_of(name)


def test_buckets_widen_the_range_when_they_are_bound() -> None:
    window = bucket_window("2025-03-08", None, "America/New_York", "day", "true", now=NOW)
    assert window.start == seconds("2025-03-08T00:00:00-05:00") * 1_000_000
    assert window.end == seconds("2025-03-11T00:00:00-04:00") * 1_000_000
    loose = bucket_window("2025-03-08", None, "America/New_York", "day", "false", now=NOW)
    assert (loose.start, loose.end) == (window.start, NOW * 1_000_000)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("me/ocr", ("me", "ocr", "")), ("me/ocr/turbo/x", ("me", "ocr", "/turbo/x")), ("/me/ocr/", ("me", "ocr", ""))],
)
def test_endpoint_ids_have_an_owner_a_name_and_perhaps_a_route(text: str, parts: tuple[str, str, str]) -> None:
    assert endpoint_parts(text) == parts


@pytest.mark.parametrize("text", ["", "me", "me/", "/", "//x"])
def test_other_endpoint_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="endpoint_id"):
        endpoint_parts(text)
