"""Request bodies: in memory while they are small, a stream or a file when they are not."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from varvel.errors import StorageFull, TooLarge
from varvel.gateway.asgi import ClientGone, Receive

PIECE = 256 * 1024
"""Bytes that are read from a file, or written to one, in one step of a thread."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


async def take(receive: Receive, announced: int | None, *, buffer: int, most: int) -> bytes | AsyncIterator[bytes]:
    """The body: bytes when it is not larger than `buffer`, else its pieces as they come.

    Raises `TooLarge` above `most` bytes (the stream raises it, too, when nothing was announced) and `ClientGone`.
    """
    if announced is not None and announced > most:
        raise TooLarge(f"The body has {announced} bytes; this server takes {most}.")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientGone
    if len(body) > most:
        raise TooLarge(f"The body has more than {most} bytes, which is what this server takes.")
    if not message.get("more_body") and len(body) <= buffer:
        return body
    pieces, size, more = [body], len(body), bool(message.get("more_body"))
    while more and size <= buffer and not (announced is not None and announced > buffer):
        piece, more = await _next(receive)
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise TooLarge(f"The body has more than {most} bytes, which is what this server takes.")
    whole = b"".join(pieces)
    return whole if not more and size <= buffer else stream(receive, whole, more, most)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), bool(message.get("more_body"))


async def stream(receive: Receive, first: bytes, more: bool, most: int) -> AsyncIterator[bytes]:
    """`first`, then what still comes."""
    size = len(first)
    if first:
        yield first
    while more:
        piece, more = await _next(receive)
        size += len(piece)
        if size > most:
            raise TooLarge(f"The body has more than {most} bytes, which is what this server takes.")
        if piece:
            yield piece


async def spill(pieces: AsyncIterator[bytes], path: Path) -> int:
    """Write pieces to a new file and sync it; its size. Leaves no file behind on an error.

    Raises `StorageFull` when the disk is full.
    """
    size = 0
    try:
        file = await asyncio.to_thread(_create, path)
        try:
            held: list[bytes] = []
            waiting = 0
            async for piece in pieces:
                held.append(piece)
                waiting += len(piece)
                if waiting >= PIECE:
                    await asyncio.to_thread(file.write, b"".join(held))
                    size += waiting
                    held, waiting = [], 0
            await asyncio.to_thread(_finish, file, b"".join(held))
            return size + waiting
        finally:
            await asyncio.to_thread(file.close)
    except OSError as problem:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        if problem.errno in _FULL:
            raise StorageFull from problem
        raise
    except BaseException:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - a cancelled task cannot wait for a thread
        raise


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _finish(file: BinaryIO, rest: bytes) -> None:
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())
    folder = os.open(Path(file.name).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def pieces_of(path: Path, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
    """The bytes of a file, from `start`, read in a thread."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        if start:
            await asyncio.to_thread(file.seek, start)
        left = length
        while left is None or left > 0:
            piece = await asyncio.to_thread(file.read, PIECE if left is None else min(PIECE, left))
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece
    finally:
        file.close()
