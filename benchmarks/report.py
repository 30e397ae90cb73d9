"""Tables of a benchmark: raw rows as JSON lines, medians with min-max as Markdown, with machine and versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("uvicorn", "uvloop", "httptools", "fastapi", "chdb-core")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and (min-max)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(name: str, raw: list[dict[str, Any]], markdown: str) -> str:
    """Write `results/NAME.jsonl` and `results/NAME.md`, and give the page back."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    versions = ", ".join(f"{item} {version(item)}" for item in VERSIONS)
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )
    page = f"## {name}\n\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {machine}; {versions}\n\n{markdown}\n"
    (RESULTS / f"{name}.md").write_text(page)
    return page
