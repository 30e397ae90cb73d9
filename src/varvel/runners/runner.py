"""One runner: its process, its lines, its connections, and how many requests are in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from varvel.apps.model import Revision
from varvel.queue.model import Headers
from varvel.runners.intervals import Intervals
from varvel.runners.model import RunnerInfo, RunnerState
from varvel.runners.output import Output
from varvel.runners.process import Process
from varvel.runners.transport import Connections, Response

READY = frozenset({RunnerState.IDLE, RunnerState.RUNNING})
COMING = frozenset({RunnerState.PENDING, RunnerState.SETUP, RunnerState.CRASH_BACKOFF})


@dataclass(slots=True, eq=False)
class Runner:
    """A runner in the pool. Times without `wall` in their name are the loop's."""

    runner_id: str
    revision: Revision
    places: int
    socket: str
    created: float
    wall_created: float
    output: Output
    awaited: bool
    """Whether a request waited for it when it was created."""
    state: RunnerState = RunnerState.PENDING
    process: Process | None = None
    connections: Connections | None = None
    in_flight: int = 0
    served: bool = False
    idle_since: float = 0.0
    startup: float = 0.0
    cold_left: int = 0
    """How many of the first requests waited for its start."""
    held_until: float = 0.0
    """Until then it is kept for a deployment that is to switch to it."""
    hints: frozenset[str] = frozenset()
    stopping: bool = False
    """Its end was asked for; if it ends otherwise, it has failed."""
    broke: bool = False
    """A request in it broke off, so that it is killed; its own end may have been the cause."""
    suspect: bool = False
    """It closed a connection in the middle of a request: it gets no other until it is known to live."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    living: asyncio.Task[None] | None = None
    health_failures: int = 0
    checking: bool = False
    checked_at: float = 0.0
    checked_well: bool = False
    """Whether it ever passed its health check: until then it has its start period."""
    intervals: Intervals | None = None
    cpu_ticks: int = 0
    cpu_percent: float = 0.0
    memory_bytes: int = 0

    def free(self) -> bool:
        """Whether it can take one more request."""
        return (
            self.state in READY and self.in_flight < self.places and not (self.stopping or self.suspect or self.broke)
        )

    def info(self) -> RunnerInfo:
        return RunnerInfo(
            runner_id=self.runner_id,
            app=self.revision.app,
            revision_id=self.revision.revision_id,
            machine_type=self.revision.spec.machine_type,
            state=self.state,
            in_flight=self.in_flight,
            started_at=self.wall_created,
            pid=self.process.pid if self.process else None,
            cpu_percent=self.cpu_percent,
            memory_bytes=self.memory_bytes,
        )


class RunnerSlot:
    """A `Slot` in one runner."""

    __slots__ = ("_given_back", "_release", "_request", "_response", "_runner",
                 "cold_boot", "machine_type", "revision_id", "runner_id", "socket")  # fmt: skip

    def __init__(self, runner: Runner, cold_boot: float, release: Callable[[Runner, bool, bool], None]) -> None:
        self.runner_id = runner.runner_id
        self.revision_id = runner.revision.revision_id
        self.machine_type = runner.revision.spec.machine_type
        self.socket = runner.socket
        self.cold_boot = cold_boot
        self._runner = runner
        self._release = release
        self._request = ""
        self._response: Response | None = None
        self._given_back = False

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]) -> Response:
        runner = self._runner
        if runner.connections is None:
            raise RuntimeError("a slot is only given in a runner that is ready")
        if not self._request:
            self._label(headers)
        self._response = response = await runner.connections.send(method, target, headers, body)
        return response

    def release(self, *, kill: bool = False, health_check: bool = False, hints: list[str] | None = None) -> None:
        if self._given_back:
            return
        self._given_back = True
        runner = self._runner
        if self._response is None or not self._response.complete:  # else what it wrote was taken as it was answered
            runner.output.drain()
        runner.output.requests.pop(self._request, None)
        if hints is not None:
            runner.hints = frozenset(hints)
        self._release(runner, kill, health_check)

    def _label(self, headers: Headers) -> None:
        """Bytes that C code writes from now on belong to this request, if it is alone."""
        request_id = endpoint = ""
        for name, value in reversed(headers):  # ours are the last
            if name == b"x-fal-request-id":
                request_id = value.decode("latin-1")
                break
            if name == b"x-fal-endpoint":
                endpoint = value.decode("latin-1")
        self._request = request_id
        if request_id:
            output = self._runner.output
            if len(output.requests) < 2:  # with more, bytes belong to nobody before and after
                output.drain()
            output.requests[request_id] = endpoint
