"""`varvel keys`: who may call."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from varvel.cli.connection import FAILED, MISSING, Failure
from varvel.cli.session import Session, command, table
from varvel.cli.times import later, near
from varvel.errors import VarvelError

group = typer.Typer(help="Keys: list, create, delete, rotate, recover. They need an ADMIN key.")
NOT_FOUND = 404


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
        rows = ((item["key_id"], item["alias"], item["scope"], *(near(item[time]) for time in times)) for item in found)
        return table(("key", "alias", "scope", "created", "last used", "expires"), rows)

    session.show(found, made, "no API keys: 'varvel keys create NAME' makes one. ADMIN keys are not listed")


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
    """End a key at once and for good. One that is not listed is no error: it holds no more."""
    listed = {item["key_id"] for item in session.server.pages("/v1/keys", "keys", None)}
    session.server.call("DELETE", f"/v1/keys/{key_id}")
    session.say(f"key {key_id} is ended" if key_id in listed else f"there was no key {key_id}")


@group.command()
@command
def recover(
    session: Session,
    owner: Annotated[str, typer.Argument(help="Whose key.")] = "me",
) -> None:
    """Make a new ADMIN key when all are lost. The server must be stopped; this needs only its data folder.

    For the first owner it is also written to DIR/admin.key when that file is gone. It is printed once.
    """
    from varvel import server  # only this command of the group needs it

    data = session.place.data
    if not (data / "state.db").is_file():
        raise Failure(f"{data} is no data folder of a server: name it with --data", MISSING)
    try:
        key = server.recover_key(data, owner)
    except VarvelError as problem:
        raise Failure(problem.message, MISSING if problem.status == NOT_FOUND else FAILED) from problem
    path = data / "admin.key"
    if owner == server.FIRST_OWNER and not path.exists():
        path.touch(mode=0o600)
        path.write_text(key)
        session.say(f"kept in {path}")
    session.show({"key": key, "owner": owner, "scope": "ADMIN"}, lambda: key)


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
