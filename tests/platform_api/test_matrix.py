"""Who may do what: every operation that the server describes, with every kind of key.

An operation that is served and not in the table below makes these tests fail, so that nobody adds one without
saying whose it is.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.platform_api.world import ECHO, World, finished

APP = "me/vault"
ONLY = f"only{uuid.uuid4().hex[:8]}"
"""An app that the other owner has none like."""
MARK = f"mark{uuid.uuid4().hex[:12]}"
"""In the names, payloads, lines and files of the owner `me`, and nowhere else."""
STRANGERS = ("none", "malformed", "bearer", "unknown", "wrong secret", "revoked", "expired")
Options = dict[str, Any]


@dataclass
class Things:
    """What the owner `me` has. Calls that use something up get a new one each."""

    world: World
    me: httpx.Client
    request_id: str = ""
    revision: str = ""

    def file(self) -> str:
        name = f"{MARK}/{uuid.uuid4().hex}.txt"
        up = self.me.post(f"/serverless/files/file/local/{name}", files={"file_upload": MARK.encode()})
        assert up.status_code == 200, up.text
        return name

    def upload(self) -> Options:
        name = f"{MARK}/{uuid.uuid4().hex}.bin"
        begun = self.me.post(f"/serverless/files/file/multipart/{name}/initiate").json()
        part = self.me.put(
            f"/serverless/files/file/multipart/{name}/{begun['upload_id']}/1", files={"file_upload": MARK.encode()}
        )
        assert part.status_code == 200, part.text
        return {"file": name, "upload_id": begun["upload_id"]}

    def key(self) -> str:
        return self.world.key("me", f"{MARK}-{uuid.uuid4().hex[:6]}")[0]

    def drain(self) -> str:
        self.no_drains("me")
        made = self.me.post("/serverless/log-drains", json=drain())
        assert made.status_code == 201, made.text
        return str(made.json()["drain_id"])

    def no_drains(self, key: str) -> None:
        """An account has one drain at a time."""
        with self.world.client(key) as client:
            for each in client.get("/serverless/log-drains").json()["drains"]:
                client.delete(f"/serverless/log-drains/{each['drain_id']}")


def drain() -> Options:
    return {"url": f"https://127.0.0.1:9/{MARK}", "secret": "s" * 64}


@dataclass(frozen=True)
class Row:
    """One operation: how it is called, and what its owner and another owner get."""

    call: Callable[[Things], Options]
    """Path parameters under `path`, everything else as httpx takes it. Called anew for each call."""
    scope: str = "API"
    status: int = 200
    other: int = 200
    shows: bool = False
    """Whether the owner's answer has something of theirs, which another's must not have."""


def path(**values: str) -> Options:
    return {"path": values}


def of_app(things: Things) -> Options:
    return path(owner="me", name="vault")


def nothing(things: Things) -> Options:
    return {}


def endpoint(**params: str) -> Callable[[Things], Options]:
    return lambda things: {"params": {"endpoint_id": APP, **params}}


def ended(**params: str) -> Callable[[Things], Options]:
    """A range that is over, so that a stream ends by itself."""

    def call(things: Things) -> Options:
        now = time.time()
        start, end = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (now - 3600, now + 1))
        return {"params": {"start": start, "end": end, **params}}

    return call


def part(things: Things) -> Options:
    made = things.upload()
    return {"path": {**made, "part_number": "2"}, "files": {"file_upload": b"more"}}


def complete(things: Things) -> Options:
    etag = hashlib.md5(MARK.encode()).hexdigest()
    return {"path": things.upload(), "json": {"parts": [{"part_number": 1, "etag": etag}]}}


def fetched(things: Things) -> Options:
    return {**path(file=f"{MARK}/fetched.json"), "json": {"url": f"{things.world.server.url}/v1/meta"}}


def new_drain(things: Things) -> Options:
    for key in ("me", "you"):
        things.no_drains(key)
    return {"json": drain()}


TABLE: dict[str, Row] = {
    "serverlessListRoot": Row(nothing, shows=True),
    "serverlessListDirectory": Row(lambda t: path(dir=MARK), other=404, shows=True),
    "verifyAllFiles": Row(nothing),
    "verifyFiles": Row(lambda t: path(path=t.file()), other=404),
    "serverlessDownloadFile": Row(lambda t: path(file=t.file()), other=404, shows=True),
    "deleteFile": Row(lambda t: path(file=t.file()), other=404),
    "serverlessUploadFromUrl": Row(fetched),
    "serverlessUploadLocalFile": Row(lambda t: {**path(target_path=f"{MARK}/up"), "files": {"file_upload": b"x"}}),
    "renameFile": Row(lambda t: {**path(file=t.file()), "json": {"destination": f"{MARK}/moved"}}, other=404),
    "beginMultipartUpload": Row(lambda t: path(file=f"{MARK}/begun")),
    "uploadPart": Row(part, other=404),
    "listParts": Row(lambda t: path(upload_id=t.upload()["upload_id"]), other=404),
    "completeMultipartUpload": Row(complete, other=404),
    "cancelMultipartUpload": Row(lambda t: path(**t.upload()), other=404),
    "serverlessListRequestsByEndpoint": Row(endpoint(expand="payloads,billing"), other=403, shows=True),
    "serverlessLogsHistory": Row(nothing, shows=True),
    "serverlessLogsStream": Row(ended(), shows=True),
    "serverlessGetAnalytics": Row(endpoint(expand="summary,request_count"), other=403, shows=True),
    "serverlessGetMetrics": Row(nothing, shows=True),
    "serverlessListApps": Row(lambda t: {"params": {"expand": "endpoints"}}, shows=True),
    "serverlessGetAppQueueInfo": Row(of_app, other=403),
    "serverlessFlushAppQueue": Row(of_app, status=204, other=403),
    "serverlessGetRunnerHistory": Row(of_app, other=403),
    "serverlessListAppEvents": Row(of_app, other=403, shows=True),
    "serverlessListAppRevisions": Row(of_app, other=403, shows=True),
    "serverlessExport": Row(lambda t: {"params": {"dataset": "logs", "format": "ndjson"}}, shows=True),
    "serverlessListLogDrains": Row(lambda t: (t.drain(), {})[1], scope="ADMIN", shows=True),
    "serverlessCreateLogDrain": Row(new_drain, scope="ADMIN", status=201, other=201),
    "serverlessChangeLogDrain": Row(
        lambda t: {**path(drain_id=t.drain()), "json": {"active": False}}, scope="ADMIN", other=404
    ),
    "serverlessDeleteLogDrain": Row(lambda t: path(drain_id=t.drain()), scope="ADMIN", status=204, other=404),
    "serverlessGetUsage": Row(lambda t: {"params": {"expand": "summary"}}, scope="ADMIN", shows=True),
    "listApiKeys": Row(lambda t: {"params": {"expand": "creator_info,usage"}}, scope="ADMIN", shows=True),
    "createApiKey": Row(lambda t: {"json": {"alias": "made"}}, scope="ADMIN", status=201, other=201),
    # A key that is not there is no error, and another's is not there.
    "deleteApiKey": Row(lambda t: path(key_id=t.key()), scope="ADMIN", status=204, other=204),
    "rotateApiKey": Row(lambda t: path(key_id=t.key()), scope="ADMIN", status=201, other=404),
    "getAccountBilling": Row(lambda t: {"params": {"expand": "credits"}}, scope="ADMIN"),
    "listCredits": Row(nothing, scope="ADMIN"),
    "grantCredit": Row(lambda t: {"json": {"owner": "me", "amount": "1"}}, scope="ADMIN", status=201, other=403),
    "getFocusReport": Row(lambda t: {"params": {"source": "estimate"}}, scope="ADMIN", shows=True),
    "getMeta": Row(nothing, scope=""),
}
AIMED: list[tuple[str, Callable[[Things], Options]]] = [
    ("serverlessListRequestsByEndpoint", lambda t: {"params": {"endpoint_id": APP, "request_id": t.request_id}}),
    ("serverlessListRequestsByEndpoint", lambda t: {"params": {"endpoint_id": f"you/vault,{APP}"}}),
    ("serverlessLogsHistory", lambda t: {"params": {"app_id": APP}}),
    ("serverlessLogsHistory", lambda t: {"params": {"app_id": f"you/vault,{APP}"}}),
    ("serverlessLogsStream", ended(app_id=APP)),
    (
        "serverlessGetAnalytics",
        lambda t: {"params": {"endpoint_id": f"you/vault,{APP}", "expand": "summary,request_count"}},
    ),
    ("serverlessExport", lambda t: {"params": {"dataset": "requests", "format": "csv", "app_id": APP}}),
]
"""Calls of another owner that name things of `me` outright: each is 403."""
UNNAMED: list[tuple[str, Callable[[Things], Options]]] = [
    ("serverlessLogsHistory", lambda t: {"params": {"request_id": t.request_id}}),
    ("serverlessLogsHistory", lambda t: {"params": {"search": MARK}}),
    ("serverlessLogsHistory", lambda t: {"json": [{"key": "fal_request_id", "value": t.request_id}]}),
    ("serverlessLogsStream", lambda t: ended(request_id=t.request_id)(t)),
    (
        "serverlessListRequestsByEndpoint",
        lambda t: {"params": {"endpoint_id": "you/vault", "request_id": t.request_id}},
    ),
    ("serverlessGetUsage", lambda t: {"params": {"expand": "summary", "app": "vault"}}),
    ("serverlessListApps", lambda t: {"params": {"search": "vault"}}),
    *(
        ("serverlessExport", lambda t, name=name: {"params": {"dataset": name, "format": "ndjson"}})
        for name in ("requests", "billing", "logs", "usage")
    ),
]
"""Calls of another owner that ask around theirs: each is 200 and has nothing of `me`."""


@pytest.fixture(scope="module")
def things(world: World) -> Iterator[Things]:
    world.owner("you")
    for owner in ("me", "you"):
        world.deploy(owner, ECHO, "vault", message=MARK if owner == "me" else "plain")
    world.deploy("me", ECHO, ONLY)
    world.keys["API"] = world.key("me", f"{MARK}-api")[1]
    world.keys["ADMIN"] = world.keys["me"]
    world.keys["other owner"] = world.keys["you"]
    world.keys["other owner's API"] = world.key("you", "api")[1]
    revoked, world.keys["revoked"] = world.key("me", "revoked")
    ends = int(time.time()) + 3
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    world.keys["expired"] = world.key("me", "expired", expires_at=soon)[1]
    with world.client("me") as me, world.caller("me") as caller, world.caller("you") as you:
        assert me.delete(f"/keys/{revoked}").status_code == 204
        made = Things(world, me)
        answer = caller.post("/queue/me/vault", json={"print": MARK, "payload": MARK})
        made.request_id = answer.json()["request_id"]
        finished(caller, APP, made.request_id)
        assert you.post("/run/you/vault", json={"print": "plain"}).status_code == 200
        made.revision = me.get("/serverless/apps/me/vault/revisions").json()["revisions"][0]["revision_id"]
        made.file()
        time.sleep(max(0.0, ends + 0.1 - time.time()))
        yield made
        for key in ("me", "you"):
            made.no_drains(key)


@pytest.fixture(scope="module")
def page(world: World) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each operation that is served, by its id."""
    paths = world.wire.get("/openapi.json").json()["paths"]
    return {
        one["operationId"]: (method.upper(), path, one) for path, item in paths.items() for method, one in item.items()
    }


