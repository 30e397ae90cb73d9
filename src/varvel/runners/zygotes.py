"""Warmed parents, one for each environment and kind of app, from which runners are forked in milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections import deque
from collections.abc import Mapping

from varvel.runners.errors import StartFailed
from varvel.runners.output import Ends
from varvel.runners.process import LocalProcess, spawn

WARMING = 120.0
"""Seconds that imports may take."""


class Zygote:
    """One warmed parent. It ends by itself when its channel does."""

    def __init__(self, python: str, kind: str, environ: Mapping[str, str]) -> None:
        self._python, self._kind, self._environ = python, kind, environ
        self._loop = asyncio.get_running_loop()
        self._channel, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._child: subprocess.Popen[bytes] | None = None
        self._process: LocalProcess | None = None
        self._warm = asyncio.Event()
        self._forks: deque[asyncio.Future[LocalProcess]] = deque()
        self._forked: dict[int, LocalProcess] = {}
        self._open = True

    @property
    def ready(self) -> bool:
        return self._open and self._warm.is_set()

    @property
    def open(self) -> bool:
        return self._open

    async def start(self) -> None:
        """Start it. It is `ready` later."""
        descriptor = self._childs.fileno()
        environ = {**self._environ, "IS_ISOLATE_AGENT": "1"} if self._kind == "fal" else self._environ
        try:
            self._child = await asyncio.to_thread(
                spawn,
                self._python,
                ["zygote", str(descriptor), self._kind],
                descriptor,
                environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except StartFailed:
            self.close()
            raise
        finally:
            self._childs.close()
        self._process = LocalProcess(self._child)
        if self._open:
            self._loop.add_reader(self._channel.fileno(), self._read)

    async def fork(self, packet: bytes, ends: Ends) -> LocalProcess | None:
        """A runner with these ends for its own; None if this parent could not do it any more."""
        forked: asyncio.Future[LocalProcess] = self._loop.create_future()
        try:
            socket.send_fds(self._channel, [packet], [ends.channel.fileno(), ends.stdout, ends.stderr])
        except OSError:
            self.close()
            return None
        self._forks.append(forked)
        try:
            return await forked
        except ConnectionError:
            return None

    def close(self) -> None:
        """Let it go: it ends when it sees its channel closed."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        while self._forks:
            fork = self._forks.popleft()
            if not fork.done():
                fork.set_exception(ConnectionError("the parent is gone"))

    async def ended(self) -> None:
        """Wait for its end, after `close`."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 2)
            self._process.kill()
            await self._process.wait()

    def _read(self) -> None:
        while self._open:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._channel, 4096, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, descriptors = b"", []
            word, *numbers = packet.decode().split() or [""]
            if word == "warm":
                self._warm.set()
            elif word == "forked":
                process = LocalProcess(pid=int(numbers[0]), descriptor=descriptors[0])
                self._forked[process.pid] = process
                fork = self._forks.popleft()
                if fork.done():
                    process.kill()
                else:
                    fork.set_result(process)
            elif word == "exited":
                if ended := self._forked.pop(int(numbers[0]), None):
                    ended.status = int(numbers[1])
            else:
                self.close()


class Zygotes:
    """Those that are kept: at most `most`, the least recently used one goes first."""

    def __init__(self, environ: Mapping[str, str], most: int) -> None:
        self._environ = environ
        self._most = most
        self._kept: dict[tuple[str, str], Zygote] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def fork(self, python: str, kind: str, packet: bytes, ends: Ends) -> LocalProcess | None:
        """A runner forked from the environment's parent, if there is one and it is warm."""
        key = (python, kind)
        zygote = self._kept.get(key)
        if zygote is None or not zygote.ready:
            return None
        self._kept[key] = self._kept.pop(key)
        return await zygote.fork(packet, ends)

    def warm(self, python: str, kind: str) -> None:
        """Have a parent for this environment, soon."""
        key = (python, kind)
        if self._most <= 0 or (key in self._kept and self._kept[key].open):
            return
        if key in self._kept:
            self._end(self._kept.pop(key))
        while len(self._kept) >= self._most:
            self._end(self._kept.pop(next(iter(self._kept))))
        zygote = self._kept[key] = Zygote(python, kind, self._environ)
        self._track(self._start(zygote))

    async def stop(self) -> None:
        """End all of them."""
        while self._kept:
            self._end(self._kept.popitem()[1])
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=5)

    async def _start(self, zygote: Zygote) -> None:
        with contextlib.suppress(StartFailed):
            await zygote.start()

    def _end(self, zygote: Zygote) -> None:
        zygote.close()
        self._track(zygote.ended())

    def _track(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
