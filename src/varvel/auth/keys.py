"""The keys of all owners: in the state database, and in memory for the check on each request's way."""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from varvel import ids
from varvel.auth import statements
from varvel.auth.model import Caller, Scope
from varvel.auth.rules import KeyRecord, check_nickname, credentials, hash_secret
from varvel.errors import AuthenticationRequired, Conflict, InvalidRequest, NotFound
from varvel.state.database import Database

FIRST_OWNER = "me"
ADMIN_KEY_FILE = "admin.key"
_USE_IS_WRITTEN_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only time that its secret is known."""

    key_id: str
    key_secret: str

    @property
    def key(self) -> str:
        """`id:secret`, the form that clients send."""
        return f"{self.key_id}:{self.key_secret}"


class KeyStore:
    """Implements `varvel.auth.model.Authenticator`. Call `start` once before anything else."""

    def __init__(self, database: Database, clock: Callable[[], float] = ids.now) -> None:
        self._database = database
        self._clock = clock
        self._keys: dict[str, KeyRecord] = {}
        self._owners: dict[str, str | None] = {}
        self._master = b""

    async def start(self) -> None:
        """Read all keys, and make the server's own secret on a first start."""
        fresh = os.urandom(32)
        await self._database.write(lambda db: db.execute(statements.ADD_MASTER, (fresh,)).rowcount)
        self._master, self._owners, keys = await self._database.read(_load)
        self._keys = {record.key_id: record for record in keys}

    # -- reads, from memory

    def authenticate(self, authorization: str | None) -> Caller | None:
        """The caller of an `Authorization: Key id:secret` header; None without a header.

        Raises `AuthenticationRequired` for a header that names no valid key.
        """
        if authorization is None:
            return None
        now = self._clock()
        record = self._shown_before(authorization, now)
        if record is None:
            pair = credentials(authorization)
            record = self._keys.get(pair[0]) if pair else None
            if pair is None or record is None or not record.holds(pair[1], now):
                raise AuthenticationRequired()
            if authorization.isascii():
                record.accepted = authorization
        self._note_use(record, now)
        return Caller(record.owner, record.key_id, record.scope)

    def _shown_before(self, authorization: str, now: float) -> KeyRecord | None:
        """The key of a header that is, byte by byte, one that held before. Takes the same time for any wrong secret.

        A revoked key is in `_keys` no more, so what was accepted of it is of no use.
        """
        record = self._keys.get(authorization[4 : authorization.find(":", 4)])
        if record is None or record.accepted is None or not authorization.isascii():
            return None
        if not hmac.compare_digest(record.accepted, authorization):
            return None
        return record if record.expires_at is None or now < record.expires_at else None

    def secret(self, name: str) -> bytes:
        """32 bytes for one purpose of this server, the same after each restart."""
        return hmac.digest(self._master, name.encode(), "sha256")

    def owners(self) -> list[str]:
        """Nicknames of all owners."""
        return sorted(self._owners)

    def email(self, owner: str) -> str | None:
        """What is known of an owner's address."""
        return self._owners.get(owner)

    def list(self, owner: str, scope: Scope | None = "API") -> list[KeyRecord]:
        """The owner's keys that were not revoked, newest first; of both scopes when `scope` is None."""
        mine = [key for key in self._keys.values() if key.owner == owner and scope in (None, key.scope)]
        return sorted(mine, key=lambda key: (key.created_at, key.key_id), reverse=True)

    def get(self, owner: str, key_id: str) -> KeyRecord | None:
        """One of the owner's keys."""
        record = self._keys.get(key_id)
        return record if record is not None and record.owner == owner else None

    # -- writes

    async def create(
        self,
        owner: str,
        alias: str,
        scope: Scope = "API",
        *,
        creator: str | None = None,
        expires_at: float | None = None,
    ) -> NewKey:
        """Make a key; it holds at once. Raises `NotFound` for an unknown owner, `InvalidRequest`."""
        if owner not in self._owners:
            raise NotFound(f"There is no owner {owner}")
        if expires_at is not None and expires_at <= self._clock():
            raise InvalidRequest("expires_at: lies in the past")
        new, record = self._make(owner, alias, scope, creator or owner, expires_at)
        await self._database.write(lambda db: _add_key(db, record))
        self._keys[record.key_id] = record
        return new

    async def revoke(self, owner: str, key_id: str) -> bool:
        """End a key at once; False when the owner has no such key (any more)."""
        if self.get(owner, key_id) is None:
            return False
        at = self._clock()
        await self._database.write(lambda db: _run(db, statements.REVOKE, at=at, key_id=key_id))
        self._keys.pop(key_id, None)
        return True

    async def rotate(self, owner: str, key_id: str, overlap: float) -> NewKey:
        """A new key in place of `key_id`, which goes on for `overlap` seconds. Raises `NotFound`."""
        old = self.get(owner, key_id)
        if old is None:
            raise NotFound(f"There is no key {key_id}")
        new, record = self._make(owner, old.alias, old.scope, old.creator, None)
        until = min(self._clock() + overlap, old.expires_at or float("inf"))

        def swap(db: sqlite3.Connection) -> None:
            _add_key(db, record)
            _run(db, statements.EXPIRE, at=until, key_id=key_id)

        await self._database.write(swap)
        self._keys[record.key_id] = record
        old.expires_at = until
        return new

    async def add_owner(self, nickname: str, email: str | None = None) -> NewKey:
        """Make an owner and its first ADMIN key. Raises `InvalidRequest`, or `Conflict` when the name is taken."""
        check_nickname(nickname)
        if nickname in self._owners:
            raise Conflict(f"{nickname} is taken")
        new, record = self._make(nickname, "admin", "ADMIN", nickname, None)
        await self._add_owner(nickname, email, record)
        return new

    async def bootstrap(self, data: Path) -> str | None:
        """On a first start make the owner `me` and its ADMIN key, leave it in `admin.key`, and give it.

        None when there is an owner already. The file is written before the database, and a key found in it is
        taken over: a crash between the two loses nothing.
        """
        if self._owners:
            return None
        path = data / ADMIN_KEY_FILE
        found = await anyio.to_thread.run_sync(_read_key, path)
        new, record = self._make(FIRST_OWNER, "admin", "ADMIN", FIRST_OWNER, None, found)
        if found is None:
            await anyio.to_thread.run_sync(_write_private, path, new.key)
        await self._add_owner(FIRST_OWNER, None, record)
        return new.key

    async def _add_owner(self, nickname: str, email: str | None, record: KeyRecord) -> None:
        def add(db: sqlite3.Connection) -> None:
            try:
                _run(db, statements.ADD_OWNER, nickname=nickname, email=email, at=record.created_at)
            except sqlite3.IntegrityError as problem:
                raise Conflict(f"{nickname} is taken") from problem
            _add_key(db, record)

        await self._database.write(add)
        self._owners[nickname] = email
        self._keys[record.key_id] = record

    def _make(
        self, owner: str, alias: str, scope: Scope, creator: str, expires_at: float | None, given: NewKey | None = None
    ) -> tuple[NewKey, KeyRecord]:
        new = given or NewKey(secrets.token_hex(8), secrets.token_hex(32))
        record = KeyRecord(
            key_id=new.key_id,
            owner=owner,
            alias=alias,
            scope=scope,
            secret_hash=hash_secret(new.key_secret),
            created_at=self._clock(),
            creator=creator,
            expires_at=expires_at,
        )
        return new, record

    def _note_use(self, record: KeyRecord, now: float) -> None:
        if record.last_used_at is not None and abs(now - record.last_used_at) < _USE_IS_WRITTEN_EVERY:
            return
        record.last_used_at = now
        self._database.write_soon(lambda db: _run(db, statements.USED, at=now, key_id=record.key_id))


