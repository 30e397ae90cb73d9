"""Which log lines a reader asks for: one description, told to the store as SQL and to the live tail as a test.

Both must agree on every line, for a stream joins what the store has with what is live.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from varvel.errors import InvalidRequest
from varvel.ids import iso_micros
from varvel.telemetry.model import LEVELS, REQUEST_LABEL, LogRow

Condition = Literal["equals", "in", "not_equals", "not_in"]

SOURCES = ("grpc-run", "grpc-register", "gateway", "cron")
"""Run sources: an ephemeral run, a build or deploy, a deployed app, a schedule."""

_LEVEL_NAMES = {"warn": "warning", "critical": "error", "fatal": "error"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9\x80-\U0010ffff]+")
"""Words as the store's index cuts them: everything in ASCII that is not a letter or digit lies between words."""

_TRACEBACKS = ("Traceback (most recent call last)", '"traceback"')


@dataclass(frozen=True, slots=True)
class LabelTest:
    """A condition on one label. A line without the label has it empty."""

    key: str
    values: frozenset[str]
    negated: bool = False

    @property
    def indexed(self) -> bool:
        """Whether the store's index of label values can find the lines."""
        return not self.negated and "" not in self.values

    @property
    def of_request(self) -> bool:
        """Whether it asks for the lines of some requests."""
        return self.indexed and self.key == REQUEST_LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Lines of one owner that pass every condition given."""

    owner: str
    apps: frozenset[str] = frozenset()
    """`owner/name` each; empty for all apps of the owner."""
    revision: str | None = None
    run_source: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    level: str | None = None
    """Least level, in the order of `LEVELS`."""
    search: str | None = None
    """Words (letters, digits, single spaces) are found as whole words side by side, anything else as a piece of
    text; upper and lower case are the same."""
    tracebacks: bool = True
    """False leaves out lines that hold a traceback."""
    labels: tuple[LabelTest, ...] = ()

    def sql(self) -> tuple[str, dict[str, Any]]:
        """A condition for WHERE, and its parameters."""
        terms = ["owner = {owner:String}"]
        params: dict[str, Any] = {"owner": self.owner}
        for column in ("revision", "job_id", "request_id"):
            if (value := getattr(self, column)) is not None:
                terms.append(f"{column} = {{{column}:String}}")
                params[column] = value
        if self.run_source is not None:
            terms.append("source = {source:String}")
            params["source"] = self.run_source
        if self.apps:
            terms.append("app IN {apps:Array(String)}")
            params["apps"] = sorted(self.apps)
        if self.level is not None:
            terms.append("level IN {levels:Array(String)}")
            params["levels"] = sorted(levels_from(self.level))
        if self.search:
            terms += _search_sql(self.search, params)
        if not self.tracebacks:
            terms.append("NOT multiSearchAny(message, {tracebacks:Array(String)})")
            params["tracebacks"] = list(_TRACEBACKS)
        for number, test in enumerate(self.labels):
            terms += _label_sql(test, number, params)
        return " AND ".join(terms), params

    def matches(self, row: LogRow) -> bool:
        """Whether a live line is one of these."""
        return (
            row.owner == self.owner
            and (not self.apps or row.app in self.apps)
            and (self.revision is None or row.revision == self.revision)
            and (self.run_source is None or row.source == self.run_source)
            and (self.job_id is None or row.job_id == self.job_id)
            and (self.request_id is None or row.request_id == self.request_id)
            and (self.level is None or row.level in levels_from(self.level))
            and (not self.search or _found(self.search, row.message))
            and (self.tracebacks or not any(mark in row.message for mark in _TRACEBACKS))
            and all((row.labels.get(test.key, "") in test.values) != test.negated for test in self.labels)
        )


def level_name(text: str) -> str:
    """The level that `text` names, in any case; `warn`, `critical` and `fatal` are known too.

    Raises `InvalidRequest`.
    """
    name = _LEVEL_NAMES.get(text.lower(), text.lower())
    if name not in LEVELS:
        raise InvalidRequest(f"level: {text[:40]!r} is none of {', '.join(LEVELS)}")
    return name


def levels_from(least: str) -> frozenset[str]:
    """That level and all above it. What an app prints (stdout, stderr) is above every level of `logging`."""
    return frozenset(name for name, order in LEVELS.items() if order >= LEVELS[least])


def label_test(key: str, value: str | list[str], condition: Condition) -> LabelTest:
    """Raises `InvalidRequest` for an empty list or one of more than 50 values."""
    values = frozenset([value] if isinstance(value, str) else value)
    if not 1 <= len(values) <= 50:
        raise InvalidRequest(f"body: label {key[:60]!r} takes 1 to 50 values, not {len(values)}")
    return LabelTest(key, values, condition in ("not_equals", "not_in"))


def item(row: LogRow) -> dict[str, Any]:
    """A line as the Platform API shows it. Its `timestamp` is unique, and serves as cursor and event id."""
    return {
        "timestamp": iso_micros(row.ts),
        "level": row.level,
        "message": row.message,
        "app": row.app,
        "revision": row.revision,
        "labels": row.labels,
    }


def line(row: Mapping[str, Any]) -> LogRow:
    """A row of the store."""
    return LogRow(**{**row, "ts": int(row["ts"])})


def micros(text: str, name: str) -> int:
    """Microseconds of an ISO 8601 time, exactly; or the number itself. Raises `InvalidRequest`."""
    if text.isascii() and text.isdigit() and len(text) <= 16:
        return int(text)
    # A plus sign that was not escaped arrives as a space.
    given = text.strip().replace(" ", "+") if "T" in text else text.strip()
    try:
        at = datetime.fromisoformat(given)
    except ValueError as problem:
        raise InvalidRequest(f"{name}: {text[:60]!r} is not an ISO 8601 time") from problem
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _found(search: str, message: str) -> bool:
    text, sought = message.lower(), search.lower()
    if sought not in text:
        return False
    return not _WORDS.fullmatch(search) or set(sought.split(" ")) <= set(_TOKEN.findall(text))


def _search_sql(search: str, params: dict[str, Any]) -> list[str]:
    whole = _WORDS.fullmatch(search) is not None
    words = search.lower().split(" ") if whole else _inner_words(search)
    terms = []
    if words:
        terms.append("hasAllTokens(lower(message), {words:Array(String)})")
        params["words"] = words
    if not whole or len(words) > 1:
        terms.append("positionCaseInsensitiveUTF8(message, {search:String}) > 0")
        params["search"] = search
    return terms


def _inner_words(search: str) -> list[str]:
    """Words that a line must have whole if it has this text: those not at its edges, where a word may go on."""
    return [
        found.group().lower()
        for found in _TOKEN.finditer(search)
        if found.start() > 0 and found.end() < len(search) and found.group().isascii()
    ]


def _label_sql(test: LabelTest, number: int, params: dict[str, Any]) -> list[str]:
    key, values = f"key_{number}", f"values_{number}"
    params[values] = sorted(test.values)
    negation = "NOT " if test.negated else ""
    params[key] = test.key
    terms = [f"{negation}labels[{{{key}:String}}] IN {{{values}:Array(String)}}"]
    if test.of_request:
        # The same in a column, whose index is much smaller than that of all labels.
        terms.append(f"request_id IN {{{values}:Array(String)}}")
    elif test.indexed:
        # What the index can answer; the condition above says of which label the value must be.
        terms.append(f"hasAny(mapValues(labels), {{{values}:Array(String)}})")
    return terms
