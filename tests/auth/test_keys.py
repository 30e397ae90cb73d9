"""Keys in a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from varvel.auth.keys import KeyStore
from varvel.auth.model import Caller
from varvel.errors import AuthenticationRequired, Conflict, InvalidRequest, NotFound
from varvel.state.database import Database


@dataclass
class Clock:
    at: float = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.open(tmp_path / "state.db")
    yield database
    await database.close()


@pytest.fixture
async def keys(database: Database, clock: Clock) -> KeyStore:
    store = KeyStore(database, clock)
    await store.start()
    await store.add_owner("me")
    return store


def caller(store: KeyStore, key: str) -> Caller:
    found = store.authenticate(f"Key {key}")
    assert found is not None
    return found


def refused(store: KeyStore, header: str) -> bool:
    try:
        store.authenticate(header)
    except AuthenticationRequired:
        return True
    return False


async def test_a_new_key_names_its_owner_and_scope(keys: KeyStore) -> None:
    new = await keys.create("me", "ci")
    assert caller(keys, new.key) == Caller("me", new.key_id, "API")


async def test_no_header_is_nobody_and_a_wrong_one_is_refused(keys: KeyStore) -> None:
    new = await keys.create("me", "ci")
    assert keys.authenticate(None) is None
    for header in (f"Key {new.key_id}:wrong", f"Key nobody:{new.key_secret}", f"Bearer {new.key}", "Key", ""):
        assert refused(keys, header), header


async def test_keys_hold_after_a_restart_and_revoked_ones_do_not(keys: KeyStore, database: Database) -> None:
    kept, gone = await keys.create("me", "kept"), await keys.create("me", "gone")
    assert await keys.revoke("me", gone.key_id)
    again = KeyStore(database)
    await again.start()
    assert caller(again, kept.key).key_id == kept.key_id
    assert refused(keys, f"Key {gone.key}")
    assert refused(again, f"Key {gone.key}")


async def test_the_secret_is_nowhere_in_the_data_folder(keys: KeyStore, tmp_path: Path) -> None:
    new = await keys.create("me", "ci")
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert new.key_id.encode() in everything
    assert new.key_secret.encode() not in everything


async def test_an_expired_key_is_refused(keys: KeyStore, clock: Clock) -> None:
    new = await keys.create("me", "short", expires_at=clock.at + 10)
    assert caller(keys, new.key)
    clock.at += 10
    assert refused(keys, f"Key {new.key}")
    with pytest.raises(InvalidRequest, match="past"):
        await keys.create("me", "late", expires_at=clock.at)


async def test_rotation_lets_both_keys_hold_for_the_overlap(keys: KeyStore, clock: Clock, database: Database) -> None:
    old = await keys.create("me", "ci")
    new = await keys.rotate("me", old.key_id, overlap=60)
    assert caller(keys, old.key)
    assert caller(keys, new.key)
    clock.at += 60
    assert refused(keys, f"Key {old.key}")
    again = KeyStore(database, clock)
    await again.start()
    assert refused(again, f"Key {old.key}")
    assert caller(again, new.key)
    assert again.list("me")[0].alias == "ci"


async def test_nobody_can_revoke_or_rotate_anothers_key(keys: KeyStore) -> None:
    await keys.add_owner("you")
    mine = await keys.create("me", "ci")
    assert not await keys.revoke("you", mine.key_id)
    with pytest.raises(NotFound):
        await keys.rotate("you", mine.key_id, overlap=0)
    assert caller(keys, mine.key)
    assert mine.key_id not in {key.key_id for key in keys.list("you", None)}


async def test_lists_are_newest_first_and_of_one_scope(keys: KeyStore, clock: Clock) -> None:
    made = []
    for number in range(3):
        clock.at += 1
        made.append((await keys.create("me", f"k{number}")).key_id)
    assert [key.key_id for key in keys.list("me")] == made[::-1]
    assert {key.scope for key in keys.list("me", None)} == {"API", "ADMIN"}


async def test_last_use_is_kept_over_a_restart(keys: KeyStore, clock: Clock, database: Database) -> None:
    new = await keys.create("me", "ci")
    clock.at += 5
    caller(keys, new.key)
    await database.write(lambda db: db.execute("SELECT 1").fetchone())
    again = KeyStore(database, clock)
    await again.start()
    assert [key.last_used_at for key in again.list("me")] == [clock.at]


async def test_an_owner_is_added_once(keys: KeyStore) -> None:
    new = await keys.add_owner("lab")
    assert caller(keys, new.key) == Caller("lab", new.key_id, "ADMIN")
    with pytest.raises(Conflict, match="lab"):
        await keys.add_owner("lab")
    with pytest.raises(NotFound):
        await keys.create("nobody", "x")


async def test_bootstrap_leaves_one_admin_key_that_only_its_owner_may_read(database: Database, tmp_path: Path) -> None:
    store = KeyStore(database)
    await store.start()
    key = await store.bootstrap(tmp_path)
    assert key is not None
    assert caller(store, key) == Caller("me", key.split(":")[0], "ADMIN")
    path = tmp_path / "admin.key"
    assert path.read_text() == key + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert await store.bootstrap(tmp_path) is None


async def test_a_crash_between_key_file_and_database_keeps_the_key_of_the_file(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "admin.key").write_text("abc:secret\n")
    store = KeyStore(database)
    await store.start()
    assert await store.bootstrap(tmp_path) == "abc:secret"
    assert caller(store, "abc:secret").scope == "ADMIN"


async def test_secrets_of_the_server_differ_by_purpose_and_stay(keys: KeyStore, database: Database) -> None:
    again = KeyStore(database)
    await again.start()
    assert keys.secret("a") == again.secret("a")
    assert keys.secret("a") != keys.secret("b")
    assert len(keys.secret("a")) == 32