def header(world: World, caller: str) -> str | None:
    key = world.keys["me"]
    crooked = {
        "none": None,
        "malformed": "Key nonsense",
        "bearer": f"Bearer {key}",
        "unknown": "Key nobody:secret",
        "wrong secret": f"Key {key.split(':')[0]}:wrong",
    }
    return crooked[caller] if caller in crooked else f"Key {world.keys[caller]}"


def ask(world: World, operation: tuple[str, str, Any], caller: str, options: Options) -> httpx.Response:
    """One call, its answer read to the end."""
    method, path, _ = operation
    path = path.format(**options.get("path", {}))
    rest = {name: value for name, value in options.items() if name != "path"}
    value = header(world, caller)
    headers = {"Authorization": value} if value else {}
    return world.wire.request(method, f"/v1{path}", headers=headers, **rest)


def shown(things: Things, answer: httpx.Response) -> list[str]:
    """What of `me` is in an answer."""
    found = f"{answer.text} {list(answer.headers.items())}"
    theirs = (MARK, ONLY, APP, things.request_id, things.revision, things.world.keys["me"].split(":")[0])
    return [each for each in theirs if each in found]


def leaks(things: Things, answer: httpx.Response, options: Options) -> list[str]:
    """What of `me` is in an answer, apart from what the caller said."""
    said = f"{options} {answer.request.url}"
    return [each for each in shown(things, answer) if each not in said]


