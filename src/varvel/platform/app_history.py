"""What was, for an app: runners by bucket, events and revisions by page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from varvel.apps.model import AppId, Revision
from varvel.ids import iso
from varvel.platform.buckets import Timeframe, Window, following
from varvel.platform.cursors import Cursors, PageNumber
from varvel.platform.parameters import TimeRange
from varvel.platform.parts import PlatformParts
from varvel.telemetry.model import TelemetryStore

Aggregation = Literal["max", "avg"]
EVENTS_LIMIT = 1000
REVISIONS_LIMIT = 100

CATEGORIES = (
    "runner_started",
    "runner_failed",
    "runner_finished",
    "runner_pending",
    "runner_startup_failure",
    "runner_docker_pull",
    "runner_setup",
    "runner_draining",
    "runner_stopping",
    "deployment_started",
    "deployment_failed",
    "deployment_ended",
    "deployment_rolling_started",
    "deployment_rolling_failed",
    "deployment_rolling_ended",
    "deployment_recreate_applied",
    "config_changed",
)

_PAYLOAD = frozenset(
    {
        "job_id",
        "machine_type",
        "reason",
        "state",
        "new_application_id",
        "old_application_id",
        "old_config",
        "new_config",
        "old_app_auth_mode",
        "new_app_auth_mode",
        "actor",
    }
)
_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_DAY = 86_400 * _SECOND
_STATES = ("running", "idle", "pending", "draining")

_BUCKET: dict[Timeframe, str] = {
    "minute": f"intDiv(at, {_MINUTE}) * {_MINUTE}",
    "hour": f"intDiv(at, {60 * _MINUTE}) * {60 * _MINUTE}",
    "day": f"intDiv(at, {_DAY}) * {_DAY}",
    # 1970 began on a Thursday, weeks begin on Mondays.
    "week": f"intDiv(at + {3 * _DAY}, {7 * _DAY}) * {7 * _DAY} - {3 * _DAY}",
    "month": f"toInt64(toUnixTimestamp(toDateTime(toStartOfMonth(toDateTime(intDiv(at, {_SECOND}), 'UTC')), 'UTC')))"
    f" * {_SECOND}",
}

# Intervals never cross a minute's edge, so each lies in one bucket. Those of several machine types overlap.
_INTERVALS = """
    SELECT greatest(since, {start:Int64}) AS at, least(until, {end:Int64}) AS ends,
           toInt64(runner_states.running) AS running, toInt64(runner_states.idle) AS idle,
           toInt64(runner_states.pending) + toInt64(setup) AS pending,
           toInt64(runner_states.draining) + toInt64(terminating) AS draining
    FROM runner_states
    WHERE owner = {owner:String} AND app = {app:String}
      AND since >= {start:Int64} - 60000000 AND since < {end:Int64} AND until > {start:Int64}
