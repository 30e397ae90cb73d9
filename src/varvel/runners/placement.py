"""Where runners' processes live: the seam, and its implementation on this machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from varvel.runners.output import Ends, Output
from varvel.runners.process import LocalProcess, Process, spawn
from varvel.runners.zygotes import Zygotes


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a runner is to run, and as whom."""

    python: str
    kind: str
    folder: str
    file: str
    attribute: str
    socket: str
    data: str
    """The folder that the app is to see as `/data`, where the machine allows that."""
    environ: dict[str, str]
    log_rate: int
    grace: float


class Placement(Protocol):
    """Starts runners somewhere."""

    async def start(self, order: Order, output: Output) -> Process:
        """Start a process whose lines and readiness come through `output`. Raises `StartFailed`."""
        ...

    def warm(self, python: str, kind: str) -> None:
        """A hint: more runners of this environment may be needed, and soon."""
        ...

    async def stop(self) -> None:
        """Free what was kept to start runners. The runners have ended."""
        ...


class LocalPlacement:
    """Processes of this machine: forked from a warmed parent of their environment, else started afresh."""

    def __init__(self, environ: Mapping[str, str], warm_parents: int) -> None:
        self._zygotes = Zygotes(environ, warm_parents)

    async def start(self, order: Order, output: Output) -> Process:
        ends = output.open()
        packet = json.dumps(asdict(order)).encode()
        try:
            forked = await self._zygotes.fork(order.python, order.kind, packet, ends)
            return forked or await self._fresh(order, packet, output, ends)
        finally:
            ends.close()

    def warm(self, python: str, kind: str) -> None:
        self._zygotes.warm(python, kind)

    async def stop(self) -> None:
        await self._zygotes.stop()

    async def _fresh(self, order: Order, packet: bytes, output: Output, ends: Ends) -> Process:
        descriptor = ends.channel.fileno()
        child = await asyncio.to_thread(
            spawn,
            order.python,
            ["runner", str(descriptor)],
            descriptor,
            order.environ,
            cwd=order.folder,
            stdout=ends.stdout,
            stderr=ends.stderr,
        )
        process = LocalProcess(child)
        output.order(packet)
        return process
