"""Whole ranges as files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pyarrow.parquet
import pytest
import pytest_asyncio
from tests.watching import Watched, watching

from varvel.ids import iso, now, uuid7
from varvel.telemetry.model import BillingRow, RequestRow, RunnerRow

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One server for the whole file; each test has owners of its own."""
    async with watching(tmp_path_factory.mktemp("export")) as made:
        yield made


async def record(watched: Watched, owner: str, count: int) -> list[str]:
    """Finished requests of two apps, a second apart, the last one now."""
    end = int(now() * 1e6)
    found = []
    for number in range(count):
        at = end - (count - number) * 1_000_000
        request_id = uuid7()
        app = f"{owner}/{'ab'[number % 2]}"
        request = RequestRow(
            request_id=request_id,
            owner=owner,
            app=app,
            endpoint_id=app,
            kind="sync",
            sent_at=at - 500_000,
            started_at=at - 250_000,
            ended_at=at,
            status_code=200 if number % 3 else 503,
            duration=0.25,
            prepare_duration=0.25,
        )
        billing = BillingRow(
            request_id=request_id,
            owner=owner,
            app=app,
            endpoint_id=app,
            ended_at=at,
            recorded_at=at,
            billable_units=2.5,
            billable_duration=0.25,
            machine_type="S",
            unit="seconds",
        )
        found.append(request_id)
        await watched.parts.ledger.record_call(request, None, billing)
    return found


async def export(client: httpx.AsyncClient, **params: Any) -> httpx.Response:
    answer = await client.get("/serverless/export", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return answer


async def test_requests_come_in_every_format_with_the_same_rows(watched: Watched) -> None:
    me = await watched.owner("formats")
    wanted = sorted(await record(watched, "formats", 40))
    lines = [json.loads(line) for line in (await export(me, dataset="requests", format="ndjson")).text.splitlines()]
    assert sorted(line["request_id"] for line in lines) == wanted
    assert {line["status"] for line in lines} == {"success", "error"}
    assert lines[0]["ended_at"].endswith("Z")
    table = list(csv.DictReader(io.StringIO((await export(me, dataset="requests", format="csv")).text)))
    assert [row["request_id"] for row in table] == [line["request_id"] for line in lines]
    assert set(table[0]) == set(lines[0])
    parquet = pyarrow.parquet.read_table(io.BytesIO((await export(me, dataset="requests")).content))
    assert parquet.column("request_id").to_pylist() == [line["request_id"] for line in lines]
    assert str(parquet.schema.field("ended_at").type).startswith("timestamp")
    assert parquet.column("app").to_pylist()[0] == lines[0]["app"]


async def test_billing_events_join_their_requests(watched: Watched) -> None:
    me = await watched.owner("billed")
    wanted = await record(watched, "billed", 10)
    lines = [json.loads(line) for line in (await export(me, dataset="billing", format="ndjson")).text.splitlines()]
    assert sorted(line["request_id"] for line in lines) == sorted(wanted)
    assert sum(line["billable_units"] for line in lines) == 25.0
    one = await export(me, dataset="billing", format="ndjson", app_id="billed/a")
    assert {json.loads(line)["app"] for line in one.text.splitlines()} == {"billed/a"}


async def test_log_lines_come_in_order_and_only_of_the_range(watched: Watched) -> None:
    me = await watched.owner("lines")
    for number in range(20):
        watched.say("lines/a", f'line {number} "quoted", with\nbreaks')
    rows = list(csv.DictReader(io.StringIO((await export(me, dataset="logs", format="csv")).text)))
    assert [row["message"] for row in rows] == [f'line {number} "quoted", with\nbreaks' for number in range(20)]
    assert json.loads(rows[0]["labels"])["fal_job_id"] == "job-1"
    none = await export(me, dataset="logs", format="ndjson", start=iso(now() + 60), end=iso(now() + 120))
    assert none.content == b""
    empty = await export(me, dataset="logs", start=iso(now() + 60), end=iso(now() + 120))
    assert pyarrow.parquet.read_table(io.BytesIO(empty.content)).num_rows == 0


async def test_usage_is_runner_seconds_and_for_admin_keys(watched: Watched) -> None:
    me = await watched.owner("usage")
    at = int(now() * 1e6) - 60_000_000
    row = RunnerRow(
        row_id=uuid7(),
        owner="usage",
        app="usage/a",
        environment="main",
        machine_type="S",
        since=at,
        until=at + 15_000_000,
        seconds=15.0,
        idle=2,
        running=1,
        gpus=4,
    )
    watched.parts.ledger.record(row)
    await watched.parts.database.write(lambda db: None)
    (line,) = [json.loads(line) for line in (await export(me, dataset="usage", format="ndjson")).text.splitlines()]
    assert (line["idle_seconds"], line["running_seconds"], line["machine_type"]) == (30.0, 15.0, "S")
    assert line["gpus"] == 4
    api = watched.client((await watched.parts.keys.create("usage", "reader")).key)
    assert (await api.get("/serverless/export", params={"dataset": "usage"})).status_code == 403


async def test_what_cannot_be_exported_is_refused(watched: Watched) -> None:
    me = await watched.owner("refused")
    for params, status in (
        ({}, 400),
        ({"dataset": "secrets"}, 400),
        ({"dataset": "logs", "format": "xlsx"}, 400),
        ({"dataset": "logs", "start": "later"}, 400),
        ({"dataset": "logs", "app_id": "billed/a"}, 403),
    ):
        assert (await me.get("/serverless/export", params=params)).status_code == status, params
    assert (await watched.client(None).get("/serverless/export", params={"dataset": "logs"})).status_code == 401


async def test_exports_have_places_and_give_them_back_when_the_reader_goes(watched: Watched) -> None:
    me = await watched.owner("places")
    for number in range(12_000):
        watched.say("places/a", f"line {number} " + "x" * 1500)
    await watched.telemetry.barrier()
    url = "/serverless/export"
    params = {"dataset": "logs", "format": "ndjson"}
    async with me.stream("GET", url, params=params) as one, me.stream("GET", url, params=params) as two:
        assert (one.status_code, two.status_code) == (200, 200)
        third = await me.get(url, params=params)
        assert third.status_code == 429
        assert third.headers["retry-after"]
    async with asyncio.timeout(10):
        while (answer := await me.get(url, params=params)).status_code == 429:
            await asyncio.sleep(0.05)
    assert answer.text.count("\n") == 12_000
