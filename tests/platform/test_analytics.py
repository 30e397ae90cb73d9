from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import httpx
import jsonschema
import pytest

from varvel.apps.model import AppId
from varvel.platform import analytics_sql as sql
from varvel.platform.analytics import METRIC_NAMES, AnalyticsReply, Reader, wanted
from varvel.platform.buckets import Timeframe, label, window
from varvel.platform.requests_sql import endpoints
from varvel.telemetry.closed import closed_spans
from varvel.telemetry.closing import close_asked, close_days
from varvel.telemetry.model import BillingRow, RequestRow

if TYPE_CHECKING:
    from tests.platform.conftest import Account, Served, Store

ANALYTICS = "/serverless/analytics"
SECOND = 1_000_000
HOUR = 3600


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def row(owner: str, ended: float, **more: Any) -> RequestRow:
    micros = round(ended * SECOND)
    given: dict[str, Any] = {
        "request_id": str(uuid.uuid4()), "owner": owner, "app": f"{owner}/app", "endpoint_id": f"{owner}/app",
        "kind": "sync", "sent_at": micros, "started_at": micros, "ended_at": micros, "status_code": 200,
        "duration": 1.0, "prepare_duration": 0.5, "runner_id": "", "revision": "r", "machine_type": "S",
    }  # fmt: skip
    return RequestRow(**(given | more))


def bill(request: RequestRow) -> BillingRow:
    return BillingRow(
        request_id=request.request_id, owner=request.owner, app=request.app, endpoint_id=request.endpoint_id,
        ended_at=request.ended_at, recorded_at=request.ended_at, billable_units=request.duration, unit="seconds",
        billable_duration=0.0 if request.status_code >= 500 else request.duration, machine_type="S",
    )  # fmt: skip


def many(owner: str, count: int, start: float, end: float, seed: int = 3) -> list[RequestRow]:
    """Requests with log-normal times and a cliff at 12 s, where sketches by rank go wrong."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        status, error = chance.choices(
            [(200, ""), (404, ""), (500, "internal_error"), (504, "request_timeout"), (503, "runner_disconnected"),
             (503, "runner_scheduling_failure")], [80, 8, 4, 3, 3, 2]
        )[0]  # fmt: skip
        rows.append(
            row(
                owner, chance.uniform(start, end), status_code=status, error_type=error,
                endpoint_id=f"{owner}/app{chance.choice(['', '/turbo'])}",
                duration=math.exp(chance.gauss(-1, 1)) + (12 if chance.random() < 0.01 else 0),
                prepare_duration=chance.expovariate(3), cold_boot=chance.choice([0, 0, 0.4, 1 + chance.expovariate(1)]),
            )
        )  # fmt: skip
    return rows


def rank(values: list[float], level: int) -> float | None:
    """Nearest rank: the smallest value that `level` per cent of all do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * level / 100 - 1e-9), 1) - 1] if values else None


def figures(rows: list[RequestRow]) -> dict[str, Any]:
    """What analytics must say of these rows of one endpoint."""
    codes = [request.status_code for request in rows]
    errors = Counter(request.error_type for request in rows)
    columns = {
        "duration": [request.duration for request in rows],
        "prepare_duration": [request.prepare_duration for request in rows],
        "cold_boot_duration": [request.cold_boot for request in rows if request.cold_boot > 1],
    }
    expected: dict[str, Any] = {
        "endpoint_id": rows[0].endpoint_id,
        "request_count": len(rows),
        "success_count": sum(200 <= code < 300 for code in codes),
        "user_error_count": sum(400 <= code < 500 for code in codes),
        "error_count": sum(code >= 500 for code in codes),
        "startup_error_count": errors["runner_scheduling_failure"] + errors["startup_timeout"],
        "connection_error_count": errors["runner_disconnected"],
        "timeout_error_count": errors["request_timeout"],
        "runtime_error_count": errors["internal_error"],
        "cold_boot_count": len(columns["cold_boot_duration"]),
        "total_billable_duration": pytest.approx(sum(r.duration for r in rows if r.status_code < 500)),
    }
    for name in sql.PERCENTILES:
        column, index = sql.PERCENTILES[name]
        value = rank(columns[column], sql.FAMILIES[column].levels[index])
        if value is not None:
            expected[name] = value
    return expected


@pytest.fixture
async def me(served: Served) -> Account:
    return await served.add(f"a{uuid.uuid4().hex[:10]}")


