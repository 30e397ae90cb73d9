from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from varvel.billing.credits import Credits
from varvel.billing.machines import MachineTypes, changed, defaults
from varvel.billing.prices import PriceBook
from varvel.errors import InvalidRequest
from varvel.telemetry.model import RunnerRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

BILLING = "/account/billing"


@pytest.fixture
async def me(served: Served) -> Account:
    types = defaults() | {"L": changed(defaults()["L"], {"price_second": 0.01}, "L")}
    await PriceBook(served.parts.database, MachineTypes(types), lambda: 0).start()
    return await served.add(f"c{uuid.uuid4().hex[:10]}")


def second(owner: str, at: float, count: int) -> RunnerRow:
    since = round(at * 1_000_000)
    return RunnerRow(
        row_id=str(uuid.uuid4()), owner=owner, app=f"{owner}/app", environment="main", machine_type="L",
        since=since, until=since + 1_000_000, seconds=1.0, running=count,
    )  # fmt: skip


async def test_the_name_is_told_and_credit_only_when_asked_for(me: Account) -> None:
    assert (await me.admin.get(BILLING)).json() == {"username": me.name}
    answer = await me.admin.get(BILLING, params={"expand": "credits"})
    assert answer.json() == {"username": me.name, "credits": {"current_balance": 0.0, "currency": "USD"}}


async def test_credit_is_what_was_granted_less_what_was_used_since(served: Served, me: Account, store: Store) -> None:
    # The prices of this server's own machine table are zero and hold from now; what was used before keeps its price.
    began = served.now - 100_000
    granted = Credits(served.parts.database)
    await granted.grant(me.name, "24.50", began)
    await granted.grant(me.name, "0.10", served.now)
    await store.put("runner_states", second(me.name, began - 50, 9), second(me.name, began + 50, 10))

    async def left() -> float:
        body = (await me.admin.get(BILLING, params={"expand": "credits"})).json()
        return float(body["credits"]["current_balance"])

    assert await left() == 24.5
    await store.put("runner_states", second(me.name, began + 90, 100_000))
    assert await left() == 0


async def test_billing_is_for_admin_keys(me: Account) -> None:
    answer = await me.api.get(BILLING)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")


@pytest.mark.parametrize("expand", ["debts", ""])
async def test_unknown_expansions_are_answered_with_400(me: Account, expand: str) -> None:
    assert (await me.admin.get(BILLING, params={"expand": expand})).status_code == 400


@pytest.mark.parametrize("amount", ["lots", "NaN", "1e999", "inf"])
async def test_credit_is_an_amount_of_money(served: Served, amount: Any) -> None:
    with pytest.raises(InvalidRequest):
        await Credits(served.parts.database).grant("me", amount, 0)
