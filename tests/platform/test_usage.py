from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import pytest

from varvel.billing.machines import MachineTypes, changed, defaults
from varvel.billing.prices import PriceBook
from varvel.platform.usage import UsageReply
from varvel.telemetry.model import RunnerRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

USAGE = "/serverless/usage"
PRICES: dict[str, dict[str, Any]] = {
    "M": {"price_second": 0.0001, "surge": 1.5, "surge_hours": ["22:00-02:00"], "percent_discount": 20},
    "L": {"price_second": 0.0007},
}


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


def states(owner: str, since: str, seconds: float, app: str = "app", machine: str = "L", **counts: int) -> RunnerRow:
    begin = at(since)
    return RunnerRow(
        row_id=str(uuid.uuid4()), owner=owner, app=f"{owner}/{app}", environment="main", machine_type=machine,
        since=begin, until=begin + round(seconds * 1_000_000), seconds=seconds, **counts,
    )  # fmt: skip


def minutes(owner: str, since: str, count: int, **more: Any) -> list[RunnerRow]:
    """One runner that runs for whole minutes, as intervals of a minute."""
    rows = []
    for number in range(count):
        row = states(owner, since, 60, running=1, **more)
        rows.append(row)
        row.since += number * 60_000_000
        row.until += number * 60_000_000
    return rows


def table(**changes: dict[str, Any]) -> MachineTypes:
    types = defaults()
    for name, values in changes.items():
        types[name] = changed(types[name], values, name)
    return MachineTypes(types)


@pytest.fixture
async def me(served: Served) -> Account:
    # In force from the first start, so for all of the past.
    book = PriceBook(served.parts.database, table(**PRICES), lambda: at("2025-01-01T00:00Z") / 1e6)
    await book.start()
    served.parts.prices._book = book._book
    served.parts.prices._started = True
    return await served.add(f"g{uuid.uuid4().hex[:10]}")


