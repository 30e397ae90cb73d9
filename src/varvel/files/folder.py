"""File storage in a folder: `DIR/files/<owner>` is the `/data` of that owner's apps, who write there directly."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import FileIO
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec
import structlog

from varvel import ids
from varvel.files import archive, incoming
from varvel.files.archive import ArchiveLimits
from varvel.files.checksums import (
    BLOCK,
    NOTHING,
    ChecksumCache,
    Checksums,
    Known,
    Version,
    hash_file,
    open_regular,
    version_of,
)
from varvel.files.multipart import PartFolder
from varvel.files.paths import BadPath, StoragePath, readable
from varvel.files.receiving import receive
from varvel.files.store import (
    BadParts,
    Entry,
    FolderNotEmpty,
    InTheWay,
    NoSuchFile,
    NoSuchUpload,
    NotAFile,
    Part,
    Verified,
)
from varvel.state.database import Database

T = TypeVar("T")
P = ParamSpec("P")
INCOMING = ".incoming"
"""Beside the owners' folders, whose names cannot begin with a dot."""
_JOURNAL = "commit.json"
_NAME = attrgetter("name")
_LONGEST = 4095 - 64
"""Bytes that a path may have for the system, less those of a temporary name beside it."""
_KIND = 0o170000
"""Where a mode says what kind of thing it is."""
_log = structlog.get_logger("varvel.files")


@dataclass(frozen=True, slots=True)
class _Found:
    """What is at a path, after links."""

    path: Path
    stat: os.stat_result

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.stat.st_mode)

    @property
    def version(self) -> Version:
        return version_of(self.stat)


class _Unknown(NamedTuple):
    """A listed file whose checksums are to be found: its name in the list, where it is, and which version."""

    name: str
    path: str
    version: Version


class FolderFile:
    """Implements `OpenFile`."""

    def __init__(self, entry: Entry, file: FileIO, pool: ThreadPoolExecutor) -> None:
        self.entry = entry
        self._file = file
        self._pool = pool

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, os.pread, self._file.fileno(), size, offset)

    async def close(self) -> None:
        """Close it."""
        self._file.close()


