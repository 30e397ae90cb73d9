"""A real Prometheus reads our pages; its rules and the dashboards' queries are those that we ship."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.watching import Watched, watching

from varvel.health import ServerHealth
from varvel.runners.model import RunnerInfo, RunnerState

DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed: tools/peers.sh")

# What the documented names themselves force: gauges that carry `le`, and percents.
FORCED = (
    'fal_app_request_latency non-histogram metrics should not have "le" label',
    'fal_app_runner_cpu_usage_percent use base unit "ratio" instead of "percent"',
)


@asynccontextmanager
async def server_page() -> AsyncIterator[str]:
    """The page that the server shows of itself, on a port of its own."""
    health = ServerHealth(
        taking=lambda: True,
        telemetry=lambda: True,
        gauges={name: ("A gauge.", lambda: 1.0) for name in ("varvel_runners", "varvel_apps", "varvel_queue_waiting")},
    )
    lag = asyncio.create_task(health.watch_lag())

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=health.metrics(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_get("/metrics", show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        lag.cancel()
        await runner.cleanup()


@asynccontextmanager
async def prometheus(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus with the configuration in `folder`, ended by its own process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as client, asyncio.timeout(30):
            while True:
                assert process.returncode is None, (folder / "prometheus.log").read_text()[-3000:]
                try:
                    if (await client.get("/-/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def configure(folder: Path, apps: str, server: str, key: str) -> None:
    """Our configuration and rules, with this test's addresses and without their patience."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    first, second = re.findall(r'targets: \["127.0.0.1:8787"\]', text)
    text = text.replace(first, f'targets: ["{apps}"]', 1).replace(second, f'targets: ["{server}"]', 1)
    (folder / "prometheus.yml").write_text(text.replace("15s", "500ms"))
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(re.sub(r"for: \d+m", "for: 0s", rules))
    (folder / "varvel.key").write_text(key)


def traffic(watched: Watched) -> None:
    """One app with a runner, calls and errors; another whose queue nobody serves."""
    ocr = watched.shelf.put("me", "ocr")
    info = RunnerInfo(
        runner_id="r",
        app=ocr,
        revision_id="rev",
        machine_type="S",
        state=RunnerState.RUNNING,
        in_flight=1,
        started_at=0.0,
        pid=1,
        cpu_percent=20.0,
        memory_bytes=1 << 20,
    )
    watched.pool.here = [info, replace(info, state=RunnerState.IDLE, in_flight=0)]
    watched.shelf.put("me", "stuck")


def calls(watched: Watched) -> None:
    for name in ("me/ocr", "me/stuck"):
        for status in (200, 200, 200, 503):
            watched.parts.meter.received(name, "POST")
            watched.parts.meter.completed(name, "POST", status, 0.3)


def queries() -> list[tuple[str, str]]:
    """Every query of every dashboard, with Grafana's variables filled in."""
    found = []
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$application", ".*").replace("$__rate_interval", "30s")
                found.append((f"{path.stem}: {panel['title']}", text))
    return found


async def test_prometheus_scrapes_the_page_its_alert_fires_and_every_dashboard_query_has_an_answer(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path / "varvel") as watched, server_page() as server:
        key = (await watched.parts.keys.add_owner("me")).key
        traffic(watched)
        calls(watched)
        await watched.parts.scheduler.submit(watched.job(watched.shelf.put("me", "stuck")))
        configure(tmp_path, watched.url.removeprefix("http://"), server, key)
        async with prometheus(tmp_path) as client:

            async def ask(path: str, **params: str) -> Any:
                answer = await client.get(f"/api/v1/{path}", params=params)
                assert answer.status_code == 200, answer.text
                return answer.json()["data"]

            wanted = {("VarvelQueueStuck", "me/stuck"), ("VarvelAppErrors", "me/ocr")}
            async with asyncio.timeout(40):
                while True:
                    calls(watched)
                    firing = {
                        (alert["labels"]["alertname"], alert["labels"].get("application"))
                        for alert in (await ask("alerts"))["alerts"]
                        if alert["state"] == "firing"
                    }
                    empty = [name for name, query in queries() if not (await ask("query", query=query))["result"]]
                    if wanted <= firing and not empty:
                        break
                    await asyncio.sleep(0.5)
            assert ("VarvelQueueStuck", "me/ocr") not in firing
            targets = (await ask("targets"))["activeTargets"]
            assert {target["labels"]["job"]: (target["health"], target["lastError"]) for target in targets} == {
                "varvel-apps": ("up", ""),
                "varvel-server": ("up", ""),
            }
            (size,) = (await ask("query", query='fal_app_queue_size{application="me/stuck"}'))["result"]
            assert size["value"][1] == "1"
            kinds = await ask("metadata", limit="1000")
            assert kinds["fal_app_request_latency"][0]["type"] == "gauge"
            assert kinds["varvel_request_duration_seconds"][0]["type"] == "histogram"


async def test_promtool_finds_nothing_but_what_the_documented_names_force(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        me = await watched.owner("me")
        traffic(watched)
        calls(watched)
        text = (await me.get("/serverless/metrics")).text
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    complaints = [line for line in (checked.stdout + checked.stderr).splitlines() if line.strip()]
    assert set(complaints) <= set(FORCED)
    broken = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text + "not a metric", capture_output=True, text=True
    )
    assert broken.returncode != 0


async def test_the_shipped_configuration_and_rules_are_valid(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    (tmp_path / "varvel.key").write_text("id:secret")
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "8 rules found" in checked.stdout
