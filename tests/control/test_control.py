from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tests.apps.world import Logs, Runners

from varvel.apps.catalog import SqliteCatalog
from varvel.apps.deploy import Deployer
from varvel.auth.keys import KeyStore
from varvel.auth.limits import RateLimits
from varvel.control.api import ControlParts, build
from varvel.runners.model import Pool
from varvel.settings import Settings
from varvel.state.database import Database

ECHO = "async def app(scope, receive, send): ...\n"


class Idle(Runners):
    """No runners at all."""

    def runners(self, app: object = None) -> list[Any]:
        return []


@dataclass
class Control:
    """The control API on a real database, called without a socket."""

    client: httpx.AsyncClient
    keys: KeyStore
    key: str

    async def call(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        return await self.client.request(method, path, headers={"authorization": f"Key {key or self.key}"}, **options)

    async def deploy(self, order: dict[str, Any], text: str = ECHO, key: str | None = None) -> list[dict[str, Any]]:
        form = {"order": json.dumps(order)}
        reply = await self.call("POST", "/control/deploy", key, data=form, files={"files": tar(text)})
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]


def tar(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("app.py")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    settings = Settings(data=tmp_path)
    database = Database.open(tmp_path / "state.db")
    keys = KeyStore(database)
    await keys.start()
    key = await keys.bootstrap(tmp_path)
    assert key is not None
    catalog = SqliteCatalog(database)
    await catalog.start()
    runners = Idle()
    parts = ControlParts(
        settings=settings,
        authenticator=keys,
        keys=keys,
        limits=RateLimits(0),
        catalog=catalog,
        deployer=Deployer(settings, catalog, runners, Logs(), lambda event: None),
        pool=cast(Pool, runners),
        ready=lambda: {"ready": True, "telemetry": "up"},
    )
    transport = httpx.ASGITransport(build(parts))
    async with httpx.AsyncClient(transport=transport, base_url="http://control", timeout=60) as client:
        yield Control(client, keys, key)
    await database.close()


async def test_a_deployment_tells_its_lines_and_then_its_revision(control: Control) -> None:
    *lines, last = await control.deploy({"target": "app.py", "options": {"name": "thing", "env": {"TOKEN": "s3"}}})
    assert [item["line"]["message"] for item in lines][:1] == ["deploying me/thing"]
    assert last["revision"]["app"] == "me/thing"
    assert last["revision"]["is_current"] is True
    assert last["revision"]["endpoints"] == ["me/thing"]
    assert "s3" not in json.dumps(last), "values of the environment may be secrets"


async def test_a_refused_deployment_ends_in_an_error_with_its_status(control: Control) -> None:
    *lines, last = await control.deploy({"target": "app.py"}, "1 / 0\n")
    assert last["status"] == 400
    assert last["error"]["type"] == "validation_error"
    assert "ZeroDivisionError" in last["error"]["message"]
    assert any("ZeroDivisionError" in item["line"]["message"] for item in lines)


@pytest.mark.parametrize(
    ("form", "files", "said"),
    [
        ({"order": "{"}, {"files": b"x"}, "order"),
        ({"order": "{}"}, {"files": b"x"}, "order.target"),
        ({"order": '{"target": "app.py", "x": 1}'}, {"files": b"x"}, "order.x"),
        ({"order": '{"target": "app.py", "options": {"x": 1}}'}, {"files": b"x"}, "no setting 'x'"),
        ({"order": '{"target": "app.py"}'}, {"files": b"x"}, "not a tar"),
        ({"order": '{"target": "app.py"}'}, {}, "files"),
        ({}, {"files": b"x"}, "order"),
    ],
)
async def test_a_malformed_deployment_is_a_400_that_says_what_is_wrong(
    control: Control, form: dict[str, str], files: dict[str, bytes], said: str
) -> None:
    reply = await control.call("POST", "/control/deploy", data=form, files=files or None)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "validation_error"
    assert said in reply.json()["error"]["message"]
    assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"]


async def test_an_app_can_be_shown_scaled_and_deleted(control: Control) -> None:
    await control.deploy({"target": "app.py", "options": {"name": "thing"}})
    path = "/control/apps/me/thing"
    scaled = await control.call("PATCH", path, json={"scaling": {"keep_alive": 5}, "auth_mode": "public"})
    assert scaled.json()["scaling"]["keep_alive"] == 5
    shown = (await control.call("GET", path)).json()
    assert (shown["auth_mode"], shown["scaling"]["keep_alive"]) == ("public", 5)
    assert [item["app"] for item in (await control.call("GET", "/control/apps")).json()["apps"]] == ["me/thing"]
    assert (await control.call("DELETE", path)).status_code == 204
    assert (await control.call("GET", path)).status_code == 404


@pytest.mark.parametrize(
    "scaling", [{"max_multiplexing": 3}, {"min_concurrency": 9}, {"max_concurrency": 0}, {"colour": 1}]
)
async def test_scaling_that_cannot_be_is_refused(control: Control, scaling: dict[str, int]) -> None:
    await control.deploy({"target": "app.py", "options": {"name": "thing"}})
    reply = await control.call("PATCH", "/control/apps/me/thing", json={"scaling": scaling})
    assert reply.status_code == 400


async def test_an_earlier_revision_can_be_chosen(control: Control) -> None:
    first = (await control.deploy({"target": "app.py", "options": {"name": "thing"}}))[-1]["revision"]["revision_id"]
    await control.deploy({"target": "app.py", "options": {"name": "thing"}}, ECHO + "# 2\n")
    path = "/control/apps/me/thing/revision"
    chosen = await control.call("POST", path, json={"revision_id": first})
    assert chosen.json()["revision"]["revision_id"] == first
    assert (await control.call("POST", path, json={"revision_id": "nope"})).status_code == 404
    listed = (await control.call("GET", "/control/apps/me/thing/revisions")).json()["revisions"]
    assert [item["is_current"] for item in listed] == [False, True]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/control/apps"),
        ("GET", "/control/apps/me/thing"),
        ("DELETE", "/control/apps/me/thing"),
        ("PATCH", "/control/apps/me/thing"),
        ("POST", "/control/deploy"),
        ("GET", "/control/runners"),
        ("GET", "/control/owners"),
        ("POST", "/control/owners"),
        ("GET", "/control/doctor"),
    ],
)
async def test_every_operation_needs_an_admin_key(control: Control, method: str, path: str) -> None:
    weak = await control.keys.create("me", "weak")
    assert (await control.client.request(method, path)).status_code == 401
    assert (await control.call(method, path, "no:good")).status_code == 401
    refused = await control.call(method, path, weak.key)
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "authorization_error"