def _load(db: sqlite3.Connection) -> tuple[bytes, dict[str, str | None], list[KeyRecord]]:
    master = bytes(db.execute(statements.MASTER).fetchone()[0])
    owners = {str(row[0]): row[1] for row in db.execute(statements.OWNERS)}
    return master, owners, [_record(tuple(row)) for row in db.execute(statements.ALL_KEYS)]


def _record(row: tuple[Any, ...]) -> KeyRecord:
    key_id, owner, alias, scope, secret_hash, created_at, creator, expires_at, last_used_at = row
    return KeyRecord(
        key_id=key_id,
        owner=owner,
        alias=alias,
        scope=scope,
        secret_hash=bytes(secret_hash),
        created_at=created_at,
        creator=creator,
        expires_at=expires_at,
        last_used_at=last_used_at,
    )


def _add_key(db: sqlite3.Connection, record: KeyRecord) -> None:
    _run(
        db,
        statements.ADD_KEY,
        key_id=record.key_id,
        owner=record.owner,
        alias=record.alias,
        scope=record.scope,
        secret_hash=record.secret_hash,
        created_at=record.created_at,
        creator=record.creator,
        expires_at=record.expires_at,
    )


def _run(db: sqlite3.Connection, statement: str, **values: Any) -> None:
    db.execute(statement, values)


def _read_key(path: Path) -> NewKey | None:
    if not path.exists():
        return None
    key_id, colon, secret = path.read_text().strip().partition(":")
    return NewKey(key_id, secret) if colon and key_id and secret else None


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
