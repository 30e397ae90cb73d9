"""What is written down about runners: their events, and their seconds by state."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from varvel import ids
from varvel.apps.model import AppId, AppSpec, Catalog
from varvel.runners.intervals import Intervals, RunnerSeconds, SteadyClock
from varvel.runners.model import RunnerState
from varvel.runners.runner import Runner
from varvel.telemetry.model import EventRow, RunnerRow

Record = Callable[[EventRow | RunnerRow], None]


class Recorded:
    """`RunnerSeconds` that records rows when they are done, and keeps nothing of an interval that goes on."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def save(self, name: str, done: list[RunnerRow], so_far: list[RunnerRow]) -> None:
        """Record what is done."""
        for row in done:
            self._record(row)

    def retry(self) -> None:
        """Nothing is kept here."""


class Book:
    """Follows each runner from its first state to its last.

    Intervals are cut every `tick` seconds, and kept as far as they are every `heartbeat` seconds. `gpus_of` is how
    many GPUs a runner of an app has.
    """

    def __init__(
        self,
        catalog: Catalog,
        record: Record,
        seconds: RunnerSeconds,
        *,
        tick: float,
        heartbeat: float,
        gpus_of: Callable[[AppSpec], int],
    ) -> None:
        self._catalog = catalog
        self._record = record
        self._seconds = seconds
        self._tick = tick
        self._heartbeat = round(heartbeat * 1_000_000)
        self._gpus_of = gpus_of
        self._clock = SteadyClock()
        self._beat = 0
        self._intervals: dict[tuple[AppId, str, int], Intervals] = {}

    def enter(self, runner: Runner) -> None:
        """A new runner, in its first state."""
        runner.intervals = self._of(runner)
        runner.intervals.move(None, runner.state)
        self.event(runner, "runner_pending")

    def move(self, runner: Runner, state: RunnerState) -> None:
        """The runner goes into another state."""
        old, runner.state = runner.state, state
        if runner.intervals is not None:
            runner.intervals.move(old, state)

    def event(self, runner: Runner, category: str, **payload: str) -> None:
        """Something happened to the runner."""
        app = runner.revision.app
        about = {"job_id": runner.runner_id, "machine_type": runner.revision.spec.machine_type, **payload}
        self._record(
            EventRow(
                event_id=ids.uuid7(),
                owner=app.owner,
                app=str(app),
                category=category,
                created_at=self._clock.now(),
                payload=json.dumps(about),
            )
        )

    def advance(self) -> None:
        """Write what is due; follow the wall clock if it was set."""
        stepped = self._clock.rebase()
        for intervals in self._intervals.values():
            intervals.restart() if stepped else intervals.advance()
        if stepped or self._clock.now() - self._beat >= self._heartbeat:
            self._beat = self._clock.now()
            self._seconds.retry()
            for intervals in self._intervals.values():
                intervals.beat()

    def finish(self) -> None:
        """Write all."""
        for intervals in self._intervals.values():
            intervals.finish()

    def _of(self, runner: Runner) -> Intervals:
        app, spec = runner.revision.app, runner.revision.spec
        size = (app, spec.machine_type, self._gpus_of(spec))
        intervals = self._intervals.get(size)
        if intervals is None:
            deployed = self._catalog.get(app)
            labels = {
                "owner": app.owner,
                "app": str(app),
                "environment": deployed.environment if deployed else "main",
                "machine_type": spec.machine_type,
            }
            save = partial(self._seconds.save, " ".join(map(str, size)))
            intervals = Intervals(labels, save, self._clock.now, self._tick, gpus=size[2])
            self._intervals[size] = intervals
        return intervals
