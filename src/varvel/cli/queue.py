"""`varvel queue`: what waits."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from varvel.cli.session import Session, app_parts, command, table

group = typer.Typer(help="What waits: size, flush.", no_args_is_help=True)
AppArgument = Annotated[str, typer.Argument(metavar="APP", help="OWNER/NAME.")]


@group.command()
@command
def size(session: Session, app: AppArgument) -> None:
    """How many requests of an app wait."""
    owner, name = app_parts(app)
    found = session.server.get(f"/v1/serverless/apps/{owner}/{name}/queue")
    session.show(found, lambda: table(("app", "waiting"), [(app, found["queue_size"])]))


@group.command()
@command
def flush(
    session: Session,
    app: AppArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Cancel every request of an app that waits. What runs goes on."""
    owner, name = app_parts(app)
    if not yes:
        session.ask(f"Cancel every waiting request of {app}?")
    headers = {"idempotency-key": uuid.uuid4().hex}
    session.server.call("DELETE", f"/v1/serverless/apps/{owner}/{name}/queue", headers=headers)
    session.say(f"nothing waits for {app} now")
