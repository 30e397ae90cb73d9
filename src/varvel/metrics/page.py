"""The Prometheus text page: what there is to show of an app, and the lines that say it.

Names that begin with `fal_app_` are those of the hosted platform and mean the same: all are gauges, the counts
are of the last minute, and `fal_app_request_latency` carries `le` without a histogram's suffix. Names that begin
with `varvel_` are counters and a histogram in the usual sense, from the start of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from varvel.metrics.meter import BUCKETS, Traffic
from varvel.runners.model import RunnerInfo, RunnerState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (*(f"{bound}" for bound in BUCKETS), "+Inf")
_STATES = {
    RunnerState.PENDING: "pending",
    RunnerState.SETUP: "pending",
    RunnerState.CRASH_BACKOFF: "pending",
    RunnerState.IDLE: "running",
    RunnerState.RUNNING: "running",
    RunnerState.DRAINING: "running",
    RunnerState.TERMINATING: "running",
    RunnerState.TERMINATED: "dead",
}


_SHOWN = ("dead", "pending", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSample:
    """One app at this moment."""

    application: str
    """`owner/name`."""
    machine_type: str
    gpus: int = 0
    """GPUs of each runner."""
    queued: int = 0
    in_flight: int = 0
    runners: Sequence[RunnerInfo] = ()
    minute: Traffic = field(default_factory=Traffic)
    total: Traffic = field(default_factory=Traffic)


_Row = tuple[AppSample, str]
"""A sample, and its `application="..."` label, escaped once."""


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: str
    help: str
    lines: Callable[[_Row], Iterable[str]]


def escaped(value: str) -> str:
    """A label's value as the text format wants it between its quotes."""
    if value.isalnum():
        return value
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _runners(row: _Row) -> Iterator[str]:
    sample, application = row
    counts = {sample.machine_type: dict.fromkeys(_SHOWN, 0)}
    for runner in sample.runners:
        states = counts.get(runner.machine_type) or counts.setdefault(runner.machine_type, dict.fromkeys(_SHOWN, 0))
        states[_STATES[runner.state]] += 1
    for machine, states in sorted(counts.items()):
        head = f'fal_app_runners{{{application},machine_type="{escaped(machine)}",state="'
        for state, count in states.items():
            yield f'{head}{state}"}} {count}'


def _gauge(name: str, value: Callable[[AppSample], float]) -> Callable[[_Row], Iterable[str]]:
    return lambda row: (f"{name}{{{row[1]}}} {value(row[0])}",)


def _methods(name: str, counts: Callable[[AppSample], dict[str, int]]) -> Callable[[_Row], Iterable[str]]:
    return lambda row: [
        f'{name}{{{row[1]},method="{method}"}} {count}' for method, count in sorted(counts(row[0]).items())
    ]


def _statuses(name: str, counts: Callable[[AppSample], dict[tuple[str, int], int]]) -> Callable[[_Row], Iterable[str]]:
    return lambda row: [
        f'{name}{{{row[1]},method="{method}",status="{status}"}} {count}'
        for (method, status), count in sorted(counts(row[0]).items())
    ]


# All buckets of an app in one step: this is most of the page.
_LATENCY = "\n".join(f'fal_app_request_latency{{<app>,le="{bound}"}} %d' for bound in _BOUNDS)
_DURATION = "\n".join(
    [
        *(f'varvel_request_duration_seconds_bucket{{<app>,le="{bound}"}} %d' for bound in _BOUNDS),
        "varvel_request_duration_seconds_sum{<app>} %r",
        "varvel_request_duration_seconds_count{<app>} %d",
    ]
)


def _latency(row: _Row) -> tuple[str, ...]:
    return (_filled(_LATENCY, row[1]) % tuple(row[0].minute.cumulative),)


def _duration(row: _Row) -> tuple[str, ...]:
    total = row[0].total
    counts = total.cumulative
    return (_filled(_DURATION, row[1]) % (*counts, total.seconds, counts[-1]),)


def _filled(template: str, application: str) -> str:
    return template.replace("<app>", application.replace("%", "%%"))


def _gpu_count(row: _Row) -> tuple[str, ...]:
    sample, application = row
    if not sample.gpus:
        return ()
    return (f"fal_app_runner_gpu_count{{{application}}} {sample.gpus * len(sample.runners)}",)


_FAMILIES = (
    _Family("fal_app_runners", "gauge", "Runners allocated to the app, by state.", _runners),
    _Family(
        "fal_app_queue_size",
        "gauge",
        "Requests that wait for a runner.",
        _gauge("fal_app_queue_size", lambda sample: sample.queued),
    ),
    _Family(
        "fal_app_concurrent_requests",
        "gauge",
        "Requests that runners are working on.",
        _gauge("fal_app_concurrent_requests", lambda sample: sample.in_flight),
    ),
    _Family(
        "fal_app_requests_completed",
        "gauge",
        "Requests that ended in the last minute.",
        _statuses("fal_app_requests_completed", lambda sample: sample.minute.completed),
    ),
    _Family(
        "fal_app_requests_received",
        "gauge",
        "Requests that came in during the last minute.",
        _methods("fal_app_requests_received", lambda sample: sample.minute.received),
    ),
    _Family(
        "fal_app_request_latency",
        "gauge",
        "Requests that ended in the last minute within so many seconds.",
        _latency,
    ),
    _Family(
        "fal_app_runner_cpu_usage_percent",
        "gauge",
        "Processor use of all runners of the app together; 100 is one core.",
        _gauge(
            "fal_app_runner_cpu_usage_percent",
            lambda sample: sum(round(runner.cpu_percent, 3) for runner in sample.runners),
        ),
    ),
    _Family(
        "fal_app_runner_memory_usage_bytes",
        "gauge",
        "Memory of all runners of the app together.",
        _gauge(
            "fal_app_runner_memory_usage_bytes", lambda sample: sum(runner.memory_bytes for runner in sample.runners)
        ),
    ),
    _Family("fal_app_runner_gpu_count", "gauge", "GPUs held by runners of the app.", _gpu_count),
    _Family(
        "varvel_requests_received_total",
        "counter",
        "Requests that came in since the server started.",
        _methods("varvel_requests_received_total", lambda sample: sample.total.received),
    ),
    _Family(
        "varvel_requests_completed_total",
        "counter",
        "Requests that ended since the server started.",
        _statuses("varvel_requests_completed_total", lambda sample: sample.total.completed),
    ),
    _Family(
        "varvel_request_duration_seconds",
        "histogram",
        "Time from a request's arrival to its end.",
        _duration,
    ),
)


async def page(samples: Sequence[AppSample], *, version: str, telemetry_up: bool) -> str:
    """The whole page for these apps. Gives way to other tasks between families, for it may be large."""
    rows: list[_Row] = [(sample, f'application="{escaped(sample.application)}"') for sample in samples]
    parts = [
        "# HELP varvel_build_info The version that answers.\n# TYPE varvel_build_info gauge\n"
        f'varvel_build_info{{version="{escaped(version)}"}} 1\n'
        "# HELP varvel_telemetry_up Whether the store of logs and request records answers.\n"
        f"# TYPE varvel_telemetry_up gauge\nvarvel_telemetry_up {int(telemetry_up)}\n"
    ]
    for family in _FAMILIES:
        lines = [line for row in rows for line in family.lines(row)]
        if lines:
            head = f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
            parts.append(head + "\n".join(lines) + "\n")
        await asyncio.sleep(0)
    return "".join(parts)
