"""How callers name files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varvel.files.paths import BadPath, parse, parse_file


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        ("", (), ""),
        ("a", ("a",), "a"),
        ("a/b/", ("a", "b"), "a/b"),
        ("a//b/./c", ("a", "b", "c"), "a/b/c"),
        ("data/x", ("data", "x"), "data/x"),
        ("/data", (), "/data"),
        ("/data/", (), "/data"),
        ("//data//x", ("x",), "/data/x"),
        ("/data/ü 1", ("ü 1",), "/data/ü 1"),
        ("...", ("...",), "..."),
    ],
)
def test_both_dialects_are_read_and_shown_as_they_came(text: str, parts: tuple[str, ...], shown: str) -> None:
    path = parse(text)
    assert path.parts == parts
    assert str(path) == shown


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "a/..",
        "../a",
        "a/../b",
        "/",
        "/etc",
        "/dataset",
        "/data/../etc",
        "a\0",
        "a\nb",
        "\x7f",
        "a" * 256,
        "é" * 128,
        "/".join(["a" * 200] * 21),
        "\ud800",
    ],
)
def test_what_no_storage_should_hold_is_refused(text: str) -> None:
    with pytest.raises(BadPath):
        parse(text)


@pytest.mark.parametrize("text", ["", "/data", "/data/", "a/"])
def test_a_file_has_a_name(text: str) -> None:
    with pytest.raises(BadPath, match="file"):
        parse_file(text)


@given(st.text(max_size=60))
def test_whatever_is_accepted_stays_inside_and_reads_back_the_same(text: str) -> None:
    try:
        path = parse(text)
    except BadPath:
        return
    assert not {"", ".", ".."} & set(path.parts)
    assert all("/" not in part and "\0" not in part for part in path.parts)
    assert parse(str(path)).parts == path.parts
