"""SHA-256 and MD5 of files, computed once for each content and remembered by inode, size and time of change."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import structlog

from varvel.state.database import Database

BLOCK = 1024 * 1024
_BATCH_FILES = 64
_BATCH_BYTES = 64 * BLOCK
_TICK_NS = 20_000_000
"""A file changed less than this before it was read may change again without a new mtime."""
_FIND = """
SELECT inode, size, mtime_ns, sha256, md5 FROM file_checksums
WHERE owner = ? AND inode IN (SELECT value FROM json_each(?))
"""
_KEEP = "INSERT OR REPLACE INTO file_checksums (owner, inode, size, mtime_ns, sha256, md5) VALUES (?, ?, ?, ?, ?, ?)"
_log = structlog.get_logger("varvel.files")


class Checksums(NamedTuple):
    """Both sums, hexadecimal."""

    sha256: str
    md5: str


class Version(NamedTuple):
    """What tells one content of a file from another."""

    inode: int
    size: int
    mtime_ns: int


def version_of(found: os.stat_result) -> Version:
    """The version that a file is at."""
    return Version(found.st_ino, found.st_size, found.st_mtime_ns)


Known = tuple[int, int, Checksums | None]
"""Size and mtime_ns of a file, and its sums at that version."""
NOTHING: Known = (-1, 0, None)


class Digest:
    """Both sums of bytes that come in pieces."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece. Releases the interpreter for large ones."""
        self._sha256.update(data)
        self._md5.update(data)

    def result(self) -> Checksums:
        """The sums of all so far."""
        return Checksums(self._sha256.hexdigest(), self._md5.hexdigest())


class ChecksumCache:
    """Known sums, in memory and behind it in the state database. Files are read on threads of its own."""

    def __init__(self, database: Database, *, entries: int, threads: int = 2) -> None:
        self._database = database
        self._entries = entries
        self._pool = ThreadPoolExecutor(threads, "varvel-checksums")
        self._known: dict[str, dict[int, Known]] = {}
        self._held = 0
        self._running: dict[tuple[str, Version], asyncio.Future[None]] = {}
        self._closing = threading.Event()

    def get(self, owner: str, version: Version) -> Checksums | None:
        """What memory knows."""
        size, mtime_ns, sums = self.of(owner).get(version.inode, NOTHING)
        return sums if size == version.size and mtime_ns == version.mtime_ns else None

    def of(self, owner: str) -> Mapping[int, Known]:
        """The same for many files of one owner, by inode; true only of a file of that size and time."""
        return self._known.get(owner, {})

    def put(self, owner: str, found: Sequence[tuple[Version, Checksums]]) -> None:
        """Remember, also over restarts. On the event loop."""
        self._remember(owner, found)
        rows = [(owner, *version, bytes.fromhex(sums.sha256), bytes.fromhex(sums.md5)) for version, sums in found]
        self._database.write_soon(lambda db: db.executemany(_KEEP, rows).rowcount)

    async def ensure(self, owner: str, files: Sequence[tuple[str, Version]], wait: float) -> None:
        """Find the sums of `files`: from the database, else by reading them, for up to `wait` seconds.

        What is not done then goes on, and is known later. Files that change meanwhile stay unknown.
        """
        missing = [item for item in files if self.get(owner, item[1]) is None]
        if not missing:
            return
        inodes = json.dumps([version.inode for _, version in missing])
        rows = await self._database.read(lambda db: _rows(db, owner, inodes))
        self._remember(owner, [(Version(*row[:3]), Checksums(row[3].hex(), row[4].hex())) for row in rows])
        missing = [item for item in missing if self.get(owner, item[1]) is None]
        fresh = [item for item in missing if (owner, item[1]) not in self._running]
        waiting = {self._running[owner, version] for _, version in missing if (owner, version) in self._running}
        for batch in _batches(fresh):
            future = asyncio.ensure_future(self._compute(owner, batch))
            self._running |= {(owner, version): future for _, version in batch}
            waiting.add(future)
        if waiting:
            await asyncio.wait(waiting, timeout=wait)

    async def close(self) -> None:
        """Stop reading files."""
        self._closing.set()
        if self._running:
            await asyncio.gather(*set(self._running.values()), return_exceptions=True)
        self._pool.shutdown()

    async def _compute(self, owner: str, batch: list[tuple[str, Version]]) -> None:
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._pool, self._read, batch)
            if found and not self._closing.is_set():
                self.put(owner, found)
        except Exception as problem:
            _log.error("checksums failed", error=repr(problem))
        finally:
            for _, version in batch:
                self._running.pop((owner, version), None)

    def _read(self, batch: list[tuple[str, Version]]) -> list[tuple[Version, Checksums]]:
        found = []
        buffer = memoryview(bytearray(BLOCK))
        for path, version in batch:
            settled = not 0 <= time.time_ns() - version.mtime_ns < _TICK_NS
            sums = hash_file(path, version, buffer, self._closing)
            if settled and sums is not None:
                found.append((version, sums))
        return found

    def _remember(self, owner: str, found: Iterable[tuple[Version, Checksums]]) -> None:
        known = self._known.setdefault(owner, {})
        before = len(known)
        for version, sums in found:
            known.pop(version.inode, None)
            known[version.inode] = (version.size, version.mtime_ns, sums)
        self._held += len(known) - before
        while self._held > self._entries:
            # Who adds gives up what it has known the longest.
            known.pop(next(iter(known)))
            self._held -= 1


def hash_file(
    path: Path | str, version: Version, buffer: memoryview, stop: threading.Event | None = None
) -> Checksums | None:
    """The sums of `path` if it was at `version` from the first byte to the last; None when it was not, or on `stop`."""
    digest = Digest()
    try:
        with open_regular(path) as file:
            while (size := file.readinto(buffer)) and not _set(stop):
                digest.update(buffer[:size])
            same = version_of(os.fstat(file.fileno())) == version
    except OSError:
        return None
    return digest.result() if same and not _set(stop) else None


def _set(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def open_regular(path: Path | str) -> FileIO:
    """Open for reading; a link, pipe or device in place of the file raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return FileIO(descriptor)


def _rows(db: sqlite3.Connection, owner: str, inodes: str) -> list[tuple[int, int, int, bytes, bytes]]:
    return [tuple(row) for row in db.execute(_FIND, (owner, inodes))]


def _batches(files: Sequence[tuple[str, Version]]) -> Iterable[list[tuple[str, Version]]]:
    batch: list[tuple[str, Version]] = []
    size = 0
    for item in files:
        batch.append(item)
        size += item[1].size
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
