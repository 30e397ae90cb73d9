"""How a queued request ends: its outcome, record and bill in one transaction, then those who wait hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from varvel.billing.rules import MachineType
from varvel.errors import StorageFull
from varvel.queue import rules
from varvel.queue.errors import AlreadyEnded
from varvel.queue.memory import Recent
from varvel.queue.model import Job, JobState, Outcome
from varvel.queue.store import Ended, QueueStore
from varvel.settings import Settings
from varvel.state.errors import StateUnavailable
from varvel.telemetry.records import rows

Finished = Callable[[Job, Outcome], None]
_PAGE = 200
"""Jobs that end together, when many do."""
_PATIENCE = 1.0
"""Seconds between two tries to write an end while the disk is full."""


class Endings:
    """Writes ends. An end that was reached is not given up: while the disk is full it is tried again."""

    def __init__(
        self,
        store: QueueStore,
        settings: Settings,
        machines: Callable[[str], MachineType],
        default_machine: Callable[[Job], str],
        ended: Callable[[str], None],
        unset: Callable[[], float],
    ) -> None:
        """`unset` is the time by which results expire: the wall clock's, but for its steps."""
        self._store = store
        self._settings = settings
        self._machines = machines
        self._default_machine = default_machine
        self._ended = ended
        self._unset = unset
        self._lifetimes = rules.Lifetimes(
            ttl=settings.result_ttl,
            large=settings.large_result,
            large_ttl=settings.large_result_ttl,
            kept=min(settings.result_days, settings.payload_days) * 86_400.0,
            kept_most=settings.payload_limit,
        )
        self._callbacks: list[Finished] = []
        self._log = structlog.get_logger("varvel.queue")
        self.recent = Recent(settings.queue_memory)

    def on_finished(self, callback: Finished) -> None:
        self._callbacks.append(callback)

    async def end(self, seq: int, job: Job, outcome: Outcome) -> None:
        """Write the end of one job. Raises `StorageFull`, `StateUnavailable`; `AlreadyEnded` is logged, not raised."""
        ended = self._ended_job(seq, job, outcome)
        try:
            await self._store.end(ended)
        except AlreadyEnded:
            self._log.error("a request ended twice; the first end stands", request_id=job.request_id)
            self._ended(job.request_id)
            return
        self._tell(ended)

    async def end_surely(self, seq: int, job: Job, outcome: Outcome) -> None:
        """The same, but wait for room on the disk for as long as it takes."""
        told = False
        while True:
            try:
                return await self.end(seq, job, outcome)
            except (StorageFull, StateUnavailable) as problem:
                if not told:
                    self._log.error("an end cannot be written yet", request_id=job.request_id, error=str(problem))
                told = True
                await asyncio.sleep(_PATIENCE)

    async def end_many(self, seqs: Iterable[int], outcome: Callable[[Job], Outcome]) -> None:
        """End many waiting jobs, page by page, so that other writes and turns of the loop come in between."""
        waiting = list(seqs)
        for start in range(0, len(waiting), _PAGE):
            jobs = await self._load_surely(waiting[start : start + _PAGE])
            ends = [self._ended_job(seq, job, outcome(job)) for seq, job in jobs.items()]
            while True:
                ends = await self._end_page(ends)
                if not ends:
                    break
                await asyncio.sleep(_PATIENCE)

    async def _end_page(self, ends: list[Ended]) -> list[Ended]:
        """Write ends together; those that must be tried again."""
        again: list[Ended] = []
        results = await asyncio.gather(*[self._store.end(ended) for ended in ends], return_exceptions=True)
        for ended, result in zip(ends, results, strict=True):
            if result is None:
                self._tell(ended)
            elif isinstance(result, AlreadyEnded):
                self._ended(ended.job.request_id)
            else:
                again.append(ended)
        if again:
            self._log.error("ends cannot be written yet", count=len(again))
        return again

    async def _load_surely(self, seqs: Sequence[int]) -> dict[int, Job]:
        while True:
            try:
                return await self._store.jobs(seqs)
            except StateUnavailable as problem:
                self._log.error("jobs cannot be read", error=str(problem))
                await asyncio.sleep(_PATIENCE)

    def _ended_job(self, seq: int, job: Job, outcome: Outcome) -> Ended:
        settings = self._settings
        kept = job.store_io and settings.payload_days > 0
        size = len(outcome.body) if outcome.body_file is None else settings.payload_limit + 1
        expires_at = self._unset() + rules.lifetime(size, kept, self._lifetimes)
        records = rows(
            request_id=job.request_id,
            app=job.app,
            endpoint_id=job.endpoint_id,
            caller=job.caller,
            kind="queue",
            method=job.method,
            sent_at=job.submitted_at,
            attempts=job.attempts,
            outcome=outcome,
            machine=self._machines(outcome.machine_type or self._default_machine(job)),
            input=job.body,
            store_io=kept,
            payload_limit=settings.payload_limit,
        )
        return Ended(seq, job, outcome, expires_at, [row for row in records if row is not None])

    def _tell(self, ended: Ended) -> None:
        job = ended.job
        job.state = JobState.DONE
        job.body = b""
        job.body_file = None
        self.recent.add(job, ended.outcome, ended.expires_at)
        self._ended(job.request_id)
        for callback in self._callbacks:
            try:
                callback(job, ended.outcome)
            except Exception:
                self._log.exception("a listener to ends failed", request_id=job.request_id)
