"""The embedded telemetry store: chDB in a process of its own, behind ClickHouse's HTTP interface on a unix socket.

`python -m varvel.telemetry.engine --data DIR --socket PATH --memory BYTES`. It says `ready` on stdout when it
answers, and ends when its standard input closes: when its parent says so, or died.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import fcntl
import os
import re
import select
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httptools

from varvel.telemetry.workers import Query, QueryFailed, Workers, quote

MEGABYTE = 1024 * 1024
LOCK_WAIT = 20.0
"""Seconds to wait for a former engine on the same folder to be gone."""
CLOSE_WAIT = 5.0
SERVER = {
    "mark_cache_size": 64 * MEGABYTE,
    "primary_index_cache_size": 64 * MEGABYTE,
    "index_mark_cache_size": 32 * MEGABYTE,
    "text_index_tokens_cache_size": 32 * MEGABYTE,
    "text_index_header_cache_size": 32 * MEGABYTE,
    "text_index_postings_cache_size": 32 * MEGABYTE,
    "query_condition_cache_size": 16 * MEGABYTE,
    "compiled_expression_cache_size": 16 * MEGABYTE,
    "vector_similarity_index_cache_size": MEGABYTE,
    "parquet_metadata_cache_size": MEGABYTE,
    "iceberg_metadata_files_cache_size": MEGABYTE,
}
"""Bounds of chDB's caches: its own defaults are for a machine that does nothing else."""
_RESERVED = frozenset(
    {"query", "query_id", "default_format", "database", "wait_end_of_query", "session_id", "session_timeout", "user"}
    | {"password", "compress", "decompress", "buffer_size", "enable_http_compression", "quota_key", "role"}
    | {"client_protocol_version", "send_progress_in_http_headers", "http_headers_progress_interval_ms"}
)
_FORMAT = re.compile(rb"\bformat\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_READS = re.compile(rb"\s*(select|with)\b", re.IGNORECASE)
_KILLS = re.compile(rb"\s*kill\b", re.IGNORECASE)
_QUERY_ID = re.compile(rb"\bquery_id\b")


class Exchange(asyncio.Protocol):
    """One client's connection: requests in turn, the running query cancelled when the client goes."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._requests: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._running: Query | None = None
        self._task: asyncio.Task[None] | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._expects = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._task = self._loop.create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._room.set()
        if self._task is not None:
            self._task.cancel()
        if (query := self._running) is not None:
            query.cancelled.set()
            self._loop.create_task(kill_until_finished(self._workers, query, lambda: self._running is query))

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._answer(400, f"Code: 1000. Not HTTP: {problem}\n".encode(), {})
            self._close()

    # httptools' side

    def on_message_begin(self) -> None:
        self._url, self._body, self._expects = b"", [], False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._expects = self._expects or (name.lower() == b"expect" and value.lower() == b"100-continue")

    def on_headers_complete(self) -> None:
        if self._expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._requests.put_nowait((method, self._url.decode("ascii", "replace"), b"".join(self._body)))
        self._body = []

    # Ours

    async def _serve(self) -> None:
        while True:
            method, url, body = await self._requests.get()
            parts = urlsplit(url)
            if parts.path == "/ping":
                await self._ping()
            elif parts.path != "/" or method not in ("GET", "POST"):
                self._answer(404, b"There is no such handle here\n", {})
            else:
                await self._query(dict(parse_qsl(parts.query, keep_blank_values=True)), body)

    async def _ping(self) -> None:
        ended: asyncio.Future[bytes | QueryFailed] = self._loop.create_future()
        self._workers.submit(order("SELECT 'Ok.' FORMAT TSV", lambda end: self._settle(ended, end)))
        end = await asyncio.shield(ended)
        self._answer(500, end.message.encode(), {}) if isinstance(end, QueryFailed) else self._answer(200, end, {})

    async def _query(self, given: dict[str, str], body: bytes) -> None:
        ended: asyncio.Future[bytes | QueryFailed] = self._loop.create_future()
        streaming = StreamedAnswer(self)
        query = query_of(given, body, streaming.from_thread, lambda end: self._settle(ended, end))
        headers = {"X-ClickHouse-Query-Id": query.query_id, "X-ClickHouse-Format": query.format}
        streaming.headers = headers
        self._running = query
        ended.add_done_callback(self._no_longer(query))
        self._workers.submit(query)
        end = await asyncio.shield(ended)
        if isinstance(end, QueryFailed):
            if streaming.begun:
                self._close()  # what was sent is no whole answer; a cut connection says so
                return
            self._answer(end.status, end.message.encode() + b"\n", {"X-ClickHouse-Exception-Code": str(end.code)})
        elif streaming.begun:
            self.write(b"0\r\n\r\n")
        else:
            self._answer(200, end, headers)

    def _no_longer(self, query: Query) -> Callable[[object], None]:
        def ended(_: object) -> None:
            if self._running is query:
                self._running = None

        return ended

    def _settle(self, ended: asyncio.Future[bytes | QueryFailed], end: bytes | QueryFailed) -> None:
        """From a worker's thread: `end` is what `ended` waits for."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(ended.set_result, end)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.write(head(status, {**headers, "Content-Length": str(len(body))}) + body)

    def write(self, data: bytes) -> None:
        """Send bytes if the client is still there."""
        if self._transport is not None:
            self._transport.write(data)

    async def write_with_room(self, data: bytes) -> None:
        """Send bytes once the client has read most of what came before. Raises when it has gone."""
        await self._room.wait()
        if self._transport is None:
            raise ConnectionResetError("the client went away")
        self._transport.write(data)

    def run_here(self, data: bytes) -> None:
        """`write_with_room` from a worker's thread, waiting for it."""
        asyncio.run_coroutine_threadsafe(self.write_with_room(data), self._loop).result()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class StreamedAnswer:
    """The pieces of a streamed result as HTTP chunks.

    The head goes out with the first piece, so that an error before it has a status.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.headers: Mapping[str, str] = {}
        self.begun = False

    def from_thread(self, piece: bytes) -> None:
        """Send one piece, from the worker's thread."""
        beginning = b"" if self.begun else head(200, {**self.headers, "Transfer-Encoding": "chunked"})
        self.begun = True
        self._exchange.run_here(beginning + f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and headers of an answer."""
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Failed'}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def query_of(
    given: Mapping[str, str],
    body: bytes,
    chunk: Callable[[bytes], None],
    finished: Callable[[bytes | QueryFailed], None],
) -> Query:
    """The query that a URL's parameters and a body ask for, as ClickHouse reads them."""
    sql = b"\n".join(part for part in (given.get("query", "").encode(), body) if part)
    named = _FORMAT.search(sql[-200:])
    settings = {k: v for k, v in given.items() if k not in _RESERVED and not k.startswith("param_")}
    if _KILLS.match(sql):
        sql = _QUERY_ID.sub(b"Settings['log_comment']", sql)
    streamed = given.get("wait_end_of_query") != "1" and _READS.match(sql) is not None
    if streamed and named:
        sql = sql[: -len(named[0])]
    return Query(
        sql=sql,
        format=named[1].decode() if named else given.get("default_format", "TabSeparated"),
        params={k[6:]: v for k, v in given.items() if k.startswith("param_")},
        settings=settings,
        query_id=given.get("query_id") or str(uuid.uuid4()),
        streamed=streamed,
        chunk=chunk,
        finished=finished,
    )


async def kill_until_finished(workers: Workers, query: Query, running: Callable[[], bool]) -> None:
    """Stop a query; again and again, since one that is only being parsed cannot be found yet."""
    while running():
        sql = f"KILL QUERY WHERE Settings['log_comment'] = {quote(query.query_id)} ASYNC"
        workers.submit(order(sql))
        await asyncio.sleep(0.05)


def order(sql: str, finished: Callable[[bytes | QueryFailed], None] | None = None) -> Query:
    """A statement of the engine's own, that waits behind no other."""
    return Query(
        sql=sql.encode(),
        format="TSV",
        params={},
        settings={},
        query_id=str(uuid.uuid4()),
        streamed=False,
        chunk=_nothing,
        finished=finished or _nothing,
        urgent=True,
    )


def _nothing(_: object) -> None:
    pass


def orphaned() -> bool:
    """Whether our input has ended, and with it whoever started us."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return bool(poll.poll(0))  # nothing is ever written to it


def lock(path: Path, deadline: float) -> int:
    """Hold the folder, waiting for a former engine to be gone until `deadline` (monotonic). Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        if orphaned():
            sys.exit(1)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return handle


async def serve(workers: Workers, socket: Path) -> None:
    """Answer until the end of standard input."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Both may be sent to all of us at once; the parent still has rows to deliver, and closes our input after.
        signal.signal(number, signal.SIG_IGN)

    def parent() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, parent)
    server = await loop.create_unix_server(lambda: Exchange(workers), str(socket))
    with contextlib.suppress(BrokenPipeError):  # whoever started us died meanwhile; our input tells us so
        os.write(1, b"ready\n")
    os.dup2(2, 1)  # nobody reads on: what a library prints must not fill the pipe
    await stop.wait()
    # Should chDB hang with the interpreter's lock held, a thread without one ends us all the same.
    faulthandler.dump_traceback_later(2 * CLOSE_WAIT, exit=True)
    server.close()


def main() -> None:
    """Run the engine of one data folder until its parent is gone."""
    parser = argparse.ArgumentParser(prog="varvel.telemetry.engine")
    parser.add_argument("--data", type=Path, required=True, help="Folder of chDB")
    parser.add_argument("--socket", type=Path, required=True, help="Path of the unix socket")
    parser.add_argument("--memory", type=int, required=True, help="Most bytes that one query may take")
    given = parser.parse_args()
    for unused in ("pyarrow", "pandas", "numpy"):
        sys.modules[unused] = None  # type: ignore[assignment]  # chDB would import them: half a second and 60 MB
    given.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = given.data.with_name(given.data.name + ".scratch")
    scratch.mkdir(exist_ok=True, mode=0o700)
    held = lock(given.data.with_name(given.data.name + ".lock"), time.monotonic() + LOCK_WAIT)
    given.socket.unlink(missing_ok=True)
    os.umask(0o077)  # the socket and the store's files are for this user alone
    session = {
        "max_threads": "2",
        "max_insert_threads": "1",
        "max_memory_usage": str(given.memory),
        "max_query_size": str(64 * MEGABYTE),
        "max_partitions_per_insert_block": "0",
        "log_comment": "",
    }
    status = 1
    try:
        workers = Workers(given.data, scratch, {**SERVER, "max_server_memory_usage": given.memory * 2}, session)
        asyncio.run(serve(workers, given.socket))
        status = 0 if workers.close(CLOSE_WAIT) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os.close(held)
        os._exit(status)  # an ordinary exit crashes or hangs inside chDB while a thread of it lives


if __name__ == "__main__":
    main()