def test_every_operation_that_is_served_is_in_the_table(page: dict[str, Any]) -> None:
    assert set(page) == set(TABLE)


def test_the_page_asks_for_the_keys_that_the_table_has(page: dict[str, Any]) -> None:
    asked = {name: [next(iter(one)) for one in page[name][2].get("security", [])] for name in TABLE}
    wanted = {"API": ["apiKey"], "ADMIN": ["adminApiKey"], "": []}
    assert asked == {name: wanted[row.scope] for name, row in TABLE.items()}


@pytest.mark.parametrize("name", TABLE)
def test_without_a_key_that_holds_nothing_is_done_or_shown(
    world: World, things: Things, page: dict[str, Any], name: str
) -> None:
    row = TABLE[name]
    options = row.call(things)
    for caller in STRANGERS:
        answer = ask(world, page[name], caller, options)
        assert answer.status_code == (401 if row.scope else 200), (caller, answer.text)
        if row.scope:
            error = answer.json()["error"]
            assert error["type"] == "authorization_error"
            assert error["request_id"] == answer.headers["x-request-id"]
        assert not leaks(things, answer, options)


@pytest.mark.parametrize("name", TABLE)
def test_the_owners_keys_do_what_their_scope_allows(
    world: World, things: Things, page: dict[str, Any], name: str
) -> None:
    row = TABLE[name]
    for caller in ("API", "ADMIN"):
        options = row.call(things)
        answer = ask(world, page[name], caller, options)
        if row.scope == "ADMIN" and caller == "API":
            assert answer.status_code == 403, answer.text
            assert answer.json()["error"]["type"] == "authorization_error"
            continue
        assert answer.status_code == row.status, (caller, answer.text)
        assert shown(things, answer) or not row.shows, "the owner sees nothing of their own"


