"""Where uploaded media lie: a folder each, whole files only, gone when they expire.

`DIR/uploads/<first two of id>/<id>/` holds `meta.json`, `data`, and while a multipart upload goes on its parts,
named `<number>.<etag>.part`. `DIR/uploads/expiring/<Unix second>-<id>` says what to delete when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from varvel.errors import InvalidRequest, NotFound
from varvel.gateway.bodies import spill

_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_COPY = 4 * 1024 * 1024


class Rule(msgspec.Struct):
    """What one user may do with a file: allow, forbid (403) or hide (404)."""

    user: str
    decision: str


class Acl(msgspec.Struct):
    """Who may read a file."""

    default: str = "allow"
    rules: list[Rule] = []

    def decision(self, user: str | None) -> str:
        """What holds for a user, None being anybody."""
        return next((rule.decision for rule in self.rules if rule.user == user), self.default)


class Medium(msgspec.Struct, kw_only=True):
    """What is known of a file from the moment that its upload is announced."""

    media_id: str
    owner: str
    file_name: str
    content_type: str
    created_at: float
    expires_at: float | None = None
    acl: Acl = msgspec.field(default_factory=Acl)


class Media:
    """Files by id, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expiring = folder / "expiring"

    def new_id(self) -> str:
        """An id that cannot be guessed: whoever knows it may read what is not restricted further."""
        return secrets.token_urlsafe(16)

    async def announce(self, medium: Medium) -> None:
        """Keep what is known of a file that is about to come."""
        await asyncio.to_thread(self._announce, medium)

    def _announce(self, medium: Medium) -> None:
        folder = self._of(medium.media_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "meta.json").write_bytes(msgspec.json.encode(medium))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if medium.expires_at is not None:
            self._expiring.mkdir(parents=True, exist_ok=True)
            (self._expiring / f"{int(medium.expires_at)}-{medium.media_id}").touch()

    async def find(self, media_id: str, now: float) -> Medium:
        """What is known of a file. Raises `NotFound` when there is none, or it has expired."""
        medium = await asyncio.to_thread(self._read, media_id)
        if medium is None or (medium.expires_at is not None and medium.expires_at <= now):
            raise NotFound("File not found")
        return medium

    def _read(self, media_id: str) -> Medium | None:
        if not 8 <= len(media_id) <= 64 or not _ID.issuperset(media_id):
            return None
        try:
            return msgspec.json.decode((self._of(media_id) / "meta.json").read_bytes(), type=Medium)
        except FileNotFoundError:
            return None

    async def remove(self, medium: Medium) -> None:
        """Forget a file, whether it has come or not."""
        await asyncio.to_thread(shutil.rmtree, self._of(medium.media_id), ignore_errors=True)

    async def write(self, medium: Medium, pieces: AsyncIterator[bytes]) -> int:
        """Write the whole file; its size. Raises `StorageFull`."""
        folder = self._of(medium.media_id)
        path = folder / f"{secrets.token_hex(8)}.coming"
        size = await spill(pieces, path)
        await asyncio.to_thread(os.replace, path, folder / "data")
        return size

    async def write_part(self, medium: Medium, number: int, pieces: AsyncIterator[bytes]) -> str:
        """Write one part of it; its etag. A part that comes again gets another etag."""
        etag = secrets.token_hex(16)
        folder = self._of(medium.media_id)
        path = folder / f"{secrets.token_hex(8)}.coming"
        await spill(pieces, path)
        await asyncio.to_thread(os.replace, path, folder / f"{number}.{etag}.part")
        return etag

    async def join(self, medium: Medium, parts: Sequence[tuple[int, str]], most: int) -> None:
        """Make the file of its parts, given as (number, etag). Raises `InvalidRequest` when one is not there."""
        await asyncio.to_thread(self._join, self._of(medium.media_id), sorted(parts), most)

    def _join(self, folder: Path, parts: list[tuple[int, str]], most: int) -> None:
        paths = [folder / f"{number}.{etag}.part" for number, etag in parts if _ID.issuperset(etag)]
        if len(paths) != len(parts) or not all(path.exists() for path in paths):
            raise InvalidRequest("The upload names parts that have not come")
        if sum(path.stat().st_size for path in paths) > most:
            raise InvalidRequest(f"The file is larger than {most} bytes, which is what this server takes")
        joined = folder / f"{secrets.token_hex(8)}.coming"
        try:
            with joined.open("xb") as target:
                for path in paths:
                    with path.open("rb") as source:
                        shutil.copyfileobj(source, target, _COPY)
                target.flush()
                os.fsync(target.fileno())
            joined.replace(folder / "data")
        except BaseException:
            joined.unlink(missing_ok=True)
            raise
        for path in folder.glob("*.part"):
            path.unlink(missing_ok=True)

    async def data(self, medium: Medium) -> tuple[Path, int]:
        """Path and size of the file. Raises `NotFound` while it has not come."""
        path = self._of(medium.media_id) / "data"
        try:
            return path, (await asyncio.to_thread(path.stat)).st_size
        except FileNotFoundError:
            raise NotFound("File not found") from None

    async def sweep(self, now: float) -> int:
        """Delete what has expired; how many."""
        return await asyncio.to_thread(self._sweep, now)

    def _sweep(self, now: float) -> int:
        deleted = 0
        with contextlib.suppress(FileNotFoundError):
            for mark in self._expiring.iterdir():
                second, _, media_id = mark.name.partition("-")
                if second.isdigit() and int(second) <= now:
                    shutil.rmtree(self._of(media_id), ignore_errors=True)
                    mark.unlink(missing_ok=True)
                    deleted += 1
        return deleted

    def _of(self, media_id: str) -> Path:
        return self._folder / media_id[:2] / media_id
