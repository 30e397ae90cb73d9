"""`varvel export` and `varvel focus`: rows as a file, for other tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from varvel.cli.connection import USAGE, Failure
from varvel.cli.progress import transfer
from varvel.cli.session import Session, command
from varvel.cli.times import moment

Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; stdout without it.")]
Since = Annotated[str | None, typer.Option(help="15m, 2h, 7d, or an ISO time; default 24 hours.")]
Until = Annotated[str | None, typer.Option(help="Up to then.")]


@command
def export(
    session: Session,
    dataset: Annotated[str, typer.Argument(help="requests, billing, logs, or usage (ADMIN keys).")],
    kind: Annotated[
        str | None, typer.Option("--format", help="parquet, ndjson or csv; else by the file's name.")
    ] = None,
    app: Annotated[list[str] | None, typer.Option(help="OWNER/NAME; repeatable. All apps without.")] = None,
    since: Since = None,
    until: Until = None,
    output: Output = None,
) -> None:
    """Every row of a range, as one file: Parquet, NDJSON or CSV. NDJSON to stdout when nothing else is said."""
    chosen = kind or _kind_of(output)
    if chosen == "parquet" and output is None and sys.stdout.isatty():
        raise Failure("Parquet is no text: give a file with -o", USAGE)
    params = {"dataset": dataset, "format": chosen, "app_id": app, "start": moment(since), "end": moment(until)}
    save(session, "/v1/serverless/export", params, output)


def _kind_of(output: Path | None) -> str:
    return {".parquet": "parquet", ".csv": "csv"}.get(output.suffix if output else "", "ndjson")


@command
def focus(
    session: Session,
    month: Annotated[str | None, typer.Option(help="YYYY-MM: the invoice of this month's charges.")] = None,
    issued: Annotated[str | None, typer.Option(help="YYYY-MM: the invoice that was issued in this month.")] = None,
    since: Since = None,
    until: Until = None,
    timeframe: Annotated[str | None, typer.Option(help="minute, hour, day, week, month.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin; default UTC.")] = None,
    whole: Annotated[bool, typer.Option(help="Widen an estimate's time to whole buckets.")] = True,
    output: Output = None,
) -> None:
    """What you are charged, as CSV in FOCUS 1.2 columns. Needs an ADMIN key.

    With --month or --issued a closed month as it was invoiced, else an estimate of the time from --since to --until.
    """
    invoiced = {"source": "invoice", "charge_month": month, "billing_month": issued}
    estimate = {
        "source": "estimate",
        "start": moment(since),
        "end": moment(until),
        "timeframe": timeframe,
        "timezone": timezone,
        "bound_to_timeframe": str(whole).lower(),
    }
    save(session, "/v1/account/focus", invoiced if month or issued else estimate, output)


def save(session: Session, path: str, params: dict[str, Any], output: Path | None) -> None:
    """Write a reply to a file, which appears when it is whole, or to stdout as it comes."""
    with session.server.stream("GET", path, params=params) as reply:
        if output is None:
            _copy(reply.iter_bytes, sys.stdout.buffer.write)
            sys.stdout.flush()
            return
        partial = output.with_name(f".{output.name}.part")
        try:
            with partial.open("wb") as file, transfer(session.err, output.name, None) as advance:
                _copy(reply.iter_bytes, file.write, advance)
            partial.replace(output)
        except OSError as problem:
            raise Failure(f"{output} cannot be written: {problem.strerror}") from problem
        finally:
            partial.unlink(missing_ok=True)
    session.show({"path": str(output), "size": output.stat().st_size}, lambda: str(output))


def _copy(
    pieces: Callable[[], Any], write: Callable[[bytes], Any], advance: Callable[[int], Any] | None = None
) -> None:
    for piece in pieces():
        write(piece)
        if advance is not None:
            advance(len(piece))
