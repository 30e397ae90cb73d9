"""Parameters that many operations share: how they look on the page, and how they are read.

A handler declares `endpoint_id: Annotated[list[str], Query(description=...), CommaList()]` or takes one of the
aliases below (`Start`, `End`, `Zone`, `Frame`, `Bound`, `Cursor`), then calls `time_range` or
`bucket_window`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from fastapi import Header, Query
from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from varvel.errors import InvalidRequest
from varvel.platform.buckets import DAY, Timeframe, Window, window

_EARLIEST = 0.0
_LATEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
MAX_VALUES = 50


@dataclass(frozen=True, slots=True)
class CommaList:
    """A list that may be repeated (`?a=1&a=2`), comma-separated (`?a=1,2`) or both: 1 to `at_most` values, each once.

    With `choices`, any other value is refused.
    """

    choices: tuple[str, ...] = ()
    at_most: int = MAX_VALUES

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.split, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        word: dict[str, Any] = {"type": "string", "minLength": 1}
        if self.choices:
            word["enum"] = list(self.choices)
        many = {"type": "array", "items": word, "minItems": 1, "maxItems": self.at_most}
        return {"anyOf": [{"type": "string", "minLength": 1}, many]}

    def split(self, value: Any) -> Any:
        """The values in the order given, without repeats."""
        if value is None:
            return None
        given = [value] if isinstance(value, str) else list(value)
        words = list(dict.fromkeys(word.strip() for text in given for word in str(text).split(",") if word.strip()))
        if not 1 <= len(words) <= self.at_most:
            raise PydanticCustomError("list_size", f"takes 1 to {self.at_most} values, not {len(words)}")
        if self.choices and (strange := [word for word in words if word not in self.choices]):
            raise PydanticCustomError("list_choice", _no_braces(f"{strange[0]!r} is none of {', '.join(self.choices)}"))
        return words


def _no_braces(text: str) -> str:
    # Braces are placeholders in the templates of pydantic's errors.
    return text.replace("{", "(").replace("}", ")")


_DATE_FORMS = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    ]
}
_date = WithJsonSchema(_DATE_FORMS)

Start = Annotated[
    str | None,
    Query(description="Begin of the range, ISO 8601 or YYYY-MM-DD; 24 hours ago when absent."),
    _date,
]
End = Annotated[
    str | None,
    Query(description="End of the range, exclusive, ISO 8601 or YYYY-MM-DD; now when absent."),
    _date,
]
Zone = Annotated[
    str,
    Query(alias="timezone", description="IANA time zone in which buckets begin and bare dates are read."),
]
Frame = Annotated[
    Timeframe | None,
    Query(
        alias="timeframe",
        description="Width of a bucket. Found from the range when absent: minute under 2 hours, hour under 2 days, "
        "day under 64 days, week under 183 days, else month.",
    ),
    WithJsonSchema({"type": "string", "enum": ["minute", "hour", "day", "week", "month"]}),
]
Bound = Annotated[
    Literal["true", "false"],
    Query(alias="bound_to_timeframe", description="Whether the range is widened to whole buckets."),
]
Cursor = Annotated[
    str | None,
    Query(description="`next_cursor` of the page before.", max_length=2000),
    WithJsonSchema({"type": "string"}),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A name for this write: a repeat within ten minutes gets the same reply and does nothing.",
        max_length=255,
    ),
    WithJsonSchema({"type": "string"}),
]
Flag = Annotated[
    bool | None,
    BeforeValidator(lambda value: None if value in ("", "null") else value),
    WithJsonSchema({"type": ["boolean", "null"]}),
]
"""A yes or no that may also be empty or `null`; add a `Query(description=...)`."""


def zone_of(name: str) -> ZoneInfo:
    """The zone of an IANA name. Raises `InvalidRequest`."""
    if name not in available_zones():
        raise InvalidRequest(f"timezone: {name[:100]!r} is not an IANA time zone")
    return ZoneInfo(name)


def available_zones() -> frozenset[str]:
    """Every zone name that this machine knows."""
    return _ZONES


_ZONES = frozenset(available_timezones())


def instant(text: str, name: str, zone: tzinfo = UTC) -> float:
    """Seconds since 1970 of an ISO 8601 time or a date; without an offset it is in `zone`.

    Raises `InvalidRequest` that names the parameter.
    """
    # A plus sign that was not escaped arrives as a space.
    text = text.strip().replace(" ", "+") if text.strip().count(" ") == 1 and "T" in text else text.strip()
    try:
        at = datetime.fromisoformat(text)
        seconds = (at if at.tzinfo else at.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError, OSError) as problem:
        raise InvalidRequest(f"{name}: {text[:60]!r} is neither an ISO 8601 time nor a date") from problem
    if not _EARLIEST <= seconds <= _LATEST:
        raise InvalidRequest(f"{name}: {text[:60]!r} lies outside of what can be stored")
    return seconds


@dataclass(frozen=True, slots=True)
class TimeRange:
    """From `start` to before `end`, in seconds since 1970 (UTC)."""

    start: float
    end: float

    @property
    def start_us(self) -> int:
        """Start in microseconds, the unit of the telemetry tables."""
        return round(self.start * 1_000_000)

    @property
    def end_us(self) -> int:
        """End in microseconds."""
        return round(self.end * 1_000_000)


def time_range(
    start: str | None,
    end: str | None,
    *,
    now: float,
    zone: tzinfo = UTC,
    default: float = DAY,
    at_most: float | None = None,
) -> TimeRange:
    """The range asked for: the last `default` seconds when nothing is given.

    Raises `InvalidRequest` when it ends before it starts, or is longer than `at_most` seconds.
    """
    until = now if end is None else instant(end, "end", zone)
    since = until - default if start is None else instant(start, "start", zone)
    if since > until:
        raise InvalidRequest("start: lies after end")
    if at_most is not None and until - since > at_most:
        raise InvalidRequest(f"start: the range may span {at_most / DAY:g} days at most")
    return TimeRange(since, until)


def bucket_window(
    start: str | None,
    end: str | None,
    timezone: str,
    timeframe: Timeframe | None,
    bound_to_timeframe: str,
    *,
    now: float,
    at_most: float | None = None,
) -> Window:
    """The buckets that the five time parameters ask for. Raises `InvalidRequest`."""
    zone = zone_of(timezone)
    span = time_range(start, end, now=now, zone=zone, at_most=at_most)
    return window(span.start_us, span.end_us, timeframe, zone, bound_to_timeframe == "true")


def endpoint_parts(endpoint_id: str, name: str = "endpoint_id") -> tuple[str, str, str]:
    """`me/ocr/turbo` -> `("me", "ocr", "/turbo")`; the route is empty for a bare app id. Raises `InvalidRequest`."""
    owner, _, rest = endpoint_id.strip("/").partition("/")
    app, _, route = rest.partition("/")
    if not owner or not app:
        raise InvalidRequest(f"{name}: {endpoint_id[:100]!r} is not of the form owner/name")
    return owner, app, f"/{route}" if route else ""
