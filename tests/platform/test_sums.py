"""What was called, how it ended and what it cost must be the same wherever it is asked for."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from varvel.billing.machines import defaults
from varvel.billing.rules import bill
from varvel.telemetry.model import BillingRow, RequestRow

if TYPE_CHECKING:
    from tests.platform.conftest import Served, Store


def finished(owner: str, at: float, chance: random.Random) -> tuple[RequestRow, BillingRow]:
    status = chance.choice([200, 200, 200, 201, 404, 422, 499, 500, 503, 504])
    started = chance.random() < 0.9
    seconds = chance.expovariate(1) if started else 0.0
    ended = round(at * 1_000_000)
    request = RequestRow(
        request_id=str(uuid.uuid4()), owner=owner, app=f"{owner}/app",
        endpoint_id=chance.choice([f"{owner}/app", f"{owner}/app/fast"]), kind="queue", sent_at=ended - 10,
        started_at=ended, ended_at=ended, status_code=status, duration=seconds, prepare_duration=0.1, machine_type="M",
    )  # fmt: skip
    units = chance.choice([None, 2.5])
    cost = bill(status=status, started=started, units=units, duration=seconds, machine=defaults()["M"])
    event = BillingRow(
        request_id=request.request_id, owner=owner, app=request.app, endpoint_id=request.endpoint_id,
        ended_at=ended, recorded_at=ended + 5, billable_units=cost.units, billable_duration=cost.duration,
        machine_type="M", unit=cost.unit,
    )  # fmt: skip
    return request, event


async def test_list_analytics_and_billing_agree(served: Served, store: Store) -> None:
    me = await served.add(f"s{uuid.uuid4().hex[:10]}")
    chance = random.Random(11)
    pairs = [finished(me.name, served.now - chance.uniform(1, 80_000), chance) for _ in range(400)]
    for begin in range(0, 400, 90):
        await store.put("requests", *(request for request, _ in pairs[begin : begin + 90]))
        await store.put("billing", *(event for _, event in pairs[begin : begin + 90]))

    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        params = {"endpoint_id": f"{me.name}/app", "expand": "billing", "limit": "100"} | cursor
        page = (await me.api.get("/serverless/requests/by-endpoint", params=params)).json()
        items += page["items"]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}

    metrics = "request_count,success_count,user_error_count,error_count,total_billable_duration"
    params = {"endpoint_id": f"{me.name}/app", "expand": f"summary,time_series,{metrics}"}
    analytics = (await me.api.get("/serverless/analytics", params=params)).json()
    summed: Counter[str] = Counter()
    for record in analytics["summary"]:
        summed.update({name: value for name, value in record.items() if name != "endpoint_id"})
    series: Counter[str] = Counter()
    for bucket in analytics["time_series"]:
        for record in bucket["results"]:
            series.update({name: value for name, value in record.items() if name != "endpoint_id"})

    codes = [item["status_code"] for item in items]
    assert {item["request_id"] for item in items} == {request.request_id for request, _ in pairs}
    assert summed["request_count"] == series["request_count"] == len(items) == 400
    assert summed["success_count"] == series["success_count"] == sum(code < 300 for code in codes)
    assert summed["user_error_count"] == series["user_error_count"] == sum(400 <= code < 500 for code in codes)
    assert summed["error_count"] == series["error_count"] == sum(code >= 500 for code in codes)
    billed = sum(event.billable_duration for _, event in pairs)
    assert summed["total_billable_duration"] == pytest.approx(billed)
    assert series["total_billable_duration"] == pytest.approx(billed)
    assert sum(item["billable_units"] for item in items) == pytest.approx(sum(e.billable_units for _, e in pairs))
    assert all(item["billable_units"] == 0 for item in items if item["status_code"] >= 500)
