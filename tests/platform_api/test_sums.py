"""What was called, how it ended and what it cost: the same wherever it is asked for, also after the server was killed.

The calls are real ones of every kind. What each caller saw is the first of the sums; the list of requests, analytics
(summary and each timeframe), billing units, the export and the Prometheus page must all come to it, endpoint by
endpoint. The counters of the page begin anew with the process, so that after the kill they are left out.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.platform_api.world import World, finished

APP = "me/sums"
COUNTER = """
# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# max_multiplexing = 8
# keep_alive = 60
# routes = ["/", "/fast", "/deep/down", "/stream"]
# ///
import asyncio, json, os, pathlib


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    wish = json.loads(body or b"{}")
    if wish.get("exit_once"):
        mark = pathlib.Path(os.environ["VARVEL_DATA_DIR"], wish["exit_once"])
        if not mark.exists():
            mark.touch()
            os._exit(3)
    await asyncio.sleep(wish.get("sleep", 0.01))
    headers = [(b"content-type", b"text/event-stream" if wish.get("events") else b"application/json")]
    if "units" in wish:
        headers.append((b"x-fal-billable-units", str(wish["units"]).encode()))
    await send({"type": "http.response.start", "status": wish.get("status", 200), "headers": headers})
    for number in range(wish.get("events", 0)):
        await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % number, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"" if wish.get("events") else b"{}"})
"""
METRICS = ("request_count", "success_count", "user_error_count", "error_count", "total_billable_duration")


@dataclass
class Sums:
    """What an endpoint comes to."""

    statuses: Counter[int] = field(default_factory=Counter)
    units: float = 0.0
    seconds: float = 0.0
    """Billed."""

    def counts(self) -> dict[str, int]:
        """As analytics names them."""
        by_class = Counter(dict.fromkeys((2, 4, 5), 0))
        for status, count in self.statuses.items():
            by_class[status // 100] += count
        return {
            "request_count": sum(self.statuses.values()),
            "success_count": by_class[2],
            "user_error_count": by_class[4],
            "error_count": by_class[5],
        }


@dataclass
class Called:
    """What callers know of their calls to the app."""

    began: float
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    units: float = 0.0
    """Of the calls whose answers set them, as long as they are billed."""
    retried: str = ""
    received: int = 0
    ended: float = 0.0


def direct(client: httpx.Client, called: Called, route: str, wish: dict[str, Any]) -> None:
    answer = client.post(f"/run/{APP}{route}", json=wish)
    assert answer.status_code == wish.get("status", 200), answer.text
    called.statuses[f"{APP}{route}"][answer.status_code] += 1
    called.units += wish.get("units", 0) if answer.status_code < 500 else 0


def queued(client: httpx.Client, called: Called, route: str, wish: dict[str, Any]) -> str:
    answer = client.post(f"/queue/{APP}{route}", json=wish, headers={"x-fal-no-retry": wish.get("no_retry", "0")})
    assert answer.status_code == 200, answer.text
    called.statuses[f"{APP}{route}"][wish.get("status", 200)] += 1
    called.units += wish.get("units", 0) if wish.get("status", 200) < 500 else 0
    return str(answer.json()["request_id"])


def mix(client: httpx.Client, called: Called) -> None:
    """Calls of every kind to three routes."""
    routes = ("", "/fast", "/deep/down")
    jobs = []
    with ThreadPoolExecutor(4) as pool:
        for number in range(24):
            route = routes[number % 3]
            wish: dict[str, Any] = {"status": (200, 201, 422, 500, 404)[number % 5]}
            if number % 2:
                wish["units"] = 1.5
            jobs.append(pool.submit(direct, client, called, route, wish))
        for job in jobs:
            job.result()
    waiting = [
        queued(client, called, routes[n % 3], {"status": (200, 400, 500)[n % 3], "units": 2, "no_retry": "1"})
        for n in range(12)
    ]
    for request_id in waiting:
        finished(client, APP, request_id)
    # Alone, for it takes those with it that its runner works on.
    called.retried = queued(client, called, "", {"exit_once": f"mark-{time.time()}", "units": 4})
    finished(client, APP, called.retried)
    called.received += 24 + 12 + 1
    stream(client, called)
    cancel(client, called)
    leave(client, called)
    called.ended = time.time()


def stream(client: httpx.Client, called: Called) -> None:
    for _ in range(3):
        with client.stream("POST", f"/run/{APP}/stream", json={"events": 4, "units": 0.5}) as answer:
            assert len(answer.read().split(b"\n\n")) == 5
        called.statuses[f"{APP}/stream"][200] += 1
        called.units += 0.5
        called.received += 1


def cancel(client: httpx.Client, called: Called) -> None:
    """One that runs is flooded by eight places; of those behind it one is cancelled and the rest is flushed."""
    running = [queued(client, called, "/fast", {"sleep": 1.0}) for _ in range(8)]
    waiting = [queued(client, called, "/fast", {"status": 499, "sleep": 5}) for _ in range(4)]
    assert client.put(f"/queue/{APP}/requests/{waiting[0]}/cancel").status_code in (200, 202)
    assert client.delete(f"/v1/serverless/apps/{APP}/queue").status_code == 204
    for request_id in (*running, *waiting):
        finished(client, APP, request_id)
    called.received += 12


def leave(client: httpx.Client, called: Called) -> None:
    """The caller goes before the answer comes."""
    with pytest.raises(httpx.ReadTimeout):
        client.post(f"/run/{APP}/fast", json={"sleep": 1.0}, timeout=0.4)
    called.statuses[f"{APP}/fast"][499] += 1
    called.received += 1


@pytest.fixture(scope="module")
def called(world: World, tmp_path_factory: pytest.TempPathFactory) -> Called:
    path = tmp_path_factory.mktemp("sums") / "counter.py"
    path.write_text(COUNTER)
    world.deploy("me", path, "sums")
    made = Called(began=time.time())
    with world.caller("me") as client:
        mix(client, made)
        everything = sum(sum(counts.values()) for counts in made.statuses.values())
        deadline = time.monotonic() + 15
        while len(listed(world)) < everything and time.monotonic() < deadline:
            time.sleep(0.1)
    return made


def ask(world: World, path: str, **params: Any) -> Any:
    with world.client("me") as client:
        answer = client.get(f"/serverless/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.headers["content-type"] == "application/json" else answer.text


def listed(world: World) -> list[dict[str, Any]]:
    """Every item of the list of requests, by small pages."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = ask(world, "requests/by-endpoint", endpoint_id=APP, expand="billing", limit=7, **cursor)
        items += page["items"]
        if not page["has_more"]:
            return items
        cursor = {"cursor": page["next_cursor"]}


