"""`/serverless/logs`: history by pages, and a live stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Receive, Scope, Send

from varvel.auth.model import Caller
from varvel.errors import InvalidRequest
from varvel.ids import iso_micros
from varvel.logs import pages as log_pages
from varvel.logs.rules import SOURCES, Condition, LogQuery, item, label_test, level_name, micros
from varvel.logs.stream import FOREVER, LineEvents, LogStream
from varvel.platform.access import api_caller, require_owner
from varvel.platform.envelope import Reply, failures
from varvel.platform.parameters import CommaList, End, Flag, Start, endpoint_parts, time_range
from varvel.platform.parts import PlatformParts

MAX_LABELS = 50
_FRESH = 120.0
"""Seconds. A page that ends longer ago than this needs nothing that is still on its way to the store."""

_Word = WithJsonSchema({"type": "string"})


class LabelFilter(Reply):
    """A condition on one label. `fal_request_id`, `fal_job_id`, `fal_endpoint`, ... or a label of the app's own."""

    key: str = Field(max_length=200)
    value: str | list[str] = Field(description="One value, or 1 to 50 of them for in and not_in.")
    condition_type: Condition = Field(default="equals")


class LogLine(Reply):
    """One line."""

    timestamp: str = Field(description="When it was taken, to the microsecond; no two lines have the same.")
    level: str
    message: str
    app: str
    revision: str
    labels: dict[str, str] | SkipJsonSchema[None] = None


class LogPage(Reply):
    """A page of lines, newest first."""

    next_cursor: str | None
    has_more: bool
    items: list[LogLine]


@dataclass(frozen=True, slots=True)
class LogFilters:
    """The parameters that history and stream share."""

    query: LogQuery
    start: str | None
    end: str | None


async def log_filters(
    caller: Annotated[Caller, Depends(api_caller)],
    start: Start = None,
    end: End = None,
    app_id: Annotated[
        list[str] | None, CommaList(), Query(description="Apps as `owner/name`; all when absent.")
    ] = None,
    revision: Annotated[str | None, _Word, Query(description="Only this revision.")] = None,
    run_source: Annotated[
        Literal["grpc-run", "grpc-register", "gateway", "cron"] | None,
        WithJsonSchema({"type": "string", "enum": list(SOURCES)}),
        Query(description="What ran: a deployed app is `gateway`, a build is `grpc-register`."),
    ] = None,
    traceback: Annotated[
        Flag,
        # More than the contract's default of false: hiding errors from a caller who says nothing helps nobody.
        Query(
            description="`false`, when it is sent, leaves out lines that hold a traceback. They are there otherwise."
        ),
    ] = None,
    search: Annotated[
        str | None,
        _Word,
        Query(
            max_length=1000,
            description="Text in the message, in any case. Words alone are found as whole words, side by side.",
        ),
    ] = None,
    level: Annotated[
        str | None,
        _Word,
        Query(description="Least level: trace, debug, info, warning, error; what apps print is above all of them."),
    ] = None,
    job_id: Annotated[str | None, _Word, Query(description="Only this runner.")] = None,
    request_id: Annotated[str | None, _Word, Query(description="Only this request.")] = None,
    labels: Annotated[
        list[LabelFilter] | SkipJsonSchema[None],
        Body(description="Conditions on labels; a line must meet them all."),
    ] = None,
) -> LogFilters:
    """Raises `InvalidRequest`, or `AccessDenied` for an app of somebody else."""
    if labels is not None and len(labels) > MAX_LABELS:
        raise InvalidRequest(f"body: takes {MAX_LABELS} conditions at most")
    query = LogQuery(
        owner=caller.owner,
        apps=frozenset(own_app_id(caller, text) for text in app_id or ()),
        revision=revision,
        run_source=run_source,
        job_id=job_id,
        request_id=request_id,
        level=level_name(level) if level else None,
        search=search.strip() if search and search.strip() else None,
        tracebacks=traceback is not False,
        labels=tuple(label_test(label.key, label.value, label.condition_type) for label in labels or ()),
    )
    return LogFilters(query, start, end)


