"""Ends the work of a call that only reads when its client goes away, so that no query runs on for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive, Scope

UNWATCHED = 0.2
"""Seconds that a call may take before somebody looks whether its client is still there: nothing more for the rest."""
_READS = ("/logs/history",)
"""Paths that are read with POST."""


class Patience:
    """Watches the client of one call, and interrupts (cancels) the call's task when it goes before `begun()`.

    Calls that change something are never interrupted.
    """

    def __init__(self, scope: Scope, receive: Receive, begun: Callable[[], bool]) -> None:
        self._receive = receive
        self._begun = begun
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._whole = scope["method"] in ("GET", "HEAD")
        """Whether the body has come, so that all that can still come is the end of the connection."""
        self._gone = False
        if self._whole or scope["path"].endswith(_READS):
            self._look_later()

    async def receive(self) -> Message:
        """What the call itself receives with."""
        if self._watch is not None:
            await asyncio.wait({self._watch})
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._whole = self._whole or not message.get("more_body")
        return message

    def stop(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.cancel()
        if self._watch is not None:
            self._watch.cancel()

    def took(self) -> bool:
        """Whether the cancellation that was just caught was ours; if so, it is taken back."""
        return self._gone and self._task is not None and self._task.uncancel() == 0

    def _look_later(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(UNWATCHED, self._look)

    def _look(self) -> None:
        self._handle = None
        if self._begun():
            return
        if self._whole:
            self._watch = asyncio.ensure_future(self._until_gone())
        else:
            self._look_later()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None and not self._begun():
            self._gone = True
            self._task.cancel()
