"""Uploads as the clients know them, and the files that come of them.

`/storage/...` gives out places to upload to; `/files/...` takes uploads and serves files by an id that cannot be
guessed. An upload URL is a capability: it carries a signature and needs no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec
import structlog

from varvel.errors import AccessDenied, AuthenticationRequired, InvalidRequest, NotFound, TooLarge, VarvelError
from varvel.gateway.access import Access
from varvel.gateway.asgi import Receive, Scope, Send, answer, answer_json, header
from varvel.gateway.bodies import pieces_of, stream, take
from varvel.gateway.media import Acl, Media, Medium
from varvel.gateway.queue import public_url
from varvel.gateway.tokens import AppCredentials, Grant, Tokens
from varvel.ids import now, uuid7
from varvel.settings import Settings

TOKEN_DURATION = 3600
SWEEP_EVERY = 30.0
MOST_PARTS = 10_000
ORDER_BYTES = 1024 * 1024
"""Bytes of the JSON orders, the longest of which lists the parts of an upload."""
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_DECISIONS = frozenset({"allow", "forbid", "hide"})


class Uploads:
    """Serves `/storage/...` and `/files/...`."""

    def __init__(self, settings: Settings, access: Access, tokens: Tokens, apps: AppCredentials, secret: bytes) -> None:
        self._settings = settings
        self._access = access
        self._tokens = tokens
        self._apps = apps
        self._secret = secret
        self.media = Media(settings.data / "uploads")
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to delete files that expire."""
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop deleting."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper

    async def _sweep(self) -> None:
        while True:
            try:
                await self.media.sweep(now())
            except OSError as problem:
                structlog.get_logger("varvel.uploads").warning("expired uploads stay for now", reason=str(problem))
            await asyncio.sleep(SWEEP_EVERY)

    # /storage

    async def storage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Places to upload to, for bearers of a key."""
        path = scope["path"].rstrip("/")
        if scope["method"] != "POST":
            raise NotFound(f"Path {path} not found")
        owner = self.owner(scope)
        base = public_url(self._settings, scope)
        if path == "/storage/auth/token":
            token = self._tokens.make(Grant(owner, "uploads"), TOKEN_DURATION)
            until = datetime.fromtimestamp(now() + TOKEN_DURATION, UTC).isoformat(timespec="seconds")
            await answer_json(
                send, 200, {"token": token, "token_type": "Bearer", "base_url": base, "expires_at": until}
            )
        elif path in ("/storage/upload/initiate", "/storage/upload/initiate-multipart"):
            order = await read_order(receive)
            kind = order.get("content_type")
            medium = await self.announce(scope, owner, str(order.get("file_name") or ""), str(kind or ""))
            url = url_of(base, medium)
            signature = self._signature(medium.media_id)
            await answer_json(send, 200, {"upload_url": f"{url}?signature={signature}", "file_url": url})
        else:
            raise NotFound(f"Path {path} not found")

    async def announce(self, scope: Scope, owner: str, name: str, kind: str) -> Medium:
        """Keep what is known of a file that is to come; the headers have its lifecycle. Raises `InvalidRequest`."""
        expires_at, acl = lifecycle(
            header(scope, b"x-fal-object-lifecycle") or header(scope, b"x-fal-object-lifecycle-preference")
        )
        created = now()
        medium = Medium(
            media_id=self.media.new_id(),
            owner=owner,
            file_name=safe_name(name),
            content_type=kind if kind.isprintable() and kind.isascii() and kind else "application/octet-stream",
            created_at=created,
            expires_at=None if expires_at is None else created + expires_at,
            acl=acl,
        )
        await self.media.announce(medium)
        return medium

    # /files

    async def files(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Uploads and downloads."""
        method = scope["method"]
        parts = scope["path"].strip("/").split("/")[1:]
        if method in ("GET", "HEAD") and 1 <= len(parts) <= 2:
            await self._download(scope, send, parts[0])
        elif method == "POST" and parts == ["upload"]:
            medium = await self._announce_here(scope)
            await self.media.write(medium, self._body(scope, receive))
            await answer_json(send, 200, {"access_url": url_of(public_url(self._settings, scope), medium)})
        elif method == "POST" and parts == ["upload", "multipart"]:
            medium = await self._announce_here(scope)
            url = url_of(public_url(self._settings, scope), medium)
            await answer_json(send, 200, {"access_url": url, "uploadId": medium.media_id})
        elif method in ("PUT", "POST") and len(parts) in (2, 3, 5):
            await self._upload(scope, receive, send, parts)
        else:
            raise NotFound(f"Path {scope['path']} not found")

    async def _announce_here(self, scope: Scope) -> Medium:
        owner = self.owner(scope)
        return await self.announce(
            scope, owner, header(scope, b"x-fal-file-name") or "", header(scope, b"content-type") or ""
        )

    async def _upload(self, scope: Scope, receive: Receive, send: Send, parts: list[str]) -> None:
        """The whole file, one part of it, or the word that all parts have come."""
        medium = await self.media.find(parts[0], now())
        self._check_may_write(scope, medium)
        what = parts[2:] if len(parts) < 5 else parts[4:] if parts[2] == "multipart" else ["?"]
        if scope["method"] == "PUT" and not what:
            await self.media.write(medium, self._body(scope, receive))
            await answer_json(send, 200, {})
        elif scope["method"] == "PUT" and what[0].isdigit() and 1 <= int(what[0]) <= MOST_PARTS:
            number = int(what[0])
            etag = await self.media.write_part(medium, number, self._body(scope, receive))
            reply = {"partNumber": number, "etag": etag}
            await answer_json(send, 200, reply, headers=[(b"etag", f'"{etag}"'.encode())])
        elif scope["method"] == "POST" and what == ["complete"]:
            await self.media.join(medium, _parts(await read_order(receive)), self._settings.upload_limit)
            await answer_json(send, 200, {"access_url": url_of(public_url(self._settings, scope), medium)})
        else:
            raise NotFound(f"Path {scope['path']} not found")

    def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        most = self._settings.upload_limit
        announced = header(scope, b"content-length")
        if announced is not None and int(announced) > most:
            raise TooLarge(f"The body has {announced} bytes; this server takes {most}.")
        return stream(receive, b"", True, most)

    async def _download(self, scope: Scope, send: Send, media_id: str) -> None:
        medium = await self.media.find(media_id, now())
        self._check_may_read(scope, medium)
        path, size = await self.media.data(medium)
        start, length, status = _range(header(scope, b"range"), size)
        headers = [
            (b"content-type", medium.content_type.encode()),
            (b"content-length", b"%d" % length),
            (b"accept-ranges", b"bytes"),
            (b"etag", f'"{medium.media_id}"'.encode()),
            (b"content-disposition", f'inline; filename="{medium.file_name}"'.encode()),
            # What somebody uploaded must not act as a page of this server.
            (b"x-content-type-options", b"nosniff"),
            (b"content-security-policy", b"sandbox"),
            (b"x-fal-request-id", uuid7().encode()),
        ]
        if status == 416:
            await answer(send, 416, [*headers[2:3], (b"content-range", b"bytes */%d" % size), headers[-1]], b"")
            return
        if status == 206:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, start + length - 1, size)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["method"] == "GET":
            async for piece in pieces_of(path, start, length):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    # Who may

    def owner(self, scope: Scope) -> str:
        """Owner of the key, of the upload token, or of the app that uploads. Raises `AuthenticationRequired`."""
        authorization = header(scope, b"authorization")
        if (owner := self._apps.owner(authorization)) is not None:
            return owner
        if authorization is not None and authorization[:7].lower() == "bearer ":
            grant = self._tokens.check(authorization[7:].strip(), "uploads")
            if grant is not None:
                return grant.owner
        return self._access.caller(authorization).owner

    def _signature(self, media_id: str) -> str:
        return hmac.digest(self._secret, media_id.encode(), "sha256").hex()[:40]

    def _check_may_write(self, scope: Scope, medium: Medium) -> None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("signature", [""])[-1]
        if hmac.compare_digest(given.encode(), self._signature(medium.media_id).encode()):
            return
        if self.owner(scope) != medium.owner:
            raise NotFound("File not found")

    def _check_may_read(self, scope: Scope, medium: Medium) -> None:
        if medium.acl.default == "allow" and not medium.acl.rules:
            return
        try:
            user: str | None = self.owner(scope)
        except AuthenticationRequired:
            user = None
        if user == medium.owner:
            return
        decision = medium.acl.decision(user)
        if decision != "allow":
            refusal: VarvelError = AccessDenied() if decision == "forbid" else NotFound("File not found")
            raise refusal


