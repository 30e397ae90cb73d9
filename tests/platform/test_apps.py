"""Apps, their queue, and their history, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.watching import Watched, watching

from varvel.apps.model import AppId
from varvel.ids import iso, now, uuid7
from varvel.telemetry.model import EventRow, RunnerRow

pytestmark = pytest.mark.asyncio(loop_scope="module")
MINUTE = 60_000_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One server for the whole file; each test has owners of its own."""
    async with watching(tmp_path_factory.mktemp("apps")) as made:
        yield made


async def body(client: httpx.AsyncClient, path: str, **params: Any) -> dict[str, Any]:
    answer = await client.get(f"/serverless/apps{path}", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_list_shows_the_callers_apps_of_one_environment(watched: Watched) -> None:
    me, you = await watched.owner("list-me"), await watched.owner("list-you")
    watched.shelf.put("list-me", "zebra")
    watched.shelf.put("list-me", "ocr", routes=("/", "/turbo"), regions=("home",), machine_type="M")
    watched.shelf.put("list-me", "ocr--staging", environment="staging")
    listed = (await body(me, ""))["apps"]
    assert [app["name"] for app in listed] == ["ocr", "zebra"]
    assert listed[0] == {
        "endpoint_id": "list-me/ocr",
        "name": "ocr",
        "owner": "list-me",
        "environment": "main",
        "machine_type": "M",
        "auth_mode": "private",
        "keep_alive": 60.0,
        "min_concurrency": 0,
        "max_concurrency": 4,
        "request_timeout": 3600.0,
        "startup_timeout": 600.0,
        "valid_regions": ["home"],
        "updated_at": "2026-09-21T14:13:20.000Z",
    }
    assert [app["name"] for app in (await body(me, "", environment="staging"))["apps"]] == ["ocr--staging"]
    assert [app["name"] for app in (await body(me, "", search="OC"))["apps"]] == ["ocr"]
    expanded = (await body(me, "", expand="endpoints", search="ocr"))["apps"]
    assert expanded[0]["endpoints"] == ["list-me/ocr", "list-me/ocr/turbo"]
    assert (await body(you, ""))["apps"] == []
    assert (await me.get("/serverless/apps", params={"expand": "everything"})).status_code == 400


async def test_flushing_empties_the_queue_once_for_each_key(watched: Watched) -> None:
    me = await watched.owner("flush-me")
    app = watched.shelf.put("flush-me", "ocr")
    path = "/serverless/apps/flush-me/ocr/queue"
    for _ in range(3):
        await watched.parts.scheduler.submit(watched.job(app))
    assert (await me.get(path)).json() == {"queue_size": 3}
    key = {"Idempotency-Key": "once"}
    assert (await me.delete(path, headers=key)).status_code == 204
    assert (await me.get(path)).json() == {"queue_size": 0}
    await watched.parts.scheduler.submit(watched.job(app))
    again = await me.delete(path, headers=key)
    assert (again.status_code, again.content) == (204, b"")
    assert (await me.get(path)).json() == {"queue_size": 1}
    watched.shelf.put("flush-me", "other")
    assert (await me.delete("/serverless/apps/flush-me/other/queue", headers=key)).status_code == 400
    assert (await me.delete(path)).status_code == 204
    assert (await me.get(path)).json() == {"queue_size": 0}


OPERATIONS = (
    ("GET", "queue"),
    ("DELETE", "queue"),
    ("GET", "runners/history"),
    ("GET", "events"),
    ("GET", "revisions"),
)


async def test_another_owners_app_and_an_app_that_is_not_there_are_told_apart(watched: Watched) -> None:
    me = await watched.owner("other-me")
    await watched.owner("other-you")
    watched.shelf.put("other-you", "ocr")
    for method, operation in OPERATIONS:
        foreign = await me.request(method, f"/serverless/apps/other-you/ocr/{operation}")
        assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "authorization_error")
        absent = await me.request(method, f"/serverless/apps/other-me/ocr/{operation}")
        assert (absent.status_code, absent.json()["error"]["type"]) == (404, "not_found")
        nobody = await watched.client(None).request(method, f"/serverless/apps/other-you/ocr/{operation}")
        assert nobody.status_code == 401


def interval(app: AppId, since: int, seconds: int, **states: int) -> RunnerRow:
    return RunnerRow(
        row_id=uuid7(),
        owner=app.owner,
        app=str(app),
        environment="main",
        machine_type=str(states.pop("machine", "S")),
        since=since,
        until=since + seconds * 1_000_000,
        seconds=seconds,
        **states,
    )


