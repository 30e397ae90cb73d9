"""Usage: the machine-seconds of an account's apps and what they cost, in buckets of time."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from varvel.billing.lines import CURRENCY, Line, lines
from varvel.billing.prices import PriceBook
from varvel.platform.access import AdminCaller
from varvel.platform.analytics_sql import Span
from varvel.platform.buckets import Window, label
from varvel.platform.cursors import Cursors, PageNumber
from varvel.platform.envelope import Reply, failures, number
from varvel.platform.paging import page_at
from varvel.platform.parameters import Bound, CommaList, Cursor, End, Frame, Start, Zone, bucket_window
from varvel.platform.parts import PlatformParts
from varvel.platform.usage_sql import Apps, machine_time
from varvel.telemetry.model import TelemetryStore

OPERATION = "usage"


class UsageItem(Reply):
    """Machine-seconds of one app on one machine type at one price."""

    app: str | None = Field(description="Name of the app, without its owner.")
    environment: str | None = Field(description="Environment of the app.")
    machine_type: str
    unit: str = Field(description="Always `second`: machine-seconds.")
    quantity: float = Field(ge=0, description="Machine-seconds.")
    unit_price: float = Field(ge=0, description="Price of a second before discounts, surge included.")
    percent_discount: float | None = Field(ge=0, le=100, description="Discount in per cent; null for none.")
    cost_subtotal: float = Field(ge=0, description="quantity x unit_price.")
    cost_discount: float = Field(ge=0, description="What the discount takes off.")
    cost_total: float = Field(ge=0, description="What is charged.")
    cost: float = Field(ge=0, description="The same as cost_total, for older clients.")
    currency: str = Field(min_length=3, max_length=3)
    is_surge: bool = Field(description="Whether surge pricing held.")


class UsageBucket(Reply):
    """One stretch of time."""

    bucket: str = Field(description="When it begins, in the zone asked for, with its offset.")
    results: list[UsageItem]


class UsageReply(Reply):
    """A page of usage."""

    next_cursor: str | None = Field(description="Cursor of the next page; null when this is the last.")
    has_more: bool = Field(description="Whether there is a next page.")
    time_series: list[UsageBucket] | SkipJsonSchema[None] = Field(
        default=None, description="With `expand=time_series`."
    )
    summary: list[UsageItem] | SkipJsonSchema[None] = Field(
        default=None, description="With `expand=summary`: the whole range; on the first page."
    )


class UsageReader:
    """Reads the lines of a bill from the runner states in the store."""

    def __init__(self, store: TelemetryStore, book: PriceBook) -> None:
        self._store = store
        self._book = book

    async def read(self, apps: Apps, span: Span) -> dict[int, list[Line]]:
        """Lines by bucket (its edge in seconds; 0 for a span without edges)."""
        await self._book.start()
        return lines(await self._store.select(*machine_time(apps, span, self._book)), self._book)


def shown(line: Line) -> dict[str, Any]:
    """A line as the wire has it. Amounts are exact decimals until here."""
    item = line.item
    cost = number(line.total)
    return {
        "app": item.app or None,
        "environment": item.environment or None,
        "machine_type": item.machine_type,
        "unit": "second",
        "quantity": number(line.quantity),
        "unit_price": number(item.unit_price),
        "percent_discount": number(item.percent_discount) or None,
        "cost_subtotal": number(line.subtotal),
        "cost_discount": number(line.discount),
        "cost_total": cost,
        "cost": cost,
        "currency": CURRENCY,
        "is_surge": item.is_surge,
    }


def router(parts: PlatformParts) -> APIRouter:
    """`GET /serverless/usage`."""
    routes = APIRouter(tags=["Usage"])
    reader = UsageReader(parts.telemetry, parts.prices)
    most = parts.settings.analytics_buckets

    @routes.get(
        "/serverless/usage",
        operation_id="serverlessGetUsage",
        summary="Machine-seconds and their cost",
        response_model=UsageReply,
        responses=failures(400, 403, 404, 503),
    )
    async def usage(
        caller: AdminCaller,
        limit: Annotated[
            int | None, Query(ge=1, description="Most buckets of a page; most lines when only `summary` is asked for.")
        ] = None,
        cursor: Cursor = None,
        start: Start = None,
        end: End = None,
        timezone: Zone = "UTC",
        timeframe: Frame = None,
        bound_to_timeframe: Bound = "true",
        app: Annotated[
            list[str] | None, Query(description="Only these apps, by name without owner."), CommaList()
        ] = None,
        search: Annotated[
            str | None, Query(max_length=200, description="Only apps whose name holds this, in any case.")
        ] = None,
        expand: Annotated[
            list[str],
            Query(description="`time_series`, `summary` or both."),
            CommaList(("time_series", "summary")),
        ] = ["time_series"],  # noqa: B006 (FastAPI copies defaults)
    ) -> Response:
        """Seconds of your apps' runners in billed states, at the prices that held then."""
        apps = Apps(caller.owner, tuple(app or ()), search or "")
        window = bucket_window(start, end, timezone, timeframe, bound_to_timeframe, now=parts.clock())
        size = min(limit or most, most)
        await parts.telemetry.barrier()
        if "time_series" not in expand:
            return _reply(await _summary_page(parts.cursors, reader, apps, window, size, cursor))
        page = page_at(parts.cursors, OPERATION, cursor, window, timezone, size)
        found = await reader.read(apps, page.span) if page.edges else {}
        body: dict[str, Any] = {
            "time_series": [
                {"bucket": label(edge, window.zone), "results": [shown(line) for line in found.get(edge, [])]}
                for edge in page.edges
            ],
            "next_cursor": page.cursor(parts.cursors, OPERATION, timezone),
        }
        if "summary" in expand:
            body["summary"] = await _summary(reader, apps, page.window) if page.first else []
        return _reply(body)

    return routes


async def _summary(reader: UsageReader, apps: Apps, window: Window) -> list[dict[str, Any]]:
    return [shown(line) for line in (await reader.read(apps, Span(window.start, window.end))).get(0, [])]


async def _summary_page(
    cursors: Cursors, reader: UsageReader, apps: Apps, window: Window, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of lines, when no time series is asked for."""
    operation, skip = f"{OPERATION}.summary", 0
    if cursor is not None:
        where = cursors.decode(operation, cursor)
        if isinstance(where, PageNumber):
            skip = where.offset(limit)
        else:
            key: tuple[Any, ...] = where.key
            start, end, skip = key
            window = Window(start, end, window.timeframe, window.zone)
    records = (await _summary(reader, apps, window))[skip:]
    body: dict[str, Any] = {"summary": records[:limit], "next_cursor": None}
    if len(records) > limit:
        body["next_cursor"] = cursors.encode(operation, (window.start, window.end, skip + limit))
    return body


def _reply(body: dict[str, Any]) -> Response:
    body["has_more"] = body["next_cursor"] is not None
    return Response(msgspec.json.encode(body), media_type="application/json")
