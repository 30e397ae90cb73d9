"""Many rows in few statements.

Each step of SQLite gives up the interpreter lock, and a busy event loop may keep it for milliseconds: a group of
rows must cost a handful of steps, not one each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

_CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)


def insert(connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows in chunks of powers of two, so that few shapes of statements serve every number of rows."""
    done = 0
    while done < len(rows):
        size = next(chunk for chunk in _CHUNKS if chunk <= len(rows) - done)
        values = ",".join([f"({','.join('?' * len(columns))})"] * size)
        sql = f"INSERT INTO {table} ({','.join(columns)}) VALUES {values}"  # noqa: S608 - names come from our code
        connection.execute(sql, tuple(chain.from_iterable(rows[done : done + size])))
        done += size


def as_json(values: Iterable[Any]) -> str:
    """A parameter for `json_each(?)`."""
    return msgspec.json.encode(list(values)).decode()
