"""Webhooks: what is posted to a caller's URL when its queued request has ended, signed, until it is taken.

A delivery is owed from the moment of the submit, in the state database, so that no crash loses it; it may come
twice. 2xx takes it. A redirect or an address that may not be reached ends it at once; anything else is tried
again, with growing pauses, while the result can still be fetched.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sqlite3
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from varvel.egress import Egress, EgressFailed, EgressRefused
from varvel.gateway.asgi import encode
from varvel.ids import now
from varvel.queue.model import Job, JobState, Outcome
from varvel.state.database import Database

FIRST_TIMEOUT = 15.0
LATER_TIMEOUT = 120.0
RETRIES = 31
LONGEST_PAUSE = 600.0
LARGEST_PAYLOAD = 8 * 1024 * 1024
"""Bytes of an answer that are put into a webhook; larger ones are to be fetched."""
AT_ONCE = 64


class Jobs(Protocol):
    """What webhooks need of the scheduler."""

    async def status(self, request_id: str) -> Any: ...
    async def result(self, request_id: str) -> tuple[Job, Outcome] | None: ...
    def on_finished(self, callback: Callable[[Job, Outcome], None]) -> None: ...


def pause_after(tries: int) -> float:
    """Seconds to wait after so many tries: 2, 4, 8 ... up to `LONGEST_PAUSE`."""
    return min(2.0**tries, LONGEST_PAUSE)


def content(job: Job, outcome: Outcome, body: bytes | None) -> bytes:
    """The JSON that is posted; `body` is the app's answer, None when it is too large to be sent along."""
    said: dict[str, Any] = {
        "request_id": job.request_id,
        "gateway_request_id": job.gateway_request_id or job.request_id,
        "status": "OK" if outcome.status < 400 else "ERROR",
        "payload": None,
    }
    if outcome.status >= 400:
        said["error"] = f"Invalid status code: {outcome.status}"
    if body is None:
        said["payload_error"] = "The payload is too large to be sent; fetch the result instead"
        return encode(said)
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said["payload_error"] = "The payload is not JSON; fetch the result instead"
    else:
        said["payload"] = msgspec.Raw(body)
    return encode(said)


class Signer:
    """Signs webhooks with Ed25519; `seed` is 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()

    def headers(self, request_id: str, user_id: str, body: bytes, at: int) -> dict[str, str]:
        """The `X-Fal-Webhook-*` headers of a delivery at the Unix second `at`."""
        message = "\n".join((request_id, user_id, str(at), hashlib.sha256(body).hexdigest()))
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": user_id,
            "X-Fal-Webhook-Timestamp": str(at),
            "X-Fal-Webhook-Signature": self._key.sign(message.encode()).hex(),
        }

    def jwks(self) -> dict[str, Any]:
        """The public key as a JSON Web Key Set; `x` is padded, for verifiers that decode it as plain base64url."""
        x = base64.urlsafe_b64encode(self._public).decode()
        kid = hashlib.sha256(self._public).hexdigest()[:16]
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}]}


class Webhooks:
    """Delivers webhooks of finished jobs. `start` after the scheduler, `stop` before it."""

    def __init__(self, database: Database, jobs: Jobs, signer: Signer, egress: Egress) -> None:
        self._database = database
        self._jobs = jobs
        self.signer = signer
        self._egress = egress
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._log = structlog.get_logger("varvel.webhooks")
        jobs.on_finished(self._finished)

    async def expect(self, request_id: str) -> None:
        """Owe a delivery for a job that is about to be submitted."""
        await self._database.write(
            lambda connection: connection.execute(
                "INSERT OR IGNORE INTO webhooks (request_id) VALUES (?)", (request_id,)
            )
        )

    async def start(self) -> None:
        """Take up what was owed when the server stopped."""
        owed = await self._database.read(
            lambda connection: connection.execute("SELECT request_id, tries, next_at FROM webhooks").fetchall()
        )
        for request_id, tries, next_at in owed:
            status = await self._jobs.status(request_id)
            if status is None:
                self._forget(request_id)
            elif status.state is JobState.DONE:
                self._schedule(request_id, tries, min(max(next_at - now(), 0.0), LONGEST_PAUSE))

    async def stop(self) -> None:
        """Stop delivering; what is owed stays owed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, job: Job, outcome: Outcome) -> None:
        if job.webhook is not None:
            self._schedule(job.request_id, 0, 0.0)

    def _schedule(self, request_id: str, tries: int, delay: float) -> None:
        task = asyncio.ensure_future(self._deliver(request_id, tries, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, request_id: str, tries: int, delay: float) -> None:
        while True:
            await asyncio.sleep(delay)
            found = await self._jobs.result(request_id)
            if found is None or found[0].webhook is None:
                break
            async with self._limit:
                if await self._post(found[0], found[1], FIRST_TIMEOUT if tries == 0 else LATER_TIMEOUT):
                    break
            tries += 1
            if tries > RETRIES:
                self._log.warning("webhook given up", request_id=request_id, tries=tries)
                break
            delay = pause_after(tries)
            self._note(request_id, tries, now() + delay)
        self._forget(request_id)

    async def _post(self, job: Job, outcome: Outcome, timeout: float) -> bool:
        """Whether nothing is left to do: it was taken, or it never will be."""
        body = content(job, outcome, await _body(outcome))
        headers = self.signer.headers(job.request_id, job.caller or job.app.owner, body, int(now()))
        headers["Content-Type"] = "application/json"
        log = self._log.bind(request_id=job.request_id)
        try:
            async with self._egress.request(
                "POST", job.webhook or "", timeout=timeout, redirects=False, data=body, headers=headers
            ) as response:
                status = response.status
        except EgressRefused as refused:
            log.warning("webhook refused", reason=refused.message)
            return True
        except EgressFailed as problem:
            log.info("webhook failed", reason=problem.message)
            return False
        if 300 <= status < 400:
            log.warning("webhook refused", reason=f"status {status}: redirects are not followed")
        elif not 200 <= status < 300:
            log.info("webhook failed", reason=f"status {status}")
            return False
        return True

    def _note(self, request_id: str, tries: int, next_at: float) -> None:
        self._write("UPDATE webhooks SET tries = ?, next_at = ? WHERE request_id = ?", (tries, next_at, request_id))

    def _forget(self, request_id: str) -> None:
        self._write("DELETE FROM webhooks WHERE request_id = ?", (request_id,))

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        self._database.write_soon(work)


async def _body(outcome: Outcome) -> bytes | None:
    if outcome.body_file is None:
        return outcome.body
    size = (await asyncio.to_thread(outcome.body_file.stat)).st_size
    return None if size > LARGEST_PAYLOAD else await asyncio.to_thread(outcome.body_file.read_bytes)
