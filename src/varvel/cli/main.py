"""The `varvel` command: its parts, and what its exit codes mean."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from varvel import __version__
from varvel.cli.connection import FAILED, INTERRUPTED, Failure

HELP = """Run Python apps on your own machines, call them through a queue, and look after them.

Exit codes: 0 it worked; 1 it failed (the app answered an error, a deployment was refused, files differ);
2 wrong usage; 3 no server answers; 4 the key does not allow it; 5 there is no such thing; 130 Ctrl-C.
"""

COMMANDS = {
    "up": "up",
    "demo": "demo",
    "deploy": "deploy",
    "call": "call",
    "logs": "logs",
    "requests": "requests",
    "analytics": "analytics",
    "events": "apps",
    "revisions": "apps",
    "runners": "runners",
    "metrics": "watch",
    "usage": "usage",
    "billing": "usage",
    "focus": "export",
    "export": "export",
    "meta": "watch",
    "doctor": "doctor",
}
"""Each command and its module, in the order of the help. A module is imported when its command is the one that runs."""
GROUPS = ("apps", "files", "queue", "drains", "keys", "owners", "credits")
"""Commands that have commands of their own, each in a module of its name."""


ALL = (*COMMANDS, *GROUPS)


def build(names: Iterable[str] = ALL) -> typer.Typer:
    """The command line with these of its commands."""
    app = typer.Typer(
        name="varvel", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )
    for name in names:
        if name in GROUPS:
            app.add_typer(import_module(f"varvel.cli.{name}").group, name=name)
        else:
            app.command()(getattr(import_module(f"varvel.cli.{COMMANDS[name]}"), name))
    app.callback(invoke_without_command=True)(_root)
    return app


def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"varvel {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is written as its number; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code. Errors of a command are one message on stderr, never a traceback."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    first = arguments[0] if arguments else ""
    try:
        app = build([first]) if first in COMMANDS or first in GROUPS else build([] if first == "--version" else ALL)
        app(arguments)
    except Failure as problem:
        _complain(problem.message)
        return problem.code
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as problem:
        _complain(f"{problem.filename or 'reading or writing failed'}: {problem.strerror or problem}")
        return FAILED
    except Exception as problem:
        _complain(_defect(problem))
        return FAILED
    return 0


def _defect(problem: Exception) -> str:
    """What to report of an error that nobody foresaw: its kind, its words, and the way to it."""
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if "varvel" in Path(frame.filename).parts]
    way = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"unexpected {type(problem).__name__}: {problem} (at {way}). This is a defect of Varvel: please report it."


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(message)}")


if __name__ == "__main__":
    main()
