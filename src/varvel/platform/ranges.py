"""Conditional requests and byte ranges (RFC 9110): what of a file is sent. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to before `end`."""

    start: int
    end: int

    def content_range(self, size: int) -> str:
        """The header of a partial reply."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


class Unsatisfiable(Exception):
    """The range lies beyond the end of the file."""


def requested(header: str | None, size: int) -> Span | None:
    """The part of `size` bytes that a Range header asks for; None for all of them.

    Several ranges at once, other units and nonsense are answered with the whole, as the standard allows. Raises
    `Unsatisfiable`.
    """
    match = _RANGE.fullmatch(header) if header and len(header) < 200 else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise Unsatisfiable
        return Span(max(0, size - int(last)), size)
    start, end = int(first), min(int(last), size - 1) + 1 if last else size
    if last and int(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return Span(start, end)


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names `etag` (without quotes); weak comparison."""
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or f'"{etag}"' in names


def unchanged_since(header: str | None, updated_at: float) -> bool:
    """Whether an If-Modified-Since header is not before `updated_at` (wall seconds); what is no date is passed over."""
    if header is None:
        return False
    try:
        return int(updated_at) <= parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return False


def still_the_same(if_range: str | None, etag: str) -> bool:
    """Whether a range of the version that If-Range names can be sent; dates are not strong enough."""
    return if_range is None or if_range.strip() == f'"{etag}"'
