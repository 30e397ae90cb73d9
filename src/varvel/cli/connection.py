"""The command line's way to a server: HTTP with a key, and nothing else."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8787"
DEFAULT_DATA = ".varvel"
ADDRESS = "address"
"""File in the data folder that names the URL of the server that runs there."""
CONNECT_SECONDS = 5.0
CALL_SECONDS = 300.0

UNAUTHORIZED = 401
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
    key_from: str = ""
    """Where the key was found."""


def find_place(url: str | None, key: str | None, data: Path | None) -> Place:
    """Server, key and data folder, from flags, then variables, then what the data folder says.

    The URL: `url`, VARVEL_URL, the file `address` of the server that runs on the data folder, else the default. The
    key: `key`, VARVEL_KEY, FAL_KEY, the file `admin.key`. Raises `Failure` for a file that cannot be read.
    """
    environ = os.environ
    folder = data or Path(environ.get("VARVEL_DATA", DEFAULT_DATA))
    sources = [("--key", key), *((name, environ.get(name)) for name in ("VARVEL_KEY", "FAL_KEY"))]
    given = next(((name, value) for name, value in sources if value), None)
    if given is None and (kept := _text(folder / "admin.key")):
        given = (str(folder / "admin.key"), kept)
    address = url or environ.get("VARVEL_URL") or _text(folder / ADDRESS) or DEFAULT_URL
    address = address if "://" in address else f"http://{address}"
    return Place(address.rstrip("/"), given[1] if given else None, folder, given[0] if given else "")


def _text(path: Path) -> str:
    """What a small file holds; nothing when it is not there."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        raise Failure(f"{path} cannot be read: {problem}", DENIED) from problem


def _trusted(folder: Path) -> ssl.SSLContext | bool:
    """What the system trusts, and the authority that a server on this data folder made."""
    authority = folder / "tls" / "ca.pem"
    if not authority.is_file():
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as problem:
        raise Failure(f"{authority} is no certificate: {problem}") from problem
    return context


class Connection:
    """One server. Every method raises `Failure` with a message for people."""

    def __init__(self, place: Place) -> None:
        self.place = place
        headers = {"authorization": f"Key {place.key}"} if place.key else {}
        timeout = httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS)
        # Proxies of the environment are for the internet, not for a server on this machine.
        trusted = _trusted(place.data) if place.url.startswith("https:") else True
        try:
            self._client = httpx.Client(
                base_url=place.url, headers=headers, timeout=timeout, trust_env=False, verify=trusted
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as problem:
            raise Failure(f"neither URL {place.url!r} nor its key can be used: {problem}", USAGE) from problem

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
        return self._checked(reply)

    def _checked(self, reply: httpx.Response) -> httpx.Response:
        """The reply; of one that asks for a good key, which was shown."""
        try:
            return checked(reply)
        except Refused as problem:
            if problem.status == UNAUTHORIZED:
                raise Refused(problem.status, f"{problem.message}: {_shown(self.place)}", problem.body) from None
            raise

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A reply whose body comes piece by piece."""
        options["params"] = _given(options.get("params"))
        with _reaching(self.place), self._client.stream(method, path, **options) as reply:
            if reply.is_error:
                reply.read()
                self._checked(reply)
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


def _shown(place: Place) -> str:
    """For the reader of a 401: which key was shown, and how to have a good one."""
    if place.key is None:
        return (
            f"there is no key in --key, VARVEL_KEY, FAL_KEY or {place.data / 'admin.key'}. Run this beside the "
            "server's data folder, name that with --data, or make a key with 'varvel keys recover'"
        )
    return f"{place.url} does not know the key of {place.key_from or 'this call'}, which is ID:SECRET of a key it made"


@contextmanager
def _reaching(place: Place) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
        raise Failure(_unreached(place, problem), UNREACHABLE) from problem
    except httpx.UnsupportedProtocol as problem:
        raise Failure(f"{place.url} is no URL of a server, such as {DEFAULT_URL}", USAGE) from problem
    except httpx.LocalProtocolError as problem:
        raise Failure(f"this cannot be sent: {problem}", USAGE) from problem
    except httpx.TransportError as problem:
        said = str(problem).rstrip(".") or type(problem).__name__
        hint = ""
        if isinstance(problem, httpx.RemoteProtocolError) and place.url.startswith("http:"):
            hint = "; if that is its TLS port, say https"
        raise Failure(f"the connection to {place.url} broke: {said}{hint}", UNREACHABLE) from problem


def _unreached(place: Place, problem: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(problem):
        return (
            f"the certificate of {place.url} is not trusted: name the server's data folder with --data (its authority "
            f"is tls/ca.pem there, looked for in {place.data}) ({problem})"
        )
    hint = "start one with 'varvel up', or name another with --url or VARVEL_URL"
    return f"no server answers at {place.url} ({problem}): {hint}"
