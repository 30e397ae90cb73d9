"""Load the app that an order names, and serve it with uvicorn on a unix socket until SIGTERM."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import uvicorn
from uvicorn.config import Config

from varvel_runner.lines import Capture, Request, serve

NEVER = 10 * 365 * 86_400
"""Seconds: idle connections are closed by the server's side only, so that none closes while it is being used."""
LARGEST_MESSAGE = 1 << 30
"""Bytes of a WebSocket message: apps bound their own."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BadApp(Exception):
    """The entry file does not have what the deployment names."""


def load(kind: str, folder: str, file: str, attribute: str) -> tuple[App, Callable[[], Any] | None]:
    """The ASGI app, and what a `fal.App` wants to be called at SIGTERM. Raises `BadApp`, or what the app raises."""
    target: Any = _module(Path(folder), file)
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise BadApp(f"{file} has no {attribute!r}")
        target = getattr(target, name)
    if kind == "fal":
        return _fal(target, file, attribute)
    if not callable(target):
        raise BadApp(f"{file}:{attribute} is not an ASGI app: a {type(target).__name__} cannot be called")
    return target, None


def _module(folder: Path, file: str) -> ModuleType:
    path = folder / file
    sys.path[:0] = list(dict.fromkeys([str(path.parent), str(folder)]))
    name = path.stem if path.stem not in sys.modules else f"app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise BadApp(f"{file} is not a Python file of this app")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fal(target: Any, file: str, attribute: str) -> tuple[App, Callable[[], Any]]:
    import fal
    import fal.ref

    if not (isinstance(target, type) and issubclass(target, fal.App)):
        raise BadApp(f"{file}:{attribute} is not a fal.App class")
    app = target()
    fal.ref.set_current_app(app)
    # What `fal run --local` serves, without its own listeners: no public name for it exists.
    return app._build_app(), app.handle_exit


class Labelled:
    """The app as uvicorn sees it: each request's id is known to what is printed for it, and so is its caller."""

    def __init__(self, app: App, capture: Capture) -> None:
        self._app = app
        self._capture = capture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = endpoint = ""
        for name, value in scope["headers"]:
            if name == b"x-fal-request-id":
                request_id = value.decode("latin-1")
            elif name == b"x-fal-endpoint":
                endpoint = value.decode("latin-1")
            elif name == b"x-forwarded-for":
                scope["client"] = (value.split(b",", 1)[0].strip().decode("latin-1"), 0)
            elif name == b"x-forwarded-proto" and scope["type"] == "http":
                scope["scheme"] = value.decode("latin-1")
        request = Request(request_id, endpoint)
        serve(request)
        capture = self._capture

        async def send_after_lines(message: Any) -> None:
            # The answer's end may be read before the app returns: a line without its end goes out first.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                capture.flush(request)
            await send(message)

        try:
            await self._app(scope, receive, send_after_lines)
        finally:
            capture.end(request)


class Server(uvicorn.Server):
    """uvicorn, saying when it is ready, and ending by SIGTERM with a clean exit."""

    def __init__(self, config: Config, ready: Callable[[], None], exiting: Callable[[], Any] | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._exiting = exiting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._exiting is not None and not self.should_exit:
            try:
                self._exiting()
            except Exception:
                logging.getLogger("varvel").exception("handle_exit failed")
        self.should_exit = True


def run(order: dict[str, Any], channel: socket.socket, capture: Capture) -> int:
    """Serve until told to end. Gives the exit status: 0, or 1 when the app never became ready."""
    app, exiting = load(order["kind"], order["folder"], order["file"], order["attribute"])

    def ready() -> None:
        channel.send(b"ready")

    config = Config(
        Labelled(app, capture),
        uds=order["socket"],
        interface="asgi3",
        lifespan="on" if order["kind"] == "fal" else "auto",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=NEVER,
        ws_max_size=LARGEST_MESSAGE,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        backlog=1024,
    )
    if order["kind"] == "fal":
        logging.getLogger("uvicorn.error").addFilter(lambda record: not _told_already(record))
    server = Server(config, ready, exiting)
    try:
        server.run()
    finally:
        Path(order["socket"]).unlink(missing_ok=True)
    return 0 if server.started else 1


def _told_already(record: logging.LogRecord) -> bool:
    """Whether uvicorn tells of an exception that a `fal.App` has printed before, as JSON."""
    return record.module == "httptools_impl" and record.exc_info is not None


def prepare(order: dict[str, Any]) -> None:
    """Make this process the order's: its environment, folder, process group."""
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setsid()
