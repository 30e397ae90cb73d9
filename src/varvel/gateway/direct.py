"""Direct calls: one request, one runner, the answer on the same connection.

A call is recorded before its last byte is released: an answer of small announced length is held until then, any
other goes on piece by piece and only its end is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import IntEnum

from varvel.errors import VarvelError
from varvel.gateway.asgi import ClientGone, Receive, Send, answer
from varvel.gateway.attempt import (
    TRIED_AGAIN,
    Attempts,
    RequestTimeout,
    condition_of,
    failure,
    give_up,
    head_for_app,
    outcome_of,
    settle,
    told,
)
from varvel.gateway.bodies import take
from varvel.gateway.headers import AnswerHeaders, of_answer
from varvel.gateway.recording import Call, Kind, Recorder
from varvel.ids import Started
from varvel.queue.model import Headers, Outcome
from varvel.runners.errors import RunnerError, StartTimeout
from varvel.runners.model import Pool, RunnerResponse, Slot
from varvel.settings import Settings

UNWATCHED = 0.2
"""Seconds that a call may take before somebody looks whether its client is still there: a task less for the rest.
After twice as many somebody has."""
_NEEDS_RETRY = (b"x-fal-needs-retry", b"1")


class ClientDisconnected(VarvelError):
    """The client closed the connection before it had its answer."""

    status = 499
    data_type = "client_disconnected"


class NotStarted(StartTimeout):
    """No runner began within the start timeout of the request."""

    data_type = "request_timeout"


class Stage(IntEnum):
    """How far a call is, which decides what its client's leaving means."""

    UPLOADING = 0
    WAITING = 1
    RUNNING = 2
    STREAMING = 3


class Rounds:
    """One timer for all calls: it looks after those that have lasted for longer than `UNWATCHED`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._young: dict[Vigil, None] = {}
        self._older: dict[Vigil, None] = {}
        self._turning = False

    def begin(self, receive: Receive) -> Vigil:
        """Watch the call of the current task."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        vigil = Vigil(receive, loop, self)
        self._young[vigil] = None
        if not self._turning:
            self._turning = True
            loop.call_later(UNWATCHED, self._turn, loop)
        return vigil

    def forget(self, vigil: Vigil) -> None:
        """It is looked after by itself, or has ended."""
        if vigil in self._young:
            del self._young[vigil]
        else:
            self._older.pop(vigil, None)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        due, self._older, self._young = self._older, self._young, {}
        self._turning = bool(self._older)
        if self._turning:
            loop.call_later(UNWATCHED, self._turn, loop)
        for vigil in due:
            vigil.look()


