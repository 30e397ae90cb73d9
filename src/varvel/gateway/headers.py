"""Which headers go on to the app and which go back to the caller, and what the `x-fal-*` ones among them say.

Everything that a caller sends as `x-fal-*` is for us, but for the few names that apps read themselves; everything
that an app answers about its runner is for us, too. Sources: the lists in `docs/calling.md`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from varvel.errors import InvalidRequest
from varvel.queue.model import Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_SENT = HOP_BY_HOP | {b"content-length", b"expect", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
_NOT_ANSWERED = HOP_BY_HOP | {b"content-length", b"server", b"date"}
_APP_READS = frozenset({b"x-fal-object-lifecycle-preference", b"x-fal-cdn-token"})
_TRUE = frozenset({"1", "true", "yes"})
_CONDITIONS = frozenset({"server_error", "timeout", "connection_error"})
MOST_EXTRA_ATTEMPTS = 9


@dataclass(slots=True)
class CallHeaders:
    """The headers of one call, sorted by whom they are for."""

    forward: Headers
    """Those that the app shall see; `content-length` and those of the connection are left out."""
    authorization: str | None = None
    content_length: int | None = None
    hint: str | None = None
    start_timeout: float | None = None
    """Seconds in which it must have started."""
    low: bool = False
    no_retry: bool = False
    retry_config: dict[str, int] | None = None
    store_io: bool = True


def read_call(headers: Headers) -> CallHeaders:
    """Sort the headers of a call. Raises `InvalidRequest` for a timeout that is none."""
    forward: Headers = []
    call = CallHeaders(forward)
    deprecated: bytes | None = None
    timeout: bytes | None = None
    for item in headers:
        name = item[0]
        if name[:6] == b"x-fal-":
            value = item[1]
            if name in _APP_READS:
                forward.append(item)
            elif name == b"x-fal-request-start-timeout":
                timeout = value
            elif name == b"x-fal-request-timeout":
                deprecated = value
            else:
                _read_option(call, name, value.decode("latin-1").strip())
        elif name == b"authorization":
            call.authorization = item[1].decode("latin-1")
        elif name == b"content-length":
            call.content_length = int(item[1])
        elif name == b"host":
            forward.append((b"x-forwarded-host", item[1]))
        elif name not in _NOT_SENT:
            forward.append(item)
    if timeout is not None or deprecated is not None:
        call.start_timeout = _timeout(timeout if timeout is not None else deprecated or b"")
    return call


def _read_option(call: CallHeaders, name: bytes, value: str) -> None:
    if name == b"x-fal-runner-hint":
        call.hint = value or None
    elif name == b"x-fal-queue-priority":
        call.low = value.lower() == "low"
    elif name == b"x-fal-no-retry":
        call.no_retry = value.lower() in _TRUE
    elif name == b"x-fal-retry-config":
        call.retry_config = retry_config(value)
    elif name == b"x-fal-store-io":
        call.store_io = value != "0"


def _timeout(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.1 < seconds < math.inf:
        raise InvalidRequest("The start timeout must be a number of seconds above 0.1")
    return seconds


def retry_config(value: str) -> dict[str, int] | None:
    """`{"timeout": {"retries": 2}}` -> `{"timeout": 2}`, extra attempts a condition; None for what is not that."""
    try:
        given: Any = json.loads(value)
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    found: dict[str, int] = {}
    for condition, budget in given.items():
        retries = budget.get("retries") if isinstance(budget, dict) else None
        if condition in _CONDITIONS and isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0:
            found[condition] = min(retries, MOST_EXTRA_ATTEMPTS)
    return found or None


@dataclass(slots=True)
class AnswerHeaders:
    """The headers of an app's answer, sorted by whom they are for."""

    forward: Headers
    size: int = 0
    """Bytes of all of them as the app sent them."""
    content_length: int | None = None
    streaming: bool = False
    """It is an event stream: each piece goes on as it comes."""
    units: float | None = None
    needs_retry: bool | None = None
    stop_runner: bool | None = None
    health_check: bool = False
    hints: list[str] | None = None


def read_answer(status: int, headers: Headers) -> AnswerHeaders:
    """Sort the headers of an app's answer. `X-Fal-Needs-Retry` counts, and goes on, only with 429 and 5xx."""
    forward: Headers = []
    answer = AnswerHeaders(forward)
    size = 0
    for item in headers:
        name, value = item
        size += len(name) + len(value) + 4
        if name[:6] == b"x-fal-":
            if _read_answer_option(answer, status, name, value.decode("latin-1").strip()):
                forward.append(item)
        elif name not in _NOT_ANSWERED:
            if name == b"content-type" and value[:17].lower() == b"text/event-stream":
                answer.streaming = True
            forward.append(item)
        elif name == b"content-length":
            answer.content_length = int(value)
    answer.size = size
    return answer


_OURS = frozenset(
    {
        b"x-fal-request-id",
        b"x-fal-served-from",
        b"x-fal-error-type",
        b"x-fal-request-timeout-type",
        b"x-fal-cdn-token",
    }
)


def _read_answer_option(answer: AnswerHeaders, status: int, name: bytes, value: str) -> bool:
    """Read one `x-fal-*` header of an app; whether the caller may see it."""
    if name == b"x-fal-billable-units":
        answer.units = _units(value)
        return answer.units is not None
    if name == b"x-fal-needs-retry":
        if status != 429 and status < 500:
            return False
        answer.needs_retry = _flag(value)
        return True
    if name == b"x-fal-stop-runner":
        answer.stop_runner = _flag(value)
        return False
    if name == b"x-fal-runner-health-check":
        answer.health_check = value.lower() in _TRUE
        return False
    if name == b"x-fal-runner-hints":
        answer.hints = [hint.strip() for hint in value.split(",") if hint.strip()]
        return True
    return name not in _OURS


def _flag(value: str) -> bool | None:
    lower = value.lower()
    return True if lower in ("1", "true") else False if lower in ("0", "false") else None


def _units(value: str) -> float | None:
    try:
        units = float(value)
    except ValueError:
        return None
    return units if 0 <= units < math.inf else None


def of_answer(forward: Headers, length: int | None, request_id: bytes, served_from: bytes | None) -> Headers:
    """The head that the caller gets: the app's own headers, ours after them."""
    forward.append((b"x-fal-request-id", request_id))
    if served_from is not None:
        forward.append((b"x-fal-served-from", served_from))
    if length is not None:
        forward.append((b"content-length", b"%d" % length))
    return forward
