"""What the queue holds in memory beside the store, within a budget: bodies of waiting jobs, recent results."""

from __future__ import annotations

from collections import OrderedDict

from varvel.queue.model import Job, Outcome

_OVERHEAD = 2048
"""Bytes that a job or a result is counted as beside its body."""
_MOST_RECENT = 5000
"""More would be work for the garbage collector, and nobody polls so late so often."""


class Bodies:
    """Jobs that wait or run, by request id. What has no room is read from the store when its turn comes."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._jobs: dict[str, Job] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._jobs

    def offer(self, job: Job) -> None:
        """Hold a job if there is room."""
        size = len(job.body) + _OVERHEAD
        if self._used + size <= self._budget and job.request_id not in self._jobs:
            self._used += size
            self._jobs[job.request_id] = job

    def get(self, request_id: str) -> Job | None:
        return self._jobs.get(request_id)

    def take(self, request_id: str) -> Job | None:
        """The job, no longer held."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            self._used -= len(job.body) + _OVERHEAD
        return job


class Recent:
    """Results that ended lately, for those who wait for them; the oldest go first."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._results: OrderedDict[str, tuple[Job, Outcome, float]] = OrderedDict()

    def add(self, job: Job, outcome: Outcome, expires_at: float) -> None:
        self._used += len(outcome.body) + _OVERHEAD
        self._results[job.request_id] = job, outcome, expires_at
        while self._used > self._budget or len(self._results) > _MOST_RECENT:
            _, (_, oldest, _) = self._results.popitem(last=False)
            self._used -= len(oldest.body) + _OVERHEAD

    def get(self, request_id: str, now: float) -> tuple[Job, Outcome, float] | None:
        """The result, or None when it is not held (any more): then the store may know it."""
        found = self._results.get(request_id)
        return found if found is not None and found[2] > now else None
