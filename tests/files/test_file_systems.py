"""A folder of an owner may hold another file system: files go over its edge as over any other."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.faults.disk import Disk

from varvel.errors import StorageFull
from varvel.files.archive import ArchiveLimits
from varvel.files.folder import FolderStore
from varvel.files.paths import parse
from varvel.files.store import InTheWay
from varvel.state.database import Database


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    disk = Disk(tmp_path / "files" / "me" / "far")
    disk.folder.mkdir(parents=True)
    try:
        disk.mount()
    except OSError as problem:
        pytest.skip(f"mounting a small file system is not allowed here: {problem}")
    yield disk.folder
    disk.unmount()


@pytest.fixture
async def store(tmp_path: Path, mounted: Path) -> AsyncIterator[FolderStore]:
    database = Database.open(tmp_path / "state.db")
    made = FolderStore(tmp_path / "files", database, limits=ArchiveLimits(files=10, bytes=10_000, ratio=100))
    await made.start()
    yield made
    await made.close()
    await database.close()


async def _put(store: FolderStore, path: str, data: bytes) -> None:
    await store.write("me", parse(path), _once(data), 10_000_000)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _names(store: FolderStore, path: str) -> list[str]:
    return sorted(entry.name for entry in await store.listing("me", parse(path)))


async def test_files_and_folders_are_renamed_into_it_and_out_of_it(store: FolderStore, tmp_path: Path) -> None:
    await _put(store, "a/one.txt", b"1")
    await _put(store, "a/deep/two.txt", b"2")
    await store.rename("me", parse("a/one.txt"), parse("far/uno.txt"))
    assert (tmp_path / "files/me/far/uno.txt").read_bytes() == b"1"
    await store.rename("me", parse("a"), parse("far/b"))
    assert await _names(store, "") == ["far"]
    assert (tmp_path / "files/me/far/b/deep/two.txt").read_bytes() == b"2"
    await store.rename("me", parse("far/b"), parse("c"))
    assert await _names(store, "far") == ["uno.txt"]
    assert (tmp_path / "files/me/c/deep/two.txt").read_bytes() == b"2"


async def test_uploads_and_archives_land_in_it_and_replace_what_is_there(store: FolderStore, tmp_path: Path) -> None:
    await _put(store, "far/one.txt", b"old")
    await _put(store, "far/one.txt", b"new")
    assert (await store.verify("me", parse("far"))).mismatched == []
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("one.txt", "from the archive")
        made.writestr("sub/two.txt", "2")
    assert await store.unpack("me", parse("far"), _once(archive.getvalue()), 10_000_000)
    assert await _names(store, "far") == ["one.txt", "sub"]
    assert (tmp_path / "files/me/far/one.txt").read_text() == "from the archive"


async def test_folders_in_it_are_deleted_whole_and_itself_is_in_the_way(store: FolderStore, mounted: Path) -> None:
    await _put(store, "far/d/one.txt", b"1")
    await store.delete("me", parse("far/d"), recursive=True)
    assert list(mounted.iterdir()) == []
    with pytest.raises(InTheWay):
        await store.rename("me", parse("far"), parse("near"))
    with pytest.raises(InTheWay):
        await store.delete("me", parse("far"), recursive=True)
    await _put(store, "far/still.txt", b"here")


async def test_a_full_file_system_keeps_the_source_of_a_rename(store: FolderStore, mounted: Path) -> None:
    await _put(store, "one.txt", b"x" * 100_000)
    disk = Disk(mounted)
    disk.fill()
    with pytest.raises(StorageFull):
        await store.rename("me", parse("one.txt"), parse("far/one.txt"))
    assert await _names(store, "") == ["far", "one.txt"]
    assert await _names(store, "far") == ["ballast"]
    disk.free()
    await store.rename("me", parse("one.txt"), parse("far/one.txt"))
    assert await _names(store, "far") == ["one.txt"]
