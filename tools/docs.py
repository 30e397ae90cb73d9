"""Makes the pages of docs/ that come from code: settings, and the command line. `--check` only compares."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from varvel.settings import Settings, environment_name

DOCS = Path(__file__).parent.parent / "docs"


def settings_page() -> str:
    """The table of all settings."""
    types = get_type_hints(Settings)
    rows = [
        f"| `{item.name}` | {types[item.name].__name__} | `{item.default}` | {item.metadata['help']} |"
        for item in fields(Settings)
    ]
    head = (
        "# Settings\n\nA flag of `varvel up` (`--tls-port`), an environment variable "
        f"(`{environment_name('tls_port')}`), or a line of `DIR/varvel.toml` (`tls_port = 8788`); the first of "
        "these that is given wins. Sizes are in bytes and times in seconds unless the name says otherwise.\n\n"
        "| name | type | default | what it does |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def pages() -> dict[str, str]:
    """File name below docs/ -> content."""
    return {"settings.md": settings_page()}


def main() -> int:
    stale = [name for name, text in pages().items() if not _same(DOCS / name, text)]
    if "--check" in sys.argv:
        sys.stdout.writelines(f"docs/{name} is not what the code says: run make docs\n" for name in stale)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(pages()[name])
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
