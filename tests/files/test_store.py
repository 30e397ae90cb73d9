"""What any file store does. A new implementation joins `STORES` and must pass all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from varvel.errors import InvalidRequest, NotFound, TooLarge
from varvel.files.archive import ArchiveLimits
from varvel.files.folder import FolderStore
from varvel.files.paths import ROOT, parse
from varvel.files.store import FileStore, FolderNotEmpty, InTheWay, NoSuchFile, NoSuchUpload
from varvel.state.database import Database

Opened = Callable[[Path], AbstractAsyncContextManager[FileStore]]


@asynccontextmanager
async def folder_store(root: Path) -> AsyncIterator[FolderStore]:
    database = Database.open(root / "state.db")
    store = FolderStore(root / "files", database, limits=ArchiveLimits(files=10, bytes=10_000, ratio=100))
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        await database.close()


STORES: dict[str, Opened] = {"folder": folder_store}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FileStore]:
    async with STORES[request.param](tmp_path) as store:
        yield store


async def chunks(data: bytes, size: int = 1000, fail: bool = False) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
    if fail:
        raise ConnectionError


async def put(store: FileStore, path: str, data: bytes, owner: str = "me") -> None:
    await store.write(owner, parse(path), chunks(data), 10_000_000)


async def content(store: FileStore, path: str, owner: str = "me") -> bytes:
    opened = await store.open(owner, parse(path))
    try:
        return await opened.read(0, opened.entry.size + 1)
    finally:
        await opened.close()


async def test_what_is_written_is_read_back_with_its_checksums(store: FileStore) -> None:
    data = os.urandom(3_000_001)
    entry = await store.write("me", parse("a/b.bin"), chunks(data, 70_000), len(data))
    assert (entry.size, entry.sha256, entry.md5) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
        hashlib.md5(data).hexdigest(),
    )
    assert await store.stat("me", parse("/data/a/b.bin")) == entry
    assert await content(store, "a/b.bin") == data
    opened = await store.open("me", parse("a/b.bin"))
    assert await opened.read(2_999_990, 100) == data[2_999_990:]
    assert await opened.read(5_000_000, 10) == b""
    await opened.close()


async def test_a_writer_that_fails_leaves_the_old_version(store: FileStore) -> None:
    await put(store, "a", b"old")
    with pytest.raises(ConnectionError):
        await store.write("me", parse("a"), chunks(b"new" * 500_000, fail=True), 10_000_000)
    with pytest.raises(TooLarge):
        await store.write("me", parse("a"), chunks(b"new"), 2)
    assert await content(store, "a") == b"old"
    with pytest.raises(ConnectionError):
        await store.write("me", parse("fresh/b"), chunks(b"new", fail=True), 10)
    assert [entry.name for entry in await store.listing("me", ROOT)] == ["a"]


async def test_a_reader_keeps_its_version_while_the_file_is_replaced(store: FileStore) -> None:
    await put(store, "a", b"old")
    opened = await store.open("me", parse("a"))
    await put(store, "a", b"newer")
    assert await opened.read(0, 100) == b"old"
    await opened.close()
    again = await store.open("me", parse("a"))
    assert again.entry.etag != opened.entry.etag
    await again.close()


async def test_owners_share_nothing(store: FileStore) -> None:
    await put(store, "a", b"mine")
    assert await store.listing("you", ROOT) == []
    with pytest.raises(NoSuchFile):
        await store.open("you", parse("a"))
    upload = await store.begin("me", parse("b"))
    with pytest.raises(NoSuchUpload):
        await store.put_part("you", upload, 1, chunks(b"x"), 10)


async def test_folders_are_listed_moved_and_deleted(store: FileStore) -> None:
    for path in ("d/b", "d/a", "d/sub/c"):
        await put(store, path, path.encode())
    assert [(entry.name, entry.is_file) for entry in await store.listing("me", parse("d"))] == [
        ("a", True),
        ("b", True),
        ("sub", False),
    ]
    with pytest.raises(FolderNotEmpty):
        await store.delete("me", parse("d"))
    with pytest.raises(InTheWay):
        await store.rename("me", parse("d"), parse("d/sub/d"))
    await store.rename("me", parse("d"), parse("e/f"))
    assert await content(store, "e/f/sub/c") == b"d/sub/c"
    await store.delete("me", parse("e"), recursive=True)
    with pytest.raises(NotFound):
        await store.listing("me", parse("e"))


async def test_parts_are_joined_in_order(store: FileStore) -> None:
    upload = await store.begin("me", parse("big"))
    second = await store.put_part("me", upload, 2, chunks(b"world"), 10)
    first = await store.put_part("me", upload, 1, chunks(b"hello "), 10)
    assert await store.parts("me", upload) == [first, second]
    with pytest.raises(InvalidRequest):
        await store.complete("me", upload, [second, first], 100)
    entry = await store.complete("me", upload, [first, second], 100)
    assert entry.md5 == hashlib.md5(b"hello world").hexdigest()
    assert await content(store, "big") == b"hello world"


# -- the folder alone: what apps do to it, and crashes


async def test_links_inside_the_storage_lead_and_links_outside_do_not(tmp_path: Path) -> None:
    async with folder_store(tmp_path) as store:
        folder = store.folder("me")
        (folder / "blob").write_bytes(b"weights")
        (folder / "snapshot").symlink_to("blob")
        (tmp_path / "secret").write_bytes(b"secret")
        (folder / "out").symlink_to(tmp_path / "secret")
        (folder / "up").symlink_to("../..")
        (folder / "broken").symlink_to("nowhere")
        os.mkfifo(folder / "pipe")
        assert [entry.name for entry in await store.listing("me", ROOT)] == ["blob", "snapshot"]
        assert await content(store, "snapshot") == b"weights"
        for path in ("out", "up/secret", "broken", "pipe"):
            with pytest.raises(NoSuchFile):
                await store.open("me", parse(path))
        await put(store, "out", b"replaced the link")
        assert (tmp_path / "secret").read_bytes() == b"secret"
        await store.delete("me", parse("snapshot"))
        assert await content(store, "blob") == b"weights"


async def test_checksums_are_remembered_over_a_restart_and_not_computed_again(tmp_path: Path) -> None:
    async with folder_store(tmp_path) as store:
        path = store.folder("me") / "a"
        path.write_bytes(b"content")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        [entry] = await store.listing("me", ROOT)
        assert entry.sha256 == hashlib.sha256(b"content").hexdigest()
    path.write_bytes(b"CONTENT")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    async with folder_store(tmp_path) as store:
        [again] = await store.listing("me", ROOT)
        assert again.sha256 == entry.sha256
        assert (await store.verify("me", ROOT)).mismatched == ["a"]


async def test_a_crash_leaves_no_rubbish_and_an_archive_that_was_being_placed_is_completed(tmp_path: Path) -> None:
    aside = tmp_path / "files/.incoming"
    tree = aside / "x.tree/new/d"
    tree.mkdir(parents=True)
    (tree / "second").write_bytes(b"2")
    (tmp_path / "files/me/d").mkdir(parents=True)
    (tmp_path / "files/me/d/first").write_bytes(b"1")
    (aside / "x.tree/commit.json").write_bytes(msgspec.json.encode(str(tmp_path / "files/me")))
    (aside / "half-written").write_bytes(b"x")
    (aside / "y.tree/new").mkdir(parents=True)
    (aside / "y.tree/new/never").write_bytes(b"x")
    async with folder_store(tmp_path) as store:
        assert [entry.name for entry in await store.listing("me", parse("d"))] == ["first", "second"]
        assert [entry.name for entry in await store.listing("me", ROOT)] == ["d"]
        assert list(aside.iterdir()) == []
