"""Why queued requests wait: a line in the log of each of those that come first, when their app cannot start."""

from __future__ import annotations

from typing import Protocol

from varvel.apps.model import AppId, Catalog
from varvel.runners.model import Pool, Trouble
from varvel.telemetry.model import LogSink

TOLD = 100
"""Requests, the first in line, that are told of each failed start."""


class Line(Protocol):
    """Who waits."""

    def next_ids(self, app: AppId, count: int) -> list[str]:
        """Ids of the requests that come first, in their order."""
        ...


class Troubles:
    """Tells requests of failed starts: those that wait then, and those that come while the next start is put off."""

    def __init__(self, pool: Pool, catalog: Catalog, line: Line, logs: LogSink) -> None:
        self._pool = pool
        self._catalog = catalog
        self._line = line
        self._logs = logs
        pool.on_start_failed(self._failed)

    def submitted(self, app: AppId, request_id: str) -> None:
        """A request has come."""
        trouble = self._pool.trouble(app)
        if trouble is not None:
            self._tell(app, request_id, trouble)

    def _failed(self, app: AppId, trouble: Trouble) -> None:
        for request_id in self._line.next_ids(app, TOLD):
            self._tell(app, request_id, trouble)

    def _tell(self, app: AppId, request_id: str, trouble: Trouble) -> None:
        deployed = self._catalog.get(app)
        self._logs.take(
            app=str(app),
            revision=deployed.current.revision_id if deployed else "",
            job_id="",
            request_id=request_id,
            level="error",
            message=f"No runner can start: {trouble.reason}. The next start is tried in {trouble.retry_in:.0f} seconds",
        )
