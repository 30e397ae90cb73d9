"""How keys look and when they hold."""

from __future__ import annotations

import pytest

from varvel.auth.rules import KeyRecord, check_nickname, credentials, hash_secret
from varvel.errors import InvalidRequest


def record(expires_at: float | None = None) -> KeyRecord:
    return KeyRecord(
        key_id="k",
        owner="me",
        alias="a",
        scope="API",
        secret_hash=hash_secret("right"),
        created_at=0.0,
        creator="me",
        expires_at=expires_at,
    )


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Key a:b", ("a", "b")),
        ("key a:b:c", ("a", "b:c")),
        ("Key  a:b ", ("a", "b")),
        ("Key a", None),
        ("Key :b", None),
        ("Key a:", None),
        ("Bearer a:b", None),
        ("", None),
    ],
)
def test_only_a_key_header_with_id_and_secret_names_a_key(header: str, found: tuple[str, str] | None) -> None:
    assert credentials(header) == found


def test_a_key_holds_for_its_secret_until_it_expires() -> None:
    assert record().holds("right", 1e12)
    assert not record().holds("wrong", 1.0)
    assert record(expires_at=10.0).holds("right", 9.9)
    assert not record(expires_at=10.0).holds("right", 10.0)


@pytest.mark.parametrize("name", ["", "A", "a/b", "a b", "-a", "queue", "a" * 40, "é", "a\n"])
def test_a_nickname_that_would_break_urls_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="nickname"):
        check_nickname(name)


@pytest.mark.parametrize("name", ["a", "me", "lab-2", "user_123", "a" * 39])
def test_ordinary_nicknames_pass(name: str) -> None:
    assert check_nickname(name) == name
