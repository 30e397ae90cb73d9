"""The table of archives: what is unpacked, and what is refused before a byte is written outside."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from varvel.files.archive import ArchiveLimits, BadArchive, extract, is_archive

LIMITS = ArchiveLimits(files=50, bytes=200_000_000, ratio=100)


def packed(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


def special(name: str, kind: int, content: bytes = b"/etc/passwd") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info, content


def named(name: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info, b"x"


def unpack(data: bytes, tmp_path: Path, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    source, folder = tmp_path / "in.zip", tmp_path / "deep" / "out"
    source.write_bytes(data)
    folder.mkdir(parents=True)
    try:
        found = extract(source, folder, limits)
    finally:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "in.zip"]
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    for parts, sums in found:
        assert hashlib.sha256(folder.joinpath(*parts).read_bytes()).hexdigest() == sums.sha256
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ordinary_archives_are_unpacked_with_every_method(method: int, tmp_path: Path) -> None:
    data = packed(("a", b"1" * 1000), ("d/", b""), ("d/e/ü", b"2"), ("empty", b""), method=method)
    assert unpack(data, tmp_path) == {"a": b"1" * 1000, "d/e/ü": b"2", "empty": b""}


def test_a_program_stays_executable_and_nothing_else_of_its_mode_is_kept(tmp_path: Path) -> None:
    unpack(packed(special("run.sh", stat.S_IFREG | stat.S_ISUID)), tmp_path)
    assert stat.S_IMODE((tmp_path / "deep/out/run.sh").stat().st_mode) & 0o6777 in (0o755, 0o750, 0o700)


REFUSED: dict[str, Callable[[], bytes]] = {
    "a path that climbs out": lambda: packed(named("../evil")),
    "a path that climbs out in its middle": lambda: packed(named("a/../../evil")),
    "an absolute path": lambda: packed(named("/etc/evil")),
    "a path with backslashes": lambda: packed(named("..\\evil")),
    "a path with a drive": lambda: packed(named("C:/evil")),
    "a path with a line break": lambda: packed(named("a\nb")),
    "a path that is too long": lambda: packed(named("a/" * 2500 + "b")),
    "a name that is too long": lambda: packed(named("a" * 300)),
    "a dot for a name": lambda: packed(named("./a")),
    "a symbolic link": lambda: packed(special("link", stat.S_IFLNK)),
    "a link to write through": lambda: packed(special("l", stat.S_IFLNK, b"/tmp"), named("l/evil")),
    "a device": lambda: packed(special("dev", stat.S_IFCHR)),
    "a pipe": lambda: packed(special("pipe", stat.S_IFIFO)),
    "names that differ in case": lambda: packed(("Read.me", b"1"), ("READ.ME", b"2")),
    "folders that differ in case": lambda: packed(("A/x", b"1"), ("a/y", b"2")),
    "names that differ in composition": lambda: packed(("\u00e9", b"1"), ("e\u0301", b"2")),
    "sharp s and double s": lambda: packed(("stra\u00dfe", b"1"), ("STRASSE", b"2")),
    "a file that is a folder too": lambda: packed(("a", b"1"), ("a/b", b"2")),
    "a folder that is a file too": lambda: packed(("a/b", b"2"), ("a", b"1")),
    "too many files": lambda: packed(*((f"f{number}", b"") for number in range(51))),
    "a bomb of zeros": lambda: packed(("zeros", bytes(80_000_000))),
    "more bytes than allowed": lambda: packed(("zeros", bytes(200_000_001))),
    "a truncated archive": lambda: packed(("a", bytes(range(256)) * 50))[:-40],
    "damaged content": lambda: damaged(),
    "a size that is a lie": lambda: lying(),
    "members that overlap": lambda: overlapping(),
    "an encrypted member": lambda: encrypted(),
    "an end that promises millions": lambda: promising(),
}


def damaged() -> bytes:
    data = bytearray(packed(("a", b"content that is long enough"), method=zipfile.ZIP_STORED))
    data[40] ^= 0xFF
    return bytes(data)


def lying() -> bytes:
    """The directory says 10 bytes where there are a million."""
    data = bytearray(packed(("a", bytes(1_000_000))))
    at = data.rfind(b"PK\1\2")
    struct.pack_into("<L", data, at + 24, 10)
    struct.pack_into("<L", data, 22, 10)
    return bytes(data)


def overlapping() -> bytes:
    """Two names for the same bytes: the trick of the bombs that repeat themselves."""
    data = packed(("a", b"x" * 1000), ("b", b"x" * 1000), method=zipfile.ZIP_STORED)
    made = bytearray(data)
    second = made.rfind(b"PK\1\2")
    struct.pack_into("<L", made, second + 42, 0)
    return bytes(made)


def encrypted() -> bytes:
    data = bytearray(packed(("a", b"secret")))
    at = data.rfind(b"PK\1\2")
    data[at + 8] |= 1
    data[6] |= 1
    return bytes(data)


def promising() -> bytes:
    data = bytearray(packed(("a", b"x")))
    at = data.rfind(b"PK\5\6")
    struct.pack_into("<HHL", data, at + 8, 60_000, 60_000, 0x7FFFFFFF)
    return bytes(data)


@pytest.mark.parametrize("case", REFUSED)
def test_archives_that_are_not_plainly_harmless_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(BadArchive):
        unpack(REFUSED[case](), tmp_path)


def test_what_is_no_archive_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data, answer in ((b"", False), (b"PK\3\4 but no more", False), (packed(("a", b"1")), True)):
        path.write_bytes(data)
        assert is_archive(path) is answer
