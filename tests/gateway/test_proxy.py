from __future__ import annotations

import asyncio

import pytest

from tests.gateway.rig import Rig
from varvel.gateway.hosts import local_path

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_proxy_serves_what_clients_send_to_their_built_in_hosts(shared: Rig) -> None:
    client = await shared.client()

    async def through(method: str, target: str, **options: object) -> object:
        headers = {"x-fal-target-url": target}
        answer = await client.request(method, "/proxy", headers=headers, **options)  # type: ignore[arg-type]
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    ran = await through("POST", "https://fal.run/me/echo/sub?a=1", json={"n": 1})
    assert isinstance(ran, dict)
    assert (ran["path"], ran["query"], ran["asked"]) == ("/sub", "a=1", {"n": 1})
    assert "x-fal-target-url" not in ran["headers"]
    queued = await through("POST", "https://queue.fal.run/me/echo", json={})
    assert isinstance(queued, dict)
    url = f"https://queue.fal.run/me/echo/requests/{queued['request_id']}"
    assert queued["status_url"].startswith(f"{shared.url}/queue/me/echo/")
    status: object = {}
    while not isinstance(status, dict) or status.get("status") != "COMPLETED":
        status = await through("GET", f"{url}/status?logs=1")
        await asyncio.sleep(0.02)
    assert isinstance(await through("GET", url), dict)
    assert isinstance(await through("POST", "https://rest.fal.ai/tokens/", json={"allowed_apps": ["echo"]}), str)
    place = await through("POST", "https://rest.fal.ai/storage/upload/initiate", json={"file_name": "a"})
    assert isinstance(place, dict)
    assert set(place) == {"upload_url", "file_url"}


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (None, 400),
        ("https://example.com/x", 412),
        ("http://127.0.0.1/run/me/echo", 412),
        ("https://fal.run.evil.example/me/echo", 412),
        ("https://rest.fal.ai/proxy", 412),
        ("https://rest.fal.ai/v1/keys", 412),
        ("nonsense", 412),
        ("https://[", 400),
        ("https://fal.run/me/nothing", 404),
    ],
)
async def test_the_proxy_leads_nowhere_else(shared: Rig, target: str | None, status: int) -> None:
    client = await shared.client()
    answer = await client.post("/proxy", json={}, headers={"x-fal-target-url": target} if target else {})
    assert answer.status_code == status


async def test_the_proxy_lends_nobody_a_key(shared: Rig) -> None:
    client = await shared.client(None)
    answer = await client.post("/proxy", json={}, headers={"x-fal-target-url": "https://fal.run/me/echo"})
    assert answer.status_code == 401


async def test_hosts_are_known_by_their_exact_names() -> None:
    assert local_path("FAL.run", "/me/x") == "/run/me/x"
    assert local_path("queue.fal.run", "/me/x") == "/queue/me/x"
    assert local_path("rest.fal.ai", "/tokens/") == "/tokens/"
    assert local_path("xfal.run", "/me/x") is None
