"""One attempt to have a runner serve a request: what is sent, how its end is judged, what becomes of the runner.

Queued and direct calls go through the same rules. What ends a runner: a broken connection, an answer that is not
whole, the app's time limit, an answer of 503, or the app's own `X-Fal-Stop-Runner`. What has it checked: 500, 502
and 504, or the app's `X-Fal-Runner-Health-Check`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from varvel.apps.model import App
from varvel.errors import VarvelError, data_plane_error
from varvel.gateway.access import caller_id
from varvel.gateway.asgi import JSON, encode
from varvel.gateway.bodies import pieces_of, spill
from varvel.gateway.headers import AnswerHeaders, read_answer
from varvel.ids import Started, uuid7
from varvel.queue.model import AttemptResult, Condition, Headers, Job, Outcome
from varvel.runners.errors import ResponseHeadersTooLarge, RunnerError, RunnerRefused, StartFailed
from varvel.runners.model import RunnerResponse, Slot
from varvel.settings import Settings

_CHECKED = frozenset({500, 502, 504})
TRIED_AGAIN = frozenset({503, 504})
"""Answers of an app that the queue would ask for again."""


class RequestTimeout(VarvelError):
    """The app did not answer within its request timeout."""

    status = 504
    data_type = "request_timeout"


def failure(
    error: VarvelError, *, started: Started, slot: Slot | None = None, headers: Headers | None = None
) -> Outcome:
    """The outcome of a request that ends with an error of ours instead of the app's answer."""
    return Outcome(
        status=error.status,
        headers=[JSON, (b"x-fal-error-type", error.data_type.encode()), *(headers or [])],
        body=encode(data_plane_error(error.message, error.data_type)),
        error=error.message,
        error_type=error.data_type,
        runner_id=slot.runner_id if slot else None,
        revision=slot.revision_id if slot else None,
        machine_type=slot.machine_type if slot else "",
        started_at=started.at,
        ended_at=started.ended(),
        cold_boot=slot.cold_boot if slot else 0.0,
    )


def condition_of(error: VarvelError) -> Condition | None:
    """Which retry budget an attempt that failed this way takes from; None when the next would fail in the same way."""
    if isinstance(error, ResponseHeadersTooLarge):
        return None
    if isinstance(error, RequestTimeout):
        return "timeout"
    return "connection_error" if isinstance(error, RunnerRefused) else "server_error"


def told(error: VarvelError, caller: str | None, owner: str) -> VarvelError:
    """The error as a caller may see it: what an app printed before it failed to start is for its owner only."""
    if isinstance(error, StartFailed) and caller != owner:
        return type(error)(error.line)
    return error


def head_for_app(
    forward: Headers, *, request_id: str, caller: str | None, owner: str, path: str, length: int | None
) -> Headers:
    """The headers that the runner gets: those of the caller, then ours, which no caller can set."""
    headers = [
        *forward,
        (b"x-fal-request-id", request_id.encode()),
        (b"x-fal-caller-user-id", caller_id(caller, owner)),
        (b"x-fal-endpoint", path.encode("latin-1")),
    ]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return headers


def settle(slot: Slot, status: int, answer: AnswerHeaders) -> None:
    """Give the place back after a whole answer, with what the answer says of its runner."""
    kill = answer.stop_runner if answer.stop_runner is not None else status == 503
    slot.release(kill=kill, health_check=answer.health_check or status in _CHECKED, hints=answer.hints)


def give_up(slot: Slot, error: BaseException) -> None:
    """Give the place back after an attempt that broke off; a runner that refused gets checked, others end."""
    if isinstance(error, RunnerRefused):
        slot.release(health_check=True)
    elif isinstance(error, ResponseHeadersTooLarge):
        slot.release()  # the connection is dropped; the runner is as good as before
    else:
        slot.release(kill=True)


def outcome_of(slot: Slot, status: int, answer: AnswerHeaders, body: bytes, started: Started) -> Outcome:
    """The outcome of an app's own answer, whatever its status."""
    return Outcome(
        status=status,
        headers=answer.forward,
        body=body,
        error=None if status < 400 else f"Invalid status code: {status}",
        error_type="runner_server_error" if status >= 500 else None,
        runner_id=slot.runner_id,
        revision=slot.revision_id,
        machine_type=slot.machine_type,
        started_at=started.at,
        ended_at=started.ended(),
        cold_boot=slot.cold_boot,
        units=answer.units,
    )


