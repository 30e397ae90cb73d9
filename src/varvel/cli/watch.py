"""`varvel metrics` and `varvel meta`: what other systems read, shown to a person."""

from __future__ import annotations

from typing import Annotated

import typer
from prometheus_client.parser import text_string_to_metric_families

from varvel.cli.requests import require_known
from varvel.cli.session import Session, command, print_text, table


@command
def metrics(
    session: Session,
    app: Annotated[str | None, typer.Argument(help="Only this OWNER/NAME.")] = None,
    raw: Annotated[bool, typer.Option(help="The page as Prometheus reads it.")] = False,
) -> None:
    """The Prometheus page of your apps, as a table, as JSON, or as it is."""
    page = session.server.reply("GET", "/v1/serverless/metrics").text
    if raw:
        print_text(page.rstrip("\n"))
        return
    samples = [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if app is None or sample.labels.get("application") == app
    ]
    if app and not samples:
        require_known(session, [app])
    found = [{"name": item.name, "labels": dict(item.labels), "value": item.value} for item in samples]
    rows = (
        (item.name, " ".join(f"{key}={value}" for key, value in item.labels.items()), item.value) for item in samples
    )
    session.show(found, lambda: table(("metric", "labels", "value"), rows, fold=("labels",)))


@command
def meta(session: Session) -> None:
    """From which addresses this server sends webhooks. Needs no key."""
    found = session.server.get("/v1/meta")
    session.show(found, lambda: table(("webhooks come from",), [(item,) for item in found["webhook_ip_ranges"]]))
