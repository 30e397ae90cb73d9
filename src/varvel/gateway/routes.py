"""What a path of the data plane names: an app, a path inside it, and for the queue a request and what to do with it.

Ids are `owner/app[/path...]`. The namespaces `workflows` and `comfy` may stand before the owner and are kept in the
URLs that we give back. The legacy one-segment form `123-app` means `123/app`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

from varvel.apps.model import AppId

NAMESPACES = frozenset({"workflows", "comfy"})
Operation = Literal["status", "stream", "result", "cancel"]


@dataclass(frozen=True, slots=True)
class Target:
    """An app, and the path inside it as it was sent (still percent-encoded, beginning with `/`)."""

    app: AppId
    path: str
    prefix: str
    """How the app was addressed, with namespace or in legacy form: `workflows/me/x`."""


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """A queued request of an app, and what is asked about it."""

    app: AppId
    prefix: str
    request_id: str
    operation: Operation


_SHORT = 200
"""Bytes of a path that is worth remembering: callers choose paths, and must not fill the memory with them."""


def parse(raw: bytes) -> Target | None:
    """The target of the part of a raw path that follows `/run/` or `/queue/`; None when it names no app."""
    return _remembered(raw) if len(raw) <= _SHORT else _parse(raw)


@lru_cache(maxsize=4096)
def _remembered(raw: bytes) -> Target | None:
    return _parse(raw)


def _parse(raw: bytes) -> Target | None:
    first, _, rest = raw.decode("latin-1").partition("/")
    namespace = ""
    if first in NAMESPACES:
        namespace = first + "/"
        first, _, rest = rest.partition("/")
    number, dash, name = first.partition("-")
    if dash and number.isdecimal() and name:
        prefix, path = f"{number}/{name}", rest
        owner = number
    else:
        name, _, path = rest.partition("/")
        owner, prefix = first, f"{first}/{name}"
    if not owner or not name:
        return None
    if "%" in prefix:
        owner, name = unquote(owner), unquote(name)
    return Target(AppId(owner, name), "/" + path, namespace + prefix)


_SUFFIXES: dict[tuple[str, ...], Operation] = {
    (): "result",
    ("response",): "result",
    ("status",): "status",
    ("status", "stream"): "stream",
    ("cancel",): "cancel",
}


def request_of(target: Target, method: str) -> RequestTarget | None:
    """What the target asks about a queued request; None when it is a call to the app itself.

    `.../requests/{id}[/status[/stream] | /response | /cancel]`, below the app or below any path of it, with or
    without a slash at the end. A POST is never one: it submits, even to an app's own route of such a name.
    """
    if method == "POST" or "/requests/" not in target.path:
        return None
    parts = target.path.rstrip("/").split("/")
    for after in range(3):
        at = len(parts) - 2 - after
        if at < 1 or parts[at] != "requests":
            continue
        operation = _SUFFIXES.get(tuple(parts[at + 2 :]))
        if operation is not None and (method == "PUT") == (operation == "cancel"):
            return RequestTarget(target.app, target.prefix, unquote(parts[at + 1]), operation)
    return None


def without_fal_parameters(query: bytes) -> bytes:
    """The query string for the app: what begins with `fal_` was for us."""
    if b"fal_" not in query:
        return query
    return b"&".join(part for part in query.split(b"&") if not part.startswith(b"fal_"))
