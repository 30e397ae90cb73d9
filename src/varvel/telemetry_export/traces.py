"""Traces to an OpenTelemetry collector: finished requests as spans, in batches over HTTP, never in a request's way."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from urllib.parse import urlsplit

import structlog

import varvel
from varvel.egress import Egress
from varvel.errors import VarvelError
from varvel.queue.model import Job, Outcome
from varvel.settings import BadSetting, Settings
from varvel.telemetry.model import RequestRow
from varvel.telemetry_export.rules import Finished, Span, as_json, as_protobuf, of_call, of_job, spans

BATCH = 512
PERIOD = 2.0
TIMEOUT = 10.0
LONGEST_PAUSE = 30.0
_AGAIN = frozenset({429, 502, 503, 504})
_log = structlog.get_logger("varvel.traces")


class Traces:
    """Sends one trace a finished request to `otlp_endpoint`. Without that setting it takes nothing and does nothing.

    Have `job` called by `Scheduler.on_finished`, and `call` for each direct call's record. When the collector is
    away spans wait, up to `otlp_queue`; the oldest go first and are counted in `dropped`.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises `BadSetting` when the endpoint, its headers or the encoding cannot be."""
        self.url = endpoint(settings.otlp_endpoint)
        self._headers = headers(settings.otlp_headers)
        if settings.otlp_encoding not in ("protobuf", "json"):
            raise BadSetting(f"otlp_encoding must be protobuf or json, not {settings.otlp_encoding!r}")
        self._protobuf = settings.otlp_encoding == "protobuf"
        self._headers["Content-Type"] = "application/x-protobuf" if self._protobuf else "application/json"
        # The operator chose the address, so it may be private.
        self._egress = Egress(private=True)
        self._limit = settings.otlp_queue
        self._waiting: deque[Finished] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.sent = 0
        """Spans that the collector has taken."""
        self.dropped = 0
        """Requests whose trace was given up."""

    def job(self, job: Job, outcome: Outcome) -> None:
        """A queued request ended. Never blocks."""
        if self.url:
            self._take(of_job(job, outcome))

    def call(self, request: RequestRow, traceparent: str = "") -> None:
        """A direct call ended. Never blocks."""
        if self.url:
            self._take(of_call(request, traceparent))

    def _take(self, finished: Finished) -> None:
        # A request has five spans at most.
        if len(self._waiting) * 5 >= self._limit:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(finished)
        if len(self._waiting) >= BATCH:
            self._wake.set()

    async def start(self) -> None:
        """Begin to send, if there is where to."""
        if self.url:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send what waits, if the collector takes it at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with contextlib.suppress(VarvelError, TimeoutError):
                async with asyncio.timeout(TIMEOUT / 2):
                    while self._waiting and await self._send():
                        pass
        await self._egress.close()

    async def _run(self) -> None:
        pause = PERIOD
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            try:
                while self._waiting and await self._send():
                    pause = PERIOD
            except VarvelError as problem:
                _log.warning("traces wait for their collector", error=problem.message, waiting=len(self._waiting))
                pause = min(LONGEST_PAUSE, pause * 2)
                await asyncio.sleep(pause)

    async def _send(self) -> bool:
        """Send one batch; false when the collector asks for patience."""
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            status = await self._post([span for finished in batch for span in spans(finished)])
        except BaseException:
            self._waiting.extendleft(reversed(batch))
            raise
        if status in _AGAIN:
            self._waiting.extendleft(reversed(batch))
            return False
        if not 200 <= status < 300:
            self.dropped += len(batch)
            _log.warning("the collector refused traces", status=status, requests=len(batch))
        return True

    async def _post(self, batch: list[Span]) -> int:
        resource = {"service.name": "varvel", "service.version": varvel.__version__}
        body = (as_protobuf if self._protobuf else as_json)(batch, {**resource}, varvel.__version__)
        async with self._egress.request(
            "POST", self.url, timeout=TIMEOUT, redirects=False, data=body, headers=self._headers
        ) as answer:
            if 200 <= answer.status < 300:
                self.sent += len(batch)
            return answer.status


def endpoint(text: str) -> str:
    """The URL to post to: `/v1/traces` is added to a bare endpoint. Raises `BadSetting`."""
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSetting(f"otlp_endpoint must be an http or https URL, not {text!r}")
    return text if parts.path.rstrip("/").endswith("/v1/traces") else f"{text.rstrip('/')}/v1/traces"


def headers(text: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary. Raises `BadSetting`."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if wrong := [name for name, equals, _ in pairs if not equals or not name.strip()]:
        raise BadSetting(f"otlp_headers must be name=value pairs, not {wrong[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}
