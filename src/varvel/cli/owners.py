"""`varvel owners`: who has apps on this server."""

from __future__ import annotations

from typing import Annotated

import typer

from varvel.cli.session import Session, command, table

group = typer.Typer(help="Owners: list, add. Only the first owner may.", no_args_is_help=True)


@group.command("list")
@command
def list_owners(session: Session) -> None:
    """Everybody who may deploy here."""
    found = session.server.get("/control/owners")
    session.show(found, lambda: table(("owner",), [(owner,) for owner in found["owners"]]))


@group.command()
@command
def add(
    session: Session,
    name: Annotated[str, typer.Argument(help="Nickname: the first part of its app ids.")],
    email: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Add an owner and print its ADMIN key, once."""
    found = session.server.call("POST", "/control/owners", json={"nickname": name, "email": email})
    session.say(f"the ADMIN key of {name}; it is not shown again")
    session.show(found, lambda: str(found["key"]))
