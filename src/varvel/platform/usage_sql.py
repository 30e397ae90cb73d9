"""The statement behind usage, invoices and credit: billed machine time from the states that runners were in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from varvel.billing.prices import MINUTE, PriceBook
from varvel.platform.analytics_sql import Span

BILLED = "setup + idle + running + draining + terminating"
"""Columns of the states that are billed."""

GPUS = "greatest(gpus, 1)"
"""A second of a machine with several GPUs counts once for each."""


@dataclass(frozen=True, slots=True)
class Apps:
    """Apps of one owner: those named (without owner) and those whose name holds `search`; all when neither is given."""

    owner: str
    names: tuple[str, ...] = ()
    search: str = ""


def machine_time(apps: Apps, span: Span, book: PriceBook) -> tuple[str, dict[str, Any]]:
    """Machine-microseconds by bucket, app, environment and machine type, kept apart where prices change.

    Those of a machine with GPUs count once for each GPU.

    Intervals never cross a minute's edge; one that crosses the begin or end of the range counts with its part.
    """
    inside = "greatest(since, {start:Int64})"
    bucket, params = span.bucket(inside)
    where = [
        "owner = {owner:String}",
        "since >= {margin:Int64}",
        "since < {end:Int64}",
        "until > {start:Int64}",
        f"{BILLED} > 0",
    ]
    params |= {
        "owner": apps.owner,
        "start": span.start,
        "end": span.end,
        "margin": span.start - MINUTE,
        "changes": book.changes(),
        "surge_edges": book.surge_edges(),
    }
    _choose(apps, where, params)
    statement = f"""
        SELECT app, environment, machine_type,
            {bucket} AS bucket,
            roundDown({inside}, {{changes:Array(Int64)}}) AS changed,
            roundDown(intDiv({inside}, 60000000) % 1440, {{surge_edges:Array(Int64)}}) AS minute,
            sum(({BILLED}) * {GPUS} * (least(until, {{end:Int64}}) - {inside})) AS machine_micros
        FROM runner_states
        WHERE {" AND ".join(where)}
        GROUP BY app, environment, machine_type, bucket, changed, minute"""  # noqa: S608
    return statement, params


def _choose(apps: Apps, where: list[str], params: dict[str, Any]) -> None:
    if apps.names:
        where.append("app IN {apps:Array(String)}")
        params["apps"] = _owned(apps.owner, apps.names)
    if apps.search:
        where.append("positionCaseInsensitiveUTF8(substring(app, length({owner:String}) + 2), {search:String}) > 0")
        params["search"] = apps.search


def _owned(owner: str, names: Sequence[str]) -> list[str]:
    return [f"{owner}/{name}" for name in names]
