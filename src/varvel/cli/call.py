"""`varvel call`: run an app, through the queue or directly, and print what it answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from varvel.cli import upload
from varvel.cli.connection import FAILED, UNREACHABLE, USAGE, Failure, body_of, checked
from varvel.cli.progress import waiting
from varvel.cli.session import Session, command, print_text

POLL_SECONDS = 0.2
PATIENCE = 30.0
"""Seconds for which a server that went away may take to come back while its queue is being followed."""


@command
def call(
    session: Session,
    app: Annotated[str, typer.Argument(help="OWNER/NAME, or OWNER/NAME/PATH of one of its endpoints.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE (JSON or text), or KEY=@FILE, which is uploaded and becomes a URL."),
    ] = None,
    body: Annotated[str | None, typer.Option("--input", "-i", help="Whole input: JSON, @FILE, or - for stdin.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Call directly instead of through the queue.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit, print the request, and do not wait.")] = False,
    low: Annotated[bool, typer.Option("--low", help="Run only when nothing of normal priority waits.")] = False,
    hint: Annotated[str | None, typer.Option(help="Prefer runners that gave this hint.")] = None,
    start_timeout: Annotated[float | None, typer.Option(help="Give up when it has not started by then.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No logs, no progress.")] = False,
) -> None:
    """Call an app and print its answer.

    The answer goes to stdout; log lines of the request, and progress, to stderr. Exit code 1 when the app failed.
    """
    if app.count("/") < 1:
        raise Failure(f"{app!r} is not OWNER/NAME", USAGE)
    content = read_input(session, arguments or [], body)
    headers = {"x-fal-queue-priority": "low" if low else None, "x-fal-runner-hint": hint}
    headers["x-fal-request-start-timeout"] = None if start_timeout is None else str(start_timeout)
    given = {name: value for name, value in headers.items() if value is not None}
    if sync:
        _direct(session, app, content, given)
        return
    submitted = submit(session, app, content, given)
    if detach:
        session.show(submitted, lambda: str(submitted["request_id"]))
        return
    reply = follow(session, submitted, progress=not quiet, lines=not quiet)
    _print_answer(session, reply)


def read_input(session: Session, arguments: list[str], body: str | None) -> Any:
    """The input of a call from the command line; files in it are uploaded. Raises `Failure`."""
    whole: Any = {}
    if body is not None:
        text = _stdin() if body == "-" else _file(body[1:]) if body.startswith("@") else body
        try:
            whole = json.loads(text)
        except ValueError as problem:
            raise Failure(f"the input is not JSON: {problem}", USAGE) from problem
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not key or not isinstance(whole, dict):
            raise Failure(f"{argument!r} is not KEY=VALUE", USAGE)
        whole[key] = upload.to_url(session, Path(value[1:])) if value.startswith("@") else _value(value)
    return whole


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as problem:
        raise Failure(f"the input is not text: {problem}", USAGE) from problem


def _file(name: str) -> str:
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise Failure(f"{name} cannot be read: {problem}", USAGE) from problem


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def submit(session: Session, app: str, content: Any, headers: dict[str, str]) -> dict[str, Any]:
    """Queue a request; the reply of the submission."""
    submitted: dict[str, Any] = session.server.call("POST", f"/queue/{app.strip('/')}", json=content, headers=headers)
    return submitted


def follow(session: Session, submitted: dict[str, Any], *, progress: bool = True, lines: bool = True) -> httpx.Response:
    """Wait for a queued request, show its progress and its log lines as they come, and give the app's reply.

    Ctrl-C cancels the request. Raises `Failure` when the server stays away.
    """
    try:
        session.say(f"request {submitted['request_id']}")
        with waiting(session.err, "queued", shown=progress) as now:
            for status in statuses(session, submitted):
                now(_stage(status))
                for line in status["new_logs"] if lines else ():
                    session.say(line["message"])
    except KeyboardInterrupt:
        _cancel(session, submitted)
        raise
    return session.server.reply("GET", _path(session, submitted["response_url"]))


def _cancel(session: Session, submitted: dict[str, Any]) -> None:
    try:
        session.server.call("PUT", _path(session, submitted["cancel_url"]))
    except Failure as problem:
        session.say(f"request {submitted['request_id']} was not cancelled: {problem.message}", "yellow")
    else:
        session.say(f"request {submitted['request_id']} is cancelled", "yellow")


def statuses(session: Session, submitted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Status after status until the request is completed; `new_logs` are the lines that were not in the one before."""
    seen = 0
    path = _path(session, submitted["status_url"])
    lost: float | None = None
    while True:
        try:
            status: dict[str, Any] = session.server.get(path, logs=1)
        except Failure as problem:
            lost = lost or time.monotonic()
            if problem.code != UNREACHABLE or time.monotonic() - lost > PATIENCE:
                raise
            time.sleep(POLL_SECONDS)
            continue
        lost = None
        lines = status.get("logs") or []
        status["new_logs"], seen = lines[seen:], max(seen, len(lines))
        yield status
        if status["status"] == "COMPLETED":
            return
        time.sleep(POLL_SECONDS)


def _stage(status: dict[str, Any]) -> str:
    if status["status"] != "IN_QUEUE":
        return "running"
    ahead = status.get("queue_position")
    return f"queued, {ahead} ahead" if ahead else "queued, next: a runner starts or is busy"


def _path(session: Session, url: str) -> str:
    """The path of a URL that the server gave: it is reached under the name that the caller knows."""
    return httpx.URL(url).raw_path.decode()


def _direct(session: Session, app: str, content: Any, headers: dict[str, str]) -> None:
    accept = {"accept": "text/event-stream, application/json;q=0.9, */*;q=0.8"}
    with session.server.stream("POST", f"/run/{app.strip('/')}", json=content, headers=accept | headers) as reply:
        session.say(f"request {reply.headers.get('x-fal-request-id', 'unknown')}")
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            for line in reply.iter_lines():
                if line.startswith("data:"):
                    print_text(line.removeprefix("data:").strip())
            return
        reply.read()
        _print_answer(session, reply)


def _print_answer(session: Session, reply: httpx.Response) -> None:
    """JSON for reading, text as it is, and anything else byte for byte."""
    body = body_of(checked(reply))
    kind = reply.headers.get("content-type", "")
    if kind.startswith("application/json"):
        session.print_json(body)
    elif kind.startswith("text/") or not reply.content:
        print_text(reply.text)
    elif sys.stdout.isatty():
        raise Failure(f"the answer is {len(reply.content)} bytes of {kind or 'unknown kind'}: redirect it", FAILED)
    else:
        sys.stdout.buffer.write(reply.content)
        sys.stdout.buffer.flush()
