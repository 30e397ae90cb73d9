"""Writes that may be sent twice: the second gets the reply of the first, and does nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from varvel import ids
from varvel.auth.model import Caller
from varvel.errors import InvalidRequest
from varvel.state.database import Database

_FIND = """
SELECT fingerprint, status, body FROM idempotent_replies
WHERE owner = :owner AND idempotency_key = :key AND created_at > :since
"""
_KEEP = """
INSERT OR REPLACE INTO idempotent_replies (owner, idempotency_key, fingerprint, status, body, created_at)
VALUES (:owner, :key, :fingerprint, :status, :body, :at)
"""
_SWEEP = "DELETE FROM idempotent_replies WHERE created_at <= ?"


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock
    waiting: int = 0


class Idempotency:
    """Remembers replies by owner and `Idempotency-Key` for `ttl` seconds, over restarts too."""

    def __init__(self, database: Database, ttl: float, clock: Callable[[], float] = ids.now) -> None:
        self._database = database
        self._ttl = ttl
        self._clock = clock
        self._turns: dict[tuple[str, str], _Turn] = {}

    async def once(
        self,
        caller: Caller,
        key: str | None,
        operation: str,
        parameters: Mapping[str, object],
        work: Callable[[], Awaitable[Response]],
    ) -> Response:
        """Do `work` and keep its reply, or give the kept one. Without a key, just do it.

        Only replies under 500 are kept: after a failure of ours a retry shall try again, and an error that `work`
        raises is not kept either. Repeats that come while the first is at work wait for it. Raises
        `InvalidRequest` when the key was used for another operation or with other parameters.
        """
        if not key:
            return await work()
        name = (caller.owner, key)
        turn = self._turns.setdefault(name, _Turn(asyncio.Lock()))
        turn.waiting += 1
        try:
            async with turn.lock:
                return await self._once(caller.owner, key, _fingerprint(operation, parameters), work)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(name, None)

    async def _once(self, owner: str, key: str, fingerprint: str, work: Callable[[], Awaitable[Response]]) -> Response:
        since = self._clock() - self._ttl
        found = await self._database.read(
            lambda db: db.execute(_FIND, {"owner": owner, "key": key, "since": since}).fetchone()
        )
        if found is not None:
            return _replay(tuple(found), fingerprint)
        reply = await work()
        if reply.status_code < 500:
            await self._database.write(lambda db: self._keep(db, owner, key, fingerprint, reply))
        return reply

    def _keep(self, db: sqlite3.Connection, owner: str, key: str, fingerprint: str, reply: Response) -> None:
        now = self._clock()
        db.execute(_SWEEP, (now - self._ttl,))
        values = {"owner": owner, "key": key, "fingerprint": fingerprint, "status": reply.status_code}
        db.execute(_KEEP, {**values, "body": bytes(reply.body), "at": now})


def _fingerprint(operation: str, parameters: Mapping[str, object]) -> str:
    text = json.dumps([operation, dict(parameters)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _replay(kept: tuple[str, int, bytes], fingerprint: str) -> Response:
    if kept[0] != fingerprint:
        raise InvalidRequest("Idempotency-Key: was used with other parameters within the last minutes")
    media_type = "application/json" if kept[2] else None
    return Response(kept[2], kept[1], {"Idempotency-Replayed": "true"}, media_type=media_type)
