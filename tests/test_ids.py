"""Ids and times, while the machine's clock is set forward and back."""

from __future__ import annotations

from varvel.ids import OrderedClock, Started, uuid7

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Machine:
    """A machine whose clock can be set."""

    def __init__(self) -> None:
        self.passed = 5 * SECOND
        self.ahead = 1_700_000_000 * SECOND

    def wall(self) -> int:
        return self.passed + self.ahead

    def monotonic(self) -> int:
        return self.passed


def test_ids_are_made_by_a_clock_that_never_goes_back() -> None:
    machine = Machine()
    clock = OrderedClock(machine.wall, machine.monotonic)
    first = clock()
    assert first == machine.wall()
    machine.ahead += HOUR
    forward = clock()
    assert forward == first + HOUR
    machine.ahead -= 2 * HOUR
    machine.passed += SECOND
    assert clock() == forward + SECOND
    machine.ahead += 3 * HOUR
    assert clock() == machine.wall()


def test_ids_sort_by_their_time() -> None:
    made = []
    for _ in range(200):
        made.append(uuid7())
        before = made[-1][:13]
        while uuid7()[:13] == before:
            pass
    assert made == sorted(made)


def test_a_duration_is_what_passed_whatever_is_done_to_the_clock() -> None:
    machine = Machine()
    started = Started(lambda: machine.wall() / SECOND, lambda: machine.monotonic() / SECOND)
    for step in (HOUR, -2 * HOUR):
        machine.ahead += step
        machine.passed += SECOND
    assert started.ended() - started.at == 2.0
    assert started.at == 1_700_000_005.0
