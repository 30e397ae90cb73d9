"""Files on their way in: written aside, synced, and moved into place as a whole. Blocking; called on threads."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from varvel import ids
from varvel.errors import StorageFull, TooLarge
from varvel.files.checksums import Checksums, Version, version_of
from varvel.files.store import InTheWay

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_TRIES = 10
"""How often a file is moved into a folder that others delete meanwhile."""
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Incoming:
    """One file being written aside. Each method on one thread at a time; the three on blocks also side by side."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.size = 0
        self._limit = limit
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._descriptor = os.open(path, _NEW, 0o644)

    def write(self, block: Sequence[bytes | bytearray]) -> None:
        """Append, and take SHA-256. Raises `TooLarge`, `StorageFull`."""
        size = sum(len(piece) for piece in block)
        self.size += size
        if self.size > self._limit:
            raise TooLarge(f"The file is larger than {self._limit} bytes")
        written = guarded(os.writev, self._descriptor, block)
        if written < size:
            rest = memoryview(b"".join(block))[written:]
            while rest:
                rest = rest[guarded(os.write, self._descriptor, rest) :]
        for piece in block:
            self._sha256.update(piece)

    def hash_md5(self, block: Sequence[bytes | bytearray]) -> None:
        """Take MD5."""
        for piece in block:
            self._md5.update(piece)

    def sync(self) -> None:
        """Have the disk keep what is written so far. Raises `StorageFull`."""
        guarded(os.fdatasync, self._descriptor)

    def finish(self) -> tuple[Version, Checksums]:
        """Sync and close; the file is still aside."""
        guarded(os.fsync, self._descriptor)
        version = version_of(os.fstat(self._descriptor))
        os.close(self._descriptor)
        self._descriptor = -1
        return version, Checksums(self._sha256.hexdigest(), self._md5.hexdigest())

    def discard(self) -> None:
        """Remove what was written, if it was not moved into place."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        with suppress(FileNotFoundError):
            self.path.unlink()


def guarded(call: Callable[..., T], *arguments: object) -> T:
    """`call(*arguments)`, with a full disk as `StorageFull`."""
    try:
        return call(*arguments)
    except OSError as problem:
        if problem.errno in _FULL:
            raise StorageFull from problem
        raise


def place(source: Path, target: Path) -> None:
    """Move a finished file to `target`, in one step, and make that last. Raises `InTheWay`, `StorageFull`."""
    try:
        for left in reversed(range(_TRIES)):
            try:
                guarded(_make_folders, target.parent)
            except FileExistsError:
                # A file is in the way, or a folder that was deleted in between.
                if not left:
                    raise
                continue
            try:
                guarded(move, source, target)
                break
            except FileNotFoundError:
                # The folder was deleted in between. But when the source is gone, no try can help.
                if not left or not os.path.lexists(source):
                    raise
    except (FileExistsError, NotADirectoryError) as problem:
        raise InTheWay(f"A part of the path of {target.name} is a file") from problem
    except IsADirectoryError as problem:
        raise InTheWay(f"{target.name} is a folder") from problem
    sync_folder(target.parent)


def place_tree(source: Path, target: Path, aside: Path) -> None:
    """Move all files below `source` to the same places below `target`; if one cannot be, none is.

    What they replace is kept in `aside` until all are there. Raises `InTheWay`, `StorageFull`.
    """
    aside.mkdir()
    done: list[tuple[Path, Path | None]] = []
    made = [target / folder for folder in _folders(source) if not (target / folder).exists()]
    try:
        for folder in made:
            guarded(_make_folders, folder)
        for number, path in enumerate(_files(source)):
            goal, kept = target / path, aside / str(number)
            had = goal.is_symlink() or goal.exists()
            if had:
                guarded(_keep, goal, kept)
            guarded(move, source / path, goal)
            done.append((goal, kept if had else None))
    except BaseException as problem:
        _put_back(done)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(problem, FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError):
            raise InTheWay("A file of the archive meets a folder, or a folder a file") from problem
        raise
    for folder in {goal.parent for goal, _ in done}:
        sync_folder(folder)


def finish_tree(source: Path, target: Path) -> None:
    """Go on with a `place_tree` that a crash cut short: move what is still below `source`."""
    for folder in _folders(source):
        _make_folders(target / folder)
    for path in _files(source):
        move(source / path, target / path)


def move(source: Path, target: Path) -> None:
    """Move a file or folder, in one step as seen at `target`, also when that is on another file system."""
    try:
        source.replace(target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
    else:
        return
    beside = target.with_name(f".{ids.uuid7()}.coming")
    try:
        _copy(source, beside)
        beside.replace(target)
    except BaseException:
        _remove(beside)
        raise
    _remove(source)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder with its times, and sync the data."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_copy_file)
    else:
        _copy_file(source, target)


def _copy_file(source: str | Path, target: str | Path) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    if not Path(target).is_symlink():
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _keep(goal: Path, kept: Path) -> None:
    """Another name for a file that is about to be replaced; a copy where a name cannot lead to it."""
    try:
        os.link(goal, kept, follow_symlinks=False)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        _copy_file(goal, kept)


def _put_back(done: Sequence[tuple[Path, Path | None]]) -> None:
    for goal, kept in reversed(done):
        if kept is not None:
            move(kept, goal)
        else:
            goal.unlink()


def _folders(root: Path) -> list[Path]:
    return [Path(folder).relative_to(root) for folder, _, _ in os.walk(root)]


def _files(root: Path) -> list[Path]:
    return [Path(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names]


def _make_folders(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last over a power failure; in one that was deleted since, there are none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        guarded(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it, as far as it goes."""
    shutil.rmtree(path, ignore_errors=True)
