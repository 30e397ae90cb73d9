"""What every command is given: the server, and how to print. `command` adds its flags to a function."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import quote

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from varvel.cli.connection import USAGE, Connection, Failure, Place, find_place

Url = Annotated[
    str | None, typer.Option("--url", help="Server. Default: VARVEL_URL, DIR/address, else http://127.0.0.1:8787.")
]
Key = Annotated[str | None, typer.Option("--key", help="Key. Default: VARVEL_KEY, FAL_KEY, else DIR/admin.key.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Data folder DIR of the server. Default: VARVEL_DATA, else .varvel.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
UNFOLDED = 1000
"""Columns of what is no terminal."""
FOLDED = 20
"""Columns that one that folds has at least."""
GAP = 2
"""Spaces between two columns."""
SHARED = {"url": (Url, None), "key": (Key, None), "data": (Data, None), "json_output": (Json, False)}


class Session:
    """One run of a command: `out` carries results, `err` everything else."""

    def __init__(self, place: Place, json_output: bool = False) -> None:
        self.place = place
        self.json = json_output
        # Where nobody looks, lines are not folded: the next program wants them whole.
        self.out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else UNFOLDED)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)
        self._connection: Connection | None = None

    @property
    def server(self) -> Connection:
        """The connection, opened when it is first used."""
        self._connection = self._connection or Connection(self.place)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.__exit__()

    @property
    def ascii_only(self) -> bool:
        """Whether stdout takes no more than ASCII."""
        return not self.out.encoding.lower().startswith("utf")

    def room(self, taken: int, least: int = 12, most: int = 60) -> int:
        """Characters of a line that are left for a drawing beside `taken` others."""
        return max(least, min(most, self.out.width - taken))

    def ask(self, question: str) -> None:
        """Go on only after a yes. Raises `Failure` where there is nobody to ask."""
        if not sys.stdin.isatty():
            raise Failure(f"{question} Nobody can answer here: say --yes", USAGE)
        typer.confirm(question, abort=True, err=True)

    def say(self, text: str, style: str = "dim") -> None:
        """A remark for people; none in JSON mode."""
        if not self.json:
            self.err.print(escape(text), style=style)

    def print_json(self, value: Any) -> None:
        """One JSON document."""
        print_text(json.dumps(value, indent=2, ensure_ascii=self.ascii_only))

    def print_line(self, value: Any) -> None:
        """One JSON line of many."""
        print_text(json.dumps(value, ensure_ascii=self.ascii_only))

    def show(self, value: Any, table: Callable[[], Table | str], nothing: str = "") -> None:
        """The value in JSON mode, else the table or text made of it. `nothing` is said of a table without rows."""
        if self.json:
            self.print_json(value)
            return
        made = table()
        if isinstance(made, str):
            print_text(made)
        elif made.row_count == 0 and nothing:
            self.say(nothing)
        else:
            # A terminal that is too narrow folds lines itself: an id that is cut cannot be copied.
            needed = _least(made)
            if needed > self.out.width:
                made.width = needed
            self.out.print(made, soft_wrap=needed > self.out.width)


def _least(made: Table) -> int:
    """Columns of a terminal that a table needs at least: columns that fold may become as narrow as `FOLDED`."""
    total = -GAP
    for column in made.columns:
        width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        total += GAP + (width if column.no_wrap else min(width, FOLDED))
    return total


def print_text(text: str) -> None:
    """Text as it is, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, fold: Sequence[str] = ()
) -> Table:
    """A table for people; numbers stand right. Columns in `fold` give way where there is too little room."""
    made = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", show_header=any(columns)
    )
    found = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(found) and all(isinstance(row[index], int | float) or row[index] is None for row in found)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=column not in fold)
    for row in found:
        made.add_row(*(escape("" if cell is None else _cell(cell)) for cell in row))
    return made


def _cell(value: object) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn `function(session, ...)` into a command with `--url`, `--key`, `--data` and `--json` of its own."""
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [item.replace(annotation=hints[item.name]) for item in own]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in SHARED.items()
    ]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        url, key, data, json_output = (values.pop(name) for name in SHARED)
        session = Session(find_place(url, key, data), json_output)
        try:
            function(session, **values)
        finally:
            session.close()

    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - mypy knows no such name
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    del run.__wrapped__
    return run


def app_parts(text: str) -> tuple[str, str]:
    """Owner and name of an app id, as they stand in a URL. Raises `Failure`."""
    owner, slash, name = text.strip("/").partition("/")
    if not slash or not owner or not name or "/" in name:
        raise Failure(f"{text!r} is not OWNER/NAME", 2)
    return quote(owner, safe=""), quote(name, safe="")
