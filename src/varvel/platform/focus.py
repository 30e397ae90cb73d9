"""The FOCUS report: an account's charges as CSV in the columns of the FinOps Open Cost and Usage Specification 1.2.

All 21 columns that the specification makes mandatory are there, those conditional and recommended ones that have a
value here, and three of our own, whose names begin with `x_`. Null is an empty field; times are UTC; numbers are exact
decimals.

An estimate has a line for each bucket of time and usage line; an invoice one for each UTC day and usage line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, pairwise
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from varvel import ids
from varvel.billing.invoices import SETTLE, DailyLines, Invoices, Month
from varvel.billing.lines import CURRENCY, Line
from varvel.errors import AccessDenied, InvalidRequest
from varvel.platform.access import AdminCaller
from varvel.platform.analytics_sql import Span
from varvel.platform.buckets import DAY, Window
from varvel.platform.envelope import failures
from varvel.platform.parameters import Bound, End, Frame, Start, Zone, bucket_window
from varvel.platform.parts import PlatformParts
from varvel.platform.usage import UsageReader
from varvel.platform.usage_sql import Apps

LONGEST = 90 * DAY
CHUNK = 500
"""Buckets that are read from the store at a time."""

MANDATORY = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
)  # fmt: skip
CONDITIONAL = (
    "BillingAccountType", "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "ListUnitPrice",
    "PricingCategory", "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuMeter", "SkuPriceId", "Tags",
)  # fmt: skip
RECOMMENDED = ("ChargeFrequency", "InvoiceId", "ServiceSubcategory")
OWN = ("x_Environment", "x_IsSurge", "x_MachineType")
COLUMNS = (*MANDATORY, *CONDITIONAL, *RECOMMENDED, *OWN)
PROVIDER = "Varvel"


@dataclass(frozen=True, slots=True)
class Charge:
    """A line of usage between two times in seconds. `invoice_id` is empty while it is an estimate."""

    owner: str
    begin: int
    end: int
    line: Line
    invoice_id: str = ""


def record(charge: Charge) -> dict[str, str]:
    """The columns of one charge."""
    line, item = charge.line, charge.line.item
    month = Month.of(charge.begin)
    quantity, price = _number(line.quantity), _number(item.unit_price)
    sku = f"{item.machine_type}{'/surge' if item.is_surge else ''}"
    # A percentage discount is a reduced rate that was agreed on, so it is in the contracted price already.
    contracted = item.unit_price * (100 - item.percent_discount) / 100
    cost = _number(line.total)
    return {
        "BilledCost": cost,
        "BillingAccountId": charge.owner,
        "BillingAccountName": charge.owner,
        "BillingAccountType": "Account",
        "BillingCurrency": CURRENCY,
        "BillingPeriodEnd": _time(month.end),
        "BillingPeriodStart": _time(month.start),
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": f"{item.app} on {item.machine_type}: {quantity} seconds at {price} {CURRENCY}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _time(charge.end),
        "ChargePeriodStart": _time(charge.begin),
        "ConsumedQuantity": quantity,
        "ConsumedUnit": "Seconds",
        "ContractedCost": cost,
        "ContractedUnitPrice": _number(contracted),
        "EffectiveCost": cost,
        "InvoiceId": charge.invoice_id,
        "InvoiceIssuerName": PROVIDER,
        "ListCost": _number(line.subtotal),
        "ListUnitPrice": price,
        "PricingCategory": "Dynamic" if item.is_surge else "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": "Seconds",
        "ProviderName": PROVIDER,
        "PublisherName": PROVIDER,
        "ResourceId": f"{charge.owner}/{item.app}",
        "ResourceName": item.app,
        "ResourceType": "Serverless App",
        "ServiceCategory": "Compute",
        "ServiceName": "Serverless",
        "ServiceSubcategory": "Serverless Compute",
        "SkuId": item.machine_type,
        "SkuMeter": "Machine Seconds",
        "SkuPriceId": f"{sku}@{price}",
        "Tags": json.dumps({"environment": item.environment} if item.environment else {}),
        "x_Environment": item.environment,
        "x_IsSurge": "true" if item.is_surge else "false",
        "x_MachineType": item.machine_type,
    }


def _number(value: Decimal) -> str:
    return f"{value.normalize():f}" if value else "0"


def _time(seconds: int) -> str:
    return ids.iso(seconds).replace(".000Z", "Z")


def rows(charges: Iterable[Charge]) -> str:
    """CSV lines of charges, without the header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    writer.writerows(record(charge) for charge in charges)
    return out.getvalue()


HEADER = ",".join(COLUMNS) + "\r\n"


def edges_of(window: Window) -> Iterable[int]:
    """The begins of a window's charges in seconds: its buckets, cut where a UTC month ends, as billing periods do."""
    last = window.start // 1_000_000
    for edge in window.edges():
        month = Month.of(last).next
        while month.start < edge:
            yield month.start
            month = month.next
        last = edge
        yield edge
    month = Month.of(last).next
    while month.start * 1_000_000 < window.end:
        yield month.start
        month = month.next


