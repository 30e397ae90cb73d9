"""A file on its way in: received, written and hashed side by side, each a few blocks behind the other."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from varvel.files.checksums import BLOCK
from varvel.files.incoming import Incoming

Block = Sequence[bytes | bytearray]
AHEAD = 2
"""Blocks that may wait for one kind of work; with those of one upload about 4 MiB are in memory."""
SYNC = 32 * BLOCK
"""Bytes after which the disk is set to work, so that little is left to sync at the end."""
_LARGE = 64 * 1024
"""Pieces from this size on are handed on as they are; smaller ones are put together."""


async def receive(chunks: AsyncIterator[bytes], path: Path, limit: int, pool: Executor) -> Incoming:
    """Write `chunks` to the new file `path`, on threads of `pool`; what comes back has all of it.

    After an error, also one of `chunks`, nothing is left of it. Raises `TooLarge`, `StorageFull`.
    """
    loop = asyncio.get_running_loop()
    sink = await loop.run_in_executor(pool, Incoming, path, limit)
    lanes = Lane(pool), Lane(pool), Lane(pool)
    try:
        await _pass_on(chunks, sink, *lanes)
    except BaseException:
        await asyncio.shield(_give_up(sink, lanes, pool))
        raise
    return sink


async def _pass_on(chunks: AsyncIterator[bytes], sink: Incoming, writing: Lane, hashing: Lane, syncing: Lane) -> None:
    unsynced = 0
    async for block, size in _blocks(chunks):
        # MD5 takes longer than SHA-256 and the write together, on processors that know SHA.
        await writing.put(partial(sink.write, block))
        await hashing.put(partial(sink.hash_md5, block))
        unsynced += size
        if unsynced >= SYNC:
            unsynced = 0
            await syncing.put(sink.sync)
    for lane in (writing, hashing, syncing):
        await lane.finish()


async def _give_up(sink: Incoming, lanes: Sequence[Lane], pool: Executor) -> None:
    for lane in lanes:
        await lane.abandon()
    await asyncio.get_running_loop().run_in_executor(pool, sink.discard)


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Block, int]]:
    """Blocks of about `BLOCK` bytes of whatever pieces come, in few pieces, and their sizes."""
    block: list[bytes | bytearray] = []
    small = bytearray()
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if len(chunk) < _LARGE:
            small += chunk
        else:
            if small:
                block.append(small)
                small = bytearray()
            block.append(chunk)
        if size >= BLOCK:
            yield [*block, small], size
            block, small, size = [], bytearray(), 0
    yield [*block, small], size


class Lane:
    """Does one call after the other on a pool, so that several lanes go side by side.

    Between two calls the pool's other work has its turn.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()
        self._busy = False
        self._futures: deque[asyncio.Future[None]] = deque()

    async def put(self, call: Callable[[], None]) -> None:
        """Have `call` done, once fewer than `AHEAD` wait. Raises what an earlier one raised."""
        while len(self._futures) >= AHEAD:
            await self._next()
        future = self._loop.create_future()
        self._futures.append(future)
        with self._lock:
            self._waiting.append((call, future))
            idle, self._busy = not self._busy, True
        if idle:
            self._pool.submit(self._step)

    async def finish(self) -> None:
        """Wait until all is done. Raises what one of them raised."""
        while self._futures:
            await self._next()

    async def abandon(self) -> None:
        """Drop what was not begun, and wait for what was."""
        with self._lock:
            dropped = [future for _, future in self._waiting]
            self._waiting.clear()
        for future in dropped:
            future.cancel()
        if self._futures:
            await asyncio.wait(self._futures)
        for future in self._futures:
            if not future.cancelled():
                future.exception()
        self._futures.clear()

    async def _next(self) -> None:
        # Unlike an await of the future itself, this leaves it alone when the waiting is cancelled.
        await asyncio.wait([self._futures[0]])
        self._futures.popleft().result()

    def _step(self) -> None:
        while self._one():
            try:
                self._pool.submit(self._step)
            except RuntimeError:
                # The pool takes nothing new at the end of the server; what was begun is done here.
                continue
            return

    def _one(self) -> bool:
        """Do the first call; whether there are more."""
        with self._lock:
            if not self._waiting:
                self._busy = False
                return False
            call, future = self._waiting.popleft()
        problem: BaseException | None = None
        try:
            call()
        except BaseException as raised:
            problem = raised
        self._loop.call_soon_threadsafe(_settle, future, problem)
        with self._lock:
            self._busy = bool(self._waiting)
            return self._busy


def _settle(future: asyncio.Future[None], problem: BaseException | None) -> None:
    if future.cancelled():
        return
    if problem is None:
        future.set_result(None)
    else:
        future.set_exception(problem)
