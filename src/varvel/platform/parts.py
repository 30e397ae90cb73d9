"""Everything that the sections of the Platform API are given. They reach nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from varvel import ids
from varvel.egress import Egress
from varvel.platform.cursors import Cursors

if TYPE_CHECKING:
    from varvel.apps.model import Catalog
    from varvel.auth.keys import KeyStore
    from varvel.auth.limits import RateLimits
    from varvel.auth.model import Authenticator
    from varvel.billing.machines import MachineTypes
    from varvel.billing.prices import PriceBook
    from varvel.files.store import FileStore
    from varvel.metrics.meter import Meter
    from varvel.platform.idempotency import Idempotency
    from varvel.queue.scheduler import Scheduler
    from varvel.runners.model import Pool
    from varvel.settings import Settings
    from varvel.state.database import Database
    from varvel.state.ledger import Ledger
    from varvel.telemetry.service import Telemetry
    from varvel.telemetry_export.drains import LogDrains


@dataclass(frozen=True, kw_only=True)
class PlatformParts:
    """The parts of one server, as the Platform API needs them. Built in one place, by the server's composition."""

    settings: Settings
    authenticator: Authenticator
    keys: KeyStore
    catalog: Catalog
    scheduler: Scheduler
    pool: Pool
    telemetry: Telemetry
    ledger: Ledger
    meter: Meter
    files: FileStore
    machines: MachineTypes
    database: Database
    drains: LogDrains | None = None
    egress: Egress = field(default_factory=Egress)
    """Fetches what callers name by URL; the server passes the one that it closes at its end."""
    clock: Callable[[], float] = ids.now
    """Wall seconds; tests pass their own."""

    @cached_property
    def cursors(self) -> Cursors:
        """Makes and reads the `next_cursor` of every list."""
        return Cursors(self.keys.secret("cursors"))

    @cached_property
    def prices(self) -> PriceBook:
        """What machine-seconds cost when. The server starts it, so that a change of prices holds from its start."""
        from varvel.billing.prices import PriceBook

        return PriceBook(self.database, self.machines, self.clock)

    @cached_property
    def idempotency(self) -> Idempotency:
        """Remembers replies to writes that came with an `Idempotency-Key`."""
        from varvel.platform.idempotency import Idempotency

        return Idempotency(self.database, self.settings.idempotency_ttl, self.clock)

    @cached_property
    def limits(self) -> RateLimits:
        """Calls a minute for each key."""
        from varvel.auth.limits import RateLimits

        return RateLimits(self.settings.rate_limit)
