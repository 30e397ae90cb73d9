"""Keys over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.platform.filing import Filing, filing


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Filing]:
    async with filing(tmp_path) as house:
        yield house


@pytest.fixture
async def me(house: Filing) -> httpx.AsyncClient:
    return await house.owner("me")


async def create(client: httpx.AsyncClient, alias: str, **more: Any) -> dict[str, str]:
    reply = await client.post("/keys", json={"alias": alias, **more})
    assert reply.status_code == 201, reply.text
    found: dict[str, str] = reply.json()
    return found


async def test_a_key_is_shown_once_and_holds_at_once(house: Filing, me: httpx.AsyncClient) -> None:
    new = await create(me, "ci")
    assert set(new) == {"key_id", "key_secret", "key"}
    assert new["key"] == f"{new['key_id']}:{new['key_secret']}"
    assert (await house.client(new["key"]).get("/serverless/files/list")).status_code == 200
    reply = await me.get("/keys")
    assert reply.json() == {
        "keys": [
            {
                "key_id": new["key_id"],
                "alias": "ci",
                "scope": "API",
                "created_at": reply.json()["keys"][0]["created_at"],
            }
        ],
        "next_cursor": None,
        "has_more": False,
    }
    assert new["key_secret"] not in reply.text


async def test_a_deleted_key_is_refused_at_once_and_deleting_again_is_no_error(
    house: Filing, me: httpx.AsyncClient
) -> None:
    new = await create(me, "ci")
    gone = house.client(new["key"])
    for _ in range(2):
        reply = await me.delete(f"/keys/{new['key_id']}")
        assert (reply.status_code, reply.content) == (204, b"")
    assert (await gone.get("/serverless/files/list")).status_code == 401
    assert (await me.delete("/keys/nobody")).status_code == 204


async def test_deleting_anothers_key_looks_like_success_and_does_nothing(house: Filing, me: httpx.AsyncClient) -> None:
    you = await house.owner("you")
    new = await create(me, "ci")
    assert (await you.delete(f"/keys/{new['key_id']}")).status_code == 204
    assert (await house.client(new["key"]).get("/serverless/files/list")).status_code == 200
    assert (await you.get("/keys")).json()["keys"] == []
    assert (await you.post(f"/keys/{new['key_id']}/rotate")).status_code == 404


async def test_the_admin_key_cannot_be_deleted_or_replaced_here(me: httpx.AsyncClient) -> None:
    admin = me.headers["authorization"].split()[1].split(":")[0]
    assert (await me.delete(f"/keys/{admin}")).status_code == 403
    assert (await me.post(f"/keys/{admin}/rotate")).status_code == 403
    assert (await me.get("/keys")).status_code == 200


async def test_pages_are_newest_first_and_stable_while_keys_arrive(house: Filing, me: httpx.AsyncClient) -> None:
    made = []
    for number in range(5):
        house.at[0] += 1
        made.append((await create(me, f"k{number}"))["key_id"])
    seen: list[str] = []
    cursor = None
    while True:
        page = (await me.get("/keys", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        seen += [key["key_id"] for key in page["keys"]]
        cursor = page["next_cursor"]
        assert page["has_more"] is (cursor is not None)
        if cursor is None:
            break
        house.at[0] += 1
        await create(me, "arrived")
    assert seen == made[::-1]
    numbered = (await me.get("/keys", params={"limit": 2, "cursor": "Mg=="})).json()
    assert len(numbered["keys"]) == 2


async def test_expansions_add_who_made_a_key_and_how_it_is_used(house: Filing, me: httpx.AsyncClient) -> None:
    new = await create(me, "ci", expires_at="2100-01-01")
    await house.client(new["key"]).get("/serverless/files/list")
    [key] = (await me.get("/keys", params={"expand": "creator_info,usage"})).json()["keys"]
    assert key["creator_nickname"] == "me"
    assert key["expires_at"] == "2100-01-01T00:00:00.000Z"
    assert key["last_used_at"] >= key["created_at"]
    [key] = (await me.get("/keys?expand=creator_info")).json()["keys"]
    assert "last_used_at" not in key


async def test_rotation_overlaps(house: Filing, me: httpx.AsyncClient) -> None:
    old = await create(me, "ci")
    reply = await me.post(f"/keys/{old['key_id']}/rotate", json={"overlap_seconds": 100})
    assert reply.status_code == 201
    old_client, new_client = house.client(old["key"]), house.client(reply.json()["key"])
    for at, status in ((0, 200), (99, 200), (101, 401)):
        house.at[0] += at
        assert (await old_client.get("/serverless/files/list")).status_code == status
        assert (await new_client.get("/serverless/files/list")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"alias": ""},
        {"alias": "  "},
        {"alias": "a" * 256},
        {"alias": 1},
        [],
        {"alias": "a", "expires_at": "x"},
        {"alias": "a", "expires_at": "2000-01-01"},
    ],
)
async def test_bodies_that_name_no_key_are_refused(me: httpx.AsyncClient, body: Any) -> None:
    reply = await me.post("/keys", json=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error")
    assert (await me.get("/keys")).json()["keys"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "expand=secrets", "expand=", "cursor=x"])
async def test_parameters_out_of_bounds_are_refused(me: httpx.AsyncClient, query: str) -> None:
    reply = await me.get(f"/keys?{query}")
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error")


async def test_a_repeated_delete_with_the_same_name_is_answered_from_memory(me: httpx.AsyncClient) -> None:
    new, other = await create(me, "a"), await create(me, "b")
    named = {"Idempotency-Key": "one"}
    first = await me.delete(f"/keys/{new['key_id']}", headers=named)
    again = await me.delete(f"/keys/{new['key_id']}", headers=named)
    assert (first.status_code, again.status_code) == (204, 204)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    wrong = await me.delete(f"/keys/{other['key_id']}", headers=named)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "validation_error")
    assert len((await me.get("/keys")).json()["keys"]) == 1


async def test_meta_needs_no_key(house: Filing) -> None:
    reply = await house.client(None).get("/meta")
    assert (reply.status_code, reply.json()) == (200, {"webhook_ip_ranges": ["127.0.0.1/32"]})
