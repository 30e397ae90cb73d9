"""The apps that a first start deploys."""

from __future__ import annotations

from pathlib import Path

TARGETS = ("echo/app.py", "hello/app.py", "ocr/app.py")
"""Quickest first. Each is `NAME/app.py` below `folder()`."""
SAMPLE = "ocr/sample.png"


def folder() -> Path | None:
    """Where the examples are: inside the installed package, or beside its sources. None when they are not there."""
    here = Path(__file__).parent
    places = [here.parent / "examples", here.parents[2] / "examples"]
    return next((place for place in places if (place / TARGETS[0]).is_file()), None)