class FolderStore:
    """Implements `FileStore` below `root` (`DIR/files`). `start` and `close` once."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        limits: ArchiveLimits,
        checksum_wait: float = 20.0,
        checksum_entries: int = 500_000,
        part_ttl: float = 7 * 86_400.0,
        threads: int = 8,
        clock: Callable[[], float] = ids.now,
    ) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._limits = limits
        self._wait = checksum_wait
        self._clock = clock
        self._pool = ThreadPoolExecutor(threads, "varvel-files")
        self._sums = ChecksumCache(database, entries=checksum_entries)
        self._uploads = PartFolder(self._incoming, part_ttl)

    async def start(self) -> None:
        """Make the folders, and remove what a crash left aside."""
        await self._thread(self._start)

    async def close(self) -> None:
        """Stop computing checksums and end the threads."""
        await self._sums.close()
        self._pool.shutdown()

    def folder(self, owner: str) -> Path:
        """The folder that is the owner's `/data`, made if it is not there. Blocks for a moment."""
        path = self._root / owner
        path.mkdir(parents=True, exist_ok=True)
        return path

    # -- reading

    async def listing(self, owner: str, path: StoragePath, wait: float | None = None) -> list[Entry]:
        """What is in a folder, by name; a file is listed as itself."""
        entries, unknown = await self._thread(self._scan, owner, path)
        if unknown:
            missing = [(item.path, item.version) for item in unknown]
            await self._sums.ensure(owner, missing, self._wait if wait is None else wait)
            await self._thread(self._fill_in, owner, entries, unknown)
        return entries

    async def stat(self, owner: str, path: StoragePath) -> Entry:
        """One file or folder."""
        found = await self._thread(self._find, owner, path)
        return self._entry(owner, path.name, found)

    async def open(self, owner: str, path: StoragePath) -> FolderFile:
        """Open a file for reading."""
        found, file = await self._thread(self._open, owner, path)
        return FolderFile(self._entry(owner, path.name, found), file, self._pool)

    async def verify(self, owner: str, path: StoragePath) -> Verified:
        """Read all files below `path` back and compare them with their known checksums."""
        base, found = await self._thread(self._walk, owner, path)
        await self._sums.ensure(owner, [(str(item.path), item.version) for item in found], self._wait)
        return await self._thread(self._verify, owner, base, found)

    # -- writing

    async def write(self, owner: str, path: StoragePath, chunks: AsyncIterator[bytes], limit: int) -> Entry:
        """Store what comes as the file `path`."""
        await self._thread(self._target, owner, path)
        sink = await self._receive(chunks, limit)
        try:
            # What is at the path when it is looked at again may be another's upload already.
            version, sums = await self._thread(sink.finish)
            await self._thread(self._place, sink.path, owner, path)
        finally:
            await self._thread(sink.discard)
        self._sums.put(owner, [(version, sums)])
        seconds, rest = divmod(version.mtime_ns, 1_000_000_000)
        changed = seconds + 1e-9 * rest  # what `st_mtime` of the same file says, to its last bit
        return Entry(path.name, True, version.size, changed, changed, _etag(version), sums.sha256, sums.md5)

    async def unpack(self, owner: str, path: StoragePath, chunks: AsyncIterator[bytes], limit: int) -> bool:
        """Store the files of a ZIP archive in the folder `path`, all or none."""
        await self._thread(self._target, owner, path)
        sink = await self._receive(chunks, limit)
        aside = sink.path.with_suffix(".tree")
        try:
            version, sums = await self._thread(sink.finish)
            if not await self._thread(archive.is_archive, sink.path):
                await self._thread(self._place, sink.path, owner, path)
                self._sums.put(owner, [(version, sums)])
                return False
            self._sums.put(owner, await self._thread(self._unpack, sink.path, aside, owner, path))
            return True
        finally:
            await self._thread(sink.discard)
            await self._thread(incoming.remove_tree, aside)

    async def delete(self, owner: str, path: StoragePath, *, recursive: bool = False) -> None:
        """Delete a file or folder; a link goes, not what it leads to."""
        aside = await self._thread(self._delete, owner, path, recursive)
        if aside is not None:
            await self._thread(incoming.remove_tree, aside)

    async def rename(self, owner: str, source: StoragePath, target: StoragePath) -> None:
        """Move a file or folder."""
        await self._thread(self._rename, owner, source, target)

    # -- multipart

    async def begin(self, owner: str, path: StoragePath) -> str:
        """Begin a multipart upload."""
        await self._thread(self._target, owner, path)
        await self._thread(self._uploads.sweep, self._clock())
        return await self._thread(self._uploads.begin, owner, path, self._clock())

    async def put_part(self, owner: str, upload_id: str, number: int, chunks: AsyncIterator[bytes], limit: int) -> Part:
        """Store one part."""
        await self._thread(self._uploads.find, owner, upload_id)
        sink = await self._receive(chunks, limit)
        try:
            _, sums = await self._thread(sink.finish)
            return await self._thread(self._uploads.put, owner, upload_id, number, sink.path, sums.md5, sink.size)
        finally:
            await self._thread(sink.discard)

    async def parts(self, owner: str, upload_id: str) -> list[Part]:
        """The parts stored so far."""
        return await self._thread(self._uploads.parts, owner, upload_id)

    async def complete(self, owner: str, upload_id: str, parts: Sequence[Part], limit: int) -> Entry:
        """Join the parts into the file."""
        path, files = await self._thread(self._uploads.chosen, owner, upload_id, parts)
        if sum(part.size for part, _ in files) > limit:
            raise BadParts(f"Together the parts are larger than {limit} bytes")
        entry = await self.write(owner, path, self._joined([file for _, file in files]), limit)
        await self._thread(self._uploads.remove, upload_id)
        return entry

    async def cancel(self, owner: str, upload_id: str) -> None:
        """Forget an upload."""
        await self._thread(self._uploads.find, owner, upload_id)
        await self._thread(self._uploads.remove, upload_id)

    async def _joined(self, files: Sequence[Path]) -> AsyncIterator[bytes]:
        for path in files:
            try:
                file = await self._thread(open_regular, path)
            except FileNotFoundError as problem:
                raise NoSuchUpload from problem
            try:
                while data := await self._thread(file.read, BLOCK):
                    yield data
            finally:
                file.close()

    # -- on threads

    async def _thread(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *arguments, **options))

    async def _receive(self, chunks: AsyncIterator[bytes], limit: int) -> incoming.Incoming:
        return await receive(chunks, self._incoming / ids.uuid7(), limit, self._pool)

    def _start(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True)
        for path in self._incoming.iterdir():
            if not path.is_dir():
                path.unlink()
            elif path.suffix:
                _finish(path)
                incoming.remove_tree(path)
        self._uploads.sweep(self._clock())

    def _real_root(self, owner: str) -> str:
        return os.path.realpath(self.folder(owner))

    def _inside(self, owner: str, path: StoragePath) -> Path:
        """Where a path leads, after links; a link that leads outside leads nowhere."""
        root = self._real_root(owner)
        _check_length(root, path)
        real = os.path.realpath(os.path.join(root, *path.parts))  # noqa: PTH118 - Path would drop nothing but time
        if real != root and not real.startswith(root + os.sep):
            raise NoSuchFile(f"There is no {path}")
        return Path(real)

    def _own_name(self, owner: str, path: StoragePath) -> Path:
        """Where the name itself is: its folder after links, the last part as it is."""
        _check_length(self._real_root(owner), path)
        return self._inside(owner, path.parent) / path.name

    def _target(self, owner: str, path: StoragePath) -> Path:
        """Where a file would be written. Raises `InTheWay`."""
        target = self._own_name(owner, path)
        for above in target.parents:  # one look at each: a folder may go between two
            try:
                mode = above.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(mode):
                raise InTheWay(f"{path}: {above.name} is a file")
            break
        return target

    def _find(self, owner: str, path: StoragePath) -> _Found:
        try:
            real = self._inside(owner, path)
            found = _Found(real, real.stat())
        except OSError as problem:
            raise NoSuchFile(f"There is no {path}") from problem
        if not found.is_file and not stat.S_ISDIR(found.stat.st_mode):
            raise NoSuchFile(f"There is no {path}")
        return found

    def _open(self, owner: str, path: StoragePath) -> tuple[_Found, FileIO]:
        found = self._find(owner, path)
        if not found.is_file:
            raise NotAFile(f"{path} is a folder")
        try:
            file = open_regular(found.path)
        except OSError as problem:
            raise NoSuchFile(f"There is no {path}") from problem
        return _Found(found.path, os.fstat(file.fileno())), file

    def _scan(self, owner: str, path: StoragePath) -> tuple[list[Entry], list[_Unknown]]:
        """What is listed, and which of it lacks checksums."""
        top = self._find(owner, path)
        if top.is_file:
            entry = msgspec.structs.replace(self._entry(owner, path.name, top), etag="")
            return [entry], [] if entry.sha256 else [_Unknown(entry.name, str(top.path), top.version)]
        try:
            entries, unknown = _listed(str(top.path), self._real_root(owner), self._sums.of(owner))
        except OSError as problem:
            raise NoSuchFile(f"There is no {path}, or it cannot be read") from problem
        entries.sort(key=_NAME)
        return entries, unknown

    def _fill_in(self, owner: str, entries: list[Entry], unknown: Sequence[_Unknown]) -> None:
        found = {item.name: self._sums.get(owner, item.version) for item in unknown}
        for number, entry in enumerate(entries):
            if (sums := found.get(entry.name)) is not None:
                entries[number] = msgspec.structs.replace(entry, sha256=sums.sha256, md5=sums.md5)

    def _entry(self, owner: str, name: str, found: _Found) -> Entry:
        at = found.stat
        made = min(at.st_mtime, at.st_ctime)
        if not found.is_file:
            return Entry(name, False, 0, made, at.st_mtime)
        sha256, md5 = self._sums.get(owner, found.version) or (None, None)
        return Entry(name, True, at.st_size, made, at.st_mtime, _etag(found.version), sha256, md5)

    def _place(self, source: Path, owner: str, path: StoragePath) -> None:
        incoming.place(source, self._target(owner, path))

    def _unpack(self, source: Path, aside: Path, owner: str, path: StoragePath) -> list[tuple[Version, Checksums]]:
        tree = aside / "new"
        tree.mkdir(parents=True)
        found = incoming.guarded(archive.extract, source, tree, self._limits)
        versions = [(version_of(tree.joinpath(*parts).stat()), sums) for parts, sums in found]
        self._target(owner, path.child("x"))
        target = self._inside(owner, path)
        if not target.exists():
            incoming.place(tree, target)
            return versions
        journal = aside / _JOURNAL
        incoming.guarded(journal.write_bytes, msgspec.json.encode(str(target)))
        incoming.sync_folder(aside)
        try:
            incoming.place_tree(tree, target, aside / "old")
        finally:
            journal.unlink()
        return versions

    def _delete(self, owner: str, path: StoragePath, recursive: bool) -> Path | None:
        target = self._own_name(owner, path)
        try:
            if target.is_symlink() or not target.is_dir():
                target.unlink()
                return None
            if not recursive:
                target.rmdir()
                return None
        except (FileNotFoundError, NotADirectoryError) as problem:
            raise NoSuchFile(f"There is no {path}") from problem
        except IsADirectoryError:  # it came after the look
            return self._delete(owner, path, recursive)
        except OSError as problem:
            raise FolderNotEmpty(f"{path} is not empty; say recursive to delete all that is in it") from problem
        aside = self._incoming / f"{ids.uuid7()}.tree"
        try:
            target.rename(aside)
        except FileNotFoundError as problem:
            raise NoSuchFile(f"There is no {path}") from problem
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                raise InTheWay(f"{path} is a file system of its own") from problem
            if problem.errno != errno.EXDEV:
                raise
            aside = target.with_name(f".{aside.name}")
            target.rename(aside)
        return aside

    def _rename(self, owner: str, source: StoragePath, target: StoragePath) -> None:
        origin = self._own_name(owner, source)
        if not (origin.is_symlink() or origin.exists()):
            raise NoSuchFile(f"There is no {source}")
        if target.parts[: len(source.parts)] == source.parts:
            raise InTheWay(f"{source} cannot be moved into itself")
        goal = self._target(owner, target)
        if goal.is_dir() and not goal.is_symlink():
            raise InTheWay(f"{target} is a folder")
        if goal.exists() and origin.is_dir() and not origin.is_symlink():
            raise InTheWay(f"{target} is a file")
        try:
            incoming.place(origin, goal)
        except FileNotFoundError as problem:
            raise NoSuchFile(f"There is no {source}") from problem
        except OSError as problem:
            if problem.errno == errno.ENOTEMPTY:
                raise InTheWay(f"{target} is a folder") from problem
            if problem.errno != errno.EBUSY:
                raise
            raise InTheWay(f"{source} is a file system of its own") from problem
        incoming.sync_folder(origin.parent)

    def _walk(self, owner: str, path: StoragePath) -> tuple[Path, list[_Found]]:
        top = self._find(owner, path)
        if top.is_file:
            return top.path.parent, [top]
        found = []
        for folder, _, names in os.walk(top.path):
            for name in sorted(names):
                place = Path(folder, name)
                if (at := _stat(place)) is not None and stat.S_ISREG(at.st_mode):
                    found.append(_Found(place, at))
        return top.path, found

    def _verify(self, owner: str, base: Path, found: list[_Found]) -> Verified:
        buffer = memoryview(bytearray(BLOCK))
        wrong: list[str] = []
        checked = size = 0
        for item in found:
            known = self._sums.get(owner, item.version)
            sums = hash_file(item.path, item.version, buffer)
            if known is None or sums is None:
                continue
            checked, size = checked + 1, size + item.stat.st_size
            if sums != known:
                wrong.append(readable(item.path.relative_to(base).as_posix()))
        return Verified(checked, size, wrong)


