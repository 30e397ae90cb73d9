"""Short-lived tokens for browsers: good for a few apps, instead of a key, on WebSockets and streams.

A token is a JWT (HS256) that names the owner of the key it was made with, and the apps it is good for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from varvel.apps.model import AppId
from varvel.errors import InvalidRequest
from varvel.gateway.asgi import encode
from varvel.ids import now

LONGEST = 86_400
DEFAULT_DURATION = 120
_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token allows."""

    owner: str
    """Who made it; calls with it are theirs."""
    purpose: str
    """`apps` or `uploads`."""
    apps: tuple[str, ...] = ()

    def allows(self, app: AppId) -> bool:
        """Whether it is good for the app: named by its alias, its id, or any path under its id."""
        name = str(app)
        return any(item in (app.name, name, "*") or item.startswith(name + "/") for item in self.apps)


class Tokens:
    """Makes and checks tokens with a secret of the server."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = now) -> None:
        self._secret = secret
        self._clock = clock

    def make(self, grant: Grant, duration: float) -> str:
        """A token that is good for `duration` seconds."""
        issued = int(self._clock())
        claims = {"sub": grant.owner, "use": grant.purpose, "apps": grant.apps, "iat": issued, "exp": issued + duration}
        signed = _HEADER + b"." + base64.urlsafe_b64encode(encode(claims)).rstrip(b"=")
        return (signed + b"." + self._signature(signed)).decode()

    def check(self, token: str, purpose: str) -> Grant | None:
        """What the token allows; None when it is not ours, is too old, or is for something else."""
        signed, _, signature = token.encode("latin-1", "replace").rpartition(b".")
        if not hmac.compare_digest(self._signature(signed), signature):
            return None
        body = signed.partition(b".")[2]
        claims: dict[str, Any] = msgspec.json.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
        if claims["use"] != purpose or claims["exp"] <= self._clock():
            return None
        return Grant(claims["sub"], purpose, tuple(claims["apps"]))

    def _signature(self, signed: bytes) -> bytes:
        return base64.urlsafe_b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).rstrip(b"=")


class AppCredentials:
    """What apps of an owner upload with, in the form of a key; it is good for nothing else."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, owner: str) -> str:
        """The credential of an owner's apps, the same after each restart."""
        return f"{owner}:{hmac.digest(self._secret, owner.encode(), hashlib.sha256).hex()}"

    def owner(self, authorization: str | None) -> str | None:
        """The owner whose apps have this credential; None when it is none."""
        kind, _, given = (authorization or "").partition(" ")
        owner = given.partition(":")[0].strip()
        good = hmac.compare_digest(self.of(owner).encode(), given.strip().encode())
        return owner if good and kind.lower() == "key" else None


def requested(body: bytes) -> tuple[tuple[str, ...], float]:
    """The apps and seconds that a client asks a token for. Raises `InvalidRequest`."""
    try:
        asked = msgspec.json.decode(body)
        apps = asked["allowed_apps"]
        duration = asked.get("token_expiration", asked.get("duration", DEFAULT_DURATION))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as problem:
        raise InvalidRequest('The body must be {"allowed_apps": [...], "token_expiration": seconds}') from problem
    if not isinstance(apps, list) or not all(isinstance(item, str) and item for item in apps) or not apps:
        raise InvalidRequest("allowed_apps must be a list of app names")
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 < duration <= LONGEST:
        raise InvalidRequest(f"The token's duration must be between 0 and {LONGEST} seconds")
    return tuple(apps), float(duration)
