"""The scheduler: which waiting request runs next, on which slot, and what comes after.

All decisions are made on the event loop, between two awaits: a request is in exactly one of three places there,
waiting (`Order`), running (`_running`) or ending (`_ending`), and whoever takes it out of the first decides what
becomes of it. The store hears of it afterwards, in the order of the decisions.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import structlog

from varvel.apps.model import App, AppId, Catalog
from varvel.billing.rules import MachineType
from varvel.errors import StorageFull, VarvelError
from varvel.ids import now as wall_clock
from varvel.ids import uuid7
from varvel.queue import rules
from varvel.queue.deadlines import Deadlines, SteadyWall
from varvel.queue.ending import Endings, Finished
from varvel.queue.errors import QueueFull
from varvel.queue.memory import Bodies
from varvel.queue.model import AttemptResult, Job, JobState, JobStatus, Outcome
from varvel.queue.order import Order, Waiting
from varvel.queue.store import Alive, Progress, QueueStore
from varvel.runners.model import Pool, Slot
from varvel.settings import Settings
from varvel.state.errors import Closed, StateUnavailable

T = TypeVar("T")
Attempt = Callable[[Slot, Job, App], Awaitable[AttemptResult]]
"""Runs one attempt and gives the slot back in all cases."""

_REBUILD_PAGE = 20_000
_FETCH = 64
_FLUSH_PAGE = 1_000
_EXPIRE_PAGE = 5_000
_TROUBLE_DELAY = 1.0
_POSITION_EVERY = 1.0


@dataclass(slots=True)
class _Tries:
    """What a job has behind it; only kept for jobs that have something behind them."""

    attempts: int = 0
    spent: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Running:
    app: AppId
    place: int
    item: Waiting
    slot: Slot
    job: Job | None = None
    cancel: bool = False
    ending: bool = False


@dataclass(slots=True, eq=False)
class _Verdict:
    """The end of all requests of one flush; `certain` once it is on disk, though their results may not be."""

    outcome: Outcome
    certain: bool = False


@dataclass(slots=True, eq=False)
class _Ending:
    """A request that was taken out of the line to end without running."""

    seq: int
    verdict: _Verdict | None = None

    @property
    def outcome(self) -> Outcome | None:
        return self.verdict.outcome if self.verdict is not None and self.verdict.certain else None


class Scheduler:
    """Owns the queue of all apps. `start` before anything else; one event loop.

    `attempt` must give the slot back itself. `machines` gives the machine type of a name.
    """

    def __init__(
        self,
        store: QueueStore,
        pool: Pool,
        catalog: Catalog,
        attempt: Attempt,
        settings: Settings,
        machines: Callable[[str], MachineType],
        *,
        clock: Callable[[], float] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._pool = pool
        self._catalog = catalog
        self._attempt = attempt
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._unset = SteadyWall(clock, monotonic)
        self._steps_kept = 0.0
        self._log = structlog.get_logger("varvel.queue")
        self._order = Order()
        self._bodies = Bodies(settings.queue_memory)
        self._fetching: dict[AppId, asyncio.Future[None]] = {}
        self._tries: dict[str, _Tries] = {}
        self._running: dict[str, _Running] = {}
        self._ending: dict[str, _Ending] = {}
        self._watchers: dict[str, list[asyncio.Event]] = {}
        self._deadlines = Deadlines(self._expired, monotonic)
        self._endings = Endings(store, settings, machines, self._machine_of, self._ended, lambda: self._unset.now())
        self._cancel_running: Callable[[Job, Slot], None] | None = None
        self._seq = 0
        self._rebuilt_to = 0
        self._dirty: set[AppId] = set()
        self._pump: asyncio.Handle | None = None
        self._attempts: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[Any]] = set()
        self._stopping = False
        pool.on_free(self._touch)

    # Life

    async def start(self) -> None:
        """Rebuild the order from the store and begin to dispatch.

        A job that ran when the server died has spent an attempt (`connection_error`): it is back at its place, or
        ends when nothing is left of its budget. A million waiting jobs take a few seconds.
        """
        await self._store.sweep()
        self._steps_kept = await self._store.clock_steps()
        self._unset = SteadyWall(self._clock, self._monotonic, self._steps_kept)
        flushes = await self._store.flushes()
        flushed = {seq for seqs in flushes.values() for seq in seqs}
        after = 0
        with _no_collection():
            while page := await self._store.alive(after, _REBUILD_PAGE):
                await self._rebuild(page, flushed)
                after = page[-1].seq
        # Numbers of a flush whose ends are not all written must not be given again.
        self._seq = self._rebuilt_to = max([after, *flushed])
        for flush, seqs in flushes.items():
            self._spawn(self._write_flush(flush, seqs))
        self._spawn(self._expire_results())
        for app in self._order.apps():
            self._touch(app)

    async def stop(self, grace: float) -> None:
        """Stop dispatching; give what runs `grace` seconds to end. The rest is found again by the next `start`."""
        self._stopping = True
        self._deadlines.close()
        for request_id in self._watchers:
            self._notify(request_id)
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=grace)
        tasks: set[asyncio.Task[Any]] = {*self._attempts, *self._chores}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(VarvelError):
            await self._note_clock()

    # What callers ask

    async def submit(self, job: Job, max_queue_length: int | None = None) -> int:
        """Keep a new job; its position, once it is on disk.

        Raises `QueueFull` when more than `max_queue_length` wait for the app, `StorageFull`, `Closed`.
        """
        if self._stopping:
            raise Closed
        if max_queue_length is not None and self._order.size(job.app) > max_queue_length:
            raise QueueFull(f"More than {max_queue_length} requests wait for {job.app}.")
        self._seq += 1
        seq = self._seq
        kept = self._store.insert(seq, job)
        # A caller that goes away while we wait must not leave a job that is on disk and in no line.
        kept.add_done_callback(lambda done: self._admit(seq, job, done))
        await asyncio.shield(kept)
        return self._order.position(job.request_id) or 0

    async def status(self, request_id: str) -> JobStatus | None:
        """Where a request is now; None when it is unknown or its result has expired."""
        while True:
            running = self._running.get(request_id)
            if running is not None and running.job is not None:
                return JobStatus(job=running.job, state=JobState.RUNNING)
            seq = self._alive_seq(request_id)
            if seq is None:
                found = await self._result(request_id)
                return JobStatus(job=found[0], state=JobState.DONE, outcome=found[1]) if found else None
            job = self._bodies.get(request_id) or (await self._store.jobs([seq])).get(seq)
            # While the job was read it may have moved on; then look again.
            if job is not None and (status := self._alive_status(request_id, job)) is not None:
                return status
            await asyncio.sleep(0)

    async def watch(self, request_id: str) -> AsyncIterator[JobStatus]:
        """The status now and after each change, up to the end. Ends at once for an unknown request.

        Positions are looked at once a second. When the scheduler stops, it ends for what waits, and for what runs
        when that does.
        """
        changed = asyncio.Event()
        self._watchers.setdefault(request_id, []).append(changed)
        try:
            last: tuple[JobState, int | None] | None = None
            while (status := await self.status(request_id)) is not None:
                if (status.state, status.position) != last:
                    last = (status.state, status.position)
                    yield status
                if status.state is JobState.DONE or (self._stopping and status.state is JobState.QUEUED):
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POSITION_EVERY if status.state is JobState.QUEUED else None):
                        await changed.wait()
                changed.clear()
        finally:
            self._unwatch(request_id, changed)

    async def result(self, request_id: str) -> tuple[Job, Outcome] | None:
        """An ended job and its outcome; None before its end, after it expired, and for unknown ids."""
        ending = self._ending.get(request_id)
        if ending is not None and ending.outcome is not None:
            job = (await self._store.jobs([ending.seq])).get(ending.seq)
            if job is not None:
                return job, ending.outcome
        return await self._result(request_id)

    async def cancel(self, request_id: str) -> Literal["cancelled", "requested", "completed"] | None:
        """Cancel a request: a waiting one ends here and never runs; a running one is asked to stop.

        Raises `StorageFull` when that cannot be kept: then the request still waits or runs.
        """
        taken = self._order.remove(request_id)
        if taken is not None:
            await asyncio.shield(self._spawn(self._cancel_waiting(*taken)))
            return "cancelled"
        running = self._running.get(request_id)
        if running is None:
            known = request_id in self._ending or await self._result(request_id) is not None
            return "completed" if known else None
        if running.ending:
            return "completed"
        running.cancel = True
        try:
            await asyncio.shield(self._store.ask_cancel(running.item.seq))
        except VarvelError:
            running.cancel = False
            raise
        if running.job is not None and self._cancel_running is not None and not running.ending:
            self._cancel_running(running.job, running.slot)
        return "requested"

    async def flush(self, app: AppId, caller: str | None = None) -> int:
        """Cancel all that wait for an app, or those of one caller; how many. Running ones go on.

        They are cancelled for good when this returns; their ends are written after it. Raises `StorageFull`.
        """
        return await asyncio.shield(self._spawn(self._flush(app, caller)))

    def size(self, app: AppId) -> int:
        """How many requests wait for an app."""
        return self._order.size(app)

    def next_ids(self, app: AppId, count: int) -> list[str]:
        """Ids of the requests that come first, in their order."""
        return [item.request_id for item in self._order.upcoming(app, count)]

    def on_finished(self, callback: Finished) -> None:
        """Have `callback(job, outcome)` called on the event loop after each end is on disk."""
        self._endings.on_finished(callback)

    def on_cancel_running(self, callback: Callable[[Job, Slot], None]) -> None:
        """How a running job is asked to stop; called on the event loop, returns at once."""
        self._cancel_running = callback

    # Waiting

    def _admit(self, seq: int, job: Job, kept: asyncio.Future[None]) -> None:
        if kept.cancelled() or kept.exception() is not None:
            return
        deadline = self._monotonic_deadline(job.start_deadline)
        self._order.add(job.app, Waiting(seq, job.request_id, job.caller, job.hint, deadline, job.low))
        self._bodies.offer(job)
        if deadline is not None:
            self._deadlines.add(deadline, job.request_id)
        self._touch(job.app)

    def _monotonic_deadline(self, at: float | None) -> float | None:
        """A deadline in wall time as one that no setting of the clock moves."""
        return None if at is None else self._monotonic() + at - self._clock()

    async def _rebuild(self, page: list[Alive], flushed: set[int]) -> None:
        """Put a page of jobs back in line, in their order; end those that must not run again."""
        cut = [row.seq for row in page if (row.running or row.cancel) and row.seq not in flushed]
        cut_off = await self._store.jobs(cut) if cut else {}
        ends: dict[int, Outcome] = {}
        apps: dict[str, AppId] = {}
        for row in page:
            app = apps.get(row.app) or apps.setdefault(row.app, AppId(*row.app.split("/", 1)))
            if row.seq in flushed:
                self._ending[row.request_id] = _Ending(row.seq, _Verdict(rules.cancelled(self._clock()), certain=True))
            elif (end := self._end_of(row, cut_off.get(row.seq))) is not None:
                self._ending[row.request_id] = _Ending(row.seq)
                ends[row.seq] = end
            else:
                self._line_up(app, row)
        if ends:
            outcomes = {cut_off[seq].request_id: end for seq, end in ends.items()}
            self._spawn(self._endings.end_many(ends, lambda job: outcomes[job.request_id]))

    def _line_up(self, app: AppId, row: Alive) -> None:
        deadline = self._monotonic_deadline(row.start_deadline)
        self._order.add(app, Waiting(row.seq, row.request_id, row.caller, row.hint, deadline, row.low))
        if row.attempts:
            spent = dict(row.spent)
            if row.running:
                spent["connection_error"] = spent.get("connection_error", 0) + 1
            self._tries[row.request_id] = _Tries(row.attempts, spent)
        if deadline is not None:
            self._deadlines.add(deadline, row.request_id)

    def _end_of(self, row: Alive, job: Job | None) -> Outcome | None:
        """The end of a job that the server's death cut off, if it may not be tried again."""
        if job is None:
            return None
        at = self._clock()
        if row.cancel:
            return rules.cancelled(at)
        died = rules.server_died(row.started_at, at)
        return died.outcome if self._again(died, job, row.spent) is None else None

    def _take_out(self, items: list[Waiting], verdict: _Verdict | None = None) -> list[tuple[AppId, int, Waiting]]:
        """Take waiting requests out to end them; those that run or end by now stay where they are."""
        taken = []
        for item in items:
            found = self._order.remove(item.request_id)
            if found is not None:
                self._ending[item.request_id] = _Ending(item.seq, verdict)
                taken.append(found)
        return taken

    def _return(self, app: AppId, place: int, item: Waiting) -> None:
        self._ending.pop(item.request_id, None)
        self._order.put_back(app, place, item)
        if item.deadline is not None:
            self._deadlines.add(item.deadline, item.request_id)
        self._touch(app)

    async def _cancel_waiting(self, app: AppId, place: int, item: Waiting) -> None:
        self._ending[item.request_id] = _Ending(item.seq)
        self._touch(app)
        try:
            job = await self._load(app, item)
            await self._endings.end(item.seq, job, rules.cancelled(self._clock()))
        except VarvelError:
            self._return(app, place, item)
            raise

    async def _flush(self, app: AppId, caller: str | None) -> int:
        chosen = [item for item in self._order.waiting(app) if caller is None or item.caller == caller]
        taken: list[tuple[AppId, int, Waiting]] = []
        verdict = _Verdict(rules.cancelled(self._clock()))
        for start in range(0, len(chosen), _FLUSH_PAGE):
            taken += self._take_out(chosen[start : start + _FLUSH_PAGE], verdict)
            await asyncio.sleep(0)
        if not taken:
            return 0
        seqs = [item.seq for _, _, item in taken]
        try:
            flush = await self._store.flush(seqs)
        except VarvelError:
            for found in taken:
                self._return(*found)
            raise
        verdict.certain = True
        for request_id in self._watchers:
            if request_id in self._ending:
                self._notify(request_id)
        self._spawn(self._write_flush(flush, seqs))
        self._touch(app)
        return len(taken)

    async def _write_flush(self, flush: int, seqs: list[int]) -> None:
        await self._endings.end_many(seqs, lambda job: rules.cancelled(self._clock()))
        await self._store.flushed(flush)

    def _expired(self, request_ids: list[str]) -> None:
        """Start deadlines have come: those that still wait end."""
        waiting = [item for request_id in request_ids if (item := self._order.get(request_id)) is not None]
        self._end_waiting(self._take_out(waiting), self._start_timed_out)

    def _start_timed_out(self, job: Job, at: float) -> Outcome:
        trouble = self._pool.trouble(job.app)
        return rules.start_timed_out(at, trouble.reason if trouble is not None else None)

    def _end_waiting(self, taken: list[tuple[AppId, int, Waiting]], end: Callable[[Job, float], Outcome]) -> None:
        if taken:
            seqs = [item.seq for _, _, item in taken]
            self._spawn(self._endings.end_many(seqs, lambda job: end(job, self._clock())))
            for app in {app for app, _, _ in taken}:
                self._touch(app)

    # Dispatch

    def _touch(self, app: AppId) -> None:
        """Something may be possible for this app: look once, after all that happens in this turn of the loop."""
        self._dirty.add(app)
        if self._pump is None and not self._stopping:
            self._pump = asyncio.get_running_loop().call_soon(self._dispatch_dirty)

    def _dispatch_dirty(self) -> None:
        self._pump = None
        dirty, self._dirty = self._dirty, set()
        if self._stopping:
            return
        for app in dirty:
            self._dispatch(app)

    def _dispatch(self, app_id: AppId) -> None:
        app = self._catalog.get(app_id)
        if app is None:
            # Page by page, each in its own turn of the loop.
            self._end_waiting(
                self._take_out(self._order.upcoming(app_id, _FLUSH_PAGE)), lambda job, at: rules.app_gone(at)
            )
            return
        while (item := self._order.first(app_id)) is not None:
            if item.deadline is not None and item.deadline <= self._monotonic():
                self._expired([item.request_id])
                continue
            slot = self._pool.try_acquire(app_id, item.hint)
            if slot is None:
                break
            taken = self._order.take(app_id)
            assert taken is not None
            running = _Running(app_id, *taken, slot)
            self._running[item.request_id] = running
            task = asyncio.get_running_loop().create_task(self._run(running, app))
            self._attempts.add(task)
            task.add_done_callback(self._attempts.discard)
        self._pool.demand(app_id, self._order.ready(app_id))

    async def _run(self, running: _Running, app: App) -> None:
        """One attempt of a job that was taken out of the line, from its slot to its end or its return."""
        item = running.item
        tries = self._tries.get(item.request_id) or _Tries()
        try:
            job = running.job = await self._load(running.app, item)
            await self._begin(running, job, tries)
        except VarvelError as problem:
            self._log.error("a job could not be begun", request_id=item.request_id, error=str(problem))
            running.slot.release()
            self._rest(running, _TROUBLE_DELAY)
            return
        except BaseException:
            running.slot.release()
            raise
        try:
            result = await self._attempt(running.slot, job, app)
        except Exception as problem:
            self._log.exception("an attempt broke", request_id=item.request_id)
            result = AttemptResult(outcome=rules.broke(problem, self._clock()))
        await self._conclude(running, job, tries, result)

    async def _begin(self, running: _Running, job: Job, tries: _Tries) -> None:
        again = tries.attempts > 0
        job.attempts = tries.attempts + 1
        job.gateway_request_id = uuid7() if again else job.request_id
        job.state = JobState.RUNNING
        self._notify(job.request_id)
        progress = Progress(running.item.seq, True, job.attempts, self._clock(), tries.spent)
        if again or running.item.seq <= self._rebuilt_to:
            # A job with a past must not lose count of its attempts, should it be what kills the server.
            await self._store.progress(progress)
        else:
            self._store.progress_soon(progress)

    async def _conclude(self, running: _Running, job: Job, tries: _Tries, result: AttemptResult) -> None:
        again = self._again(result, job, tries.spent)
        if again is not None and result.outcome.body_file is not None:
            # An answer that nobody will see.
            self._spawn(asyncio.to_thread(result.outcome.body_file.unlink, missing_ok=True))
        if again is not None and not running.cancel:
            spent = {**tries.spent, again.condition: tries.spent.get(again.condition, 0) + 1}
            self._tries[job.request_id] = _Tries(job.attempts, spent)
            self._store.progress_soon(Progress(running.item.seq, False, job.attempts, 0.0, spent))
            job.state = JobState.QUEUED
            self._rest(running, again.delay)
            return
        if again is not None:
            result.outcome = _asked_for(result.outcome)
        if running.cancel and result.outcome.status == 499:
            result.outcome.error_type = "client_cancelled"  # the app has stopped as it was asked to
        running.ending = True
        await self._endings.end_surely(running.item.seq, job, result.outcome)

    def _rest(self, running: _Running, delay: float) -> None:
        """Let a taken job wait again at its place, its turn not before `delay` seconds."""
        request_id = running.item.request_id
        self._running.pop(request_id, None)
        self._order.rest(running.app, running.place, running.item)
        if running.job is not None:
            self._bodies.offer(running.job)
        if running.item.deadline is not None:
            self._deadlines.add(running.item.deadline, request_id)
        asyncio.get_running_loop().call_later(delay, self._wake, request_id)
        self._notify(request_id)

    def _wake(self, request_id: str) -> None:
        app = self._order.wake(request_id)
        if app is not None:
            self._touch(app)

    def _again(self, result: AttemptResult, job: Job, spent: dict[str, int]) -> rules.Again | None:
        app = self._catalog.get(job.app)
        return rules.decide(
            result,
            job,
            app.current.spec if app else None,
            spent,
            backoff=self._settings.retry_backoff,
            longest=self._settings.retry_backoff_max,
        )

    async def _load(self, app: AppId, item: Waiting) -> Job:
        """The whole job; read together with those whose turn comes next."""
        while True:
            job = self._bodies.take(item.request_id)
            if job is not None:
                return job
            fetch = self._fetching.get(app)
            if fetch is not None:
                await asyncio.wait([fetch])
                if item.request_id in self._bodies:
                    continue
            found = await self._fetch(app, item)
            if found is None:
                raise StateUnavailable(f"Request {item.request_id} is not in the store.")
            return found

    async def _fetch(self, app: AppId, item: Waiting) -> Job | None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fetching[app] = done
        try:
            coming = [next_.seq for next_ in self._order.upcoming(app, _FETCH) if next_.request_id not in self._bodies]
            jobs = await self._store.jobs([item.seq, *coming])
        finally:
            if self._fetching.get(app) is done:
                del self._fetching[app]
            done.set_result(None)
        wanted = jobs.pop(item.seq, None)
        for job in jobs.values():
            if job.request_id in self._order:
                self._bodies.offer(job)
        return wanted

    # Ends

    def _machine_of(self, job: Job) -> str:
        app = self._catalog.get(job.app)
        return app.current.spec.machine_type if app else ""

    def _ended(self, request_id: str) -> None:
        """The end of a request is on disk."""
        self._running.pop(request_id, None)
        self._ending.pop(request_id, None)
        self._tries.pop(request_id, None)
        self._bodies.take(request_id)
        self._notify(request_id)

    async def _result(self, request_id: str) -> tuple[Job, Outcome] | None:
        now = self._unset.now()
        found = self._endings.recent.get(request_id, now) or await self._store.result(request_id, now)
        return (found[0], found[1]) if found else None

    def _alive_seq(self, request_id: str) -> int | None:
        if (running := self._running.get(request_id)) is not None:
            return running.item.seq
        if (ending := self._ending.get(request_id)) is not None:
            return ending.seq
        item = self._order.get(request_id)
        return item.seq if item is not None else None

    def _alive_status(self, request_id: str, job: Job) -> JobStatus | None:
        if request_id in self._running:
            return JobStatus(job=job, state=JobState.RUNNING)
        if (ending := self._ending.get(request_id)) is not None:
            if ending.outcome is not None:
                return JobStatus(job=job, state=JobState.DONE, outcome=ending.outcome)
            return JobStatus(job=job, state=JobState.QUEUED, position=0)
        position = self._order.position(request_id)
        return JobStatus(job=job, state=JobState.QUEUED, position=position) if position is not None else None

    async def _expire_results(self) -> None:
        pause = min(30.0, max(0.05, min(self._settings.result_ttl, self._settings.large_result_ttl) / 10))
        while True:
            deleted = 0
            try:
                await self._note_clock()
                deleted = await self._store.expire(self._unset.now(), _EXPIRE_PAGE)
            except (StorageFull, StateUnavailable) as problem:
                self._log.error("expired results could not be deleted", error=str(problem))
            await asyncio.sleep(0 if deleted == _EXPIRE_PAGE else pause)

    async def _note_clock(self) -> None:
        """Results live for as long as they were to, whatever is done to the clock, also over restarts."""
        steps = self._unset.steps()
        if steps != self._steps_kept:
            self._log.warning("the clock was set", seconds=round(steps - self._steps_kept, 3))
            await self._store.keep_clock_steps(steps)
            self._steps_kept = steps

    # Those who wait and what goes on beside

    def _notify(self, request_id: str) -> None:
        for event in self._watchers.get(request_id, ()):
            event.set()

    def _unwatch(self, request_id: str, event: asyncio.Event) -> None:
        events = self._watchers.get(request_id, [])
        if event in events:
            events.remove(event)
        if not events:
            self._watchers.pop(request_id, None)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_done)
        return task

    def _chore_done(self, task: asyncio.Task[Any]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None and not isinstance(problem, VarvelError):
            self._log.error("a chore of the queue broke", exc_info=problem)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: a million new tuples, all of which stay, would be walked again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _asked_for(outcome: Outcome) -> Outcome:
    """A job that was asked to stop and broke off ends as cancelled, with what is known of its run."""
    end = rules.cancelled(outcome.ended_at)
    end.started_at = outcome.started_at
    end.runner_id, end.revision, end.machine_type = outcome.runner_id, outcome.revision, outcome.machine_type
    end.cold_boot = outcome.cold_boot
    return end
