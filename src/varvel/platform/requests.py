"""Requests by endpoint: what was called, how it went and what it cost, newest or longest first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field, JsonValue

from varvel import ids
from varvel.errors import InvalidRequest
from varvel.platform import requests_sql as sql
from varvel.platform.access import ApiCaller, own_endpoints
from varvel.platform.buckets import DAY
from varvel.platform.cursors import Cursors, PageNumber
from varvel.platform.envelope import Reply, failures
from varvel.platform.parameters import CommaList, Cursor, End, Start, time_range
from varvel.platform.parts import PlatformParts
from varvel.platform.requests_sql import PageQuery
from varvel.telemetry.closed import DAY as MICROS_A_DAY
from varvel.telemetry.closed import closed_spans
from varvel.telemetry.model import TelemetryStore

OPERATION = "requests"
REQUEST_ID_RANGE = 90 * DAY
MOST_GAPS = 20
"""Stretches without a list of their longest, above which all rows are read."""


class RequestItem(Reply):
    """One finished request."""

    request_id: UUID
    endpoint_id: str = Field(description="Route-level endpoint under which it was recorded.")
    started_at: str = Field(description="When a runner began with it.", json_schema_extra={"format": "date-time"})
    sent_at: str = Field(description="When the gateway got it.", json_schema_extra={"format": "date-time"})
    ended_at: str | None = Field(default=None, description="When it ended.", json_schema_extra={"format": "date-time"})
    status_code: int | None = Field(default=None, description="HTTP status that was answered.")
    duration: float | None = Field(default=None, description="Seconds of execution.")
    json_input: JsonValue = Field(default=None, description="JSON input, with `expand=payloads` and where kept.")
    json_output: JsonValue = Field(default=None, description="JSON output, with `expand=payloads` and where kept.")
    runner_id: str | None = Field(
        description="Runner that served it; null when none did.", json_schema_extra={"format": "uuid"}
    )
    billable_units: float | None = Field(
        default=None, description="Units billed, with `expand=billing`; null until its billing event is recorded."
    )


class RequestList(Reply):
    """A page of requests."""

    next_cursor: str | None = Field(description="Cursor of the next page; null when this is the last.")
    has_more: bool = Field(description="Whether there is a next page.")
    items: list[RequestItem]


async def fetch(store: TelemetryStore, query: PageQuery) -> list[dict[str, Any]]:
    """Up to `query.rows` rows in order.

    Newest-first pages look into a window that widens until the page is full: reading the newest hour costs the
    same however long the history is. Longest-first pages read the lists that closed days have of their longest.
    """
    if query.sort_by == "duration" and (found := await _longest(store, query)) is not None:
        return found
    starts = [query.start]
    if query.sort_by == "ended_at" and query.request_id is None and not query.offset:
        newest = query.end if query.after is None else query.after[0]
        starts = [start for width in sql.WIDTHS if (start := newest - width) > query.start] + starts
    rows: list[dict[str, Any]] = []
    for start in starts:
        rows = await store.select(*sql.page(query, start))
        if len(rows) >= query.rows:
            break
    return rows


async def _longest(store: TelemetryStore, query: PageQuery) -> list[dict[str, Any]] | None:
    """The page from lists of the longest; None where these do not go deep enough to tell, or know nothing of it."""
    if query.status is not None or query.request_id is not None or query.end - query.start < 2 * MICROS_A_DAY:
        return None
    closed = await closed_spans(store, "day", query.start, query.end)
    days = {
        day: one.version for day, one in closed.items() if one.version and query.start <= day and one.until <= query.end
    }
    others = gaps(query.start, query.end, [day for day in closed if query.start <= day < query.end])
    if not days or len(others) > MOST_GAPS:
        return None
    rows, cut_off = await asyncio.gather(
        store.select(*sql.longest(query, days, others)), store.select(*sql.cut_off(query, days))
    )
    if not cut_off:
        return rows
    # What a list left out comes after its last. So the page is whole if its own last comes before all of these.
    is_whole = len(rows) == query.rows and query.sort_key(rows[-1]) >= query.sort_key(cut_off[0])
    return rows if is_whole else None


def gaps(start: int, end: int, days: Iterable[int]) -> list[tuple[int, int]]:
    """What of [start, end) no day (its first microsecond) covers whole."""
    found, at = [], start
    for day in sorted(days):
        if day + MICROS_A_DAY > end:
            break
        if at < day:
            found.append((at, day))
        at = day + MICROS_A_DAY
    return [*found, (at, end)] if at < end else found


def item(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of one request that are always there."""
    return {
        "request_id": row["request_id"],
        "endpoint_id": row["endpoint_id"],
        "started_at": _iso(row["started_at"]),
        "sent_at": _iso(row["sent_at"]),
        "ended_at": _iso(row["ended_at"]),
        "status_code": row["status_code"],
        "duration": row["duration"],
        "runner_id": row["runner_id"] or None,
    }