async def test_owners_do_not_reach_each_others_apps(control: Control) -> None:
    await control.deploy({"target": "app.py", "options": {"name": "thing"}})
    made = (await control.call("POST", "/control/owners", json={"nickname": "bob"})).json()
    assert (await control.call("GET", "/control/apps/me/thing", made["key"])).status_code == 403
    assert (await control.call("DELETE", "/control/apps/me/thing", made["key"])).status_code == 403
    assert (await control.call("GET", "/control/apps", made["key"])).json() == {"apps": []}
    theirs = await control.deploy({"target": "app.py", "options": {"name": "thing"}}, key=made["key"])
    assert theirs[-1]["revision"]["app"] == "bob/thing"


async def test_only_the_first_owner_adds_owners(control: Control) -> None:
    made = (await control.call("POST", "/control/owners", json={"nickname": "bob"})).json()
    assert (await control.call("POST", "/control/owners", made["key"], json={"nickname": "eve"})).status_code == 403
    assert (await control.call("POST", "/control/owners", json={"nickname": "bob"})).status_code == 400
    assert (await control.call("GET", "/control/owners")).json() == {"owners": ["bob", "me"]}


async def test_the_doctor_looks_at_the_machine(control: Control) -> None:
    found = (await control.call("GET", "/control/doctor")).json()
    assert {"python", "uv", "data folder"} <= {item["name"] for item in found["findings"]}
    assert all(item["mend"] for item in found["findings"] if item["state"] != "ok")
