"""A parent that has imported what every app of its kind needs, and forks runners that are ready in milliseconds.

It has one thread, no event loop, and holds nothing but its channel. Orders come as packets with the runner's
channel, stdout and stderr as descriptors; it answers `forked PID`, and later `exited PID STATUS`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
from typing import Any

WARM: dict[str, tuple[str, ...]] = {
    "asgi": ("uvicorn", "uvicorn.lifespan.on", "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto",
             "uvloop", "fastapi", "starlette.responses", "varvel_runner.host", "varvel_runner.storage"),
}  # fmt: skip
WARM["fal"] = (*WARM["asgi"], "fal", "fal.ref", "fal.toolkit", "starlette_exporter")
LARGEST_ORDER = 190_000


def serve(channel: socket.socket, kind: str) -> tuple[socket.socket, dict[str, Any]]:
    """Fork for each order, until the server is gone. Returns only in the children, with their channel and order."""
    _warm(kind)
    wake_out, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_in)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel.send(b"warm")
    while True:
        ready, _, _ = select.select([channel, wake_out], [], [])
        if wake_out in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_out, 4096)
            _reap(channel)
        if channel in ready:
            packet, descriptors, _, _ = socket.recv_fds(channel, LARGEST_ORDER, 3)
            if not packet:
                os._exit(0)
            if _fork(channel, descriptors):
                os.close(wake_out)
                os.close(wake_in)
                return socket.socket(fileno=descriptors[0]), json.loads(packet)


def _warm(kind: str) -> None:
    for name in WARM[kind]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _reap(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError, OSError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            channel.send(f"exited {pid} {os.waitstatus_to_exitcode(status)}".encode())


def _fork(channel: socket.socket, descriptors: list[int]) -> bool:
    """True in the child."""
    pid = os.fork()
    if pid:
        # Its descriptor is taken before it can be reaped, so that the server's signals never reach another process.
        descriptors.append(os.pidfd_open(pid))
        socket.send_fds(channel, [f"forked {pid}".encode()], descriptors[-1:])
        for descriptor in descriptors:
            os.close(descriptor)
        return False
    os.setsid()
    channel.close()
    signal.set_wakeup_fd(-1)
    for caught in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(caught, signal.SIG_DFL)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[2], 2)
    os.close(descriptors[1])
    os.close(descriptors[2])
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    return True