def own_app_id(caller: Caller, text: str) -> str:
    """`owner/name` of the caller's. The app need not exist any more. Raises `InvalidRequest`, `AccessDenied`."""
    owner, name, route = endpoint_parts(text, "app_id")
    if route:
        raise InvalidRequest(f"app_id: {text[:100]!r} is not of the form owner/name")
    require_owner(caller, owner)
    return f"{owner}/{name}"


Filters = Annotated[LogFilters, Depends(log_filters)]


class _Events(StreamingResponse):
    """A stream that is closed whatever becomes of its reader."""

    def __init__(self, stream: LogStream) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream.events(), media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def router(parts: PlatformParts) -> APIRouter:
    """The operations of this section."""
    section = APIRouter(tags=["Serverless"])
    lines = LineEvents()

    @section.post(
        "/serverless/logs/history",
        operation_id="serverlessLogsHistory",
        summary="Log lines by page",
        response_model=LogPage,
        responses=failures(400, 403, 503),
    )
    async def history(
        filters: Filters,
        limit: Annotated[int, Query(ge=1, le=1000, description="Lines a page.")] = 100,
        cursor: Annotated[
            str | None, _Word, Query(max_length=64, description="`next_cursor` of the page before: only older lines.")
        ] = None,
    ) -> Response:
        """Lines that meet all conditions, newest first; of the last 24 hours when no range is given.

        A cursor is the time of the last line of a page. Lines that arrive meanwhile move no page.
        """
        now = parts.clock()
        span = time_range(filters.start, filters.end, now=now)
        # Lines are numbered by their time, which may run ahead of a clock that was set back.
        until = FOREVER if filters.end is None else span.end_us
        if cursor is not None:
            until = min(until, micros(cursor, "cursor"))
        if until > (now - _FRESH) * 1e6:
            await parts.telemetry.barrier()
        newest = min(until, max(round(now * 1e6), parts.telemetry.last_ts) + 1)
        rows = await log_pages.newest_first(parts.telemetry, filters.query, span.start_us, newest, limit + 1)
        more = len(rows) > limit
        page = {
            "next_cursor": iso_micros(rows[limit - 1].ts) if more else None,
            "has_more": more,
            "items": [item(row) for row in rows[:limit]],
        }
        return Response(msgspec.json.encode(page), media_type="application/json")

    @section.post(
        "/serverless/logs/stream",
        operation_id="serverlessLogsStream",
        summary="Log lines as they come",
        response_class=StreamingResponse,
        responses={
            200: {"description": "A stream of Server-Sent Events", "content": {"text/event-stream": {"schema": {}}}},
            **failures(400, 403, 503),
        },
    )
    async def stream(
        filters: Filters,
        request: Request,
        last_event_id: Annotated[
            str | None, _Word, Header(alias="Last-Event-ID", description="Id of the last event that you have.")
        ] = None,
    ) -> Response:
        """Lines that meet all conditions, as Server-Sent Events: with `start`, first those since then; then live.

        The data of an event is a line as in the history, its id the line's timestamp. With `Last-Event-ID` the
        stream goes on behind that line, also after a restart of the server. A reader that is too slow gets an
        event `dropped` with the `count` of lines that it lost. The stream ends at `end`, if that is given.
        """
        span = time_range(filters.start, filters.end, now=parts.clock())
        begin = [span.start_us - 1] if filters.start is not None else []
        if last_event_id:
            begin.append(micros(last_event_id, "Last-Event-ID"))
        stream = LogStream(
            parts.telemetry,
            filters.query,
            lines,
            after=max(begin, default=None),
            until=FOREVER if filters.end is None else span.end_us,
            heartbeat=parts.settings.log_heartbeat,
            buffer=parts.settings.log_tail_buffer,
            clock=parts.clock,
        )
        await stream.open()
        return _Events(stream)

    return section
