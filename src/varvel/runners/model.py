"""Runners and the slots in them, as the scheduler and the gateway see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from varvel.apps.model import AppId
from varvel.queue.model import Headers


class RunnerState(StrEnum):
    """Public states of a runner, in the order in which it passes through them."""

    PENDING = "PENDING"
    SETUP = "SETUP"
    CRASH_BACKOFF = "CRASH_BACKOFF"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"


BILLED_STATES = frozenset(
    {RunnerState.SETUP, RunnerState.IDLE, RunnerState.RUNNING, RunnerState.DRAINING, RunnerState.TERMINATING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """One runner at this moment."""

    runner_id: str
    app: AppId
    revision_id: str
    machine_type: str
    state: RunnerState
    in_flight: int
    started_at: float
    pid: int | None
    cpu_percent: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an app has no runner: its last start failed, and the next is put off."""

    reason: str
    """One line, without what the app printed."""
    retry_in: float
    """Seconds until the next start."""


class RunnerResponse(Protocol):
    """The head of a runner's answer, and its body as it comes. Must be read to the end or closed."""

    status: int
    headers: Headers

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self, limit: int) -> bytes:
        """The whole body if it is not larger than `limit`, else the part read so far: check `exhausted`."""
        ...

    @property
    def complete(self) -> bool:
        """Whether all of it has come from the runner."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether all of it has been read."""
        ...

    def close(self) -> None:
        """Drop the connection, if the body was not read to its end."""
        ...


class Slot(Protocol):
    """The right to one of `max_multiplexing` places in one ready runner, until `release`."""

    runner_id: str
    revision_id: str
    machine_type: str
    socket: str
    """Path of the runner's unix socket, for WebSocket relays."""
    cold_boot: float
    """Seconds that the runner took to start, when this request waited for that start; else 0."""

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> RunnerResponse:
        """Send one request, answer when the head of the response is there.

        Raises `RunnerRefused` (nothing was sent) or `RunnerDisconnected` (the connection broke).
        """
        ...

    def release(self, *, kill: bool = False, health_check: bool = False, hints: list[str] | None = None) -> None:
        """Give the place back. `kill` ends the runner at once; `health_check` has it checked now."""
        ...


class Pool(Protocol):
    """All runners of all apps. Direct (sync) calls are served before queued ones."""

    def try_acquire(self, app: AppId, hint: str | None = None) -> Slot | None:
        """A free slot for a queued request now, or None: `on_free` will be called when there may be one."""
        ...

    async def acquire(self, app: AppId, hint: str | None = None, timeout: float | None = None) -> Slot:
        """A slot for a direct call, FIFO among them.

        Raises `StartTimeout` (no slot in `timeout` seconds), `SchedulingFailed` (the app's runners fail to start).
        """
        ...

    def demand(self, app: AppId, waiting: int) -> None:
        """How many queued requests wait; the pool grows and shrinks by it."""
        ...

    def on_free(self, callback: Callable[[AppId], None]) -> None: ...
    def on_start_failed(self, callback: Callable[[AppId, Trouble], None]) -> None:
        """Called when a runner could not start, unless that was for a deployment."""
        ...

    def trouble(self, app: AppId) -> Trouble | None:
        """Why nothing serves the app while its starts fail; None while a runner is there or on its way."""
        ...

    def runners(self, app: AppId | None = None) -> list[RunnerInfo]: ...
    def in_flight(self, app: AppId) -> int: ...
