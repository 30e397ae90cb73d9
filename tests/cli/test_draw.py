from __future__ import annotations

from datetime import UTC, datetime

from varvel.cli.draw import bar, folded, span, spark
from varvel.cli.times import near


def test_a_line_is_as_high_as_its_largest_value_and_tells_nothing_from_little() -> None:
    assert spark([0, 1, 4, 8, None]) == "·▁▄█ "
    assert spark([0, 0]) == "··"
    assert spark([0, 0.001, 1000]) == "·▁█"
    assert spark([]) == ""


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert (spark([0, 1, 8, None], ascii_only=True) + bar(1, 2, 4, ascii_only=True)).isascii()


def test_a_bar_is_as_long_as_its_share_and_never_longer_than_its_room() -> None:
    assert bar(1, 2, 10) == "█" * 5
    assert bar(3, 2, 10) == "█" * 10
    assert bar(0, 2, 10) == ""
    assert bar(0.0001, 2, 10) == "▏"
    assert max(len(bar(value / 1000, 1, 10)) for value in range(1001)) == 10


def test_many_values_are_joined_with_their_neighbours() -> None:
    assert folded([1, 2, 3, None], 2, sum) == [3, 3]
    assert folded([1, 2, 3], 2, max) == [2, 3]
    assert folded([None, None, 1], 2, max) == [None, 1]
    assert folded([1, 2], 5, sum) == [1, 2]
    assert len(folded(list(range(1441)), 25, sum)) <= 25


def test_a_heading_names_the_first_and_the_last_bucket() -> None:
    assert span(["2026-01-02T03:00:00+00:00", "2026-02-03T04:00:00+01:00"]) == "01-02 03:00..02-03 04:00"
    assert span([]) == ""


def test_a_time_of_today_needs_no_date() -> None:
    now = datetime.now(UTC).astimezone().replace(hour=12, minute=0, second=0, microsecond=0)
    assert near(now.isoformat(), now) == "12:00:00"
    assert near(now.replace(year=now.year - 1, month=3, day=4).isoformat(), now) == f"{now.year - 1}-03-04 12:00:00"
    assert near(None) == ""
