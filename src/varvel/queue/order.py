"""The order of waiting requests: normal before low, first come first served inside, a place kept over retries.

Everything costs the same with ten waiting as with a million: counts are kept for 256 and for 65,536 places, so
that a position is two short sums and one count over at most 256 bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from varvel.apps.model import AppId

_BLOCK = 8
_SPAN = 16
_SPAN_PLACES = 1 << _SPAN
_BLOCKS_A_SPAN = 1 << (_SPAN - _BLOCK)


class Waiting(NamedTuple):
    """One waiting request. Only plain values, so that a million of them are no work for the garbage collector."""

    seq: int
    request_id: str
    caller: str | None
    hint: str | None
    deadline: float | None
    low: bool


class Line:
    """A queue with ranks: append at the end, take from the front, remove anywhere, put back at an old place.

    `append` gives a place, a growing number; the front moves on, and what was taken may come back to its place.
    """

    __slots__ = ("_base", "_blocks", "_count", "_end", "_flags", "_front", "_items", "_spans")

    def __init__(self) -> None:
        self._base = 0
        """Place of the first flag; a multiple of a span."""
        self._end = 0
        self._count = 0
        self._flags = bytearray()
        self._items: list[Waiting | None] = []
        self._blocks: list[int] = []
        self._spans: list[int] = []
        self._front: list[tuple[int, Waiting]] = []
        """What came back to places before `_base`, in order."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, Waiting]]:
        """Places and requests in order."""
        yield from self._front
        for index, item in enumerate(self._items):
            if item is not None:
                yield self._base + index, item

    def append(self, item: Waiting) -> int:
        """Put `item` at the end; its place."""
        place = self._end
        index = place - self._base
        if not index & (_SPAN_PLACES - 1):
            self._spans.append(0)
        if not index & ((1 << _BLOCK) - 1):
            self._blocks.append(0)
        self._flags.append(0)
        self._items.append(None)
        self._end += 1
        self._set(index, item)
        return place

    def put_back(self, place: int, item: Waiting) -> None:
        """Put what was taken or removed back where it was."""
        if place < self._base:
            insort(self._front, (place, item))
            self._count += 1
        else:
            self._set(place - self._base, item)

    def first(self) -> tuple[int, Waiting] | None:
        """The place and request at the front, or None."""
        if self._front:
            return self._front[0]
        index = self._flags.find(1)
        if index < 0:
            return None
        item = self._items[index]
        assert item is not None
        return self._base + index, item

    def get(self, place: int) -> Waiting | None:
        """What waits at `place`."""
        if place < self._base:
            position = bisect_left(self._front, place, key=_place_of)
            found = self._front[position] if position < len(self._front) else None
            return found[1] if found and found[0] == place else None
        return self._items[place - self._base]

    def remove(self, place: int) -> Waiting | None:
        """Take out what waits at `place`; None when nothing does."""
        if place < self._base:
            return self._remove_front(place)
        index = place - self._base
        item = self._items[index]
        if item is None:
            return None
        self._items[index] = None
        self._flags[index] = 0
        self._blocks[index >> _BLOCK] -= 1
        self._spans[index >> _SPAN] -= 1
        self._count -= 1
        if len(self._spans) > 1 and not self._spans[0]:
            self._trim()
        return item

    def rank(self, place: int) -> int:
        """How many wait before `place`."""
        if place < self._base:
            return bisect_left(self._front, place, key=_place_of)
        index = place - self._base
        block = index >> _BLOCK
        span = index >> _SPAN
        return (
            len(self._front)
            + sum(self._spans[:span])
            + sum(self._blocks[span * _BLOCKS_A_SPAN : block])
            + self._flags.count(1, block << _BLOCK, index)
        )

    def upcoming(self, count: int) -> list[Waiting]:
        """The first `count` requests in order."""
        found = [item for _, item in self._front[:count]]
        index = -1
        while len(found) < count and (index := self._flags.find(1, index + 1)) >= 0:
            item = self._items[index]
            assert item is not None
            found.append(item)
        return found

    def _set(self, index: int, item: Waiting) -> None:
        self._items[index] = item
        self._flags[index] = 1
        self._blocks[index >> _BLOCK] += 1
        self._spans[index >> _SPAN] += 1
        self._count += 1

    def _remove_front(self, place: int) -> Waiting | None:
        position = bisect_left(self._front, place, key=_place_of)
        if position == len(self._front) or self._front[position][0] != place:
            return None
        self._count -= 1
        return self._front.pop(position)[1]

    def _trim(self) -> None:
        """Let go of the empty spans at the front, but never of the one that is being filled."""
        empty = 0
        while empty < len(self._spans) - 1 and not self._spans[empty]:
            empty += 1
        del self._spans[:empty]
        del self._blocks[: empty * _BLOCKS_A_SPAN]
        del self._flags[: empty << _SPAN]
        del self._items[: empty << _SPAN]
        self._base += empty << _SPAN


def _place_of(item: tuple[int, Waiting]) -> int:
    return item[0]


@dataclass(slots=True)
class AppLines:
    """The two lines of an app, and what rests between two attempts."""

    app: AppId
    number: int
    normal: Line = field(default_factory=Line)
    low: Line = field(default_factory=Line)
    resting: int = 0

    def line(self, low: bool) -> Line:
        return self.low if low else self.normal

    def __len__(self) -> int:
        return len(self.normal) + len(self.low)


