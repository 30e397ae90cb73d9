"""The `varvel` command: its parts, and what its exit codes mean."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from varvel import __version__
from varvel.cli import (
    analytics,
    apps,
    call,
    demo,
    deploy,
    doctor,
    drains,
    export,
    files,
    keys,
    logs,
    owners,
    queue,
    requests,
    runners,
    up,
    usage,
    watch,
)
from varvel.cli.connection import INTERRUPTED, Failure

HELP = """Run Python apps on your own machines, call them through a queue, and look after them.

Exit codes: 0 it worked; 1 it failed (the app answered an error, a deployment was refused, files differ);
2 wrong usage; 3 no server answers; 4 the key does not allow it; 5 there is no such thing; 130 Ctrl-C.
"""

app = typer.Typer(name="varvel", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for command in (up.up, demo.demo, deploy.deploy, call.call, logs.logs, requests.requests, analytics.analytics):
    app.command()(command)
for command in (apps.events, apps.revisions, runners.runners, watch.metrics, usage.usage, usage.billing):
    app.command()(command)
for command in (export.focus, export.export, watch.meta, doctor.doctor):
    app.command()(command)
app.add_typer(apps.group, name="apps")
app.add_typer(files.group, name="files")
app.add_typer(queue.group, name="queue")
app.add_typer(drains.group, name="drains")
app.add_typer(keys.group, name="keys")
app.add_typer(owners.group, name="owners")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"varvel {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code. Errors of a command are one message on stderr, never a traceback."""
    try:
        app(arguments)
    except Failure as problem:
        _complain(problem.message)
        return problem.code
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(message)}")


if __name__ == "__main__":
    main()
