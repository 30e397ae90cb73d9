"""`varvel apps`: what is deployed, how it scales, which revision serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from varvel.cli.connection import USAGE, Failure
from varvel.cli.runners import runners
from varvel.cli.session import Session, app_parts, command, table
from varvel.cli.times import moment, near, short

group = typer.Typer(help="Apps: list, show, scale, rollback, delete, revisions, events, runners.")
AppArgument = Annotated[str, typer.Argument(metavar="APP", help="OWNER/NAME.")]


@group.callback(invoke_without_command=True)
@command
def apps(session: Session, context: typer.Context) -> None:
    """Your apps."""
    if context.invoked_subcommand is None:
        _list(session)


@group.command("list")
@command
def list_apps(
    session: Session,
    search: Annotated[str | None, typer.Option(help="With this in the name.")] = None,
    env: Annotated[str | None, typer.Option(help="Of this environment instead of main.")] = None,
    endpoints: Annotated[bool, typer.Option(help="With the ids of their endpoints (--json).")] = False,
) -> None:
    """Your apps."""
    _list(session, search=search, environment=env, expand="endpoints" if endpoints else None)


def _list(session: Session, **params: str | None) -> None:
    found = session.server.get("/v1/serverless/apps", **params)

    def made() -> Table:
        columns = ("app", "auth", "machine", "keep alive", "min", "max", "updated")
        keys = ("endpoint_id", "auth_mode", "machine_type", "keep_alive", "min_concurrency", "max_concurrency")
        return table(columns, ([*(app[key] for key in keys), near(app["updated_at"])] for app in found["apps"]))

    session.show(found, made, "no app: 'varvel deploy FILE.py' makes one")


@group.command()
@command
def show(session: Session, app: AppArgument) -> None:
    """One app: scaling, revision, runners."""
    owner, name = app_parts(app)
    found = session.server.get(f"/control/apps/{owner}/{name}")
    session.show(found, lambda: _described(found))


def _described(found: dict[str, Any]) -> Table:
    revision = found["revision"]
    rows: list[tuple[str, object]] = [
        ("app", found["app"]),
        ("auth", found["auth_mode"]),
        ("revision", f"{revision['revision_id']} of {short(revision['created_at'])}"),
        ("message", revision["message"]),
        ("endpoints", " ".join(revision["endpoints"])),
        ("machine", revision["spec"]["machine_type"]),
        *((name.replace("_", " "), value) for name, value in found["scaling"].items()),
    ]
    rows += [
        ("runner", f"{item['runner_id']} {item['state']} {item['memory_bytes'] // 2**20} MiB")
        for item in found["runners"]
    ]
    shown = ((name, str(value)) for name, value in rows if value is not None)
    return table(("", ""), shown, fold=("",))


@group.command()
@command
def scale(
    session: Session,
    app: AppArgument,
    keep_alive: Annotated[float | None, typer.Option(help="Seconds that an idle runner stays.")] = None,
    min_concurrency: Annotated[int | None, typer.Option(help="Runners that are always there.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Most runners.")] = None,
    concurrency_buffer: Annotated[int | None, typer.Option(help="Free runners to have ready.")] = None,
    concurrency_buffer_perc: Annotated[int | None, typer.Option(help="The same in percent of the load.")] = None,
    scaling_delay: Annotated[float | None, typer.Option(help="Seconds before another runner starts.")] = None,
    request_timeout: Annotated[float | None, typer.Option(help="Seconds that a request may take.")] = None,
    auth: Annotated[str | None, typer.Option(help="private, public or shared.")] = None,
) -> None:
    """Change an app without deploying it; what is changed here outlives deployments."""
    owner, name = app_parts(app)
    given = {
        "keep_alive": keep_alive,
        "min_concurrency": min_concurrency,
        "max_concurrency": max_concurrency,
        "concurrency_buffer": concurrency_buffer,
        "concurrency_buffer_perc": concurrency_buffer_perc,
        "scaling_delay": scaling_delay,
        "request_timeout": request_timeout,
    }
    scaling = {key: value for key, value in given.items() if value is not None}
    if not scaling and auth is None:
        raise Failure("nothing to change was given", USAGE)
    body = {"scaling": scaling, **({"auth_mode": auth} if auth else {})}
    found = session.server.call("PATCH", f"/control/apps/{owner}/{name}", json=body)
    session.show(found, lambda: _described(found))


@group.command()
@command
def rollback(session: Session, app: AppArgument, revision: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Let an earlier revision serve again."""
    owner, name = app_parts(app)
    path = f"/control/apps/{owner}/{name}/revision"
    found = session.server.call("POST", path, json={"revision_id": revision})
    session.show(found, lambda: _described(found))


@group.command("delete")
@command
def delete_app(
    session: Session, app: AppArgument, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Delete an app and its revisions. Its requests, logs and bills stay."""
    owner, name = app_parts(app)
    if not yes:
        session.ask(f"Delete {app} and all its revisions?")
    session.server.call("DELETE", f"/control/apps/{owner}/{name}")
    session.say(f"{app} is deleted")


@group.command()
@command
def revisions(session: Session, app: AppArgument) -> None:
    """Revisions of an app, newest first."""
    owner, name = app_parts(app)
    found = list(session.server.pages(f"/v1/serverless/apps/{owner}/{name}/revisions", "revisions", None))

    def made() -> Table:
        columns = ("", "revision", "created", "status", "by", "message")
        keys = ("status", "deployed_by", "message")
        rows = (
            ["*" if item["is_current"] else "", item["revision_id"], near(item["created_at"])]
            + [item[key] for key in keys]
            for item in found
        )
        return table(columns, rows, fold=("message",))

    session.show(found, made)


@group.command()
@command
def events(
    session: Session,
    app: AppArgument,
    since: Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Such as deployment_ended; repeatable.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
) -> None:
    """What happened to an app, newest first."""
    owner, name = app_parts(app)
    path = f"/v1/serverless/apps/{owner}/{name}/events"
    params = {"start": moment(since), "end": moment(until), "category": category or None, "limit": min(limit, 1000)}
    found = list(session.server.pages(path, "events", limit, params))

    def made() -> Table:
        rows = ((near(item["created_at"]), item["category"], "  ".join(_details(item["payload"]))) for item in found)
        return table(("time", "event", "details"), rows, fold=("details",))

    session.show(found, made, f"nothing happened to {app} in that time")


def _details(payload: dict[str, Any]) -> Iterator[str]:
    """`key=value` of what an event tells; of somebody, the nickname."""
    for key, value in payload.items():
        yield f"{key}={value.get('nickname', value) if isinstance(value, dict) else value}"


group.command()(runners)