class Order:
    """All waiting requests of all apps, by app and by id.

    A request that was taken keeps its place until `forget`, and may come back to it with `put_back`, or rest
    first: resting requests wait (they have a position and count in `size`), but are not at anybody's front.
    """

    def __init__(self) -> None:
        self._apps: dict[AppId, AppLines] = {}
        self._numbered: list[AppLines] = []
        # Plain integers: app number, priority and place packed. See `Waiting` for why.
        self._where: dict[str, int] = {}
        self._resting: dict[str, tuple[int, Waiting]] = {}

    def __len__(self) -> int:
        """How many wait, resting ones included."""
        return len(self._where) + len(self._resting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._where or request_id in self._resting

    def add(self, app: AppId, item: Waiting) -> int:
        """Let a new request wait; its place, for `put_back`."""
        lines = self._lines(app)
        place = lines.line(item.low).append(item)
        self._where[item.request_id] = _pack(lines.number, item.low, place)
        return place

    def first(self, app: AppId) -> Waiting | None:
        """Whose turn it is."""
        found = self._first(app)
        return found[1] if found else None

    def take(self, app: AppId) -> tuple[int, Waiting] | None:
        """Take the first out of the line: its place and the request."""
        found = self._first(app)
        if found is not None:
            self.remove(found[1].request_id)
        return found

    def put_back(self, app: AppId, place: int, item: Waiting) -> None:
        """Let a taken request wait again, at its old place."""
        lines = self._lines(app)
        lines.line(item.low).put_back(place, item)
        self._where[item.request_id] = _pack(lines.number, item.low, place)

    def rest(self, app: AppId, place: int, item: Waiting) -> None:
        """Let a taken request wait without its turn coming, until `wake`."""
        lines = self._lines(app)
        lines.resting += 1
        self._resting[item.request_id] = (_pack(lines.number, item.low, place), item)

    def wake(self, request_id: str) -> AppId | None:
        """End the rest of a request: it is back at its place. Its app, or None when it does not rest."""
        found = self._resting.pop(request_id, None)
        if found is None:
            return None
        packed, item = found
        lines, low, place = self._unpack(packed)
        lines.resting -= 1
        lines.line(low).put_back(place, item)
        self._where[request_id] = packed
        return lines.app

    def remove(self, request_id: str) -> tuple[AppId, int, Waiting] | None:
        """Take a waiting request out, wherever it waits: its app, place and item; None when it does not wait."""
        packed = self._where.pop(request_id, None)
        if packed is None:
            return self._remove_resting(request_id)
        lines, low, place = self._unpack(packed)
        item = lines.line(low).remove(place)
        assert item is not None
        return lines.app, place, item

    def get(self, request_id: str) -> Waiting | None:
        """A waiting request; None when it does not wait."""
        packed = self._where.get(request_id)
        if packed is None:
            found = self._resting.get(request_id)
            return found[1] if found else None
        lines, low, place = self._unpack(packed)
        return lines.line(low).get(place)

    def position(self, request_id: str) -> int | None:
        """How many wait before it: those before it in its line, and for a low one all normal ones. None if unknown."""
        packed = self._packed(request_id)
        if packed is None:
            return None
        lines, low, place = self._unpack(packed)
        ahead = lines.line(low).rank(place)
        return ahead + len(lines.normal) if low else ahead

    def size(self, app: AppId) -> int:
        """How many wait for this app, resting ones included."""
        lines = self._apps.get(app)
        return len(lines) + lines.resting if lines is not None else 0

    def ready(self, app: AppId) -> int:
        """How many could run now."""
        lines = self._apps.get(app)
        return len(lines) if lines is not None else 0

    def apps(self) -> list[AppId]:
        """Apps for which something waits."""
        return [app for app, lines in self._apps.items() if len(lines) + lines.resting]

    def upcoming(self, app: AppId, count: int) -> list[Waiting]:
        """The next `count` requests of an app in order."""
        lines = self._apps.get(app)
        if lines is None:
            return []
        found = lines.normal.upcoming(count)
        return found if len(found) == count else found + lines.low.upcoming(count - len(found))

    def waiting(self, app: AppId) -> list[Waiting]:
        """All that wait for an app, resting ones last."""
        lines = self._apps.get(app)
        if lines is None:
            return []
        found = [item for line in (lines.normal, lines.low) for _, item in line]
        if lines.resting:
            found += [item for packed, item in self._resting.values() if self._unpack(packed)[0] is lines]
        return found

    def _first(self, app: AppId) -> tuple[int, Waiting] | None:
        lines = self._apps.get(app)
        return (lines.normal.first() or lines.low.first()) if lines is not None else None

    def _remove_resting(self, request_id: str) -> tuple[AppId, int, Waiting] | None:
        found = self._resting.pop(request_id, None)
        if found is None:
            return None
        packed, item = found
        lines, _, place = self._unpack(packed)
        lines.resting -= 1
        return lines.app, place, item

    def _packed(self, request_id: str) -> int | None:
        packed = self._where.get(request_id)
        if packed is None and (found := self._resting.get(request_id)):
            return found[0]
        return packed

    def _lines(self, app: AppId) -> AppLines:
        lines = self._apps.get(app)
        if lines is None:
            lines = self._apps[app] = AppLines(app, len(self._numbered))
            self._numbered.append(lines)
        return lines

    def _unpack(self, packed: int) -> tuple[AppLines, bool, int]:
        return self._numbered[packed >> 48], bool(packed >> 47 & 1), packed & (1 << 47) - 1


def _pack(number: int, low: bool, place: int) -> int:
    return number << 48 | low << 47 | place
