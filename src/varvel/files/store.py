"""The seam of file storage: what any implementation does, and the words that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from varvel.errors import Conflict, InvalidRequest, NotFound
from varvel.files.paths import StoragePath


class NoSuchFile(NotFound):
    """There is no such file or folder."""


class NotAFile(Conflict):
    """That is a folder, not a file."""


class InTheWay(Conflict):
    """Something of another kind is already at that path."""


class FolderNotEmpty(Conflict):
    """The folder is not empty; say recursive to delete all that is in it."""


class NoSuchUpload(NotFound):
    """There is no such multipart upload, or it was completed, cancelled or abandoned."""


class BadParts(InvalidRequest):
    """The parts named are not those that were uploaded."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A file or folder. Times are wall seconds; folders have size 0 and no checksums."""

    name: str
    is_file: bool
    size: int
    created_at: float
    updated_at: float
    etag: str = ""
    """Without quotes; differs whenever the content may. Left out of listings."""
    sha256: str | None = None
    """Hexadecimal, as is `md5`. Both or neither; None while they are being computed."""
    md5: str | None = None


class Part(msgspec.Struct, frozen=True):
    """One part of a multipart upload. `etag` is the MD5 of its bytes, hexadecimal."""

    part_number: int
    etag: str
    size: int = 0


class Verified(msgspec.Struct, frozen=True):
    """What reading everything back found."""

    files: int
    bytes: int
    mismatched: list[str]
    """Paths, relative to the folder that was verified, whose bytes are not those of their checksums."""


class OpenFile(Protocol):
    """A file open for reading: what is read is of one version, even if it is replaced meanwhile."""

    entry: Entry

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end."""
        ...

    async def close(self) -> None: ...


class FileStore(Protocol):
    """Storage of all owners. Nothing of one owner can be reached through another's name.

    A file is visible whole or not at all. Raises `NoSuchFile`, `NotAFile`, `InTheWay`, `StorageFull`.
    """

    async def listing(self, owner: str, path: StoragePath, wait: float | None = None) -> list[Entry]:
        """What is in a folder, by name; a file is listed as itself. The root of a new owner is empty.

        Waits up to `wait` seconds for checksums that are not known yet; those still unknown then are None.
        """
        ...

    async def stat(self, owner: str, path: StoragePath) -> Entry: ...
    async def open(self, owner: str, path: StoragePath) -> OpenFile: ...
    async def write(self, owner: str, path: StoragePath, chunks: AsyncIterator[bytes], limit: int) -> Entry:
        """Store what comes; folders above are made. An error of `chunks` leaves everything as it was.

        Raises `TooLarge` beyond `limit` bytes.
        """
        ...

    async def unpack(self, owner: str, path: StoragePath, chunks: AsyncIterator[bytes], limit: int) -> bool:
        """Store the files of a ZIP archive in the folder `path`, all or none.

        False, and stored as the file `path`, when what came is no ZIP archive. Raises `BadArchive`.
        """
        ...

    async def delete(self, owner: str, path: StoragePath, *, recursive: bool = False) -> None:
        """Delete a file or folder. Raises `FolderNotEmpty`."""
        ...

    async def rename(self, owner: str, source: StoragePath, target: StoragePath) -> None:
        """Move a file or folder; a file at `target` is replaced."""
        ...

    async def begin(self, owner: str, path: StoragePath) -> str:
        """Begin a multipart upload to `path`; the id of it."""
        ...

    async def put_part(self, owner: str, upload_id: str, number: int, chunks: AsyncIterator[bytes], limit: int) -> Part:
        """Store one part (from 1 on); the same number again replaces it. Raises `NoSuchUpload`, `TooLarge`."""
        ...

    async def parts(self, owner: str, upload_id: str) -> list[Part]:
        """The parts stored so far, by number, so that an interrupted upload can go on. Raises `NoSuchUpload`."""
        ...

    async def complete(self, owner: str, upload_id: str, parts: Sequence[Part], limit: int) -> Entry:
        """Join the parts into the file. Raises `NoSuchUpload`, `BadParts`, `TooLarge`."""
        ...

    async def cancel(self, owner: str, upload_id: str) -> None:
        """Forget an upload and its parts. Raises `NoSuchUpload`."""
        ...

    async def verify(self, owner: str, path: StoragePath) -> Verified:
        """Read all files below `path` back and compare them with their known checksums."""
        ...
