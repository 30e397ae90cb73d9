"""Times as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from varvel.cli.connection import USAGE, Failure

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment(text: str | None, now: datetime | None = None) -> str | None:
    """`90s`, `15m`, `2h`, `7d` ago, or an ISO date or time, as the API takes it. Raises `Failure`."""
    return None if text is None else _moment(text, -1, now)


def later(text: str, now: datetime | None = None) -> str:
    """`90s`, `15m`, `2h`, `7d` from now on, or an ISO date or time. Raises `Failure`."""
    return _moment(text, 1, now)


def _moment(text: str, sign: int, now: datetime | None) -> str:
    if match := re.fullmatch(r"(\d+)([smhdw])", text):
        away = timedelta(seconds=sign * int(match[1]) * _UNITS[match[2]])
        return ((now or datetime.now(UTC)) + away).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        datetime.fromisoformat(text)
    except ValueError as problem:
        raise Failure(f"{text!r} is neither a time nor a span such as 15m, 2h or 7d", USAGE) from problem
    return text


def short(text: str | None) -> str:
    """A time of the API in local time, to the millisecond."""
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def near(text: str | None, now: datetime | None = None) -> str:
    """A time of the API in local time, to the second: of today without its date, of other days without the year."""
    if not text:
        return ""
    then, today = datetime.fromisoformat(text).astimezone(), (now or datetime.now(UTC)).astimezone().date()
    if then.date() == today:
        return then.strftime("%H:%M:%S")
    return then.strftime("%m-%d %H:%M:%S" if then.year == today.year else "%Y-%m-%d %H:%M:%S")
