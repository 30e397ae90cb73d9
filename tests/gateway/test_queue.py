from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.rig import Rig, rig
from varvel.ids import is_uuid, uuid7

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _done(client: httpx.AsyncClient, submitted: dict[str, Any], logs: str = "") -> dict[str, Any]:
    for _ in range(400):
        answer = await client.get(submitted["status_url"] + logs)
        if answer.status_code == 200:
            return dict(answer.json())
        assert answer.status_code == 202
        await asyncio.sleep(0.02)
    raise AssertionError("the request did not end")


async def _submit(client: httpx.AsyncClient, path: str, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = await client.post(f"/queue/{path}", json=body, **options)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_submit_gives_urls_of_the_app_only(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo/sub?fal_max_queue_length=9&a=1", {"n": 1})
    base = f"{shared.url}/queue/me/echo/requests/{submitted['request_id']}"
    assert is_uuid(submitted["request_id"])
    assert submitted == {
        "status": "IN_QUEUE",
        "request_id": submitted["request_id"],
        "gateway_request_id": submitted["request_id"],
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "queue_position": 0,
    }
    await _done(client, submitted)
    seen = (await client.get(base)).json()
    assert (seen["path"], seen["query"], seen["asked"]) == ("/sub", "a=1", {"n": 1})
    row = await shared.record(submitted["request_id"])
    assert (row["kind"], row["endpoint_id"]) == ("queue", "me/echo/sub")


async def test_the_namespace_is_kept_in_the_urls(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "workflows/me/echo", {})
    assert "/queue/workflows/me/echo/requests/" in submitted["status_url"]
    await _done(client, submitted)


async def test_a_status_has_the_keys_that_clients_need(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"print": "a line", "sleep": 0.4})
    seen: dict[str, dict[str, Any]] = {}
    while "COMPLETED" not in seen:
        answer = await client.get(submitted["status_url"], params={"logs": "0"})
        seen[answer.json()["status"]] = answer.json()
        assert answer.status_code == (200 if answer.json()["status"] == "COMPLETED" else 202)
        assert answer.headers["x-fal-request-id"] == submitted["request_id"]
    for status in seen.values():
        assert status["logs"] is None
        assert status["response_url"] == submitted["response_url"]
        assert status["request_id"] == submitted["request_id"]
    assert "queue_position" not in seen["IN_PROGRESS"]
    assert seen["IN_PROGRESS"]["metrics"] == {}
    assert 0.4 <= seen["COMPLETED"]["metrics"]["inference_time"] < 2
    assert "error" not in seen["COMPLETED"]


@pytest.mark.parametrize("logs", ["?logs=1", "?logs=true", "/?logs=1"])
async def test_logs_come_when_asked_for_in_any_form(shared: Rig, logs: str) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"print": "a line"})
    status = await _done(client, submitted, logs)
    assert [line["message"] for line in status["logs"]] == ["a line"]
    assert set(status["logs"][0]) == {"timestamp", "message", "level", "source"}
    assert (status["logs"][0]["level"], status["logs"][0]["source"]) == ("STDOUT", "USER")


async def test_every_form_of_the_urls_is_understood(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"n": 2})
    await _done(client, submitted)
    request_id = submitted["request_id"]
    for form in ("", "/", "/response", "/response/"):
        for app in ("me/echo", "me/echo/sub", "me/echo/sub/deeper", "workflows/me/echo"):
            answer = await client.get(f"/queue/{app}/requests/{request_id}{form}")
            assert (answer.status_code, answer.json()["asked"]) == (200, {"n": 2})


async def test_a_result_is_what_the_app_answered(shared: Rig) -> None:
    client = await shared.client()
    body = {"status": 422, "headers": {"x-own": "1", "x-fal-billable-units": "0"}}
    submitted = await _submit(client, "me/echo", body)
    status = await _done(client, submitted)
    assert status["error"] == "Invalid status code: 422"
    answer = await client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()["asked"], answer.headers["x-own"]) == (422, body, "1")
    assert answer.headers["x-fal-request-id"] == submitted["request_id"]
    [bill] = await shared.rows("billing", submitted["request_id"])
    assert (bill["billable_units"], bill["unit"]) == (0, "units")


