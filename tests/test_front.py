"""The front door: where paths lead, browsers of other origins, and bounds on headers."""

from __future__ import annotations

import json
from typing import Any

from varvel.front import Front, Message, Receive, Scope, Send


class _Health:
    def __init__(self) -> None:
        self.is_ready = True

    def ready(self) -> dict[str, Any]:
        return {"ready": self.is_ready}

    def metrics(self) -> bytes:
        return b"varvel_up 1\n"


async def _room(scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-room", scope["path"].encode())]})
    await send({"type": "http.response.body", "body": b"room"})


async def _call(
    front: Front, path: str, *, method: str = "GET", headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await front({"type": "http", "path": path, "method": method, "headers": headers or []}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(item["body"] for item in sent[1:])


def _front(health: _Health | None = None) -> Front:
    return Front({"run": _room, "v1": _room}, health or _Health(), max_headers=1000)


async def test_the_first_segment_chooses_the_room() -> None:
    assert (await _call(_front(), "/run/me/echo"))[1][b"x-room"] == b"/run/me/echo"


async def test_readiness_follows_the_server() -> None:
    health = _Health()
    assert (await _call(_front(health), "/readyz"))[0] == 200
    health.is_ready = False
    assert (await _call(_front(health), "/readyz"))[0] == 503
    assert (await _call(_front(health), "/healthz"))[0] == 200


async def test_an_unknown_path_is_refused_in_the_data_plane_shape() -> None:
    status, headers, body = await _call(_front(), "/nowhere")
    assert status == 404
    assert json.loads(body) == {"detail": "Nothing is at /nowhere.", "error_type": "not_found"}
    assert b"x-fal-request-id" in headers


async def test_headers_over_the_limit_are_refused_in_the_shape_of_their_path() -> None:
    big = [(b"x-big", b"a" * 2000)]
    status, _, body = await _call(_front(), "/v1/meta", headers=big)
    assert (status, json.loads(body)["error"]["type"]) == (431, "validation_error")
    status, _, body = await _call(_front(), "/run/me/echo", headers=big)
    assert (status, json.loads(body)["error_type"]) == (431, "bad_request")


async def test_browsers_of_other_origins_may_call_and_read_request_ids() -> None:
    origin = [(b"origin", b"https://page.example")]
    asked = [*origin, (b"access-control-request-headers", b"x-fal-thing,authorization")]
    status, headers, _ = await _call(_front(), "/run/me/echo", method="OPTIONS", headers=asked)
    assert status == 204
    assert b"x-fal-thing" in headers[b"access-control-allow-headers"]
    assert b"x-request-id" not in headers
    _, headers, _ = await _call(_front(), "/v1/keys", method="OPTIONS", headers=asked)
    assert headers[b"x-request-id"]
    _, headers, _ = await _call(_front(), "/run/me/echo", headers=origin)
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"x-fal-request-id" in headers[b"access-control-expose-headers"]
