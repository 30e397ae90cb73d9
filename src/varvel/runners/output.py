"""The server's end of what a runner says: its channel, and the pipes behind its descriptors 1 and 2."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from varvel.telemetry.model import LogSink

LARGEST_PACKET = 212_992
"""Bytes: the most that a runner can put into one packet of its channel."""
LONGEST_RAW = 64 * 1024
"""Bytes without a line end after which a line of descriptor 1 or 2 is cut."""
A_TURN = 500
"""Packets taken before other work of the loop has its turn."""


@dataclass(slots=True)
class Ends:
    """The child's ends of the channel and the two pipes. Closed once the child has them."""

    channel: socket.socket
    stdout: int
    stderr: int

    def close(self) -> None:
        self.channel.close()
        os.close(self.stdout)
        os.close(self.stderr)


@dataclass(slots=True)
class _Raw:
    """One of the two pipes: bytes that do not come through Python's streams."""

    level: str
    descriptor: int
    partial: bytes = b""


@dataclass(slots=True)
class Output:
    """Takes lines from a runner and gives them to the sink, in the order of their coming, each once.

    Lines from Python know their request; bytes written to the descriptors belong to the request that is being
    served when it is the only one, else to none.
    """

    sink: LogSink
    app: str
    revision: str
    runner_id: str
    rate: int
    labels: dict[str, str]
    on_ready: Callable[[], None]
    on_gone: Callable[[], None]
    requests: dict[str, str] = field(default_factory=dict)
    """Requests being served now: id to endpoint."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    """The last lines, for the message of a start that failed."""
    _channel: socket.socket | None = None
    _raw: list[_Raw] = field(default_factory=list)
    _poll: select.poll = field(default_factory=select.poll)
    _second: int = 0
    _taken: int = 0
    _dropped: int = 0
    _telling: asyncio.TimerHandle | None = None

    def open(self) -> Ends:
        """Make the channel and the pipes, read from them from now on, and give the child's ends."""
        channel, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        self._channel = channel
        writing = []
        for level in ("stdout", "stderr"):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            self._raw.append(_Raw(level, reader))
            writing.append(writer)
        loop = asyncio.get_running_loop()
        loop.add_reader(channel.fileno(), self._read_channel)
        self._poll.register(channel, select.POLLIN)
        for raw in self._raw:
            loop.add_reader(raw.descriptor, self._read_raw, raw)
            self._poll.register(raw.descriptor, select.POLLIN)
        return Ends(childs, *writing)

    def order(self, packet: bytes) -> None:
        """Send the runner its order."""
        if self._channel is None:
            raise ValueError("the channel is closed")
        self._channel.send(packet)

    def drain(self) -> None:
        """Take all that has been written so far: a response that is read has its lines before it."""
        if self._channel is None or not self._poll.poll(0):
            return
        self._read_channel(100 * A_TURN)
        for raw in list(self._raw):
            self._read_raw(raw)

    def say(self, level: str, message: str) -> None:
        """A line of Varvel's own about the runner."""
        self.drain()
        self._take(level, message, "", "", time.time())

    def close(self) -> None:
        """Take what is left, and stop. The process has ended."""
        self.drain()
        for raw in list(self._raw):
            self._close_raw(raw)
        self._close_channel()
        self._tell_dropped()

    def _read_channel(self, turns: int = A_TURN) -> None:
        channel = self._channel
        if channel is None:
            return
        for _ in range(turns):
            try:
                packet = channel.recv(LARGEST_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._close_channel()
                return
            if packet == b"ready":
                self.on_ready()
                continue
            level, at, request_id, endpoint, message = packet.decode("utf-8", "replace").split("\x1f", 4)
            if self._admit(2 * self.rate):
                self._take(level, message, request_id, endpoint, float(at))

    def _read_raw(self, raw: _Raw) -> None:
        try:
            data = os.read(raw.descriptor, 65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_raw(raw)
            return
        *lines, raw.partial = (raw.partial + data).split(b"\n")
        for index, line in enumerate(lines):
            if not self._take_raw(raw.level, line):
                self._dropped += len(lines) - index - 1
                break
        if len(raw.partial) > LONGEST_RAW:
            line, raw.partial = raw.partial, b""
            self._take_raw(raw.level, line)

    def _take_raw(self, level: str, line: bytes) -> bool:
        if not self._admit(self.rate):
            return False
        request_id, endpoint = next(iter(self.requests.items())) if len(self.requests) == 1 else ("", "")
        self._take(level, line.rstrip(b"\r").decode("utf-8", "backslashreplace"), request_id, endpoint, time.time())
        return True

    def _take(self, level: str, message: str, request_id: str, endpoint: str, at: float) -> None:
        self.tail.append(message)
        labels = self.labels
        if request_id:
            labels = {**labels, "fal_request_id": request_id, "fal_endpoint": endpoint}
        self.sink.take(
            app=self.app,
            revision=self.revision,
            job_id=self.runner_id,
            level=level,
            message=message,
            request_id=request_id,
            endpoint=endpoint,
            labels=labels,
            at=at,
        )

    def _admit(self, most: int) -> bool:
        """Whether one more line may be taken in this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._taken = second, 0
        self._taken += 1
        if self._taken <= most:
            return True
        self._dropped += 1
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(1, self._tell_dropped)
        return False

    def _tell_dropped(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        dropped, self._dropped = self._dropped, 0
        if dropped:
            message = f"{dropped} lines were dropped: more than {self.rate} in a second"
            self._take("warning", message, "", "", time.time())

    def _close_raw(self, raw: _Raw) -> None:
        if raw in self._raw:
            self._raw.remove(raw)
            if raw.partial:
                self._take_raw(raw.level, raw.partial)
            self._forget(raw.descriptor)
            os.close(raw.descriptor)

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._forget(channel.fileno())
            channel.close()
            self.on_gone()

    def _forget(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        with contextlib.suppress(KeyError):
            self._poll.unregister(descriptor)