@pytest.mark.parametrize("name", TABLE)
def test_another_owner_gets_at_nothing(world: World, things: Things, page: dict[str, Any], name: str) -> None:
    row = TABLE[name]
    for caller in ("other owner", "other owner's API"):
        options = row.call(things)
        answer = ask(world, page[name], caller, options)
        wanted = 403 if row.scope == "ADMIN" and caller.endswith("API") else row.other
        assert answer.status_code == wanted, (caller, answer.text)
        assert not leaks(things, answer, options), answer.text


@pytest.mark.parametrize(("name", "call"), AIMED)
def test_naming_what_is_anothers_is_refused(
    world: World, things: Things, page: dict[str, Any], name: str, call: Callable[[Things], Options]
) -> None:
    options = call(things)
    answer = ask(world, page[name], "other owner", options)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")
    assert not leaks(things, answer, options)


@pytest.mark.parametrize(("name", "call"), UNNAMED)
def test_asking_around_finds_only_ones_own(
    world: World, things: Things, page: dict[str, Any], name: str, call: Callable[[Things], Options]
) -> None:
    options = call(things)
    answer = ask(world, page[name], "other owner", options)
    assert answer.status_code == 200, answer.text
    assert not leaks(things, answer, options), answer.text


def test_what_another_owner_tried_changed_nothing(world: World, things: Things, page: dict[str, Any]) -> None:
    file, upload, (key_id, key) = things.file(), things.upload(), world.key("me", f"{MARK}-kept")
    drain_id = things.drain()
    for name, options in (
        ("deleteFile", path(file=file)),
        ("renameFile", {**path(file=file), "json": {"destination": "stolen"}}),
        ("cancelMultipartUpload", path(**upload)),
        ("deleteApiKey", path(key_id=key_id)),
        ("rotateApiKey", path(key_id=key_id)),
        ("serverlessDeleteLogDrain", path(drain_id=drain_id)),
        ("serverlessChangeLogDrain", {**path(drain_id=drain_id), "json": {"active": False}}),
    ):
        ask(world, page[name], "other owner", options)
    assert things.me.get(f"/serverless/files/file/{file}").text == MARK
    assert things.me.get(f"/serverless/files/uploads/{upload['upload_id']}").status_code == 200
    assert [each["active"] for each in things.me.get("/serverless/log-drains").json()["drains"]] == [True]
    world.keys["kept"] = key
    assert ask(world, page["serverlessListApps"], "kept", {}).status_code == 200


def test_usage_rows_are_exported_with_admin_keys_only(world: World, things: Things, page: dict[str, Any]) -> None:
    options = {"params": {"dataset": "usage", "format": "ndjson"}}
    assert ask(world, page["serverlessExport"], "API", options).status_code == 403
    assert ask(world, page["serverlessExport"], "ADMIN", options).status_code == 200


def test_the_data_plane_keeps_another_owner_out_too(world: World, things: Things) -> None:
    with world.caller("you") as you:
        for method, path in (
            ("POST", "/run/me/vault"),
            ("POST", "/queue/me/vault"),
            ("GET", f"/queue/me/vault/requests/{things.request_id}/status?logs=1"),
            ("GET", f"/queue/me/vault/requests/{things.request_id}"),
            ("GET", f"/queue/you/vault/requests/{things.request_id}"),
            ("PUT", f"/queue/you/vault/requests/{things.request_id}/cancel"),
        ):
            answer = you.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code in (401, 403, 404), (method, path, answer.text)
            assert MARK not in answer.text
