"""The order of waiting requests, against the simplest list that does the same."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.queue.parts import ECHO, OTHER

from varvel.queue import order as module
from varvel.queue.order import Line, Order, Waiting


def item(n: int, *, low: bool = False) -> Waiting:
    return Waiting(n, f"r{n}", None, None, None, low)


def test_normal_goes_before_low_and_first_come_is_first_served() -> None:
    order = Order()
    for n, low in enumerate([True, False, True, False]):
        order.add(ECHO, item(n, low=low))
    assert [order.position(f"r{n}") for n in range(4)] == [2, 0, 3, 1]
    taken = [found[1].seq for _ in range(4) if (found := order.take(ECHO))]
    assert taken == [1, 3, 0, 2]


def test_a_request_that_comes_back_has_its_old_place() -> None:
    order = Order()
    for n in range(3):
        order.add(ECHO, item(n))
    taken = order.take(ECHO)
    assert taken is not None
    order.put_back(ECHO, *taken)
    assert order.position("r0") == 0
    assert order.first(ECHO) == item(0)


def test_a_resting_request_waits_but_lets_others_pass() -> None:
    order = Order()
    for n in range(2):
        order.add(ECHO, item(n))
    taken = order.take(ECHO)
    assert taken is not None
    order.rest(ECHO, *taken)
    assert order.size(ECHO) == 2
    assert order.position("r0") == 0
    assert order.first(ECHO) == item(1)
    assert order.wake("r0") == ECHO
    assert order.first(ECHO) == item(0)


def test_a_removed_request_is_nowhere() -> None:
    order = Order()
    order.add(ECHO, item(0))
    assert order.remove("r0") is not None
    assert order.remove("r0") is None
    assert "r0" not in order
    assert order.first(ECHO) is None
    assert order.position("r0") is None


def test_apps_do_not_see_each_other() -> None:
    order = Order()
    order.add(ECHO, item(0))
    order.add(OTHER, item(1))
    assert order.position("r1") == 0
    assert [order.size(ECHO), order.size(OTHER)] == [1, 1]
    assert order.take(OTHER) == (0, item(1))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(1, 40)),
        st.tuples(st.just("remove"), st.integers(0, 10_000)),
        st.tuples(st.just("back"), st.integers(0, 10_000)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_a_line_ranks_like_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    small_spans(2, 4)
    try:
        compare_with_a_list(steps)
    finally:
        small_spans(8, 16)


def small_spans(block: int, span: int) -> None:
    """Blocks of 4 and spans of 16 places reach, with few steps, what takes 100,000 otherwise."""
    module._BLOCK, module._SPAN = block, span
    module._SPAN_PLACES = 1 << span
    module._BLOCKS_A_SPAN = 1 << (span - block)


def compare_with_a_list(steps: list[tuple[str, int]]) -> None:
    line = Line()
    model: dict[int, Waiting] = {}
    out: dict[int, Waiting] = {}
    for step, n in steps:
        if step == "append":
            for _ in range(n):
                new = item(len(model) + len(out))
                model[line.append(new)] = new
        elif step == "take":
            for _ in range(n):
                found = line.first()
                assert found == (min(model.items()) if model else None)
                if found is not None:
                    line.remove(found[0])
                    out[found[0]] = model.pop(found[0])
        elif step == "remove" and model:
            place = sorted(model)[n % len(model)]
            assert line.remove(place) == model[place]
            out[place] = model.pop(place)
        elif step == "back" and out:
            place = sorted(out)[n % len(out)]
            assert line.get(place) is None
            line.put_back(place, out[place])
            model[place] = out.pop(place)
        assert len(line) == len(model)
        assert list(line) == sorted(model.items())
        for rank, place in enumerate(sorted(model)):
            assert line.rank(place) == rank
            assert line.get(place) == model[place]
        assert line.upcoming(5) == [model[place] for place in sorted(model)[:5]]


def test_a_million_waiting_cost_little_to_rank_take_and_remove() -> None:
    """A bound against wrong orders of growth, with a hundredfold margin; figures are the benchmarks' matter."""
    order = Order()
    for n in range(300_000):
        order.add(ECHO, item(n))
    began = time.perf_counter()
    for n in range(150_000, 151_000):
        assert order.position(f"r{n}") == 150_000
        order.remove(f"r{n}")
        order.add(ECHO, item(n + 300_000))
        taken = order.take(ECHO)
        assert taken is not None
        order.put_back(ECHO, *taken)
    assert time.perf_counter() - began < 1.0
