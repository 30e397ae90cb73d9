"""Files over HTTP where names, conditions and sources are odd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from tests.platform.filing import Filing, filing, listening

FILES = "/serverless/files"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Filing]:
    async with filing(tmp_path, egress_private=True, fetch_timeout=0.5, upload_limit=100_000) as house:
        yield house


@pytest.fixture
async def me(house: Filing) -> httpx.AsyncClient:
    return await house.owner("me")


async def put(client: httpx.AsyncClient, path: str, body: bytes) -> httpx.Response:
    return await client.post(f"{FILES}/file/local/{path}", files={"file_upload": ("x", body)})


async def test_a_name_that_is_not_utf8_is_shown_and_spoils_nothing(house: Filing, me: httpx.AsyncClient) -> None:
    folder = house.store.folder("me")
    bad = folder / os.fsdecode(b"bad-\xff")
    for path in (bad, folder / "good"):
        path.write_bytes(b"1234")
        os.utime(path, (1_700_000_000, 1_700_000_000))
    reply = await me.get(f"{FILES}/list")
    assert reply.status_code == 200
    assert [entry["name"] for entry in reply.json()] == ["bad-\ufffd", "good"]
    assert all(entry["checksum_md5"] for entry in reply.json())
    bad.write_bytes(b"4321")
    os.utime(bad, (1_700_000_000, 1_700_000_000))
    assert (await me.post(f"{FILES}/verify")).json() == {"files": 2, "bytes": 8, "mismatched": ["bad-\ufffd"]}


async def test_a_path_that_is_not_utf8_is_refused_and_the_sign_for_it_is_a_letter(me: httpx.AsyncClient) -> None:
    for reply in (
        await put(me, "a%FF", b"x"),
        await me.get(f"{FILES}/file/a%FF"),
        await me.get(f"{FILES}/list/%C3%28"),
        await me.delete(f"{FILES}/file/a%FF"),
    ):
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error")
    assert (await put(me, "a%EF%BF%BD", b"x")).status_code == 200
    assert (await me.get(f"{FILES}/file/a%ef%bf%bd")).content == b"x"


async def test_what_did_not_change_since_a_date_is_not_sent_again(house: Filing, me: httpx.AsyncClient) -> None:
    await put(me, "a.txt", b"x")
    os.utime(house.store.folder("me") / "a.txt", (1_700_000_000.75, 1_700_000_000.75))
    first = await me.get(f"{FILES}/file/a.txt")
    assert first.headers["last-modified"] == formatdate(1_700_000_000, usegmt=True)

    async def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await me.get(f"{FILES}/file/a.txt", headers=named)).status_code

    same = first.headers["last-modified"]
    assert await status(if_modified_since=same) == 304
    assert await status(if_modified_since=formatdate(1_800_000_000, usegmt=True)) == 304
    assert await status(if_modified_since=formatdate(1_699_999_999, usegmt=True)) == 200
    assert await status(if_modified_since=same, if_none_match='"other"') == 200
    for nonsense in ("yesterday", "Mon, 99 Jan 2024 00:00:00 GMT", "", "0"):
        assert await status(if_modified_since=nonsense) == 200


async def test_a_form_that_is_too_large_outside_of_the_file_is_refused(me: httpx.AsyncClient) -> None:
    async def large() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n'
        for _ in range(30):
            yield bytes(100_000)
        yield b'\r\n--b\r\nContent-Disposition: form-data; name="file_upload"\r\n\r\nx\r\n--b--\r\n'

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = await me.post(f"{FILES}/file/local/a", content=large(), headers=kind)
    assert (reply.status_code, reply.json()["error"]["type"]) == (413, "validation_error")
    assert (await me.get(f"{FILES}/list")).json() == []


async def test_a_source_that_is_too_slow_is_given_up(house: Filing, me: httpx.AsyncClient) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async def drip() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.05)

        await StreamingResponse(drip())(scope, receive, send)

    async with listening(slow) as url:
        reply = await me.post(f"{FILES}/file/url/a.bin", json={"url": url})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error")
    assert "longer than 0.5 s" in reply.json()["error"]["message"]
    assert (await me.get(f"{FILES}/list")).json() == []
    assert list((house.folder / ".incoming").iterdir()) == []
