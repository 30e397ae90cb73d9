"""The command line's way to a server: HTTP with a key, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8787"
DEFAULT_DATA = ".varvel"
CONNECT_SECONDS = 5.0
CALL_SECONDS = 300.0

FAILED, USAGE, UNREACHABLE, DENIED, MISSING, INTERRUPTED = 1, 2, 3, 4, 5, 130
"""Exit codes, as `varvel --help` tells them."""


class Failure(Exception):
    """The command cannot go on. `code` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Refused(Failure):
    """The server answered with an error."""

    def __init__(self, status: int, message: str, body: Any) -> None:
        code = {401: DENIED, 403: DENIED, 404: MISSING}.get(status, FAILED)
        super().__init__(message, code)
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Place:
    """Where the server is and which key to show it."""

    url: str
    key: str | None
    data: Path


def find_place(url: str | None, key: str | None, data: Path | None) -> Place:
    """From flags, then VARVEL_URL, VARVEL_KEY or FAL_KEY and VARVEL_DATA, then the key in the data folder."""
    environ = os.environ
    folder = data or Path(environ.get("VARVEL_DATA", DEFAULT_DATA))
    found = key or environ.get("VARVEL_KEY") or environ.get("FAL_KEY")
    path = folder / "admin.key"
    if not found and path.is_file():
        found = path.read_text().strip()
    return Place((url or environ.get("VARVEL_URL") or DEFAULT_URL).rstrip("/"), found, folder)


class Connection:
    """One server. Every method raises `Failure` with a message for people."""

    def __init__(self, place: Place) -> None:
        self.place = place
        headers = {"authorization": f"Key {place.key}"} if place.key else {}
        timeout = httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS)
        # Proxies of the environment are for the internet, not for a server on this machine.
        self._client = httpx.Client(base_url=place.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET. Parameters that are None are left out."""
        return self.call("GET", path, params=params)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of a reply; None when it has no body."""
        return body_of(self.reply(method, path, **options))

    def reply(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The reply of a call, if it is not an error."""
        options["params"] = _given(options.get("params"))
        with _reaching(self.place):
            reply = self._client.request(method, path, **options)
        return checked(reply)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A reply whose body comes piece by piece."""
        options["params"] = _given(options.get("params"))
        with _reaching(self.place), self._client.stream(method, path, **options) as reply:
            if reply.is_error:
                reply.read()
                checked(reply)
            yield reply

    def pages(
        self,
        path: str,
        items: str,
        most: int | None,
        params: dict[str, Any] | None = None,
        *,
        method: str = "GET",
        body: Any = None,
    ) -> Iterator[Any]:
        """Items of a list, page after page, at most `most` of them."""
        left, cursor = most, None
        while left is None or left > 0:
            page = self.call(method, path, params={**(params or {}), "cursor": cursor}, json=body)
            for item in page[items]:
                if left == 0:
                    return
                yield item
                left = None if left is None else left - 1
            cursor = page.get("next_cursor")
            if not cursor:
                return


def body_of(reply: httpx.Response) -> Any:
    """JSON where the reply is JSON, else its text; None for an empty body."""
    if not reply.content:
        return None
    try:
        return reply.json()
    except ValueError:
        return reply.text


def checked(reply: httpx.Response) -> httpx.Response:
    """The reply, or `Refused` with the message of any of the server's error shapes."""
    if reply.is_success:
        return reply
    body = body_of(reply)
    raise Refused(reply.status_code, f"{_message(body) or reply.reason_phrase} (HTTP {reply.status_code})", body)


def _message(body: Any) -> str:
    if not isinstance(body, dict):
        return str(body or "").strip()
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("message", ""))
    detail = body.get("detail", error)
    return detail if isinstance(detail, str) else json.dumps(detail if detail is not None else body)


def _given(params: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


@contextmanager
def _reaching(place: Place) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
        hint = "start one with 'varvel up', or name another with --url or VARVEL_URL"
        raise Failure(f"no server answers at {place.url} ({problem}): {hint}", UNREACHABLE) from problem
    except httpx.TransportError as problem:
        raise Failure(
            f"the connection to {place.url} broke: {problem or type(problem).__name__}", UNREACHABLE
        ) from problem
