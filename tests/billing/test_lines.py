from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from varvel.billing.lines import Item, Line, lines, total
from varvel.billing.machines import MachineTypes, changed, defaults
from varvel.billing.prices import FREE, MINUTE, PriceBook, Pricing
from varvel.state.database import Database


async def book(folder: Path, clock: float = 0, **prices: dict[str, Any]) -> PriceBook:
    database = Database.open(folder / "state.db")
    types = defaults() | {name: changed(defaults()[name], values, name) for name, values in prices.items()}
    made = PriceBook(database, MachineTypes(types), lambda: clock)
    await made.start()
    await database.close()
    return made


def used(micros: int, **more: Any) -> dict[str, Any]:
    return {
        "bucket": 0, "app": "me/app", "environment": "main", "machine_type": "M", "changed": 0, "minute": 0,
        "machine_micros": micros,
    } | more  # fmt: skip


async def test_money_is_exact_where_floats_are_not(tmp_path: Path) -> None:
    prices = await book(tmp_path, M={"price_second": 0.1})
    found = lines([used(1_000_000) for _ in range(3)], prices)
    assert total(found[0]) == Decimal("0.3")


async def test_surge_hours_go_over_midnight(tmp_path: Path) -> None:
    prices = await book(tmp_path, M={"price_second": 1, "surge": 2, "surge_hours": ["23:00-01:00"]})
    assert prices.surge_edges() == [0, 60, 1380]
    found = lines([used(1_000_000, minute=minute) for minute in prices.surge_edges()], prices)[0]
    one, two, four = Decimal(1), Decimal(2), Decimal(4)
    assert [(line.item.is_surge, line.quantity, line.total) for line in found] == [(False, one, one), (True, two, four)]


async def test_surge_without_hours_holds_always(tmp_path: Path) -> None:
    prices = await book(tmp_path, M={"price_second": 1, "surge": 2})
    [line] = lines([used(1_000_000)], prices)[0]
    assert (line.item.is_surge, line.total) == (True, Decimal(2))


async def test_prices_survive_restarts_and_change_at_whole_minutes(tmp_path: Path) -> None:
    await book(tmp_path, M={"price_second": 1})
    prices = await book(tmp_path, clock=119.5, M={"price_second": 2})
    again = await book(tmp_path, clock=600, M={"price_second": 2})
    for one in (prices, again):
        assert one.changes() == [0, 2 * MINUTE]
        assert one.at("M", 2 * MINUTE - 1).price_second == 1
        assert one.at("M", 2 * MINUTE).price_second == 2
    assert again.at("unknown", 0) == FREE


amounts = st.decimals(0, 10_000, places=6)


@given(st.lists(st.tuples(amounts, amounts, st.integers(0, 100)), max_size=20))
def test_subtotal_less_discount_is_the_total(parts: list[tuple[Decimal, Decimal, int]]) -> None:
    found = [Line(Item("a", "", "M", False, price, Decimal(off)), quantity) for quantity, price, off in parts]
    assert total(found) == sum((line.subtotal for line in found), Decimal(0)) - sum(
        (line.discount for line in found), Decimal(0)
    )
    assert all(0 <= line.discount <= line.subtotal for line in found)


def test_a_discount_of_nothing_is_none() -> None:
    free = changed(defaults()["M"], {"percent_discount": 0}, "M")
    assert Pricing.of(free).percent_discount is None
