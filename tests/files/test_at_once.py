"""What several callers do to the same paths at once, and what a file system may say."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from varvel.errors import VarvelError
from varvel.files.archive import ArchiveLimits
from varvel.files.checksums import ChecksumCache, Checksums, Version
from varvel.files.folder import FolderStore
from varvel.files.paths import ROOT, BadPath, parse
from varvel.files.store import NoSuchFile, NoSuchUpload, Part
from varvel.state.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.open(tmp_path / "state.db")
    yield database
    await database.close()


@pytest.fixture
async def store(tmp_path: Path, database: Database) -> AsyncIterator[FolderStore]:
    made = FolderStore(tmp_path / "files", database, limits=ArchiveLimits(files=10, bytes=10_000, ratio=100))
    await made.start()
    yield made
    await made.close()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def put(store: FolderStore, path: str, data: bytes) -> None:
    await store.write("me", parse(path), once(data), 10_000_000)


async def test_uploads_to_one_path_at_once_leave_one_of_them_with_its_own_checksums(store: FolderStore) -> None:
    # All of one size: only the checksums tell them apart.
    contents = [os.urandom(1000) for _ in range(40)]
    for _ in range(5):
        await asyncio.gather(*(put(store, "a/b", content) for content in contents))
        [entry] = await store.listing("me", parse("a"))
        opened = await store.open("me", parse("a/b"))
        content = await opened.read(0, 2000)
        await opened.close()
        assert content in contents
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.md5 == hashlib.md5(content).hexdigest()
    assert (await store.verify("me", ROOT)).mismatched == []


async def test_what_is_uploaded_while_its_folder_is_deleted_is_there_or_deleted_and_no_error(
    store: FolderStore,
) -> None:
    async def delete() -> None:
        for _ in range(60):
            try:
                await store.delete("me", parse("d/e"), recursive=True)
            except NoSuchFile:
                await asyncio.sleep(0)

    async def write() -> None:
        for number in range(30):
            await put(store, f"d/e/{number}", b"x")

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(write())
        group.create_task(delete())
    await put(store, "d/e/last", b"x")
    assert "last" in [entry.name for entry in await store.listing("me", parse("d/e"))]


async def test_whatever_is_done_at_once_every_error_is_one_of_ours(store: FolderStore) -> None:
    async def one(number: int) -> None:
        for turn in range(15):
            try:
                match (number + turn) % 5:
                    case 0:
                        await put(store, "x/y/z", b"1")
                    case 1:
                        await store.rename("me", parse("x/y"), parse("w/y"))
                    case 2:
                        await store.rename("me", parse("w/y"), parse("x/y"))
                    case 3:
                        await store.listing("me", parse("x/y"))
                        await store.verify("me", ROOT)
                    case 4:
                        await store.delete("me", parse("w"), recursive=True)
            except VarvelError:
                pass

    await asyncio.gather(*(one(number) for number in range(10)))


async def test_a_part_that_comes_twice_at_once_stays_once(store: FolderStore) -> None:
    upload = await store.begin("me", parse("big"))
    for _ in range(10):
        sent = [os.urandom(100) for _ in range(8)]
        await asyncio.gather(*(store.put_part("me", upload, 1, once(data), 1000) for data in sent))
        [part] = await store.parts("me", upload)
        assert part.etag in [hashlib.md5(data).hexdigest() for data in sent]
    assert (await store.complete("me", upload, [part], 1000)).md5 == part.etag


async def test_an_upload_that_is_completed_or_cancelled_twice_at_once_ends_once(store: FolderStore) -> None:
    for _ in range(10):
        upload = await store.begin("me", parse("big"))
        part = await store.put_part("me", upload, 1, once(b"data"), 1000)
        done = await asyncio.gather(
            store.complete("me", upload, [Part(1, part.etag)], 1000),
            store.complete("me", upload, [Part(1, part.etag)], 1000),
            store.put_part("me", upload, 2, once(b"more"), 1000),
            store.parts("me", upload),
            return_exceptions=True,
        )
        problems = [item for item in done if isinstance(item, BaseException)]
        assert [item for item in problems if not isinstance(item, NoSuchUpload)] == []
        with pytest.raises(NoSuchUpload):
            await store.parts("me", upload)


async def test_abandoned_uploads_are_forgotten_while_the_server_runs(tmp_path: Path, database: Database) -> None:
    at = [1_800_000_000.0]
    limits = ArchiveLimits(files=10, bytes=10_000, ratio=100)
    store = FolderStore(tmp_path / "files", database, limits=limits, part_ttl=60, clock=lambda: at[0])
    await store.start()
    try:
        old = await store.begin("me", parse("big"))
        os.utime(tmp_path / "files/.incoming" / old, (at[0], at[0]))
        at[0] += 59
        await store.begin("me", parse("other"))
        assert await store.parts("me", old) == []
        at[0] += 2
        await store.begin("me", parse("other"))
        with pytest.raises(NoSuchUpload):
            await store.parts("me", old)
    finally:
        await store.close()


async def test_links_in_a_circle_and_paths_too_long_for_the_system_are_said_so(store: FolderStore) -> None:
    folder = store.folder("me")
    (folder / "round").symlink_to("round")
    with pytest.raises(NoSuchFile):
        await store.open("me", parse("round"))
    assert await store.listing("me", ROOT) == []
    longest = parse("/".join(["a" * 200] * 19 + ["b" * 150]))
    for call in (store.open, store.stat, store.listing, store.delete, store.begin):
        with pytest.raises(BadPath):
            await call("me", longest)
    with pytest.raises(BadPath):
        await put(store, str(longest), b"x")


async def test_memory_holds_no_more_checksums_than_it_may(database: Database) -> None:
    cache = ChecksumCache(database, entries=3)
    sums = Checksums("00" * 32, "00" * 16)
    try:
        cache.put("me", [(Version(1, 1, 1), sums)])
        cache.put("you", [(Version(number, 1, 1), sums) for number in range(5)])
        assert sum(cache.get("you", Version(number, 1, 1)) is not None for number in range(5)) == 2
        assert cache.get("me", Version(1, 1, 1)) == sums
        assert cache.get("me", Version(1, 1, 2)) is None
        cache.put("me", [(Version(1, 1, 2), sums)])
        assert cache.get("me", Version(1, 1, 2)) == sums
        assert sum(cache.get("you", Version(number, 1, 1)) is not None for number in range(5)) == 2
    finally:
        await cache.close()
