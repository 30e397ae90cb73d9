"""One file out of a form, however the body is cut into pieces."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varvel.errors import TooLarge
from varvel.platform.form import BadForm, boundary_of, file_field

LIMIT = 100_000_000
TYPE = "multipart/form-data; boundary=bound"


def part(name: str, content: bytes, more: bytes = b"") -> bytes:
    return b'--bound\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, content)


async def read(body: bytes, size: int) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return b"".join([piece async for piece in file_field(TYPE, pieces(), "file", LIMIT)])


contents = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"bound", b"\r\n--boun", b"\r\n", b"x" * 50, b"\0"]), max_size=12
).map(b"".join)


@given(content=contents.filter(lambda text: b"\r\n--bound" not in b"\r\n" + text), size=st.integers(1, 200))
async def test_the_content_comes_out_as_it_went_in(content: bytes, size: int) -> None:
    body = b"preamble\r\n" + part("other", b"1") + part("file", content, b'; filename="a;b"') + part("file", b"second")
    assert await read(body + b"--bound--\r\nepilogue", size) == content


async def test_a_boundary_may_be_followed_by_blanks() -> None:
    assert await read(part("file", b"x").replace(b"bound\r\n", b"bound \t\r\n") + b"--bound--", 7) == b"x"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--bound--",
        part("file", b"x"),
        part("file", b"x") + b"--bound",
        part("file", b"x") + b"--bound-",
        part("file", b"x") + b"--boundless--",
        part("other", b"x") + b"--bound--",
        b"--bound\r\nno headers\r\n--bound--",
        b"--bound\r\n\r\nno headers\r\n--bound--",
        b"--bound\r\nX: " + b"y" * 20_000 + b"\r\n\r\n\r\n--bound--",
    ],
)
async def test_a_form_that_is_not_whole_or_lacks_the_file_is_refused(body: bytes) -> None:
    for size in (1, 3, 100_000):
        with pytest.raises(BadForm):
            await read(body, size)


@pytest.mark.parametrize("kind", [None, "", "text/plain", "multipart/form-data", "multipart/form-data; boundary="])
def test_only_forms_have_a_boundary(kind: str | None) -> None:
    with pytest.raises(BadForm):
        boundary_of(kind)


async def test_what_follows_the_last_boundary_is_not_kept() -> None:
    body = part("file", b"x") + b"--bound--"
    seen: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield body
        for _ in range(50):
            yield bytes(1_000_000)
            seen.append(tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    try:
        assert [piece async for piece in file_field(TYPE, pieces(), "file", LIMIT)] == [b"x"]
    finally:
        tracemalloc.stop()
    assert max(seen) < 10_000_000


async def test_blanks_without_end_behind_a_boundary_are_refused() -> None:
    with pytest.raises(BadForm):
        await read(b"--bound" + b" " * 100_000, 1000)


async def test_pieces_of_the_file_are_passed_on_without_a_copy() -> None:
    large = bytes(range(256)) * 1000

    async def pieces() -> AsyncIterator[bytes]:
        yield part("file", b"").removesuffix(b"\r\n")
        yield large
        yield b"\r\n--bound--"

    [passed] = [piece async for piece in file_field(TYPE, pieces(), "file", LIMIT)]
    assert passed is large


async def test_a_form_may_not_be_larger_than_its_limit_wherever_it_is() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield part("file", b"x") + b"--bound--"
        while True:
            yield bytes(1000)

    with pytest.raises(TooLarge):
        [_ async for _ in file_field(TYPE, endless(), "file", 10_000)]
