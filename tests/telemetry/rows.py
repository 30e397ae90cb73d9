"""Rows that tests record."""

from __future__ import annotations

import time

from varvel.ids import uuid7
from varvel.telemetry.model import BillingRow, EventRow, PayloadRow, RequestRow, RunnerRow

HOUR = 3_600_000_000


def now_us() -> int:
    return time.time_ns() // 1000


def request(*, owner: str = "me", status: int = 200, at: int | None = None, duration: float = 0.25) -> RequestRow:
    ended = at or now_us()
    return RequestRow(
        request_id=uuid7(),
        owner=owner,
        app=f"{owner}/ocr",
        endpoint_id=f"{owner}/ocr",
        kind="sync",
        sent_at=ended - 400_000,
        started_at=ended - int(duration * 1e6),
        ended_at=ended,
        status_code=status,
        error_type="runner_server_error" if status == 500 else "",
        duration=duration,
        prepare_duration=0.15,
    )


def bill(of: RequestRow, units: float = 2.0) -> BillingRow:
    return BillingRow(
        request_id=of.request_id,
        owner=of.owner,
        app=of.app,
        endpoint_id=of.endpoint_id,
        ended_at=of.ended_at,
        recorded_at=now_us(),
        billable_units=units,
        billable_duration=of.duration,
        machine_type="XS",
        unit="units",
    )


def payload(of: RequestRow) -> PayloadRow:
    body = '{"text": "caf\u00e9 \\" \\n"}'
    return PayloadRow(request_id=of.request_id, owner=of.owner, ended_at=of.ended_at, input=body, output=body)


def event(owner: str = "me") -> EventRow:
    return EventRow(
        event_id=uuid7(), owner=owner, app=f"{owner}/ocr", category="runner", created_at=now_us(), payload="{}"
    )


def runner_state(owner: str = "me") -> RunnerRow:
    now = now_us()
    return RunnerRow(
        row_id=uuid7(),
        owner=owner,
        app=f"{owner}/ocr",
        environment="main",
        machine_type="XS",
        since=now - 1_000_000,
        until=now,
        seconds=1.0,
        running=2,
    )
