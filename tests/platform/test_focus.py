from __future__ import annotations

import csv
import io
import uuid
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from varvel.billing.invoices import Month
from varvel.billing.machines import MachineTypes, changed, defaults
from varvel.billing.prices import PriceBook
from varvel.platform.focus import COLUMNS, CONDITIONAL, MANDATORY, OWN, RECOMMENDED
from varvel.telemetry.model import RunnerRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

FOCUS = "/account/focus"


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture
async def me(served: Served) -> Account:
    prices = {"L": {"price_second": 0.0007, "percent_discount": 10}, "M": {"price_second": 0.1, "surge": 2}}
    types = defaults() | {name: changed(defaults()[name], values, name) for name, values in prices.items()}
    await PriceBook(served.parts.database, MachineTypes(types), lambda: 0).start()
    served.now = at("2025-03-10T12:00Z")
    return await served.add(f"f{uuid.uuid4().hex[:10]}")


def minute(owner: str, begin: str, app: str = "app", machine: str = "L") -> RunnerRow:
    since = round(at(begin) * 1_000_000)
    return RunnerRow(
        row_id=str(uuid.uuid4()), owner=owner, app=f"{owner}/{app}", environment="main", machine_type=machine,
        since=since, until=since + 60_000_000, seconds=60.0, running=1,
    )  # fmt: skip


