"""Pages of time buckets, for the operations that answer a time series."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from varvel.errors import InvalidRequest
from varvel.platform.analytics_sql import Span
from varvel.platform.buckets import Window, following
from varvel.platform.cursors import Cursors, PageNumber

FARTHEST = 100_000
"""Buckets that a numbered cursor may skip; the cursors that we give have no such bound."""


@dataclass(frozen=True, slots=True)
class Page:
    """The buckets of one page. `following` is the edge at which the next page begins."""

    window: Window
    edges: tuple[int, ...]
    following: int | None
    first: bool = True

    @property
    def span(self) -> Span:
        """The part of the range that this page covers."""
        begin = self.edges[0] * 1_000_000 if self.edges else self.window.start
        end = self.window.end if self.following is None else self.following * 1_000_000
        window = self.window
        whole = bool(self.edges) and following(self.edges[-1], window.timeframe, window.zone) * 1_000_000 == end
        return Span(max(begin, window.start), end, self.edges, window.calendar, whole)

    def cursor(self, cursors: Cursors, operation: str, zone: str) -> str | None:
        """The cursor of the next page; None on the last."""
        if self.following is None:
            return None
        key = (self.window.start, self.window.end, self.window.timeframe, zone, self.following)
        return cursors.encode(operation, key)


def page_of(window: Window, limit: int, after: int | None = None, skip: int = 0) -> Page:
    """The `limit` buckets of a window that begin at `after`, or after `skip` buckets."""
    edges = tuple(islice(window.edges(after), skip, skip + limit + 1))
    first = after is None and not skip
    return Page(window, edges[:limit], edges[limit] if len(edges) > limit else None, first)


def page_at(cursors: Cursors, operation: str, cursor: str | None, window: Window, zone: str, limit: int) -> Page:
    """The page that `cursor` leads to. A cursor keeps the range of its first page, also one that ended "now".

    Raises `InvalidRequest`.
    """
    if cursor is None:
        return page_of(window, limit)
    where = cursors.decode(operation, cursor)
    if isinstance(where, PageNumber):
        skip = where.offset(limit)
        if skip > FARTHEST:
            raise InvalidRequest("cursor: so far ahead only the cursors of this list lead")
        return page_of(window, limit, skip=skip)
    key: tuple[Any, ...] = where.key
    start, end, timeframe, name, after = key
    if name != zone:
        raise InvalidRequest("cursor: belongs to a list with another timezone")
    return page_of(Window(start, end, timeframe, window.zone), limit, after)
