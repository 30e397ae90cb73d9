"""Numbered SQL files `NNNN_room.sql`, each applied once, in order of number, forward only."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path(__file__).parent


def apply(connection: sqlite3.Connection, folder: Path = _FOLDER) -> list[str]:
    """Apply the files that this database has not seen, each in its own transaction. Returns their names."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at REAL NOT NULL)")
    seen = {name for (name,) in connection.execute("SELECT name FROM migrations")}
    missing = [path for path in sorted(folder.glob("[0-9]*.sql")) if path.stem not in seen]
    for path in missing:
        _apply_one(connection, path)
    return [path.stem for path in missing]


def _apply_one(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements(path.read_text()):
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?, ?)", (path.stem, time.time()))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def statements(sql: str) -> Iterator[str]:
    """The statements of a script one by one, for `executescript` would commit in the middle."""
    pending = ""
    for line in sql.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip() and not all(line.lstrip().startswith("--") or not line.strip() for line in pending.splitlines()):
        yield pending
