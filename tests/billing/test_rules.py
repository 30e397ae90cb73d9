from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from varvel.billing.machines import defaults
from varvel.billing.rules import bill

M = defaults()["M"]


def test_the_units_that_an_app_sets_are_billed() -> None:
    found = bill(status=200, started=True, units=3.0, duration=1.5, machine=M)
    assert (found.units, found.duration, found.unit) == (3.0, 1.5, "units")


def test_without_units_seconds_are_billed_by_the_size_of_the_machine() -> None:
    found = bill(status=422, started=True, units=None, duration=1.5, machine=M)
    assert (found.units, found.duration, found.unit) == (3.0, 1.5, "seconds")


@given(st.integers(100, 599), st.booleans(), st.none() | st.floats(0, 1e6), st.floats(0, 1e5))
def test_callers_pay_nothing_for_our_failures_and_for_what_never_ran(
    status: int, started: bool, units: float | None, duration: float
) -> None:
    found = bill(status=status, started=started, units=units, duration=duration, machine=M)
    if status >= 500 or not started:
        assert (found.units, found.duration) == (0, 0)
    else:
        assert found.duration == duration
        assert found.units >= 0
