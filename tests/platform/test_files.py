"""Files over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from tests.platform.filing import Filing, filing, listening

FILES = "/serverless/files"
BODY = bytes(range(256)) * 5000


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Filing]:
    async with filing(tmp_path, egress_private=True, upload_limit=4_000_000) as house:
        yield house


@pytest.fixture
async def me(house: Filing) -> httpx.AsyncClient:
    return await house.owner("me")


async def put(client: httpx.AsyncClient, path: str, body: bytes, **query: Any) -> httpx.Response:
    return await client.post(f"{FILES}/file/local/{path}", files={"file_upload": ("x", body)}, params=query)


async def names(client: httpx.AsyncClient, path: str = "") -> list[str]:
    reply = await client.get(f"{FILES}/list" + (f"/{path}" if path else ""))
    assert reply.status_code == 200, reply.text
    return [entry["path"] for entry in reply.json()]


def error(reply: httpx.Response) -> tuple[int, str]:
    body = reply.json()["error"]
    assert body["request_id"] == reply.headers["x-request-id"]
    return reply.status_code, body["type"]


async def test_an_uploaded_file_is_listed_with_both_checksums_and_comes_back_whole(me: httpx.AsyncClient) -> None:
    reply = await put(me, "datasets/images/cat.jpg", BODY)
    assert (reply.status_code, reply.json()) == (200, True)
    [folder] = (await me.get(f"{FILES}/list")).json()
    assert folder | {"created_time": "", "updated_time": ""} == {
        "path": "datasets",
        "name": "datasets",
        "created_time": "",
        "updated_time": "",
        "is_file": False,
        "size": 0,
    }
    [cat] = (await me.get(f"{FILES}/list/datasets/images")).json()
    assert cat["path"] == "datasets/images/cat.jpg"
    assert cat["size"] == len(BODY)
    assert cat["checksum_sha256"] == hashlib.sha256(BODY).hexdigest()
    assert cat["checksum_md5"] == hashlib.md5(BODY).hexdigest()
    got = await me.get(f"{FILES}/file/datasets/images/cat.jpg")
    assert got.content == BODY
    assert got.headers["content-type"] == "image/jpeg"
    assert got.headers["content-disposition"] == 'attachment; filename="cat.jpg"'


async def test_absolute_paths_name_the_same_files_and_are_answered_in_kind(me: httpx.AsyncClient) -> None:
    await put(me, "/data/models/a.bin", b"abc")
    assert await names(me, "models") == ["models/a.bin"]
    assert await names(me, "/data/models") == ["/data/models/a.bin"]
    assert await names(me, "/data") == ["/data/models"]
    assert await names(me, "/data/models/a.bin") == ["/data/models/a.bin"]
    assert (await me.get(f"{FILES}/file//data/models/a.bin")).content == b"abc"
    assert (await me.get(f"{FILES}/file/models/a.bin")).content == b"abc"


async def test_what_an_app_writes_into_its_folder_is_there_with_checksums(house: Filing, me: httpx.AsyncClient) -> None:
    path = house.store.folder("me") / "out.txt"
    path.write_text("made by an app")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    [entry] = (await me.get(f"{FILES}/list")).json()
    assert entry["checksum_sha256"] == hashlib.sha256(b"made by an app").hexdigest()
    assert entry["updated_time"] == "2023-11-14T22:13:20.000Z"
    path.write_text("and written again")
    os.utime(path, (1_700_000_001, 1_700_000_001))
    [entry] = (await me.get(f"{FILES}/list")).json()
    assert entry["checksum_md5"] == hashlib.md5(b"and written again").hexdigest()
    await put(me, "in.txt", b"for the app")
    assert (house.store.folder("me") / "in.txt").read_bytes() == b"for the app"


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=0-9", 206, "bytes 0-9/100", slice(0, 10)),
        ("bytes=90-", 206, "bytes 90-99/100", slice(90, 100)),
        ("bytes=-7", 206, "bytes 93-99/100", slice(93, 100)),
        ("bytes=-1000", 206, "bytes 0-99/100", slice(0, 100)),
        ("bytes=50-1000", 206, "bytes 50-99/100", slice(50, 100)),
        ("bytes=5-4", 200, None, slice(0, 100)),
        ("bytes=0-1,5-6", 200, None, slice(0, 100)),
        ("lines=1-2", 200, None, slice(0, 100)),
        ("bytes=100-", 416, "bytes */100", None),
        ("bytes=-0", 416, "bytes */100", None),
    ],
)
async def test_ranges(
    me: httpx.AsyncClient, asked: str, status: int, content_range: str | None, body: slice | None
) -> None:
    await put(me, "r.bin", BODY[:100])
    reply = await me.get(f"{FILES}/file/r.bin", headers={"Range": asked})
    assert (reply.status_code, reply.headers.get("content-range")) == (status, content_range)
    if body is not None:
        assert reply.content == BODY[:100][body]
    else:
        assert error(reply) == (416, "validation_error")


async def test_a_version_that_is_still_there_is_not_sent_again(me: httpx.AsyncClient) -> None:
    await put(me, "v.txt", b"one")
    first = await me.get(f"{FILES}/file/v.txt")
    etag = first.headers["etag"]
    again = await me.get(f"{FILES}/file/v.txt", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    await put(me, "v.txt", b"two")
    changed = await me.get(f"{FILES}/file/v.txt", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.content) == (200, b"two")
    part = await me.get(f"{FILES}/file/v.txt", headers={"Range": "bytes=0-0", "If-Range": etag})
    assert (part.status_code, part.content) == (200, b"two")
    part = await me.get(f"{FILES}/file/v.txt", headers={"Range": "bytes=0-0", "If-Range": changed.headers["etag"]})
    assert (part.status_code, part.content) == (206, b"t")


async def test_head_gives_the_headers_of_get(me: httpx.AsyncClient) -> None:
    await put(me, "h.txt", b"hello")
    reply = await me.head(f"{FILES}/file/h.txt")
    assert (reply.status_code, reply.content, reply.headers["content-length"]) == (200, b"", "5")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    missing = await me.head(f"{FILES}/file/none.txt")
    assert (missing.status_code, missing.content) == (404, b"")


async def test_names_of_all_scripts_survive(me: httpx.AsyncClient) -> None:
    name = 'na "ïve" 日本 #1?.txt'
    await put(me, httpx.URL(f"http://x/{name.replace('#', '%23').replace('?', '%3F')}").raw_path.decode()[1:], b"x")
    [entry] = (await me.get(f"{FILES}/list")).json()
    assert entry["name"] == name
    reply = await me.get(
        f"{FILES}/file/"
        + httpx.URL(f"http://x/{name.replace('#', '%23').replace('?', '%3F')}")
        .path[1:]
        .replace("#", "%23")
        .replace("?", "%3F")
    )
    assert reply.content == b"x"
    assert "filename*=UTF-8''na%20%22%C3%AFve%22" in reply.headers["content-disposition"]


@pytest.mark.parametrize(
    "path", ["%2E%2E/x", "a/%2E%2E/%2E%2E/x", "/etc/passwd", "/dataset/x", "a%00b", "a" * 256, "a%09b"]
)
async def test_paths_that_leave_the_storage_are_refused_by_every_operation(
    house: Filing, me: httpx.AsyncClient, path: str
) -> None:
    replies = [
        await put(me, path, b"x"),
        await put(me, path, b"x", unzip="true"),
        await me.get(f"{FILES}/file/{path}"),
        await me.get(f"{FILES}/list/{path}"),
        await me.delete(f"{FILES}/file/{path}"),
        await me.post(f"{FILES}/file/url/{path}", json={"url": house.url}),
        await me.post(f"{FILES}/rename/{path}", json={"destination": "y"}),
        await me.post(f"{FILES}/file/multipart/{path}/initiate"),
    ]
    assert [error(reply) for reply in replies] == [(400, "validation_error")] * len(replies)
    assert await names(me) == []


async def test_missing_files_and_folders_are_not_found(me: httpx.AsyncClient) -> None:
    await put(me, "a/b.txt", b"x")
    for reply in (
        await me.get(f"{FILES}/file/none"),
        await me.get(f"{FILES}/list/none"),
        await me.get(f"{FILES}/file/a/b.txt/c"),
        await me.delete(f"{FILES}/file/none"),
        await me.post(f"{FILES}/rename/none", json={"destination": "y"}),
    ):
        assert error(reply) == (404, "not_found")
    assert error(await me.get(f"{FILES}/file/a")) == (400, "validation_error")


async def test_another_owner_sees_nothing_of_it(house: Filing, me: httpx.AsyncClient) -> None:
    you = await house.owner("you")
    await put(me, "secret.txt", b"mine")
    assert await names(you) == []
    assert error(await you.get(f"{FILES}/file/secret.txt")) == (404, "not_found")
    assert error(await you.get(f"{FILES}/file/%2E%2E/me/secret.txt")) == (400, "validation_error")
    (house.store.folder("you") / "link").symlink_to(house.store.folder("me"))
    assert await names(you) == []
    assert error(await you.get(f"{FILES}/file/link/secret.txt")) == (404, "not_found")
    reply = await put(you, "link/planted.txt", b"yours")
    assert error(reply) == (404, "not_found")
    assert await names(me) == ["secret.txt"]
    begun = (await me.post(f"{FILES}/file/multipart/big.bin/initiate")).json()["upload_id"]
    assert error(await you.get(f"{FILES}/uploads/{begun}")) == (404, "not_found")


async def test_a_file_that_is_in_the_way_is_said_so(me: httpx.AsyncClient) -> None:
    await put(me, "a", b"file")
    await put(me, "d/x", b"x")
    assert error(await put(me, "a/b", b"x")) == (400, "validation_error")
    assert error(await put(me, "d", b"x")) == (400, "validation_error")
    assert (await me.get(f"{FILES}/file/a")).content == b"file"


async def test_a_larger_file_than_allowed_leaves_nothing(house: Filing, me: httpx.AsyncClient) -> None:
    reply = await put(me, "big.bin", bytes(4_000_001))
    assert error(reply) == (413, "validation_error")
    assert error(await put(me, "big.bin", bytes(6_000_000))) == (413, "validation_error")
    assert await names(me) == []
    assert list((house.folder / ".incoming").iterdir()) == []


async def test_an_empty_file_is_a_file(me: httpx.AsyncClient) -> None:
    assert (await put(me, "empty", b"")).json() is True
    reply = await me.get(f"{FILES}/file/empty")
    assert (reply.status_code, reply.content, reply.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=other\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=file_upload\r\n\r\ncut"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=file_upload\r\n\r\nx\r\n--b"),
        ("multipart/form-data; boundary=b", b"nonsense"),
    ],
)
async def test_a_form_that_is_not_whole_stores_nothing(
    house: Filing, me: httpx.AsyncClient, content_type: str, body: bytes
) -> None:
    reply = await me.post(f"{FILES}/file/local/f.bin", content=body, headers={"Content-Type": content_type})
    assert error(reply) == (400, "validation_error")
    assert await names(me) == []
    assert list((house.folder / ".incoming").iterdir()) == []


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(house: Filing, me: httpx.AsyncClient) -> None:
    host, port = house.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1{FILES}/file/local/half.bin HTTP/1.1\r\nHost: x\r\nAuthorization: {me.headers['authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3000000\r\n\r\n"
        "--b\r\nContent-Disposition: form-data; name=file_upload\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + bytes(2_000_000))
    await writer.drain()
    aside = house.folder / ".incoming"
    while not list(aside.iterdir()):
        await asyncio.sleep(0.01)
    writer.close()
    while list(aside.iterdir()):
        await asyncio.sleep(0.01)
    assert await names(me) == []


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


async def test_an_archive_is_unpacked_into_the_folder(me: httpx.AsyncClient) -> None:
    assert (await put(me, "set", archive(a=b"1", sub__b=b"2"), unzip="true")).json() is True
    assert await names(me, "set") == ["set/a", "set/sub"]
    assert (await put(me, "set", archive(a=b"new", sub__c=b"3"), unzip="true")).json() is True
    assert await names(me, "set/sub") == ["set/sub/b", "set/sub/c"]
    assert (await me.get(f"{FILES}/file/set/a")).content == b"new"
    [entry] = [entry for entry in (await me.get(f"{FILES}/list/set")).json() if entry["is_file"]]
    assert entry["checksum_sha256"] == hashlib.sha256(b"new").hexdigest()


async def test_an_archive_can_be_unpacked_in_the_root(me: httpx.AsyncClient) -> None:
    assert (await put(me, "/data/", archive(a=b"1"), unzip="true")).json() is True
    assert await names(me) == ["a"]


async def test_without_unzip_or_when_it_is_none_an_archive_is_a_file(me: httpx.AsyncClient) -> None:
    packed = archive(a=b"1")
    await put(me, "a.zip", packed)
    await put(me, "b.zip", packed, unzip="false")
    await put(me, "c.txt", b"no archive", unzip="true")
    assert (await me.get(f"{FILES}/file/a.zip")).content == packed
    assert (await me.get(f"{FILES}/file/b.zip")).content == packed
    assert (await me.get(f"{FILES}/file/c.txt")).content == b"no archive"


async def test_an_archive_that_meets_a_folder_where_it_has_a_file_changes_nothing(
    house: Filing, me: httpx.AsyncClient
) -> None:
    await put(me, "set/a", b"old")
    await put(me, "set/b/c", b"old")
    reply = await put(me, "set", archive(a=b"new", b=b"new", new__x=b"new"), unzip="true")
    assert error(reply) == (400, "validation_error")
    assert await names(me, "set") == ["set/a", "set/b"]
    assert (await me.get(f"{FILES}/file/set/a")).content == b"old"
    assert list((house.folder / ".incoming").iterdir()) == []


async def test_delete_and_rename(me: httpx.AsyncClient) -> None:
    await put(me, "d/a", b"1")
    await put(me, "d/b", b"2")
    assert (await me.post(f"{FILES}/rename/d/a", json={"destination": "e/f/a2"})).json() is True
    assert (await me.post(f"{FILES}/rename//data/d/b", json={"destination": "/data/e/f/a2"})).json() is True
    assert (await me.get(f"{FILES}/file/e/f/a2")).content == b"2"
    assert error(await me.delete(f"{FILES}/file/e")) == (400, "validation_error")
    assert (await me.delete(f"{FILES}/file/d")).json() is True
    assert (await me.post(f"{FILES}/rename/e", json={"destination": "g"})).json() is True
    assert error(await me.post(f"{FILES}/rename/g", json={"destination": "g/h"})) == (400, "validation_error")
    assert (await me.delete(f"{FILES}/file/g", params={"recursive": "true"})).json() is True
    assert await names(me) == []
    for reply in (
        await me.delete(f"{FILES}/file//data", params={"recursive": "true"}),
        await me.post(f"{FILES}/rename//data", json={"destination": "x"}),
    ):
        assert error(reply) == (400, "validation_error")


async def test_an_upload_in_parts_goes_on_after_a_restart(tmp_path: Path) -> None:
    body = os.urandom(2_500_000)
    pieces = [body[:1_000_000], body[1_000_000:2_000_000], body[2_000_000:]]
    async with filing(tmp_path) as house:
        key = (await house.parts.keys.add_owner("me")).key
        me = house.client(key)
        upload = (await me.post(f"{FILES}/file/multipart//data/big.bin/initiate")).json()["upload_id"]
        base = f"{FILES}/file/multipart//data/big.bin/{upload}"
        first = await me.put(f"{base}/2", files={"file_upload": b"wrong"})
        second = await me.put(f"{base}/2", files={"file_upload": pieces[1]})
        assert second.json() == {"part_number": 2, "etag": hashlib.md5(pieces[1]).hexdigest()}
        assert first.json()["etag"] != second.json()["etag"]
        assert await names(me) == []
    async with filing(tmp_path) as house:
        me = house.client(key)
        assert (await me.get(f"{FILES}/uploads/{upload}")).json() == {"parts": [second.json()]}
        for number in (3, 1):
            assert (await me.put(f"{base}/{number}", files={"file_upload": pieces[number - 1]})).status_code == 200
        parts = (await me.get(f"{FILES}/uploads/{upload}")).json()["parts"]
        assert [part["part_number"] for part in parts] == [1, 2, 3]
        wrong = [{**parts[0], "etag": "0" * 32}, *parts[1:]]
        for bad in (wrong, parts[::-1], [*parts, {"part_number": 4, "etag": "x"}], []):
            assert error(await me.post(f"{base}/complete", json={"parts": bad})) == (400, "validation_error")
        done = await me.post(f"{base}/complete", json={"parts": parts})
        assert done.json() == {"etag": hashlib.md5(body).hexdigest()}
        assert (await me.get(f"{FILES}/file/big.bin")).content == body
        assert error(await me.post(f"{base}/complete", json={"parts": parts})) == (404, "not_found")
        assert list((house.folder / ".incoming").iterdir()) == []


async def test_a_cancelled_upload_is_gone(house: Filing, me: httpx.AsyncClient) -> None:
    upload = (await me.post(f"{FILES}/file/multipart/x/initiate")).json()["upload_id"]
    await me.put(f"{FILES}/file/multipart/x/{upload}/1", files={"file_upload": b"a"})
    assert (await me.post(f"{FILES}/file/multipart/x/{upload}/cancel")).json() is True
    for reply in (
        await me.put(f"{FILES}/file/multipart/x/{upload}/1", files={"file_upload": b"a"}),
        await me.post(f"{FILES}/file/multipart/x/{upload}/cancel"),
        await me.get(f"{FILES}/uploads/{upload}"),
        await me.get(f"{FILES}/uploads/%2E%2E"),
    ):
        assert error(reply) == (404, "not_found")
    assert list((house.folder / ".incoming").iterdir()) == []


async def test_verify_finds_the_file_whose_bytes_rotted(house: Filing, me: httpx.AsyncClient) -> None:
    await put(me, "d/good", b"good")
    await put(me, "d/bad", b"fine")
    path = house.store.folder("me") / "d/bad"
    before = path.stat()
    path.write_bytes(b"rot!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reply = await me.post(f"{FILES}/verify/d")
    assert reply.json() == {"files": 2, "bytes": 8, "mismatched": ["bad"]}
    assert (await me.post(f"{FILES}/verify")).json()["mismatched"] == ["d/bad"]


class Source:
    """A web server that files are fetched from."""

    def __init__(self) -> None:
        self.hits: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.hits.append(path)
        await self._reply(path)(scope, receive, send)

    def _reply(self, path: str) -> Response:
        if path == "/file":
            return Response(BODY)
        if path == "/moved":
            return RedirectResponse("/file")
        if path == "/round":
            return RedirectResponse("/round")
        if path == "/inside":
            return RedirectResponse("file:///etc/passwd")
        if path == "/endless":
            return StreamingResponse(self._endless())
        if path == "/cut":
            return Response(b"short", headers={"content-length": "10"})
        return Response(status_code=404)

    async def _endless(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield bytes(100_000)


@pytest.fixture
async def source() -> AsyncIterator[str]:
    async with listening(Source()) as url:
        yield url


async def test_a_file_is_fetched_from_a_url(me: httpx.AsyncClient, source: str) -> None:
    reply = await me.post(f"{FILES}/file/url/got/a.bin", json={"url": f"{source}/moved"})
    assert (reply.status_code, reply.json()) == (200, True)
    assert (await me.get(f"{FILES}/file/got/a.bin")).content == BODY


@pytest.mark.parametrize(
    ("path", "status"), [("/none", 400), ("/round", 400), ("/inside", 400), ("/cut", 400), ("/endless", 413)]
)
async def test_a_fetch_that_fails_is_the_callers_fault_and_stores_nothing(
    house: Filing, me: httpx.AsyncClient, source: str, path: str, status: int
) -> None:
    reply = await me.post(f"{FILES}/file/url/a.bin", json={"url": source + path})
    assert error(reply) == (status, "validation_error")
    assert await names(me) == []
    assert list((house.folder / ".incoming").iterdir()) == []


@pytest.mark.parametrize(
    "body", [{}, {"url": 1}, {"url": "ftp://x/y"}, {"url": "x"}, {"url": "http://a/", "b": 1}, [], "x"]
)
async def test_a_body_without_a_proper_url_is_refused(me: httpx.AsyncClient, body: Any) -> None:
    reply = await me.post(
        f"{FILES}/file/url/a.bin", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert error(reply) == (400, "validation_error")


async def test_no_url_leads_to_a_private_address(tmp_path: Path, source: str) -> None:
    port = source.rsplit(":", 1)[1]
    async with filing(tmp_path) as house:
        me = await house.owner("me")
        for host in (
            "127.0.0.1",
            "localhost",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "0x7f.1",
            "0.0.0.0",
            "[::1]",
            "10.0.0.1",
        ):
            reply = await me.post(f"{FILES}/file/url/a.bin", json={"url": f"http://{host}:{port}/file"})
            assert error(reply) == (400, "validation_error"), host
        assert await names(me) == []


async def test_a_full_disk_is_said_and_heals(
    house: Filing, me: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev

    def full(descriptor: int, pieces: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varvel.files.incoming.os.writev", full)
    reply = await put(me, "a.bin", b"x")
    assert error(reply) == (507, "server_error")
    monkeypatch.setattr("varvel.files.incoming.os.writev", real)
    assert await names(me) == []
    assert (await put(me, "a.bin", b"x")).status_code == 200
