"""Log lines on their way to the store, written down as they are taken, so that a server that is killed loses none.

Two files take turns: while the lines of one are being delivered, new lines go to the other. A write ends in the
kernel's page cache and is not synced: it outlives the process, not the machine, and costs a few microseconds.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from varvel.telemetry.spool import ts_of

_HEAD = struct.Struct("<III")
"""Before each piece: which turn of the file it belongs to, its length, its checksum."""
_NOTHING = bytes(_HEAD.size)


class _File:
    """Pieces of one turn, one behind the other; what an earlier turn left lies behind them."""

    __slots__ = ("end", "fd", "newest", "path", "turn")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # a full disk keeps no server from starting
            self.fd = -1
        self.turn = 1
        self.end = 0
        self.newest = 0

    def empty(self) -> None:
        if self.end:
            self.turn, self.end = self.turn + 1, 0
            os.pwrite(self.fd, _NOTHING, 0)


class WriteAhead:
    """Call it on the event loop; only `__init__` and `forget` read or delete what an earlier process left."""

    def __init__(self, folder: Path, bound: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._earlier = sorted(folder.glob("*.ahead"), key=_number)
        found = [line for path in self._earlier for line in _lines(path.read_bytes())]
        self.left = sorted(found, key=lambda line: ts_of(line) or 0)
        """Lines that an earlier process took and did not see arrive, in order. The store may have some of them."""
        first = _number(self._earlier[-1]) + 1 if self._earlier else 0
        self._files = [_File(folder / f"{number}.ahead") for number in (first, first + 1)]
        self._each = bound // 2
        self._settled = 0
        self._missed = 0

    def write(self, lines: list[bytes], newest: int) -> None:
        """Keep lines until `settled` is told of `newest`, the number of the last of them. Never raises."""
        file = self._files[0]
        data = b"\n".join(lines)
        piece = _HEAD.pack(file.turn, len(data), zlib.crc32(data)) + data
        if file.fd < 0 or file.end + len(piece) > self._each:
            self._missed += len(lines)
            return
        try:
            written = os.pwrite(file.fd, piece, file.end)
        except OSError:
            written = 0
        if written == len(piece):
            file.end += written
            file.newest = newest
        else:
            self._missed += len(lines)

    def take_missed(self) -> int:
        """How many lines were not written down since this was last asked, for there was no room."""
        missed, self._missed = self._missed, 0
        return missed

    def turn(self) -> None:
        """Let new lines go to the other file, if that is free."""
        if not self._files[1].end:
            self._files.reverse()

    def settled(self, number: int) -> None:
        """Every line up to that number is in the store, or in the spool."""
        for file in self._files:
            if file.newest <= number and file.fd >= 0:
                with contextlib.suppress(OSError):  # then a later start compares them with the store
                    file.empty()

    def forget(self) -> None:
        """What the earlier process left is in the store."""
        self.left = []
        for path in self._earlier:
            path.unlink(missing_ok=True)
        self._earlier = []

    def close(self) -> None:
        """Write nothing more. Files with lines that did not settle stay for the next process."""
        for file in self._files:
            if file.fd >= 0:
                os.close(file.fd)
                file.fd = -1
                if not file.end:
                    file.path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else 0


def _lines(data: bytes) -> Iterator[bytes]:
    """Lines of the turn that a file begins with, up to the first piece that is not whole."""
    place, turn = 0, 0
    while place + _HEAD.size <= len(data):
        of, length, checksum = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        piece = data[place : place + length]
        if not of or (turn and of != turn) or len(piece) < length or zlib.crc32(piece) != checksum:
            return
        yield from piece.split(b"\n")
        turn, place = of, place + length
