"""Uploads of apps, spoken as `fal.toolkit` speaks it to a service of its machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.gateway.rig import Rig
from varvel.gateway.app_uploads import SOCKET, default_origin, variables
from varvel.gateway.tokens import AppCredentials
from varvel.settings import Settings

session_loop = pytest.mark.asyncio(loop_scope="session")


async def _credential(shared: Rig) -> str:
    """What an app finds in its environment."""
    client = await shared.client()
    answer = await client.post("/run/me/echo", json={"env": "FAL_KEY"})
    return str(answer.json())


@asynccontextmanager
async def _service(shared: Rig, key: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(shared.pool.sockets / SOCKET))
    headers = {"Authorization": f"Key {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        yield client


@session_loop
async def test_a_whole_file_is_taken_and_served(shared: Rig) -> None:
    async with _service(shared, await _credential(shared)) as app:
        headers = {"x-fal-file-name": "a b.txt", "content-type": "text/plain", "x-fal-public-url": shared.url}
        taken = await app.post("/v1/uploads", content=b"made by an app", headers=headers)
        said = taken.json()
        assert (taken.status_code, said["state"]) == (202, "accepted_local")
        state = await app.get(f"/v1/uploads/{said['upload_id']}", params={"wait": 60})
        assert state.json()["state"] == "completed"
    read = await (await shared.client(None)).get(said["file_url"])
    assert (read.content, read.headers["content-type"]) == (b"made by an app", "text/plain")
    assert said["file_url"].endswith("/a_b.txt")


@session_loop
async def test_a_file_of_unknown_size_is_taken_when_all_of_it_has_come(shared: Rig) -> None:
    async with _service(shared, await _credential(shared)) as app:
        opened = await app.post("/v1/upload-sessions", headers={"x-fal-public-url": shared.url})
        session = opened.json()
        assert (opened.status_code, session["state"], session["cdn_signing_requested"]) == (201, "receiving", False)
        path = f"/v1/upload-sessions/{session['upload_id']}"
        assert (await app.put(f"{path}/body", content=b"123456")).status_code == 204
        assert (await app.post(f"{path}/finish", json={"size_bytes": 5})).status_code == 500
        finished = await app.post(f"{path}/finish", json={"size_bytes": 6})
        assert (finished.status_code, finished.json()["state"]) == (202, "accepted_local")
        reader = await shared.client(None)
        assert (await reader.get(session["file_url"])).content == b"123456"
        given_up = (await app.post("/v1/upload-sessions", headers={"x-fal-public-url": shared.url})).json()
        path = f"/v1/upload-sessions/{given_up['upload_id']}"
        await app.put(f"{path}/body", content=b"1")
        assert (await app.delete(path)).status_code == 202
        assert (await reader.get(given_up["file_url"])).status_code == 404
        assert (await app.post(f"{path}/finish", json={"size_bytes": 1})).status_code == 500


@session_loop
async def test_what_cannot_be_taken_is_never_4xx_which_would_lead_the_app_elsewhere(shared: Rig) -> None:
    key = await _credential(shared)
    bad_lifecycle = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": -1}'}
    async with _service(shared, key) as app:
        assert (await app.post("/v1/uploads", content=b"x", headers=bad_lifecycle)).status_code == 500
        assert (await app.post("/v1/nothing")).status_code == 500
        assert (await app.put("/v1/upload-sessions/nothing/body", content=b"x")).status_code == 500
    for wrong in (key + "0", "other" + key[key.index(":") :], "a:b"):
        async with _service(shared, wrong) as app:
            assert (await app.post("/v1/uploads", content=b"x")).status_code == 500


@session_loop
async def test_the_lifecycle_of_the_request_holds_for_what_the_app_makes(shared: Rig) -> None:
    async with _service(shared, await _credential(shared)) as app:
        headers = {"x-fal-public-url": shared.url, "x-fal-object-lifecycle": '{"initial_acl": {"default": "hide"}}'}
        said = (await app.post("/v1/uploads", content=b"hidden", headers=headers)).json()
    assert (await (await shared.client("other")).get(said["file_url"])).status_code == 404
    assert (await (await shared.client()).get(said["file_url"])).content == b"hidden"


@session_loop
async def test_the_credential_is_good_for_uploads_only_and_works_at_the_front_door_too(shared: Rig) -> None:
    key = await _credential(shared)
    stranger = await shared.client(None, follow_redirects=False)
    headers = {"Authorization": f"Key {key}"}
    order = {"file_name": "x.txt", "content_type": "text/plain"}
    begun = await stranger.post("/storage/upload/initiate", json=order, headers=headers)
    assert begun.status_code == 200
    assert (await stranger.put(begun.json()["upload_url"], content=b"front")).status_code == 200
    assert (await stranger.post("/run/me/echo", json={}, headers=headers)).status_code == 401
    assert (await stranger.post("/tokens/", json={"allowed_apps": ["echo"]}, headers=headers)).status_code == 401


@session_loop
async def test_an_apps_own_key_of_this_server_counts_too(shared: Rig) -> None:
    async with _service(shared, shared.keys["other"]) as app:
        headers = {"x-fal-public-url": shared.url, "x-fal-object-lifecycle": '{"initial_acl": {"default": "hide"}}'}
        said = (await app.post("/v1/uploads", content=b"theirs", headers=headers)).json()
    assert (await (await shared.client("other")).get(said["file_url"])).content == b"theirs"


def test_each_owner_has_a_credential_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sockets")
    mine, theirs = (variables(b"secret", owner, folder)["FAL_KEY"] for owner in ("me", "other"))
    apps = AppCredentials(b"secret")
    assert mine != theirs
    assert (apps.owner(f"Key {mine}"), apps.owner(f"key {theirs}")) == ("me", "other")
    assert apps.owner(f"Bearer {mine}") is apps.owner(None) is apps.owner("Key") is None


def test_the_origin_that_no_request_told_is_the_servers_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("data")
    assert default_origin(Settings(data=data, port=1)) == "http://127.0.0.1:1"
    assert default_origin(Settings(data=data, host="0.0.0.0", port=1)) == "http://localhost:1"
    assert default_origin(Settings(data=data, host="::1", port=1)) == "http://[::1]:1"
    assert default_origin(Settings(data=data, public_url="https://x.test/")) == "https://x.test"
