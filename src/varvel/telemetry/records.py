"""The rows that a finished request leaves behind: its record, its payloads, its billing event. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from varvel.apps.model import AppId
from varvel.billing.rules import MachineType, bill
from varvel.queue.model import Headers, Outcome
from varvel.telemetry.model import BillingRow, PayloadRow, RequestRow

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class Rows(NamedTuple):
    """What is recorded of one request. `payload` is None when nothing of it may or can be kept."""

    request: RequestRow
    payload: PayloadRow | None
    billing: BillingRow


def rows(
    *,
    request_id: str,
    app: AppId,
    endpoint_id: str,
    caller: str | None,
    kind: str,
    method: str,
    sent_at: float,
    attempts: int,
    outcome: Outcome,
    machine: MachineType,
    input: bytes = b"",
    store_io: bool = True,
    payload_limit: int = 0,
) -> Rows:
    """The rows of a finished request of any kind; times in wall seconds.

    Payloads are kept when they are JSON and at most `payload_limit` bytes, each for itself, and not at all when the
    caller asked so (`store_io` False). A request that no runner took (`outcome.runner_id` None) started when it
    ended and is billed nothing. A clock that was set back while the request waited takes nothing from its duration.
    """
    started = outcome.runner_id is not None
    ran = max(outcome.ended_at - outcome.started_at, 0.0) if started else 0.0
    started_at = max(outcome.started_at if started else outcome.ended_at, sent_at)
    ended_at = started_at + ran
    ended_us = micros(ended_at)
    started_us = micros(started_at)
    sent_us = micros(sent_at)
    duration = (ended_us - started_us) / 1e6
    cost = bill(status=outcome.status, started=started, units=outcome.units, duration=duration, machine=machine)
    name = str(app)
    record = RequestRow(
        request_id=request_id,
        owner=app.owner,
        app=name,
        endpoint_id=endpoint_id,
        caller=caller or "",
        kind=kind,
        method=method,
        sent_at=sent_us,
        started_at=started_us,
        ended_at=ended_us,
        status_code=outcome.status,
        error_type=outcome.error_type or "",
        duration=duration,
        prepare_duration=(started_us - sent_us) / 1e6,
        cold_boot=outcome.cold_boot,
        runner_id=outcome.runner_id or "",
        revision=outcome.revision or "",
        machine_type=outcome.machine_type or machine.name,
        attempts=attempts,
    )
    billing = BillingRow(
        request_id=request_id,
        owner=app.owner,
        app=name,
        endpoint_id=endpoint_id,
        caller=caller or "",
        ended_at=ended_us,
        recorded_at=ended_us,
        billable_units=cost.units,
        billable_duration=cost.duration,
        machine_type=record.machine_type,
        unit=cost.unit,
    )
    kept = _payload(record, input, outcome, payload_limit) if store_io else None
    return Rows(record, kept, billing)


def _payload(record: RequestRow, input: bytes, outcome: Outcome, limit: int) -> PayloadRow | None:
    asked = json_text(input, limit)
    answered = json_text(outcome.body, limit) if _says_json(outcome.headers) else ""
    if not asked and not answered:
        return None
    return PayloadRow(
        request_id=record.request_id, owner=record.owner, ended_at=record.ended_at, input=asked, output=answered
    )


def json_text(body: bytes, limit: int) -> str:
    """`body` as text when it is valid JSON of at most `limit` bytes, else the empty string."""
    if not body or len(body) > limit:
        return ""
    try:
        # Raw checks the form without building the value.
        _check_json(body)
        return body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _says_json(headers: Headers) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return b"json" in value
    return True


def micros(at: float) -> int:
    """Wall seconds to the integer microseconds of the telemetry tables."""
    return round(at * 1_000_000)