def _iso(micros: int) -> str:
    return ids.iso(micros / 1_000_000)


async def _with_units(store: TelemetryStore, query: PageQuery, rows: list[dict[str, Any]], items: list[Any]) -> None:
    found = await store.select(*sql.billing(query.endpoints, rows))
    units = {row["request_id"]: row["billable_units"] for row in found}
    for entry in items:
        entry["billable_units"] = units.get(entry["request_id"])


async def _with_payloads(store: TelemetryStore, query: PageQuery, rows: list[dict[str, Any]], items: list[Any]) -> None:
    found = {row["request_id"]: row for row in await store.select(*sql.payloads(query.endpoints.owner, rows))}
    for entry in items:
        kept = found.get(entry["request_id"], {})
        for name in ("json_input", "json_output"):
            if kept.get(name):
                entry[name] = msgspec.Raw(kept[name].encode())


def at_cursor(cursors: Cursors, cursor: str | None, query: PageQuery, limit: int) -> PageQuery:
    """The page that `cursor` leads to.

    A cursor keeps the range of its first page, so that one that ends "now" does not slide while it is read.
    Raises `InvalidRequest` for a cursor of another sort order.
    """
    if cursor is None:
        return query
    where = cursors.decode(OPERATION, cursor)
    if isinstance(where, PageNumber):
        return replace(query, offset=where.offset(limit))
    key: tuple[Any, ...] = where.key
    sort_by, start, end, *after = key
    if sort_by != query.sort_by:
        raise InvalidRequest("cursor: belongs to a list with another sort_by")
    return replace(query, start=start, end=end, after=tuple(after))


def router(parts: PlatformParts) -> APIRouter:
    """`GET /serverless/requests/by-endpoint`."""
    routes = APIRouter(tags=["Requests"])
    cursors = parts.cursors

    @routes.get(
        "/serverless/requests/by-endpoint",
        operation_id="serverlessListRequestsByEndpoint",
        summary="List requests by endpoint",
        response_model=RequestList,
        responses=failures(400, 403, 404, 503),
    )
    async def by_endpoint(
        caller: ApiCaller,
        endpoint_id: Annotated[
            list[str],
            Query(description="Endpoints to list. A bare `owner/name` takes in all of the app's routes."),
            CommaList(),
        ],
        limit: Annotated[int, Query(ge=1, le=100, description="Most items of a page.")] = 50,
        cursor: Cursor = None,
        start: Start = None,
        end: End = None,
        status: Annotated[
            Literal["success", "error", "user_error"] | None,
            Query(description="Only requests that ended so: 2xx, 5xx or 4xx."),
        ] = None,
        request_id: Annotated[
            UUID | None, Query(description="Only this request; looks back 90 days unless `start` is given.")
        ] = None,
        expand: Annotated[
            list[str] | None,
            Query(description="`payloads` adds JSON input and output, `billing` the units billed."),
            CommaList(("payloads", "billing")),
        ] = None,
        sort_by: Annotated[
            Literal["ended_at", "duration"], Query(description="Newest first, or longest first.")
        ] = "ended_at",
    ) -> Response:
        """Finished requests of your endpoints, from all callers."""
        chosen = sql.endpoints(caller.owner, own_endpoints(caller, endpoint_id))
        look_back = DAY if request_id is None else REQUEST_ID_RANGE
        span = time_range(start, end, now=parts.clock(), default=look_back)
        first = PageQuery(
            endpoints=chosen,
            start=span.start_us,
            end=span.end_us,
            sort_by=sort_by,
            status=status,
            request_id=None if request_id is None else str(request_id),
            rows=limit + 1,
        )
        query = at_cursor(cursors, cursor, first, limit)
        await parts.telemetry.barrier()
        rows = await fetch(parts.telemetry, query)
        more = len(rows) > limit
        rows = rows[:limit]
        items = [item(row) for row in rows]
        if rows and "billing" in (expand or ()):
            await _with_units(parts.telemetry, query, rows, items)
        if rows and "payloads" in (expand or ()):
            await _with_payloads(parts.telemetry, query, rows, items)
        following = None
        if more:
            following = cursors.encode(OPERATION, (sort_by, query.start, query.end, *query.sort_key(rows[-1])))
        body = {"items": items, "next_cursor": following, "has_more": more}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return routes
