"""Many rows in few statements.

Each step of SQLite gives up the interpreter lock, and a busy event loop may keep it for milliseconds: a group of
rows must cost a handful of steps, not one each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import msgspec

_CHUNK = 64
_EXACT = 32
"""Up to so many rows have a statement of their own number; the connection keeps them prepared."""


def insert(connection: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows with one statement for up to 32 of them, two for up to 64, and one for each 64 beyond."""
    done, left = 0, len(rows)
    while left:
        size = _CHUNK if left >= _CHUNK else min(left, _EXACT)
        connection.execute(_statement(table, columns, size), tuple(chain.from_iterable(rows[done : done + size])))
        done += size
        left -= size


@cache
def _statement(table: str, columns: tuple[str, ...], size: int) -> str:
    values = ",".join([f"({','.join('?' * len(columns))})"] * size)
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES {values}"  # noqa: S608 - names come from our code


def as_json(values: Iterable[Any]) -> str:
    """A parameter for `json_each(?)`."""
    return msgspec.json.encode(list(values)).decode()