class Attempts:
    """Runs attempts on slots that somebody else has acquired; each attempt gives its slot back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spill = settings.data / "spill"
        self._cancels: set[asyncio.Task[None]] = set()

    async def run(self, slot: Slot, job: Job, app: App) -> AttemptResult:
        """One attempt of a queued request: its outcome, and the condition under which it may be tried again.

        Never raises for what the app or its runner did. The slot is given back in all cases.
        """
        started = Started()
        response: RunnerResponse | None = None
        try:
            async with asyncio.timeout(app.scaling.request_timeout):
                response = await self._send(slot, job)
                answer = self.read_head(response)
                outcome = await self._receive(slot, job, response, answer, started)
        except TimeoutError:
            return self._failed(slot, response, RequestTimeout(), started)
        except RunnerError as problem:
            return self._failed(slot, response, problem, started)
        except VarvelError as problem:
            # A full disk, or headers that cannot be sent: not the runner's fault, and no better the next time.
            self._drop(slot, response)
            return AttemptResult(outcome=failure(problem, started=started, slot=slot))
        except BaseException as problem:
            if response is not None:
                response.close()
            give_up(slot, problem)
            raise
        settle(slot, outcome.status, answer)
        condition: Condition | None = "server_error" if outcome.status in TRIED_AGAIN else None
        return AttemptResult(
            outcome=outcome, condition=condition, needs_retry=answer.needs_retry, hints=answer.hints or []
        )

    async def _send(self, slot: Slot, job: Job) -> RunnerResponse:
        body: bytes | AsyncIterator[bytes] = job.body
        length: int | None = None
        if job.body_file is not None:
            length = (await asyncio.to_thread(job.body_file.stat)).st_size
            body = pieces_of(job.body_file)
        headers = head_for_app(
            job.headers,
            request_id=job.request_id,
            caller=job.caller,
            owner=job.app.owner,
            path=job.path,
            length=length,
        )
        return await slot.send(job.method, _target(job.path, job.query), headers, body)

    def read_head(self, response: RunnerResponse) -> AnswerHeaders:
        """The sorted headers of an answer. Raises `ResponseHeadersTooLarge`."""
        answer = read_answer(response.status, response.headers)
        if answer.size > self._settings.max_headers:
            raise ResponseHeadersTooLarge(
                f"The app's response headers are {answer.size} bytes; {self._settings.max_headers} are allowed."
            )
        return answer

    async def _receive(
        self, slot: Slot, job: Job, response: RunnerResponse, answer: AnswerHeaders, started: Started
    ) -> Outcome:
        body = await response.read(self._settings.buffer_body)
        if response.exhausted:
            return outcome_of(slot, response.status, answer, body, started)
        path = self._spill / f"{job.request_id}.{uuid7()[-12:]}.answer"
        await spill(_resumed(body, response), path)
        outcome = outcome_of(slot, response.status, answer, b"", started)
        outcome.body_file = path
        return outcome

    def _failed(
        self, slot: Slot, response: RunnerResponse | None, problem: VarvelError, started: Started
    ) -> AttemptResult:
        if response is not None:
            response.close()
        give_up(slot, problem)
        return AttemptResult(outcome=failure(problem, started=started, slot=slot), condition=condition_of(problem))

    def _drop(self, slot: Slot, response: RunnerResponse | None) -> None:
        if response is not None:
            response.close()
        slot.release()

    def cancel(self, job: Job, slot: Slot) -> None:
        """Ask the app to stop working on a queued request that runs on this slot. Returns at once."""
        self.ask_to_cancel(slot, path=job.path, request_id=job.request_id, caller=job.caller, owner=job.app.owner)

    def ask_to_cancel(
        self, slot: Slot, *, path: str, request_id: str, caller: str | None, owner: str, release: bool = False
    ) -> None:
        """POST `<path>/cancel` on the runner that holds the request, with the same request id.

        Stopping is the app's to do: it ends the first request itself, usually with 499. What it answers to this
        call is not looked at, and an app without such a route goes on. `release` gives the slot back after it.
        """
        target = f"{path.rstrip('/')}/cancel"
        headers = head_for_app([], request_id=request_id, caller=caller, owner=owner, path=target, length=None)
        task = asyncio.ensure_future(_cancel_call(slot, target, headers, self._settings.cancel_patience, release))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)


async def _cancel_call(slot: Slot, target: str, headers: Headers, patience: float, release: bool) -> None:
    try:
        async with asyncio.timeout(patience):
            response = await slot.send("POST", target.encode("latin-1"), headers, b"")
            await response.read(65536)
            if not response.exhausted:
                response.close()
    except (RunnerError, TimeoutError):
        return
    finally:
        if release:
            slot.release()


async def _resumed(first: bytes, response: RunnerResponse) -> AsyncIterator[bytes]:
    yield first
    async for piece in response:
        yield piece


def _target(path: str, query: bytes) -> bytes:
    target = path.encode("latin-1")
    return target + b"?" + query if query else target


def spill_path(settings: Settings, request_id: str) -> Path:
    """Where the body of a queued request lies that is larger than `buffer_body`."""
    return settings.data / "spill" / f"{request_id}.body"
