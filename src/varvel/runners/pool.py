"""All runners of this machine: who gets which, and when they start and end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from varvel import ids
from varvel.apps.model import App, AppId, AppSpec, Catalog, Revision
from varvel.errors import NotFound
from varvel.runners import health, rules
from varvel.runners.book import Book, Record, Recorded
from varvel.runners.environment import app_environment, passed
from varvel.runners.errors import SchedulingFailed, StartFailed, StartTimedOut, StartTimeout
from varvel.runners.fleet import Fleet, Waiter
from varvel.runners.intervals import RunnerSeconds
from varvel.runners.model import RunnerInfo, RunnerState, Slot, Trouble
from varvel.runners.output import Output
from varvel.runners.placement import LocalPlacement, Order, Placement
from varvel.runners.room import Room
from varvel.runners.runner import COMING, READY, Runner, RunnerSlot
from varvel.runners.samples import sample
from varvel.runners.transport import Connections
from varvel.settings import Settings
from varvel.telemetry.model import LogSink

log = logging.getLogger(__name__)
TICK = 0.25
DYING = 0.05
SAMPLE_EVERY = 20
"""Ticks between two samples of CPU and memory."""
HOLD = 60.0
"""Seconds for which a runner started by a deployment waits to be switched to."""
LONGEST_SOCKET = 100
"""Bytes of a socket's path; the system's own limit is 107."""
State = RunnerState


class LocalPool:
    """The `Pool` of one server, whose data folder is `folder`. All its methods are called on the event loop."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        logs: LogSink,
        record: Record,
        folder: Path,
        *,
        placement: Placement | None = None,
        environ: Mapping[str, str] | None = None,
        lend: Callable[[str, Path], Mapping[str, str]] | None = None,
        seconds: RunnerSeconds | None = None,
        gpus_of: Callable[[AppSpec], int] = lambda spec: spec.num_gpus,
    ) -> None:
        """`lend` gives the variables with which an owner's apps reach services that listen in the folder of sockets."""
        self._settings = settings
        self._catalog = catalog
        self._logs = logs
        self._book = Book(
            catalog,
            record,
            seconds or Recorded(record),
            tick=settings.usage_tick,
            heartbeat=settings.usage_heartbeat,
            gpus_of=gpus_of,
        )
        self._folder = folder
        self._base = passed(os.environ if environ is None else environ)
        self._placement = placement
        self._lend = lend
        self._fleets: dict[AppId, Fleet] = {}
        self._free_callbacks: list[Callable[[AppId], None]] = []
        self._failed_callbacks: list[Callable[[AppId, Trouble], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._room = Room(settings.max_runners, self._evict)
        self._stopping = False
        self._temporary: Path | None = None

    # Life

    async def start(self) -> None:
        """Begin: sockets of an earlier life are cleared away, and `min_concurrency` is filled."""
        self._loop = asyncio.get_running_loop()
        if self._placement is None:
            self._placement = LocalPlacement(self._base, self._settings.warm_parents)
        self._folder = await asyncio.to_thread(self._prepare_folder)
        for app in self._catalog.apps():
            if rules.floor(rules.Load(0, 0), app.scaling):
                self._pump(self._fleet(app.app))
        self._spawn(self._tick())

    @property
    def sockets(self) -> Path:
        """The folder of the sockets, which only this user may enter; once the pool has started."""
        return self._folder

    async def stop(self, grace: float) -> None:
        """End every runner: SIGTERM now, SIGKILL after `grace` seconds."""
        self._stopping = True
        runners = [runner for fleet in self._fleets.values() for runner in fleet.runners]
        for fleet in self._fleets.values():
            self._fail_waiters(fleet, SchedulingFailed("The server is stopping"))
        for runner in runners:
            self._end(runner)
        living = {runner.living for runner in runners if runner.living}
        if living:
            await asyncio.wait(living, timeout=grace)
            for runner in runners:
                if runner.process and runner.living and not runner.living.done():
                    runner.process.kill()
            await asyncio.wait(living, timeout=5)
        self._book.finish()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._placement:
            await self._placement.stop()
        if self._temporary:
            await asyncio.to_thread(shutil.rmtree, self._temporary, ignore_errors=True)

    # What the scheduler and the gateway ask

    def try_acquire(self, app: AppId, hint: str | None = None) -> Slot | None:
        """As `Pool.try_acquire`."""
        fleet = self._fleet(app)
        slot = None if fleet.waiters else self._pick(fleet, hint)
        if slot is None:
            fleet.starved = True
        return slot

    async def acquire(self, app: AppId, hint: str | None = None, timeout: float | None = None) -> Slot:
        """As `Pool.acquire`. Raises `NotFound` too, for an app that is not deployed."""
        fleet = self._fleet(app)
        if not fleet.waiters and (slot := self._pick(fleet, hint)) is not None:
            return slot
        if self._catalog.get(app) is None:
            raise NotFound(f"App {app} not found")
        if self._stopping:
            raise SchedulingFailed("The server is stopping")
        self._refuse_in_backoff(fleet)
        waiter = Waiter(self._loop.create_future(), hint)
        fleet.waiters.append(waiter)
        self._pump(fleet)
        try:
            async with asyncio.timeout(timeout):
                return await waiter.slot
        except BaseException as problem:
            self._leave(fleet, waiter)
            if isinstance(problem, TimeoutError):
                raise StartTimeout(f"No runner of {app} was free in {timeout or 0:g} seconds") from problem
            raise

    def demand(self, app: AppId, waiting: int) -> None:
        """As `Pool.demand`."""
        fleet = self._fleet(app)
        grown = waiting > fleet.waiting
        fleet.waiting = waiting
        if grown:
            self._pump(fleet)

    def on_free(self, callback: Callable[[AppId], None]) -> None:
        """As `Pool.on_free`."""
        self._free_callbacks.append(callback)

    def on_start_failed(self, callback: Callable[[AppId, Trouble], None]) -> None:
        """As `Pool.on_start_failed`."""
        self._failed_callbacks.append(callback)

    def trouble(self, app: AppId) -> Trouble | None:
        """As `Pool.trouble`."""
        fleet = self._fleets.get(app)
        if fleet is None or fleet.failure is None or not self._hopeless(fleet):
            return None
        return Trouble(fleet.failure.line, max(0.0, fleet.retry_at - self._loop.time()))

    def runners(self, app: AppId | None = None) -> list[RunnerInfo]:
        """As `Pool.runners`."""
        fleets = [self._fleets[app]] if app in self._fleets else [] if app else list(self._fleets.values())
        return [runner.info() for fleet in fleets for runner in fleet.runners]

    def in_flight(self, app: AppId) -> int:
        """As `Pool.in_flight`."""
        fleet = self._fleets.get(app)
        return sum(runner.in_flight for runner in fleet.runners) if fleet else 0

    # What deployments ask

    async def start_one(self, revision: Revision) -> None:
        """Start a runner of a revision, current or not, and return when it is ready.

        It is kept for a minute until `switched` is called. Raises `StartFailed` with the last lines of its output.
        """
        fleet = self._fleet(revision.app)
        runner = self._create(fleet, revision, revision.spec.scaling.max_multiplexing, awaited=False, delayed=False)
        runner.held_until = self._loop.time() + revision.spec.scaling.startup_timeout + HOLD
        await self._start(fleet, runner)

    def switched(self, app: AppId) -> None:
        """Another revision is the app's current one: runners of others end when they are free."""
        fleet = self._fleet(app)
        current = self._catalog.get(app)
        if current is None:
            return self.removed(app)
        fleet.failures, fleet.retry_at, fleet.failure = 0, 0.0, None
        fleet.wake.set()
        for runner in list(fleet.runners):
            runner.held_until = 0.0
            if runner.revision.revision_id != current.current.revision_id:
                self._drain(runner)
        self._pump(fleet)
        self._feed(fleet)
        return None

    def scaled(self, app: AppId) -> None:
        """The app's scaling was changed."""
        self._pump(self._fleet(app))

    def removed(self, app: AppId) -> None:
        """The app is no more."""
        fleet = self._fleet(app)
        fleet.waiting = 0
        self._fail_waiters(fleet, NotFound(f"App {app} not found"))
        for runner in list(fleet.runners):
            self._drain(runner)

    # Slots

    def _pick(self, fleet: Fleet, hint: str | None) -> RunnerSlot | None:
        app = self._catalog.get(fleet.app)
        if app is None or self._stopping:
            return None
        best: Runner | None = None
        for runner in fleet.runners:
            if not runner.free() or runner.revision.revision_id != app.current.revision_id:
                continue
            if hint is not None and hint in runner.hints:
                best = runner
                break
            if best is None or runner.in_flight < best.in_flight:
                best = runner
        return None if best is None else self._give(best)

    def _give(self, runner: Runner) -> RunnerSlot:
        cold_boot = 0.0
        if runner.cold_left:
            runner.cold_left -= 1
            cold_boot = runner.startup
        runner.in_flight += 1
        runner.served = True
        if runner.state is State.IDLE:
            self._book.move(runner, State.RUNNING)
        return RunnerSlot(runner, cold_boot, self._released)

    def _released(self, runner: Runner, kill: bool, health_check: bool) -> None:
        runner.in_flight -= 1
        fleet = self._fleet(runner.revision.app)
        if kill:
            runner.broke = True
            self._spawn(self._end_broken(runner))
        elif health_check and runner.state in READY:
            self._spawn(health.check(runner, self._loop.time(), self._unwell, at_once=True))
        if runner.free() and (fleet.waiters or fleet.starved):
            self._feed(fleet)
        if runner.in_flight == 0:
            if runner.state is State.RUNNING:
                runner.idle_since = self._loop.time()
                self._book.move(runner, State.IDLE)
            elif runner.state is State.DRAINING:
                self._end(runner)

    async def _end_broken(self, runner: Runner) -> None:
        """If it was its own end that broke a request off, that shows now, before it is killed."""
        await asyncio.sleep(DYING)
        if runner in self._fleet(runner.revision.app).runners:
            self._end(runner, kill=True)

    def _suspect(self, runner: Runner) -> None:
        if runner.state in READY and not runner.suspect:
            runner.suspect = True
            self._spawn(self._clear_suspicion(runner))

    async def _clear_suspicion(self, runner: Runner) -> None:
        """A process that dies closes its connections a moment before its end can be seen."""
        await asyncio.sleep(DYING)
        if runner.state in READY and runner.connections is not None:
            if await runner.connections.reachable():
                runner.suspect = False
                self._feed(self._fleet(runner.revision.app))
            else:
                self._unwell(runner)

    def _unwell(self, runner: Runner) -> None:
        if runner.state in READY:
            runner.output.say("error", "The runner does not answer its health check and is ended")
            self._end(runner, kill=True)

    def _feed(self, fleet: Fleet) -> None:
        """Give free slots to those that wait: direct calls first, then whoever serves the queue."""
        while fleet.waiters:
            waiter = fleet.waiters[0]
            if waiter.slot.done():
                fleet.waiters.popleft()
                continue
            slot = self._pick(fleet, waiter.hint)
            if slot is None:
                return
            fleet.waiters.popleft()
            waiter.slot.set_result(slot)
        if fleet.starved or fleet.waiting:
            fleet.starved = False
            for callback in self._free_callbacks:
                callback(fleet.app)

    def _refuse_in_backoff(self, fleet: Fleet) -> None:
        """Raise `SchedulingFailed` when the app's runners have just failed to start and none is on its way."""
        if fleet.failure is not None and self._hopeless(fleet) and self._loop.time() < fleet.retry_at:
            raise _for_callers(fleet.failure)

    @staticmethod
    def _hopeless(fleet: Fleet) -> bool:
        return all(runner.state is State.CRASH_BACKOFF for runner in fleet.runners)

    def _leave(self, fleet: Fleet, waiter: Waiter) -> None:
        """Its caller does not wait any more; a slot that was given to it in the same moment is given back."""
        if waiter in fleet.waiters:
            fleet.waiters.remove(waiter)
        if waiter.slot.done() and not waiter.slot.cancelled() and waiter.slot.exception() is None:
            waiter.slot.result().release()

    def _fail_waiters(self, fleet: Fleet, error: Exception) -> None:
        while fleet.waiters:
            waiter = fleet.waiters.popleft()
            if not waiter.slot.done():
                waiter.slot.set_exception(error)

    # Scaling

    def _pump(self, fleet: Fleet) -> None:
        """Start what is missing."""
        app = self._catalog.get(fleet.app)
        if app is None or self._stopping:
            return
        revision_id = app.current.revision_id
        serving = fleet.serving(revision_id)
        missing = rules.wanted(fleet.load(revision_id), app.scaling) - len(serving)
        if missing <= 0:
            fleet.pressed_since = None
            return
        if not self._pressed(fleet, app, serving):
            return
        if fleet.failures:
            missing = 0 if any(runner.state in COMING for runner in serving) else 1
        for _ in range(missing):
            self._begin(fleet, app)

    def _pressed(self, fleet: Fleet, app: App, serving: list[Runner]) -> bool:
        """Whether more was wanted for `scaling_delay` seconds; from zero there is no delay."""
        now = self._loop.time()
        if fleet.pressed_since is None:
            fleet.pressed_since = now
        return not serving or now - fleet.pressed_since >= app.scaling.scaling_delay

    def _begin(self, fleet: Fleet, app: App) -> None:
        waiting = bool(fleet.waiters or fleet.waiting)
        delayed = fleet.retry_at > self._loop.time()
        runner = self._create(fleet, app.current, app.scaling.max_multiplexing, awaited=waiting, delayed=delayed)
        self._spawn(self._start_quietly(fleet, runner))

    def _shrink(self, fleet: Fleet) -> None:
        """End what is idle for longer than it may be, and what was to start but is not wanted any more."""
        app = self._catalog.get(fleet.app)
        if app is None:
            return
        now = self._loop.time()
        revision_id = app.current.revision_id
        serving = fleet.serving(revision_id)
        surplus = len(serving) - rules.wanted(fleet.load(revision_id), app.scaling)
        for runner in fleet.runners:
            if runner.revision.revision_id != revision_id and runner.held_until < now and not runner.stopping:
                self._drain(runner)
        for runner in sorted(serving, key=lambda runner: runner.idle_since):
            if surplus <= 0:
                return
            if self._expired(runner, app, now):
                surplus -= 1
                self._end(runner)

    def _expired(self, runner: Runner, app: App, now: float) -> bool:
        if runner.held_until > now:
            return False
        if runner.state is State.IDLE:
            limit = rules.idle_limit(runner.served, app.scaling, self._settings.fresh_idle)
            return now - runner.idle_since >= limit
        return runner.state in (State.PENDING, State.CRASH_BACKOFF)

    def _evict(self) -> None:
        idle = [
            runner
            for fleet in self._fleets.values()
            for runner in fleet.runners
            if runner.state is State.IDLE and not runner.stopping and runner.held_until < self._loop.time()
        ]
        spare = [runner for runner in idle if not self._kept(runner)]
        if spare and not any(r.stopping for fleet in self._fleets.values() for r in fleet.runners):
            self._end(min(spare, key=lambda runner: runner.idle_since))

    def _kept(self, runner: Runner) -> bool:
        app = self._catalog.get(runner.revision.app)
        fleet = self._fleet(runner.revision.app)
        return app is not None and len(fleet.serving(runner.revision.revision_id)) <= rules.floor(
            rules.Load(0, 0), app.scaling
        )

    # The life of one runner

    def _create(self, fleet: Fleet, revision: Revision, places: int, *, awaited: bool, delayed: bool) -> Runner:
        runner_id = ids.uuid7()
        app = revision.app
        output = Output(
            sink=self._logs,
            app=str(app),
            revision=revision.revision_id,
            runner_id=runner_id,
            rate=self._settings.log_rate,
            labels={
                "fal_app_name": str(app),
                "fal_app_id": revision.revision_id,
                "fal_job_id": runner_id,
                "fal_source": "gateway",
            },
            on_ready=lambda: runner.ready.set(),
            on_gone=lambda: None,
        )
        runner = Runner(
            runner_id=runner_id,
            revision=revision,
            places=max(1, places),
            socket=str(self._folder / f"{runner_id[-17:]}.sock"),
            created=self._loop.time(),
            wall_created=ids.now(),
            output=output,
            awaited=awaited,
            state=State.CRASH_BACKOFF if delayed else State.PENDING,
        )
        fleet.runners.append(runner)
        self._book.enter(runner)
        return runner

    async def _start_quietly(self, fleet: Fleet, runner: Runner) -> None:
        try:
            await self._start(fleet, runner)
        except StartFailed as failure:
            self._start_failed(fleet, runner, failure)

    async def _start(self, fleet: Fleet, runner: Runner) -> None:
        """Bring a runner from pending to ready. Raises `StartFailed`."""
        started: asyncio.Future[None] = self._loop.create_future()
        runner.living = self._spawn(self._live(fleet, runner, started))
        await started

    async def _live(self, fleet: Fleet, runner: Runner, started: asyncio.Future[None]) -> None:
        placed = False
        try:
            await self._sleep_off(fleet, runner)
            await self._room.take(runner)
            placed = True
            await self._set_up(runner)
            self._is_ready(fleet, runner)
            started.set_result(None)
            assert runner.process is not None
            status = await runner.process.wait()
            self._event_at_end(runner, status)
        except (StartFailed, OSError) as problem:
            failure = (
                problem if isinstance(problem, StartFailed) else StartFailed(f"No runner can be started: {problem}")
            )
            if runner.stopping:
                self._book.event(runner, "runner_finished")
            else:
                self._book.event(runner, "runner_startup_failure", reason=failure.message)
            if not started.done():  # whoever waited may have gone
                started.set_exception(failure)
        finally:
            if not started.done():
                started.set_exception(StartFailed("The server is stopping"))
                started.exception()
            await self._clear(fleet, runner, placed)

    async def _sleep_off(self, fleet: Fleet, runner: Runner) -> None:
        """Wait out the backoff after failed starts."""
        if runner.state is not State.CRASH_BACKOFF:
            return
        fleet.wake.clear()
        try:
            async with asyncio.timeout(max(0.0, fleet.retry_at - self._loop.time())):
                while not runner.stopping and not fleet.wake.is_set():
                    await fleet.wake.wait()
        except TimeoutError:
            pass
        if not runner.stopping:
            self._book.move(runner, State.PENDING)

    async def _set_up(self, runner: Runner) -> None:
        """Start the process and wait until it is ready. Raises `StartFailed`."""
        if runner.stopping or self._placement is None:
            raise StartFailed("The runner was stopped before it was ready")
        self._book.move(runner, State.SETUP)
        self._book.event(runner, "runner_setup")
        revision = runner.revision
        runner.process = await self._placement.start(await asyncio.to_thread(self._order, runner), runner.output)
        if runner.stopping:
            self._terminate(runner)
        ready = asyncio.ensure_future(runner.ready.wait())
        ended = asyncio.ensure_future(runner.process.wait())
        limit = revision.spec.scaling.startup_timeout
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if runner.stopping:
            await runner.process.wait()
            raise StartFailed("The runner was stopped before it was ready")
        if not done:
            runner.process.kill()
            await runner.process.wait()
            raise StartTimedOut(f"The app was not ready after {limit:g} seconds{_said(runner)}")
        if not runner.ready.is_set():
            runner.output.drain()
        if not runner.ready.is_set():
            raise StartFailed(f"The app failed to start ({_exit(ended.result())}){_said(runner)}")

    def _order(self, runner: Runner) -> Order:
        revision = runner.revision
        data = (self._settings.data / "files" / revision.app.owner).absolute()
        data.mkdir(parents=True, exist_ok=True)
        return Order(
            python=str(revision.python),
            kind=revision.spec.kind,
            folder=str(revision.folder),
            file=revision.spec.file,
            attribute=revision.spec.attribute,
            socket=runner.socket,
            data=str(data) if self._settings.mount_data else "",
            environ=app_environment(
                self._base,
                revision,
                runner.runner_id,
                data,
                self._lend(revision.app.owner, self._folder) if self._lend else {},
            ),
            log_rate=self._settings.log_rate,
            grace=revision.spec.scaling.termination_grace,
        )

    def _is_ready(self, fleet: Fleet, runner: Runner) -> None:
        now = self._loop.time()
        runner.startup = now - runner.created
        runner.idle_since = runner.checked_at = now
        runner.cold_left = runner.places if runner.awaited else 0
        runner.connections = Connections(
            runner.socket, self._settings.max_headers, runner.output.drain, lambda: self._suspect(runner)
        )
        if runner.held_until:
            runner.held_until = now + HOLD
        fleet.failures, fleet.retry_at, fleet.failure = 0, 0.0, None
        fleet.wake.set()
        self._book.move(runner, State.IDLE)
        self._book.event(runner, "runner_started")
        if self._placement is not None:
            self._placement.warm(str(runner.revision.python), runner.revision.spec.kind)
        self._pump(fleet)
        self._feed(fleet)

    def _start_failed(self, fleet: Fleet, runner: Runner, failure: StartFailed) -> None:
        """Put the next start off, and tell those that wait, unless another runner may still serve them."""
        if self._stopping or self._catalog.get(fleet.app) is None:
            return
        fleet.failures += 1
        fleet.failure = failure
        pause = rules.backoff(fleet.failures)
        fleet.retry_at = self._loop.time() + pause
        if not runner.stopping:
            runner.output.say("error", f"{failure.line}. The next start is put off by {pause:g} seconds")
        if not any(runner.state in READY or runner.state is State.SETUP for runner in fleet.runners):
            self._fail_waiters(fleet, _for_callers(failure))
        for callback in self._failed_callbacks:
            callback(fleet.app, Trouble(failure.line, pause))
        self._pump(fleet)

    async def _clear(self, fleet: Fleet, runner: Runner, placed: bool) -> None:
        """The process is no more: nothing of it stays."""
        if runner.process is not None:
            runner.process.kill()
        runner.output.close()
        if runner.connections is not None:
            runner.connections.close()
        self._book.move(runner, State.TERMINATED)
        fleet.runners.remove(runner)
        Path(runner.socket).unlink(missing_ok=True)  # noqa: ASYNC240  one name in a folder in memory
        if placed:
            await self._room.give()
        if runner.state is not State.CRASH_BACKOFF and runner.ready.is_set():
            self._pump(fleet)

    def _drain(self, runner: Runner) -> None:
        """End it when its requests have."""
        if runner.stopping:
            return
        if runner.in_flight:
            runner.stopping = True
            self._book.move(runner, State.DRAINING)
            self._book.event(runner, "runner_draining")
        else:
            self._end(runner)

    def _end(self, runner: Runner, *, kill: bool = False) -> None:
        """End it: SIGTERM, then SIGKILL after its grace; or SIGKILL at once."""
        if runner.state in (State.TERMINATING, State.TERMINATED):
            if kill and runner.process is not None:
                runner.process.kill()
            return
        runner.stopping = True
        if runner.process is None:
            self._fleet(runner.revision.app).wake.set()
            self._spawn(self._room.look_again())
            return
        self._terminate(runner, kill=kill)

    def _terminate(self, runner: Runner, *, kill: bool = False) -> None:
        assert runner.process is not None
        self._book.move(runner, State.TERMINATING)
        self._book.event(runner, "runner_stopping")
        if kill:
            runner.process.kill()
            return
        runner.process.terminate()
        self._spawn(self._kill_later(runner))

    async def _kill_later(self, runner: Runner) -> None:
        await asyncio.sleep(runner.revision.spec.scaling.termination_grace)
        if runner.process is not None:
            runner.process.kill()

    # Keeping book

    def _fleet(self, app: AppId) -> Fleet:
        fleet = self._fleets.get(app)
        if fleet is None:
            fleet = self._fleets[app] = Fleet(app)
        return fleet

    def _event_at_end(self, runner: Runner, status: int | None) -> None:
        by_itself = runner.broke and status not in (None, -signal.SIGKILL)
        if runner.stopping and not by_itself:
            self._book.event(runner, "runner_finished")
        else:
            runner.output.say("error", f"The runner ended unasked ({_exit(status)})")
            self._book.event(
                runner,
                "runner_failed",
                state=str(State.RUNNING if runner.broke else runner.state),
                reason=f"The runner ended unasked ({_exit(status)})",
            )

    async def _tick(self) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(TICK)
            try:
                await self._turn(count)
            except Exception:
                log.exception("the runners' pool failed in its round")  # the next round is due all the same

    async def _turn(self, count: int) -> None:
        self._book.advance()
        for fleet in list(self._fleets.values()):
            self._look_after(fleet)
        if self._room.full:
            await self._room.look_again()
        if count % SAMPLE_EVERY == 0:
            await self._sample()

    def _look_after(self, fleet: Fleet) -> None:
        now = self._loop.time()
        self._shrink(fleet)
        self._pump(fleet)
        for runner in fleet.runners:
            if runner.connections is not None:
                runner.connections.tidy()
            if health.due(runner, now):
                self._spawn(health.check(runner, now, self._unwell, at_once=False))

    async def _sample(self) -> None:
        running = [r for fleet in self._fleets.values() for r in fleet.runners if r.process is not None]
        pids = [runner.process.pid for runner in running if runner.process is not None]
        samples = await asyncio.to_thread(sample, pids)
        for runner, (ticks, memory) in zip(running, samples, strict=True):
            if runner.cpu_ticks:
                seconds = (ticks - runner.cpu_ticks) / os.sysconf("SC_CLK_TCK")
                runner.cpu_percent = max(0.0, 100 * seconds / (SAMPLE_EVERY * TICK))
            runner.cpu_ticks, runner.memory_bytes = ticks, memory

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("a task of the runners' pool failed", exc_info=problem)

    def _prepare_folder(self) -> Path:
        """The folder `run` of the sockets; a short one elsewhere, when its own name is too long for sockets."""
        folder = self._folder.absolute() / "run"
        if len(os.fsencode(folder)) + 24 > LONGEST_SOCKET:
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="varvel-"))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for stale in folder.glob("*.sock"):
            stale.unlink(missing_ok=True)
        return folder


def _for_callers(failure: StartFailed) -> SchedulingFailed:
    return (StartTimedOut if isinstance(failure, StartTimedOut) else SchedulingFailed)(failure.message)


def _exit(status: int | None) -> str:
    if status is None:
        return "it ended"
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


def _said(runner: Runner) -> str:
    runner.output.drain()
    return "".join(f"\n{line}" for line in runner.output.tail)
