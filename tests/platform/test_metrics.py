"""The Prometheus page over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from tests.watching import Watched, watching

from varvel.runners.model import RunnerInfo, RunnerState

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One server for the whole file; each test has owners of its own."""
    async with watching(tmp_path_factory.mktemp("metrics")) as made:
        yield made


async def test_the_page_shows_the_callers_apps_and_nothing_of_others(watched: Watched) -> None:
    me, you = await watched.owner("me"), await watched.owner("you")
    app = watched.shelf.put("me", "ocr")
    watched.shelf.put("you", "secret")
    watched.pool.here = [
        RunnerInfo(
            runner_id="r",
            app=app,
            revision_id="rev",
            machine_type="S",
            state=RunnerState.RUNNING,
            in_flight=2,
            started_at=0.0,
            pid=1,
            cpu_percent=50.0,
            memory_bytes=1 << 20,
        )
    ]
    await watched.parts.scheduler.submit(watched.job(app))
    for name in ("me/ocr", "you/secret"):
        watched.parts.meter.received(name, "POST")
        watched.parts.meter.completed(name, "POST", 200, 0.3)
    answer = await me.get("/serverless/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    page = {family.name: family for family in text_string_to_metric_families(answer.text)}
    values = {
        (sample.name, sample.labels.get("state") or sample.labels.get("le") or ""): sample.value
        for family in page.values()
        for sample in family.samples
        if sample.labels.get("application") == "me/ocr"
    }
    assert values["fal_app_runners", "running"] == 1
    assert values["fal_app_queue_size", ""] == 1
    assert values["fal_app_concurrent_requests", ""] == 2
    assert values["fal_app_requests_received", ""] == 1
    assert values["fal_app_requests_completed", ""] == 1
    assert values["fal_app_request_latency", "0.25"] == 0
    assert values["fal_app_request_latency", "0.5"] == 1
    assert values["fal_app_runner_memory_usage_bytes", ""] == 1 << 20
    assert values["varvel_requests_completed_total", ""] == 1
    assert "secret" not in answer.text
    assert "ocr" not in (await you.get("/serverless/metrics")).text
    assert (await watched.client(None).get("/serverless/metrics")).status_code == 401


async def test_a_page_is_kept_for_as_long_as_the_setting_says(tmp_path: Path) -> None:
    async with watching(tmp_path, metrics_cache=60.0) as watched:
        me = await watched.owner("me")
        watched.shelf.put("me", "ocr")
        first = (await me.get("/serverless/metrics")).text
        watched.parts.meter.received("me/ocr", "POST")
        assert (await me.get("/serverless/metrics")).text == first
