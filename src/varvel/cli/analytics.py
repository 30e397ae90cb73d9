"""`varvel analytics`: counts and percentiles over time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli import draw
from varvel.cli.requests import all_apps, require_known
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
    rows: Annotated[bool, typer.Option("--rows", help="One row for each bucket instead of a drawing.")] = False,
) -> None:
    """Requests, errors and durations over time, drawn for each endpoint beside the figure of the whole time."""
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
    nothing = "nothing ended in that time"
    if summary:
        found = session.server.get("/v1/serverless/analytics", **params)
        if not found["summary"]:
            require_known(session, endpoint)
        session.show(found, lambda: _rows([("all", found["summary"])], wanted), nothing)
        return
    found = list(session.server.pages("/v1/serverless/analytics", "time_series", None, params))
    if not any(bucket["results"] for bucket in found):
        require_known(session, endpoint)
    if session.json or rows:
        session.show(found, lambda: _rows([(item["bucket"], item["results"]) for item in found], wanted), nothing)
        return
    totals = session.server.get("/v1/serverless/analytics", **{**params, "expand": ["summary", *wanted]})["summary"]
    session.show(found, lambda: _drawing(session, found, totals, wanted), nothing)


def _rows(groups: list[tuple[str, list[dict[str, Any]]]], metrics: list[str]) -> Table:
    rows = (
        (label, item["endpoint_id"], *(item.get(metric) for metric in metrics))
        for label, found in groups
        for item in found
    )
    return table(("bucket", "endpoint", *metrics), rows)


def _drawing(
    session: Session, buckets: list[dict[str, Any]], totals: list[dict[str, Any]], metrics: list[str]
) -> Table:
    """A line for each endpoint and metric: the figure of the whole time, the peak of a bucket, and the course."""
    names = [total["endpoint_id"] for total in totals]
    room = session.room(max(map(len, ["endpoint", *names])) + max(map(len, metrics)) + 24, least=25)
    rows = []
    for total in totals:
        by_bucket = [_of(bucket, total["endpoint_id"]) for bucket in buckets]
        for index, metric in enumerate(metrics):
            values = [(item or {}).get(metric, None if "duration" in metric else 0) for item in by_bucket]
            course = draw.spark(
                draw.folded(values, room, max if "duration" in metric else sum), ascii_only=session.ascii_only
            )
            peak = max((value for value in values if value is not None), default=None)
            label = total["endpoint_id"] if index == 0 else ""
            rows.append((label, metric, total.get(metric), peak, course))
    columns = ("endpoint", "metric", "whole", "peak", draw.span([bucket["bucket"] for bucket in buckets]))
    return table(columns, rows)


def _of(bucket: dict[str, Any], endpoint: str) -> dict[str, Any] | None:
    return next((item for item in bucket["results"] if item["endpoint_id"] == endpoint), None)
