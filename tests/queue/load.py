"""A child process that loads a queue and says on stdout what was acknowledged, until it is killed.

`python -m tests.queue.load FOLDER load` submits, runs and cancels; `... drain` runs what is left, then exits.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from tests.queue.parts import Parts, job, outcome

from varvel.queue.model import AttemptResult, Job


def say(word: str, request_id: str) -> None:
    sys.stdout.write(f"{word} {request_id}\n")
    sys.stdout.flush()


async def serve(job: Job) -> AttemptResult:
    say("ran", job.request_id)
    await asyncio.sleep(random.random() * 0.01)
    if random.random() < 0.1:
        return AttemptResult(outcome=outcome(503), condition="server_error")
    return AttemptResult(outcome=outcome())


async def submit(made: Parts) -> None:
    while True:
        given = job()
        await made.scheduler.submit(given)
        say("acked", given.request_id)
        if random.random() < 0.2 and await made.scheduler.cancel(given.request_id) == "cancelled":
            say("cancelled", given.request_id)
        # The queue grows slowly: some always wait when the kill comes.
        await asyncio.sleep(0.003)


async def main(folder: Path, mode: str) -> None:
    made = Parts(folder, serve=serve, slots=8)
    await made.start()
    if mode == "load":
        await asyncio.gather(*[submit(made) for _ in range(10)])
    while await made.store.alive(0, 1):
        await asyncio.sleep(0.01)
    await made.stop(1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