"""


def _max_sql(bucket: str) -> str:
    """The level at each moment at which an interval begins or ends, then the highest of each bucket."""
    sums = ", ".join(f"sum(change.{state}) AS {state}" for state in _STATES)
    levels = ", ".join(
        f"sum({state}) OVER (ORDER BY at ROWS UNBOUNDED PRECEDING) AS level_{state}" for state in _STATES
    )
    highest = ", ".join(f"max(level_{state}) AS {state}" for state in _STATES)
    negative = ", ".join(f"-{state} AS {state}" for state in _STATES)
    return f"""
        WITH intervals AS ({_INTERVALS}),
        changes AS (
            SELECT at, {", ".join(_STATES)} FROM intervals
            UNION ALL SELECT ends AS at, {negative} FROM intervals
        ),
        moments AS (SELECT at, {sums} FROM changes AS change GROUP BY at),
        levels AS (SELECT at, {levels} FROM moments)
        SELECT {bucket} AS bucket, {highest} FROM levels GROUP BY bucket
    """  # noqa: S608


def _avg_sql(bucket: str) -> str:
    """Runner microseconds of each bucket."""
    sums = ", ".join(f"sum(i.{state} * (ends - at)) AS {state}" for state in _STATES)
    return f"SELECT {bucket} AS bucket, {sums} FROM ({_INTERVALS}) AS i GROUP BY bucket"  # noqa: S608


async def runners(store: TelemetryStore, app: AppId, window: Window, aggregation: Aggregation) -> list[dict[str, Any]]:
    """Runners by state for each bucket of `window` (of zone UTC), oldest first.

    Raises `TelemetryUnavailable`.
    """
    await store.barrier()
    sql = (_max_sql if aggregation == "max" else _avg_sql)(_BUCKET[window.timeframe])
    params = {"owner": app.owner, "app": str(app), "start": window.start, "end": window.end}
    found = {int(row["bucket"]): row for row in await store.select(sql, params)}
    return list(_buckets(found, window, aggregation))


def _buckets(found: dict[int, dict[str, Any]], window: Window, aggregation: Aggregation) -> Iterable[dict[str, Any]]:
    for edge in window.edges():
        row = found.get(edge * _SECOND, {})
        counts = {state: int(row.get(state, 0)) for state in _STATES}
        if aggregation == "max":
            yield {"timestamp": iso(edge), **counts}
            continue
        begin = max(edge * _SECOND, window.start)
        length = min(following(edge, window.timeframe, window.zone) * _SECOND, window.end) - begin
        yield {"timestamp": iso(edge), **{state: round(total / length, 6) for state, total in counts.items()}}


async def events(
    parts: PlatformParts, app: AppId, span: TimeRange, categories: list[str], limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of events, newest first, and the cursor of the next. Raises `InvalidRequest`, `TelemetryUnavailable`."""
    position = parts.cursors.decode("events", cursor) if cursor else None
    terms = ["owner = {owner:String}", "app = {app:String}", "created_at >= {start:Int64}", "created_at < {end:Int64}"]
    params: dict[str, Any] = {
        "owner": app.owner,
        "app": str(app),
        "start": span.start_us,
        "end": span.end_us,
        "limit": limit + 1,
        "offset": position.offset(limit) if isinstance(position, PageNumber) else 0,
    }
    if categories:
        terms.append("category IN {categories:Array(String)}")
        params["categories"] = categories
    if position is not None and not isinstance(position, PageNumber):
        terms.append("(created_at, event_id) < ({at:Int64}, {id:String})")
        params["at"], params["id"] = position.key
    await parts.telemetry.barrier()
    rows = await parts.telemetry.select(
        "SELECT event_id, category, created_at, payload FROM events WHERE "  # noqa: S608
        + " AND ".join(terms)
        + " ORDER BY created_at DESC, event_id DESC LIMIT {limit:UInt32} OFFSET {offset:UInt32}",
        params,
    )
    page = rows[:limit]
    if len(rows) <= limit:
        return page, None
    return page, parts.cursors.encode("events", (int(page[-1]["created_at"]), str(page[-1]["event_id"])))


def payload(text: str) -> dict[str, Any]:
    """The details of an event that its shape has a place for."""
    found = json.loads(text or "{}")
    return {key: value for key, value in found.items() if key in _PAYLOAD and value is not None}


def revisions_page(
    cursors: Cursors, revisions: list[Revision], limit: int, cursor: str | None
) -> tuple[list[Revision], str | None]:
    """A page of revisions that are given newest first, and the cursor of the next. Raises `InvalidRequest`."""
    ordered = sorted(revisions, key=_age, reverse=True)
    position = cursors.decode("revisions", cursor) if cursor else None
    if isinstance(position, PageNumber):
        ordered = ordered[position.offset(limit) :]
    elif position is not None:
        ordered = [revision for revision in ordered if _age(revision) < position.key]
    page = ordered[:limit]
    if len(ordered) <= limit:
        return page, None
    return page, cursors.encode("revisions", _age(page[-1]))


def _age(revision: Revision) -> tuple[float, str]:
    return (revision.created_at, revision.revision_id)
