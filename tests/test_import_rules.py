"""Imports go one way: edges know rooms, rooms know models, rules know nothing that does I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

ALLOWED: dict[str, set[str]] = {
    # room: the rooms that it may import. Single modules (errors, ids, settings, egress) are open to all.
    "apps": {"state", "telemetry", "runners", "queue"},
    "auth": {"state"},
    "billing": {"state", "telemetry"},
    "cli": {"server", "apps"},
    "control": {"apps", "auth", "platform", "runners", "telemetry"},
    "files": {"state"},
    "gateway": {"apps", "auth", "billing", "http", "metrics", "queue", "runners", "state", "telemetry"},
    "logs": {"telemetry"},
    "metrics": {"apps", "queue", "runners"},
    "platform": {
        "apps", "auth", "billing", "files", "logs", "metrics", "queue", "runners", "state", "telemetry",
        "telemetry_export",
    },
    "queue": {"apps", "billing", "runners", "state", "telemetry"},
    "runners": {"apps", "queue", "telemetry"},
    "state": {"telemetry"},
    "telemetry": {"apps", "billing", "queue", "state"},
    "telemetry_export": {"apps", "auth", "logs", "queue", "state", "telemetry"},
}  # fmt: skip
ANYONE = {"errors", "ids", "settings", "egress", "__version__"}
IO_MODULES = {"asyncio", "sqlite3", "aiohttp", "httpx", "socket", "subprocess", "threading", "os", "time", "uvicorn"}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in _imports(path)]
    return {part[1] for part in parts if part[0] == "varvel" and len(part) > 1}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = {
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in (SOURCE / "varvel" / room).rglob("*.py")
        for other in _rooms(path) - ALLOWED[room] - ANYONE - {room}
    }
    assert not wrong


def test_every_room_has_a_rule() -> None:
    assert {path.parent.name for path in (SOURCE / "varvel").glob("*/__init__.py")} == set(ALLOWED)


def test_rules_do_no_input_or_output() -> None:
    wrong = {
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in (SOURCE / "varvel").rglob("rules.py")
        for name in {item.split(".")[0] for item in _imports(path)} & IO_MODULES
    }
    assert not wrong


def test_the_code_inside_runners_knows_nothing_of_the_server() -> None:
    wrong = {path.name for path in (SOURCE / "varvel_runner").rglob("*.py") if _rooms(path)}
    assert not wrong
