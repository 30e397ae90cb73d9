"""The echo job of the benchmarks on other queues, each behind FastAPI. Runs in the peers' own environment.

`queue_peer.py NAME serve URL PORT` takes jobs over HTTP, `queue_peer.py NAME work URL` is their one worker.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

SLOTS = 32
"""Jobs that the worker has in hand at once, and connections to a database."""
KEPT = 3600
"""Seconds for which results are kept."""


class Procrastinate:
    """PostgreSQL. It keeps what was asked, but no results."""

    def __init__(self, url: str) -> None:
        import procrastinate

        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, max_size=SLOTS))

        @self._app.task(name="echo")  # type: ignore[untyped-decorator,unused-ignore]
        async def echo(body: Any) -> Any:
            return body

        self._echo = echo

    async def start(self) -> None:
        await self._app.open_async()

    async def make(self) -> None:
        await self._app.schema_manager.apply_schema_async()

    async def submit(self, body: Any) -> str:
        return str(await self._echo.defer_async(body=body))

    async def left(self) -> int:
        query = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        row = await self._app.connector.execute_query_one_async(query)
        return int(row["n"])

    async def work(self) -> None:
        await self._app.run_worker_async(concurrency=SLOTS)


class Saq:
    """Redis. Results stay for an hour."""

    def __init__(self, url: str) -> None:
        import saq

        self._saq = saq
        self._queue = saq.Queue.from_url(url)

    async def start(self) -> None:
        await self._queue.connect()

    async def make(self) -> None: ...

    async def submit(self, body: Any) -> str:
        job = await self._queue.enqueue("echo", body=body, ttl=KEPT, timeout=60)
        return str(job.id)

    async def left(self) -> int:
        return int(await self._queue.count("incomplete"))

    async def work(self) -> None:
        async def echo(context: Any, *, body: Any) -> Any:
            return body

        await self._saq.Worker(self._queue, [("echo", echo)], concurrency=SLOTS).start()


class Taskiq:
    """A stream of Redis; results in a second database of it, for an hour."""

    def __init__(self, url: str) -> None:
        import taskiq_redis

        results = taskiq_redis.RedisAsyncResultBackend(f"{url}/1", result_ex_time=KEPT)
        self._results = results
        self._broker = taskiq_redis.RedisStreamBroker(f"{url}/0").with_result_backend(results)
        self._taken = 0

        @self._broker.task(task_name="echo")  # type: ignore[untyped-decorator,unused-ignore]
        async def echo(body: Any) -> Any:
            return body

        self._echo = echo

    async def start(self) -> None:
        await self._broker.startup()

    async def make(self) -> None: ...

    async def submit(self, body: Any) -> str:
        task = await self._echo.kiq(body)
        self._taken += 1
        return str(task.task_id)

    async def left(self) -> int:
        from redis.asyncio import Redis

        async with Redis(connection_pool=self._results.redis_pool) as redis:
            return self._taken - int(await redis.dbsize())

    async def work(self) -> None:
        from taskiq.api import run_receiver_task

        await run_receiver_task(self._broker, max_async_tasks=SLOTS)


PEERS = {"procrastinate": Procrastinate, "saq": Saq, "taskiq": Taskiq}


def serve(peer: Any, port: int) -> None:
    """`POST /` takes a job, `GET /left` says how many have not ended."""
    import uvicorn
    from fastapi import FastAPI

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await peer.start()
        await peer.make()
        yield

    app = FastAPI(lifespan=life)

    @app.post("/")
    async def submit(body: dict[str, Any]) -> dict[str, str]:
        return {"status": "IN_QUEUE", "request_id": await peer.submit(body)}

    @app.get("/left")
    async def left() -> int:
        return int(await peer.left())

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="error")


async def _work(peer: Any) -> None:
    await peer.start()
    await peer.work()


if __name__ == "__main__":
    chosen = PEERS[sys.argv[1]](sys.argv[3])
    if sys.argv[2] == "serve":
        serve(chosen, int(sys.argv[4]))
    else:
        asyncio.run(_work(chosen))
