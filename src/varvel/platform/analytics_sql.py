"""Statements behind analytics: the same metrics from closed stretches, from the rows themselves, or from rollups.

Closed stretches (`telemetry/closing.py`) have their exact figures at hand: each UTC hour and day that is over, and
buckets of other calendars that were asked for before. The others are computed from rows, or when those are many from
hourly rollups.

Rows give exact percentiles. Rollups keep one sketch (`quantilesBFloat16`) for each whole UTC hour and endpoint; a
bucket is then the merged sketches of its whole hours, plus sketches made on the fly from the rows of hours that a
bucket's edge cuts in two, as days in Kathmandu do. Counts and sums are exact either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from varvel.platform.requests_sql import HOUR, Endpoints

COUNTS = {
    "request_count": "count()",
    "success_count": "countIf(status = 'success')",
    "user_error_count": "countIf(status = 'user_error')",
    "error_count": "countIf(status = 'error')",
    "startup_error_count": "countIf(error_group = 'startup')",
    "connection_error_count": "countIf(error_group = 'connection')",
    "timeout_error_count": "countIf(error_group = 'timeout')",
    "runtime_error_count": "countIf(error_group = 'runtime')",
    "cold_boot_count": "countIf(cold_boot > 1)",
}
"""Metric (and column of the rollup) -> expression over rows."""


@dataclass(frozen=True, slots=True)
class Family:
    """Percentiles of one column. `levels` are those that the rollup's column was declared with."""

    levels: tuple[int, ...]
    suffix: str
    arguments: str

    @property
    def fractions(self) -> str:
        """As the sketches want them: `0.25, 0.5`."""
        return ", ".join(f"{level / 100:g}" for level in self.levels)

    @property
    def exact_fractions(self) -> str:
        """A hair lower: where level x rows is whole, `quantilesExact` else takes the next higher row.

        So both sides give the nearest rank: the smallest value that so many per cent do not exceed.
        """
        return ", ".join(f"{level / 100 - 1e-10:.12g}" for level in self.levels)


FAMILIES = {
    "duration": Family((25, 50, 75, 90, 95, 99), "", "requests.duration"),
    "prepare_duration": Family((50, 75, 90, 95, 99), "", "requests.prepare_duration"),
    "cold_boot_duration": Family((50, 75, 90), "If", "requests.cold_boot, requests.cold_boot > 1"),
}
PERCENTILES = {
    f"p{level}_{name}": (name, index) for name, family in FAMILIES.items() for index, level in enumerate(family.levels)
}
"""Metric -> its family and its place in the family's result."""
BILLED = "total_billable_duration"
METRICS = (*COUNTS, *PERCENTILES, BILLED)


MICROS = 1_000_000
NEVER = 2**63
"""A version that no figures have."""
MOST_RUNS = 8
"""Stretches of closed and open buckets in one answer, above which all are read as open."""
_STEPS: Mapping[str, int] = {"day": 86_400, "hour": 3600}


