"""Threads that run queries on chDB, each with a connection of its own.

Parameters on a connection that threads share silently give wrong results, so none is ever shared. Reads, streams,
writes and control have their own threads: a slow page cannot hold up an insert, nor a slow export a page.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Lane = Literal["read", "stream", "write", "control"]
THREADS: Mapping[Lane, int] = {"read": 8, "stream": 2, "write": 3, "control": 1}
PIECEWISE = frozenset({"jsoneachrow", "ndjson", "jsonlines", "jsoncompacteachrow", "csv", "tabseparated", "tsv"})
"""Formats without beginning or end. chDB gives each chunk of a result its own header, so that others go by a file."""
CHUNK = 1024 * 1024
_KILL = re.compile(rb"\s*kill\s+query\b", re.IGNORECASE)
_WRITE = re.compile(
    rb"\s*(insert|alter|create|drop|truncate|optimize|system|rename|exchange|delete|update)\b", re.IGNORECASE
)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CODE = re.compile(r"Code: (\d+)\.")

_NOT_FOUND = frozenset({60, 81})
_CALLER = frozenset({6, 26, 27, 36, 38, 41, 42, 43, 44, 46, 47, 48, 53, 62, 70, 72, 73, 115, 130, 386, 456, 457})
_TIMEOUT = 159
CANCELLED = 394


class QueryFailed(Exception):
    """chDB refused or gave up a query; `code` is ClickHouse's own."""

    def __init__(self, message: str, code: int | None = None) -> None:
        found = _CODE.search(message)
        self.code = code if code is not None else int(found[1]) if found else 1002
        self.message = message
        super().__init__(message)

    @property
    def status(self) -> int:
        """The HTTP status that says the same."""
        if self.code in _NOT_FOUND:
            return 404
        if self.code in _CALLER:
            return 400
        return 408 if self.code == _TIMEOUT else 500


@dataclass(kw_only=True)
class Query:
    """One query on its way. `finished` is called once, from a worker's thread, with the bytes or the failure."""

    sql: bytes
    format: str
    params: Mapping[str, str]
    settings: Mapping[str, str]
    query_id: str
    streamed: bool
    finished: Callable[[bytes | QueryFailed], None]
    chunk: Callable[[bytes], None]
    """Called from the worker for each piece of a streamed result; waits for room, raises when nobody reads."""
    urgent: bool = False
    """Must not wait behind any other query."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def lane(self) -> Lane:
        """Which threads may run it."""
        if self.urgent or _KILL.match(self.sql):
            return "control"
        if _WRITE.match(self.sql):
            return "write"
        return "stream" if self.streamed else "read"


def _connect_to(dsn: str) -> Any:
    import chdb  # slow and large: in the engine's process only, once it runs

    return chdb._chdb.connect(dsn)


def quote(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Workers:
    """All threads of the engine, opened on one chDB folder."""

    def __init__(self, folder: Path, scratch: Path, server: Mapping[str, int], session: Mapping[str, str]) -> None:
        self._dsn = f"{folder}?" + "&".join(f"{name}={value}" for name, value in server.items())
        self._scratch = scratch
        self._session = session
        self._first = _connect_to(self._dsn)  # keeps the store open while the threads come and go
        self._queues: dict[Lane, queue.SimpleQueue[Query | None]] = {lane: queue.SimpleQueue() for lane in THREADS}
        self._threads = [
            threading.Thread(target=self._work, args=(self._queues[lane],), name=f"{lane}-{number}", daemon=True)
            for lane, count in THREADS.items()
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, query: Query) -> None:
        """Put a query in its lane."""
        self._queues[query.lane].put(query)

    def close(self, timeout: float) -> bool:
        """Cancel what runs, join every thread, close the store; False when that took longer than `timeout` seconds."""
        for lane, count in THREADS.items():
            for _ in range(count):
                self._queues[lane].put(None)
        deadline = time.monotonic() + timeout
        while any(thread.is_alive() for thread in self._threads):
            if time.monotonic() > deadline:
                return False
            self._first.query("KILL QUERY WHERE query_id != queryID() ASYNC")
            for thread in self._threads:
                thread.join(0.02)
        self._first.close()
        return True

    def _work(self, waiting: queue.SimpleQueue[Query | None]) -> None:
        connection: Any = None
        while (query := waiting.get()) is not None:
            try:
                if connection is None:
                    connection = self._connect()
                query.finished(self._run(connection, query))
            except QueryFailed as problem:
                query.finished(problem)
            except Exception as problem:
                query.finished(QueryFailed(str(problem)))
        if connection is not None:
            connection.close()

    def _connect(self) -> Any:
        connection = _connect_to(self._dsn)
        connection.query("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in self._session.items()))
        return connection

    def _run(self, connection: Any, query: Query) -> bytes:
        if query.cancelled.is_set():
            raise QueryFailed("Code: 394. The client went away before the query began", CANCELLED)
        with self._settings(connection, query):
            if not query.streamed:
                return bytes(connection.query(query.sql, query.format, params=dict(query.params)).bytes())
            for piece in self._pieces(connection, query):
                query.chunk(piece)
            return b""

    @contextlib.contextmanager
    def _settings(self, connection: Any, query: Query) -> Iterator[None]:
        if bad := [name for name in query.settings if not _NAME.fullmatch(name)]:
            raise QueryFailed(f"Code: 115. Unknown setting {bad[0]!r}", 115)
        # chDB gives queries ids of its own; ours travels as the comment, where KILL QUERY finds it.
        wanted = {**query.settings, "log_comment": query.query_id}
        connection.query("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in wanted.items()))
        try:
            yield
        finally:
            for name in query.settings:
                usual = quote(self._session[name]) if name in self._session else "DEFAULT"
                connection.query(f"SET {name} = {usual}")

    def _pieces(self, connection: Any, query: Query) -> Iterator[bytes]:
        if query.format.lower() not in PIECEWISE:
            yield from self._through_file(connection, query)
            return
        stream = connection.send_query(query.sql, query.format, params=dict(query.params))
        try:
            while piece := bytes(connection.streaming_fetch_result(stream).bytes()):
                yield piece
        except BaseException:
            with contextlib.suppress(Exception):
                connection.streaming_cancel_query(stream)
            raise

    def _through_file(self, connection: Any, query: Query) -> Iterator[bytes]:
        path = self._scratch / f"{threading.get_ident()}.result"
        path.unlink(missing_ok=True)
        try:
            target = f" INTO OUTFILE {quote(str(path))} TRUNCATE FORMAT {query.format}"
            connection.query(query.sql.rstrip(b"; \n") + target.encode(), params=dict(query.params))
            with path.open("rb") as file:
                while piece := file.read(CHUNK):
                    yield piece
        finally:
            path.unlink(missing_ok=True)
