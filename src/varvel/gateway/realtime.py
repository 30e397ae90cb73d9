"""WebSockets: frames go both ways untouched, one runner's place is held for as long as the connection lives."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from varvel.errors import VarvelError, data_plane_error
from varvel.gateway.asgi import JSON, Receive, Scope, Send, encode
from varvel.gateway.attempt import Attempts, failure, head_for_app, told
from varvel.gateway.headers import of_answer
from varvel.gateway.recording import Call, Recorder
from varvel.ids import Started, uuid7
from varvel.queue.model import Headers, Outcome
from varvel.runners.errors import RunnerDisconnected, RunnerError, RunnerRefused
from varvel.runners.model import Pool, Slot

OPEN_TIMEOUT = 90.0
_TRY_AGAIN = 1013
_INTERNAL = 1011
_LOST = 1006
_HANDSHAKE = frozenset(
    {
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
    }
)


class Realtime:
    """Relays WebSockets to runners, and records each once, when it is closed."""

    def __init__(self, pool: Pool, attempts: Attempts, record: Recorder) -> None:
        self._pool = pool
        self._attempts = attempts
        self._record = record

    async def refuse(self, scope: Scope, receive: Receive, send: Send, error: VarvelError) -> None:
        """Answer a handshake that may not be: 401 for a bad token as a frame that browsers' clients understand."""
        await receive()
        if error.status == 401 and b"fal_jwt_token=" in scope["query_string"]:
            await send({"type": "websocket.accept"})
            text = encode({"status": "error", "error": "Unauthorized"}).decode()
            await send({"type": "websocket.send", "text": text})
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
            return
        headers = [JSON, (b"x-fal-error-type", error.data_type.encode())]
        body = encode(data_plane_error(error.message, error.data_type))
        await _deny(scope, send, error.status, of_answer(headers, len(body), uuid7().encode(), None), body)

    async def serve(self, call: Call, forward: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """Connect to a runner and relay until either side closes."""
        await receive()
        timeout = call.app.scaling.startup_timeout if call.start_timeout is None else call.start_timeout
        slot: Slot | None = None
        started = Started()
        try:
            slot = await self._pool.acquire(call.app.app, call.hint, timeout)
            started = Started()
            async with asyncio.timeout(OPEN_TIMEOUT):
                runner = await self._connect(call, slot, forward, scope)
        except InvalidStatus as refused:
            answer = refused.response
            headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.raw_items()]
            body = bytes(answer.body or b"")
            await self._end(
                call, slot, Outcome(status=answer.status_code, headers=headers, body=b"", **_times(started))
            )
            kept = [item for item in headers if item[0] == b"content-type"]
            await _deny(scope, send, answer.status_code, _head(call, slot, kept, len(body)), body)
            return
        except (RunnerError, OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as problem:
            error = (
                told(problem, call.caller, call.app.app.owner) if isinstance(problem, RunnerError) else RunnerRefused()
            )
            outcome = failure(error, started=started, slot=slot)
            await self._end(call, slot, outcome)
            await _deny(
                scope, send, outcome.status, _head(call, slot, outcome.headers, len(outcome.body)), outcome.body
            )
            return
        except BaseException:
            if slot is not None:
                slot.release()
            raise
        status = 499
        try:
            await send(
                {
                    "type": "websocket.accept",
                    "subprotocol": runner.subprotocol,
                    "headers": [(b"x-fal-request-id", call.request_id.encode())],
                }
            )
            status = await _relay(runner, receive, send)
        finally:
            runner.transport.abort()
            if status == 503:
                outcome = failure(RunnerDisconnected(), started=started, slot=slot)
            else:
                outcome = Outcome(status=status, headers=[], body=b"", **_times(started))
            await self._end(call, slot, outcome)

    async def _connect(self, call: Call, slot: Slot, forward: Headers, scope: Scope) -> ClientConnection:
        headers = head_for_app(
            [item for item in forward if item[0] not in _HANDSHAKE],
            request_id=call.request_id,
            caller=call.caller,
            owner=call.app.app.owner,
            path=call.path,
            length=None,
        )
        protocols = [Subprotocol(item) for item in scope.get("subprotocols", ())]
        return await unix_connect(
            slot.socket,
            f"ws://runner{call.target.decode('latin-1')}",
            additional_headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
            subprotocols=protocols or None,
            compression=None,
            max_size=None,
            ping_interval=None,
            open_timeout=None,
            user_agent_header=None,
            proxy=None,
        )

    async def _end(self, call: Call, slot: Slot | None, outcome: Outcome) -> None:
        if slot is not None:
            outcome.runner_id = slot.runner_id
            outcome.revision = slot.revision_id
            outcome.machine_type = slot.machine_type
            outcome.cold_boot = slot.cold_boot
            if outcome.status == 499:
                self._attempts.ask_to_cancel(
                    slot,
                    path=call.path,
                    request_id=call.request_id,
                    caller=call.caller,
                    owner=call.app.app.owner,
                    release=True,
                )
            else:
                slot.release(kill=outcome.status == 503, health_check=outcome.status in (500, 502, 504))
        await self._record(call, outcome, "realtime", b"")


async def _relay(runner: ClientConnection, receive: Receive, send: Send) -> int:
    """Relay until one side closes; the status to record: 200, 499 (client gone) or 503 (runner gone)."""
    up = asyncio.ensure_future(_up(runner, receive))
    down = asyncio.ensure_future(_down(runner, send))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            code, reason = up.result()
            await runner.close({1005: 1000, _LOST: 1001}.get(code, code), reason)
            return 499 if code == _LOST else 200
        down.result()
        code, reason = runner.close_code or _LOST, runner.close_reason or ""
        if code == _LOST:
            await send({"type": "websocket.close", "code": _INTERNAL, "reason": "The runner closed the connection"})
            return 503
        await send({"type": "websocket.close", "code": 1000 if code == 1005 else code, "reason": reason})
        return 500 if code == _INTERNAL else 200
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _up(runner: ClientConnection, receive: Receive) -> tuple[int, str]:
    """Frames of the client; gives the code and reason with which it closed."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code", 1005)
            # uvicorn says 1005 of a connection that was lost, too; only a close frame has a reason, if an empty one.
            lost = code == 1005 and "reason" not in message
            return _LOST if lost else code, message.get("reason") or ""
        text = message.get("text")
        try:
            await runner.send(message["bytes"] if text is None else text)
        except ConnectionClosed:
            await asyncio.Event().wait()  # the other direction sees how it closed


async def _down(runner: ClientConnection, send: Send) -> None:
    """Frames of the runner, until it closes."""
    try:
        while True:
            frame = await runner.recv()
            message: dict[str, Any] = {"type": "websocket.send"}
            message["text" if isinstance(frame, str) else "bytes"] = frame
            await send(message)
    except ConnectionClosed:
        return


def _times(started: Started) -> dict[str, Any]:
    return {"started_at": started.at, "ended_at": started.ended()}


def _head(call: Call, slot: Slot | None, headers: Headers, length: int) -> Headers:
    return of_answer(list(headers), length, call.request_id.encode(), slot.runner_id.encode() if slot else None)


async def _deny(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Refuse a handshake with a whole HTTP reply, where the server can; else it becomes 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _TRY_AGAIN if status == 503 else 1008})
        return
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