def exported(world: World, dataset: str) -> list[dict[str, Any]]:
    text = ask(world, "export", dataset=dataset, format="ndjson", app_id=APP)
    return [json.loads(line) for line in text.splitlines()]


def from_list(world: World) -> dict[str, Sums]:
    sums: dict[str, Sums] = defaultdict(Sums)
    for item in listed(world):
        sums[item["endpoint_id"]].statuses[item["status_code"]] += 1
        sums[item["endpoint_id"]].units += item["billable_units"]
    return dict(sums)


def from_export(world: World) -> dict[str, Sums]:
    sums: dict[str, Sums] = defaultdict(Sums)
    for row in exported(world, "requests"):
        sums[row["endpoint_id"]].statuses[row["status_code"]] += 1
    for row in exported(world, "billing"):
        sums[row["endpoint_id"]].units += row["billable_units"]
        sums[row["endpoint_id"]].seconds += row["billable_duration"]
    return dict(sums)


def from_analytics(world: World, *, summary: bool, timeframe: str) -> dict[str, dict[str, float]]:
    """Each metric by endpoint, summed over the buckets."""
    expand = ("summary" if summary else "time_series", *METRICS)
    reply = ask(world, "analytics", endpoint_id=APP, expand=",".join(expand), timeframe=timeframe)
    records = reply["summary"] if summary else [each for bucket in reply["time_series"] for each in bucket["results"]]
    sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(METRICS, 0.0))
    for record in records:
        for name in METRICS:
            sums[record["endpoint_id"]][name] += record[name]
    return dict(sums)


