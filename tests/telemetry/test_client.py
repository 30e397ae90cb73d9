from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from varvel.telemetry.client import parameter


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("tab\tquote'back\\", "tab\\tquote'back\\\\"),
        (None, "\\N"),
        (3, "3"),
        (True, "true"),
        (["it's", None], "['it\\'s',NULL]"),
        (("a",), "['a']"),
        ({"k": 1}, "{'k':1}"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02 03:04:05.000006"),
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), "2026-01-02 01:00:00.000000"),
    ],
)
def test_values_are_written_as_clickhouse_reads_them(value: object, text: str) -> None:
    assert parameter(value) == text


def test_a_value_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError):
        parameter(object())
