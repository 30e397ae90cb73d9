"""Files on their way in: work goes side by side, and whatever goes wrong leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varvel.errors import TooLarge
from varvel.files.receiving import AHEAD, Lane, receive

LIMIT = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


async def cut(data: bytes, sizes: Sequence[int]) -> AsyncIterator[bytes]:
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at, number = at + size, number + 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([0, 1, 65_535, 1_048_576, 3_000_001]),
    sizes=st.lists(st.sampled_from([1_000, 65_536, 100_000, 2_000_000]), min_size=1, max_size=4),
)
async def test_whatever_pieces_come_the_file_and_its_checksums_are_those_of_the_whole(
    pool: ThreadPoolExecutor, tmp_path: Path, size: int, sizes: list[int]
) -> None:
    data, path = os.urandom(size), tmp_path / os.urandom(8).hex()
    sink = await receive(cut(data, sizes), path, LIMIT, pool)
    _, sums = sink.finish()
    assert path.read_bytes() == data
    assert (sums.sha256, sums.md5) == (hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest())


async def test_a_system_that_writes_less_than_asked_is_asked_again(
    pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev

    def some(descriptor: int, pieces: Sequence[bytes]) -> int:
        return real(descriptor, [b"".join(pieces)[:700_000]])

    monkeypatch.setattr("varvel.files.incoming.os.writev", some)
    data = os.urandom(3_000_000)
    sink = await receive(cut(data, [100_000]), tmp_path / "a", LIMIT, pool)
    sink.finish()
    assert sink.path.read_bytes() == data


async def test_more_than_the_limit_leaves_nothing(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await receive(cut(bytes(5_000_000), [300_000]), tmp_path / "a", 4_999_999, pool)
    assert list(tmp_path.iterdir()) == []


async def test_an_upload_that_is_cancelled_twice_leaves_nothing(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield bytes(300_000)

    task = asyncio.create_task(receive(endless(), tmp_path / "a", 1 << 40, pool))
    while not (tmp_path / "a").exists() or not (tmp_path / "a").stat().st_size:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        while list(tmp_path.iterdir()):
            await asyncio.sleep(0.001)


async def test_a_lane_keeps_order_and_holds_back_who_is_faster(pool: ThreadPoolExecutor) -> None:
    go, done = threading.Event(), list[int]()
    lane = Lane(pool)

    def work(number: int) -> None:
        go.wait(60)
        done.append(number)

    async def all_of_them() -> None:
        for number in range(20):
            await lane.put(partial(work, number))
        await lane.finish()

    task = asyncio.create_task(all_of_them())
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(lane._futures) == AHEAD
    go.set()
    await task
    assert done == list(range(20))


async def test_lanes_share_few_threads_fairly(tmp_path: Path) -> None:
    """One thread does for all of several uploads at once."""
    with ThreadPoolExecutor(1) as one:
        data = os.urandom(3_000_000)
        sinks = await asyncio.gather(*(receive(cut(data, [200_000]), tmp_path / str(n), LIMIT, one) for n in range(5)))
        for sink in sinks:
            sink.finish()
            assert sink.path.read_bytes() == data


async def test_a_lane_does_what_was_begun_when_its_pool_closes() -> None:
    pool, go, done = ThreadPoolExecutor(1), threading.Event(), list[int]()
    lane = Lane(pool)

    def work(number: int) -> None:
        go.wait(60)
        done.append(number)

    await lane.put(partial(work, 1))
    await lane.put(partial(work, 2))
    pool.shutdown(wait=False)
    go.set()
    await lane.finish()
    assert done == [1, 2]
