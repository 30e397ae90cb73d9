"""Puts JSON lines into the store; a line that the store can never take is set aside, so that it holds up no other."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from varvel.telemetry.client import StoreClient, StoreRefused

log = structlog.get_logger(__name__)
_UNREADABLE = frozenset({6, 25, 26, 27, *range(28, 42), 53, 69, 70, 72, 117, 130, 131, 321, 349, 407})
"""ClickHouse's numbers for values that cannot be parsed or converted: trying again is of no use."""


class Rejects:
    """A file of the lines that the store could not read, kept for a person to look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    async def add(self, table: str, line: bytes, why: str) -> None:
        """Keep one line, on disk when this returns."""
        self.count += 1
        log.error("telemetry store cannot read a row; it is set aside", table=table, file=str(self.path), why=why)
        await asyncio.to_thread(self._append, table.encode() + b" " + line + b"\n")

    def _append(self, line: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


async def deliver(store: StoreClient, table: str, lines: list[bytes], rejects: Rejects, query_id: str = "") -> None:
    """Insert lines, or blocks of lines; all that can be read are in the store when this returns.

    Raises what else the store says.
    """
    if not lines:
        return
    try:
        await store.insert(table, _joined(lines), query_id=query_id)
    except StoreRefused as refusal:
        if refusal.code not in _UNREADABLE:
            raise
        if len(lines) == 1 and len(lines := [line for line in lines[0].split(b"\n") if line]) == 1:
            await rejects.add(table, lines[0], refusal.message[:300])
            return
        half = len(lines) // 2
        await deliver(store, table, lines[:half], rejects, query_id)
        await deliver(store, table, lines[half:], rejects, query_id)


def _joined(lines: list[bytes]) -> bytes:
    """One line under the other, without the empty ones that would be between blocks: taking them out is a copy."""
    return b"\n".join([line.removesuffix(b"\n") for line in lines])
