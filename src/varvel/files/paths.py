"""Paths inside an owner's storage: how callers write them, and how they are shown. No I/O.

Two dialects name the same file: relative to the storage (`datasets/cat.jpg`), and absolute as the apps see it
(`/data/datasets/cat.jpg`). A listing answers in the dialect that it was asked in.
"""

from __future__ import annotations

from dataclasses import dataclass

from varvel.errors import InvalidRequest

MOUNT = "data"
MAX_NAME = 255
MAX_PATH = 4000


class BadPath(InvalidRequest):
    """The path cannot be one of a file."""


@dataclass(frozen=True, slots=True)
class StoragePath:
    """A place in the storage; no parts is its root."""

    parts: tuple[str, ...] = ()
    absolute: bool = False

    @property
    def name(self) -> str:
        """Last part; empty for the root."""
        return self.parts[-1] if self.parts else ""

    @property
    def parent(self) -> StoragePath:
        """The folder that it is in; the root's is itself."""
        return StoragePath(self.parts[:-1], self.absolute)

    def child(self, *names: str) -> StoragePath:
        """A place below it."""
        return StoragePath((*self.parts, *names), self.absolute)

    def __str__(self) -> str:
        inside = "/".join(self.parts)
        if not self.absolute:
            return inside
        return f"/{MOUNT}/{inside}" if inside else f"/{MOUNT}"


ROOT = StoragePath()


def parse(text: str) -> StoragePath:
    """Read either dialect. Raises `BadPath` for what leaves the storage or no file system could hold."""
    absolute = text.startswith("/")
    parts = tuple(part for part in text.split("/") if part and part != ".")
    if absolute and parts[:1] != (MOUNT,):
        raise BadPath(f"An absolute path begins with /{MOUNT}: {text[:200]!r}")
    path = StoragePath(parts[1:] if absolute else parts, absolute)
    for part in path.parts:
        check_name(part)
    if len("/".join(path.parts).encode()) > MAX_PATH:
        raise BadPath(f"A path may have {MAX_PATH} bytes at most")
    return path


def check_name(name: str) -> str:
    """One part of a path. Raises `BadPath`."""
    if name in ("", ".", ".."):
        raise BadPath("A path may not contain '..'")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise BadPath("A path may not contain control characters")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as problem:
        raise BadPath("A path must be valid UTF-8") from problem
    if size > MAX_NAME:
        raise BadPath(f"A name in a path may have {MAX_NAME} bytes at most")
    return name


def readable(name: str) -> str:
    """A name of a file as text that JSON can carry: bytes that are not UTF-8 become question marks in a diamond."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def parse_file(text: str) -> StoragePath:
    """The same, for what must be a file and so cannot be the root."""
    path = parse(text)
    if not path.parts or text.endswith("/"):
        raise BadPath("The path must name a file")
    return path
