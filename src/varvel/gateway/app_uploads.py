"""Files that apps make: what `fal.toolkit` saves comes in over a unix socket and is served like any other upload.

Apps of `fal` hand their `File` and `Image` outputs to a service of their machine, if there is one: one POST for a
whole file, or a session for one whose size is not known yet. It is told by three variables of the app's environment.
The credential in them is good for uploads of one owner and for nothing else.

What cannot be taken is answered with 5xx: the toolkit would carry anything else to a host on the internet.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from varvel.errors import InvalidRequest, NotFound, StorageFull, VarvelError, known
from varvel.gateway.asgi import ClientGone, Receive, Scope, Send, answer, answer_error, answer_json, header
from varvel.gateway.bodies import stream
from varvel.gateway.media import Medium
from varvel.gateway.tokens import AppCredentials
from varvel.gateway.uploads import Uploads, read_order, url_of
from varvel.settings import Settings

SOCKET = "uploads.socket"
"""Name in the folder of the runners' sockets."""
ORIGIN = b"x-fal-public-url"
"""Header that tells a `fal.App` under which URL its caller reaches the server, and the server with each upload."""
MOST_SESSIONS = 1000


def variables(secret: bytes, owner: str, sockets: Path) -> Mapping[str, str]:
    """What apps of an owner are told of the service that listens in the folder `sockets`."""
    return {
        "FAL_USE_LOCAL_UPLOADER": "1",
        "FAL_API_SOCKET": str(sockets / SOCKET),
        "FAL_KEY": AppCredentials(secret).of(owner),
    }


def default_origin(settings: Settings) -> str:
    """Under which URL the server is reached, for uploads that no request told it of."""
    host = settings.host if settings.host not in ("0.0.0.0", "::") else "localhost"  # noqa: S104 - compared, not bound
    return settings.public_url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


class AppUploads:
    """The service. `start` with the folder of the runners' sockets."""

    def __init__(self, settings: Settings, uploads: Uploads) -> None:
        self._settings = settings
        self._uploads = uploads
        self._sessions: dict[str, tuple[Medium, str, int | None]] = {}
        """Uploads whose size is not known yet: what is known of the file, its URL, the bytes that have come."""
        self._log = structlog.get_logger("varvel.uploads")
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, sockets: Path) -> None:
        """Listen. Only processes of this user can connect, for the folder is theirs."""
        path = sockets / SOCKET
        await asyncio.to_thread(path.unlink, missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        config = uvicorn.Config(
            self, lifespan="off", access_log=False, log_config=None, server_header=False, timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Listen no longer."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except ClientGone:
            return
        except Exception as problem:
            error = known(problem)
            if error is None:
                self._log.exception("an app's upload broke", path=scope["path"])
                error = VarvelError("Something went wrong in the server; its log says more")
            else:
                self._log.warning("an app's upload was refused", path=scope["path"], reason=error.message)
            await answer_error(send, error if isinstance(error, StorageFull) else VarvelError(error.message))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = self._uploads.owner(scope)
        parts = scope["path"].strip("/").split("/")[1:]
        method = scope["method"]
        if method == "POST" and parts == ["uploads"]:
            medium, url = await self._announce(scope, owner)
            await self._uploads.media.write(medium, self._body(receive))
            await answer_json(send, 202, _receipt("accepted_local", medium, url))
        elif method == "GET" and len(parts) == 2 and parts[0] == "uploads":
            await answer_json(send, 200, {"state": "completed", "upload_id": parts[1]})
        elif method == "POST" and parts == ["upload-sessions"]:
            await self._open(scope, owner, send)
        elif parts[:1] == ["upload-sessions"] and len(parts) in (2, 3):
            await self._session(scope, receive, send, owner, parts)
        else:
            raise NotFound(f"Path {scope['path']} not found")

    # Files whose size is not known

    async def _open(self, scope: Scope, owner: str, send: Send) -> None:
        medium, url = await self._announce(scope, owner)
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[medium.media_id] = medium, url, None
        await answer_json(send, 201, {**_receipt("receiving", medium, url), "cdn_signing_requested": False})

    async def _session(self, scope: Scope, receive: Receive, send: Send, owner: str, parts: list[str]) -> None:
        found = self._sessions.get(parts[1])
        if found is None or found[0].owner != owner:
            raise NotFound("There is no such upload")
        medium, url, size = found
        what = scope["method"], *parts[2:]
        if what == ("PUT", "body"):
            size = await self._uploads.media.write(medium, self._body(receive))
            self._sessions[medium.media_id] = medium, url, size
            await answer(send, 204, [], b"")
        elif what == ("POST", "finish"):
            order = await read_order(receive)
            if size is None or order.get("size_bytes") != size:
                raise InvalidRequest(f"{size or 0} bytes have come, which is not what was sent")
            del self._sessions[medium.media_id]
            await answer_json(send, 202, _receipt("accepted_local", medium, url))
        elif what == ("DELETE",):
            del self._sessions[medium.media_id]
            await self._uploads.media.remove(medium)
            await answer_json(send, 202, {})
        else:
            raise NotFound(f"Path {scope['path']} not found")

    # Within

    async def _announce(self, scope: Scope, owner: str) -> tuple[Medium, str]:
        name = header(scope, b"x-fal-file-name") or ""
        medium = await self._uploads.announce(scope, owner, name, header(scope, b"content-type") or "")
        return medium, url_of(header(scope, ORIGIN) or default_origin(self._settings), medium)

    def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        return stream(receive, b"", True, self._settings.upload_limit)


def _receipt(state: str, medium: Medium, url: str) -> dict[str, Any]:
    return {"state": state, "upload_id": medium.media_id, "file_url": url}


class _Server(uvicorn.Server):
    """Signals belong to the process. `listening` is set once connections are taken."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
