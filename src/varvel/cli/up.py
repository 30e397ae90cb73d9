"""`varvel up`: the server itself, in the foreground. Its flags are the table of settings."""

from __future__ import annotations

import inspect
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from varvel.cli import demo
from varvel.cli.connection import FAILED, Failure, Place
from varvel.cli.session import Session
from varvel.errors import VarvelError
from varvel.settings import Settings, environment_name, load

App = Annotated[
    list[str] | None,
    typer.Option("--app", help="Deploy this FILE.py or FILE.py:NAME when it is not deployed yet; repeatable."),
]
Examples = Annotated[bool, typer.Option(help="Deploy the examples on a first start without --app.")]
Demo = Annotated[
    bool, typer.Option("--demo/--no-demo", help="Show a first request when the examples were just deployed.")
]


def setting_flags() -> list[inspect.Parameter]:
    """One option for each row of the table of settings; what is not given stays None."""
    hints = get_type_hints(Settings)
    return [_flag(item.name, hints[item.name], item.default, item.metadata["help"]) for item in fields(Settings)]


def _flag(name: str, kind: type, default: Any, help_text: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    shown = f"{help_text} [{environment_name(name)}; default: {default if default != '' else 'empty'}]"
    option = typer.Option(*names, help=shown, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function(settings, ...)` the flags of all settings."""
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [item.replace(annotation=hints[item.name], kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
    flags = setting_flags()

    def run(**values: Any) -> None:
        given = {flag.name: values.pop(flag.name) for flag in flags}
        try:
            settings = load(given)
        except VarvelError as problem:
            raise Failure(problem.message) from problem
        function(settings, **values)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    setattr(run, "__signature__", inspect.Signature([*parameters, *flags]))  # noqa: B010 - mypy knows no such name
    run.__annotations__ = {item.name: item.annotation for item in [*parameters, *flags]}
    return run


@_with_settings
def up(settings: Settings, app: App = None, examples: Examples = True, demo_run: Demo = True) -> None:
    """Run the server until Ctrl-C or SIGTERM.

    It prints `ready URL` when requests are taken. Everything it keeps is in the data folder; starting again on the
    same folder goes on where it ended. Settings come from flags, then VARVEL_... variables, then DIR/varvel.toml.
    """
    from varvel import server  # the whole server: the other commands start faster without it

    if settings.control_port != Settings.control_port:
        Console(stderr=True).print(f"nothing will listen on control port {settings.control_port}: it is only reserved")

    def greet(ready: server.Ready) -> None:
        for target in ready.failed if app else ():
            Console(stderr=True).print(f"[red]not deployed:[/red] {escape(target)}; the log above says why")
        if demo_run and examples and not app and ready.first_start:
            threading.Thread(target=_show, args=(settings, ready.url, ready.failed), daemon=True, name="demo").start()

    _usable(settings.data)
    if not (settings.data / "state.db").exists() and examples and not app:
        Console(stderr=True).print("first start: environments of the examples are built; that takes a minute or so")
    try:
        status = server.run(settings, apps=[_checked(item) for item in app or []], examples=examples, on_ready=greet)
    except VarvelError as problem:
        raise Failure(problem.message) from problem
    raise typer.Exit(status)


def _usable(folder: Path) -> None:
    """A data folder that cannot be is said before anything starts. Raises `Failure`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        hint = "Give another folder (--data or VARVEL_DATA), or let this user write there"
        raise Failure(f"the data folder {folder} cannot be written: {problem.strerror}. {hint}") from problem


def _checked(target: str) -> str:
    """A mistyped target is said before anything starts."""
    file = target.replace("::", ":").partition(":")[0]
    if not Path(file).is_file():
        raise Failure(f"there is no file {file}", FAILED)
    return target.replace("::", ":")


def _show(settings: Settings, url: str, failed: tuple[str, ...]) -> None:
    """The first request, beside the server that has just become ready. It never takes the server with it."""
    session = Session(Place(url, (settings.data / "admin.key").read_text().strip(), settings.data))
    try:
        for target in failed:
            session.err.print(f"the example {target} could not be deployed; the server's log says why", style="red")
        demo.run(session, settings.tls_port)
        sys.stdout.flush()
    except Failure as problem:
        session.err.print(f"the demo ended early: {problem.message}", style="red")
    finally:
        session.close()
