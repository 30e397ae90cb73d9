from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from varvel.billing.credits import exact
from varvel.billing.invoices import SETTLE, Month
from varvel.billing.machines import MachineTypes, changed, defaults
from varvel.billing.prices import PriceBook
from varvel.errors import InvalidRequest
from varvel.platform.account import credits_of
from varvel.telemetry.model import RunnerRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

BILLING = "/account/billing"
CREDITS = "/account/credits"
KINDS = {400: "validation_error", 403: "authorization_error", 404: "not_found"}


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


async def left(me: Account) -> float:
    body = (await me.admin.get(BILLING, params={"expand": "credits"})).json()
    return float(body["credits"]["current_balance"])


async def test_credit_is_what_was_granted_less_what_was_used_since(served: Served, me: Account, store: Store) -> None:
    # The prices of this server's own machine table are zero and hold from now; what was used before keeps its price.
    began = served.now - 100_000
    granted = credits_of(served.parts)
    await granted.grant(me.name, "24.50", began)
    await granted.grant(me.name, "0.10", served.now)
    await store.put("runner_states", second(me.name, began - 50, 9), second(me.name, began + 50, 10))
    assert await left(me) == 24.5
    await store.put("runner_states", second(me.name, began + 90, 100_000))
    assert await left(me) == 0


async def test_what_was_used_in_months_that_are_over_stays_off_when_their_rows_are_gone(
    served: Served, me: Account, store: Store
) -> None:
    month = Month.of(served.now).previous.previous
    granted = credits_of(served.parts)
    await granted.grant(me.name, "100", month.start + 86_400)
    days = (0, 2, 5)
    await store.put("runner_states", *(second(me.name, month.start + day * 86_400, 100) for day in days))
    await store.put("runner_states", second(me.name, month.end + 5, 300))
    before = served.now
    served.now = month.end + SETTLE - 1
    assert await left(me) == 95, "two of three days, of those 100 seconds at 0.01 each, are after the credit"
    await granted.settle(served.now)
    served.now = month.end + SETTLE + 60
    await granted.settle(served.now)
    gone = f"owner = '{me.name}' AND since < {month.end * 1_000_000}"
    await store.execute(f"ALTER TABLE runner_states DELETE WHERE {gone} SETTINGS mutations_sync = 2")
    assert await left(me) == 95, "the month is settled; the three dollars of the next are to come off"
    served.now = before


async def test_the_first_owner_gives_credit_and_everyone_sees_their_own(served: Served, me: Account) -> None:
    first = await served.add("me")
    given = {"owner": me.name, "amount": "24.50", "note": "a start"}
    made = await first.admin.post(CREDITS, json=given)
    assert made.status_code == 201
    assert made.json()["amount"] == "24.50"
    back = await first.admin.post(CREDITS, json={"owner": me.name, "amount": -4.25}, headers={"Idempotency-Key": "1"})
    again = await first.admin.post(CREDITS, json={"owner": me.name, "amount": -4.25}, headers={"Idempotency-Key": "1"})
    assert (again.status_code, again.json()) == (201, back.json())
    listed = (await me.admin.get(CREDITS)).json()["credits"]
    assert listed == [made.json(), back.json()]
    assert await left(me) == 20.25
    assert (await first.admin.get(CREDITS)).json() == {"credits": []}
    for client, body, status in [
        (me.admin, given, 403),
        (me.api, given, 403),
        (first.admin, {"owner": "nobody-here", "amount": "1"}, 404),
        (first.admin, {"owner": me.name, "amount": "NaN"}, 400),
        (first.admin, {"owner": me.name, "amount": "0"}, 400),
        (first.admin, {"owner": me.name, "amount": "0.0000000001"}, 400),
        (first.admin, {"owner": me.name}, 400),
    ]:
        answer = await client.post(CREDITS, json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, KINDS[status]), answer.text


async def test_billing_is_for_admin_keys(me: Account) -> None:
    answer = await me.api.get(BILLING)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")


@pytest.mark.parametrize("expand", ["debts", ""])
async def test_unknown_expansions_are_answered_with_400(me: Account, expand: str) -> None:
    assert (await me.admin.get(BILLING, params={"expand": expand})).status_code == 400


@pytest.mark.parametrize("amount", ["lots", "NaN", "1e999", "inf", "0", "1e13", "0.0000000001", "1e-999999"])
def test_credit_is_an_amount_of_money(amount: Any) -> None:
    with pytest.raises(InvalidRequest):
        exact(amount)