class Vigil:
    """Watches one call: its app's time limit, and whether its client stays.

    The call's task is interrupted (cancelled) when the limit is reached, and when the client goes while the call
    waits or streams. While the runner works on an answer, `on_gone` is called instead.
    """

    __slots__ = (
        "_handle",
        "_limit",
        "_looked",
        "_loop",
        "_receive",
        "_rounds",
        "_task",
        "_watcher",
        "expired",
        "gone",
        "on_gone",
        "stage",
    )  # fmt: skip

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop, rounds: Rounds) -> None:
        self._receive = receive
        self._loop = loop
        self._rounds = rounds
        self._task = asyncio.current_task(loop)
        self._limit: float | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._looked = False
        self.on_gone: Callable[[], None] | None = None
        self.gone = False
        self.expired = False
        self.stage = Stage.UPLOADING

    def limit(self, seconds: float) -> None:
        """Interrupt the task in so many seconds from now."""
        self._limit = self._loop.time() + seconds
        if (self._looked and self._handle is None) or seconds < 2 * UNWATCHED:
            self._arm(seconds)

    def look(self) -> None:
        """The call has lasted: from now on it is looked after by itself."""
        self._looked = True
        if self._handle is None:
            self._tick()

    def stop(self) -> None:
        """Watch no longer."""
        self._rounds.forget(self)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._watcher is not None:
            self._watcher.cancel()

    def took(self) -> bool:
        """Whether the cancellation that was just caught was ours; if so, it is taken back."""
        if not (self.expired or self.gone) or self._task is None:
            return False
        return self._task.uncancel() == 0

    def _arm(self, seconds: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._handle = None
        left = None if self._limit is None else self._limit - self._loop.time()
        if left is not None and left <= 0:
            self.expired = True
            self._interrupt()
        elif self.stage is Stage.UPLOADING:
            self._arm(UNWATCHED if left is None else min(left, UNWATCHED))
        else:
            if self._watcher is None:
                self._watcher = self._loop.create_task(self._watch())
            if left is not None:
                self._arm(left)

    def _interrupt(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.stage is Stage.RUNNING:
            if self.on_gone is not None:
                self.on_gone()
        else:
            self._interrupt()


class DirectCalls:
    """Serves calls that wait for their answer."""

    def __init__(self, settings: Settings, pool: Pool, attempts: Attempts, record: Recorder) -> None:
        self._pool = pool
        self._attempts = attempts
        self._record = record
        self._buffer = settings.buffer_body
        self._max_body = settings.max_body
        self._rounds = Rounds()

    async def serve(self, call: Call, forward: Headers, announced: int | None, receive: Receive, send: Send) -> None:
        """Run the call and answer it. Raises `TooLarge` when its body is, and `StorageFull`; then nothing is sent."""
        vigil = self._rounds.begin(receive)
        started = Started()
        try:
            try:
                body = await take(receive, announced, buffer=self._buffer, most=self._max_body)
            except ClientGone:
                await self._fail(call, ClientDisconnected(), None, started, vigil, send)
                return
            if isinstance(body, bytes):
                vigil.stage = Stage.WAITING
            slot = await self._acquire(call, started, vigil, send)
            if slot is not None:
                await self._run(call, slot, forward, body, announced, vigil, send)
        finally:
            vigil.stop()

    async def _acquire(self, call: Call, arrived: Started, vigil: Vigil, send: Send) -> Slot | None:
        """A slot; None when there was none and that was answered."""
        app = call.app
        timeout = app.scaling.startup_timeout
        if call.start_timeout is not None:
            timeout = max(arrived.at + call.start_timeout - arrived.ended(), 0.0)
        problem: VarvelError
        try:
            return await self._pool.acquire(app.app, call.hint, timeout)
        except asyncio.CancelledError:
            if not vigil.took():
                raise
            problem = ClientDisconnected()
        except StartTimeout as late:
            problem = late if call.start_timeout is None else NotStarted()
        except RunnerError as failed:
            problem = told(failed, call.caller, app.app.owner)
        await self._fail(call, problem, None, Started(), vigil, send)
        return None

    async def _run(
        self,
        call: Call,
        slot: Slot,
        forward: Headers,
        body: bytes | AsyncIterator[bytes],
        announced: int | None,
        vigil: Vigil,
        send: Send,
    ) -> None:
        started = Started()
        small = isinstance(body, bytes)
        if isinstance(body, bytes):
            vigil.stage = Stage.RUNNING
        else:
            body = _until_sent(body, vigil)
        vigil.on_gone = lambda: self._ask_to_cancel(call, slot)
        vigil.limit(call.app.scaling.request_timeout)
        headers = head_for_app(
            forward,
            request_id=call.request_id,
            caller=call.caller,
            owner=call.app.app.owner,
            path=call.path,
            length=None if small else announced,
        )
        response: RunnerResponse | None = None
        try:
            response = await slot.send(call.method, call.target, headers, body)
            head = self._attempts.read_head(response)
            vigil.stage = Stage.RUNNING
            bodiless = call.method == "HEAD" or response.status in (204, 304)
            if not bodiless and (head.streaming or head.content_length is None or head.content_length > self._buffer):
                await self._stream(call, slot, response, head, started, vigil, send)
                return
            output = await response.read(self._buffer)
        except BaseException as problem:
            await self._broke(call, slot, response, problem, started, vigil, send)
            return
        vigil.stop()
        settle(slot, response.status, head)
        if vigil.gone:
            await self._fail(call, ClientDisconnected(), slot, started, vigil, send, head.units)
            return
        outcome = outcome_of(slot, response.status, head, output, started)
        if outcome.status in TRIED_AGAIN and head.needs_retry is None:
            outcome.headers.append(_NEEDS_RETRY)
        await self._record(call, outcome, "sync", body if isinstance(body, bytes) else b"")
        length = head.content_length if bodiless else len(output)
        await answer(send, outcome.status, _own_head(call, slot, outcome.headers, length), output)

    async def _stream(
        self,
        call: Call,
        slot: Slot,
        response: RunnerResponse,
        head: AnswerHeaders,
        started: Started,
        vigil: Vigil,
        send: Send,
    ) -> None:
        """Pass the answer on as it comes. With an announced length the last piece is held for the record."""
        if vigil.gone:
            raise ClientGone
        vigil.stage = Stage.STREAMING
        length = head.content_length
        outcome = outcome_of(slot, response.status, head, b"", started)
        kind: Kind = "stream" if head.streaming else "sync"
        headers = _own_head(call, slot, list(head.forward), length)
        held = b""
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            async for piece in response:
                if length is None:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    continue
                if held:
                    await send({"type": "http.response.body", "body": held, "more_body": True})
                held = piece
        except BaseException as problem:
            # The head is sent: the client learns by a connection that closes before the end.
            reason = self._give_back(call, slot, response, problem, vigil)
            broken = failure(reason, started=started, slot=slot)
            broken.units = head.units
            vigil.stop()
            await self._record(call, broken, kind, b"")
            return
        vigil.stop()
        settle(slot, response.status, head)
        outcome.ended_at = started.ended()
        await self._record(call, outcome, kind, b"")
        await send({"type": "http.response.body", "body": held})

    async def _broke(
        self,
        call: Call,
        slot: Slot,
        response: RunnerResponse | None,
        problem: BaseException,
        started: Started,
        vigil: Vigil,
        send: Send,
    ) -> None:
        """The call ended without an answer to pass on: give the slot back, record it, and say why."""
        reason = self._give_back(call, slot, response, problem, vigil)
        await self._fail(call, reason, slot, started, vigil, send)

    def _give_back(
        self, call: Call, slot: Slot, response: RunnerResponse | None, problem: BaseException, vigil: Vigil
    ) -> VarvelError:
        """Give back the slot of a call that broke off, and say how it ended. Raises what is not an end of a call."""
        if response is not None:
            response.close()
        if isinstance(problem, RunnerError):
            give_up(slot, problem)
            return ClientDisconnected() if vigil.gone else problem
        if isinstance(problem, VarvelError):
            slot.release()
            return problem
        if isinstance(problem, ClientGone) or (
            isinstance(problem, asyncio.CancelledError) and vigil.took() and not vigil.expired
        ):
            if vigil.gone and vigil.stage is Stage.RUNNING:
                slot.release()  # it was asked already, when the client went
            else:
                self._ask_to_cancel(call, slot, release=True)
            return ClientDisconnected()
        slot.release(kill=True)
        if vigil.expired and isinstance(problem, asyncio.CancelledError):
            return ClientDisconnected() if vigil.gone else RequestTimeout()
        raise problem

    def _ask_to_cancel(self, call: Call, slot: Slot, *, release: bool = False) -> None:
        self._attempts.ask_to_cancel(
            slot,
            path=call.path,
            request_id=call.request_id,
            caller=call.caller,
            owner=call.app.app.owner,
            release=release,
        )

    async def _fail(
        self,
        call: Call,
        problem: VarvelError,
        slot: Slot | None,
        started: Started,
        vigil: Vigil,
        send: Send,
        units: float | None = None,
    ) -> None:
        vigil.stop()
        outcome = failure(problem, started=started, slot=slot)
        outcome.units = units
        await self._record(call, outcome, "sync", b"")
        if problem.status == 499:
            return
        headers = outcome.headers
        if isinstance(problem, NotStarted):
            headers.append((b"x-fal-request-timeout-type", b"user"))
        elif isinstance(problem, RunnerError | RequestTimeout) and condition_of(problem) is not None:
            headers.append(_NEEDS_RETRY)
        await answer(send, outcome.status, _own_head(call, slot, headers, len(outcome.body)), outcome.body)


async def _until_sent(body: AsyncIterator[bytes], vigil: Vigil) -> AsyncIterator[bytes]:
    """The body of a call that is still coming; when it has come, it is the runner's turn."""
    async for piece in body:
        yield piece
    if vigil.stage is Stage.UPLOADING:
        vigil.stage = Stage.RUNNING


def _own_head(call: Call, slot: Slot | None, headers: Headers, length: int | None) -> Headers:
    return of_answer(headers, length, call.request_id.encode(), slot.runner_id.encode() if slot else None)


def queue_outcome_head(outcome: Outcome, request_id: str, length: int) -> Headers:
    """The head of a queue result: what the app answered, and whose answer it is."""
    runner = outcome.runner_id.encode() if outcome.runner_id else None
    return of_answer(list(outcome.headers), length, request_id.encode(), runner)
