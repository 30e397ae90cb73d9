"""Counting calls by the second."""

from __future__ import annotations

from dataclasses import dataclass

from varvel.metrics.meter import BUCKETS, Meter


@dataclass
class Clock:
    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def test_a_call_counts_in_its_minute_and_stays_as_a_zero_after_it() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.received("me/ocr", "POST")
    meter.completed("me/ocr", "POST", 200, 0.3)
    clock.at += 59.0
    assert meter.last_minute()["me/ocr"].received == {"POST": 1}
    clock.at += 1.0
    gone = meter.last_minute()["me/ocr"]
    assert gone.received == {"POST": 0}
    assert gone.completed == {("POST", 200): 0}
    assert gone.cumulative[-1] == 0


def test_totals_never_fall() -> None:
    clock = Clock()
    meter = Meter(clock)
    for second in range(200):
        clock.at = 1000.0 + second
        meter.received("me/ocr", "POST")
        meter.completed("me/ocr", "POST", 200 if second % 2 else 500, 0.5)
    clock.at += 3600
    totals = meter.totals()["me/ocr"]
    assert totals.received == {"POST": 200}
    assert totals.completed == {("POST", 200): 100, ("POST", 500): 100}
    assert totals.seconds == 100.0


def test_a_minute_of_even_traffic_counts_sixty_seconds_of_it() -> None:
    clock = Clock()
    meter = Meter(clock)
    for step in range(1000):
        clock.at = 1000.0 + step * 0.25
        meter.received("me/ocr", "POST")
    assert meter.last_minute()["me/ocr"].received == {"POST": 240}


def test_a_latency_on_a_bound_is_under_that_bound() -> None:
    meter = Meter(Clock())
    meter.completed("me/ocr", "POST", 200, 1.0)
    meter.completed("me/ocr", "POST", 200, 1.001)
    meter.completed("me/ocr", "POST", 200, 10_000.0)
    under = dict(zip((*BUCKETS, None), meter.last_minute()["me/ocr"].cumulative, strict=True))
    assert (under[0.5], under[1.0], under[2.5], under[600.0], under[None]) == (0, 1, 2, 2, 3)


def test_a_method_that_nobody_knows_does_not_make_a_new_series() -> None:
    meter = Meter(Clock())
    for number in range(100):
        meter.received("me/ocr", f"X{number}")
    assert meter.last_minute()["me/ocr"].received == {"OTHER": 100}


def test_apps_are_counted_apart() -> None:
    meter = Meter(Clock())
    meter.received("me/ocr", "POST")
    meter.received("you/ocr", "GET")
    assert {app: own.received for app, own in meter.last_minute().items()} == {
        "me/ocr": {"POST": 1},
        "you/ocr": {"GET": 1},
    }
