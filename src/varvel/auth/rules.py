"""Rules of keys: how they look, what is kept of them, when they hold. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from varvel.auth.model import Scope
from varvel.errors import InvalidRequest

_NICKNAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,38}", re.ASCII)
_RESERVED = frozenset({"run", "queue", "files", "storage", "v1", "control", "data", "workflows", "comfy"})
"""First path segments of this server and of its clients' URLs, which an owner's name would shadow."""


@dataclass(slots=True, kw_only=True)
class KeyRecord:
    """A key as it is kept: of the secret only its hash. Times are wall seconds."""

    key_id: str
    owner: str
    alias: str
    scope: Scope
    secret_hash: bytes
    created_at: float
    creator: str
    expires_at: float | None = None
    last_used_at: float | None = None
    accepted: str | None = None
    """The whole header with which it was last shown, in memory only: one that is the same needs no hash."""

    def holds(self, secret: str, now: float) -> bool:
        """Whether `secret` is its secret and it has not expired. Takes the same time for any wrong secret."""
        same = hmac.compare_digest(self.secret_hash, hash_secret(secret))
        return same and (self.expires_at is None or now < self.expires_at)


def hash_secret(secret: str) -> bytes:
    """What is kept of a secret. Secrets are 256 random bits, so a fast hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


def credentials(authorization: str) -> tuple[str, str] | None:
    """Id and secret of `Key id:secret`; None when the header has another form."""
    scheme, _, rest = authorization.partition(" ")
    key_id, colon, secret = rest.strip().partition(":")
    return (key_id, secret) if scheme.lower() == "key" and colon and key_id and secret else None


def check_nickname(nickname: str) -> str:
    """A name that can be an owner's. Raises `InvalidRequest`."""
    if not _NICKNAME.fullmatch(nickname) or nickname in _RESERVED:
        raise InvalidRequest(
            f"nickname: {nickname[:60]!r} must be 1 to 39 of a-z, 0-9, - and _, begin with a letter or digit, "
            "and not be a word of the URLs"
        )
    return nickname
