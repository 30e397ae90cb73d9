"""What an app prints, logs and raises, as labelled lines on the channel to the server.

A line is one packet: `level, time, request id, endpoint, message`, parted by unit separators. The request is
known from a context variable, which asyncio tasks and `to_thread` carry on; plain threads and thread pools are
taught to. What C code writes to descriptors 1 and 2 does not come this way: the server reads those itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import io
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

SEPARATOR = "\x1f"
LONGEST = 32_000
"""Characters of one line; longer ones are cut. At six bytes each (an escaped surrogate) they still fit a packet."""
PARTIAL = 8_192
"""Characters that may wait for the end of their line."""


class Request:
    """The request being served, as the lines printed for it are labelled."""

    __slots__ = ("ended", "endpoint", "origin", "request_id")

    def __init__(self, request_id: str, endpoint: str, origin: Request | None = None) -> None:
        self.request_id = request_id
        self.endpoint = endpoint
        self.origin = origin
        """Set in threads that a request started: once it has ended, their lines are nobody's."""
        self.ended = False


_serving: contextvars.ContextVar[Request | None] = contextvars.ContextVar("varvel_request", default=None)


def serving() -> Request | None:
    """The request in whose context this is called."""
    request = _serving.get()
    if request is not None and request.origin is not None and request.origin.ended:
        return None
    return request


def serve(request: Request) -> None:
    """Label all that is printed from here on in this context."""
    _serving.set(request)


class Lines:
    """Sends lines to the server, no more than `rate` a second; what is dropped is counted and said."""

    def __init__(self, channel: socket.socket, rate: int) -> None:
        self._channel = channel
        self._rate = rate
        self._lock = threading.RLock()
        self._second = 0
        self._sent = 0
        self._dropped = 0

    def send(self, level: str, message: str, request: Request | None = None) -> None:
        """Send one line (or one traceback, which may have line ends in it)."""
        now = time.time()
        with self._lock:
            if int(now) != self._second:
                self._second, self._sent = int(now), 0
                self._tell_dropped(now)
            self._sent += 1
            if self._sent > self._rate:
                self._dropped += 1
                return
            for start in range(0, max(len(message), 1), LONGEST):
                self._put(level, now, message[start : start + LONGEST], request)

    def tell_dropped(self) -> None:
        """Say how many lines were dropped since this was last said, if any were."""
        with self._lock:
            if int(time.time()) != self._second:
                self._tell_dropped(time.time())

    def finish(self) -> None:
        """Say it at the end, whatever second it is."""
        with self._lock:
            self._tell_dropped(time.time())

    def _tell_dropped(self, now: float) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._put("warning", now, f"{dropped} lines were dropped: more than {self._rate} in a second", None)

    def _put(self, level: str, now: float, message: str, request: Request | None) -> None:
        request_id, endpoint = (request.request_id, request.endpoint) if request else ("", "")
        packet = f"{level}\x1f{now:.6f}\x1f{request_id}\x1f{endpoint}\x1f{message}"
        with contextlib.suppress(OSError):  # the server is gone, and this process goes too
            self._channel.send(packet.encode("utf-8", "backslashreplace"))


