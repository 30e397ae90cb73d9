"""Identifiers and times, made in one place so that tests can pass their own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)


_unused_noise: list[bytes] = []


def _noise() -> bytes:
    """Ten bytes from the system's random source, which is asked for many ids at once.

    A call for each would give up the interpreter lock each time, and cost more than all else of a queued request.
    """
    try:
        return _unused_noise.pop()
    except IndexError:
        block = os.urandom(2560)
        _unused_noise.extend(block[at : at + 10] for at in range(10, 2560, 10))
        return block[:10]


class OrderedClock:
    """Wall time in nanoseconds that follows a clock that is set forward, and goes on when it is set back."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> int:
        passed = self._monotonic()
        offset = self._wall() - passed
        if offset > self._offset:
            self._offset = offset
        return passed + self._offset


_ordered = OrderedClock()


def uuid7() -> str:
    """A UUID version 7 (RFC 9562) in its 36-character form: sorts by the millisecond in which it was made.

    In one process also while the clock is set back.
    """
    value = (_ordered() // 1_000_000) << 80 | int.from_bytes(_noise(), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in canonical lower-case form."""
    return _UUID.fullmatch(text) is not None


def now() -> float:
    """Wall clock in seconds since 1970 (UTC). Every time that is stored or sent is one of these."""
    return time.time()


class Started:
    """The moment at which something began: its wall time, and how long ago that is, whatever is done to the clock."""

    __slots__ = ("_began", "_monotonic", "at")

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.at = wall()
        self._monotonic = monotonic
        self._began = monotonic()

    def ended(self) -> float:
        """Wall time of an end now, as if the clock had not been set since."""
        return self.at + self._monotonic() - self._began


def iso(at: float) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`, the form of every time on the wire."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_micros(at_us: int) -> str:
    """The same with microseconds, for log lines, whose time is their identity; `at_us` in microseconds."""
    seconds, micros = divmod(at_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"
