"""The account: who it is, and how much credit is left."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from varvel.billing.credits import Credits
from varvel.billing.lines import CURRENCY, total
from varvel.platform.access import AdminCaller
from varvel.platform.analytics_sql import Span
from varvel.platform.envelope import Reply, failures
from varvel.platform.parameters import CommaList
from varvel.platform.parts import PlatformParts
from varvel.platform.usage import UsageReader
from varvel.platform.usage_sql import Apps


class CreditBalance(Reply):
    """Credit that is left."""

    current_balance: float = Field(ge=0, description="Credit granted, less what was used since the first of it.")
    currency: str


class AccountBilling(Reply):
    """Billing of an account."""

    username: str = Field(description="The account's name, the first part of its app ids.")
    credits: CreditBalance | SkipJsonSchema[None] = Field(default=None, description="With `expand=credits`.")


async def balance(owner: str, granted: Credits, reader: UsageReader, now: float) -> Decimal:
    """USD that are left, never less than nothing."""
    credit = await granted.granted(owner)
    if credit.since is None:
        return Decimal(0)
    used = await reader.read(Apps(owner), Span(credit.since, round(now * 1_000_000)))
    return max(credit.amount - total(used.get(0, [])), Decimal(0))


def router(parts: PlatformParts) -> APIRouter:
    """`GET /account/billing`."""
    routes = APIRouter(tags=["Account"])
    reader = UsageReader(parts.telemetry, parts.prices)
    granted = Credits(parts.database)

    @routes.get(
        "/account/billing",
        operation_id="getAccountBilling",
        summary="Billing of your account",
        response_model=AccountBilling,
        responses=failures(400, 403, 503),
    )
    async def billing(
        caller: AdminCaller,
        expand: Annotated[
            list[str] | None, Query(description="`credits` adds the balance."), CommaList(("credits",))
        ] = None,
    ) -> Response:
        """Who pays, and how much credit is left."""
        body: dict[str, Any] = {"username": caller.owner}
        if expand:
            await parts.telemetry.barrier()
            left = await balance(caller.owner, granted, reader, parts.clock())
            body["credits"] = {"current_balance": float(left), "currency": CURRENCY}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return routes
