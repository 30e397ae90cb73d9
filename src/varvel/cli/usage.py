"""`varvel usage` and `varvel billing`: what runners cost, and what is left."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli import draw
from varvel.cli.requests import require_known
from varvel.cli.session import Session, command, table
from varvel.cli.times import moment


@command
def usage(
    session: Session,
    app: Annotated[list[str] | None, typer.Argument(help="NAME or OWNER/NAME of apps; all without.")] = None,
    search: Annotated[str | None, typer.Option(help="Apps with this in the name.")] = None,
    timeframe: Annotated[str | None, typer.Option(help="minute, hour, day, week, month.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin; default UTC.")] = None,
    since: Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    whole: Annotated[bool, typer.Option(help="Widen the time to whole buckets.")] = True,
    summary: Annotated[bool, typer.Option(help="One row for the whole time.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="One row for each bucket instead of a drawing.")] = False,
) -> None:
    """Machine-seconds of your runners and what they cost, drawn over time. Needs an ADMIN key."""
    params = {
        "app": [name.rpartition("/")[2] for name in app or []] or None,
        "search": search,
        "timeframe": timeframe,
        "timezone": timezone,
        "start": moment(since),
        "end": moment(until),
        "bound_to_timeframe": str(whole).lower(),
        "expand": ["summary"] if summary else ["time_series"],
    }
    found: Any
    nothing = "no runner of yours was up in that time"
    if summary:
        found = session.server.get("/v1/serverless/usage", **params)
        if not found["summary"]:
            require_known(session, app)
        session.show(found, lambda: _table([("all", found["summary"])]), nothing)
        return
    found = list(session.server.pages("/v1/serverless/usage", "time_series", None, params))
    if not any(bucket["results"] for bucket in found):
        require_known(session, app)
    if session.json or rows:
        session.show(found, lambda: _table([(bucket["bucket"], bucket["results"]) for bucket in found]), nothing)
    else:
        session.show(found, lambda: _drawing(session, found), nothing)


def _drawing(session: Session, buckets: list[dict[str, Any]]) -> Table:
    """A line for each app and machine type: seconds, cost, its share, and the course; then all together."""
    seconds: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], float] = {}
    for index, bucket in enumerate(buckets):
        for item in bucket["results"]:
            key = (item["app"], item["machine_type"])
            seconds.setdefault(key, [0.0] * len(buckets))[index] += float(item["quantity"])
            costs[key] = costs.get(key, 0.0) + float(item["cost_total"])
    if not seconds:
        return table(("app",), ())
    whole = sum(map(sum, seconds.values()))
    room = session.room(max(len(f"{app}{machine}") for app, machine in seconds) + 40, least=25)
    rows = []
    for key in sorted(seconds, key=lambda key: -sum(seconds[key])):
        mine = sum(seconds[key])
        share = f"{draw.bar(mine, whole, 10, ascii_only=session.ascii_only):<10} {mine / whole:>4.0%}"
        rows.append((*key, mine, costs[key], share, _course(session, seconds[key], room)))
    every = [sum(column) for column in zip(*seconds.values(), strict=True)]
    rows.append(("all", "", whole, sum(costs.values()), "", _course(session, every, room)))
    return table(("app", "machine", "seconds", "USD", "share", draw.span([item["bucket"] for item in buckets])), rows)


def _course(session: Session, values: list[float], room: int) -> str:
    return draw.spark(draw.folded(values, room, sum), ascii_only=session.ascii_only)


def _table(groups: list[tuple[str, list[dict[str, Any]]]]) -> Table:
    rows = (
        (
            label,
            item["app"],
            item["machine_type"],
            float(item["quantity"]),
            item["unit"],
            item["unit_price"],
            item["cost_discount"],
            item["cost_total"],
        )
        for label, found in groups
        for item in found
    )
    return table(("bucket", "app", "machine", "quantity", "unit", "unit price", "discount", "cost"), rows)


@command
def billing(session: Session) -> None:
    """Your account and its credits. Needs an ADMIN key."""
    found = session.server.get("/v1/account/billing", expand="credits")
    credits = found.get("credits") or {}
    session.show(
        found,
        lambda: table(
            ("account", "balance", "currency"),
            [(found["username"], credits.get("current_balance"), credits.get("currency"))],
        ),
    )
