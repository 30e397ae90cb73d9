"""Time buckets on the wall clocks of any IANA zone, across every change of its offset.

A bucket is the stretch of real time between two edges; edges and bounds are whole seconds since 1970 (UTC), so
that one list of them serves Python and SQL alike. Rules where the clocks change:

- days, weeks (from Monday) and months begin at the first moment of their local date, which makes days of 23, 24,
  25 or (Lord Howe) 23.5 and 24.5 hours; a date that a zone skipped (Apia, 30 December 2011) has no bucket;
- hours and minutes follow the wall clock and are cut where the offset changes, so that a repeated hour is two
  buckets, never one of 120 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Literal

Timeframe = Literal["minute", "hour", "day", "week", "month"]

HOUR, DAY = 3600, 86400
_CLOCK = {"minute": 60, "hour": HOUR}


def detect(seconds: float) -> Timeframe:
    """The timeframe of a range of this length that names none."""
    if seconds < 2 * HOUR:
        return "minute"
    if seconds < 2 * DAY:
        return "hour"
    if seconds < 64 * DAY:
        return "day"
    return "week" if seconds < 183 * DAY else "month"


@dataclass(frozen=True, slots=True)
class Window:
    """A range of time cut into buckets; `start` and `end` (exclusive) in microseconds since 1970."""

    start: int
    end: int
    timeframe: Timeframe
    zone: tzinfo

    @property
    def calendar(self) -> str:
        """What cuts it, such as `week Europe/Berlin`; empty for minutes, which are too many to keep."""
        return "" if self.timeframe == "minute" else f"{self.timeframe} {self.zone}"

    def edges(self, after: int | None = None) -> Iterator[int]:
        """Where buckets begin, in seconds: the first is that of `start` (or `after`, itself an edge), lazily."""
        edge = floor(self.start // 1_000_000, self.timeframe, self.zone) if after is None else after
        while edge * 1_000_000 < self.end:
            yield edge
            edge = following(edge, self.timeframe, self.zone)


def window(start: int, end: int, timeframe: Timeframe | None, zone: tzinfo, bound: bool) -> Window:
    """The buckets of a range of microseconds; `bound` widens it to whole buckets on both sides."""
    timeframe = timeframe or detect((end - start) / 1e6)
    if not bound:
        return Window(start, end, timeframe, zone)
    first = floor(start // 1_000_000, timeframe, zone)
    last = floor(-(-end // 1_000_000), timeframe, zone)
    if last * 1_000_000 < end:
        last = following(last, timeframe, zone)
    return Window(first * 1_000_000, last * 1_000_000, timeframe, zone)


def label(edge: int, zone: tzinfo) -> str:
    """The wall time of an edge with its offset, in ISO 8601: `2025-01-15T00:00:00-05:00`."""
    return datetime.fromtimestamp(edge, zone).isoformat()


def floor(at: int, timeframe: Timeframe, zone: tzinfo) -> int:
    """The edge at or before `at`."""
    if timeframe in _CLOCK:
        local = datetime.fromtimestamp(at, zone)
        edge = at - (local.minute * 60 + local.second) % _CLOCK[timeframe]
        return edge if _offset(edge, zone) == local.utcoffset() else _change(edge, at, zone)
    day = _period(datetime.fromtimestamp(at, zone).date(), timeframe)
    # Where a clock goes back over midnight the same date begins twice; its first beginning counts.
    return min(_midnight(day, zone), at)


def following(edge: int, timeframe: Timeframe, zone: tzinfo) -> int:
    """The first edge after `edge`."""
    if timeframe in _CLOCK:
        local = datetime.fromtimestamp(edge, zone)
        size = _CLOCK[timeframe]
        later = edge + size - (local.minute * 60 + local.second) % size
        return later if _offset(later - 1, zone) == local.utcoffset() else _change(edge, later - 1, zone)
    day = _period(datetime.fromtimestamp(edge, zone).date(), timeframe)
    later = edge
    while later <= edge:  # more than once only over a date that the zone skipped
        day = _next_period(day, timeframe)
        later = _midnight(day, zone)
    return later


def _period(day: date, timeframe: Timeframe) -> date:
    if timeframe == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if timeframe == "month" else day


def _next_period(day: date, timeframe: Timeframe) -> date:
    if timeframe == "month":
        return (day + timedelta(days=31)).replace(day=1)
    return day + timedelta(days=7 if timeframe == "week" else 1)


def _midnight(day: date, zone: tzinfo) -> int:
    """The first moment whose local date is `day` or later."""
    at = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
    if datetime.fromtimestamp(at - 1, zone).date() < day:
        return at
    return _change(at - DAY, at, zone)  # the clock jumped over midnight


def _offset(at: int, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(at, zone).utcoffset()


def _change(before: int, after: int, zone: tzinfo) -> int:
    """The first moment in (before, after] with the offset of `after`; the offset changes once in between."""
    offset = _offset(after, zone)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if _offset(middle, zone) == offset else (middle, after)
    return after