async def report(client: httpx.AsyncClient, **params: Any) -> list[dict[str, str]]:
    answer = await client.get(FOCUS, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.text.split("\r\n", 1)[0] == ",".join(COLUMNS)
    return list(csv.DictReader(io.StringIO(answer.text)))


async def refused(client: httpx.AsyncClient, **params: Any) -> tuple[int, str]:
    answer = await client.get(FOCUS, params=params)
    return answer.status_code, answer.json()["error"]["type"]


def test_all_mandatory_columns_of_the_specification_are_there() -> None:
    assert len(MANDATORY) == 21
    assert len(set(COLUMNS)) == len(COLUMNS) == len(MANDATORY) + len(CONDITIONAL) + len(RECOMMENDED) + len(OWN)
    assert all(name.startswith("x_") for name in OWN)


async def test_an_estimate_has_a_line_for_each_bucket_and_price(me: Account, store: Store) -> None:
    await store.put(
        "runner_states",
        minute(me.name, "2025-03-10T09:00Z"),
        minute(me.name, "2025-03-10T09:30Z"),
        minute(me.name, "2025-03-10T10:00Z", machine="M"),
    )
    first, second = await report(me.admin, source="estimate")
    expected = {
        "BilledCost": "0.0756", "EffectiveCost": "0.0756", "ContractedCost": "0.0756", "ListCost": "0.084",
        "ListUnitPrice": "0.0007", "ContractedUnitPrice": "0.00063", "PricingQuantity": "120", "PricingUnit": "Seconds",
        "ChargeCategory": "Usage", "ChargeClass": "", "BillingCurrency": "USD", "BillingAccountId": me.name,
        "ChargePeriodStart": "2025-03-10T09:00:00Z", "ChargePeriodEnd": "2025-03-10T10:00:00Z",
        "BillingPeriodStart": "2025-03-01T00:00:00Z", "BillingPeriodEnd": "2025-04-01T00:00:00Z",
        "ServiceCategory": "Compute", "PricingCategory": "Standard", "ResourceId": f"{me.name}/app", "InvoiceId": "",
        "x_MachineType": "L", "x_IsSurge": "false", "Tags": '{"environment": "main"}',
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert (second["PricingCategory"], second["x_IsSurge"], second["BilledCost"]) == ("Dynamic", "true", "12")
    assert all(first[name] for name in MANDATORY if name != "ChargeClass")


async def test_an_estimate_of_many_buckets_comes_whole_and_no_charge_crosses_a_month(me: Account, store: Store) -> None:
    await store.put(
        "runner_states",
        *(
            minute(me.name, text)
            for text in ("2025-02-01T00:01Z", "2025-02-28T23:59Z", "2025-03-01T00:00Z", "2025-03-04T08:20Z")
        ),
    )
    for timeframe, zone in (
        ("week", "UTC"),
        ("month", "Asia/Kathmandu"),
        ("minute", "UTC"),
        ("day", "America/New_York"),
    ):
        lines = await report(
            me.admin, source="estimate", start="2025-01-25", end="2025-03-06", timeframe=timeframe, timezone=zone
        )
        assert sum(Decimal(line["PricingQuantity"]) for line in lines) == 240
        for line in lines:
            assert line["BillingPeriodStart"] <= line["ChargePeriodStart"] < line["ChargePeriodEnd"]
            assert line["ChargePeriodEnd"] <= line["BillingPeriodEnd"]


async def test_an_invoice_is_a_closed_month_that_nothing_changes_any_more(
    served: Served, me: Account, store: Store
) -> None:
    await store.put("runner_states", minute(me.name, "2025-02-28T23:59Z"), minute(me.name, "2025-03-01T00:00Z"))
    [line] = await report(me.admin, source="invoice")
    assert (line["InvoiceId"], line["ChargePeriodStart"]) == (f"{me.name}-2025-02", "2025-02-28T00:00:00Z")
    assert line["ChargePeriodEnd"] == line["BillingPeriodEnd"] == "2025-03-01T00:00:00Z"
    await store.put("runner_states", minute(me.name, "2025-02-20T10:00Z"))
    for month in ({"billing_month": "2025-03"}, {"charge_month": "2025-02"}, {}):
        assert await report(me.admin, source="invoice", **month) == [line]
    assert await report(me.admin, source="invoice", charge_month="2024-12") == []
    estimated = await report(me.admin, source="estimate", start="2025-02-01", end="2025-03-01", timeframe="day")
    assert len(estimated) == 2
    served.now = at("2025-04-01T00:59Z")
    assert await report(me.admin, source="invoice") == [line], "March is not closed yet: this is the last that is"
    served.now = at("2025-04-01T01:00Z")
    assert [each["InvoiceId"] for each in await report(me.admin, source="invoice")] == [f"{me.name}-2025-03"]


async def test_a_month_that_goes_on_has_no_invoice(served: Served, me: Account) -> None:
    assert await refused(me.admin, source="invoice", charge_month="2025-03") == (400, "validation_error")
    assert await refused(me.admin, source="invoice", billing_month="2025-04") == (400, "validation_error")
    served.now = at("2025-04-01T00:59Z")
    assert await refused(me.admin, source="invoice", charge_month="2025-03") == (400, "validation_error")
    served.now = at("2025-04-01T01:00Z")
    assert await report(me.admin, source="invoice", charge_month="2025-03") == []


async def test_what_cannot_be_reported_is_refused(me: Account) -> None:
    bad: list[dict[str, str]] = [
        {}, {"source": "guess"}, {"source": "invoice", "billing_month": "2025-3"},
        {"source": "invoice", "billing_month": "2025-13"},
        {"source": "invoice", "billing_month": "2025-02", "charge_month": "2025-01"},
        {"source": "estimate", "start": "2024-12-01", "end": "2025-03-02"},
        {"source": "estimate", "timezone": "Nowhere"},
    ]  # fmt: skip
    for params in bad:
        assert await refused(me.admin, **params) == (400, "validation_error"), params
    assert await refused(me.admin, source="invoice", expand="organization") == (403, "authorization_error")
    assert await refused(me.api, source="estimate") == (403, "authorization_error")


@pytest.mark.parametrize(
    ("text", "previous", "following"), [("2025-01", "2024-12", "2025-02"), ("2024-12", "2024-11", "2025-01")]
)
def test_months_follow_each_other_over_the_year(text: str, previous: str, following: str) -> None:
    month = Month.parse(text, "month")
    assert (str(month), str(month.previous), str(month.next)) == (text, previous, following)
    assert month.end == month.next.start
    assert Month.of(month.end - 1) == month
