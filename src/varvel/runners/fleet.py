"""The runners of one app, and who waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from varvel.apps.model import AppId
from varvel.runners import rules
from varvel.runners.errors import StartFailed
from varvel.runners.model import Slot
from varvel.runners.runner import Runner


@dataclass(eq=False)
class Waiter:
    """A direct call that waits for a slot."""

    slot: asyncio.Future[Slot]
    hint: str | None


@dataclass(eq=False)
class Fleet:
    """The runners of one app, and who waits for them."""

    app: AppId
    runners: list[Runner] = field(default_factory=list)
    waiters: deque[Waiter] = field(default_factory=deque)
    waiting: int = 0
    """Queued requests that wait."""
    starved: bool = False
    """A queued request was refused a slot and is to be told of the next free one."""
    failures: int = 0
    retry_at: float = 0.0
    failure: StartFailed | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a start succeeds: those that wait out a backoff go on at once."""
    pressed_since: float | None = None

    def load(self, revision_id: str) -> rules.Load:
        in_flight = sum(runner.in_flight for runner in self.serving(revision_id))
        return rules.Load(in_flight=in_flight, waiting=self.waiting + len(self.waiters))

    def serving(self, revision_id: str) -> list[Runner]:
        """Runners of the revision that are ready or will be."""
        return [runner for runner in self.runners if runner.revision.revision_id == revision_id and not runner.stopping]