async def get(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(USAGE, params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    jsonschema.validate(body, UsageReply.model_json_schema())
    return body


async def test_seconds_of_billed_states_are_priced(me: Account, store: Store) -> None:
    await store.put(
        "runner_states",
        states(me.name, "2025-05-01T10:00:00Z", 60, pending=5, setup=1, running=2),
        states(me.name, "2025-05-01T10:01:00Z", 30.5, idle=1, draining=1, terminating=1),
    )
    body = await get(me.admin, start="2025-05-01", end="2025-05-02", timeframe="day")
    [line] = body["time_series"][0]["results"]
    assert line == {
        "app": "app", "environment": "main", "machine_type": "L", "unit": "second", "quantity": 271.5,
        "unit_price": 0.0007, "percent_discount": None, "cost_subtotal": 0.19005, "cost_discount": 0.0,
        "cost_total": 0.19005, "cost": 0.19005, "currency": "USD", "is_surge": False,
    }  # fmt: skip


async def test_surge_and_discount_are_lines_of_their_own(me: Account, store: Store) -> None:
    await store.put("runner_states", *minutes(me.name, "2025-05-01T21:00:00Z", 120, machine="M"))
    body = await get(me.admin, start="2025-05-01", end="2025-05-02", timeframe="day", expand="summary")
    plain, surge = body["summary"]
    assert (plain["is_surge"], plain["quantity"], plain["unit_price"], plain["percent_discount"]) == (
        False,
        3600,
        1e-4,
        20,
    )
    assert (surge["is_surge"], surge["quantity"], surge["unit_price"]) == (True, 3600, 0.00015)
    assert (surge["cost_subtotal"], surge["cost_discount"], surge["cost_total"]) == (0.54, 0.108, 0.432)


async def test_a_price_holds_from_its_change_and_not_before(served: Served, store: Store) -> None:
    me = await served.add(f"g{uuid.uuid4().hex[:10]}")
    database = served.parts.database
    await PriceBook(database, table(L={"price_second": 1.0}), lambda: 0).start()
    change = at("2025-05-01T12:00Z") / 1e6
    later = PriceBook(database, table(L={"price_second": 3.0}), lambda: change)
    await later.start()
    again = PriceBook(database, table(L={"price_second": 3.0}), lambda: change + 999)
    await again.start()
    assert again.changes() == later.changes() == [0, at("2025-05-01T12:00Z")]
    served.parts.prices._book = again._book
    served.parts.prices._started = True
    await store.put("runner_states", *minutes(me.name, "2025-05-01T11:58:00Z", 3))
    body = await get(me.admin, start="2025-05-01", end="2025-05-02", timeframe="day")
    found = [(line["unit_price"], line["quantity"]) for line in body["time_series"][0]["results"]]
    assert found == [(1.0, 120), (3.0, 60)]


async def test_series_and_summary_add_up_to_the_same(me: Account, store: Store) -> None:
    for app, machine in (("one", "L"), ("two", "M")):
        await store.put("runner_states", *minutes(me.name, "2025-05-01T20:17:00Z", 500, app=app, machine=machine))
    body = await get(
        me.admin, start="2025-05-01T20:30:30Z", end="2025-05-02T03:00:10Z", timeframe="hour", timezone="Asia/Kathmandu",
        bound_to_timeframe="false", expand="summary,time_series",
    )  # fmt: skip
    series: dict[Any, Decimal] = {}
    for bucket in body["time_series"]:
        for line in bucket["results"]:
            key = (line["app"], line["is_surge"])
            series[key] = series.get(key, Decimal(0)) + Decimal(str(line["quantity"]))
    assert series == {(line["app"], line["is_surge"]): Decimal(str(line["quantity"])) for line in body["summary"]}
    # Intervals that the range cuts count with their part.
    assert series["one", False] == 6 * 3600 + 29 * 60 + 40


async def test_apps_are_chosen_by_name_and_by_part_of_it(me: Account, store: Store) -> None:
    for app in ("ocr-dev", "OCR-prod", "echo"):
        await store.put("runner_states", *minutes(me.name, "2025-05-01T10:00:00Z", 1, app=app))
    window = {"start": "2025-05-01", "end": "2025-05-02", "expand": "summary"}

    async def names(**params: Any) -> list[str]:
        return [line["app"] for line in (await get(me.admin, **window, **params))["summary"]]

    assert await names() == ["OCR-prod", "echo", "ocr-dev"]
    assert await names(app="echo,ocr-dev") == ["echo", "ocr-dev"]
    assert await names(search="ocr") == ["OCR-prod", "ocr-dev"]
    assert await names(search="ocr", app=["ocr-dev", "echo"]) == ["ocr-dev"]
    first = await get(me.admin, **window, limit=2)
    rest = await get(me.admin, **window, limit=2, cursor=first["next_cursor"])
    assert [line["app"] for line in first["summary"] + rest["summary"]] == ["OCR-prod", "echo", "ocr-dev"]


async def test_usage_is_for_admin_keys_and_of_the_own_account_only(served: Served, me: Account, store: Store) -> None:
    answer = await me.api.get(USAGE)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")
    other = await served.add(f"h{uuid.uuid4().hex[:10]}")
    await store.put("runner_states", *minutes(me.name, "2025-05-01T10:00:00Z", 1))
    assert (await get(other.admin, start="2025-05-01", end="2025-05-02", expand="summary"))["summary"] == []


async def test_pages_of_buckets_join_to_the_whole(me: Account, store: Store) -> None:
    await store.put("runner_states", *minutes(me.name, "2025-05-01T10:30:00Z", 200))
    window = {"start": "2025-05-01", "end": "2025-05-02"}
    whole = (await get(me.admin, **window))["time_series"]
    joined: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(me.admin, **window, limit=5, **cursor)
        joined += page["time_series"]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert joined == whole
    assert len(whole) == 24


async def test_a_second_of_a_machine_with_gpus_counts_once_for_each(me: Account, store: Store) -> None:
    rows = [
        states(me.name, "2025-05-01T10:00:00Z", 60, idle=1, running=1),
        *minutes(me.name, "2025-05-01T11:00:00Z", 1),
    ]
    rows[0].gpus = 4
    await store.put("runner_states", *rows)
    body = await get(me.admin, start="2025-05-01", end="2025-05-02", timeframe="day", expand="summary")
    [line] = body["summary"]
    assert (line["quantity"], line["cost_total"]) == (2 * 60 * 4 + 60, 0.378)
