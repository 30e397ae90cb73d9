"""Numbers that people compare, drawn: bars and lines of blocks, in ASCII where the terminal knows no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
PARTS = "▏▎▍▌▋▊▉█"
ASCII_BLOCKS = "_.,-~=+#"
NOTHING, ASCII_NOTHING = "·", "."


def spark(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """One character a value, as high as the value is beside the largest; a dot for 0, a space for None."""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    most = max((value for value in values if value is not None), default=0.0)
    return "".join(_block(value, most, blocks, ASCII_NOTHING if ascii_only else NOTHING) for value in values)


def _block(value: float | None, most: float, blocks: str, nothing: str) -> str:
    if value is None:
        return " "
    if value <= 0 or most <= 0:
        return nothing
    return blocks[min(len(blocks) - 1, math.ceil(value / most * len(blocks)) - 1)]


def bar(value: float, most: float, width: int, *, ascii_only: bool = False) -> str:
    """A bar of at most `width` characters, as long as the value is beside `most`. What is not 0 is never invisible."""
    if value <= 0 or most <= 0 or width <= 0:
        return ""
    share = min(1.0, value / most) * width
    if ascii_only:
        return "#" * max(1, round(share))
    whole, rest = divmod(max(1, round(share * len(PARTS))), len(PARTS))
    return PARTS[-1] * whole + (PARTS[rest - 1] if rest else "")


def folded(values: Sequence[float | None], width: int, join: Callable[[Sequence[float]], float]) -> list[float | None]:
    """At most `width` values: neighbours are joined (`sum` for counts, `max` for durations)."""
    size = max(1, math.ceil(len(values) / max(1, width)))
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    found = [[value for value in group if value is not None] for group in groups]
    return [join(group) if group else None for group in found]


def span(buckets: Sequence[str]) -> str:
    """From the first bucket to the last, as a heading: `11-24 16:00..11-25 16:00`."""
    return f"{_moment(buckets[0])}..{_moment(buckets[-1])}" if buckets else ""


def _moment(text: str) -> str:
    return text[5:16].replace("T", " ")
