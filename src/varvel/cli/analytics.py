"""`varvel analytics`: counts and percentiles over time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli.requests import all_apps
from varvel.cli.session import Session, command, table
from varvel.cli.times import moment

METRICS = ["request_count", "success_count", "user_error_count", "error_count", "p50_duration", "p90_duration"]


@command
def analytics(
    session: Session,
    endpoint: Annotated[
        list[str] | None, typer.Argument(help="OWNER/NAME or an endpoint of it; all apps without.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Such as p90_duration; repeatable.")] = None,
    summary: Annotated[bool, typer.Option(help="One row for the whole time.")] = False,
    timeframe: Annotated[str | None, typer.Option(help="minute, hour, day, week, month.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin; default UTC.")] = None,
    since: Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    env: Annotated[str | None, typer.Option(help="All apps of this environment instead of main.")] = None,
    whole: Annotated[bool, typer.Option(help="Widen the time to whole buckets.")] = True,
) -> None:
    """Requests, errors and durations, by time bucket."""
    wanted = metric or METRICS
    kind = "summary" if summary else "time_series"
    params = {
        "endpoint_id": endpoint or all_apps(session, env),
        "expand": [kind, *wanted],
        "timeframe": timeframe,
        "timezone": timezone,
        "start": moment(since),
        "end": moment(until),
        "bound_to_timeframe": str(whole).lower(),
    }
    found: Any
    if summary:
        found = session.server.get("/v1/serverless/analytics", **params)
        session.show(found, lambda: _table([("all", found["summary"])], wanted))
        return
    found = list(session.server.pages("/v1/serverless/analytics", "time_series", None, params))
    session.show(found, lambda: _table([(bucket["bucket"], bucket["results"]) for bucket in found], wanted))


def _table(groups: list[tuple[str, list[dict[str, Any]]]], metrics: list[str]) -> Table:
    rows = (
        (label, item["endpoint_id"], *(item.get(metric) for metric in metrics))
        for label, found in groups
        for item in found
    )
    return table(("bucket", "endpoint", *metrics), rows)
