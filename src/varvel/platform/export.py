"""`/serverless/export`: all rows of a range, streamed from the store to the caller as one file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from varvel.errors import AccessDenied, RateLimited
from varvel.ids import iso
from varvel.platform.access import ApiCaller
from varvel.platform.envelope import failures
from varvel.platform.logs import own_app_id
from varvel.platform.parameters import CommaList, End, Start, TimeRange, time_range
from varvel.platform.parts import PlatformParts

Dataset = Literal["requests", "billing", "logs", "usage"]
Format = Literal["parquet", "ndjson", "csv"]

_FORMATS: dict[Format, tuple[str, str]] = {
    "parquet": ("Parquet", "application/vnd.apache.parquet"),
    "ndjson": ("JSONEachRow", "application/x-ndjson"),
    "csv": ("CSVWithNames", "text/csv; charset=utf-8"),
}


def _time(column: str) -> str:
    return f"fromUnixTimestamp64Micro({column}, 'UTC') AS {column}"


_REQUESTS = (
    "request_id, toString(app) AS app, toString(endpoint_id) AS endpoint_id, toString(caller) AS caller, "
    "toString(kind) AS kind, toString(method) AS method, "
    f"{_time('sent_at')}, {_time('started_at')}, {_time('ended_at')}, status_code, toString(status) AS status, "
    "toString(error_type) AS error_type, duration, prepare_duration, cold_boot, toString(runner_id) AS runner_id, "
    "toString(revision) AS revision, toString(machine_type) AS machine_type, attempts"
)
_BILLING = (
    "request_id, toString(app) AS app, toString(endpoint_id) AS endpoint_id, toString(caller) AS caller, "
    f"{_time('ended_at')}, {_time('recorded_at')}, billable_units, billable_duration, "
    "toString(machine_type) AS machine_type, toString(unit) AS unit"
)
_LOGS = (
    f"{_time('ts').replace('AS ts', 'AS timestamp')}, toString(level) AS level, message, toString(app) AS app, "
    "toString(revision) AS revision, toString(job_id) AS job_id, request_id, toString(endpoint) AS endpoint, "
    "toString(source) AS run_source, toJSONString(labels) AS labels"
)
_USAGE = (
    "toString(app) AS app, toString(environment) AS environment, toString(machine_type) AS machine_type, "
    f"greatest(gpus, 1) AS gpus, {_time('since')}, {_time('until')}, "
    "pending * seconds AS pending_seconds, setup * seconds AS setup_seconds, "
    "idle * seconds AS idle_seconds, running * seconds AS running_seconds, draining * seconds AS draining_seconds, "
    "terminating * seconds AS terminating_seconds"
)
# The order of each table on disk, so that the store reads along and sorts nothing.
_DATASETS: dict[Dataset, tuple[str, str, str, str]] = {
    "requests": ("requests", _REQUESTS, "ended_at", "owner, endpoint_id, ended_at, request_id"),
    "billing": ("billing", _BILLING, "ended_at", "owner, endpoint_id, ended_at, request_id"),
    "logs": ("logs", _LOGS, "ts", "ts"),
    "usage": ("runner_states", _USAGE, "since", "owner, app, since, row_id"),
}


def statement(dataset: Dataset, owner: str, apps: list[str], span: TimeRange) -> tuple[str, dict[str, Any]]:
    """The query of an export, and its parameters."""
    table, columns, at, order = _DATASETS[dataset]
    params: dict[str, Any] = {"owner": owner, "start": span.start_us, "end": span.end_us}
    source = f"{table} AS source WHERE owner = {{owner:String}}"
    source += f" AND source.{at} >= {{start:Int64}} AND source.{at} < {{end:Int64}}"
    if apps:
        source += " AND app IN {apps:Array(String)}"
        params["apps"] = apps
    ordering = ", ".join(f"source.{column}" for column in order.split(", "))
    settings = "date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0"
    return f"SELECT {columns} FROM {source} ORDER BY {ordering} SETTINGS {settings}", params  # noqa: S608


class _Export(StreamingResponse):
    """A file on its way. The query ends and the place is given back however the transfer ends."""

    def __init__(self, pieces: AsyncGenerator[bytes], leave: Callable[[], None], name: str, media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        self.headers["Cache-Control"] = "no-store"
        self._pieces = pieces
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._pieces):
                await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _pieces(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in rest:
        yield piece


class _Exports:
    """Exports that run: each holds a worker of the store for as long as its reader takes."""

    def __init__(self, parts: PlatformParts) -> None:
        self._parts = parts
        self._running = 0

    async def start(self, dataset: Dataset, format: Format, query: tuple[str, dict[str, Any]], name: str) -> Response:
        """The reply, once the store has begun to answer. Raises `RateLimited`, `TelemetryUnavailable`."""
        if self._running >= self._parts.settings.exports_at_once:
            raise RateLimited(
                "Other exports are running; try again when they are through", headers={"Retry-After": "10"}
            )
        self._running += 1
        try:
            await self._parts.telemetry.barrier()
            store_format, media_type = _FORMATS[format]
            rest = self._parts.telemetry.stream(*query, format=store_format)
            first = await anext(rest, b"")
        except BaseException:
            self._leave()
            raise
        return _Export(_pieces(first, rest), self._leave, name, media_type)

    def _leave(self) -> None:
        self._running -= 1


def router(parts: PlatformParts) -> APIRouter:
    """The operation of this section."""
    section = APIRouter(tags=["Serverless"])
    exports = _Exports(parts)

    @section.get(
        "/serverless/export",
        operation_id="serverlessExport",
        summary="All rows of a range as a file",
        response_class=Response,
        responses={
            200: {
                "description": "The file",
                "content": {media.split(";")[0]: {"schema": {"type": "string"}} for _, media in _FORMATS.values()},
            },
            **failures(400, 403, 503),
        },
    )
    async def export(
        caller: ApiCaller,
        dataset: Annotated[
            Dataset,
            Query(description="requests, billing (one event a request), logs, or usage (runner seconds; ADMIN keys)."),
        ],
        format: Annotated[Format, Query(description="How rows are written.")] = "parquet",
        start: Start = None,
        end: End = None,
        app_id: Annotated[list[str] | None, CommaList(), Query(description="Only these apps.")] = None,
    ) -> Response:
        """Streams every row of yours in the range; of the last 24 hours when none is given.

        Requests and billing events join by `request_id`. A range that ended before now gives the same rows each time.
        """
        if dataset == "usage" and caller.scope != "ADMIN":
            raise AccessDenied("Usage needs a key with scope ADMIN")
        span = time_range(start, end, now=parts.clock())
        apps = [own_app_id(caller, text) for text in app_id or ()]
        name = f"{dataset}-{iso(span.start)[:10]}-{iso(span.end)[:10]}.{format}"
        return await exports.start(dataset, format, statement(dataset, caller.owner, apps, span), name)

    return section
