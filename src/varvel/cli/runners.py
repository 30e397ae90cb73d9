"""`varvel runners`: the processes that serve apps, at this moment or over time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli import draw
from varvel.cli.session import Session, app_parts, command, table
from varvel.cli.times import moment, near, short

STATES = ("running", "idle", "pending", "draining")


@command
def runners(
    session: Session,
    app: Annotated[str | None, typer.Argument(help="OWNER/NAME: its runners over time.")] = None,
    since: Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    timeframe: Annotated[str | None, typer.Option(help="minute, hour, day, week, month.")] = None,
    average: Annotated[bool, typer.Option(help="Mean over each bucket instead of the most at any moment.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="One row for each bucket instead of a drawing.")] = False,
    every: Annotated[bool, typer.Option("--all", help="With --rows: also buckets in which there was none.")] = False,
) -> None:
    """Runners at this moment; of an APP that is named, how many there were over time."""
    if app is None:
        found = session.server.get("/control/runners")
        session.show(found, lambda: _now(found), "no runner is up: one starts with the next call")
        return
    owner, name = app_parts(app)
    found = session.server.get(
        f"/v1/serverless/apps/{owner}/{name}/runners/history",
        start=moment(since),
        end=moment(until),
        timeframe=timeframe,
        aggregation="avg" if average else "max",
    )
    if rows or every:
        session.show(found, lambda: _history(found["history"], every), f"{app} had no runner in that time")
    else:
        session.show(found, lambda: _drawing(session, found["history"], average))


def _now(found: dict[str, Any]) -> Table:
    columns = ("app", "runner", "state", "in flight", "cpu %", "MiB", "since")
    rows = (
        (
            item["app"],
            item["runner_id"],
            item["state"],
            item["in_flight"],
            float(item["cpu_percent"]),
            item["memory_bytes"] // 2**20,
            near(item["started_at"]),
        )
        for item in found["runners"]
    )
    return table(columns, rows)


def _drawing(session: Session, buckets: list[dict[str, Any]], average: bool) -> Table:
    """A line for each state: the last figure, the peak, and the course."""
    room = session.room(26, least=25)
    rows = []
    for state in STATES:
        values = [float(bucket[state]) for bucket in buckets]
        course = draw.spark(draw.folded(values, room, max), ascii_only=session.ascii_only)
        rows.append((state, values[-1] if values else 0.0, max(values, default=0.0), course))
    columns = ("runners", "last", "highest mean" if average else "peak")
    return table((*columns, draw.span([bucket["timestamp"] for bucket in buckets])), rows)


def _history(buckets: list[dict[str, Any]], every: bool) -> Table:
    rows = (
        (short(bucket["timestamp"]), *(float(bucket[state]) for state in STATES))
        for bucket in buckets
        if every or any(bucket[state] for state in STATES)
    )
    return table(("bucket", *STATES), rows)