def lifecycle(value: str | None) -> tuple[float | None, Acl]:
    """Seconds until a file expires (None: never), and who may read it. Raises `InvalidRequest`."""
    if not value:
        return None, Acl()
    try:
        given = msgspec.json.decode(value)
        seconds = given.get("expiration_duration_seconds")
        acl = msgspec.convert(given.get("initial_acl") or {}, Acl)
    except (msgspec.DecodeError, msgspec.ValidationError, AttributeError) as problem:
        raise InvalidRequest("The object lifecycle must be JSON as documented") from problem
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf
    ):
        raise InvalidRequest("expiration_duration_seconds must be a number above 0")
    if not {acl.default, *(rule.decision for rule in acl.rules)} <= _DECISIONS:
        raise InvalidRequest("A decision must be allow, forbid or hide")
    return seconds, acl


def safe_name(name: str) -> str:
    """A file name for a URL: letters, digits, dot, dash and underscore of its last part, at most 120."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1][-120:]
    return "".join(letter if letter in _NAME else "_" for letter in last).lstrip(".") or "file"


def url_of(base: str, medium: Medium) -> str:
    """Where the file is read, under the URL `base` of this server."""
    return f"{base}/files/{medium.media_id}/{quote(medium.file_name)}"


async def read_order(receive: Receive) -> dict[str, Any]:
    """A body that must be a JSON object. Raises `InvalidRequest`."""
    body = await take(receive, None, buffer=ORDER_BYTES, most=ORDER_BYTES)
    try:
        order = msgspec.json.decode(body) if isinstance(body, bytes) else None
    except msgspec.DecodeError:
        order = None
    if not isinstance(order, dict):
        raise InvalidRequest("The body must be a JSON object")
    return order


def _parts(order: dict[str, Any]) -> list[tuple[int, str]]:
    listed = order.get("parts")
    found: list[tuple[int, str]] = []
    for part in listed if isinstance(listed, list) else []:
        number, etag = (part.get("partNumber"), part.get("etag")) if isinstance(part, dict) else (None, None)
        if not isinstance(number, int) or not isinstance(etag, str):
            raise InvalidRequest("Each part must have partNumber and etag")
        found.append((number, etag.strip('"')))
    if not found or len({number for number, _ in found}) != len(found):
        raise InvalidRequest("parts must list each part once")
    return found


def _range(value: str | None, size: int) -> tuple[int, int, int]:
    """(start, length, status) of a single byte range; what cannot be read is taken as no range."""
    unit, _, spec = (value or "").partition("=")
    first, dash, last = spec.partition("-")
    if unit.strip() != "bytes" or not dash or "," in spec or not (first + last).isdigit():
        return 0, size, 200
    if not first:
        start = max(size - int(last), 0)
        return (start, size - start, 206) if int(last) and size else (0, 0, 416)
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if start >= size or end < start:
        return 0, 0, 416
    return start, end - start + 1, 206
