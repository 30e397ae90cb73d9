"""Analytics: counts, error groups, latency percentiles and billed seconds of endpoints, in buckets of time.

How percentiles are found. In buckets that are closed they are exact: they were computed once, from all rows. UTC
hours and days are closed when they are over, those of other calendars (days in Berlin, weeks) after they were first
asked for. Elsewhere they are exact up to `analytics_exact_rows` requests in what is left of a page, and beyond that
come from sketches, whose relative error is at most 0.8 %. Counts and sums are always exact. Every bucket of the range
is in the reply, in order; one in which nothing ended has no results. Where there is nothing to take a percentile of
(no cold boot in a bucket), the metric is left out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field, create_model
from pydantic.json_schema import SkipJsonSchema

from varvel.errors import InvalidRequest
from varvel.platform import analytics_sql as sql
from varvel.platform.access import ApiCaller, own_endpoints
from varvel.platform.buckets import Window, label
from varvel.platform.cursors import Cursors, PageNumber
from varvel.platform.envelope import Reply, failures
from varvel.platform.paging import page_at
from varvel.platform.parameters import Bound, CommaList, Cursor, End, Frame, Start, Zone, bucket_window
from varvel.platform.parts import PlatformParts
from varvel.platform.requests_sql import Endpoints, endpoints
from varvel.telemetry.closed import closed_spans
from varvel.telemetry.model import TelemetryStore

OPERATION = "analytics"
METRIC_NAMES = sql.METRICS


def _described(name: str) -> str:
    if name in sql.PERCENTILES:
        family, _ = sql.PERCENTILES[name]
        return f"{name[1:3]}th percentile of {family.replace('_', ' ')}, in seconds."
    return "Seconds billed." if name == sql.BILLED else f"Number of requests: {name.removesuffix('_count')}."


_Count = int | SkipJsonSchema[None]
_Seconds = float | SkipJsonSchema[None]
_FIELDS: dict[str, Any] = {
    name: (
        _Count if name in sql.COUNTS else _Seconds,
        Field(default=None, ge=0, description=_described(name)),
    )
    for name in sql.METRICS
}
Analytics = create_model("Analytics", __base__=Reply, endpoint_id=(str, ...), **_FIELDS)


class AnalyticsBucket(Reply):
    """One stretch of time."""

    bucket: str = Field(description="When it begins, in the zone asked for, with its offset.")
    results: list[Analytics]  # type: ignore[valid-type]


class AnalyticsReply(Reply):
    """A page of analytics."""

    next_cursor: str | None = Field(description="Cursor of the next page; null when this is the last.")
    has_more: bool = Field(description="Whether there is a next page.")
    time_series: list[AnalyticsBucket] | SkipJsonSchema[None] = Field(
        default=None, description="With `expand=time_series`."
    )
    summary: list[Analytics] | SkipJsonSchema[None] = Field(  # type: ignore[valid-type]
        default=None, description="With `expand=summary`: the whole range; on the first page."
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which metrics are asked for, sorted by where they come from."""

    counts: tuple[str, ...]
    percentiles: tuple[str, ...]
    billed: bool

    @property
    def families(self) -> tuple[str, ...]:
        """The columns whose percentiles are needed."""
        return tuple(dict.fromkeys(sql.PERCENTILES[name][0] for name in self.percentiles))


def wanted(expand: list[str]) -> Wanted:
    """Raises `InvalidRequest` unless a form (time_series, summary) and a metric are named."""
    if not {"time_series", "summary"} & set(expand):
        raise InvalidRequest("expand: needs time_series or summary")
    found = Wanted(
        tuple(name for name in expand if name in sql.COUNTS),
        tuple(name for name in expand if name in sql.PERCENTILES),
        sql.BILLED in expand,
    )
    if not (found.counts or found.percentiles or found.billed):
        raise InvalidRequest("expand: needs at least one metric, such as request_count")
    return found


