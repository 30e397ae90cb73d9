"""`varvel logs`: what apps printed, from history or as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from varvel.cli.connection import UNREACHABLE, USAGE, Connection, Failure
from varvel.cli.requests import require_known
from varvel.cli.session import Session, command
from varvel.cli.times import moment, short

PAGE = 1000
RECONNECT_SECONDS = 1.0
_COLORS = {"error": "red", "stderr": "yellow", "warning": "yellow", "debug": "dim", "trace": "dim"}


@command
def logs(
    session: Session,
    app: Annotated[str | None, typer.Argument(help="OWNER/NAME; without it, of all your apps.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they come.")] = False,
    request: Annotated[str | None, typer.Option(help="Of one request.")] = None,
    runner: Annotated[str | None, typer.Option(help="Of one runner.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of one revision.")] = None,
    level: Annotated[str | None, typer.Option(help="At least this level, such as warning.")] = None,
    search: Annotated[str | None, typer.Option(help="With this text.")] = None,
    source: Annotated[str | None, typer.Option(help="gateway (apps), grpc-register (builds).")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE or KEY!=VALUE of a label, several values by commas; repeatable, all must hold."),
    ] = None,
    tracebacks: Annotated[bool, typer.Option(help="With lines that hold a traceback.")] = True,
    since: Annotated[str | None, typer.Option(help="From then on: 15m, 2h, 7d, or an ISO time.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Newest lines of the history to print.")] = 100,
) -> None:
    """Log lines, oldest first. With -f it ends on Ctrl-C."""
    params: dict[str, Any] = {
        "app_id": app,
        "request_id": request,
        "job_id": runner,
        "revision": revision,
        "level": level,
        "search": search,
        "run_source": source,
        "traceback": None if tracebacks else "false",
        "start": moment(since),
        "end": moment(until),
    }
    labels = [label_filter(text) for text in label or []] or None
    found = history(session.server, params, limit, labels)
    if app and not found:
        require_known(session, [app])
    if not found and not follow:
        session.say("no log line that fits was printed in that time")
    for item in found:
        show(session, item)
    if follow:
        _follow(session, params, labels, found[-1]["timestamp"] if found else None)


def label_filter(text: str) -> dict[str, Any]:
    """`KEY=VALUE`, `KEY!=VALUE`, `KEY=A,B` or `KEY!=A,B` as the API takes it. Raises `Failure`."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip("!"):
        raise Failure(f"--label {text!r} is neither KEY=VALUE nor KEY!=VALUE", USAGE)
    negated, values = key.endswith("!"), value.split(",")
    kind = f"{'not_' if negated else ''}{'in' if len(values) > 1 else 'equals'}"
    return {"key": key.rstrip("!"), "value": values if len(values) > 1 else value, "condition_type": kind}


def history(
    server: Connection, params: dict[str, Any], limit: int, labels: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The newest `limit` lines, oldest first."""
    asked = {**params, "limit": min(limit, PAGE)} if limit else params
    path = "/v1/serverless/logs/history"
    found = list(server.pages(path, "items", limit, asked, method="POST", body=labels))
    return sorted(found, key=lambda item: str(item["timestamp"]))


def _follow(session: Session, params: dict[str, Any], labels: list[dict[str, Any]] | None, last: str | None) -> None:
    """Live lines; after a broken connection it goes on behind the last one."""
    params = {**params, "start": last or params.get("start"), "end": None}
    resume: str | None = None
    away = False
    while True:
        try:
            for event_id, item in events(session.server, params, resume, labels):
                resume, away = event_id or resume, False
                if "timestamp" not in item:
                    session.say(json.dumps(item), "yellow")
                elif last is None or item["timestamp"] > last:
                    show(session, item)
                    last = item["timestamp"]
        except Failure as problem:
            if problem.code != UNREACHABLE:
                raise
            if not away:
                session.say(f"{problem.message}; trying again until it is back", "yellow")
            away = True
        time.sleep(RECONNECT_SECONDS)


def events(
    server: Connection, params: dict[str, Any], resume: str | None, labels: list[dict[str, Any]] | None = None
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Id and JSON of each event of the log stream."""
    headers = {"accept": "text/event-stream", **({"last-event-id": resume} if resume else {})}
    path = "/v1/serverless/logs/stream"
    with server.stream("POST", path, params=params, headers=headers, json=labels, timeout=None) as reply:
        event_id: str | None = None
        for line in reply.iter_lines():
            name, _, value = line.partition(":")
            if name == "id":
                event_id = value.strip()
            elif name == "data":
                yield event_id, json.loads(value)


def show(session: Session, item: dict[str, Any]) -> None:
    """One line, as JSON or for reading."""
    if session.json:
        session.print_line(item)
        return
    request = item.get("labels", {}).get("fal_request_id", "")
    text = Text()
    text.append(short(item["timestamp"]), "dim")
    text.append(f" {item['level']:<7}", _COLORS.get(item["level"], "cyan"))
    text.append(f" {item['app']}", "bold")
    text.append(f" {request[-12:]}" if request else "", "dim")
    text.append(f" {item['message']}")
    session.out.print(text)
