"""A ledger that tells traces of the direct calls that pass through it."""

from __future__ import annotations

from collections.abc import Awaitable

from varvel.state.database import Database
from varvel.state.ledger import Ledger
from varvel.state.outbox import Outbox
from varvel.telemetry.model import BillingRow, PayloadRow, RequestRow
from varvel.telemetry_export.traces import Traces


class TracedLedger(Ledger):
    """A `Ledger` whose direct calls become traces, too. Queued requests come to `Traces.job` from the scheduler."""

    def __init__(self, database: Database, outbox: Outbox, traces: Traces) -> None:
        super().__init__(database, outbox)
        self._traces = traces

    def record_call(
        self, request: RequestRow, payload: PayloadRow | None = None, billing: BillingRow | None = None
    ) -> Awaitable[None]:
        """See `Ledger.record_call`."""
        self._traces.call(request)
        return super().record_call(request, payload, billing)
