from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.gateway.rig import Rig, listening, rig
from varvel.gateway.webhooks import LONGEST_PAUSE, pause_after

pytestmark = pytest.mark.asyncio(loop_scope="session")
Hook = tuple[dict[str, str], bytes]


class Receiver:
    """Takes webhooks and answers the statuses that it was given, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.hooks: list[Hook] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.hooks.append(({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        status = self.statuses.pop(0) if self.statuses else 200
        headers = [(b"content-length", b"0"), (b"location", b"/elsewhere")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def wait(self, count: int) -> Hook:
        for _ in range(600):
            if len(self.hooks) >= count:
                return self.hooks[count - 1]
            await asyncio.sleep(0.02)
        raise AssertionError(f"{len(self.hooks)} webhooks came, not {count}")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A gateway that may call loopback addresses."""
    async with rig(tmp_path_factory.mktemp("hooks"), egress_private=True) as running:
        running.apps.add("echo", "app")
        yield running


async def _submit(own: Rig, url: str, body: dict[str, Any]) -> str:
    client = await own.client()
    answer = await client.post("/queue/me/echo", params={"fal_webhook": f"{url}/hook?a=1"}, json=body)
    return str(answer.json()["request_id"])


async def _owed(own: Rig) -> int:
    return int(await own.database.read(lambda db: db.execute("SELECT count(*) FROM webhooks").fetchone()[0]))


async def _settled(own: Rig) -> None:
    for _ in range(200):
        if await _owed(own) == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a webhook is still owed")


async def test_an_end_is_posted_signed_so_that_the_documented_check_accepts_it(own: Rig) -> None:
    receiver = Receiver()
    async with listening(receiver) as url:
        request_id = await _submit(own, url, {"n": 1})
        headers, body = await receiver.wait(1)
        said = json.loads(body)
        assert (said["request_id"], said["gateway_request_id"], said["status"]) == (request_id, request_id, "OK")
        assert said["payload"]["asked"] == {"n": 1}
        assert "error" not in said
        assert headers["content-type"] == "application/json"

        [key] = (await (await own.client(None)).get("/.well-known/jwks.json")).json()["keys"]
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
        names = ("request-id", "user-id", "timestamp")
        values = [headers[f"x-fal-webhook-{name}"] for name in names]
        assert values[:2] == [request_id, "me"]
        assert abs(int(values[2]) - time.time()) < 300
        message = "\n".join([*values, hashlib.sha256(body).hexdigest()]).encode()
        signature = bytes.fromhex(headers["x-fal-webhook-signature"])
        public.verify(signature, message)
        with pytest.raises(InvalidSignature):
            public.verify(signature, message + b"x")
        await _settled(own)


async def test_an_error_of_the_app_is_an_error_with_its_body(own: Rig) -> None:
    receiver = Receiver()
    async with listening(receiver) as url:
        await _submit(own, url, {"status": 422})
        said = json.loads((await receiver.wait(1))[1])
        assert (said["status"], said["error"]) == ("ERROR", "Invalid status code: 422")
        assert said["payload"]["asked"] == {"status": 422}


async def test_an_answer_that_is_not_json_is_named_as_such(own: Rig) -> None:
    receiver = Receiver()
    async with listening(receiver) as url:
        await _submit(own, url, {"answer": 5})
        said = json.loads((await receiver.wait(1))[1])
        assert (said["status"], said["payload"]) == ("OK", None)
        assert said["payload_error"]


async def test_a_receiver_that_fails_is_asked_again_until_it_takes_it(own: Rig) -> None:
    receiver = Receiver(500)
    async with listening(receiver) as url:
        await _submit(own, url, {})
        first, second = await receiver.wait(1), await receiver.wait(2)
        assert first[1] == second[1]
        await _settled(own)


async def test_a_redirect_is_not_followed_and_ends_it(own: Rig) -> None:
    receiver = Receiver(307)
    async with listening(receiver) as url:
        await _submit(own, url, {})
        await receiver.wait(1)
        await _settled(own)
        assert len(receiver.hooks) == 1


async def test_a_private_address_is_never_called(tmp_path: Path) -> None:
    receiver = Receiver()
    async with listening(receiver) as url, rig(tmp_path) as own:
        own.apps.add("echo", "app")
        request_id = await _submit(own, url, {})
        await own.record(request_id)
        await _settled(own)
        assert not receiver.hooks


async def test_what_is_owed_when_the_server_stops_is_delivered_by_the_next(tmp_path: Path) -> None:
    receiver = Receiver(500)
    async with listening(receiver) as url:
        async with rig(tmp_path, egress_private=True) as first:
            first.apps.add("echo", "app")
            request_id = await _submit(first, url, {})
            await receiver.wait(1)
            assert await _owed(first) == 1
        async with rig(tmp_path, egress_private=True) as second:
            headers, _ = await receiver.wait(2)
            assert headers["x-fal-webhook-request-id"] == request_id
            await _settled(second)


async def test_pauses_grow_up_to_a_bound() -> None:
    pauses = [pause_after(tries) for tries in range(1, 32)]
    assert pauses[:3] == [2, 4, 8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
