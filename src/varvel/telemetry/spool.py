"""Log lines on disk while the store is away: files of JSON lines in order of `ts`, within a bound of bytes."""

from __future__ import annotations

import re
from pathlib import Path

SEGMENT = 4 * 1024 * 1024
"""Bytes after which a new file begins; one file is one batch when the store is back."""
_TS = re.compile(rb'\{"ts":(\d+),')


def ts_of(line: bytes) -> int | None:
    """`ts` of an encoded log line; None for one that was cut off."""
    found = _TS.match(line)
    return int(found[1]) if found and line.endswith(b"}") else None


class Spool:
    """Blocking file work: call it in a thread, one call at a time."""

    def __init__(self, folder: Path, bound: int) -> None:
        self._folder = folder
        self._bound = bound
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._segments = sorted(folder.glob("*.ndjson"))
        self.bytes = sum(path.stat().st_size for path in self._segments)
        self._fresh = True
        """The next line begins a file: a file of an earlier process may end in half a line."""

    def __bool__(self) -> bool:
        """Whether lines wait here."""
        return bool(self._segments)

    def append(self, lines: list[bytes]) -> int:
        """Keep lines for later; gives how many of the first ones found room. Raises OSError."""
        taken, size = 0, 0
        for line in lines:
            if self.bytes + size + len(line) + 1 > self._bound:
                break
            taken, size = taken + 1, size + len(line) + 1
        if taken:
            self._write(b"\n".join(lines[:taken]) + b"\n")
        return taken

    def _write(self, data: bytes) -> None:
        if self._fresh or not self._segments or self._segments[-1].stat().st_size >= SEGMENT:
            first = ts_of(data[: data.index(b"\n")]) or 0
            self._segments.append(self._folder / f"{first:020d}.ndjson")
            self._fresh = False
        path = self._segments[-1]
        before = path.stat().st_size if path.exists() else 0
        with path.open("ab", buffering=0) as file:
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                file.truncate(before)
                raise
        self.bytes += len(data)

    def oldest(self) -> list[bytes]:
        """The lines of the oldest file. A line that a crash cut off is left out."""
        text = self._segments[0].read_bytes() if self._segments else b""
        return [line for line in text.split(b"\n") if ts_of(line) is not None]

    def delete_oldest(self) -> None:
        """Forget the oldest file: its lines are in the store."""
        path = self._segments.pop(0)
        self.bytes -= path.stat().st_size
        path.unlink()
        self._fresh = self._fresh or not self._segments

    def read_clock(self) -> int:
        """Last `ts` that an earlier process gave out, as far as it was written down; 0 if none."""
        try:
            return int((self._folder / "clock").read_text() or 0)
        except (OSError, ValueError):
            return 0

    def write_clock(self, ts: int) -> None:
        """Write down the last `ts` given out. Raises OSError."""
        fresh = self._folder / "clock.new"
        fresh.write_text(str(ts))
        fresh.replace(self._folder / "clock")
