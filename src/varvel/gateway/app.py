"""The data plane as one ASGI callable: finds out what a path names and who calls, and hands over.

Raw ASGI, for it is on the way of every call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

from varvel.apps.model import App, Catalog
from varvel.auth.model import Authenticator
from varvel.errors import InvalidRequest, NotFound, VarvelError, known
from varvel.gateway import hosts, tokens
from varvel.gateway.access import Access, is_key
from varvel.gateway.app_uploads import ORIGIN, AppUploads
from varvel.gateway.asgi import ClientGone, Receive, Scope, Send, answer_error, answer_json, header
from varvel.gateway.attempt import Attempts
from varvel.gateway.bodies import take
from varvel.gateway.direct import DirectCalls
from varvel.gateway.headers import CallHeaders, read_call
from varvel.gateway.queue import QueueCalls, RequestLogs, Scheduler, public_url
from varvel.gateway.realtime import Realtime
from varvel.gateway.recording import Call, Machines, Recording
from varvel.gateway.routes import Target, parse, request_of, without_fal_parameters
from varvel.gateway.uploads import Uploads
from varvel.gateway.webhooks import Webhooks
from varvel.ids import now, uuid7
from varvel.metrics.meter import Meter
from varvel.queue.model import Job, Outcome
from varvel.queue.troubles import Line, Troubles
from varvel.runners.model import Pool, Slot
from varvel.settings import Settings
from varvel.state.ledger import Ledger
from varvel.telemetry.model import LogSink

SMALL_BODY = 64 * 1024
"""Bytes of a body that is ours to read, such as the order for a token."""


class FinishingScheduler(Scheduler, Line, Protocol):
    """A scheduler that tells of what has ended, and learns how to ask what runs to stop."""

    def on_finished(self, callback: Callable[[Job, Outcome], None]) -> None: ...
    def on_cancel_running(self, callback: Callable[[Job, Slot], None]) -> None: ...


class RequestLogSink(RequestLogs, LogSink, Protocol):
    """Where lines of requests go, and come from."""


class Misdirected(VarvelError):
    """The proxy only leads to hosts that this server stands for"""

    status = 412
    data_type = "bad_request"


class MethodNotAllowed(VarvelError):
    """The path does not take this method"""

    status = 405
    data_type = "bad_request"


class Gateway:
    """Serves `/run`, `/queue`, `/proxy`, `/tokens`, `/storage`, `/files` and `/.well-known/jwks.json`."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        catalog: Catalog,
        pool: Pool,
        scheduler: FinishingScheduler,
        ledger: Ledger,
        telemetry: RequestLogSink,
        meter: Meter,
        machines: Machines,
        *,
        attempts: Attempts,
        webhooks: Webhooks,
        secret: Callable[[str], bytes],
    ) -> None:
        self._settings = settings
        self._log = structlog.get_logger("varvel.gateway")
        self._meter = meter
        self._tokens = tokens.Tokens(secret("gateway tokens"))
        self._access = Access(authenticator, catalog, self._tokens)
        self._webhooks = webhooks
        recording = Recording(settings, ledger, meter, machines)
        self._direct = DirectCalls(settings, pool, attempts, recording)
        troubles = Troubles(pool, catalog, scheduler, telemetry)
        self._queue = QueueCalls(settings, self._access, scheduler, telemetry, webhooks, troubles)
        self._realtime = Realtime(pool, attempts, recording)
        apps = tokens.AppCredentials(secret("app uploads"))
        self._uploads = Uploads(settings, self._access, self._tokens, apps, secret("uploads"))
        self._app_uploads = AppUploads(settings, self._uploads)
        self._rooms: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            "run": self._run,
            "queue": self._submit,
            "proxy": self._proxy,
            "tokens": self._token,
            "storage": self._uploads.storage,
            "files": self._uploads.files,
            ".well-known": self._well_known,
        }
        scheduler.on_finished(self._count)
        scheduler.on_cancel_running(attempts.cancel)

    async def start(self, sockets: Path) -> None:
        """Take uploads of apps, in the folder of the runners' sockets, and begin to sweep expired ones."""
        await self._uploads.start()
        await self._app_uploads.start(sockets)

    async def stop(self) -> None:
        """Take no more, and stop sweeping."""
        await self._app_uploads.stop()
        await self._uploads.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        room = self._rooms.get(path.split("/", 2)[1])
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        try:
            if room is None:
                raise NotFound(f"Path {path} not found")
            await room(scope, receive, send)
        except VarvelError as error:
            await answer_error(send, error)
        except ClientGone:
            return
        except Exception as problem:
            told = known(problem)
            if told is None:
                self._log.exception("a call broke", path=path)
                told = VarvelError("Something went wrong in the server; its log says more")
            await answer_error(send, told)

    # Calls to apps

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = now()
        request_id = uuid7()
        try:
            target = parse(_raw_path(scope)[5:])
            if target is None:
                raise NotFound(f"Path {scope['path']} names no application")
            headers = read_call(scope["headers"])
            query: bytes = scope["query_string"]
            app, caller = self._access.app(target.app, headers.authorization, _jwt(query))
            self._forward(scope, headers, app)
            path = _without_slash(app, target)
            call = Call(
                request_id,
                app,
                app.endpoint_id(path),
                path,
                _target(path, without_fal_parameters(query)),
                scope["method"],
                caller,
                arrived,
                headers.store_io,
                headers.hint,
                headers.start_timeout,
            )
            self._meter.received(str(target.app), call.method)
            await self._direct.serve(call, headers.forward, headers.content_length, receive, send)
        except VarvelError as error:
            await answer_error(send, error, request_id)

    async def _submit(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = now()
        target = parse(_raw_path(scope)[7:])
        if target is None:
            raise NotFound(f"Path {scope['path']} names no application")
        asked = request_of(target, scope["method"])
        if asked is not None:
            await self._queue.serve(scope, receive, send, asked, header(scope, b"authorization"))
            return
        request_id = uuid7()
        try:
            headers = read_call(scope["headers"])
            app, caller = self._access.app(target.app, headers.authorization, None)
            self._forward(scope, headers, app)
            target = Target(target.app, _without_slash(app, target), target.prefix)
            self._meter.received(str(target.app), scope["method"])
            await self._queue.submit(
                scope,
                receive,
                send,
                target=target,
                app=app,
                caller=caller,
                call=headers,
                request_id=request_id,
                arrived=arrived,
            )
        except VarvelError as error:
            await answer_error(send, error, request_id)

    def _forward(self, scope: Scope, headers: CallHeaders, app: App) -> None:
        """Add what the app is told of the connection, and its own kind of authorization on a public app."""
        client = scope.get("client")
        if client is not None:
            headers.forward.append((b"x-forwarded-for", client[0].encode()))
        headers.forward.append((b"x-forwarded-proto", scope["scheme"].encode()))
        if app.current.spec.kind == "fal":
            headers.forward.append((ORIGIN, public_url(self._settings, scope).encode("latin-1")))
        if headers.authorization is not None and app.auth_mode == "public" and not is_key(headers.authorization):
            headers.forward.append((b"authorization", headers.authorization.encode("latin-1")))

    def _count(self, job: Job, outcome: Outcome) -> None:
        self._meter.completed(str(job.app), job.method, outcome.status, outcome.ended_at - job.submitted_at)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = parse(_raw_path(scope)[5:]) if scope["path"].startswith("/run/") else None
        try:
            if target is None:
                raise NotFound(f"Path {scope['path']} takes no WebSocket")
            headers = read_call(scope["headers"])
            query: bytes = scope["query_string"]
            app, caller = self._access.app(target.app, headers.authorization, _jwt(query))
            self._forward(scope, headers, app)
        except VarvelError as error:
            await self._realtime.refuse(scope, receive, send, error)
            return
        call = Call(
            uuid7(),
            app,
            app.endpoint_id(target.path),
            target.path,
            _target(target.path, without_fal_parameters(query)),
            "GET",
            caller,
            now(),
            headers.store_io,
            headers.hint,
            headers.start_timeout,
        )
        self._meter.received(str(target.app), "GET")
        await self._realtime.serve(call, headers.forward, scope, receive, send)

    # What stands beside them

    async def _token(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /tokens[/]` gives a JSON string, `POST /tokens/realtime` an object."""
        if scope["method"] != "POST":
            raise MethodNotAllowed
        caller = self._access.caller(header(scope, b"authorization"))
        apps, duration = tokens.requested(await _small(receive))
        token = self._tokens.make(tokens.Grant(caller.owner, "apps", apps), duration)
        rest = scope["path"].rstrip("/")
        if rest not in ("/tokens", "/tokens/realtime"):
            raise NotFound(f"Path {scope['path']} not found")
        await answer_json(send, 200, token if rest == "/tokens" else {"token": token})

    async def _well_known(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/.well-known/jwks.json":
            raise NotFound(f"Path {scope['path']} not found")
        await answer_json(send, 200, self._webhooks.signer.jwks(), headers=[(b"cache-control", b"max-age=3600")])

    async def _proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as if it had gone to its `x-fal-target-url`: the host is mapped, nothing is fetched."""
        wanted = header(scope, b"x-fal-target-url")
        if wanted is None:
            raise InvalidRequest("The header x-fal-target-url is missing")
        try:
            parts = urlsplit(wanted)
        except ValueError as problem:
            raise InvalidRequest("The header x-fal-target-url is not a URL") from problem
        path = hosts.local_path(parts.hostname or "", parts.path)
        room = self._rooms.get(path.split("/", 2)[1]) if path and path.startswith("/") else None
        if path is None or room is None or room == self._proxy:
            raise Misdirected
        scope = {
            **scope,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": parts.query.encode(),
            "headers": [item for item in scope["headers"] if item[0] != b"x-fal-target-url"],
        }
        await room(scope, receive, send)


def _raw_path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw


def _target(path: str, query: bytes) -> bytes:
    target = path.encode("latin-1")
    return target + b"?" + query if query else target


def _without_slash(app: App, target: Target) -> str:
    """The path for the app, without a slash at the end where its route has none: its redirect would lead astray."""
    path = target.path
    if path[-1] == "/" and len(path) > 1 and path[:-1] in app.current.spec.routes:
        return path[:-1]
    return path


def _jwt(query: bytes) -> str | None:
    if b"fal_jwt_token=" not in query:
        return None
    return parse_qs(query.decode("latin-1")).get("fal_jwt_token", [None])[-1]


async def _small(receive: Receive) -> bytes:
    body = await take(receive, None, buffer=SMALL_BODY, most=SMALL_BODY)
    return body if isinstance(body, bytes) else b""
