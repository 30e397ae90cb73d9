"""`varvel usage` and `varvel billing`: what runners cost, and what is left."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

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
) -> None:
    """Machine-seconds of your runners and what they cost. Needs an ADMIN key."""
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
    if summary:
        found = session.server.get("/v1/serverless/usage", **params)
        session.show(found, lambda: _table([("all", found["summary"])]))
        return
    found = list(session.server.pages("/v1/serverless/usage", "time_series", None, params))
    session.show(found, lambda: _table([(bucket["bucket"], bucket["results"]) for bucket in found]))


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
