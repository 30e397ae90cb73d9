"""Bars and spinners for people, on stderr; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

PIECE = 256 * 1024


@contextmanager
def transfer(console: Console, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of bytes; call what it gives with the number of bytes that went."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def waiting(console: Console, label: str, *, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A spinner with the time that has gone; call what it gives with what is being waited for now."""
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda text: bar.update(task, description=text)


def pieces(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The content of a file, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
            advance(len(piece))