def from_page(world: World) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples of the app on the Prometheus page: name -> values of (status or le) -> sum."""
    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))
    for line in ask(world, "metrics").splitlines():
        if sample := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            if labels.pop("application", None) == APP:
                key = tuple(labels[name] for name in ("status", "le") if name in labels)
                found[sample[1]][key] += float(sample[3])
    return found


def hold(world: World, called: Called) -> dict[str, Sums]:
    """List, analytics and export say the same of each endpoint, and what the callers saw."""
    truth, copy = from_list(world), from_export(world)
    assert {name: sums.statuses for name, sums in truth.items()} == called.statuses
    assert {name: sums.statuses for name, sums in copy.items()} == called.statuses
    for name, sums in truth.items():
        assert copy[name].units == pytest.approx(sums.units, abs=1e-9)
    for summary, timeframe in ((True, "hour"), (False, "minute"), (False, "hour"), (False, "day"), (False, "month")):
        analytics = from_analytics(world, summary=summary, timeframe=timeframe)
        assert set(analytics) == set(truth)
        for name, metrics in analytics.items():
            assert metrics.pop("total_billable_duration") == pytest.approx(copy[name].seconds, abs=1e-6)
            assert metrics == truth[name].counts()
    return copy


def test_every_place_comes_to_what_the_callers_saw(world: World, called: Called) -> None:
    hold(world, called)
    items = listed(world)
    assert len({item["request_id"] for item in items}) == len(items)
    fixed = [row for row in exported(world, "billing") if row["unit"] == "units"]
    assert sum(row["billable_units"] for row in fixed) == pytest.approx(called.units)
    assert all(item["billable_units"] == 0 for item in items if item["status_code"] >= 500)
    attempts = {row["request_id"]: row["attempts"] for row in exported(world, "requests")}
    assert attempts[called.retried] == 2
    kinds = Counter(row["kind"] for row in exported(world, "requests"))
    assert kinds == {"sync": 25, "queue": 25, "stream": 3}


def test_prometheus_counts_the_same(world: World, called: Called) -> None:
    page = from_page(world)
    statuses: Counter[int] = sum(called.statuses.values(), Counter())
    everything = sum(statuses.values())
    assert called.received == everything
    by_status = {(str(status),): count for status, count in statuses.items()}
    assert page["varvel_requests_received_total"] == {(): everything}
    assert page["varvel_requests_completed_total"] == by_status
    assert page["varvel_request_duration_seconds_count"] == {(): everything}
    assert page["varvel_request_duration_seconds_bucket"]["+Inf",] == everything
    assert page["fal_app_queue_size"] == page["fal_app_concurrent_requests"] == {(): 0}
    # The gauges are of the last minute; on a slow machine some of the calls are older by now.
    gauged = page["fal_app_requests_completed"]
    assert set(gauged) <= set(by_status)
    if time.time() - called.began < 55:
        assert gauged == by_status
        assert page["fal_app_requests_received"] == {(): everything}
        assert page["fal_app_request_latency"]["+Inf",] == everything


def billed_seconds(world: World) -> tuple[float, float]:
    """Of the app: by the usage operation, and by the rows of runner states that the export has."""
    states = ("setup", "idle", "running", "draining", "terminating")
    for _ in range(20):
        usage = [ask(world, "usage", app="sums", expand="summary", bound_to_timeframe="false")]
        rows = exported(world, "usage")
        usage.append(ask(world, "usage", app="sums", expand="summary", bound_to_timeframe="false"))
        before, after = (sum(line["quantity"] for line in each["summary"]) for each in usage)
        if before == after:  # no row came meanwhile
            return before, sum(row[f"{state}_seconds"] for row in rows for state in states)
        time.sleep(0.1)
    raise AssertionError("usage changes all the time")


def charged(world: World) -> float:
    """Seconds of the app in the FOCUS report, which may be of a moment later than what was read before."""
    with world.client("me") as client:
        answer = client.get("/account/focus", params={"source": "estimate"})
    assert answer.status_code == 200, answer.text
    rows = [row for row in csv.DictReader(io.StringIO(answer.text)) if row["ResourceId"] == APP]
    assert all(row["PricingQuantity"] == row["ConsumedQuantity"] for row in rows)
    return sum(float(row["PricingQuantity"]) for row in rows)


def test_usage_is_the_sum_of_the_runners_seconds(world: World, called: Called) -> None:
    deadline = time.monotonic() + 15
    while (usage_and_rows := billed_seconds(world))[0] < 1.0 and time.monotonic() < deadline:
        time.sleep(0.2)  # seconds of runners are written down at each tick, here each second
    usage, rows = usage_and_rows
    assert usage == pytest.approx(rows, abs=1e-3)
    assert usage <= charged(world) <= time.time() - called.began + 15, "what a bill is made of is the same"
    assert 1.0 <= usage <= time.time() - called.began + 15, "one runner at a time, and one that crashed"


def test_the_sums_are_the_same_after_the_server_was_killed(world: World, called: Called) -> None:
    before = hold(world, called)
    world.server.kill()
    world.server.start()
    after = hold(world, called)
    assert after == before
    usage, rows = billed_seconds(world)
    assert usage == pytest.approx(rows, abs=1e-3)
    # Counters are of the process: what Prometheus calls a reset.
    assert from_page(world)["varvel_requests_completed_total"] == {}
