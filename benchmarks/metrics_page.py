"""The Prometheus page of many apps: ours through the API beside prometheus_client with the same families and labels.

    python -m benchmarks.metrics_page [--apps 1000] [--rounds 21]

Every page is made anew (the clock moves on past `metrics_cache`); two runners an app, calls with three statuses. The
sides take turns, in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import spread, table, write
from varvel.apps.model import App, AppId, AppSpec, Revision, Scaling
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.metrics.meter import BUCKETS, Meter
from varvel.platform import api, metrics
from varvel.platform.parts import PlatformParts
from varvel.runners.model import RunnerInfo, RunnerState
from varvel.settings import Settings
from varvel.state.database import Database

CALLS = (("POST", 200, 0.07), ("POST", 422, 0.01), ("POST", 500, 1.7), ("GET", 200, 0.002))


def shelf(count: int) -> list[App]:
    """So many apps of the owner `me`."""
    found = []
    for number in range(count):
        name = AppId("me", f"app{number}")
        revision = Revision(
            revision_id=f"rev{number}",
            app=name,
            spec=AppSpec(kind="asgi", file="app.py", attribute="app"),
            created_at=0.0,
            folder=Path(),
            python=Path(),
        )
        found.append(
            App(
                app=name,
                environment="main",
                current=revision,
                auth_mode="private",
                scaling=Scaling(),
                created_at=0.0,
                updated_at=0.0,
            )
        )
    return found


def runners(apps: list[App]) -> list[RunnerInfo]:
    """Two runners of each app."""
    return [
        RunnerInfo(
            runner_id=f"{app.app}-{state}",
            app=app.app,
            revision_id=app.current.revision_id,
            machine_type="S",
            state=state,
            in_flight=1,
            started_at=0.0,
            pid=1,
            cpu_percent=12.5,
            memory_bytes=100_000_000,
        )
        for app in apps
        for state in (RunnerState.IDLE, RunnerState.RUNNING)
    ]


def theirs(apps: list[App]) -> CollectorRegistry:
    """The same families and labels in prometheus_client."""
    registry = CollectorRegistry()
    of_app = ["application"]
    gauges = [
        Gauge(f"fal_app_{name}", "h", of_app, registry=registry)
        for name in ("queue_size", "concurrent_requests", "runner_cpu_usage_percent", "runner_memory_usage_bytes")
    ]
    states = Gauge("fal_app_runners", "h", [*of_app, "machine_type", "state"], registry=registry)
    latency = Gauge("fal_app_request_latency", "h", [*of_app, "le"], registry=registry)
    received = Gauge("fal_app_requests_received", "h", [*of_app, "method"], registry=registry)
    completed = Gauge("fal_app_requests_completed", "h", [*of_app, "method", "status"], registry=registry)
    received_total = Counter("varvel_requests_received", "h", [*of_app, "method"], registry=registry)
    completed_total = Counter("varvel_requests_completed", "h", [*of_app, "method", "status"], registry=registry)
    seconds = Histogram("varvel_request_duration_seconds", "h", of_app, buckets=BUCKETS, registry=registry)
    for name in (str(app.app) for app in apps):
        for gauge in gauges:
            gauge.labels(name).set(1)
        for state in ("pending", "running", "dead"):
            states.labels(name, "S", state).set(1)
        for bound in (*BUCKETS, "+Inf"):
            latency.labels(name, str(bound)).set(1)
        for method, status, took in CALLS:
            received.labels(name, method).inc()
            completed.labels(name, method, str(status)).inc()
            received_total.labels(name, method).inc()
            completed_total.labels(name, method, str(status)).inc()
            seconds.labels(name).observe(took)
    return registry


async def run(count: int, rounds: int, folder: Path) -> str:
    """Pages in turns; the first of each side is not counted."""
    database = Database.open(folder / "state.db")
    keys = KeyStore(database)
    await keys.start()
    apps, meter, settings = shelf(count), Meter(), Settings(data=folder, rate_limit=0)
    there = runners(apps)
    for app in apps:
        for method, status, took in CALLS:
            meter.received(str(app.app), method)
            meter.completed(str(app.app), method, status, took)
    moment = [0.0]
    missing = cast(Any, None)
    parts = PlatformParts(
        settings=settings,
        authenticator=keys,
        keys=keys,
        catalog=cast(Any, SimpleNamespace(apps=lambda owner=None: apps)),
        scheduler=cast(Any, SimpleNamespace(size=lambda app: 3)),
        pool=cast(Any, SimpleNamespace(runners=lambda: there, in_flight=lambda app: 1)),
        telemetry=cast(Any, SimpleNamespace(healthy=True)),
        ledger=missing,
        meter=meter,
        files=missing,
        machines=machine_types(settings),
        database=database,
        clock=lambda: time.time() + moment[0],
    )
    served = api.build(parts, [metrics.router(parts)])
    headers = {"Authorization": f"Key {(await keys.add_owner('me')).key}"}
    registry = theirs(apps)
    ours: list[float] = []
    peers: list[float] = []
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(served), base_url="http://varvel/v1", headers=headers
    ) as client:
        for number in range(rounds + 1):
            moment[0] += 60
            began = time.perf_counter()
            answer = await client.get("/serverless/metrics")
            took = (time.perf_counter() - began) * 1000
            assert answer.status_code == 200
            began = time.perf_counter()
            text = generate_latest(registry)
            peer = (time.perf_counter() - began) * 1000
            if number:
                ours.append(took)
                peers.append(peer)
    await database.close()
    lines = [_samples(answer.text), _samples(text.decode())]
    rows = [
        [
            f"Varvel, {count:,} apps, over the API",
            spread(ours, 1),
            f"{lines[0]:,}",
            f"{len(answer.content):,}",
            "<= 50",
        ],
        ["prometheus_client, the same families", spread(peers, 1), f"{lines[1]:,}", f"{len(text):,}", ""],
        ["ratio, round by round", spread([a / b for a, b in zip(ours, peers, strict=True)]), "", "", ""],
    ]
    raw: list[dict[str, Any]] = [{"side": "varvel", "ms": ours}, {"side": "prometheus_client", "ms": peers}]
    return write("metrics_page", raw, table(["page, made anew", "ms", "samples", "bytes", "goal"], rows))


def _samples(text: str) -> int:
    return sum(len(family.samples) for family in text_string_to_metric_families(text))


def bench(rounds: int = 21, count: int = 1000) -> str:
    """The whole suite."""
    with tempfile.TemporaryDirectory(prefix="varvel-metrics-") as folder:
        return asyncio.run(run(count, rounds, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    print(bench(given.rounds, given.apps))


if __name__ == "__main__":
    main()
