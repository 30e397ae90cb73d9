"""The queue over HTTP: submit, status, its stream, result, cancel. Shapes and codes as in `docs/calling.md`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs

from varvel.apps.model import App
from varvel.egress import check_url
from varvel.errors import InvalidRequest, TelemetryUnavailable, VarvelError
from varvel.gateway.access import Access
from varvel.gateway.asgi import Receive, Scope, Send, answer, answer_json, answer_not_found, encode
from varvel.gateway.attempt import spill_path
from varvel.gateway.bodies import pieces_of, spill, take
from varvel.gateway.headers import CallHeaders, of_answer
from varvel.gateway.routes import RequestTarget, Target, without_fal_parameters
from varvel.gateway.webhooks import Webhooks
from varvel.ids import is_uuid, iso_micros
from varvel.queue.model import Job, JobState, JobStatus, Outcome
from varvel.queue.troubles import Troubles
from varvel.settings import Settings
from varvel.telemetry.model import LogRow

LOGS_EVERY = 0.25
"""Seconds between looks for new log lines of a streamed status."""
_LEVELS = {"trace": "DEBUG", "warning": "WARN"}


class Scheduler(Protocol):
    """What the gateway needs of the scheduler."""

    async def submit(self, job: Job, max_queue_length: int | None = None) -> int: ...
    async def status(self, request_id: str) -> JobStatus | None: ...
    def watch(self, request_id: str) -> AsyncIterator[JobStatus]: ...
    async def result(self, request_id: str) -> tuple[Job, Outcome] | None: ...
    async def cancel(self, request_id: str) -> Literal["cancelled", "requested", "completed"] | None: ...


class RequestLogs(Protocol):
    """What the gateway needs of telemetry."""

    async def request_logs(self, request_id: str, after_ts: int = 0) -> list[LogRow]:
        """Lines of a request that were taken after `after_ts`, in order."""
        ...


class QueueCalls:
    """Serves `/queue/...`."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        scheduler: Scheduler,
        logs: RequestLogs,
        webhooks: Webhooks,
        troubles: Troubles,
    ) -> None:
        self._settings = settings
        self._access = access
        self._scheduler = scheduler
        self._logs = logs
        self._webhooks = webhooks
        self._troubles = troubles

    # Submit

    async def submit(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        target: Target,
        app: App,
        caller: str | None,
        call: CallHeaders,
        request_id: str,
        arrived: float,
    ) -> None:
        """Take a request into the queue; the reply leaves when it is on disk.

        Raises `InvalidRequest`, `TooLarge`, `QueueFull`, `StorageFull`, `ClientGone`.
        """
        query: bytes = scope["query_string"]
        webhook, most = _parameters(query)
        settings = self._settings
        body = await take(receive, call.content_length, buffer=settings.buffer_body, most=settings.max_body)
        job = Job(
            request_id=request_id,
            app=app.app,
            endpoint_id=app.endpoint_id(target.path),
            path=target.path,
            query=without_fal_parameters(query),
            method=scope["method"],
            headers=call.forward,
            body=body if isinstance(body, bytes) else b"",
            low=call.low,
            caller=caller,
            submitted_at=arrived,
            start_deadline=None if call.start_timeout is None else arrived + call.start_timeout,
            webhook=webhook,
            hint=call.hint,
            no_retry=call.no_retry,
            retry_config=call.retry_config if caller == app.app.owner else None,
            store_io=call.store_io,
            gateway_request_id=request_id,
        )
        if not isinstance(body, bytes):
            job.body_file = spill_path(settings, request_id)
            await spill(body, job.body_file)
        try:
            if webhook is not None:
                await self._webhooks.expect(request_id)
            position = await self._scheduler.submit(job, most)
        except VarvelError:
            # Refused, so nothing refers to the file; after any other end the job may be in line.
            if job.body_file is not None:
                await asyncio.to_thread(job.body_file.unlink, missing_ok=True)
            raise
        self._troubles.submitted(app.app, request_id)
        urls = self._urls(scope, target.prefix, request_id)
        reply = {"status": "IN_QUEUE", "request_id": request_id, "gateway_request_id": request_id, **urls}
        await answer_json(send, 200, {**reply, "queue_position": position}, request_id)

    def _urls(self, scope: Scope, prefix: str, request_id: str) -> dict[str, str]:
        base = f"{public_url(self._settings, scope)}/queue/{prefix}/requests/{request_id}"
        return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}

    # What is asked about a request

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, asked: RequestTarget, authorization: str | None
    ) -> None:
        """Answer for a request. Raises `AuthenticationRequired`."""
        request_id = asked.request_id
        status = await self._scheduler.status(request_id) if is_uuid(request_id) else None
        if status is None or not self._access.may_see(status.job, asked.app, authorization):
            self._access.may_ask(asked.app, authorization)
            await answer_not_found(send, request_id if is_uuid(request_id) else None)
        elif asked.operation == "status":
            wanted = _logs_wanted(scope)
            lines = await self._lines(request_id, 0) if wanted else None
            shape = self._shape(scope, asked, status, lines)
            await answer_json(send, 200 if status.state is JobState.DONE else 202, shape, request_id)
        elif asked.operation == "stream":
            await self._stream(scope, receive, send, asked)
        elif asked.operation == "result":
            await self._result(send, status, request_id)
        else:
            await self._cancel(send, request_id)

    def _shape(
        self, scope: Scope, asked: RequestTarget, status: JobStatus, lines: list[LogRow] | None
    ) -> dict[str, Any]:
        """The status object. `logs` is always there, null unless asked for."""
        shape: dict[str, Any] = {
            "status": ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")[status.state],
            "request_id": asked.request_id,
            "gateway_request_id": status.job.gateway_request_id or asked.request_id,
            **self._urls(scope, asked.prefix, asked.request_id),
            "logs": None if lines is None else [log_entry(line) for line in lines],
            "metrics": {},
        }
        outcome = status.outcome
        if status.state is JobState.QUEUED:
            shape["queue_position"] = status.position
        elif status.state is JobState.DONE and outcome is not None:
            ran = outcome.runner_id is not None
            shape["metrics"] = {"inference_time": outcome.ended_at - outcome.started_at if ran else None}
            if outcome.status >= 400:
                shape["error"] = outcome.error or f"Invalid status code: {outcome.status}"
                if outcome.error_type:
                    shape["error_type"] = outcome.error_type
        return shape

    async def _lines(self, request_id: str, after: int) -> list[LogRow] | None:
        try:
            return await self._logs.request_logs(request_id, after)
        except TelemetryUnavailable:
            return None  # the status is worth more than its log lines

    async def _stream(self, scope: Scope, receive: Receive, send: Send, asked: RequestTarget) -> None:
        """Status objects as server-sent events until COMPLETED; `logs` holds only lines that were not sent yet."""
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": of_answer(head, None, asked.request_id.encode(), None),
            }
        )
        events = asyncio.ensure_future(self._events(scope, send, asked))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({events, gone}, return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                events.result()
                await send({"type": "http.response.body", "body": b""})
        finally:
            events.cancel()
            gone.cancel()

    async def _events(self, scope: Scope, send: Send, asked: RequestTarget) -> None:
        wanted, heartbeat = _logs_wanted(scope), self._settings.status_heartbeat
        loop = asyncio.get_running_loop()
        changes = self._scheduler.watch(asked.request_id)
        change = asyncio.ensure_future(anext(changes, None))
        status: JobStatus | None = None
        after, quiet_since = 0, loop.time()
        try:
            while True:
                patience = quiet_since + heartbeat - loop.time()
                if wanted and status is not None and status.state is JobState.RUNNING:
                    patience = min(patience, LOGS_EVERY)
                await asyncio.wait({change}, timeout=max(patience, 0.0))
                changed = change.done()
                if changed:
                    latest = change.result()
                    if latest is None:
                        return
                    status = latest
                    change = asyncio.ensure_future(anext(changes, None))
                lines = (await self._lines(asked.request_id, after) or []) if wanted and status is not None else None
                if lines:
                    after = lines[-1].ts
                if status is not None and (changed or lines):
                    data = b"data: " + encode(self._shape(scope, asked, status, lines)) + b"\n\n"
                elif loop.time() - quiet_since >= heartbeat:
                    data = b": waiting\n\n"
                else:
                    continue
                quiet_since = loop.time()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if status is not None and status.state is JobState.DONE:
                    return
        finally:
            change.cancel()

    async def _result(self, send: Send, status: JobStatus, request_id: str) -> None:
        """Status, headers and body as the app answered them."""
        if status.state is not JobState.DONE:
            await answer_json(send, 400, {"detail": "Request is still in progress"}, request_id)
            return
        found = await self._scheduler.result(request_id)
        if found is None:
            await answer_not_found(send, request_id)
            return
        outcome = found[1]
        runner = outcome.runner_id.encode() if outcome.runner_id else None
        if outcome.body_file is None:
            length = None if outcome.status in (204, 304) else len(outcome.body)
            head = of_answer(list(outcome.headers), length, request_id.encode(), runner)
            await answer(send, outcome.status, head, outcome.body)
            return
        try:
            size = (await asyncio.to_thread(outcome.body_file.stat)).st_size
        except FileNotFoundError:
            await answer_not_found(send, request_id)
            return
        head = of_answer(list(outcome.headers), size, request_id.encode(), runner)
        await send({"type": "http.response.start", "status": outcome.status, "headers": head})
        async for piece in pieces_of(outcome.body_file):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _cancel(self, send: Send, request_id: str) -> None:
        done = await self._scheduler.cancel(request_id)
        if done is None:
            await answer_not_found(send, request_id)
        elif done == "completed":
            await answer_json(send, 400, {"status": "ALREADY_COMPLETED"}, request_id)
        elif done == "requested":
            await answer_json(send, 202, {"status": "CANCELLATION_REQUESTED"}, request_id)
        else:
            await answer_json(send, 200, {"status": "OK"}, request_id)


def log_entry(line: LogRow) -> dict[str, str]:
    """A log line as clients read it; levels in upper case."""
    return {
        "timestamp": iso_micros(line.ts),
        "message": line.message,
        "level": _LEVELS.get(line.level, line.level.upper()),
        "source": "USER",
    }


def public_url(settings: Settings, scope: Scope) -> str:
    """Under which URL this server is reached by whoever sent the request, without a slash at the end."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return f"{scope['scheme']}://{host or settings.host}"


def _parameters(query: bytes) -> tuple[str | None, int | None]:
    """`fal_webhook` and `fal_max_queue_length`. Raises `InvalidRequest`."""
    if b"fal_" not in query:
        return None, None
    given = parse_qs(query.decode("latin-1"))
    webhook = given.get("fal_webhook", [None])[-1]
    if webhook is not None:
        check_url(webhook)
    most = given.get("fal_max_queue_length", [None])[-1]
    if most is not None and not (most.isascii() and most.isdigit()):
        raise InvalidRequest("fal_max_queue_length must be a number, 0 or more")
    return webhook, None if most is None else int(most)


def _logs_wanted(scope: Scope) -> bool:
    query: bytes = scope["query_string"]
    return b"logs=" in query and any(part.lower() in (b"logs=1", b"logs=true") for part in query.split(b"&"))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