async def estimate(reader: UsageReader, owner: str, window: Window) -> AsyncIterator[str]:
    """The report of a window in pieces, read some hundred buckets at a time."""
    begins = iter(edges_of(window))
    edges = tuple(islice(begins, CHUNK + 1))
    while edges:
        full = len(edges) > CHUNK
        end = edges[-1] * 1_000_000 if full else window.end
        own = edges[:-1] if full else edges
        found = await reader.read(Apps(owner), Span(max(own[0] * 1_000_000, window.start), end, own))
        yield rows(_charges(owner, found, [*own, -(-end // 1_000_000)], window.start // 1_000_000))
        edges = (edges[-1], *islice(begins, CHUNK)) if full else ()


def _charges(
    owner: str, found: Mapping[int, Sequence[Line]], edges: Sequence[int], earliest: int, invoice_id: str = ""
) -> Iterable[Charge]:
    for begin, end in pairwise(edges):
        for line in found.get(begin, []):
            yield Charge(owner, max(begin, earliest), end, line, invoice_id)


def _invoiced_month(billing_month: str | None, charge_month: str | None, now: float) -> Month:
    """The month of charges that is asked for, or the last one that is closed.

    An invoice is issued in the month after its charges.
    """
    if billing_month is not None and charge_month is not None:
        raise InvalidRequest("billing_month and charge_month: only one of them may be given")
    if charge_month is not None:
        return Month.parse(charge_month, "charge_month")
    if billing_month is not None:
        return Month.parse(billing_month, "billing_month").previous
    return Month.of(now - SETTLE).previous


async def _with_first(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same pieces after the first was read: a store that is down is said before the reply begins."""
    first = await anext(pieces, "")

    async def whole() -> AsyncIterator[str]:
        yield HEADER + first
        async for piece in pieces:
            yield piece

    return whole()


async def _once(text: str) -> AsyncIterator[str]:
    yield text


def daily_lines(reader: UsageReader) -> DailyLines:
    """How invoices get their lines."""

    async def read(owner: str, start: int, end: int) -> dict[int, list[Line]]:
        return await reader.read(Apps(owner), Span(start * 1_000_000, end * 1_000_000, tuple(range(start, end, DAY))))

    return read


def invoices_of(parts: PlatformParts) -> Invoices:
    """The invoices of a server: it closes months with them as time goes by."""
    return Invoices(parts.database, daily_lines(UsageReader(parts.telemetry, parts.prices)))


def router(parts: PlatformParts) -> APIRouter:
    """`GET /account/focus`."""
    routes = APIRouter(tags=["Account"])
    reader = UsageReader(parts.telemetry, parts.prices)
    invoices = invoices_of(parts)

    @routes.get(
        "/account/focus",
        operation_id="getFocusReport",
        summary="Charges in FOCUS columns",
        response_class=StreamingResponse,
        responses={
            **failures(400, 403, 503),
            200: {"description": "CSV with a header line", "content": {"text/csv": {"schema": {"type": "string"}}}},
        },
    )
    async def focus(
        caller: AdminCaller,
        source: Annotated[
            Literal["invoice", "estimate"],
            Query(description="`invoice`: a closed month. `estimate`: usage of a range, up to 90 days."),
        ],
        billing_month: Annotated[
            str | None,
            Query(
                pattern=r"^\d{4}-\d{2}$",
                description="Month in which the invoice was issued; that of the last invoice if absent.",
            ),
        ] = None,
        charge_month: Annotated[
            str | None,
            Query(pattern=r"^\d{4}-\d{2}$", description="Month of the charges, instead of billing_month."),
        ] = None,
        expand: Annotated[
            Literal["organization"] | None, Query(description="For roots of organizations, which there are none here.")
        ] = None,
        start: Start = None,
        end: End = None,
        timezone: Zone = "UTC",
        timeframe: Frame = None,
        bound_to_timeframe: Bound = "true",
    ) -> StreamingResponse:
        """Your charges as CSV, for tools that read FOCUS."""
        if expand is not None:
            raise AccessDenied("expand: this account is not the root of an organization")
        now = parts.clock()
        await parts.telemetry.barrier()
        if source == "invoice":
            month = _invoiced_month(billing_month, charge_month, now)
            invoice = await invoices.get(caller.owner, month, now)
            days = [*range(month.start, month.end, DAY), month.end]
            pieces = _once(rows(_charges(caller.owner, invoice.lines, days, month.start, invoice.invoice_id)))
            name = f"invoice-{month}"
        else:
            window = bucket_window(start, end, timezone, timeframe, bound_to_timeframe, now=now, at_most=LONGEST)
            pieces = estimate(reader, caller.owner, window)
            name = f"estimate-{_time(window.start // 1_000_000)[:10]}"
        return StreamingResponse(
            await _with_first(pieces),
            media_type="text/csv",
            headers={"Content-Disposition": f'attachment; filename="focus-{name}.csv"'},
        )

    return routes
