"""Request bodies: held while they are small, a stream when they are not, and never more than is allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from varvel.errors import TooLarge
from varvel.gateway.asgi import ClientGone
from varvel.gateway.bodies import take


def _receiving(*pieces: bytes, whole: bool = True) -> Any:
    """An ASGI `receive` that gives these pieces, then says that the client is gone."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if whole:
        messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


async def _all(body: bytes | AsyncIterator[bytes]) -> bytes:
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


@pytest.mark.parametrize("pieces", [(b"x" * 11,), (b"x" * 11, b""), (b"x" * 4, b"x" * 7), (b"x" * 9, b"x", b"x")])
@pytest.mark.parametrize("buffer", [2, 5, 100])
async def test_more_than_is_allowed_is_refused_however_it_comes(pieces: tuple[bytes, ...], buffer: int) -> None:
    with pytest.raises(TooLarge):
        await _all(await take(_receiving(*pieces), None, buffer=buffer, most=10))


@pytest.mark.parametrize("pieces", [(b"x" * 10,), (b"x" * 10, b""), (b"x" * 4, b"x" * 6), (b"x",) * 10])
@pytest.mark.parametrize("buffer", [2, 5, 100])
async def test_what_is_allowed_comes_whole(pieces: tuple[bytes, ...], buffer: int) -> None:
    body = await take(_receiving(*pieces), None, buffer=buffer, most=10)
    assert isinstance(body, bytes) is (buffer == 100)
    assert await _all(body) == b"x" * 10


async def test_a_client_that_goes_in_the_middle_is_known_to_be_gone() -> None:
    with pytest.raises(ClientGone):
        await take(_receiving(b"ab", whole=False), None, buffer=5, most=10)
    with pytest.raises(ClientGone):
        await _all(await take(_receiving(b"ab" * 3, whole=False), None, buffer=5, most=10))
