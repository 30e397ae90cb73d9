"""`varvel requests`: records of finished requests."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli import draw
from varvel.cli.connection import USAGE, Failure
from varvel.cli.session import Session, command, table
from varvel.cli.times import moment, near, short

PAGE = 100
MOST_ENDPOINTS = 50


@command
def requests(
    session: Session,
    endpoint: Annotated[
        list[str] | None, typer.Argument(help="OWNER/NAME or an endpoint of it; all apps without.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="success, user_error or error.")] = None,
    request: Annotated[str | None, typer.Option(help="One request by its id.")] = None,
    since: Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    sort: Annotated[str | None, typer.Option(help="ended_at (newest first) or duration (longest first).")] = None,
    env: Annotated[str | None, typer.Option(help="All apps of this environment instead of main.")] = None,
    payloads: Annotated[bool, typer.Option(help="With input and output (--json).")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
) -> None:
    """Finished requests with status, times and billable units."""
    params = {
        "endpoint_id": endpoint or all_apps(session, env),
        "status": status,
        "request_id": request,
        "start": moment(since),
        "end": moment(until),
        "sort_by": sort,
        "expand": ["payloads", "billing"] if payloads else ["billing"],
        "limit": min(limit, PAGE),
    }
    found = list(session.server.pages("/v1/serverless/requests/by-endpoint", "items", limit, params))
    if not found:
        require_known(session, endpoint)
    if request and len(found) == 1:
        session.show(found, lambda: _one(session, found[0]))
    else:
        session.show(found, lambda: _table(found), "no request that fits ended in that time")


def require_known(session: Session, names: list[str] | None) -> None:
    """For a query that found nothing: raises `Failure` when an app that it names is none (any more)."""
    for name in names or []:
        owner, slash, rest = name.strip("/").partition("/")
        if slash and rest:
            session.server.get(f"/v1/serverless/apps/{owner}/{rest.partition('/')[0]}/queue")


def _one(session: Session, item: dict[str, Any]) -> Table:
    """One request, with the time that it waited beside the time that it ran."""
    ran = float(item["duration"] or 0)
    sent, ended = (datetime.fromisoformat(item[name]) for name in ("sent_at", "ended_at"))
    waited = max(0.0, (ended - sent).total_seconds() - ran)
    room = session.room(24, most=40)

    def timed(seconds: float) -> str:
        return f"{seconds:>9.3f} s  {draw.bar(seconds, max(waited, ran), room, ascii_only=session.ascii_only)}"

    rows = [
        ("request", item["request_id"]),
        ("endpoint", item["endpoint_id"]),
        ("status", str(item["status_code"])),
        ("sent", short(item["sent_at"])),
        ("waited", timed(waited)),
        ("ran", timed(ran)),
        ("ended", short(item["ended_at"])),
        ("units", None if item.get("billable_units") is None else f"{float(item['billable_units']):g}"),
        ("runner", item.get("runner_id")),
    ]
    return table(("", ""), [(name, value) for name, value in rows if value is not None])


def all_apps(session: Session, env: str | None = None) -> list[str]:
    """Ids of the caller's apps in an environment, as many as one query takes. Raises `Failure` when there are none."""
    found = [str(app["endpoint_id"]) for app in session.server.get("/v1/serverless/apps", environment=env)["apps"]]
    if not found:
        raise Failure(f"you have no apps{f' in {env}' if env else ' yet'}: 'varvel deploy FILE.py' makes one", USAGE)
    if len(found) > MOST_ENDPOINTS:
        session.say(f"of the first {MOST_ENDPOINTS} of {len(found)} apps; name others", "yellow")
    return found[:MOST_ENDPOINTS]


def _table(found: list[dict[str, Any]]) -> Table:
    columns = ("ended", "endpoint", "request", "code", "seconds", "units")
    rows = (
        (
            near(item["ended_at"]),
            item["endpoint_id"],
            item["request_id"],
            item["status_code"],
            None if item["duration"] is None else float(item["duration"]),
            None if item.get("billable_units") is None else float(item["billable_units"]),
        )
        for item in found
    )
    return table(columns, rows, fold=("endpoint",))
