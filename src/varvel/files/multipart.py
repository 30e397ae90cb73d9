"""Multipart uploads: parts wait in a folder each, over restarts too, until they are joined. Blocking."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from varvel import ids
from varvel.files.incoming import guarded, remove_tree
from varvel.files.paths import StoragePath
from varvel.files.store import BadParts, NoSuchUpload, Part

MAX_PARTS = 10_000
_ABOUT = "upload.json"


class _About(msgspec.Struct):
    owner: str
    parts: tuple[str, ...]
    created_at: float


class PartFolder:
    """The unfinished uploads of all owners, in folders named by their ids."""

    def __init__(self, root: Path, ttl: float) -> None:
        self._root = root
        self._ttl = ttl
        self._lock = threading.Lock()

    def begin(self, owner: str, path: StoragePath, now: float) -> str:
        """A new upload of the file `path`."""
        upload_id = ids.uuid7()
        folder = self._root / upload_id
        guarded(folder.mkdir)
        guarded((folder / _ABOUT).write_bytes, msgspec.json.encode(_About(owner, path.parts, now)))
        return upload_id

    def find(self, owner: str, upload_id: str) -> StoragePath:
        """Where the file will be. Raises `NoSuchUpload`."""
        if not ids.is_uuid(upload_id):
            raise NoSuchUpload
        try:
            about = msgspec.json.decode((self._root / upload_id / _ABOUT).read_bytes(), type=_About)
        except (FileNotFoundError, msgspec.DecodeError) as problem:
            raise NoSuchUpload from problem
        if about.owner != owner:
            raise NoSuchUpload
        return StoragePath(about.parts)

    def put(self, owner: str, upload_id: str, number: int, source: Path, etag: str, size: int) -> Part:
        """Take over a finished file as part `number`; one of that number is replaced."""
        self.find(owner, upload_id)
        if not 1 <= number <= MAX_PARTS:
            raise BadParts(f"part number: must be from 1 to {MAX_PARTS}")
        folder = self._root / upload_id
        target = folder / f"{number}.{etag}"
        try:
            # The same part may come twice at once, and only one may stay.
            with self._lock:
                old = [path for path in folder.iterdir() if path.name.startswith(f"{number}.")]
                source.replace(target)
                for path in old:
                    if path != target:
                        path.unlink(missing_ok=True)
        except FileNotFoundError as problem:
            raise NoSuchUpload from problem
        return Part(number, etag, size)

    def parts(self, owner: str, upload_id: str) -> list[Part]:
        """The parts that are there, by number."""
        self.find(owner, upload_id)
        try:
            with self._lock, os.scandir(self._root / upload_id) as listing:
                found = [_part(entry) for entry in listing if entry.name != _ABOUT]
        except FileNotFoundError as problem:
            raise NoSuchUpload from problem
        return sorted(found, key=lambda part: part.part_number)

    def chosen(self, owner: str, upload_id: str, wanted: Sequence[Part]) -> tuple[StoragePath, list[tuple[Part, Path]]]:
        """The target, and the files of the parts that a client names, in its order. Raises `BadParts`."""
        path = self.find(owner, upload_id)
        there = {part.part_number: part for part in self.parts(owner, upload_id)}
        numbers = [part.part_number for part in wanted]
        if not numbers or numbers != sorted(set(numbers)):
            raise BadParts("parts: must be named by number, ascending, each once")
        for part in wanted:
            if part.part_number not in there or there[part.part_number].etag != part.etag.strip('"').lower():
                raise BadParts(f"parts: part {part.part_number} is not there, or has another etag")
        chosen = [there[number] for number in numbers]
        return path, [(part, self._root / upload_id / f"{part.part_number}.{part.etag}") for part in chosen]

    def remove(self, upload_id: str) -> None:
        """Forget an upload."""
        remove_tree(self._root / upload_id)

    def sweep(self, now: float) -> None:
        """Forget uploads that nobody finished."""
        for path in self._root.iterdir():
            with suppress(FileNotFoundError):
                if ids.is_uuid(path.name) and path.is_dir() and path.stat().st_mtime < now - self._ttl:
                    remove_tree(path)


def _part(entry: os.DirEntry[str]) -> Part:
    number, _, etag = entry.name.partition(".")
    return Part(int(number), etag, entry.stat().st_size)
