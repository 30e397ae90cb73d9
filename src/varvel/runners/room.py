"""How many processes of apps this machine takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from varvel.runners.runner import Runner


class Room:
    """Places for `most` processes. `evict` is asked to end something when all are taken and one more is needed."""

    def __init__(self, most: int, evict: Callable[[], None]) -> None:
        self._most = most
        self._evict = evict
        self._taken = 0
        self._changed = asyncio.Condition()

    @property
    def full(self) -> bool:
        return self._taken >= self._most

    async def take(self, runner: Runner) -> None:
        """Wait for a place, or for the runner not to be wanted any more; either way `give` is owed."""
        async with self._changed:
            while self.full and not runner.stopping:
                self._evict()
                await self._changed.wait()
            self._taken += 1

    async def give(self) -> None:
        """Give a place back."""
        async with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    async def look_again(self) -> None:
        """Something may have changed for those that wait."""
        async with self._changed:
            self._changed.notify_all()
