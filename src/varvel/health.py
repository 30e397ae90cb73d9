"""What the server says of itself: readiness of its parts, and its own Prometheus page without names of owners."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

LAG_INTERVAL = 0.25


class ServerHealth:
    """Readiness and metrics of one server. `gauges` maps a metric name to its help and a function that reads it."""

    def __init__(
        self,
        *,
        taking: Callable[[], bool],
        telemetry: Callable[[], bool],
        gauges: dict[str, tuple[str, Callable[[], float]]],
    ) -> None:
        self._taking, self._telemetry = taking, telemetry
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._lag = Histogram(
            "varvel_event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self._registry,
        )
        started = Gauge("varvel_start_time_seconds", "When the server started.", registry=self._registry)
        started.set(time.time())
        self._registry.register(_Gauges(gauges | {"varvel_telemetry_up": ("Whether the store answers.", telemetry)}))

    def ready(self) -> dict[str, Any]:
        """`ready` is whether requests are taken; `telemetry` may be down meanwhile, and nothing is lost."""
        return {"ready": self._taking(), "telemetry": "up" if self._telemetry() else "down"}

    def metrics(self) -> bytes:
        return generate_latest(self._registry)

    async def watch_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.observe(max(0.0, loop.time() - due))


class _Gauges(Collector):
    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, (help_text, read) in self._gauges.items():
            yield GaugeMetricFamily(name, help_text, value=float(read()))
