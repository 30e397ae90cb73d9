"""Jobs and outcomes as bytes in the store. Fields are only ever added at the end, with a default."""

from __future__ import annotations

from pathlib import Path

import msgspec

from varvel.apps.model import AppId
from varvel.queue.model import Job, JobState, Outcome


class _Job(msgspec.Struct, array_like=True):
    request_id: str
    owner: str
    name: str
    endpoint_id: str
    path: str
    query: bytes
    method: str
    headers: list[tuple[bytes, bytes]]
    low: bool
    caller: str | None
    submitted_at: float
    start_deadline: float | None
    webhook: str | None
    hint: str | None
    no_retry: bool
    retry_config: dict[str, int] | None
    store_io: bool
    attempts: int
    gateway_request_id: str


class _Outcome(msgspec.Struct, array_like=True):
    status: int
    headers: list[tuple[bytes, bytes]]
    error: str | None
    error_type: str | None
    runner_id: str | None
    revision: str | None
    machine_type: str
    started_at: float
    ended_at: float
    cold_boot: float
    units: float | None
    cancelled: bool
    logs_until: int


_encoder = msgspec.msgpack.Encoder()
_jobs = msgspec.msgpack.Decoder(_Job)
_outcomes = msgspec.msgpack.Decoder(_Outcome)


def encode_job(job: Job) -> bytes:
    """A job without its body."""
    return _encoder.encode(
        _Job(
            job.request_id,
            job.app.owner,
            job.app.name,
            job.endpoint_id,
            job.path,
            job.query,
            job.method,
            job.headers,
            job.low,
            job.caller,
            job.submitted_at,
            job.start_deadline,
            job.webhook,
            job.hint,
            job.no_retry,
            job.retry_config,
            job.store_io,
            job.attempts,
            job.gateway_request_id,
        )
    )


def decode_job(data: bytes, *, body: bytes, body_file: Path | None, state: JobState) -> Job:
    """The job again, with its body."""
    job = _jobs.decode(data)
    return Job(
        request_id=job.request_id,
        app=AppId(job.owner, job.name),
        endpoint_id=job.endpoint_id,
        path=job.path,
        query=job.query,
        method=job.method,
        headers=job.headers,
        body=body,
        body_file=body_file,
        low=job.low,
        caller=job.caller,
        submitted_at=job.submitted_at,
        start_deadline=job.start_deadline,
        webhook=job.webhook,
        hint=job.hint,
        no_retry=job.no_retry,
        retry_config=job.retry_config,
        store_io=job.store_io,
        attempts=job.attempts,
        gateway_request_id=job.gateway_request_id,
        state=state,
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome without its body."""
    return _encoder.encode(
        _Outcome(
            outcome.status,
            outcome.headers,
            outcome.error,
            outcome.error_type,
            outcome.runner_id,
            outcome.revision,
            outcome.machine_type,
            outcome.started_at,
            outcome.ended_at,
            outcome.cold_boot,
            outcome.units,
            outcome.cancelled,
            outcome.logs_until,
        )
    )


def decode_outcome(data: bytes, *, body: bytes, body_file: Path | None) -> Outcome:
    """The outcome again, with its body."""
    outcome = _outcomes.decode(data)
    return Outcome(
        status=outcome.status,
        headers=outcome.headers,
        body=body,
        body_file=body_file,
        error=outcome.error,
        error_type=outcome.error_type,
        runner_id=outcome.runner_id,
        revision=outcome.revision,
        machine_type=outcome.machine_type,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        cold_boot=outcome.cold_boot,
        units=outcome.units,
        cancelled=outcome.cancelled,
        logs_until=outcome.logs_until,
    )
