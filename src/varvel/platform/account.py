"""The account: who it is, and how much credit is left."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from varvel.auth.keys import FIRST_OWNER
from varvel.billing.credits import Credits, Grant
from varvel.billing.lines import CURRENCY, total
from varvel.errors import AccessDenied, NotFound
from varvel.ids import iso
from varvel.platform.access import AdminCaller
from varvel.platform.analytics_sql import Span
from varvel.platform.envelope import Reply, failures, number
from varvel.platform.parameters import CommaList, IdempotencyKey
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


class NewCredit(Reply):
    """Credit to be given."""

    owner: str = Field(min_length=1, max_length=100, description="Who gets it.")
    amount: Decimal = Field(description="USD, nine decimal places at most; negative takes it back.")
    note: str = Field(default="", max_length=500, description="What it is for.")


class Credit(Reply):
    """Credit that was given."""

    credit_id: str
    amount: str = Field(description="USD, an exact decimal.")
    currency: str
    granted_at: str
    note: str


class CreditList(Reply):
    """All credit that you were given, oldest first."""

    credits: list[Credit]


def credits_of(parts: PlatformParts) -> Credits:
    """The credit of a server's owners."""
    reader = UsageReader(parts.telemetry, parts.prices)

    async def cost(owner: str, start: int, end: int) -> Decimal:
        if start >= end:
            return Decimal(0)
        return total((await reader.read(Apps(owner), Span(start, end))).get(0, []))

    return Credits(parts.database, cost)


def shown(grant: Grant) -> Credit:
    """How a credit is shown."""
    return Credit(
        credit_id=grant.credit_id,
        amount=f"{grant.amount:f}",
        currency=CURRENCY,
        granted_at=iso(grant.granted_at / 1e6),
        note=grant.note,
    )


def router(parts: PlatformParts) -> APIRouter:
    """`/account/billing` and `/account/credits`."""
    routes = APIRouter(tags=["Account"])
    credit = credits_of(parts)
    _billing(routes, parts, credit)
    _credits(routes, parts, credit)
    return routes


def _billing(routes: APIRouter, parts: PlatformParts, credit: Credits) -> None:
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
            left = await credit.balance(caller.owner, parts.clock())
            body["credits"] = {"current_balance": number(left), "currency": CURRENCY}
        return Response(msgspec.json.encode(body), media_type="application/json")


def _credits(routes: APIRouter, parts: PlatformParts, credit: Credits) -> None:
    @routes.get(
        "/account/credits",
        operation_id="listCredits",
        summary="Credit that you were given",
        response_model=CreditList,
        responses=failures(403),
    )
    async def list_credits(caller: AdminCaller) -> CreditList:
        """Every credit, also what was taken back. What is left of it is in `/account/billing?expand=credits`."""
        return CreditList(credits=[shown(grant) for grant in await credit.grants(caller.owner)])

    @routes.post(
        "/account/credits",
        operation_id="grantCredit",
        summary="Give credit to an owner",
        status_code=201,
        response_model=Credit,
        responses=failures(400, 403, 404),
    )
    async def grant(caller: AdminCaller, new: NewCredit, idempotency_key: IdempotencyKey = None) -> Response:
        """Only the first owner of a server may. What the owner's machines cost from then on is taken off."""
        if caller.owner != FIRST_OWNER:
            raise AccessDenied(f"Only {FIRST_OWNER} may do this")
        if new.owner not in parts.keys.owners():
            raise NotFound(f"There is no owner {new.owner}")

        async def work() -> Response:
            made = await credit.grant(new.owner, str(new.amount), parts.clock(), new.note)
            return JSONResponse(shown(made).model_dump(), 201)

        told = {"owner": new.owner, "amount": str(new.amount), "note": new.note}
        return await parts.idempotency.once(caller, idempotency_key, "grantCredit", told, work)
