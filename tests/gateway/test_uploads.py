from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.gateway.rig import Rig
from varvel.gateway.uploads import lifecycle, safe_name

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _initiate(shared: Rig, path: str = "initiate", **headers: str) -> dict[str, Any]:
    client = await shared.client()
    order = {"file_name": "my scan.png", "content_type": "image/png"}
    answer = await client.post(f"/storage/upload/{path}?storage_type=fal-cdn-v3", json=order, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_an_upload_url_needs_no_key_and_its_file_can_be_read(shared: Rig) -> None:
    places, anybody = await _initiate(shared), await shared.client(None)
    assert (await anybody.get(places["file_url"])).status_code == 404
    put = await anybody.put(places["upload_url"], content=b"pixels", headers={"content-type": "image/png"})
    assert put.status_code == 200
    got = await anybody.get(places["file_url"])
    assert (got.content, got.headers["content-type"]) == (b"pixels", "image/png")
    assert got.headers["content-disposition"] == 'inline; filename="my_scan.png"'
    assert (got.headers["x-content-type-options"], got.headers["content-security-policy"]) == ("nosniff", "sandbox")
    head = await anybody.head(places["file_url"])
    assert (head.headers["content-length"], head.content) == ("6", b"")


async def test_nobody_writes_without_the_signature_or_the_owners_key(shared: Rig) -> None:
    places = await _initiate(shared)
    for client, status in ((await shared.client(None), 401), (await shared.client("other"), 404)):
        assert (await client.put(places["file_url"], content=b"x")).status_code == status
        assert (await client.put(places["upload_url"][:-1] + "x", content=b"x")).status_code == status
    assert (await (await shared.client()).put(places["file_url"], content=b"x")).status_code == 200


async def test_parts_come_in_any_order_and_twice_and_make_one_file(shared: Rig) -> None:
    places, anybody = await _initiate(shared, "initiate-multipart"), await shared.client(None)
    place, _, query = places["upload_url"].partition("?")
    parts = [os.urandom(300_000) for _ in range(3)]
    done = []
    for number in (3, 1, 2, 2):
        answer = await anybody.put(f"{place}/{number}?{query}", content=parts[number - 1])
        assert answer.json()["partNumber"] == number
        assert answer.headers["etag"].strip('"') == answer.json()["etag"]
        done.append(answer.json())
    answer = await anybody.post(f"{place}/complete?{query}", json={"parts": done[:3]})
    assert answer.status_code == 200
    assert (await anybody.get(places["file_url"])).content == b"".join(parts)


@pytest.mark.parametrize(
    "parts", [None, [], [{}], [{"partNumber": 1, "etag": "../data"}], [{"partNumber": 9, "etag": "x"}]]
)
async def test_parts_that_never_came_are_a_bad_request(shared: Rig, parts: Any) -> None:
    places = await _initiate(shared, "initiate-multipart")
    place, _, query = places["upload_url"].partition("?")
    answer = await (await shared.client(None)).post(f"{place}/complete?{query}", json={"parts": parts})
    assert answer.status_code == 400


async def test_the_cdn_way_takes_whole_files_and_parts_with_its_token(shared: Rig) -> None:
    mine, anybody = await shared.client(), await shared.client(None)
    token = (await mine.post("/storage/auth/token?storage_type=fal-cdn-v3", json={})).json()
    assert datetime.fromisoformat(token["expires_at"]) > datetime.now(UTC)
    bearer = {"Authorization": f"{token['token_type']} {token['token']}"}
    headers = {**bearer, "X-Fal-File-Name": "a.txt", "content-type": "text/plain"}
    answer = await anybody.post(f"{token['base_url']}/files/upload", content=b"whole", headers=headers)
    assert (await anybody.get(answer.json()["access_url"])).content == b"whole"
    started = (await anybody.post(f"{token['base_url']}/files/upload/multipart", headers=headers)).json()
    url = f"{started['access_url']}/multipart/{started['uploadId']}"
    etags = [(await anybody.put(f"{url}/{n}", content=b"%d" % n, headers=bearer)).headers["etag"] for n in (1, 2)]
    parts = [{"partNumber": n, "etag": etag} for n, etag in enumerate(etags, 1)]
    assert (await anybody.post(f"{url}/complete", json={"parts": parts}, headers=bearer)).status_code == 200
    assert (await anybody.get(started["access_url"])).content == b"12"
    assert (await anybody.post("/files/upload", content=b"x")).status_code == 401
    assert (await anybody.post("/storage/auth/token", json={})).status_code == 401


async def test_a_part_of_a_file_can_be_read(shared: Rig) -> None:
    places, anybody = await _initiate(shared), await shared.client(None)
    await anybody.put(places["upload_url"], content=b"0123456789")
    for asked, status, content, range_ in (
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ):
        answer = await anybody.get(places["file_url"], headers={"Range": asked})
        assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, range_)


async def test_a_file_expires(shared: Rig) -> None:
    places = await _initiate(shared, **{"X-Fal-Object-Lifecycle": json.dumps({"expiration_duration_seconds": 3})})
    anybody = await shared.client(None)
    await anybody.put(places["upload_url"], content=b"brief")
    assert (await anybody.get(places["file_url"])).status_code == 200
    await asyncio.sleep(3.1)
    assert (await anybody.get(places["file_url"])).status_code == 404


@pytest.mark.parametrize(
    ("acl", "anybody", "other"),
    [
        ({"default": "forbid"}, 403, 403),
        ({"default": "hide"}, 404, 404),
        ({"default": "hide", "rules": [{"user": "other", "decision": "allow"}]}, 404, 200),
        ({"default": "allow", "rules": [{"user": "other", "decision": "forbid"}]}, 200, 403),
    ],
)
async def test_who_may_read_a_file_is_what_its_lifecycle_says(
    shared: Rig, acl: dict[str, Any], anybody: int, other: int
) -> None:
    places = await _initiate(shared, **{"X-Fal-Object-Lifecycle": json.dumps({"initial_acl": acl})})
    await (await shared.client()).put(places["upload_url"], content=b"x")
    for owner, status in ((None, anybody), ("other", other), ("me", 200)):
        assert (await (await shared.client(owner)).get(places["file_url"])).status_code == status


@pytest.mark.parametrize(
    "value", ["x", "[]", '{"expiration_duration_seconds": -1}', '{"initial_acl": {"default": "no"}}']
)
async def test_a_lifecycle_that_makes_no_sense_is_a_bad_request(shared: Rig, value: str) -> None:
    client = await shared.client()
    answer = await client.post("/storage/upload/initiate", json={}, headers={"X-Fal-Object-Lifecycle": value})
    assert answer.status_code == 400


async def test_file_names_are_made_safe() -> None:
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name('a"b\r\nc.png') == "a_b__c.png"
    assert safe_name("") == "file"
    assert safe_name("..") == "file"
    assert lifecycle(None)[0] is None


async def test_ids_that_are_none_are_not_found(shared: Rig) -> None:
    client = await shared.client(None)
    for path in ("/files/short/x", "/files/..%2f..%2f..%2fadmin.key/x", "/files/aaaaaaaaaaaaaaaaaaaaaa/x"):
        assert (await client.get(path)).status_code == 404
