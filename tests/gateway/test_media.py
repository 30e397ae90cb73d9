from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from varvel.errors import NotFound, StorageFull
from varvel.gateway.bodies import spill
from varvel.gateway.media import Media, Medium


def _medium(media: Media, expires_at: float | None = None) -> Medium:
    return Medium(
        media_id=media.new_id(),
        owner="me",
        file_name="a",
        content_type="text/plain",
        created_at=0.0,
        expires_at=expires_at,
    )


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_what_has_expired_is_not_found_and_then_deleted(tmp_path: Path) -> None:
    media = Media(tmp_path)
    brief, lasting = _medium(media, 100.0), _medium(media)
    for medium in (brief, lasting):
        await media.announce(medium)
        await media.write(medium, _pieces(b"ab", b"c"))
    assert (await media.data(brief))[0].read_bytes() == b"abc"
    with pytest.raises(NotFound):
        await media.find(brief.media_id, 100.0)
    assert await media.sweep(99.0) == 0
    assert await media.sweep(100.0) == 1
    assert not list(tmp_path.glob(f"*/{brief.media_id}"))
    assert await media.find(lasting.media_id, 1e12) == lasting


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await spill(broken(), tmp_path / "file")
    assert not list(tmp_path.iterdir())


async def test_a_full_disk_is_storage_full_and_leaves_nothing(tmp_path: Path) -> None:
    async def full() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageFull):
        await spill(full(), tmp_path / "file")
    assert not list(tmp_path.iterdir())
