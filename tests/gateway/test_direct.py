from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.gateway.rig import Rig, rig
from varvel.ids import is_uuid

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_call_is_answered_by_the_app_and_recorded_before_its_answer(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/echo/sub?a=1&fal_x=2", json={"n": 1}, headers={"x-custom": "yes"})
    seen = answer.json()
    assert (answer.status_code, seen["path"], seen["query"], seen["asked"]) == (200, "/sub", "a=1", {"n": 1})
    assert seen["headers"]["x-custom"] == "yes"
    assert seen["client"] == "127.0.0.1"
    request_id = answer.headers["x-fal-request-id"]
    assert is_uuid(request_id)
    assert seen["headers"]["x-fal-request-id"] == request_id
    assert seen["headers"]["x-fal-caller-user-id"] == "me"
    assert seen["headers"]["x-fal-endpoint"] == "/sub"
    assert "authorization" not in seen["headers"]
    [row] = await shared.rows("requests", request_id)
    assert (row["kind"], row["endpoint_id"], row["status_code"], row["caller"]) == ("sync", "me/echo/sub", 200, "me")
    assert row["runner_id"] == answer.headers["x-fal-served-from"]
    assert row["sent_at"] <= row["started_at"] <= row["ended_at"]
    [payload] = await shared.rows("payloads", request_id)
    assert json.loads(payload["input"]) == {"n": 1}
    assert json.loads(payload["output"]) == seen
    assert len(await shared.rows("billing", request_id)) == 1


async def test_units_of_the_app_are_billed_and_shown(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/echo", json={"headers": {"x-fal-billable-units": "4"}})
    assert answer.headers["x-fal-billable-units"] == "4"
    [bill] = await shared.rows("billing", answer.headers["x-fal-request-id"])
    assert (bill["billable_units"], bill["unit"]) == (4, "units")


async def test_payloads_are_not_kept_when_the_caller_says_so(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/echo", json={}, headers={"X-Fal-Store-IO": "0"})
    assert await shared.rows("requests", answer.headers["x-fal-request-id"])
    assert not await shared.rows("payloads", answer.headers["x-fal-request-id"])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_other_methods_reach_the_app(shared: Rig, method: str) -> None:
    client = await shared.client()
    answer = await client.request(method, "/run/me/echo/sub?prompt=hi")
    assert (answer.json()["method"], answer.json()["query"]) == (method, "prompt=hi")


async def test_a_head_request_has_the_length_and_no_body(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.head("/run/me/echo")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 100


async def test_a_slash_at_the_end_of_a_route_is_not_redirected(shared: Rig) -> None:
    client = await shared.client()
    assert (await client.post("/run/me/echo/sub/", json={})).json()["path"] == "/sub"
    assert (await client.post("/run/me/echo/", json={})).json()["path"] == "/"
    assert (await client.post("/run/me/echo/else/", json={})).json()["path"] == "/else/"


async def test_what_the_app_answers_is_passed_on_whatever_it_is(shared: Rig) -> None:
    client = await shared.client()
    for status in (302, 404, 422, 429, 500):
        answer = await client.post("/run/me/echo", json={"status": status, "headers": {"location": "/x"}})
        assert (answer.status_code, answer.headers["location"]) == (status, "/x")
        assert "x-fal-error-type" not in answer.headers
        assert (await shared.record(answer.headers["x-fal-request-id"]))["status_code"] == status


# Who may


async def test_nobody_learns_of_apps_that_are_not_theirs(shared: Rig) -> None:
    nobody, other, mine = await shared.client(None), await shared.client("other"), await shared.client()
    for prefix in ("run", "queue"):
        for app in ("echo", "nothing"):
            answer = await nobody.post(f"/{prefix}/me/{app}", json={})
            assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthorized")
            answer = await other.post(f"/{prefix}/me/{app}", json={})
            assert answer.status_code == 404
            assert answer.json() == {"detail": f"Application 'me/{app}' not found", "error_type": "not_found"}
            assert answer.headers["x-fal-error-type"] == "not_found"
            assert is_uuid(answer.headers["x-fal-request-id"])
        assert (await mine.post(f"/{prefix}/me/nothing", json={})).status_code == 404


async def test_a_wrong_key_is_refused_even_by_a_public_app(shared: Rig) -> None:
    client = await shared.client(None)
    for app in ("echo", "open"):
        answer = await client.post(f"/run/me/{app}", json={}, headers={"Authorization": "Key nobody:wrong"})
        assert answer.status_code == 401


async def test_a_public_app_needs_no_key_and_may_have_its_own(shared: Rig) -> None:
    client = await shared.client(None)
    answer = await client.post("/run/me/open", json={}, headers={"Authorization": "Bearer of-the-app"})
    assert answer.status_code == 200
    assert answer.json()["headers"]["authorization"] == "Bearer of-the-app"
    assert answer.json()["headers"]["x-fal-caller-user-id"] == ""


async def test_a_shared_app_takes_any_key_and_does_not_learn_who_it_is(shared: Rig) -> None:
    assert (await (await shared.client(None)).post("/run/me/common", json={})).status_code == 401
    answer = await (await shared.client("other")).post("/run/me/common", json={})
    caller = answer.json()["headers"]["x-fal-caller-user-id"]
    assert len(caller) == 32
    assert caller != "other"
    assert (await shared.record(answer.headers["x-fal-request-id"]))["caller"] == "other"


async def test_paths_that_name_no_app_are_not_found(shared: Rig) -> None:
    client = await shared.client()
    for path in ("/run", "/run/", "/run/me", "/queue/me/", "/storage/x", "/files/x/y/z", "/.well-known/x"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["x-fal-error-type"]) == (404, "not_found"), path


# Bodies


async def _pieces(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"z" * size


async def test_a_large_body_streams_to_the_app(shared: Rig) -> None:
    client = await shared.client()
    assert (await client.post("/run/me/echo/size", content=b"z" * 900_000)).json() == {"size": 900_000}
    assert (await client.post("/run/me/echo/size", content=_pieces(90, 10_000))).json() == {"size": 900_000}


async def test_a_body_over_the_limit_is_refused_whether_announced_or_not(shared: Rig) -> None:
    client = await shared.client()
    for body in (b"z" * 1_100_000, _pieces(110, 10_000)):
        answer = await client.post("/run/me/echo/size", content=body)
        assert (answer.status_code, answer.json()["error_type"]) == (413, "bad_request")
    assert (await client.post("/run/me/echo", json={})).status_code == 200


async def test_a_large_answer_streams_back_whole(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/echo", json={"answer": 700_000})
    assert len(answer.content) == 700_000
    assert answer.headers["content-length"] == "700000"
    assert await shared.rows("requests", answer.headers["x-fal-request-id"])


# What goes wrong


@pytest.mark.parametrize("value", ["soon", "0.01", "-1"])
async def test_a_bad_start_timeout_is_a_bad_request(shared: Rig, value: str) -> None:
    client = await shared.client()
    for prefix in ("run", "queue"):
        answer = await client.post(f"/{prefix}/me/echo", json={}, headers={"X-Fal-Request-Timeout": value})
        assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


async def test_an_app_that_exits_in_a_request_is_a_runner_that_disconnected(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/open", json={"exit": True})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
    assert answer.headers["x-fal-needs-retry"] == "1"
    record = await shared.record(answer.headers["x-fal-request-id"])
    assert (record["status_code"], record["error_type"]) == (503, "runner_disconnected")
    [bill] = await shared.rows("billing", answer.headers["x-fal-request-id"])
    assert bill["billable_units"] == 0
    assert (await client.post("/run/me/open", json={})).status_code == 200


@pytest.mark.parametrize(("announce", "send"), [(10, 5), (10, 50)])
async def test_an_app_that_answers_other_than_it_announced_is_incomplete(shared: Rig, announce: int, send: int) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/common", json={"announce": announce, "send": send})
    assert (answer.status_code, answer.json()["error_type"]) == (502, "runner_incomplete_response")
    assert (await client.post("/run/me/common", json={})).status_code == 200


async def test_response_headers_over_the_limit_fail_the_response(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/common", json={"headers": {"x-long": "h" * 17_000}})
    assert (answer.status_code, answer.json()["error_type"]) == (502, "runner_incomplete_response")
    fine = await client.post("/run/me/common", json={"headers": {"x-long": "h" * 15_000}})
    assert len(fine.headers["x-long"]) == 15_000


async def test_headers_over_the_limit_are_not_the_runners_end_and_not_worth_another_try(shared: Rig) -> None:
    client = await shared.client()
    runner = (await client.post("/run/me/common", json={})).headers["x-fal-served-from"]
    failed = await client.post("/run/me/common", json={"headers": {"x-long": "h" * 17_000}})
    assert "x-fal-needs-retry" not in failed.headers
    after = await client.post("/run/me/common", json={})
    assert failed.headers["x-fal-served-from"] == after.headers["x-fal-served-from"] == runner


@pytest.mark.parametrize(
    ("status", "own", "needed"),
    [(503, None, "1"), (504, None, "1"), (503, "0", "0"), (500, None, None), (500, "1", "1"), (429, None, None)],
)
async def test_a_failure_that_may_pass_says_that_it_may(
    shared: Rig, status: int, own: str | None, needed: str | None
) -> None:
    client = await shared.client()
    headers = {"x-fal-needs-retry": own} if own else {}
    answer = await client.post("/run/me/common", json={"status": status, "headers": headers})
    assert (answer.status_code, answer.headers.get("x-fal-needs-retry")) == (status, needed)
    assert answer.headers.get_list("x-fal-needs-retry") == ([needed] if needed else [])


async def test_an_app_over_its_time_limit_is_stopped_and_answers_504(shared: Rig) -> None:
    client = await shared.client()
    await client.post("/run/me/hasty", json={})
    answer = await client.post("/run/me/hasty", json={"sleep": 5})
    assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
    assert "x-fal-request-timeout-type" not in answer.headers
    assert answer.headers["x-fal-needs-retry"] == "1"
    assert (await shared.record(answer.headers["x-fal-request-id"]))["duration"] < 2


async def test_a_call_that_does_not_start_in_its_time_answers_504_of_the_user(tmp_path: Path) -> None:
    async with rig(tmp_path) as own:
        own.apps.add("narrow", "app", max_multiplexing=1, max_concurrency=1)
        client = await own.client()
        await client.post("/run/me/narrow", json={})
        busy = asyncio.create_task(client.post("/run/me/narrow", json={"sleep": 1}))
        await asyncio.sleep(0.1)
        answer = await client.post("/run/me/narrow", json={}, headers={"X-Fal-Request-Start-Timeout": "0.2"})
        assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
        assert answer.headers["x-fal-request-timeout-type"] == "user"
        assert (await busy).status_code == 200


async def test_an_app_that_cannot_start_says_so(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/broken", json={})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_scheduling_failure")
    assert "missing" in answer.json()["detail"]


async def test_what_an_app_printed_before_it_failed_is_for_its_owner_only(shared: Rig) -> None:
    owner, stranger = await shared.client(), await shared.client("other")
    told = (await owner.post("/run/me/talkative", json={})).json()
    assert "swordfish" in told["detail"]
    assert "no model file" in told["detail"]
    answer = await stranger.post("/run/me/talkative", json={})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_scheduling_failure")
    assert answer.json()["detail"] == "The app failed to start (exit status 1)"
    with pytest.raises(InvalidStatus) as refused:
        await connect(
            f"{shared.url.replace('http', 'ws')}/run/me/talkative/realtime",
            additional_headers={"Authorization": f"Key {shared.keys['other']}"},
        )
    assert b"swordfish" not in refused.value.response.body


async def test_an_app_that_never_becomes_ready_answers_504(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/run/me/never", json={})
    assert (answer.status_code, answer.json()["error_type"]) == (504, "startup_timeout")
    record = await shared.record(answer.headers["x-fal-request-id"])
    assert (record["status_code"], record["runner_id"]) == (504, "")


async def test_a_client_that_goes_away_has_the_app_asked_to_cancel(shared: Rig) -> None:
    client = await shared.client()
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/run/me/echo/sub", json={"until_cancelled": True, "print": "started"}, timeout=0.6)
    for _ in range(200):
        asked = [row for row in shared.lines.rows if row.message == "asked to cancel"]
        if asked and await shared.rows("requests", asked[-1].request_id):
            break
        await asyncio.sleep(0.02)
    row = await shared.record(asked[-1].request_id)
    assert (row["status_code"], row["error_type"]) == (499, "client_disconnected")
    assert asked[-1].endpoint == "/sub/cancel"
    assert shared.pool.in_flight(shared.apps.apps()[0].app) == 0


async def test_a_client_that_goes_away_after_a_large_body_is_noticed_too(shared: Rig) -> None:
    client = await shared.client()
    before = len(shared.lines.rows)
    asking = {"until_cancelled": True, "fill": "x" * 200_000}
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/run/me/echo/sub", json=asking, timeout=0.8)
    for _ in range(200):
        asked = [row for row in shared.lines.rows[before:] if row.message == "asked to cancel"]
        if asked and await shared.rows("requests", asked[0].request_id):
            break
        await asyncio.sleep(0.02)
    assert (await shared.record(asked[0].request_id))["error_type"] == "client_disconnected"


async def test_a_full_disk_is_said_and_heals(shared: Rig) -> None:
    client = await shared.client()
    pages = await shared.database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await shared.database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    try:
        answer = await client.post("/run/me/echo", json={"fill": "x" * 50_000})
        assert (answer.status_code, answer.json()["error_type"]) == (507, "internal_error")
        queued = await client.post("/queue/me/echo", json={"fill": "x" * 50_000})
        assert queued.status_code == 507
    finally:
        await shared.database.write(lambda db: db.execute("PRAGMA max_page_count = 1073741823").fetchone())
    assert (await client.post("/run/me/echo", json={})).status_code == 200
