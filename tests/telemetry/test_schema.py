from __future__ import annotations

import msgspec
import pytest
from tests.telemetry.conftest import Engine
from tests.telemetry.rows import bill, event, payload, request, runner_state

from varvel.telemetry.model import LogRow
from varvel.telemetry.rollup import ROLLUPS
from varvel.telemetry.schema import rollup_select, statements


def test_every_statement_may_run_again() -> None:
    assert all(" IF NOT EXISTS " in statement for statement in statements())


def test_each_rollup_is_filled_by_a_select_that_can_be_narrowed() -> None:
    for table, rollup in ROLLUPS.items():
        before, after = rollup_select(rollup)
        assert before.endswith(f"FROM {table}\n")
        assert after.startswith("GROUP BY ")


@pytest.mark.asyncio(loop_scope="module")
async def test_each_row_comes_back_as_it_went_in(engine: Engine) -> None:
    one = request()
    log = LogRow(
        ts=1_700_000_000_000_001, owner="me", app="me/ocr", revision="r", job_id="j", level="info", message="é \u2028",
        labels={"a": "b"},
    )  # fmt: skip
    rows = [
        ("requests", one), ("billing", bill(one)), ("payloads", payload(one)), ("events", event()),
        ("runner_states", runner_state()), ("logs", log),
    ]  # fmt: skip
    for table, row in rows:
        await engine.client.insert(table, msgspec.json.encode(row))
        (found,) = await engine.client.select(f"SELECT * FROM {table}")
        assert msgspec.convert(found, type(row)) == row


@pytest.mark.asyncio(loop_scope="module")
async def test_a_store_that_was_made_without_a_column_gets_it(engine: Engine) -> None:
    await engine.client.execute("ALTER TABLE runner_states DROP COLUMN gpus")
    for statement in statements():
        await engine.client.execute(statement)
    row = runner_state()
    await engine.client.insert("runner_states", msgspec.json.encode(row))
    found = await engine.client.select(
        "SELECT * FROM runner_states WHERE row_id = {id:String} LIMIT 1", {"id": row.row_id}
    )
    assert msgspec.convert(found[0], type(row)) == row
