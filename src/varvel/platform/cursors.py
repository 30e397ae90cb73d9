"""Cursors: where the next page of a list begins.

A cursor holds the sort key of the last row that was sent (keyset), so that rows which arrive between two pages
neither repeat nor hide another. It is signed, for it goes into a query. The numbered form of older clients
(`Mg==`, the base64 of `2`) is read too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from varvel.errors import InvalidRequest

Part = str | int | float | None
_MAC = 12
_MAX_PAGE = 100_000


@dataclass(frozen=True, slots=True)
class Position:
    """The page begins after the row with this sort key."""

    key: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PageNumber:
    """The numbered form: page 2 begins after `limit` rows."""

    number: int

    def offset(self, limit: int) -> int:
        """How many rows to skip."""
        return (self.number - 1) * limit


class Cursors:
    """Signs and checks cursors with a secret of this server, which outlives restarts."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def encode(self, operation: str, key: Sequence[Part]) -> str:
        """The cursor after a row with sort key `key`; good for the same `operation` only."""
        body = json.dumps(list(key), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(operation, body) + body).decode()

    def decode(self, operation: str, cursor: str) -> Position | PageNumber:
        """What `cursor` means. Raises `InvalidRequest` when it is none of ours."""
        raw = _unbase64(cursor)
        if raw.isdigit() and len(raw) <= 6 and 1 <= int(raw) <= _MAX_PAGE:
            return PageNumber(int(raw))
        mac, body = raw[:_MAC], raw[_MAC:]
        if not hmac.compare_digest(mac, self._mac(operation, body)):
            raise InvalidRequest("cursor: not a cursor of this list")
        return Position(tuple(json.loads(body)))

    def _mac(self, operation: str, body: bytes) -> bytes:
        return hmac.new(self._secret, operation.encode() + b"\0" + body, hashlib.sha256).digest()[:_MAC]


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    except (binascii.Error, ValueError) as problem:
        raise InvalidRequest("cursor: not a cursor of this list") from problem