@dataclass(frozen=True, slots=True)
class Span:
    """A range of microseconds, cut at `edges` (seconds, ascending) into buckets; no edges means one bucket."""

    start: int
    end: int
    edges: tuple[int, ...] = ()
    calendar: str = ""
    """What cuts it: a timeframe and a zone, such as `week Europe/Berlin`; empty when that is of no use."""
    last_is_whole: bool = False
    """Whether the end of the range is the end of the last bucket of the calendar, too."""

    def bucket(self, column: str) -> tuple[str, dict[str, Any]]:
        """SQL expression of the edge, in seconds, of the bucket in which a time column lies."""
        if not self.edges:
            return "0", {}
        seconds = f"intDiv({column}, 1000000)"
        steps = {later - edge for edge, later in zip(self.edges, self.edges[1:], strict=False)}
        if len(steps) > 1:
            return f"roundDown({seconds}, {{edges:Array(Int64)}})", {"edges": list(self.edges)}
        params = {"origin": self.edges[0], "step": steps.pop() if steps else max(self.end - self.start, 1)}
        return "{origin:Int64} + intDiv(" + seconds + " - {origin:Int64}, {step:Int64}) * {step:Int64}", params

    @property
    def step(self) -> str:
        """What every bucket is: `hour` or `day` if all are those of UTC (but for the range's own ends), else one of
        the calendar; empty when none of this is known.
        """
        for name, size in _STEPS.items():
            if self.edges and all(edge % size == 0 for edge in self.edges):
                steps = {later - edge for edge, later in zip(self.edges, self.edges[1:], strict=False)}
                inside = self.edges[-1] * MICROS < self.end <= (self.edges[-1] + size) * MICROS
                if steps <= {size} and inside:
                    return name
        return self.calendar if self.edges else ""

    def _buckets(self) -> list[tuple[int, int]]:
        """Each edge, and the end of its bucket in microseconds."""
        ends = [edge * MICROS for edge in self.edges[1:]]
        return list(zip(self.edges, [*ends, self.end], strict=True))

    def whole(self) -> dict[int, int]:
        """First microsecond and end of the buckets that lie wholly inside."""
        buckets = self._buckets() if self.last_is_whole else self._buckets()[:-1]
        return {edge * MICROS: end for edge, end in buckets if self.start <= edge * MICROS}

    def runs(self, closed: Mapping[int, int]) -> tuple[list[Span], list[Span]]:
        """The stretches of whole buckets that are `closed` (first microsecond and end of each), and all others."""

        def is_closed(bucket: tuple[int, int]) -> bool:
            begin = bucket[0] * MICROS
            return self.start <= begin and closed.get(begin) == bucket[1]

        found: tuple[list[Span], list[Span]] = ([], [])
        for as_closed, group in groupby(self._buckets() if self.edges else (), is_closed):
            buckets = list(group)
            start = max(buckets[0][0] * MICROS, self.start)
            found[not as_closed].append(Span(start, buckets[-1][1], tuple(edge for edge, _ in buckets)))
        return found if self.edges and len(found[0]) + len(found[1]) <= MOST_RUNS else ([], [self])

    def cut_hours(self) -> list[int]:
        """The hours (first microsecond) that are not whole inside one bucket."""
        borders = {self.start, self.end, *(edge * 1_000_000 for edge in self.edges[1:])}
        return sorted({border // HOUR * HOUR for border in borders if border % HOUR})

    def has_whole_hours(self) -> bool:
        """Whether rollups can give any part of the answer."""
        hours = -(-self.end // HOUR) - self.start // HOUR
        return hours > len(self.cut_hours())


def _range(column: str, chosen: Endpoints, span: Span) -> tuple[str, dict[str, Any]]:
    condition, params = chosen.condition()
    return f"{condition} AND {column} >= {{start:Int64}} AND {column} < {{end:Int64}}", params | {
        "start": span.start,
        "end": span.end,
    }


def volume(chosen: Endpoints, span: Span) -> tuple[str, dict[str, Any]]:
    """About how many rows an exact answer would read (whole hours on both sides)."""
    whole = Span(span.start // HOUR * HOUR, span.end)
    where, params = _range("hour", chosen, whole)
    return f"SELECT sum(request_count) AS requests FROM requests_hourly WHERE {where}", params  # noqa: S608


def from_rows(
    chosen: Endpoints, span: Span, counts: Iterable[str], families: Iterable[str]
) -> tuple[str, dict[str, Any]]:
    """Counts, and exact percentiles as arrays, for each endpoint and bucket."""
    bucket, cut = span.bucket("ended_at")
    where, params = _range("ended_at", chosen, span)
    columns = [f"{COUNTS[name]} AS {name}" for name in counts]
    columns += [_quantiles("Exact", name, FAMILIES[name]) for name in families]
    return _grouped(bucket, columns, "requests", where), params | cut


def from_rollups(
    chosen: Endpoints, span: Span, counts: Sequence[str], families: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """The same from rollups, and from the rows of hours that an edge cuts."""
    bucket, cut = span.bucket("hour")
    where, params = _range("hour", chosen, span)
    hours = span.cut_hours()
    states = ", ".join(["endpoint_id", f"{bucket} AS bucket", *counts, *families])
    source = f"SELECT {states} FROM requests_hourly WHERE {where} AND hour NOT IN {{cut_hours:Array(Int64)}}"  # noqa: S608
    if hours:
        row_bucket, _ = span.bucket("ended_at")
        row_where, _ = _range("ended_at", chosen, span)
        columns = [f"{COUNTS[name]} AS {name}" for name in counts]
        columns += [_quantiles("BFloat16State", name, FAMILIES[name]) for name in families]
        condition = f"{row_where} AND intDiv(ended_at, {HOUR}) * {HOUR} IN {{cut_hours:Array(Int64)}}"
        source += f" UNION ALL {_grouped(row_bucket, columns, 'requests', condition)}"
    merged = [f"sum(part.{name}) AS {name}" for name in counts]
    merged += [f"quantilesBFloat16Merge({FAMILIES[name].fractions})(part.{name}) AS {name}" for name in families]
    statement = (
        f"SELECT {', '.join(['endpoint_id', 'bucket', *merged])} FROM ({source}) AS part GROUP BY endpoint_id, bucket"  # noqa: S608
    )
    return statement, params | cut | {"cut_hours": hours}


def from_closed(
    chosen: Endpoints, step: str, spans: Sequence[Span], metrics: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Metrics of the closed buckets that lie in `spans`, each as a column of its own."""
    condition, params = chosen.condition()
    # The latest of the rows with one key is the one that counts, whether they were merged already or not.
    columns = {name: "{}[{}]".format(*_place(name)) if name in PERCENTILES else name for name in metrics}
    latest = [f"argMax({column}, version) AS {name}" for name, column in columns.items()]
    within = []
    for number, span in enumerate(spans):
        within.append(f"since >= {{start{number}:Int64}} AND since < {{end{number}:Int64}}")
        params |= {f"start{number}": span.start, f"end{number}": span.end}
    statement = f"""
        SELECT endpoint_id, intDiv(since, {MICROS}) AS bucket, max(version) AS newest, {", ".join(latest)}
        FROM requests_closed
        WHERE {condition} AND step = {{step:String}} AND ({" OR ".join(within)})
        GROUP BY endpoint_id, since"""  # noqa: S608
    return statement, params | {"step": step}


def billed(chosen: Endpoints, span: Span) -> tuple[str, dict[str, Any]]:
    """Seconds billed, for each endpoint and bucket: whole hours from the rollup, the rest from billing events."""
    bucket, cut = span.bucket("hour")
    where, params = _range("hour", chosen, span)
    row_bucket, _ = span.bucket("ended_at")
    row_where, _ = _range("ended_at", chosen, span)
    statement = f"""
        SELECT endpoint_id, bucket, sum(part.billable_duration) AS {BILLED} FROM (
            SELECT endpoint_id, {bucket} AS bucket, billable_duration FROM billing_hourly
            WHERE {where} AND hour NOT IN {{cut_hours:Array(Int64)}}
            UNION ALL
            SELECT endpoint_id, {row_bucket} AS bucket, billable_duration FROM billing
            WHERE {row_where} AND intDiv(ended_at, {HOUR}) * {HOUR} IN {{cut_hours:Array(Int64)}}
        ) AS part GROUP BY endpoint_id, bucket"""  # noqa: S608
    return statement, params | cut | {"cut_hours": span.cut_hours()}


def _place(percentile: str) -> tuple[str, int]:
    family, index = PERCENTILES[percentile]
    return family, index + 1


def _quantiles(kind: str, name: str, family: Family) -> str:
    fractions = family.exact_fractions if kind == "Exact" else family.fractions
    return f"quantiles{kind}{family.suffix}({fractions})({family.arguments}) AS {name}"


def _grouped(bucket: str, columns: Sequence[str], table: str, where: str) -> str:
    chosen = ", ".join(["endpoint_id", f"{bucket} AS bucket", *columns])
    return f"SELECT {chosen} FROM {table} WHERE {where} GROUP BY endpoint_id, bucket"  # noqa: S608
