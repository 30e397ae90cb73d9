"""ZIP archives of strangers: everything is checked before the first byte is written, and again while writing."""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from varvel.errors import InvalidRequest
from varvel.files.checksums import BLOCK, Checksums, Digest
from varvel.files.paths import MAX_PATH, BadPath, check_name

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_ENCRYPTED = 0x1
_LOCAL_HEADER = 30
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_MEMBER = 46
"""Least bytes that the directory of an archive spends on a member."""
_FEW = 256
"""Up to this many files each is synced alone; for more, one sync of everything is cheaper."""
_HARMLESS = 64 * BLOCK
"""Archives that unpack to less are never called bombs, whatever their ratio."""


class BadArchive(InvalidRequest):
    """The archive cannot be unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How much an archive may become."""

    files: int
    bytes: int
    ratio: float
    """Unpacked over packed size, for archives that unpack to much."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of an archive that passed all checks."""

    parts: tuple[str, ...]
    is_file: bool
    info: zipfile.ZipInfo


def is_archive(path: Path) -> bool:
    """Whether the file is a ZIP archive."""
    return zipfile.is_zipfile(path)


def plan(archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[Member]:
    """What unpacking will make. Raises `BadArchive` for anything that is not plainly harmless."""
    members = [_member(info) for info in archive.infolist()]
    _check_sizes([member.info for member in members], limits)
    _check_overlaps([member.info for member in members])
    _check_clashes(members)
    return members


def extract(source: Path, folder: Path, limits: ArchiveLimits) -> list[tuple[tuple[str, ...], Checksums]]:
    """Unpack into the empty `folder`, each file synced; give the parts and checksums of all files. Blocks.

    Raises `BadArchive`; then `folder` holds rubbish.
    """
    try:
        with source.open("rb") as file:
            _check_directory(file, limits)
            with zipfile.ZipFile(file) as archive:
                return _extract(archive, plan(archive, limits), folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError) as problem:
        raise BadArchive(f"The archive is damaged: {problem}") from problem
    except OSError as problem:
        # bz2 and lzma say OSError for damaged data, which has no errno.
        if problem.errno is None:
            raise BadArchive(f"The archive is damaged: {problem}") from problem
        raise


def _member(info: zipfile.ZipInfo) -> Member:
    name = info.orig_filename
    if "\\" in name or name.startswith("/") or "\0" in name or len(name.encode(errors="replace")) > MAX_PATH:
        raise BadArchive(f"The archive holds a path that leads outside or is too long: {name[:100]!r}")
    parts = tuple(name.removesuffix("/").split("/"))
    try:
        for part in parts:
            check_name(part)
    except BadPath as problem:
        raise BadArchive(f"The archive holds the path {name[:100]!r}: {problem.message}") from problem
    if parts[0].endswith(":"):
        raise BadArchive(f"The archive holds a path with a drive: {name[:100]!r}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > info.is_dir():
        raise BadArchive(f"The archive holds a link or special file: {name[:100]!r}")
    if info.flag_bits & _ENCRYPTED:
        raise BadArchive(f"The archive is encrypted: {name[:100]!r}")
    if info.compress_type not in _METHODS:
        raise BadArchive(f"The archive uses a compression that is not supported: {name[:100]!r}")
    return Member(parts, not info.is_dir(), info)


def _check_sizes(infos: Sequence[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if len(infos) > limits.files:
        raise BadArchive(f"The archive holds {len(infos)} files, more than {limits.files}")
    if total > limits.bytes:
        raise BadArchive(f"The archive unpacks to {total} bytes, more than {limits.bytes}")
    if total > _HARMLESS and total > packed * limits.ratio:
        raise BadArchive(f"The archive unpacks to more than {limits.ratio:g} times its size")


def _check_overlaps(infos: Sequence[zipfile.ZipInfo]) -> None:
    end = 0
    for info in sorted(infos, key=lambda item: item.header_offset):
        if info.header_offset < end:
            raise BadArchive("The archive has members that overlap")
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size


def _check_clashes(members: Sequence[Member]) -> None:
    """No two files may become one on a file system that ignores case or composition, nor a file a folder."""
    seen: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = {}
    for member in members:
        for length in range(1, len(member.parts) + 1):
            real = member.parts[:length]
            is_file = member.is_file and length == len(member.parts)
            folded = tuple(_fold(part) for part in real)
            if folded not in seen:
                seen[folded] = (real, is_file)
            elif is_file or seen[folded] != (real, False):
                raise BadArchive(f"The archive holds two paths that clash: {'/'.join(real)[:100]!r}")


def _fold(part: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


def _extract(
    archive: zipfile.ZipFile, members: Sequence[Member], folder: Path
) -> list[tuple[tuple[str, ...], Checksums]]:
    found = []
    for member in members:
        target = folder.joinpath(*member.parts)
        if not member.is_file:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        found.append((member.parts, _extract_file(archive, member, target, sync=len(members) <= _FEW)))
    if len(members) > _FEW:
        os.sync()
    return found


def _extract_file(archive: zipfile.ZipFile, member: Member, target: Path, *, sync: bool) -> Checksums:
    digest, left = Digest(), member.info.file_size
    mode = 0o644 | (member.info.external_attr >> 16 & 0o111)
    with archive.open(member.info) as source, os.fdopen(os.open(target, _NEW, mode), "wb") as sink:
        while data := source.read(BLOCK):
            left -= len(data)
            if left < 0:
                raise BadArchive(f"The archive lies about the size of {member.info.filename[:100]!r}")
            digest.update(data)
            sink.write(data)
        if left:
            raise BadArchive(f"The archive lies about the size of {member.info.filename[:100]!r}")
        sink.flush()
        if sync:
            os.fsync(sink.fileno())
    return digest.result()


_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def _check_directory(file: BinaryIO, limits: ArchiveLimits) -> None:
    """Refuse a directory of members that would fill the memory, before it is read."""
    size = file.seek(0, os.SEEK_END)
    tail_size = min(size, _END.size + 0xFFFF + _LOCATOR.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise BadArchive("The archive is damaged: it has no end")
    count, length = _END.unpack_from(tail, at)[4:6]
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size :].startswith(b"PK\6\7"):
        file.seek(_LOCATOR.unpack_from(tail, at - _LOCATOR.size)[2])
        record = _END64.unpack(file.read(_END64.size))
        count, length = record[7], record[8]
    if count > limits.files or length > limits.files * (_MEMBER + MAX_PATH):
        raise BadArchive(f"The archive holds {count} files, more than {limits.files}")
    file.seek(0)
