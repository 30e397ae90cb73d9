"""A client of ClickHouse's HTTP interface, over a unix socket or a URL: the server's one way to its telemetry store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from varvel.errors import TelemetryUnavailable, VarvelError

Row = dict[str, Any]
_CODE = re.compile(r"Code: (\d+)\.")
_EMPTY_LINES = re.compile(rb"\n\n+")
"""Searched in a third of the time that `in` takes: the lines are megabytes, and the event loop waits."""
_BIG = 256 * 1024
"""Results larger than this are decoded in a thread, off the event loop."""
_SELECT = {"default_format": "JSONEachRow", "output_format_json_quote_64bit_integers": "0", "wait_end_of_query": "1"}
PIECE = 256 * 1024
PING_TIMEOUT = 10.0
_MEMORY_CODES = frozenset({241})
_TIMEOUT_CODES = frozenset({159, 160, 209})


class StoreRefused(VarvelError):
    """The telemetry store refused a statement; `code` is ClickHouse's number of the error."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class QueryTooSlow(TelemetryUnavailable):
    """The query took longer or more memory than it may; ask for a shorter time range."""


def parameter(value: Any) -> str:
    """A value as ClickHouse reads it in `param_<name>`; times are UTC."""
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return _escaped(value)
    return _literal(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def quote(text: str) -> str:
    """A string literal of ClickHouse's SQL."""
    return "'" + _escaped(text).replace("'", "\\'") + "'"


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_literal(k)}:{_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence | set | frozenset):
        return "[" + ",".join(_literal(item) for item in value) + "]"
    raise TypeError(f"no ClickHouse parameter can be made of {type(value).__name__}")


def decode(body: bytes) -> list[Row]:
    """Rows of a JSONEachRow result."""
    rows: list[Row] = msgspec.json.Decoder().decode_lines(body)
    return rows


class StoreClient:
    """Statements to one store. `StoreRefused` is the store's own no; `TelemetryUnavailable` is no answer at all."""

    def __init__(self, target: Path | str, *, timeout: float = 30.0) -> None:
        """`target` is the path of a unix socket, or an http(s) URL that may hold user, password and database path."""
        self._timeout = timeout
        self._socket = target if isinstance(target, Path) else None
        parts = urlsplit("http://store/" if isinstance(target, Path) else target)
        self._url = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + "/"
        self._headers = {"X-ClickHouse-User": parts.username} if parts.username else {}
        if parts.password:
            self._headers["X-ClickHouse-Key"] = parts.password
        if database := parts.path.strip("/"):
            self._headers["X-ClickHouse-Database"] = database
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Drop all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ping(self) -> bool:
        """Whether the store answers."""
        try:
            async with self._open().get(f"{self._url}ping", timeout=_limit(PING_TIMEOUT)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def select(
        self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Row]:
        """Rows of a query as dictionaries. Cancelling the task, or the timeout (seconds), stops the query."""
        body = await self._post(sql.encode(), self._query(_SELECT, params, timeout), timeout)
        return await asyncio.to_thread(decode, body) if len(body) > _BIG else decode(body)

    async def execute(self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> None:
        """Run a statement without a result."""
        await self._post(sql.encode(), self._query({"wait_end_of_query": "1"}, params, timeout), timeout)

    async def insert(self, table: str, lines: bytes, *, query_id: str = "") -> None:
        """Insert JSON lines; when this returns they are on disk and visible. Columns that a line lacks get defaults."""
        if _EMPTY_LINES.search(lines):  # they end the data for chDB, which takes the rest for another statement
            lines = _EMPTY_LINES.sub(b"\n", lines)
        query = {"query": f"INSERT INTO {table} FORMAT JSONEachRow", "query_id": query_id}
        query["input_format_skip_unknown_fields"] = "1"
        await self._post(lines, query, None)

    async def stream(
        self, sql: str, params: Mapping[str, Any] | None = None, *, format: str, timeout: float = 3600.0
    ) -> AsyncIterator[bytes]:
        """Pieces of a result in one of ClickHouse's formats, read as fast as the caller takes them."""
        query = self._query({"default_format": format}, params, timeout)
        try:
            async with self._open().post(self._url, params=query, data=sql.encode(), timeout=_limit(timeout)) as answer:
                await _check(answer)
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, OSError) as problem:
            raise TelemetryUnavailable from problem

    def _query(
        self, settings: Mapping[str, str], params: Mapping[str, Any] | None, timeout: float | None
    ) -> dict[str, str]:
        given = {f"param_{name}": parameter(value) for name, value in (params or {}).items()}
        return {**settings, "max_execution_time": f"{timeout or self._timeout:g}", **given}

    async def _post(self, body: bytes, query: Mapping[str, str], timeout: float | None) -> bytes:
        # The store's own limit comes first, so that its message is what the caller sees.
        limit = (timeout or self._timeout) + 5
        try:
            data = _pieces(body) if len(body) > PIECE else body
            async with self._open().post(self._url, params=query, data=data, timeout=_limit(limit)) as answer:
                await _check(answer)
                return await answer.read()
        except (aiohttp.ClientError, OSError) as problem:
            raise TelemetryUnavailable from problem

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self._socket), limit=64) if self._socket else None
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, auto_decompress=True)
        return self._session


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    # One write of many megabytes would hold the event loop.
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        yield bytes(view[start : start + PIECE])


def _limit(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 200:
        return
    message = (await answer.text(errors="replace")).strip()
    found = _CODE.search(message)
    code = int(answer.headers.get("X-ClickHouse-Exception-Code") or (found[1] if found else 0))
    if code in _TIMEOUT_CODES or code in _MEMORY_CODES:
        raise QueryTooSlow(f"{(QueryTooSlow.__doc__ or '').strip()} ({message[:200]})")
    raise StoreRefused(message[:2000], code)
