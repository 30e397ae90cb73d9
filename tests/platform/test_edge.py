"""What happens to every call: keys, errors, ids, limits, HEAD; and who may do what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.platform.filing import Filing, filing

CALLS: list[tuple[str, str, dict[str, Any], str]] = [
    # method, path, options, least scope
    ("GET", "/serverless/files/list", {}, "API"),
    ("GET", "/serverless/files/list/d", {}, "API"),
    ("GET", "/serverless/files/file/d/f", {}, "API"),
    ("POST", "/serverless/files/file/url/u", {"json": {"url": "http://127.0.0.1/"}}, "API"),
    ("POST", "/serverless/files/file/local/l", {"files": {"file_upload": b"x"}}, "API"),
    ("POST", "/serverless/files/rename/none", {"json": {"destination": "x"}}, "API"),
    ("DELETE", "/serverless/files/file/none", {}, "API"),
    ("POST", "/serverless/files/file/multipart/m/initiate", {}, "API"),
    ("POST", "/serverless/files/verify", {}, "API"),
    ("GET", "/keys", {}, "ADMIN"),
    ("POST", "/keys", {"json": {"alias": "x"}}, "ADMIN"),
    ("DELETE", "/keys/none", {}, "ADMIN"),
    ("POST", "/keys/none/rotate", {}, "ADMIN"),
]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Filing]:
    async with filing(tmp_path, max_body=100_000) as house:
        yield house


@pytest.fixture
async def credentials(house: Filing) -> dict[str, str | None]:
    """A header for each kind of caller."""
    keys = house.parts.keys
    admin, other = await keys.add_owner("me"), await keys.add_owner("you")
    api, revoked = await keys.create("me", "api"), await keys.create("me", "revoked")
    expired = await keys.create("me", "expired", expires_at=house.at[0] + 1)
    await keys.revoke("me", revoked.key_id)
    house.at[0] += 2
    return {
        "none": None,
        "malformed": "Key nonsense",
        "bearer": f"Bearer {admin.key}",
        "unknown": "Key nobody:secret",
        "wrong secret": f"Key {admin.key_id}:wrong",
        "revoked": f"Key {revoked.key}",
        "expired": f"Key {expired.key}",
        "API": f"Key {api.key}",
        "ADMIN": f"Key {admin.key}",
        "other owner": f"Key {other.key}",
    }


def check_error(reply: httpx.Response, kind: str) -> None:
    error = reply.json()["error"]
    assert error["type"] == kind, reply.text
    assert error["message"]
    assert error["request_id"] == reply.headers["x-request-id"]


async def test_authorisation_matrix(house: Filing, credentials: dict[str, str | None]) -> None:
    client = house.client(None)
    for method, path, options, scope in CALLS:
        for name, header in credentials.items():
            headers = {"Authorization": header} if header else {}
            reply = await client.request(method, path, headers=headers, **options)
            if name not in ("API", "ADMIN", "other owner"):
                assert reply.status_code == 401, (method, path, name)
                check_error(reply, "authorization_error")
            elif scope == "ADMIN" and name == "API":
                assert reply.status_code == 403, (method, path, name)
                check_error(reply, "authorization_error")
            else:
                assert reply.status_code not in (401, 403), (method, path, name, reply.text)
                assert reply.status_code < 500


async def test_an_unknown_callers_body_is_not_read(house: Filing) -> None:
    reply = await house.client(None).post("/keys", content=b"{", headers={"Content-Type": "application/json"})
    assert reply.status_code == 401


async def test_every_reply_has_an_id_of_its_own(house: Filing) -> None:
    me = await house.owner("me")
    replies = [await me.get(path) for path in ("/meta", "/serverless/files/list", "/none", "/serverless/files/file/x")]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 4


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/none", 404, "not_found"),
        ("PATCH", "/keys", 405, "validation_error"),
        ("GET", "/serverless/files/list?x=%ff", 200, ""),
        ("GET", "/keys?limit=nine", 400, "validation_error"),
        ("GET", "/serverless/files/file/%2E%2E", 400, "validation_error"),
        ("GET", "/serverless/files/file/a%0Ab", 400, "validation_error"),
    ],
)
async def test_what_the_router_refuses_has_the_envelope_too(
    house: Filing, method: str, path: str, status: int, kind: str
) -> None:
    reply = await (await house.owner("me")).request(method, path)
    assert reply.status_code == status
    if kind:
        check_error(reply, kind)
    if status == 405:
        assert reply.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("content", [b"{", b"", b"null", b'"x"', b"[1]", b'{"alias": NaN}', b"\xff", b"[" * 50_000])
async def test_malformed_json_is_the_callers_fault(house: Filing, content: bytes) -> None:
    me = await house.owner("me")
    reply = await me.post("/keys", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    check_error(reply, "validation_error")
    place = reply.json()["error"]["message"].partition(":")[0]
    assert place in ("body", "alias", "There was an error parsing the body")


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(house: Filing) -> None:
    me = await house.owner("me")
    body = json.dumps({"alias": "a" * 200_000}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    for content in (body, pieces()):
        reply = await me.post("/keys", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 413
        check_error(reply, "validation_error")


async def test_a_fault_of_ours_shows_nothing_of_its_inside(house: Filing, monkeypatch: pytest.MonkeyPatch) -> None:
    me = await house.owner("me")
    monkeypatch.setattr(house.store, "_scan", None)
    reply = await me.get("/serverless/files/list")
    assert reply.status_code == 500
    check_error(reply, "server_error")
    assert "NoneType" not in reply.text


async def test_head_is_answered_as_get_without_a_body(house: Filing) -> None:
    reply = await house.client(None).head("/meta")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) > 0


async def test_a_key_over_its_allowance_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with filing(tmp_path, rate_limit=3) as house:
        me, you = await house.owner("me"), await house.owner("you")
        replies = [await me.get("/serverless/files/list") for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert [reply.headers["ratelimit-remaining"] for reply in replies] == ["2", "1", "0", "0"]
        assert {reply.headers["ratelimit-limit"] for reply in replies} == {"3"}
        check_error(replies[3], "rate_limited")
        assert replies[3].headers["retry-after"] == "20"
        assert (await you.get("/serverless/files/list")).status_code == 200
        house.at[0] += 20
        assert (await me.get("/serverless/files/list")).status_code == 200
        strangers = [await house.client("no:body").get("/serverless/files/list") for _ in range(5)]
        assert [reply.status_code for reply in strangers] == [401, 401, 401, 429, 429]


async def test_the_page_about_the_api_needs_no_key_and_is_openapi(house: Filing) -> None:
    reply = await house.client(None).get(f"{house.url}/openapi.json")
    page = reply.json()
    assert page["openapi"].startswith("3.1")
    assert page["servers"] == [{"url": "/v1"}]
    assert "/serverless/files/list" in page["paths"]
    assert page["components"]["securitySchemes"]["apiKey"]["name"] == "Authorization"
