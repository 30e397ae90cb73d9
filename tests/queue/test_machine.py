"""The queue against a simple model: whatever is done in whatever order, each request has one place and one end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.queue.parts import ECHO, Parts, job, outcome

from varvel.queue.model import AttemptResult, Job, JobState

T = TypeVar("T")
SLOTS = 2


@dataclass
class Known:
    """What the model knows of a request. `end` is its status code, once it has one."""

    number: int
    low: bool
    attempts: int = 0
    running: bool = False
    cancel: bool = False
    end: int | None = None


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.known: dict[str, Known] = {}
        self.open: dict[str, asyncio.Future[AttemptResult]] = {}
        self.parts = Parts(Path(self.folder.name), serve=self.serve, slots=SLOTS)
        self.run(self.parts.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        self.run(self.parts.stop())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    async def serve(self, job: Job) -> AttemptResult:
        self.open[job.request_id] = asyncio.get_running_loop().create_future()
        return await self.open[job.request_id]

    # The model

    def waiting(self) -> list[str]:
        """Those that wait, in order."""
        alive = [name for name, of in self.known.items() if of.end is None and not of.running]
        return sorted(alive, key=lambda name: (self.known[name].low, self.known[name].number))

    def running(self) -> list[str]:
        return [name for name, of in self.known.items() if of.end is None and of.running]

    def dispatch(self, but: str | None = None) -> None:
        for name in self.waiting():
            if name != but and len(self.running()) < SLOTS:
                self.known[name].running = True
                self.known[name].attempts += 1

    def failed(self, name: str) -> None:
        of = self.known[name]
        of.running = False
        if of.cancel:
            of.end = 499
        elif of.attempts == 10:
            of.end = 503
        # It rests for a moment: another one that waits takes the free slot.
        self.dispatch(but=name)
        self.dispatch()

    # What can happen

    @rule(low=st.booleans())
    def submit(self, low: bool) -> None:
        given = job(low=low)
        self.run(self.parts.scheduler.submit(given))
        self.known[given.request_id] = Known(len(self.known), low)
        self.dispatch()

    @precondition(lambda self: self.running())
    @rule(pick=st.integers(0, SLOTS - 1), fails=st.booleans())
    def finish(self, pick: int, fails: bool) -> None:
        name = self.running()[pick % len(self.running())]
        result = AttemptResult(outcome=outcome(503 if fails else 200), condition="server_error" if fails else None)
        self.open.pop(name).set_result(result)
        if fails:
            self.failed(name)
        else:
            self.known[name].end = 200
            self.dispatch()

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 10_000))
    def cancel(self, pick: int) -> None:
        name = list(self.known)[pick % len(self.known)]
        of = self.known[name]
        answer = self.run(self.parts.scheduler.cancel(name))
        assert answer == ("completed" if of.end is not None else "requested" if of.running else "cancelled")
        if answer == "requested":
            of.cancel = True
        elif answer == "cancelled":
            of.end = 499

    @rule()
    def flush(self) -> None:
        waiting = self.waiting()
        assert self.run(self.parts.scheduler.flush(ECHO)) == len(waiting)
        for name in waiting:
            self.known[name].end = 499

    @rule()
    def restart(self) -> None:
        self.open.clear()
        self.run(self.parts.restart())
        for name in self.running():
            of = self.known[name]
            of.running = False
            if of.cancel or of.attempts == 10:
                of.end = 499 if of.cancel else 503
        self.dispatch()

    # What always holds

    @invariant()
    def the_queue_is_as_the_model(self) -> None:
        self.run(self.agree())

    async def agree(self) -> None:
        while set(self.open) != set(self.running()):
            await asyncio.sleep(0.001)
        waiting = self.waiting()
        assert self.parts.scheduler.size(ECHO) == len(waiting)
        for name, of in self.known.items():
            status = await self.parts.scheduler.status(name)
            if of.end is not None:
                end = await self.parts.ended(name)
                assert end.status == of.end
                continue
            assert status is not None
            if of.running:
                assert status.state is JobState.RUNNING
                assert status.job.attempts == of.attempts
            else:
                ahead = [other for other in waiting if waiting.index(other) < waiting.index(name)]
                assert (status.state, status.position) == (JobState.QUEUED, len(ahead))
        await self.recorded_once()

    async def recorded_once(self) -> None:
        """Each end is recorded and billed once, in the transaction of the end."""
        ends = sorted(name for name, of in self.known.items() if of.end is not None)
        for kind in ("requests", "billing"):
            recorded: list[str] = []
            while len(recorded) < len(ends):
                batches = await self.parts.outbox.peek(kind, 1_000_000)
                lines = [line for batch in batches for line in batch.body.splitlines()]
                recorded = sorted(msgspec.json.decode(line)["request_id"] for line in lines)
            assert recorded == ends


QueueMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestQueueMachine = QueueMachine.TestCase
