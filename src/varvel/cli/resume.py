"""Large files go up in parts: what has arrived is kept when the connection breaks, or the command is ended.

Which upload belongs to which file is remembered in the cache folder, so that the same `varvel files put` goes on where
it was. A file that changed since begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from varvel.cli.connection import UNREACHABLE, Failure, Refused
from varvel.cli.progress import PIECE, transfer
from varvel.cli.session import Session
from varvel.cli.upload import wrapped

ROOT = "/v1/serverless/files"
FIELD = "file_upload"
PART = 16 * 1024 * 1024
LARGE = 4 * PART
"""Bytes from which a file goes up in parts."""
MOST_PARTS = 10_000
TRIES = 6
FIRST_PAUSE = 0.5
GONE = 404


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a file: its number from 1 on, where it begins, and its size in bytes."""

    number: int
    start: int
    size: int


def plan(size: int, part: int = PART) -> list[Piece]:
    """The parts of a file of `size` bytes; larger ones when there would be more than a server takes."""
    part = max(part, -(-size // MOST_PARTS))
    return [Piece(number, start, min(part, size - start)) for number, start in enumerate(range(0, size, part), 1)]


class Record:
    """Remembers the id of one file's unfinished upload."""

    def __init__(self, session: Session, local: Path, path: str) -> None:
        seen = local.stat()
        about = [session.place.url, path, str(local.absolute()), seen.st_size, seen.st_mtime_ns]
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._file = cache / "varvel" / "uploads" / name

    def read(self) -> str | None:
        """The id, if there is one."""
        with suppress(OSError):
            return self._file.read_text().strip() or None
        return None

    def write(self, upload_id: str) -> None:
        """Remember an id. Where the cache folder cannot be written, the upload just cannot be resumed."""
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(upload_id)

    def forget(self) -> None:
        with suppress(OSError):
            self._file.unlink()


def send(session: Session, local: Path, path: str, *, restart: bool = False) -> None:
    """Upload a file in parts, the first time or again. Raises `Failure`."""
    record = Record(session, local, path)
    if restart and (old := record.read()):
        with suppress(Refused):
            session.server.call("POST", f"{_base(path)}/{old}/cancel")
        record.forget()
    upload_id, there = _begun(session, record, path)
    parts = plan(local.stat().st_size)
    done: list[dict[str, Any]] = []
    with transfer(session.err, local.name, local.stat().st_size) as advance:
        for piece in parts:
            etag = there.get(piece.number)
            if etag is None or etag != _md5(local, piece):
                etag = _put(session, local, path, upload_id, piece)
            done.append({"part_number": piece.number, "etag": etag})
            advance(piece.size)
    session.server.call("POST", f"{_base(path)}/{upload_id}/complete", json={"parts": done})
    record.forget()


def _begun(session: Session, record: Record, path: str) -> tuple[str, dict[int, str]]:
    """An upload, and the etags of the parts that it has by number."""
    if old := record.read():
        try:
            found = session.server.get(f"{ROOT}/uploads/{old}")["parts"]
        except Refused as problem:
            if problem.status != GONE:
                raise
        else:
            session.say(f"going on with {len(found)} parts that are there")
            return old, {int(part["part_number"]): str(part["etag"]) for part in found}
    begun = session.server.call("POST", f"{_base(path)}/initiate")
    record.write(begun["upload_id"])
    return str(begun["upload_id"]), {}


def _put(session: Session, local: Path, path: str, upload_id: str, piece: Piece) -> str:
    """Send one part, again when the connection breaks; its etag."""

    def once() -> str:
        body, headers = wrapped(FIELD, local.name, _read(local, piece), piece.size)
        target = f"{_base(path)}/{upload_id}/{piece.number}"
        return str(session.server.call("PUT", target, content=body, headers=headers)["etag"])

    return patiently(once, lambda problem: session.say(f"{problem.message}; trying again", "yellow"))


def patiently(once: Callable[[], str], say: Callable[[Failure], None], pause: float = FIRST_PAUSE) -> str:
    """What `once` gives; tried again, after longer and longer pauses, while the server cannot be reached."""
    for attempt in range(1, TRIES):
        try:
            return once()
        except Failure as problem:
            if problem.code != UNREACHABLE:
                raise
            say(problem)
        time.sleep(pause * 2 ** (attempt - 1))
    return once()


def _read(local: Path, piece: Piece) -> Iterator[bytes]:
    left = piece.size
    with local.open("rb") as file:
        file.seek(piece.start)
        while left and (data := file.read(min(PIECE, left))):
            yield data
            left -= len(data)


def _md5(local: Path, piece: Piece) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for data in _read(local, piece):
        digest.update(data)
    return digest.hexdigest()


def _base(path: str) -> str:
    return f"{ROOT}/file/multipart/{quote(path)}"