async def test_large_bodies_go_through_the_queue_in_both_directions(shared: Rig) -> None:
    client = await shared.client()
    answer = await client.post("/queue/me/echo/size", content=b"z" * 900_000)
    await _done(client, answer.json())
    assert (await client.get(answer.json()["response_url"])).json() == {"size": 900_000}
    submitted = await _submit(client, "me/echo", {"answer": 800_000})
    await _done(client, submitted)
    result = await client.get(submitted["response_url"])
    assert (len(result.content), result.headers["content-length"]) == (800_000, "800000")


async def test_an_oversized_submit_is_refused_and_leaves_no_file(shared: Rig) -> None:
    client = await shared.client()
    before = sorted((shared.settings.data / "spill").glob("*"))

    async def pieces() -> Any:
        for _ in range(110):
            yield b"z" * 10_000

    answer = await client.post("/queue/me/echo", content=pieces())
    assert answer.status_code == 413
    assert sorted((shared.settings.data / "spill").glob("*")) == before


async def test_a_result_before_the_end_says_so_in_the_words_that_clients_compare(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"sleep": 0.3})
    answer = await client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()) == (400, {"detail": "Request is still in progress"})
    await _done(client, submitted)


async def test_a_finished_request_cannot_be_cancelled(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {})
    await _done(client, submitted)
    answer = await client.put(submitted["cancel_url"])
    assert (answer.status_code, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})


@pytest.mark.parametrize("request_id", ["nothing", "42", "../x", "00000000-0000-0000-0000-00000000000g"])
async def test_an_id_that_is_none_is_not_found(shared: Rig, request_id: str) -> None:
    client = await shared.client()
    for method, rest in (("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")):
        url = f"/queue/me/echo/requests/{request_id.replace('/', '%2F')}{rest}"
        answer = await client.request(method, url)
        assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})


async def test_an_unknown_id_is_not_found(shared: Rig) -> None:
    url = f"requests/{uuid7()}"
    for client, app, status in (
        (await shared.client(), "me/echo", 404),
        (await shared.client(None), "me/open", 404),
        (await shared.client(None), "me/echo", 401),
        (await shared.client(), "me/nothing", 404),
    ):
        for method, rest in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel")):
            assert (await client.request(method, f"/queue/{app}/{url}{rest}")).status_code == status


async def test_a_request_is_seen_by_its_submitter_and_the_owner_only(shared: Rig) -> None:
    mine, other, nobody = await shared.client(), await shared.client("other"), await shared.client(None)
    theirs = await _submit(other, "me/common", {})
    await _done(other, theirs)
    assert (await mine.get(theirs["response_url"])).status_code == 200
    assert (await nobody.get(theirs["response_url"])).status_code == 401
    ours = await _submit(mine, "me/common", {})
    await _done(mine, ours)
    for url in (ours["status_url"], ours["response_url"], f"{ours['status_url']}/stream"):
        assert (await other.get(url)).json() == {"status": "NOT_FOUND"}
    assert (await other.put(ours["cancel_url"])).status_code == 404
    assert (await mine.get(ours["status_url"].replace("/common/", "/echo/"))).status_code == 404
    public = await _submit(nobody, "me/open", {})
    await _done(nobody, public)


async def test_the_owners_retry_config_counts_and_a_strangers_does_not(shared: Rig) -> None:
    config = {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 1}})}
    mine, other = await shared.client(), await shared.client("other")
    submitted = await _submit(mine, "me/common", {"status": 503}, headers=config)
    await _done(mine, submitted)
    assert (await shared.record(submitted["request_id"]))["attempts"] == 2
    submitted = await _submit(other, "me/common", {"status": 503}, headers={**config, "X-Fal-No-Retry": "1"})
    status = await _done(other, submitted)
    assert (await shared.record(submitted["request_id"]))["attempts"] == 1
    assert status["error_type"] == "runner_server_error"


