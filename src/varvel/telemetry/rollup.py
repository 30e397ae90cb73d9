"""Makes the hourly rollups of whole days anew from the raw rows.

The views of `schema.sql` keep the rollups as rows come in. A batch that was cut off may be in one of the two and
not in the other; then the days that it touches are computed again and put in place in one step.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from varvel.telemetry.client import StoreClient
from varvel.telemetry.schema import rollup_select

ROLLUPS = {"requests": "requests_hourly", "billing": "billing_hourly"}
"""Raw table -> its rollup."""
REBUILD_TIMEOUT = 300.0


def days_of(times: Iterable[int]) -> list[date]:
    """The UTC days of some times in microseconds, in order."""
    return sorted({datetime.fromtimestamp(second, UTC).date() for second in {at // 1_000_000 for at in times}})


def span(day: date) -> tuple[int, int]:
    """First microsecond of a UTC day, and of the next."""
    first = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return int(first.timestamp()) * 1_000_000, int((first + timedelta(days=1)).timestamp()) * 1_000_000


async def rebuild(store: StoreClient, table: str, days: Iterable[date]) -> None:
    """Compute the rollup of `table` anew for these days. Nothing else may insert into `table` meanwhile."""
    rollup = ROLLUPS[table]
    scratch = f"{rollup}_scratch"
    before, after = rollup_select(rollup)
    await store.execute(f"CREATE TABLE IF NOT EXISTS {scratch} AS {rollup}")
    for day in days:
        first, end = span(day)
        partition = f"{day:%Y%m%d}"
        await store.execute(f"TRUNCATE TABLE {scratch}")
        await store.execute(
            f"INSERT INTO {scratch} {before}WHERE ended_at >= {{first:Int64}} AND ended_at < {{end:Int64}}\n{after}",
            {"first": first, "end": end},
            timeout=REBUILD_TIMEOUT,
        )
        await store.execute(f"ALTER TABLE {rollup} REPLACE PARTITION ID '{partition}' FROM {scratch}")
    await store.execute(f"TRUNCATE TABLE {scratch}")