async def test_runner_history_has_the_most_and_the_mean_of_each_bucket_and_zeros_between(watched: Watched) -> None:
    me = await watched.owner("runners-me")
    app = watched.shelf.put("runners-me", "ocr")
    base = int(now() // 60 - 10) * MINUTE
    watched.parts.ledger.record(
        interval(app, base, 30, idle=1, running=2),
        interval(app, base + MINUTE // 2, 30, running=4),
        # The same time on another type of machine: what runs at one moment adds up.
        RunnerRow(
            **{
                **{name: getattr(row, name) for name in row.__struct_fields__},
                "machine_type": "M",
            }
        )
        if (row := interval(app, base + MINUTE // 3, 40, running=1, setup=1, pending=1, terminating=1))
        else row,
        interval(app, base + 2 * MINUTE, 6, draining=1, running=1),
    )
    await watched.parts.database.write(lambda db: None)
    span = {"start": iso(base / 1e6), "end": iso(base / 1e6 + 240)}
    path = "/runners-me/ocr/runners/history"
    most = await body(me, path, **span)
    assert (most["endpoint_id"], most["timeframe"], most["aggregation"]) == ("runners-me/ocr", "minute", "max")
    counts = [(row["running"], row["idle"], row["pending"], row["draining"]) for row in most["history"]]
    assert counts == [(5, 1, 2, 1), (0, 0, 0, 0), (1, 0, 0, 1), (0, 0, 0, 0)]
    assert most["history"][0]["timestamp"] == iso(base / 1e6)
    mean = await body(me, path, aggregation="avg", **span)
    counts = [(row["running"], row["idle"], row["pending"], row["draining"]) for row in mean["history"]]
    assert counts == [(3.666667, 0.5, 1.333333, 0.666667), (0, 0, 0, 0), (0.1, 0, 0, 0.1), (0, 0, 0, 0)]
    week = await body(me, path, timeframe="week", **span)
    assert [row["running"] for row in week["history"]] == [5]
    day = await body(me, path)
    assert day["timeframe"] == "hour"
    assert len(day["history"]) in (24, 25)
    for wrong in ({"aggregation": "median"}, {"timeframe": "year"}, {"start": iso(now() - 91 * 86400)}):
        assert (await me.get(f"/serverless/apps{path}", params=wrong)).status_code == 400


async def test_events_come_newest_first_by_pages_that_new_ones_do_not_move(watched: Watched) -> None:
    me = await watched.owner("events-me")
    app = watched.shelf.put("events-me", "ocr")
    base = int(now() * 1e6) - 3_600_000_000

    def happen(number: int, category: str, at: int, **details: Any) -> EventRow:
        return EventRow(
            event_id=f"e{number:03}",
            owner=app.owner,
            app=str(app),
            category=category,
            created_at=at,
            payload=json.dumps(details),
        )

    watched.parts.ledger.record(
        # Two at a time: the order of equal times must hold too.
        *(happen(number, "runner_started", base + number // 2, job_id=f"j{number}") for number in range(25)),
        happen(100, "config_changed", base - 5, old_config={"keep_alive": 1}, internal="not for the page"),
    )
    await watched.parts.database.write(lambda db: None)
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    late = 200
    while True:
        page = await body(me, "/events-me/ocr/events", limit=4, **cursor)
        assert page["endpoint_id"] == "events-me/ocr"
        seen += [event["event_id"] for event in page["events"]]
        watched.parts.ledger.record(happen(late, "runner_finished", base + 1000 + late))
        late += 1
        if not page["has_more"]:
            assert page["next_cursor"] is None
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [*(f"e{number:03}" for number in reversed(range(25))), "e100"]
    (changed,) = (await body(me, "/events-me/ocr/events", category=["config_changed"]))["events"]
    assert changed["payload"] == {"old_config": {"keep_alive": 1}}
    assert changed["created_at"] == iso((base - 5) / 1e6)
    second = await body(me, "/events-me/ocr/events", limit=4, cursor="Mg==", category="runner_started,config_changed")
    assert [event["event_id"] for event in second["events"]] == ["e020", "e019", "e018", "e017"]
    for wrong in ({"category": "weather"}, {"limit": 0}, {"limit": 1001}, {"cursor": "bm8"}, {"cursor": "?"}):
        assert (await me.get("/serverless/apps/events-me/ocr/events", params=wrong)).status_code == 400


async def test_revisions_come_newest_first_and_say_which_one_serves(watched: Watched) -> None:
    me = await watched.owner("revs-me")
    for _ in range(5):
        watched.shelf.put("revs-me", "ocr")
    first = await body(me, "/revs-me/ocr/revisions", limit=2)
    assert [entry["revision_id"] for entry in first["revisions"]] == ["ocr-4", "ocr-3"]
    assert [entry["is_current"] for entry in first["revisions"]] == [True, False]
    assert first["revisions"][0]["message"] == "version 4"
    assert first["revisions"][0]["annotations"] is None
    assert (first["revisions"][0]["status"], first["revisions"][0]["deployed_by"]) == ("deployed", "revs-me")
    watched.shelf.put("revs-me", "ocr")
    rest = await body(me, "/revs-me/ocr/revisions", limit=50, cursor=first["next_cursor"])
    assert [entry["revision_id"] for entry in rest["revisions"]] == ["ocr-2", "ocr-1", "ocr-0"]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)
    numbered = await body(me, "/revs-me/ocr/revisions", limit=2, cursor="Mg==")
    assert [entry["revision_id"] for entry in numbered["revisions"]] == ["ocr-3", "ocr-2"]
    assert (await me.get("/serverless/apps/revs-me/ocr/revisions", params={"limit": 101})).status_code == 400