async def test_a_crash_is_tried_again_up_to_its_budget_and_then_answers_503(shared: Rig) -> None:
    client = await shared.client()
    config = {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 1}})}
    submitted = await _submit(client, "me/common", {"exit": True}, headers=config)
    status = await _done(client, submitted)
    assert status["error_type"] == "runner_disconnected"
    answer = await client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
    assert answer.headers["x-fal-error-type"] == "runner_disconnected"
    assert (await shared.record(submitted["request_id"]))["attempts"] == 2


@pytest.mark.parametrize(("status", "attempts"), [(500, 1), (502, 1), (503, 2), (504, 2)])
async def test_which_of_an_apps_own_errors_are_tried_again(shared: Rig, status: int, attempts: int) -> None:
    client = await shared.client()
    config = {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 1}})}
    submitted = await _submit(client, "me/echo", {"status": status}, headers=config)
    await _done(client, submitted)
    assert (await client.get(submitted["response_url"])).status_code == status
    assert (await shared.record(submitted["request_id"]))["attempts"] == attempts


async def test_headers_over_the_limit_are_not_tried_again(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"headers": {"x-long": "h" * 17_000}})
    await _done(client, submitted)
    answer = await client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()["error_type"]) == (502, "runner_incomplete_response")
    assert (await shared.record(submitted["request_id"]))["attempts"] == 1


async def test_a_request_whose_app_cannot_start_is_told_why_it_waits(shared: Rig) -> None:
    client = await shared.client("other")
    deadline = {"X-Fal-Request-Start-Timeout": "3"}
    first = await _submit(client, "me/talkative", {}, headers=deadline)
    for _ in range(400):
        status = (await client.get(first["status_url"], params={"logs": 1})).json()
        if status["logs"] or status["status"] == "COMPLETED":
            break
        await asyncio.sleep(0.02)
    assert status["status"] == "IN_QUEUE"
    second = await _submit(client, "me/talkative", {}, headers=deadline)
    for submitted in (first, second):
        ended = await _done(client, submitted, "?logs=1")
        [line] = ended["logs"]
        assert line["message"].startswith("No runner can start: The app failed to start (exit status 1). The next")
        assert line["level"] == "ERROR"
        answer = await client.get(submitted["response_url"])
        assert (answer.status_code, answer.headers["x-fal-request-timeout-type"]) == (504, "user")
        assert answer.json()["detail"].endswith("The app failed to start (exit status 1).")


async def test_a_time_limit_is_a_condition_of_its_own(shared: Rig) -> None:
    client = await shared.client()
    config = {"X-Fal-Retry-Config": json.dumps({"timeout": {"retries": 0}})}
    submitted = await _submit(client, "me/hasty", {"sleep": 3}, headers=config)
    await _done(client, submitted)
    answer = await client.get(submitted["response_url"])
    assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
    assert (await shared.record(submitted["request_id"]))["attempts"] == 1


@pytest.mark.parametrize("query", ["fal_max_queue_length=x", "fal_max_queue_length=-1", "fal_webhook=ftp://x/y"])
async def test_bad_parameters_of_ours_are_a_bad_request(shared: Rig, query: str) -> None:
    client = await shared.client()
    answer = await client.post(f"/queue/me/echo?{query}", json={})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


