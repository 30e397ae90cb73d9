"""The statements of `schema.sql`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_VIEW = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS \w+ TO (\w+) AS\n(.*)\Z", re.DOTALL)


@cache
def statements() -> tuple[str, ...]:
    """All statements, in the order in which they must run. Each may run again."""
    text = files("varvel.telemetry").joinpath("schema.sql").read_text()
    found = (re.sub(r"^--.*\n", "", part.strip() + "\n", flags=re.MULTILINE).strip() for part in text.split(";\n"))
    return tuple(statement for statement in found if statement)


def rollup_select(rollup: str) -> tuple[str, str]:
    """The SELECT that fills a rollup, in two halves, between which a WHERE clause may stand."""
    for statement in statements():
        if (view := _VIEW.match(statement)) and view[1] == rollup:
            before, found, after = view[2].partition("\nGROUP BY ")
            if found:
                return before + "\n", "GROUP BY " + after
    raise LookupError(f"schema.sql fills no rollup {rollup!r}")