class Reader:
    """Reads metrics from the store. `exact_rows`: percentiles are exact up to so many requests."""

    def __init__(self, store: TelemetryStore, exact_rows: int) -> None:
        self._store = store
        self._exact_rows = exact_rows

    async def read(self, chosen: Endpoints, span: sql.Span, metrics: Wanted) -> dict[int, list[dict[str, Any]]]:
        """Records by bucket (its edge in seconds; 0 for a span without edges), each list sorted by endpoint."""
        step = span.step
        known = await closed_spans(self._store, step, span.start, span.end) if step else {}
        runs, still_open = span.runs({since: one.until for since, one in known.items()})
        if still_open and step and step == span.calendar:
            whole = span.whole().items()
            self._store.keep_closed(
                step, {since: end for since, end in whole if since not in known or known[since].until != end}
            )
        parts = [self._open(chosen, one, metrics) for one in still_open]
        if runs:
            there = {since // sql.MICROS: one.version for since, one in known.items() if one.version}
            parts.append(self._closed(chosen, step, runs, there, metrics))
        records = chain.from_iterable(await asyncio.gather(*parts))
        buckets: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for record in sorted(records, key=itemgetter("endpoint_id")):
            buckets[record.pop("bucket")].append(record)
        return buckets

    async def _closed(
        self, chosen: Endpoints, step: str, spans: list[sql.Span], there: Mapping[int, int], metrics: Wanted
    ) -> list[dict[str, Any]]:
        """Rows that are nearly records as they come: thousands pass here.

        Only figures of the version that is `there` count: retention may have dropped what older ones were made of.
        """
        asked = (*_counts(metrics), *metrics.percentiles, *([sql.BILLED] if metrics.billed else []))
        found = await self._store.select(*sql.from_closed(chosen, step, spans, asked))
        records = [record for record in found if record.pop("newest") >= there.get(record["bucket"], sql.NEVER)]
        unasked = set(asked).difference(metrics.counts).intersection(sql.COUNTS)
        cold = [name for name in metrics.percentiles if sql.PERCENTILES[name][0] == "cold_boot_duration"]
        for record in records:
            if cold and not record["cold_boot_count"]:
                for name in cold:
                    del record[name]
            for name in unasked:
                del record[name]
        return records

    async def _open(self, chosen: Endpoints, span: sql.Span, metrics: Wanted) -> list[dict[str, Any]]:
        rows, billed = await asyncio.gather(self._rows(chosen, span, metrics), self._billed(chosen, span, metrics))
        for row in rows:
            row[sql.BILLED] = billed.get((row["bucket"], row["endpoint_id"]), 0.0)
        return [_record(row, metrics) for row in rows]

    async def _rows(self, chosen: Endpoints, span: sql.Span, metrics: Wanted) -> list[dict[str, Any]]:
        return await self._store.select(*await self._statement(chosen, span, metrics))

    async def _billed(self, chosen: Endpoints, span: sql.Span, metrics: Wanted) -> dict[tuple[int, str], float]:
        if not metrics.billed:
            return {}
        found = await self._store.select(*sql.billed(chosen, span))
        return {(row["bucket"], row["endpoint_id"]): row[sql.BILLED] for row in found}

    async def _statement(self, chosen: Endpoints, span: sql.Span, metrics: Wanted) -> tuple[str, dict[str, Any]]:
        sketched = span.has_whole_hours()
        if sketched and metrics.families:
            [row] = await self._store.select(*sql.volume(chosen, span))
            sketched = (row["requests"] or 0) > self._exact_rows
        build = sql.from_rollups if sketched else sql.from_rows
        return build(chosen, span, _counts(metrics), metrics.families)


def _counts(metrics: Wanted) -> tuple[str, ...]:
    # How many there were says whether there is a percentile: the store gives 0 for one of nothing.
    return tuple(dict.fromkeys((*metrics.counts, "request_count", "cold_boot_count")))


def _record(row: dict[str, Any], metrics: Wanted) -> dict[str, Any]:
    record: dict[str, Any] = {"endpoint_id": row["endpoint_id"], "bucket": row["bucket"]}
    for name in metrics.counts:
        record[name] = int(row[name])
    for name in metrics.percentiles:
        family, index = sql.PERCENTILES[name]
        if family != "cold_boot_duration" or int(row["cold_boot_count"]):
            record[name] = row[family][index]
    if metrics.billed:
        record[sql.BILLED] = row[sql.BILLED]
    return record


def router(parts: PlatformParts) -> APIRouter:
    """`GET /serverless/analytics`."""
    routes = APIRouter(tags=["Analytics"])
    reader = Reader(parts.telemetry, parts.settings.analytics_exact_rows)
    most = parts.settings.analytics_buckets

    @routes.get(
        "/serverless/analytics",
        operation_id="serverlessGetAnalytics",
        summary="Metrics of endpoints over time",
        response_model=AnalyticsReply,
        responses=failures(400, 403, 404, 503),
    )
    async def analytics(
        caller: ApiCaller,
        endpoint_id: Annotated[
            list[str],
            Query(description="Endpoints to look at. A bare `owner/name` takes in all of the app's routes."),
            CommaList(),
        ],
        limit: Annotated[
            int | None,
            Query(ge=1, description="Most buckets of a page; most endpoints when only `summary` is asked for."),
        ] = None,
        cursor: Cursor = None,
        start: Start = None,
        end: End = None,
        timezone: Zone = "UTC",
        timeframe: Frame = None,
        bound_to_timeframe: Bound = "true",
        expand: Annotated[
            list[str],
            Query(description="`time_series`, `summary` or both, and the metrics to give."),
            CommaList(("time_series", "summary", *sql.METRICS)),
        ] = ["time_series", "request_count"],  # noqa: B006 (FastAPI copies defaults)
    ) -> Response:
        """Metrics of all requests to your endpoints, from all callers."""
        metrics = wanted(expand)
        chosen = endpoints(caller.owner, own_endpoints(caller, endpoint_id))
        window = bucket_window(start, end, timezone, timeframe, bound_to_timeframe, now=parts.clock())
        size = min(limit or most, most)
        await parts.telemetry.barrier()
        if "time_series" not in expand:
            return _reply(await _summary_page(parts.cursors, reader, chosen, window, metrics, size, cursor))
        page = page_at(parts.cursors, OPERATION, cursor, window, timezone, size)
        records = await reader.read(chosen, page.span, metrics) if page.edges else {}
        body: dict[str, Any] = {
            "time_series": [
                {"bucket": label(edge, window.zone), "results": records.get(edge, [])} for edge in page.edges
            ]
        }
        if "summary" in expand:
            body["summary"] = await _summary(reader, chosen, page.window, metrics) if page.first else []
        body["next_cursor"] = page.cursor(parts.cursors, OPERATION, timezone)
        return _reply(body)

    return routes


async def _summary(reader: Reader, chosen: Endpoints, window: Window, metrics: Wanted) -> list[dict[str, Any]]:
    return (await reader.read(chosen, sql.Span(window.start, window.end), metrics)).get(0, [])


async def _summary_page(
    cursors: Cursors,
    reader: Reader,
    chosen: Endpoints,
    window: Window,
    metrics: Wanted,
    limit: int,
    cursor: str | None,
) -> dict[str, Any]:
    """A page of endpoints, when no time series is asked for."""
    operation = f"{OPERATION}.summary"
    after, skip = "", 0
    if cursor is not None:
        where = cursors.decode(operation, cursor)
        if isinstance(where, PageNumber):
            skip = where.offset(limit)
        else:
            key: tuple[Any, ...] = where.key
            start, end, after = key
            window = Window(start, end, window.timeframe, window.zone)
    records = [one for one in await _summary(reader, chosen, window, metrics) if one["endpoint_id"] > after][skip:]
    body: dict[str, Any] = {"summary": records[:limit], "next_cursor": None}
    if len(records) > limit:
        key = (window.start, window.end, records[limit - 1]["endpoint_id"])
        body["next_cursor"] = cursors.encode(operation, key)
    return body


def _reply(body: dict[str, Any]) -> Response:
    body["has_more"] = body["next_cursor"] is not None
    return Response(msgspec.json.encode(body), media_type="application/json")