async def test_a_waiting_line_has_positions_priorities_a_bound_and_can_be_cancelled(tmp_path: Path) -> None:
    async with rig(tmp_path) as own:
        own.apps.add("narrow", "app", max_multiplexing=1, max_concurrency=1)
        client = await own.client()
        running = await _submit(client, "me/narrow", {"until_cancelled": True})
        while (await client.get(running["status_url"])).json()["status"] != "IN_PROGRESS":
            await asyncio.sleep(0.02)
        low = await _submit(client, "me/narrow", {"n": "low"}, headers={"X-Fal-Queue-Priority": "low"})
        normal = await _submit(client, "me/narrow", {"n": "normal"}, headers={"X-Fal-Queue-Priority": "normal"})
        gone = await _submit(client, "me/narrow", {"n": "gone"})
        late = await _submit(client, "me/narrow", {}, headers={"X-Fal-Request-Start-Timeout": "0.3"})

        async def position(of: dict[str, Any]) -> int:
            return int((await client.get(of["status_url"])).json()["queue_position"])

        assert [await position(item) for item in (normal, gone, late, low)] == [0, 1, 2, 3]
        refused = await client.post("/queue/me/narrow?fal_max_queue_length=2", json={})
        assert (refused.status_code, refused.headers["x-fal-error-type"]) == (429, "queue_full")

        cancelled = await client.put(gone["cancel_url"])
        assert (cancelled.status_code, cancelled.json()) == (200, {"status": "OK"})
        assert (await _done(client, gone))["error_type"] == "client_cancelled"
        ended = await client.get(gone["response_url"])
        assert (ended.status_code, ended.json()["error_type"]) == (499, "client_cancelled")

        await _done(client, late)
        ended = await client.get(late["response_url"])
        assert (ended.status_code, ended.headers["x-fal-request-timeout-type"]) == (504, "user")

        asked = await client.put(running["cancel_url"])
        assert (asked.status_code, asked.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        await _done(client, running)
        ended = await client.get(running["response_url"])
        assert (ended.status_code, ended.json()) == (499, {"detail": "cancelled by the app"})
        status = (await client.get(running["status_url"])).json()
        assert (status["error"], status["error_type"]) == ("Invalid status code: 499", "client_cancelled")

        await _done(client, low)
        normal_row, low_row = await own.record(normal["request_id"]), await own.record(low["request_id"])
        assert normal_row["started_at"] <= low_row["started_at"]
        assert own.scheduler.size(own.apps.apps()[0].app) == 0


async def test_a_status_stream_has_each_change_and_each_new_line_once(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"print": "a line", "sleep": 0.6})
    events: list[dict[str, Any]] = []
    async with client.stream("GET", f"{submitted['status_url']}/stream?logs=1") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        async for line in answer.aiter_lines():
            if line and not line.startswith(":"):
                assert line.startswith("data: ")
                events.append(json.loads(line[6:]))
    assert events[-1]["status"] == "COMPLETED"
    assert [line["message"] for event in events for line in event["logs"] or []] == ["a line"]
    order = [event["status"] for event in events]
    assert order == sorted(order, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert "IN_PROGRESS" in order


async def test_a_quiet_status_stream_says_that_it_is_alive(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {"sleep": 1})
    answer = await client.get(f"{submitted['status_url']}/stream")
    comments = [line for line in answer.text.splitlines() if line.startswith(":")]
    assert len(comments) >= 2
    assert all(line.startswith("data: {") for line in answer.text.splitlines() if line and line not in comments)


async def test_a_stream_of_a_finished_request_is_one_event(shared: Rig) -> None:
    client = await shared.client()
    submitted = await _submit(client, "me/echo", {})
    await _done(client, submitted)
    answer = await client.get(f"{submitted['status_url']}/stream")
    [event] = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert (event["status"], event["logs"]) == ("COMPLETED", None)


async def test_calls_are_counted_by_the_meter(shared: Rig) -> None:
    client = await shared.client()
    before = shared.meter.totals()["me/echo"]
    submitted = await _submit(client, "me/echo", {"status": 418})
    await _done(client, submitted)
    await client.post("/run/me/echo", json={"status": 418})
    after = shared.meter.totals()["me/echo"]
    assert after.received["POST"] == before.received["POST"] + 2
    assert after.completed["POST", 418] == before.completed.get(("POST", 418), 0) + 2