def _check_length(root: str, path: StoragePath) -> None:
    if len(os.fsencode(root)) + len("/".join(path.parts).encode()) > _LONGEST:
        raise BadPath("The path is too long for this server's file system")


def _etag(version: Version) -> str:
    return f"{version.size:x}-{version.mtime_ns:x}-{version.inode:x}"


def _finish(aside: Path) -> None:
    """Complete an archive whose files were being moved into place when the server died."""
    journal = aside / _JOURNAL
    try:
        if journal.exists():
            incoming.finish_tree(aside / "new", Path(msgspec.json.decode(journal.read_bytes(), type=str)))
    except (OSError, msgspec.DecodeError) as problem:
        _log.error("an archive could not be completed after a crash", folder=str(aside), error=repr(problem))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _listed(folder: str, root: str, known: Mapping[int, Known]) -> tuple[list[Entry], list[_Unknown]]:
    """What is in a folder, in no order, and which files are not among the `known`.

    Pipes and devices are left out, as are links that lead nowhere or outside of `root`. One loop, which calls as little
    as it can, for ten thousand files may pass it.
    """
    get = known.get
    entries: list[Entry] = []
    unknown: list[_Unknown] = []
    # Through its descriptor the system need not walk the whole path again for each name.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(descriptor) as names:
            for item in names:
                try:
                    at = item.stat(follow_symlinks=False)
                    kind = at.st_mode & _KIND
                    if kind == stat.S_IFLNK and (real := _real(folder, item)).startswith(root + os.sep):
                        at = os.stat(real)  # noqa: PTH116 - it is a string already
                        kind = at.st_mode & _KIND
                except OSError:
                    continue
                changed, made = at.st_mtime, at.st_ctime
                if made > changed:
                    made = changed
                if kind == stat.S_IFREG:
                    size, mtime_ns, sums = get(at.st_ino, NOTHING)
                    if sums is not None and size == at.st_size and mtime_ns == at.st_mtime_ns:
                        entries.append(Entry(item.name, True, size, made, changed, "", sums[0], sums[1]))
                    else:
                        unknown.append(_Unknown(item.name, _real(folder, item), version_of(at)))
                        entries.append(Entry(item.name, True, at.st_size, made, changed))
                elif kind == stat.S_IFDIR:
                    entries.append(Entry(item.name, False, 0, made, changed))
    finally:
        os.close(descriptor)
    return entries, unknown


def _real(folder: str, item: os.DirEntry[str]) -> str:
    path = os.path.join(folder, item.name)  # noqa: PTH118 - a Path each would take as long as all the rest
    return os.path.realpath(path) if item.is_symlink() else path
