"""What is recorded of a finished request."""

from __future__ import annotations

from typing import Any

from varvel.apps.model import AppId
from varvel.billing.rules import MachineType
from varvel.queue.model import Outcome
from varvel.telemetry.records import Rows, rows

MACHINE = MachineType(name="M", cores=1, memory_bytes=1, price_second=0.1, multiplier=2)


def recorded(input: bytes = b'{"a": 1}', *, store_io: bool = True, limit: int = 1000, **given: Any) -> Rows:
    values: dict[str, Any] = {
        "status": 200,
        "headers": [(b"content-type", b"application/json")],
        "body": b'{"b": 2}',
        "runner_id": "r",
        "machine_type": "M",
        "started_at": 102.0,
        "ended_at": 105.0,
    }
    return rows(
        request_id="x",
        app=AppId("me", "echo"),
        endpoint_id="me/echo/turbo",
        caller=None,
        kind="queue",
        method="POST",
        sent_at=100.0,
        attempts=1,
        outcome=Outcome(**{**values, **given}),
        machine=MACHINE,
        input=input,
        store_io=store_io,
        payload_limit=limit,
    )


def test_a_request_is_recorded_with_its_times_in_microseconds() -> None:
    record = recorded().request
    assert (record.sent_at, record.started_at, record.ended_at) == (100_000_000, 102_000_000, 105_000_000)
    assert (record.prepare_duration, record.duration) == (2.0, 3.0)
    assert (record.owner, record.app, record.endpoint_id) == ("me", "me/echo", "me/echo/turbo")


def test_seconds_times_the_multiplier_are_billed_unless_the_app_sets_units() -> None:
    assert (recorded().billing.billable_units, recorded().billing.unit) == (6.0, "seconds")
    own = recorded(units=4.0).billing
    assert (own.billable_units, own.billable_duration, own.unit) == (4.0, 3.0, "units")


def test_a_failure_on_our_side_is_billed_nothing() -> None:
    bill = recorded(status=503).billing
    assert (bill.billable_units, bill.billable_duration) == (0.0, 0.0)


def test_a_request_that_no_runner_took_started_when_it_ended_and_costs_nothing() -> None:
    found = recorded(status=499, runner_id=None)
    assert found.request.started_at == found.request.ended_at
    assert found.request.duration == 0
    assert found.request.prepare_duration == 5.0
    assert found.billing.billable_units == 0


def test_a_clock_that_was_set_back_while_a_request_waited_takes_nothing_from_its_duration() -> None:
    found = recorded(started_at=100.0 - 3600, ended_at=103.0 - 3600)
    assert (found.request.started_at, found.request.ended_at) == (100_000_000, 103_000_000)
    assert (found.request.duration, found.billing.billable_duration) == (3.0, 3.0)


def test_a_clock_that_stepped_back_makes_no_negative_time() -> None:
    record = recorded(started_at=90.0, ended_at=80.0).request
    assert record.duration == 0
    assert record.prepare_duration == 0


def test_payloads_are_kept_when_they_are_json() -> None:
    kept = recorded().payload
    assert kept is not None
    assert (kept.input, kept.output) == ('{"a": 1}', '{"b": 2}')


def test_a_payload_that_is_not_json_or_too_large_is_not_kept() -> None:
    half = recorded(b"\xff\xfe").payload
    assert half is not None
    assert half.input == ""
    assert recorded(b"nope", body=b"not json").payload is None
    assert recorded(b'"' + b"x" * 2000 + b'"', body=b"").payload is None
    image = recorded(b"", headers=[(b"content-type", b"image/png")], body=b"1")
    assert image.payload is None


def test_no_payload_is_kept_when_the_caller_asked_so() -> None:
    assert recorded(store_io=False).payload is None
