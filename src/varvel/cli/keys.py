"""`varvel keys`: who may call."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from varvel.cli.session import Session, command, table
from varvel.cli.times import later, short

group = typer.Typer(help="Keys: list, create, delete, rotate. They need an ADMIN key.")


@group.callback(invoke_without_command=True)
@command
def keys(session: Session, context: typer.Context) -> None:
    """Your API keys."""
    if context.invoked_subcommand is None:
        _list(session)


@group.command("list")
@command
def list_keys(session: Session) -> None:
    """Your API keys."""
    _list(session)


def _list(session: Session) -> None:
    found = list(session.server.pages("/v1/keys", "keys", None, {"expand": ["creator_info", "usage"]}))

    def made() -> Table:
        times = ("created_at", "last_used_at", "expires_at")
        rows = (
            (item["key_id"], item["alias"], item["scope"], *(short(item[time]) for time in times)) for item in found
        )
        return table(("key", "alias", "scope", "created", "last used", "expires"), rows)

    session.show(found, made)


@group.command()
@command
def create(
    session: Session,
    alias: Annotated[str, typer.Argument(help="A name for people.")],
    expires: Annotated[str | None, typer.Option(help="When it ends: 90d from now, or an ISO time.")] = None,
) -> None:
    """Make a key of scope API. It is shown once."""
    body = {"alias": alias, **({"expires_at": later(expires)} if expires else {})}
    found = session.server.call("POST", "/v1/keys", json=body)
    session.show(found, lambda: str(found["key"]))


@group.command("delete")
@command
def delete_key(session: Session, key_id: Annotated[str, typer.Argument()]) -> None:
    """End a key at once and for good."""
    session.server.call("DELETE", f"/v1/keys/{key_id}")
    session.say(f"key {key_id} is ended")


@group.command()
@command
def rotate(
    session: Session,
    key_id: Annotated[str, typer.Argument()],
    overlap: Annotated[
        float | None, typer.Option(help="Seconds for which the old one goes on; an hour without it.")
    ] = None,
) -> None:
    """Make a key in place of another, which ends after an overlap. It is shown once."""
    body = None if overlap is None else {"overlap_seconds": overlap}
    found = session.server.call("POST", f"/v1/keys/{key_id}/rotate", json=body)
    session.show(found, lambda: str(found["key"]))
