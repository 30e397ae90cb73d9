"""Old days go, a whole partition at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta

from varvel.settings import Settings
from varvel.telemetry.client import StoreClient


def days_kept(settings: Settings) -> dict[str, int]:
    """Table -> how many days of it are kept."""
    records = ("requests", "requests_hourly", "billing", "billing_hourly")
    closed = ("requests_closed", "requests_longest", "closed_spans")
    return {
        **dict.fromkeys(records + closed, settings.requests_days),
        "payloads": settings.payload_days,
        "logs": settings.logs_days,
        "events": settings.events_days,
        "runner_states": settings.events_days,
    }


def expired(partitions: Iterable[tuple[str, str]], kept: Mapping[str, int], today: date) -> list[tuple[str, str]]:
    """Which `(table, partition)` are older than their table's days. A partition is named `YYYYMMDD`, in UTC,
    or `YYYYMM`; a month goes when its last day does.

    With 1 day kept, today and yesterday stay: every row is there for at least the promised time.
    """
    oldest = {table: f"{today - timedelta(days=days):%Y%m%d}" for table, days in kept.items()}
    return sorted((table, name) for table, name in partitions if table in oldest and name < oldest[table][: len(name)])


async def drop_expired(store: StoreClient, kept: Mapping[str, int], now: datetime) -> list[tuple[str, str]]:
    """Drop what is too old; gives what was dropped."""
    rows = await store.select(
        "SELECT DISTINCT table, partition_id FROM system.parts WHERE active AND database = currentDatabase()"
    )
    old = expired([(row["table"], row["partition_id"]) for row in rows], kept, now.date())
    for table, partition in old:
        await store.execute(f"ALTER TABLE {table} DROP PARTITION ID '{partition}'")
    return old
