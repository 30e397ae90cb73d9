"""`/serverless/metrics`: the caller's apps as a Prometheus page."""

from __future__ import annotations

from collections import defaultdict

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

import varvel
from varvel.apps.model import App
from varvel.metrics.meter import Traffic
from varvel.metrics.page import CONTENT_TYPE, AppSample, page
from varvel.platform.access import ApiCaller
from varvel.platform.envelope import failures
from varvel.platform.parts import PlatformParts
from varvel.runners.model import RunnerInfo


class MetricsPages:
    """Pages by owner, each kept for `metrics_cache` seconds. The server's own `/metrics` is that of all owners."""

    def __init__(self, parts: PlatformParts) -> None:
        self._parts = parts
        self._kept: dict[str | None, tuple[float, bytes]] = {}

    async def text(self, owner: str | None) -> bytes:
        """The page of the owner's apps, or of all apps for None."""
        now = self._parts.clock()
        made, kept = self._kept.get(owner, (0.0, b""))
        if kept and 0 <= now - made < self._parts.settings.metrics_cache:
            return kept
        text = await page(
            samples(self._parts, owner), version=varvel.__version__, telemetry_up=self._parts.telemetry.healthy
        )
        self._kept[owner] = (now, text.encode())
        return self._kept[owner][1]


def samples(parts: PlatformParts, owner: str | None) -> list[AppSample]:
    """Every app of the owner (of all owners for None) at this moment."""
    minute, totals = parts.meter.last_minute(), parts.meter.totals()
    runners: dict[str, list[RunnerInfo]] = defaultdict(list)
    for runner in parts.pool.runners():
        runners[str(runner.app)].append(runner)
    return [_sample(parts, app, runners, minute, totals) for app in parts.catalog.apps(owner)]


def _sample(
    parts: PlatformParts,
    app: App,
    runners: dict[str, list[RunnerInfo]],
    minute: dict[str, Traffic],
    totals: dict[str, Traffic],
) -> AppSample:
    name, spec = str(app.app), app.current.spec
    return AppSample(
        application=name,
        machine_type=spec.machine_type,
        gpus=parts.machines.gpus_of_runner(spec.machine_type, spec.num_gpus),
        queued=parts.scheduler.size(app.app),
        in_flight=parts.pool.in_flight(app.app),
        runners=runners.get(name, ()),
        minute=minute.get(name, Traffic()),
        total=totals.get(name, Traffic()),
    )


def router(parts: PlatformParts) -> APIRouter:
    """The operation of this section."""
    section = APIRouter(tags=["Serverless"])
    pages = MetricsPages(parts)

    @section.get(
        "/serverless/metrics",
        operation_id="serverlessGetMetrics",
        summary="Metrics of your apps",
        response_class=PlainTextResponse,
        responses={200: {"description": "The page in Prometheus's text format"}, **failures()},
    )
    async def metrics(caller: ApiCaller) -> Response:
        """What your apps do now and did in the last minute, for Prometheus to scrape.

        The gauges `fal_app_*` look at this moment or the last minute; `varvel_*` are counters and a histogram
        since the server started. A page is made anew at most every `metrics_cache` seconds.
        """
        return Response(await pages.text(caller.owner), media_type=CONTENT_TYPE)

    return section
