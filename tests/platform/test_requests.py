from __future__ import annotations

import asyncio
import base64
import random
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import pytest

from varvel.apps.model import AppId
from varvel.ids import iso
from varvel.platform.requests import RequestList, _longest, gaps
from varvel.platform.requests_sql import PageQuery, endpoints
from varvel.telemetry.closing import close_days, drop_replaced
from varvel.telemetry.model import BillingRow, PayloadRow, RequestRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

LIST = "/serverless/requests/by-endpoint"
SECOND = 1_000_000


def row(
    owner: str, ended: float, *, route: str = "", status: int = 200, duration: float = 0.5, **more: Any
) -> RequestRow:
    """A request of `owner/app` that ended at `ended` (seconds)."""
    at = round(ended * SECOND)
    given: dict[str, Any] = {
        "request_id": str(uuid.uuid4()), "owner": owner, "app": f"{owner}/app", "endpoint_id": f"{owner}/app{route}",
        "kind": "queue", "sent_at": at - round((duration + 0.1) * SECOND), "started_at": at - round(duration * SECOND),
        "ended_at": at, "status_code": status, "duration": duration, "prepare_duration": 0.1,
        "runner_id": str(uuid.uuid4()), "revision": "r", "machine_type": "S",
    }  # fmt: skip
    return RequestRow(**(given | more))


def billed(request: RequestRow, units: float) -> BillingRow:
    return BillingRow(
        request_id=request.request_id,
        owner=request.owner,
        app=request.app,
        endpoint_id=request.endpoint_id,
        ended_at=request.ended_at,
        recorded_at=request.ended_at,
        billable_units=units,
        billable_duration=request.duration,
        machine_type="S",
        unit="units",
    )


@pytest.fixture
async def me(served: Served) -> Account:
    return await served.add(f"u{uuid.uuid4().hex[:10]}")