async def get(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(ANALYTICS, params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    jsonschema.validate(body, AnalyticsReply.model_json_schema())
    return body


async def test_every_metric_is_what_the_rows_say(served: Served, me: Account, store: Store) -> None:
    end = served.now
    rows = many(me.name, 700, end - 20 * HOUR, end)
    await store.put("requests", *rows)
    await store.put("billing", *(bill(request) for request in rows))
    every = ["summary", "time_series", *METRIC_NAMES]
    body = await get(me.api, endpoint_id=f"{me.name}/app", expand=every)
    parts = [[r for r in rows if r.endpoint_id == name] for name in (f"{me.name}/app", f"{me.name}/app/turbo")]
    assert body["summary"] == [figures(part) for part in parts]
    for bucket in body["time_series"]:
        first = at(bucket["bucket"])
        inside = [[r for r in part if first <= r.ended_at / SECOND < first + HOUR] for part in parts]
        assert bucket["results"] == [figures(part) for part in inside if part]
    assert sum(one["request_count"] for bucket in body["time_series"] for one in bucket["results"]) == 700


async def test_only_metrics_asked_for_are_given(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", row(me.name, served.now - 5))
    body = await get(me.api, endpoint_id=f"{me.name}/app", expand="summary,p95_duration")
    assert body == {
        "summary": [{"endpoint_id": f"{me.name}/app", "p95_duration": 1.0}], "has_more": False, "next_cursor": None,
    }  # fmt: skip
    standard = await get(me.api, endpoint_id=f"{me.name}/app")
    assert [set(one) for bucket in standard["time_series"] for one in bucket["results"]] == [
        {"endpoint_id", "request_count"}
    ]


async def test_buckets_in_which_nothing_ended_are_there_and_empty(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", row(me.name, at("2025-05-02T10:30Z")), row(me.name, at("2025-05-02T12:59:59.999Z")))
    body = await get(
        me.api, endpoint_id=f"{me.name}/app", start="2025-05-02T09:10Z", end="2025-05-02T13:00Z", timeframe="hour"
    )
    assert [(bucket["bucket"], len(bucket["results"])) for bucket in body["time_series"]] == [
        ("2025-05-02T09:00:00+00:00", 0), ("2025-05-02T10:00:00+00:00", 1),
        ("2025-05-02T11:00:00+00:00", 0), ("2025-05-02T12:00:00+00:00", 1),
    ]  # fmt: skip


async def test_a_percentile_of_nothing_is_left_out(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", row(me.name, served.now - 5))
    body = await get(
        me.api, endpoint_id=f"{me.name}/app", expand="summary,p50_cold_boot_duration,cold_boot_count,p50_duration"
    )
    assert body["summary"] == [{"endpoint_id": f"{me.name}/app", "cold_boot_count": 0, "p50_duration": 1.0}]


CHANGES = [
    ("Europe/Berlin", "2025-03-29", "2025-04-01"),
    ("Europe/Berlin", "2025-10-25", "2025-10-28"),
    ("America/New_York", "2025-03-08", "2025-03-11"),
    ("America/New_York", "2025-11-01", "2025-11-04"),
    ("Australia/Lord_Howe", "2025-04-05", "2025-04-08"),
    ("Australia/Lord_Howe", "2025-10-04", "2025-10-07"),
    ("Asia/Kathmandu", "2025-06-01", "2025-06-04"),
    ("Pacific/Apia", "2011-12-28", "2012-01-02"),
]


@pytest.mark.parametrize(("zone", "start", "end"), CHANGES)
async def test_rows_fall_into_the_buckets_of_the_wall_clock(
    served: Served, me: Account, store: Store, zone: str, start: str, end: str
) -> None:
    tz = ZoneInfo(zone)
    first, last = (datetime.fromisoformat(text).replace(tzinfo=tz).timestamp() for text in (start, end))
    frames: list[Timeframe] = ["hour", "day", "week", "month"]
    cuts = [window(round(first * SECOND), round(last * SECOND), frame, tz, False) for frame in frames]
    every_edge = {edge for cut in cuts for edge in cut.edges()}
    times = {first, last - 0.001} | {
        edge + shift for edge in every_edge for shift in (-0.001, 0, 1800) if first <= edge + shift < last
    }
    await store.put("requests", *(row(me.name, moment) for moment in times))
    chosen = endpoints(me.name, [(AppId(me.name, "app"), "")])
    metrics = wanted(["time_series", "request_count", "p50_duration"])
    for cut in cuts:
        edges = tuple(cut.edges())
        expected = Counter(max(edge for edge in edges if edge <= moment) for moment in times)
        for exact_rows in (0, 10**9):
            got = await Reader(store, exact_rows).read(chosen, sql.Span(cut.start, cut.end, edges), metrics)
            assert {edge: records[0]["request_count"] for edge, records in got.items()} == expected
        body = await get(
            me.api, endpoint_id=f"{me.name}/app", start=start, end=end, timezone=zone, timeframe=cut.timeframe,
            bound_to_timeframe="false",
        )  # fmt: skip
        series = {b["bucket"]: b["results"][0]["request_count"] for b in body["time_series"] if b["results"]}
        assert series == {label(edge, tz): count for edge, count in expected.items()}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
async def test_rollups_agree_with_rows(served: Served, me: Account, store: Store, zone: str) -> None:
    start, end = at("2025-03-01T00:00Z"), at("2025-03-12T00:00Z")
    rows = many(me.name, 6000, start, end)
    # The rollup is made of many inserts, as batches are.
    for index in range(0, len(rows), 1500):
        await store.put("requests", *rows[index : index + 1500])
        await store.put("billing", *(bill(request) for request in rows[index : index + 1500]))
    chosen = endpoints(me.name, [(AppId(me.name, "app"), "")])
    metrics = wanted(["time_series", *METRIC_NAMES])
    cases: list[tuple[Timeframe, bool]] = [("hour", True), ("day", True), ("day", False), ("month", True)]
    for timeframe, bound in cases:
        cut = window(round((start + 777) * SECOND), round((end - 4321) * SECOND), timeframe, ZoneInfo(zone), bound)
        span = sql.Span(cut.start, cut.end, tuple(cut.edges()))
        exact = await Reader(store, 10**9).read(chosen, span, metrics)
        sketched = await Reader(store, 0).read(chosen, span, metrics)
        assert exact.keys() == sketched.keys()
        for edge, records in exact.items():
            for one, other in zip(records, sketched[edge], strict=True):
                assert one.keys() == other.keys()
                for name in sql.COUNTS:
                    assert one[name] == other[name], name
                for name in set(one) & set(sql.PERCENTILES):
                    assert other[name] == pytest.approx(one[name], rel=0.008), name
                assert other[sql.BILLED] == pytest.approx(one[sql.BILLED], rel=1e-9)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
async def test_closed_days_agree_with_rows(served: Served, me: Account, store: Store, zone: str) -> None:
    start, end = at("2024-03-01T00:00Z"), at("2024-03-05T00:00Z")
    rows = many(me.name, 3000, start, end)
    await store.put("requests", *rows)
    await store.put("billing", *(bill(request) for request in rows))
    chosen = endpoints(me.name, [(AppId(me.name, "app"), "")])
    metrics = wanted(["time_series", *METRIC_NAMES])
    frames: list[Timeframe] = ["hour", "day"]
    cuts = [
        window(round((start + 777) * SECOND), round((end + 90_000) * SECOND), frame, ZoneInfo(zone), bound)
        for frame in frames
        for bound in (True, False)
    ]
    spans = [sql.Span(cut.start, cut.end, tuple(cut.edges())) for cut in cuts]
    reader = Reader(store, 10**9)
    by_rows = [await reader.read(chosen, span, metrics) for span in spans]
    closed = await close_days(store, end + 20 * HOUR)
    assert {round(start + day * 24 * HOUR) * SECOND for day in range(4)} <= set(closed)
    by_days = [await reader.read(chosen, span, metrics) for span in spans]
    for ours, theirs in zip(by_days, by_rows, strict=True):
        assert ours.keys() == theirs.keys()
        for edge, records in theirs.items():
            for one, other in zip(records, ours[edge], strict=True):
                assert other.pop(sql.BILLED) == pytest.approx(one.pop(sql.BILLED), rel=1e-9)
                assert one == other
    # What stands in the closed days is what is shown.
    await store.execute(
        "INSERT INTO requests_closed SELECT * REPLACE (version + 1 AS version, 77 AS request_count)"
        " FROM requests_closed WHERE owner = {owner:String}",
        {"owner": me.name},
    )
    hours = await reader.read(chosen, spans[0], metrics)
    assert [one["request_count"] for one in hours[round(start) + 5 * HOUR]] == [77, 77]


async def test_a_row_that_comes_late_counts_at_once_and_its_day_is_closed_again(
    served: Served, me: Account, store: Store
) -> None:
    start = at("2024-02-01T00:00Z")
    await store.put("requests", row(me.name, start + 600), row(me.name, start + 25 * HOUR))
    await close_days(store, start + 72 * HOUR)
    params = {
        "endpoint_id": f"{me.name}/app", "start": "2024-02-01", "end": "2024-02-03", "timeframe": "day",
        "expand": "time_series,request_count,p50_duration",
    }  # fmt: skip

    async def counts() -> list[int]:
        body = await get(me.api, **params)
        return [one["request_count"] for bucket in body["time_series"] for one in bucket["results"]]

    assert await counts() == [1, 1]
    await store.put("requests", row(me.name, start + 700))
    assert await counts() == [2, 1]
    assert await close_days(store, start + 72 * HOUR) == [round(start * SECOND)]
    assert await counts() == [2, 1]
    assert await close_days(store, start + 72 * HOUR) == []


async def test_a_day_is_closed_only_when_it_is_over(served: Served, me: Account, store: Store) -> None:
    start = at("2024-01-10T00:00Z")
    await store.put("requests", row(me.name, start + 600))
    assert round(start * SECOND) not in await close_days(store, start + 24 * HOUR + 60)
    assert round(start * SECOND) in await close_days(store, start + 24 * HOUR + 601)


CALENDARS: list[tuple[str, Timeframe]] = [
    ("Europe/Berlin", "day"), ("Asia/Kathmandu", "day"), ("Asia/Kathmandu", "hour"), ("Europe/Berlin", "week"),
    ("UTC", "week"), ("UTC", "month"), ("Australia/Lord_Howe", "hour"), ("Australia/Lord_Howe", "month"),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "timeframe"), CALENDARS)
async def test_buckets_of_any_calendar_are_closed_when_they_were_asked_for(
    served: Served, me: Account, store: Store, zone: str, timeframe: Timeframe
) -> None:
    # Over the changes of the clock in Berlin (27 October 2019) and on Lord Howe (6 October 2019).
    start, end = at("2019-10-04T00:00Z"), at("2019-11-03T12:00Z")
    rows = many(me.name, 4000, start, end)
    await store.put("requests", *rows)
    await store.put("billing", *(bill(request) for request in rows))
    served.now = end + 5 * 24 * HOUR
    every = ",".join(("time_series", *METRIC_NAMES))
    params: dict[str, Any] = {
        "endpoint_id": f"{me.name}/app", "start": "2019-10-05T07:20Z", "end": "2019-11-03T06:00Z", "timezone": zone,
        "timeframe": timeframe, "expand": every,
    }  # fmt: skip
    for bound in ("true", "false"):
        store.asked.clear()
        by_rows = await get(me.api, **params, bound_to_timeframe=bound)
        ((step, stretches),) = store.asked.items()
        assert step == f"{timeframe} {zone}"
        closed = await close_asked(store, step, stretches, served.now, 99)
        # One that is not over, or goes on after the range, stays open.
        assert len(closed) == len(stretches) - (timeframe == "month" and bound == "true")
        assert await close_asked(store, step, stretches, served.now, 99) == []
        store.asked.clear()
        by_figures = await get(me.api, **params, bound_to_timeframe=bound)
        assert sum(map(len, store.asked.values())) == (timeframe == "month" and bound == "true")
        for ours, theirs in zip(by_figures["time_series"], by_rows["time_series"], strict=True):
            for one, other in zip(ours["results"], theirs["results"], strict=True):
                assert one.pop(sql.BILLED) == pytest.approx(other.pop(sql.BILLED), rel=1e-9)
            assert ours == theirs
        await store.execute("DELETE FROM closed_spans WHERE step = {step:String}", {"step": step})


async def test_closed_buckets_are_read_until_a_row_comes_late_or_their_day_is_dropped(
    served: Served, me: Account, store: Store
) -> None:
    start = at("2018-03-01T00:00Z")
    await store.put("requests", *(row(me.name, start + day * 24 * HOUR + 600) for day in range(6)))
    served.now = start + 30 * 24 * HOUR
    params = {
        "endpoint_id": f"{me.name}/app", "start": "2018-03-01", "end": "2018-03-07", "timezone": "Asia/Tokyo",
        "timeframe": "day", "expand": "time_series,request_count,p50_duration",
    }  # fmt: skip

    async def counts() -> list[int]:
        body = await get(me.api, **params)
        return [sum(one["request_count"] for one in bucket["results"]) for bucket in body["time_series"]]

    async def close() -> int:
        asked, store.asked = store.asked, {}
        return sum([len(await close_asked(store, step, them, served.now, 99)) for step, them in asked.items()])

    await close_days(store, served.now)
    assert await counts() == [1, 1, 1, 1, 1, 1]
    assert await close() == 6
    await store.execute(
        "ALTER TABLE requests_closed UPDATE request_count = 7"
        " WHERE owner = {owner:String} AND step = 'day Asia/Tokyo' SETTINGS mutations_sync = 2",
        {"owner": me.name},
    )
    assert await counts() == [7, 7, 7, 7, 7, 7]
    # A UTC day touches two days of Tokyo.
    await store.put("requests", row(me.name, start + 2 * 24 * HOUR + 700))
    assert await counts() == [7, 7, 2, 1, 7, 7]
    assert await close() == 2
    assert await counts() == [7, 7, 2, 1, 7, 7]
    await store.execute("ALTER TABLE requests DROP PARTITION ID '20180301'")
    assert await counts() == [0, 1, 2, 1, 7, 7]
    assert await close() == 2
    assert await counts() == [0, 1, 2, 1, 7, 7]
    utc = await get(me.api, **params | {"timezone": "UTC"})
    assert [len(bucket["results"]) for bucket in utc["time_series"]] == [0, 1, 1, 1, 1, 1]


async def test_days_without_requests_do_not_split_a_range(served: Served, me: Account, store: Store) -> None:
    start = at("2017-01-01T00:00Z")
    await store.put("requests", *(row(me.name, start + day * 24 * HOUR + 600) for day in range(0, 60, 2)))
    await close_days(store, start + 90 * 24 * HOUR)
    span = sql.Span(round(start) * SECOND, round(start + 60 * 24 * HOUR) * SECOND)
    span = replace(span, edges=tuple(range(round(start), round(start) + 60 * 24 * HOUR, 24 * HOUR)))
    known = await closed_spans(store, span.step, span.start, span.end)
    runs, still_open = span.runs({since: one.until for since, one in known.items()})
    assert (len(runs), still_open) == (1, [])
    chosen = endpoints(me.name, [(AppId(me.name, "app"), "")])
    got = await Reader(store, 0).read(chosen, span, wanted(["time_series", "request_count"]))
    assert sorted(got) == [round(start) + day * 24 * HOUR for day in range(0, 60, 2)]


async def test_the_calendar_that_was_longest_without_a_new_bucket_makes_room(store: Store) -> None:
    day = 24 * HOUR * SECOND
    first = round(at("2016-01-01T00:00Z")) * SECOND
    zones = [f"day Test/{uuid.uuid4().hex}" for _ in range(3)]
    await store.execute("DELETE FROM closed_spans WHERE step != 'day'")
    for number, zone in enumerate(zones):
        assert await close_asked(store, zone, {first: first + day}, first / SECOND + (9 + number) * 24 * HOUR, 2)
    there = await store.select("SELECT DISTINCT step FROM closed_spans WHERE step != 'day' ORDER BY step")
    assert [each["step"] for each in there] == sorted(zones[1:])
    assert await close_asked(store, zones[0], {first: first + day}, first / SECOND + 99 * 24 * HOUR, 0) == []


def test_only_whole_buckets_of_closed_days_are_taken_from_them() -> None:
    hour = HOUR * SECOND
    day = 24 * hour
    edges = tuple(range(20 * 3600, 52 * 3600, 3600))
    span = sql.Span(20 * hour + 1, 52 * hour, edges)
    assert span.step == "hour"
    hours = {at: at + hour for begin in (0, 2 * day) for at in range(begin, begin + day, hour)}
    closed, still_open = span.runs(hours)
    assert [(one.start, one.end) for one in closed] == [(21 * hour, 24 * hour), (48 * hour, 52 * hour)]
    assert [(one.start, one.end) for one in still_open] == [(20 * hour + 1, 21 * hour), (24 * hour, 48 * hour)]
    assert sql.Span(0, 7 * day, (0,)).step == ""
    assert sql.Span(1800 * SECOND, day, (1800,)).step == ""


async def test_pages_of_buckets_join_to_the_whole(served: Served, me: Account, store: Store) -> None:
    rows = many(me.name, 300, served.now - 20 * HOUR, served.now)
    await store.put("requests", *rows)
    params = {"endpoint_id": f"{me.name}/app", "expand": "time_series,summary,request_count,p99_duration"}
    whole = await get(me.api, **params)
    assert not whole["has_more"]
    joined: list[Any] = []
    summary: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(me.api, **params, **cursor, limit=7)
        joined += page["time_series"]
        summary += page["summary"]
        served.now += 600  # "now" moves on while the pages are read
        if not page["has_more"]:
            break
        assert len(page["time_series"]) == 7
        cursor = {"cursor": page["next_cursor"]}
    assert (joined, summary) == (whole["time_series"], whole["summary"])
    served.now -= 600 * math.ceil(len(joined) / 7)
    second = await get(me.api, **params, limit=7, cursor="Mg==")
    assert second["time_series"] == joined[7:14]


async def test_a_summary_is_paged_by_endpoint(served: Served, me: Account, store: Store) -> None:
    routes = [f"{me.name}/app/{letter}" for letter in "abcde"]
    await store.put("requests", *(row(me.name, served.now - 9, endpoint_id=route) for route in routes))
    params = {"endpoint_id": f"{me.name}/app", "expand": "summary,request_count", "limit": 2}
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(me.api, **params, **cursor)
        assert "time_series" not in page
        found += [record["endpoint_id"] for record in page["summary"]]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == routes


async def test_the_timeframe_follows_from_the_range(served: Served, me: Account) -> None:
    async def first(start: str, end: str, **more: str) -> list[str]:
        body = await get(me.api, endpoint_id=f"{me.name}/app", start=start, end=end, **more)
        return [bucket["bucket"] for bucket in body["time_series"]]

    assert len(await first("2025-01-01T00:00Z", "2025-01-01T01:59Z")) == 119
    assert len(await first("2025-01-01T00:00Z", "2025-01-02T23:00Z")) == 47
    assert len(await first("2025-01-01", "2025-03-05")) == 63
    assert (await first("2025-01-01", "2025-04-01"))[0] == "2024-12-30T00:00:00+00:00"
    assert (await first("2025-01-15", "2025-12-01", timezone="Asia/Kathmandu"))[0] == "2025-01-01T00:00:00+05:45"


async def test_a_day_in_a_named_zone_is_that_zones_day(served: Served, me: Account, store: Store) -> None:
    await store.put("requests", row(me.name, at("2025-01-15T04:59:59Z")), row(me.name, at("2025-01-15T05:00Z")))
    body = await get(
        me.api, endpoint_id=f"{me.name}/app", start="2025-01-15", end="2025-01-16", timeframe="day",
        timezone="America/New_York",
    )  # fmt: skip
    assert [(b["bucket"], b["results"][0]["request_count"]) for b in body["time_series"]] == [
        ("2025-01-15T00:00:00-05:00", 1)
    ]


async def test_nobody_sees_the_analytics_of_another(served: Served, me: Account) -> None:
    answer = await me.admin.get(ANALYTICS, params={"endpoint_id": f"{me.name}/app,someone/app"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")


@pytest.mark.parametrize(
    "params",
    [
        {"expand": "request_count"}, {"expand": "time_series"}, {"expand": "time_series,p33_duration"},
        {"timezone": "Mars/Olympus"}, {"timeframe": "year"}, {"bound_to_timeframe": "maybe"}, {"limit": 0},
        {"cursor": "x"}, {"cursor": "OTk5OTk="}, {"start": "2025-02-02", "end": "2025-01-01"},
    ],
)  # fmt: skip
async def test_bad_parameters_are_answered_with_400(me: Account, params: dict[str, Any]) -> None:
    answer = await me.api.get(ANALYTICS, params={"endpoint_id": f"{me.name}/app", **params})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error"), answer.text


def test_a_span_of_whole_hours_needs_no_rows() -> None:
    day = round(at("2025-01-01T00:00Z")) * SECOND
    span = sql.Span(day, day + 24 * HOUR * SECOND, (day // SECOND, day // SECOND + 6 * HOUR))
    assert span.cut_hours() == []
    assert span.has_whole_hours()
    assert replace(span, end=day + 90 * 60 * SECOND, edges=()).cut_hours() == [day + HOUR * SECOND]
    minutes = tuple(day // SECOND + 60 * n for n in range(60))
    assert not sql.Span(day, day + HOUR * SECOND, minutes).has_whole_hours()
