"""Makes the pages of docs/ that come from code: settings, and the command line. `--check` only compares."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from varvel.cli.main import build
from varvel.cli.session import SHARED
from varvel.settings import Settings, environment_name

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS_HEAD = f"""# Settings

A flag of `varvel up` (`--tls-port`), an environment variable (`{environment_name("tls_port")}`), or a line of
`DIR/varvel.toml` (`tls_port = 8788`); the first of these that is given wins. Sizes are in bytes and times in seconds
unless the name says otherwise. A name or value that cannot be is refused at the start. Machine types and prices have
tables of their own in the same file: see [billing](billing.md). This page is made from `src/varvel/settings.py`.

| name | type | default | what it does |
|---|---|---|---|
"""
CLI_HEAD = """# Command line

{help}

Results go to stdout, everything else to stderr. `--json` prints what the server answered, for programs. These options
belong to every command that talks to a server. The server is the one of `--url`, `VARVEL_URL`, or the file `address`
in the data folder, which a server that runs there has written; else it is looked for on port 8787. The key comes from
`--key`, `VARVEL_KEY`, `FAL_KEY`, or the file `admin.key` in the data folder. The first that is there counts. With
`https` the authority in the data folder is trusted, too.

Tables fit 80 columns; where ids do not fit, the terminal folds the lines and nothing is cut. Numbers over time are
drawn, and `--rows` prints them instead. `NO_COLOR=1` turns colours off.

| option | what it does |
|---|---|
{shared}

The options of `varvel up` are the [settings](settings.md). This page is made from the code.
"""


def settings_page() -> str:
    """The table of all settings."""
    types = get_type_hints(Settings)
    rows = [
        f"| `{item.name}` | {types[item.name].__name__} | {_default(item.default)} | {item.metadata['help']} |"
        for item in fields(Settings)
    ]
    return SETTINGS_HEAD + "\n".join(rows) + "\n"


def _default(value: object) -> str:
    return "" if value == "" else f"`{value}`"


def cli_page() -> str:
    """Every command with its arguments and options."""
    root: Any = typer.main.get_command(build())
    context = root.make_context("varvel", ["--version"], resilient_parsing=True)
    shared = {parameter.name: parameter for parameter in root.commands["doctor"].params if parameter.name in SHARED}
    head = CLI_HEAD.format(help=_cleaned(root.help), shared="\n".join(_row(shared[name]) for name in SHARED))
    return head + "".join(_sections(root, context, "varvel"))


def _sections(group: Any, context: Any, name: str) -> Iterator[str]:
    for word in sorted(group.commands):
        command = group.commands[word]
        if hasattr(command, "commands"):
            yield f"\n## {name} {word}\n\n{_cleaned(command.help)}\n"
            for inner in sorted(command.commands):
                yield _section(command.commands[inner], f"{name} {word} {inner}", "###")
        else:
            yield _section(command, f"{name} {word}", "##")


def _section(command: Any, name: str, level: str) -> str:
    own = [item for item in command.params if item.name not in SHARED and item.name != "help"]
    settings = {item.name for item in fields(Settings)} if name == "varvel up" else set()
    own = [item for item in own if item.name not in settings]
    arguments = [item for item in own if item.param_type_name == "argument"]
    usage = " ".join([name, *(_shown(item) for item in arguments)])
    rows = "".join(f"{_row(item)}\n" for item in own)
    table = f"\n| argument or option | what it does |\n|---|---|\n{rows}" if rows else ""
    return f"\n{level} {name}\n\n`{usage}`\n\n{_cleaned(command.help)}\n{table}"


def _shown(item: Any) -> str:
    word = (item.metavar or item.name.upper()) + ("..." if item.nargs == -1 else "")
    return word if item.required else f"[{word}]"


def _row(item: Any) -> str:
    if item.param_type_name == "argument":
        flag = _shown(item)
    else:
        flag = ", ".join([*item.opts, *item.secondary_opts])
        flag += "" if item.is_flag else " VALUE"
    return f"| `{flag}` | {(item.help or '').replace('|', '&#124;')} |"


def _cleaned(text: str | None) -> str:
    return re.sub(r"[ \t]+\n", "\n", inspect.cleandoc(text or "")).strip()


def pages() -> dict[str, str]:
    """File name below docs/ -> content."""
    return {"settings.md": settings_page(), "cli.md": cli_page()}


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
