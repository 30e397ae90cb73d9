"""Who calls, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Scope = Literal["API", "ADMIN"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a valid key. `owner` is the account's nickname, the first part of its app ids."""

    owner: str
    key_id: str
    scope: Scope


class Authenticator(Protocol):
    """Knows the keys. Answers from memory: it is on each request's way."""

    def authenticate(self, authorization: str | None) -> Caller | None:
        """The caller of an `Authorization: Key id:secret` header; None without a header.

        Raises `AuthenticationRequired` when a header is there but names no valid key.
        """
        ...
