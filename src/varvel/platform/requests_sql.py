"""Statements behind the list of requests, and what they share with analytics: which endpoints are meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from varvel.apps.model import AppId

SortBy = Literal["ended_at", "duration"]
HOUR = 3_600_000_000
WIDTHS: tuple[int, ...] = (HOUR, 6 * HOUR, 24 * HOUR, 7 * 24 * HOUR)
"""Newest-first pages look back this far at first, in microseconds, and at the whole range last."""

_COLUMNS = "request_id, endpoint_id, started_at, sent_at, ended_at, status_code, duration, runner_id"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Route-level endpoints of one owner: those named exactly, and all those below a prefix."""

    owner: str
    exact: tuple[str, ...]
    prefixes: tuple[str, ...]

    def condition(self) -> tuple[str, dict[str, Any]]:
        """SQL condition that follows the tables' sort key, and its parameters."""
        params: dict[str, Any] = {"owner": self.owner, "endpoints": list(self.exact)}
        either = ["endpoint_id IN {endpoints:Array(String)}"]
        for index, prefix in enumerate(self.prefixes):
            params[f"prefix{index}"] = prefix
            either.append(f"startsWith(endpoint_id, {{prefix{index}:String}})")
        return f"owner = {{owner:String}} AND ({' OR '.join(either)})", params


def endpoints(owner: str, asked: Iterable[tuple[AppId, str]]) -> Endpoints:
    """A bare app id means the app and all of its routes; with a route it means that route only."""
    pairs = list(asked)
    bare = {str(app) for app, route in pairs if not route}
    exact = {f"{app}{route}" for app, route in pairs}
    return Endpoints(owner, tuple(sorted(exact)), tuple(sorted(f"{app}/" for app in bare)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """One page of requests. Times in microseconds; `after` is the sort key of the row before the page."""

    endpoints: Endpoints
    start: int
    end: int
    sort_by: SortBy = "ended_at"
    status: str | None = None
    request_id: str | None = None
    after: tuple[Any, ...] | None = None
    offset: int = 0
    rows: int

    def sort_key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """What `after` must be for the page that follows `row`."""
        newest = (row["ended_at"], row["request_id"])
        return newest if self.sort_by == "ended_at" else (row["duration"], *newest)


def page(query: PageQuery, start: int) -> tuple[str, dict[str, Any]]:
    """The statement of a page that looks no further back than `start`."""
    where, params = _conditions(query)
    where += ["ended_at >= {start:Int64}", "ended_at < {end:Int64}"]
    params |= {"start": start, "end": query.end, "rows": query.rows, "offset": query.offset}
    if query.status is not None:
        where.append("status = {status:String}")
        params["status"] = query.status
    if query.request_id is not None:
        where.append("request_id = {request_id:String}")
        params["request_id"] = query.request_id
    return (
        f"SELECT {_COLUMNS} FROM requests WHERE {' AND '.join(where)} "  # noqa: S608 (columns are ours, values bound)
        f"ORDER BY {_order(query)} LIMIT {{rows:UInt32}} OFFSET {{offset:UInt32}}",
        params,
    )


def longest(query: PageQuery, days: Mapping[int, int], others: Sequence[tuple[int, int]]) -> tuple[str, dict[str, Any]]:
    """The same by duration: from the lists of closed days (day and version), and from the rows of other ranges."""
    where, params = _conditions(query)
    of_lists, more = _of_days(days)
    params |= more | {"rows": query.rows, "offset": query.offset, "reach": query.rows + query.offset}
    # What stands lower than the page in its own list stands lower in all.
    of_lists += " AND place > 0" + (" AND place <= {reach:UInt64}" if query.after is None else "")
    parts = [f"SELECT {_COLUMNS} FROM requests_longest WHERE {' AND '.join([*where, of_lists])}"]  # noqa: S608
    if others:
        ranges = []
        for number, (start, end) in enumerate(others):
            ranges.append(f"ended_at >= {{start{number}:Int64}} AND ended_at < {{end{number}:Int64}}")
            params |= {f"start{number}": start, f"end{number}": end}
        in_range = f"({' OR '.join(ranges)})"
        parts.append(f"SELECT {_COLUMNS} FROM requests WHERE {' AND '.join([*where, in_range])}")  # noqa: S608
    order = _order(query)
    source = " UNION ALL ".join(f"({part} ORDER BY {order} LIMIT {{reach:UInt64}})" for part in parts)
    return (
        f"SELECT {_COLUMNS} FROM ({source}) ORDER BY {order} "  # noqa: S608
        "LIMIT {rows:UInt32} OFFSET {offset:UInt32}",
        params,
    )


def cut_off(query: PageQuery, days: Mapping[int, int]) -> tuple[str, dict[str, Any]]:
    """The last request of a list that had no room for all: the highest of them. What it left out comes after it."""
    chosen, params = query.endpoints.condition()
    of_lists, more = _of_days(days)
    return (
        f"SELECT duration, ended_at, request_id FROM requests_longest WHERE {chosen} AND {of_lists} AND place = 0 "  # noqa: S608
        f"ORDER BY {_order(query)} LIMIT 1",
        params | more,
    )


def _of_days(days: Mapping[int, int]) -> tuple[str, dict[str, Any]]:
    condition = "day IN {days:Array(Int64)} AND version = transform(day, {days:Array(Int64)}, {versions:Array(Int64)})"
    return condition, {"days": list(days), "versions": list(days.values())}


def _conditions(query: PageQuery) -> tuple[list[str], dict[str, Any]]:
    chosen, params = query.endpoints.condition()
    return [chosen, *([] if query.after is None else [_after(query, params)])], params


def _order(query: PageQuery) -> str:
    newest = "ended_at DESC, request_id DESC"
    return newest if query.sort_by == "ended_at" else f"duration DESC, {newest}"


def _after(query: PageQuery, params: dict[str, Any]) -> str:
    assert query.after is not None
    *duration, params["last_ended"], params["last_id"] = query.after
    key = "(ended_at, request_id) < ({last_ended:Int64}, {last_id:String})"
    if not duration:
        # The plain bound lets the sort key skip what lies after it.
        return f"ended_at <= {{last_ended:Int64}} AND {key}"
    params["last_duration"] = duration[0]
    return (
        "(duration < {last_duration:Float64} OR (duration = {last_duration:Float64} AND " + key + "))"
    )  # fmt: skip


BILLING = """
SELECT request_id, billable_units FROM billing
WHERE {chosen} AND ended_at >= {{first:Int64}} AND ended_at <= {{last:Int64}} AND request_id IN {{ids:Array(String)}}
"""

# What is no JSON (it never should be) is left out here, so that the reply can carry the stored text as it is.
PAYLOADS = """
SELECT request_id, if(isValidJSON(input), input, '') AS json_input, if(isValidJSON(output), output, '') AS json_output
FROM payloads
WHERE owner = {owner:String} AND ended_at >= {first:Int64} AND ended_at <= {last:Int64}
  AND request_id IN {ids:Array(String)}
"""


def billing(chosen: Endpoints, rows: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The billing events of the requests of a page."""
    condition, params = chosen.condition()
    return BILLING.format(chosen=condition), params | _ids(rows)


def payloads(owner: str, rows: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The kept payloads of the requests of a page, as JSON text; empty where there is none."""
    return PAYLOADS, {"owner": owner} | _ids(rows)


def _ids(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ended = [row["ended_at"] for row in rows]
    return {"first": min(ended), "last": max(ended), "ids": [row["request_id"] for row in rows]}