class Stream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`: whole lines go out at once, labelled with their request."""

    def __init__(self, lines: Lines, level: str, descriptor: int) -> None:
        self._lines = lines
        self._level = level
        self._descriptor = descriptor
        self._partial: dict[tuple[int, Request | None], str] = {}
        self._cut: set[tuple[int, Request | None]] = set()
        """Whose last line was so long that it was sent before its end came."""
        self.buffer = _Bytes(self)

    encoding = "utf-8"
    errors = "backslashreplace"

    @property
    def name(self) -> str:
        return f"<{self._level}>"

    @property
    def mode(self) -> str:
        return "w"

    @property
    def line_buffering(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._descriptor

    def reconfigure(self, **options: Any) -> None:
        """Accepted as a text file does; lines are always UTF-8 and sent when they end."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        request = serving()
        key = (threading.get_ident(), request)
        waiting = self._partial.pop(key, "") + text
        if key in self._cut:
            self._cut.discard(key)
            waiting = waiting.removeprefix("\n")
            if not waiting:
                return len(text)
        if "\n" not in waiting:
            if len(waiting) < PARTIAL:
                self._partial[key] = waiting
            else:
                self._lines.send(self._level, waiting, request)
                self._cut.add(key)
            return len(text)
        *whole, rest = waiting.split("\n")
        for line in whole:
            self._lines.send(self._level, line.rstrip("\r"), request)
        if rest:
            self._partial[key] = rest
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing waits but unfinished lines, and those wait for their end."""

    def finish(self, request: Request | None) -> None:
        """Send the unfinished lines of a request; of everybody, if it is None."""
        if self._cut:
            self._cut = {key for key in self._cut if request is not None and key[1] is not request}
        if self._partial:
            for key in [key for key in list(self._partial) if request is None or key[1] is request]:
                self._lines.send(self._level, self._partial.pop(key, ""), key[1])


class _Bytes(io.RawIOBase):
    """What `sys.stdout.buffer` is."""

    def __init__(self, text: Stream) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        self._text.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)


class Handler(logging.Handler):
    """The root handler: a record is one line with its level, its traceback in it."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.send(_level(record.levelno), self.format(record), serving())
        except Exception:
            self.handleError(record)


def _level(number: int) -> str:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    if number >= logging.INFO:
        return "info"
    return "debug" if number >= logging.DEBUG else "trace"


class Capture:
    """Everything that this process says, taken over: streams, logging, uncaught exceptions, threads' contexts."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._streams = (Stream(lines, "stdout", 1), Stream(lines, "stderr", 2))

    def install(self) -> None:
        """Take over."""
        sys.stdout, sys.stderr = self._streams
        sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc,assignment]
        root = logging.getLogger()
        root.handlers[:] = [Handler(self.lines)]
        root.setLevel(logging.INFO)
        sys.excepthook = self._uncaught
        threading.excepthook = lambda args: self._uncaught(args.exc_type, args.exc_value, args.exc_traceback)
        _teach_threads()

    def flush(self, request: Request) -> None:
        """Send what a request has written without a line end."""
        for stream in self._streams:
            stream.finish(request)

    def end(self, request: Request) -> None:
        """The app is done with a request."""
        request.ended = True
        self.flush(request)

    def finish(self) -> None:
        """The process ends."""
        for stream in self._streams:
            stream.finish(None)
        self.lines.finish()

    def _uncaught(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None and not issubclass(kind, SystemExit):
            self.lines.send("error", "".join(traceback.format_exception(kind, error, trace)).rstrip(), serving())


def _inherited() -> Request | None:
    request = serving()
    return request and Request(request.request_id, request.endpoint, request.origin or request)


def _teach_threads() -> None:
    """Let plain threads and thread pools know the request that they work for, as `to_thread` does."""
    start, submit = threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit

    def start_labelled(self: threading.Thread) -> None:
        request = _inherited()
        if request is not None:
            run = self.run

            def run_labelled() -> None:
                del self.run
                _serving.set(request)
                run()

            self.run = run_labelled  # type: ignore[method-assign]
        start(self)

    def submit_labelled(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, _labelled(fn, _inherited()), *args, **kwargs)

    threading.Thread.start = start_labelled  # type: ignore[method-assign]
    concurrent.futures.ThreadPoolExecutor.submit = submit_labelled  # type: ignore[method-assign]


def _labelled(fn: Callable[..., Any], request: Request | None) -> Callable[..., Any]:
    def work(*args: Any, **kwargs: Any) -> Any:
        before = _serving.set(request)
        try:
            return fn(*args, **kwargs)
        finally:
            _serving.reset(before)

    return work


def watch(channel: socket.socket, lines: Lines, grace: float) -> None:
    """Say what was dropped each second; when the server is gone, end this process, at once after `grace` seconds."""
    import select
    import signal

    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        if not poll.poll(1000):
            lines.tell_dropped()
            continue
        try:
            if channel.recv(1):
                continue
        except OSError:
            pass
        break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.killpg(0, signal.SIGKILL) if os.getpgrp() == os.getpid() else os.kill(os.getpid(), signal.SIGKILL)
