from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varvel.platform.buckets import DAY, HOUR, Timeframe, detect, floor, following, label, window


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def lengths(start: str, end: str, timeframe: Timeframe, zone: str) -> list[int]:
    tz = ZoneInfo(zone)
    cut = window(at(start) * 1_000_000, at(end) * 1_000_000, timeframe, tz, True)
    return [b - a for a, b in pairwise([*cut.edges(), cut.end // 1_000_000])]


def labels(start: str, end: str, timeframe: Timeframe, zone: str) -> list[str]:
    tz = ZoneInfo(zone)
    cut = window(at(start) * 1_000_000, at(end) * 1_000_000, timeframe, tz, True)
    return [label(edge, tz) for edge in cut.edges()]


@pytest.mark.parametrize(
    ("zone", "start", "end", "hours"),
    [
        ("Europe/Berlin", "2025-03-29T12:00+01:00", "2025-03-31T12:00+02:00", [24, 23, 24]),
        ("Europe/Berlin", "2025-10-25T12:00+02:00", "2025-10-27T12:00+01:00", [24, 25, 24]),
        ("America/New_York", "2025-03-08T12:00-05:00", "2025-03-10T12:00-04:00", [24, 23, 24]),
        ("America/New_York", "2025-11-01T12:00-04:00", "2025-11-03T12:00-05:00", [24, 25, 24]),
        ("Australia/Lord_Howe", "2025-10-04T12:00+10:30", "2025-10-06T12:00+11:00", [24, 23.5, 24]),
        ("Australia/Lord_Howe", "2025-04-05T12:00+11:00", "2025-04-07T12:00+10:30", [24, 24.5, 24]),
        ("Asia/Kathmandu", "2025-06-01T12:00+05:45", "2025-06-02T12:00+05:45", [24, 24]),
        ("Pacific/Apia", "2011-12-29T00:00-10:00", "2012-01-01T00:00+14:00", [24, 24]),
        ("America/Havana", "2025-03-08T12:00-05:00", "2025-03-10T12:00-04:00", [24, 23, 24]),
        ("America/Santiago", "2025-09-06T12:00-04:00", "2025-09-08T12:00-03:00", [24, 23, 24]),
        ("America/Toronto", "1919-03-30T12:00-05:00", "1919-03-31T12:00-04:00", [23.5, 23.5]),
    ],
)
def test_days_are_as_long_as_the_local_calendar_has_them(zone: str, start: str, end: str, hours: list[float]) -> None:
    assert [seconds / HOUR for seconds in lengths(start, end, "day", zone)] == hours


def test_a_skipped_date_has_no_bucket() -> None:
    got = labels("2011-12-29T00:00-10:00", "2012-01-01T00:00+14:00", "day", "Pacific/Apia")
    assert got == ["2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00"]


def test_a_repeated_hour_is_two_buckets_and_a_skipped_one_is_none() -> None:
    repeated = labels("2025-10-26T01:00+02:00", "2025-10-26T04:00+01:00", "hour", "Europe/Berlin")
    assert [text[11:16] + text[19:] for text in repeated] == [
        "01:00+02:00",
        "02:00+02:00",
        "02:00+01:00",
        "03:00+01:00",
    ]
    skipped = labels("2025-03-30T01:00+01:00", "2025-03-30T04:00+02:00", "hour", "Europe/Berlin")
    assert [text[11:16] for text in skipped] == ["01:00", "03:00"]


def test_a_half_hour_change_cuts_the_hour_in_which_it_falls() -> None:
    back = ("2025-04-06T01:00+11:00", "2025-04-06T03:00+10:30", "hour", "Australia/Lord_Howe")
    assert [seconds // 60 for seconds in lengths(*back)] == [60, 30, 60]  # type: ignore[arg-type]
    assert [text[11:16] + text[19:] for text in labels(*back)] == ["01:00+11:00", "01:30+10:30", "02:00+10:30"]  # type: ignore[arg-type]
    forth = ("2025-10-05T01:00+10:30", "2025-10-05T04:00+11:00", "hour", "Australia/Lord_Howe")
    assert [seconds // 60 for seconds in lengths(*forth)] == [60, 30, 60]  # type: ignore[arg-type]


def test_hours_of_kathmandu_begin_at_a_quarter_past_in_utc() -> None:
    tz = ZoneInfo("Asia/Kathmandu")
    assert floor(at("2025-06-01T12:50+05:45"), "hour", tz) == at("2025-06-01T06:15Z")
    assert floor(at("2025-06-01T03:00+05:45"), "day", tz) == at("2025-05-31T18:15Z")


def test_weeks_begin_on_monday_and_months_on_the_first() -> None:
    assert labels("2025-01-01T00:00Z", "2025-01-14T00:00Z", "week", "UTC") == [
        "2024-12-30T00:00:00+00:00", "2025-01-06T00:00:00+00:00", "2025-01-13T00:00:00+00:00",
    ]  # fmt: skip
    assert [n // DAY for n in lengths("2024-01-31T00:00Z", "2024-04-01T00:00Z", "month", "UTC")] == [31, 29, 31]


def test_bound_widens_to_whole_buckets_and_unbound_keeps_the_range() -> None:
    start, end = at("2025-01-01T10:20Z") * 1_000_000, at("2025-01-01T12:00Z") * 1_000_000
    bound = window(start, end, "hour", UTC, True)
    assert (bound.start, bound.end) == (at("2025-01-01T10:00Z") * 1_000_000, end)
    free = window(start, end + 1, "hour", UTC, False)
    assert (free.start, free.end) == (start, end + 1)
    assert [label(edge, UTC)[11:16] for edge in free.edges()] == ["10:00", "11:00", "12:00"]
    assert window(start, end + 1, "hour", UTC, True).end == at("2025-01-01T13:00Z") * 1_000_000


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2 * HOUR - 1, "minute"), (2 * HOUR, "hour"), (2 * DAY - 1, "hour"), (2 * DAY, "day"), (64 * DAY - 1, "day"),
        (64 * DAY, "week"), (183 * DAY - 1, "week"), (183 * DAY, "month"),
    ],
)  # fmt: skip
def test_the_length_of_a_range_decides_its_timeframe(seconds: int, expected: str) -> None:
    assert detect(seconds) == expected


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia",
         "America/Havana", "Africa/Casablanca", "Antarctica/Troll", "America/St_Johns"]  # fmt: skip
FRAMES: list[Timeframe] = ["minute", "hour", "day", "week", "month"]


@given(
    st.integers(at("1990-01-01T00:00Z"), at("2037-01-01T00:00Z")), st.sampled_from(FRAMES), st.sampled_from(ZONES)
)  # fmt: skip
def test_every_moment_lies_in_exactly_one_bucket(moment: int, timeframe: Timeframe, name: str) -> None:
    zone = ZoneInfo(name)
    edge = floor(moment, timeframe, zone)
    after = following(edge, timeframe, zone)
    assert edge <= moment < after
    assert floor(edge, timeframe, zone) == edge
    assert floor(after, timeframe, zone) == after
    assert floor(after - 1, timeframe, zone) == edge
