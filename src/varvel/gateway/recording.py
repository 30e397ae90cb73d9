"""How the end of a direct call becomes a record, a bill and a count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from varvel.apps.model import App
from varvel.billing.rules import MachineType
from varvel.metrics.meter import Meter
from varvel.queue.model import Outcome
from varvel.settings import Settings
from varvel.state.ledger import Ledger
from varvel.telemetry.records import rows

Kind = Literal["sync", "stream", "realtime"]
Machines = Callable[[str], MachineType]


class Recorder(Protocol):
    """Takes the end of a direct call; what it gives is awaited before the caller has the last byte."""

    def __call__(self, call: Call, outcome: Outcome, kind: Kind, input: bytes) -> Awaitable[None]: ...


@dataclass(slots=True)
class Call:
    """One direct call on its way."""

    request_id: str
    app: App
    endpoint_id: str
    path: str
    target: bytes
    method: str
    caller: str | None
    arrived: float
    store_io: bool = True
    hint: str | None = None
    start_timeout: float | None = None


class Recording:
    """Records direct calls through the ledger and counts them."""

    def __init__(self, settings: Settings, ledger: Ledger, meter: Meter, machines: Machines) -> None:
        self._ledger = ledger
        self._meter = meter
        self._machines = machines
        self._payload_limit = settings.payload_limit

    def __call__(self, call: Call, outcome: Outcome, kind: Kind, input: bytes) -> Awaitable[None]:
        self._meter.completed(str(call.app.app), call.method, outcome.status, outcome.ended_at - call.arrived)
        made = rows(
            request_id=call.request_id,
            app=call.app.app,
            endpoint_id=call.endpoint_id,
            caller=call.caller,
            kind=kind,
            method=call.method,
            sent_at=call.arrived,
            attempts=1,
            outcome=outcome,
            machine=self._machines(outcome.machine_type or call.app.current.spec.machine_type),
            input=input,
            store_io=call.store_io,
            payload_limit=self._payload_limit,
        )
        return self._ledger.record_call(made.request, made.payload, made.billing)
