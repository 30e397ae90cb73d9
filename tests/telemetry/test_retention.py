from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest
from tests.telemetry.conftest import Engine

from varvel.settings import Settings
from varvel.telemetry.retention import days_kept, drop_expired, expired
from varvel.telemetry.schema import statements

TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")


def test_a_partition_goes_when_every_row_in_it_is_older_than_its_tables_days() -> None:
    found = [("logs", "20260101"), ("logs", "20260108"), ("logs", "20260109"), ("requests", "20260101")]
    assert expired(found, {"logs": 1, "requests": 400}, date(2026, 1, 10)) == [
        ("logs", "20260101"),
        ("logs", "20260108"),
    ]


def test_a_partition_of_a_month_goes_with_its_last_day() -> None:
    found = [("requests_closed", "202511"), ("requests_closed", "202512")]
    assert expired(found, {"requests_closed": 10}, date(2026, 1, 10)) == [("requests_closed", "202511")]
    assert expired(found, {"requests_closed": 10}, date(2026, 1, 11)) == found


def test_every_table_that_is_cut_by_time_has_a_rule() -> None:
    tables = {found[1] for each in statements() if "PARTITION BY" in each and (found := TABLE.match(each))}
    assert tables == days_kept(Settings()).keys()


def test_tables_without_a_rule_are_never_dropped() -> None:
    assert expired([("notes", "20000101")], {"logs": 1}, date(2026, 1, 10)) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_old_days_are_dropped_from_the_store_and_others_stay(engine: Engine) -> None:
    day = 86_400_000_000
    now = datetime(2026, 6, 30, 12, tzinfo=UTC)
    newest = int(now.timestamp()) * 1_000_000
    lines = [b'{"ts":%d,"message":"%d"}' % (newest - age * day, age) for age in (0, 29, 30, 31, 45)]
    await engine.client.insert("logs", b"\n".join(lines))
    dropped = await drop_expired(engine.client, days_kept(Settings(logs_days=30)), now)
    assert ("logs", "20260530") in dropped
    rows = await engine.client.select("SELECT message FROM logs ORDER BY ts DESC")
    assert [row["message"] for row in rows] == ["0", "29", "30"]
    assert await drop_expired(engine.client, days_kept(Settings(logs_days=30)), now) == []
