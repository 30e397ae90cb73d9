"""Cursors."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varvel.errors import InvalidRequest
from varvel.platform.cursors import Cursors, PageNumber, Position

MINE = Cursors(b"a" * 32)


@given(st.lists(st.one_of(st.text(max_size=20), st.integers(-(2**60), 2**60), st.none()), max_size=5))
def test_a_cursor_says_what_was_put_in(key: list[str | int | None]) -> None:
    assert MINE.decode("keys", MINE.encode("keys", key)) == Position(tuple(key))


@pytest.mark.parametrize(("text", "number"), [("MQ==", 1), ("Mg==", 2), ("MTA=", 10)])
def test_the_numbered_form_is_read(text: str, number: int) -> None:
    assert MINE.decode("keys", text) == PageNumber(number)
    assert PageNumber(number).offset(50) == (number - 1) * 50


@pytest.mark.parametrize("text", ["", "x", "MA==", "!!", "Mg", "LTI=", "MTAwMDAwMA==", "a" * 400, "é"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        MINE.decode("keys", text)


def test_a_cursor_is_good_for_its_own_list_on_its_own_server_and_unchanged() -> None:
    cursor = MINE.encode("keys", [1, "x"])
    raw = bytearray(base64.urlsafe_b64decode(cursor))
    raw[-2] ^= 1
    for reader, operation, text in (
        (MINE, "requests", cursor),
        (Cursors(b"b" * 32), "keys", cursor),
        (MINE, "keys", base64.urlsafe_b64encode(bytes(raw)).decode()),
    ):
        with pytest.raises(InvalidRequest):
            reader.decode(operation, text)
