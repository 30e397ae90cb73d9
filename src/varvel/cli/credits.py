"""`varvel credits`: money that owners may use machines for."""

from __future__ import annotations

from typing import Annotated

import typer

from varvel.cli.session import Session, command, table
from varvel.cli.times import short

group = typer.Typer(help="Credit: list, add. They need an ADMIN key.", no_args_is_help=True)


@group.command("list")
@command
def list_credits(session: Session) -> None:
    """All credit that you were given. `varvel billing` tells what is left."""
    found = session.server.get("/v1/account/credits")
    rows = [(short(item["granted_at"]), item["amount"], item["currency"], item["note"]) for item in found["credits"]]
    session.show(found, lambda: table(("given", "amount", "currency", "note"), rows))


@group.command(context_settings={"ignore_unknown_options": True})  # an amount may begin with a minus
@command
def add(
    session: Session,
    owner: Annotated[str, typer.Argument(help="Nickname of who gets it.")],
    amount: Annotated[str, typer.Argument(help="USD, such as 24.50; -4.25 takes some back.")],
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Give credit to an owner, which only the first owner may."""
    body = {"owner": owner, "amount": amount, "note": note}
    found = session.server.call("POST", "/v1/account/credits", json=body)
    session.show(found, lambda: f"{owner} was given {found['amount']} {found['currency']}")
