"""A queued request (a job), an attempt to run it, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

from varvel.apps.model import AppId

Headers = list[tuple[bytes, bytes]]
"""Lower-case names, as ASGI has them."""
Condition = Literal["server_error", "timeout", "connection_error"]


class JobState(IntEnum):
    """QUEUED and RUNNING are alive; DONE is the only end, reached once."""

    QUEUED = 0
    RUNNING = 1
    DONE = 2


@dataclass(slots=True, kw_only=True)
class Job:
    """One queued request. `body` is in memory, or in `body_file` when it is larger than `buffer_body`."""

    request_id: str
    app: AppId
    endpoint_id: str
    path: str
    """Path inside the app, beginning with `/`."""
    query: bytes
    """Query string for the app, without the `fal_*` parameters."""
    method: str
    headers: Headers
    """Those that the app shall see, `x-fal-*` of the caller already taken out."""
    body: bytes
    body_file: Path | None = None
    low: bool = False
    """Priority low: runs only when nothing of normal priority waits."""
    caller: str | None
    """Nickname of the key's owner; None for a call without a key to a public app."""
    submitted_at: float
    start_deadline: float | None = None
    """Wall time at which it must have started, else 504 `request_timeout` with timeout type `user`."""
    webhook: str | None = None
    hint: str | None = None
    no_retry: bool = False
    retry_config: dict[str, int] | None = None
    """From `X-Fal-Retry-Config`, for the app's owner only."""
    store_io: bool = True
    attempts: int = 0
    gateway_request_id: str = ""
    """Of the last attempt; equals request_id for the first."""
    state: JobState = JobState.QUEUED


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The one end of a request: what is answered, recorded and billed. Times are wall seconds."""

    status: int
    headers: Headers
    body: bytes
    body_file: Path | None = None
    """Where the body is when it is larger than `buffer_body`; then `body` is empty."""
    error: str | None = None
    error_type: str | None = None
    runner_id: str | None = None
    revision: str | None = None
    machine_type: str = ""
    started_at: float
    ended_at: float
    cold_boot: float = 0.0
    """Seconds of start-up of the runner, when this request waited for it; else 0."""
    units: float | None = None
    """From the app's `x-fal-billable-units`; None when it set none."""
    cancelled: bool = False
    logs_until: int = 0
    """Time (microseconds) of the last log line taken when it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Where a job is at one moment."""

    job: Job
    state: JobState
    position: int | None = None
    """How many wait before it, while it is QUEUED."""
    outcome: Outcome | None = None
    """When it is DONE."""


@dataclass(slots=True, kw_only=True)
class AttemptResult:
    """One attempt: its would-be outcome, and what the retry rules need to know."""

    outcome: Outcome
    condition: Condition | None = None
    """Why it could be tried again; None when its end is final."""
    needs_retry: bool | None = None
    """The app's own `X-Fal-Needs-Retry` on 5xx or 429, which beats status rules; None when absent."""
    hints: list[str] = field(default_factory=list)