async def get(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(LIST, params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    jsonschema.validate(body, RequestList.model_json_schema())
    assert body["has_more"] == (body["next_cursor"] is not None)
    return body


async def walk(client: httpx.AsyncClient, **params: Any) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        body = await get(client, **params, **cursor)
        found += [item["request_id"] for item in body["items"]]
        if not body["has_more"]:
            return found
        cursor = {"cursor": body["next_cursor"]}


async def test_a_request_is_listed_with_exactly_the_documented_fields(
    served: Served, me: Account, store: Store
) -> None:
    request = row(me.name, served.now - 5, duration=2.0)
    never_ran = row(me.name, served.now - 9, status=504, duration=0.0, runner_id="")
    await store.put("requests", request, never_ran)
    items = (await get(me.api, endpoint_id=f"{me.name}/app"))["items"]
    assert set(items[0]) == {
        "request_id", "endpoint_id", "started_at", "sent_at", "ended_at", "status_code", "duration", "runner_id",
    }  # fmt: skip
    assert (items[0]["request_id"], items[0]["duration"], items[0]["status_code"]) == (request.request_id, 2.0, 200)
    assert items[0]["ended_at"].endswith("Z")
    assert items[1]["runner_id"] is None


@pytest.mark.parametrize("sort_by", ["ended_at", "duration"])
async def test_pages_hold_each_request_once_while_others_arrive(
    served: Served, me: Account, store: Store, sort_by: str
) -> None:
    chance = random.Random(7)
    ages = [1, 2, 3, 40, 4000, 30000, 80000]
    old = [row(me.name, served.now - chance.choice(ages), duration=chance.choice([1.0, 2.0])) for _ in range(230)]
    await store.put("requests", *old)
    expected = [
        request.request_id
        for request in sorted(
            old, key=lambda r: (r.duration if sort_by == "duration" else 0, r.ended_at, r.request_id), reverse=True
        )
    ]
    done = asyncio.Event()

    async def arrive() -> None:
        while not done.is_set():
            served.now += 1
            await store.put("requests", row(me.name, served.now - 0.5, duration=chance.choice([1.0, 2.0, 3.0])))

    arriving = asyncio.create_task(arrive())
    found = await walk(me.api, endpoint_id=f"{me.name}/app", limit=17, sort_by=sort_by)
    done.set()
    await arriving
    assert len(found) == len(set(found))
    assert [one for one in found if one in set(expected)] == expected


async def test_a_numbered_cursor_leads_to_that_page(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", *(row(me.name, served.now - n - 1) for n in range(25)))
    everything = await walk(me.api, endpoint_id=f"{me.name}/app", limit=100)
    assert base64.b64encode(b"2") == b"Mg=="
    second = await get(me.api, endpoint_id=f"{me.name}/app", limit=10, cursor="Mg==")
    assert [item["request_id"] for item in second["items"]] == everything[10:20]
    third = await get(me.api, endpoint_id=f"{me.name}/app", limit=10, cursor=second["next_cursor"])
    assert [item["request_id"] for item in third["items"]] == everything[20:]


async def test_the_last_24_hours_are_listed_and_90_days_when_an_id_is_given(
    served: Served, me: Account, store: Store
) -> None:
    day = 86400
    new, older, oldest = (row(me.name, served.now - age) for age in (day - 60, 80 * day, 91 * day))
    await store.put("requests", new)
    await store.put("requests", older)
    await store.put("requests", oldest)
    app = f"{me.name}/app"
    assert await walk(me.api, endpoint_id=app) == [new.request_id]
    assert await walk(me.api, endpoint_id=app, request_id=older.request_id) == [older.request_id]
    assert await walk(me.api, endpoint_id=app, request_id=oldest.request_id) == []
    assert await walk(me.api, endpoint_id=app, start="2020-01-01") == [r.request_id for r in (new, older, oldest)]


async def test_an_app_id_takes_in_its_routes_and_a_route_only_itself(served: Served, me: Account, store: Store) -> None:
    rows = [
        row(me.name, served.now - n - 1, route=route) for n, route in enumerate(["", "/fast", "/fast/er", "2", "2/x"])
    ]
    await store.put("requests", *rows)
    ids = [request.request_id for request in rows]
    app = f"{me.name}/app"
    assert await walk(me.api, endpoint_id=app) == ids[:3]
    assert await walk(me.api, endpoint_id=f"{app}/fast") == [ids[1]]
    assert await walk(me.api, endpoint_id=[f"{app}/fast", f"{app}2"]) == [ids[1], ids[3], ids[4]]
    assert await walk(me.api, endpoint_id=f"{app}/fast,{app}/fast/er") == [ids[1], ids[2]]


@pytest.mark.parametrize(
    ("status", "codes"), [("success", {200, 201}), ("user_error", {404, 499}), ("error", {500, 504})]
)
async def test_requests_are_filtered_by_how_they_ended(
    served: Served, me: Account, store: Store, status: str, codes: set[int]
) -> None:
    await store.put("requests", *(row(me.name, served.now - 1, status=code) for code in (200, 201, 404, 499, 500, 504)))
    body = await get(me.api, endpoint_id=f"{me.name}/app", status=status)
    assert {item["status_code"] for item in body["items"]} == codes


async def test_units_are_null_until_the_billing_event_is_there(served: Served, me: Account, store: Store) -> None:
    request, other = row(me.name, served.now - 5), row(me.name, served.now - 6)
    await store.put("requests", request, other)
    app = f"{me.name}/app"

    async def units() -> list[Any]:
        return [item["billable_units"] for item in (await get(me.api, endpoint_id=app, expand="billing"))["items"]]

    assert await units() == [None, None]
    await store.put("billing", billed(request, 3.25))
    assert await units() == [3.25, None]
    assert "billable_units" not in (await get(me.api, endpoint_id=app))["items"][0]


async def test_payloads_come_when_asked_and_are_absent_where_none_was_kept(
    served: Served, me: Account, store: Store
) -> None:
    request, other = row(me.name, served.now - 5), row(me.name, served.now - 6)
    await store.put("requests", request, other)
    payload = PayloadRow(
        request_id=request.request_id,
        owner=me.name,
        ended_at=request.ended_at,
        input='{"page": "ä\\n"}',
        output="[1, 2]",
    )
    await store.put("payloads", payload)
    items = (await get(me.api, endpoint_id=f"{me.name}/app", expand="payloads,billing"))["items"]
    assert (items[0]["json_input"], items[0]["json_output"]) == ({"page": "ä\n"}, [1, 2])
    assert "json_input" not in items[1]
    assert "json_output" not in items[1]
    assert "json_input" not in (await get(me.api, endpoint_id=f"{me.name}/app"))["items"][0]


async def test_nobody_sees_the_requests_of_another(served: Served, me: Account, store: Store) -> None:
    other = await served.add(f"v{uuid.uuid4().hex[:10]}")
    await store.put("requests", row(other.name, served.now - 5))
    answer = await me.admin.get(LIST, params={"endpoint_id": [f"{me.name}/app", f"{other.name}/app"]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")


async def test_a_cursor_is_bound_to_its_list_and_cannot_be_made_up(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", *(row(me.name, served.now - n - 1) for n in range(3)))
    app = f"{me.name}/app"
    cursor = (await get(me.api, endpoint_id=app, limit=1))["next_cursor"]
    assert (
        await me.api.get(LIST, params={"endpoint_id": app, "cursor": cursor, "sort_by": "duration"})
    ).status_code == 400
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(cursor)[:-1] + b"0").decode()
    for bad in (forged, "nonsense", "MA==", "!"):
        assert (await me.api.get(LIST, params={"endpoint_id": app, "cursor": bad})).status_code == 400


async def test_longest_pages_over_closed_days_are_those_of_the_rows(served: Served, me: Account, store: Store) -> None:
    first, chance = 1_690_000_000 // 86400 * 86400, random.Random(5)
    served.now = first + 5 * 86400.0

    def one(day: int, **more: Any) -> RequestRow:
        # Few durations, so that many are equal, also where a list ends.
        return row(me.name, first + day * 86400 + chance.uniform(0, 86400), route=chance.choice(["", "/b"]), **more)

    rows = [one(day, duration=chance.randint(1, 60) / 8) for day in (0, 1, 3) for _ in range(500)]
    rows += [one(2, duration=1.0) for _ in range(3)] + [one(4, duration=3.0) for _ in range(150)]
    await store.put("requests", *rows)
    closed = await close_days(store, served.now - 86400 + 700)
    assert {(first + day * 86400) * SECOND for day in range(4)} <= set(closed)
    asked: dict[str, Any] = {"endpoint_id": f"{me.name}/app", "sort_by": "duration"}

    def expected(start: float, end: float, route: str | None = None) -> list[str]:
        inside = [r for r in rows if start * SECOND <= r.ended_at < end * SECOND]
        inside = [r for r in inside if route is None or r.endpoint_id == f"{me.name}/app{route}"]
        return [r.request_id for r in sorted(inside, key=lambda r: (r.duration, r.ended_at, r.request_id))][::-1]

    for start, end in ((first, first + 5 * 86400), (first + 7000, first + 3 * 86400 + 9000.5), (first, first + 86400)):
        span = {"start": iso(start), "end": iso(end)}
        assert await walk(me.api, **asked, **span, limit=37) == expected(start, end)
    whole = {"start": iso(first), "end": iso(first + 5 * 86400)}
    assert await walk(me.api, **asked | {"endpoint_id": f"{me.name}/app/b"}, **whole, limit=100) == expected(
        first, first + 5 * 86400, "/b"
    )
    third = await get(me.api, **asked, **whole, limit=50, cursor="Mw==")
    assert [item["request_id"] for item in third["items"]] == expected(first, first + 5 * 86400)[100:150]
    # The lists were read where they reach, and not where they do not.
    chosen = endpoints(me.name, [(AppId(me.name, "app"), "")])
    query = PageQuery(
        endpoints=chosen, start=first * SECOND, end=(first + 5 * 86400) * SECOND, sort_by="duration", rows=101
    )
    assert [r["request_id"] for r in await _longest(store, query) or ()] == expected(first, first + 5 * 86400)[:101]
    assert await _longest(store, replace(query, offset=1400)) is None
    # A late row opens its day again, at once.
    rows.append(late := one(1, duration=99.0))
    await store.put("requests", late)
    assert (await get(me.api, **asked, **whole, limit=1))["items"][0]["request_id"] == late.request_id
    assert await walk(me.api, **asked, **whole, limit=100) == expected(first, first + 5 * 86400)
    assert await close_days(store, served.now - 86400 + 800) == [(first + 86400) * SECOND]
    assert await walk(me.api, **asked, **whole, limit=100) == expected(first, first + 5 * 86400)
    # Lists that were replaced are deleted, some time later.
    count = "SELECT count() AS n FROM requests_longest WHERE owner = {owner:String} AND day = {day:Int64} AND place > 0"
    of_day = {"owner": me.name, "day": (first + 86400) * SECOND}
    assert await store.select(count, of_day) == [{"n": 400}]
    [newest] = await store.select("SELECT max(version) AS version FROM closed_spans")
    await drop_replaced(store, newest["version"] / SECOND)
    assert await store.select(count, of_day) == [{"n": 400}]
    await drop_replaced(store, 4e9)
    assert await store.select(count, of_day) == [{"n": 200}]
    assert await walk(me.api, **asked, **whole, limit=100) == expected(first, first + 5 * 86400)
    # And a day that retention drops is gone from the lists with its rows.
    await store.execute(f"ALTER TABLE requests DROP PARTITION ID '{iso(first)[:10].replace('-', '')}'")
    assert await walk(me.api, **asked, **whole, limit=100) == expected(first + 86400, first + 5 * 86400)


@pytest.mark.parametrize(
    ("days", "expected"),
    [([], [(5, 905)]), ([0], [(1 * 100, 905)]), ([1, 2, 4], [(5, 100), (300, 400), (500, 905)]), ([9], [(5, 905)])],
)
def test_gaps_are_what_no_whole_day_covers(days: list[int], expected: list[tuple[int, int]]) -> None:
    unit = 86400 * SECOND // 100
    start = 0 if 0 in days else 5 * unit
    got = gaps(start, 905 * unit, [day * 86400 * SECOND for day in days])
    assert got == [(a * unit, b * unit) for a, b in expected]


@pytest.mark.parametrize(
    "params",
    [
        {}, {"endpoint_id": ""}, {"endpoint_id": "noslash"}, {"endpoint_id": ",".join(f"me/a{n}" for n in range(51))},
        {"limit": 0}, {"limit": 101}, {"limit": "x"}, {"status": "failed"}, {"request_id": "1"}, {"expand": "cost"},
        {"sort_by": "size"}, {"start": "yesterday"}, {"start": "2025-02-01", "end": "2025-01-01"},
        {"start": "2025-13-01"},
    ],
)  # fmt: skip
async def test_bad_parameters_are_answered_with_400(me: Account, params: dict[str, Any]) -> None:
    given = params if "endpoint_id" in params or not params else {"endpoint_id": f"{me.name}/app", **params}
    answer = await me.api.get(LIST, params=given)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error"), answer.text
