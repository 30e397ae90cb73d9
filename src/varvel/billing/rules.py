"""What a request costs its caller. Plain functions; prices come in as arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A size of runner. Prices in USD; the owner of the machine sets what is true for it."""

    name: str
    cores: float
    memory_bytes: int
    gpus: int = 0
    price_second: float
    """Price of one machine-second before surge and discount."""
    multiplier: float
    """Billable units of one second of execution on it."""
    surge: float = 1.0
    """Factor on the price while surge pricing holds; 1 is no surge."""
    percent_discount: float | None = None
    vram_bytes: int = 0
    """Memory of one GPU."""
    surge_hours: tuple[tuple[int, int], ...] = ()
    """When surge pricing holds: from and to (exclusive) in minutes of the UTC day. Empty means always."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Units and seconds that one request is billed."""

    units: float
    duration: float
    unit: str


def bill(*, status: int, started: bool, units: float | None, duration: float, machine: MachineType) -> Bill:
    """The bill of a finished request.

    A request that failed on our side (5xx) or never reached a runner costs nothing. Otherwise the app's own
    `x-fal-billable-units` decides, and where it set none, seconds of execution times the machine's multiplier.
    """
    if status >= 500 or not started:
        return Bill(0.0, 0.0, "units" if units is not None else "seconds")
    if units is not None:
        return Bill(units, duration, "units")
    return Bill(round(duration * machine.multiplier, 6), duration, "seconds")
