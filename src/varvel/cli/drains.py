"""`varvel drains`: where log lines are sent as they come."""

from __future__ import annotations

from typing import Annotated

import typer

from varvel.cli.session import Session, command, table
from varvel.cli.times import short

group = typer.Typer(help="Log drains: list, create, enable, disable, delete. They need an ADMIN key.")
PATH = "/v1/serverless/log-drains"
DrainId = Annotated[str, typer.Argument(metavar="DRAIN")]


@group.callback(invoke_without_command=True)
@command
def drains(session: Session, context: typer.Context) -> None:
    """Your log drains."""
    if context.invoked_subcommand is None:
        _list(session)


@group.command("list")
@command
def list_drains(session: Session) -> None:
    """Your log drains and how they are doing."""
    _list(session)


def _list(session: Session) -> None:
    found = session.server.get(PATH)
    columns = ("drain", "type", "url", "active", "failures", "last sent", "last error")
    session.show(
        found,
        lambda: table(
            columns,
            (
                (
                    item["drain_id"],
                    item["type"],
                    item["url"],
                    "yes" if item["active"] else "no",
                    item["failures"],
                    short(item["last_sent_at"]),
                    item["last_error"],
                )
                for item in found["drains"]
            ),
            fold=("url", "last error"),
        ),
        "no drain: 'varvel drains create URL --secret ...' makes one",
    )


@group.command()
@command
def create(
    session: Session,
    target: Annotated[str, typer.Argument(metavar="URL", help="Where batches are posted; https.")],
    secret: Annotated[str, typer.Option(help="Signs each batch (64 characters or more), or Datadog's API key.")],
    kind: Annotated[str, typer.Option("--type", help="http or datadog.")] = "http",
    batch_size: Annotated[int, typer.Option(help="Most lines in a post.")] = 1000,
) -> None:
    """Have the log lines of your apps posted to a URL from now on."""
    body = {"type": kind, "url": target, "secret": secret, "batch_size": batch_size}
    found = session.server.call("POST", PATH, json=body)
    session.show(found, lambda: str(found["drain_id"]))


def _switch(session: Session, drain_id: str, active: bool) -> None:
    found = session.server.call("PATCH", f"{PATH}/{drain_id}", json={"active": active})
    session.show(found, lambda: f"drain {drain_id} is {'on' if found['active'] else 'off'}")


@group.command()
@command
def enable(session: Session, drain: DrainId) -> None:
    """Switch a drain on; it goes on where it stopped, as long as the logs are kept."""
    _switch(session, drain, active=True)


@group.command()
@command
def disable(session: Session, drain: DrainId) -> None:
    """Switch a drain off."""
    _switch(session, drain, active=False)


@group.command()
@command
def delete(session: Session, drain: DrainId) -> None:
    """Stop a drain and forget it."""
    session.server.call("DELETE", f"{PATH}/{drain}")
    session.say(f"drain {drain} is deleted")
