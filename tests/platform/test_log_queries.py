"""Which lines a query takes: what the store answers, and what the live test says, are the same."""

from __future__ import annotations

from typing import Any

import pytest

from varvel.ids import iso_micros
from varvel.logs.pages import newest_first, oldest_first
from varvel.logs.rules import LogQuery, label_test, micros
from varvel.telemetry.model import LogRow

MESSAGES = (
    "kernel panic at once",
    "all is well",
    "ERROR: out of memory in pool",
    "request_timeout reached",
    "naïve ÄRGER here",
    '{"traceback": "Traceback (most recent call last)"}',
    "Kernel PANICKED",
    '100%_ of \\ "it\'s" {braces}',
)
BASE = 1_790_000_000_000_000


def rows(owner: str, count: int) -> list[LogRow]:
    return [
        LogRow(
            ts=BASE + number * 1_000_000_007,
            owner=owner,
            app=f"{owner}/{'ab'[number % 2]}",
            revision=f"r{number % 3}",
            job_id=f"j{number % 5}",
            request_id=f"q{number}",
            endpoint="/",
            level=("trace", "debug", "info", "warning", "error", "stdout", "stderr")[number % 7],
            source=("gateway", "grpc-register")[number % 2],
            message=MESSAGES[number % len(MESSAGES)],
            labels={"fal_request_id": f"q{number}"}
            | ({"k": f"v{number % 4}", "fal_job_id": f"j{number % 5}"} if number % 5 else {}),
        )
        for number in range(count)
    ]


CONDITIONS: tuple[dict[str, Any], ...] = (
    {},
    {"apps": frozenset({"{owner}/a"})},
    {"apps": frozenset({"{owner}/a", "{owner}/b"})},
    {"revision": "r1"},
    {"run_source": "grpc-register"},
    {"job_id": "j2"},
    {"request_id": "q17"},
    *({"level": level} for level in ("trace", "debug", "info", "warning", "error", "stdout", "stderr")),
    *({"search": text} for text in ("PANIC", "kernel panic", "nic at", ": out of mem", "timeout", "ärger", "e")),
    *({"search": text} for text in ("request_timeout", "%_ of", "\\", "it's", "{braces}", "absent", "of memory")),
    {"tracebacks": False},
    {"labels": (label_test("k", "v1", "equals"),)},
    {"labels": (label_test("k", ["v1", "v2"], "in"),)},
    {"labels": (label_test("k", "v1", "not_equals"),)},
    {"labels": (label_test("k", ["v1", "v2"], "not_in"), label_test("fal_job_id", "j1", "equals"))},
    {"labels": (label_test("k", "", "equals"),)},
    {"labels": (label_test("fal_request_id", "q17", "equals"),)},
    {"labels": (label_test("fal_request_id", ["q17", "q140", "absent"], "in"), label_test("k", "v1", "equals"))},
    {"labels": (label_test("fal_request_id", ["q17", ""], "in"),)},
    {"labels": (label_test("fal_request_id", ["q17", "q18"], "not_in"),)},
    {"labels": (label_test("never", "x", "not_equals"),)},
    {"apps": frozenset({"{owner}/b"}), "level": "error", "search": "panicked", "revision": "r0"},
)


@pytest.mark.parametrize("condition", CONDITIONS, ids=[f"condition-{number}" for number in range(len(CONDITIONS))])
async def test_the_store_and_the_live_test_agree_on_every_line(store: Any, condition: dict[str, Any]) -> None:
    owner = "agree"
    lines = rows(owner, 150)
    if not await store.select("SELECT ts FROM logs WHERE owner = {owner:String} LIMIT 1", {"owner": owner}):
        await store.put("logs", *lines)
    if "apps" in condition:
        condition = {**condition, "apps": frozenset(app.format(owner=owner) for app in condition["apps"])}
    query = LogQuery(owner=owner, **condition)
    wanted = [row for row in lines if query.matches(row)]
    end = BASE + 10**12
    assert await newest_first(store, query, 0, end, 1000) == wanted[::-1]
    assert [row async for row in oldest_first(store, query, BASE - 10**14, end)] == wanted
    assert await newest_first(store, LogQuery(owner="stranger"), 0, end, 10) == []


async def test_the_words_of_a_search_are_whole_and_other_text_may_be_a_piece() -> None:
    def found(search: str, message: str) -> bool:
        return LogQuery(owner="o", search=search).matches(
            LogRow(ts=1, owner="o", app="o/a", revision="", job_id="", level="info", message=message)
        )

    assert found("panic", "Kernel: PANIC!")
    assert not found("panic", "panicked")
    assert found("timeout", "request_timeout")
    assert found("-time", "over-timed")
    assert not found("panic kernel", "kernel panic")


def test_a_time_is_read_to_the_microsecond_in_every_form() -> None:
    assert micros(iso_micros(1_790_000_000_123_457), "cursor") == 1_790_000_000_123_457
    assert micros("1790000000123457", "cursor") == 1_790_000_000_123_457
    assert micros("2026-09-21T16:13:20.000001+02:00", "cursor") == 1_790_000_000_000_001
    # A plus sign that a client did not escape.
    assert micros("2026-09-21T16:13:20.000001 02:00", "cursor") == 1_790_000_000_000_001
    assert micros("2026-09-21 14:13:20.000001", "cursor") == 1_790_000_000_000_001
