"""An outbox in memory, for tests of what carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from varvel.state.outbox import KINDS, OutboxRow, Row


class MemoryOutbox:
    """Each `add` is one commit."""

    def __init__(self) -> None:
        self.rows: list[OutboxRow] = []
        self._seq = 0
        self._callbacks: list[Callable[[], None]] = []
        self.forgetful = False
        """Whether deletes are lost, as when the process dies before one."""

    def add(self, *rows: Row) -> None:
        kinds: dict[str, list[bytes]] = {}
        for row in rows:
            kinds.setdefault(KINDS[type(row)], []).append(msgspec.json.encode(row) + b"\n")
        for kind, lines in kinds.items():
            self._seq += 1
            self.rows.append(OutboxRow(self._seq, kind, len(lines), b"".join(lines)))
        for callback in self._callbacks:
            callback()

    async def peek(self, kind: str, limit_rows: int) -> Sequence[OutboxRow]:
        found: list[OutboxRow] = []
        for row in self.rows:
            if row.kind == kind and (not found or sum(each.rows for each in [*found, row]) <= limit_rows):
                found.append(row)
        return found

    async def delete(self, seqs: Sequence[int]) -> None:
        if seqs and self.forgetful:
            raise OSError("the process died here")
        self.rows = [row for row in self.rows if row.seq not in set(seqs)]

    def last_seq(self) -> int:
        return self._seq

    def on_added(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
