"""Rows of the telemetry store, and the two ways into it.

What is money or a record of a request goes through the outbox of the state database (`Outbox` rows are JSON
lines of these structs) and is in the store exactly once. Log lines go in batches, live readers first.
Field names are the column names of `schema.sql`; times are microseconds since 1970 (UTC) as integers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import msgspec


class RequestRow(msgspec.Struct, kw_only=True):
    """One finished request, of any kind. Table `requests`, unique by `request_id`."""

    request_id: str
    owner: str
    app: str
    """`owner/name`."""
    endpoint_id: str
    caller: str = ""
    kind: str
    """sync, queue, stream or realtime."""
    method: str = "POST"
    sent_at: int
    """When the gateway got it."""
    started_at: int
    """When a runner began on the last attempt; equals ended_at when none did."""
    ended_at: int
    status_code: int
    error_type: str = ""
    duration: float
    """Seconds of execution: ended_at - started_at."""
    prepare_duration: float
    """Seconds from sent_at to started_at."""
    cold_boot: float = 0.0
    runner_id: str = ""
    revision: str = ""
    machine_type: str = ""
    attempts: int = 1


class PayloadRow(msgspec.Struct, kw_only=True):
    """JSON input and output of a request, unless the caller asked not to store them. Table `payloads`."""

    request_id: str
    owner: str
    ended_at: int
    input: str
    output: str


class BillingRow(msgspec.Struct, kw_only=True):
    """The billing event of a request, exactly one each. Table `billing`, unique by `request_id`."""

    request_id: str
    owner: str
    app: str
    endpoint_id: str
    caller: str = ""
    ended_at: int
    recorded_at: int
    billable_units: float
    billable_duration: float
    """Execution seconds that are billed: 0 for 5xx."""
    machine_type: str
    unit: str
    """`units` when the app set `x-fal-billable-units`, else `seconds`."""


class EventRow(msgspec.Struct, kw_only=True):
    """Something that happened to an app. Table `events`, unique by `event_id`. `payload` is JSON."""

    event_id: str
    owner: str
    app: str
    category: str
    created_at: int
    payload: str


class RunnerRow(msgspec.Struct, kw_only=True):
    """How many runners of an app were in which state from `since` to `until`, never across a minute's edge.

    Table `runner_states`, unique by `row_id`. Runner seconds of a state = its count x `seconds`.
    """

    row_id: str
    owner: str
    app: str
    environment: str
    machine_type: str
    gpus: int = 0
    """Of each runner."""
    since: int
    until: int
    seconds: float
    pending: int = 0
    setup: int = 0
    idle: int = 0
    running: int = 0
    draining: int = 0
    terminating: int = 0


class LogRow(msgspec.Struct, kw_only=True):
    """A log line. Table `logs`. `ts` is its identity: strictly increasing, given when the server takes the line."""

    ts: int
    owner: str
    app: str
    revision: str
    job_id: str
    """Runner id; empty for build output."""
    request_id: str = ""
    endpoint: str = ""
    level: str
    """TRACE DEBUG INFO WARNING ERROR STDOUT STDERR, lower case."""
    source: str = "gateway"
    """Run source: gateway (deployed apps), grpc-register (build and deploy), grpc-run, cron."""
    message: str
    labels: dict[str, str] = {}
    """What is known of fal_app_name, fal_app_id, fal_request_id, fal_job_id, fal_endpoint, fal_source, and more."""


REQUEST_LABEL = "fal_request_id"
"""A line has this label when it has a `request_id`, and both say the same."""

LEVELS = {"trace": 0, "debug": 10, "info": 20, "warning": 30, "error": 40, "stdout": 100, "stderr": 110}
"""Order of levels for `level` as a minimum, as the hosted runtime has it: prints are above all."""


class OutboxRows(Protocol):
    """One durable batch of JSON lines. `kind` is requests, payloads, billing, events or runner_states."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class TelemetryStore(Protocol):
    """Queries of the store. SQL is ClickHouse's; parameters are written `{name:Type}`."""

    async def select(
        self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """Rows as dictionaries. Raises `TelemetryUnavailable`. Cancelling the task cancels the query."""
        ...

    def stream(self, sql: str, params: Mapping[str, Any] | None = None, *, format: str) -> AsyncIterator[bytes]:
        """The bytes of a result in one of ClickHouse's formats (Parquet, JSONEachRow, CSVWithNames)."""
        ...

    async def barrier(self) -> None:
        """Return when all that ended or was logged before this call is visible to `select`."""
        ...

    def keep_closed(self, step: str, stretches: Mapping[int, int]) -> None:
        """Have the figures of stretches of a calendar (first microsecond and end of each) computed once.

        For whoever asks next; see `closing.py`. Returns at once.
        """
        ...


class LogSink(Protocol):
    """Where log lines go: to live readers at once, to the store in batches. Never blocks."""

    def take(
        self,
        *,
        app: str,
        revision: str,
        job_id: str,
        level: str,
        message: str,
        request_id: str = "",
        endpoint: str = "",
        source: str = "gateway",
        labels: dict[str, str] | None = None,
        at: float | None = None,
    ) -> int:
        """Take one line and give its `ts`."""
        ...


LogFilter = Callable[[LogRow], bool]
