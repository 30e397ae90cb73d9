"""How a runner begins: `runner` for a process of its own, `zygote` for a warmed parent that forks them."""

from __future__ import annotations

import faulthandler
import json
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from varvel_runner import storage
from varvel_runner.lines import Capture, Lines, watch

HERE = str(Path(__file__).parent)
LARGEST_ORDER = 190_000
"""Bytes of the packet that says what to run."""


def main(mode: str, descriptor: int, kind: str = "asgi") -> None:
    """Run one app to its end, and exit. Called in the child by the server's one line of bootstrap."""
    channel = socket.socket(fileno=descriptor)
    if mode == "zygote":
        from varvel_runner import zygote

        channel, order = zygote.serve(channel, kind)
    else:
        order = json.loads(channel.recv(LARGEST_ORDER))
    sys.exit(_run(channel, order))


def _run(channel: socket.socket, order: dict[str, Any]) -> int:
    channel.set_inheritable(False)
    sys.argv[:] = [order["file"]]
    if "" in sys.path:
        sys.path.remove("")
    lines = Lines(channel, order["log_rate"])
    capture = Capture(lines)
    capture.install()
    faulthandler.enable(2)
    storage.show(order, lines)
    threading.Thread(target=watch, args=(channel, lines, order["grace"]), daemon=True, name="varvel-watch").start()
    try:
        import varvel_runner.host as host  # it imports uvicorn, whose absence is to be told as a line

        host.prepare(order)
        return host.run(order, channel, capture)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    except BaseException as problem:
        _tell(capture, problem)
        return 1
    finally:
        capture.finish()


def _tell(capture: Capture, problem: BaseException) -> None:
    if type(problem).__name__ == "BadApp":
        capture.lines.send("error", str(problem))
    elif isinstance(problem, ModuleNotFoundError) and problem.name == "uvicorn":
        capture.lines.send("error", "uvicorn is not installed in the app's environment")
    else:
        sys.excepthook(type(problem), problem, _from_the_app_on(problem))


def _from_the_app_on(problem: BaseException) -> TracebackType | None:
    """Its traceback without the frames before the app's own, which say how it was loaded."""
    inner = traceback = problem.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith((HERE, "<frozen importlib")):
        inner = inner.tb_next
    return inner or (None if isinstance(problem, SyntaxError) else traceback)
