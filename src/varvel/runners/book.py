"""What is written down about runners: their events, and their seconds by state."""

from __future__ import annotations

import json
from collections.abc import Callable

from varvel import ids
from varvel.apps.model import AppId, Catalog
from varvel.runners.intervals import Intervals, SteadyClock
from varvel.runners.model import RunnerState
from varvel.runners.runner import Runner
from varvel.telemetry.model import EventRow, RunnerRow

Record = Callable[[EventRow | RunnerRow], None]


class Book:
    """Follows each runner from its first state to its last. `tick` in seconds: how often intervals are cut."""

    def __init__(self, catalog: Catalog, record: Record, tick: float) -> None:
        self._catalog = catalog
        self._record = record
        self._tick = tick
        self._clock = SteadyClock()
        self._intervals: dict[tuple[AppId, str], Intervals] = {}

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

    def finish(self) -> None:
        """Write all."""
        for intervals in self._intervals.values():
            intervals.finish()

    def _of(self, runner: Runner) -> Intervals:
        app, machine_type = runner.revision.app, runner.revision.spec.machine_type
        intervals = self._intervals.get((app, machine_type))
        if intervals is None:
            deployed = self._catalog.get(app)
            labels = {
                "owner": app.owner,
                "app": str(app),
                "environment": deployed.environment if deployed else "main",
                "machine_type": machine_type,
            }
            intervals = Intervals(labels, self._record, self._clock.now, self._tick)
            self._intervals[(app, machine_type)] = intervals
        return intervals
