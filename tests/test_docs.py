"""What the pages say is so: links lead somewhere, names exist, examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.serving import ROOT, VARVEL, Server, serving
from varvel.cli.connection import find_place
from varvel.cli.main import build
from varvel.platform.analytics_sql import METRICS
from varvel.settings import Settings, environment_name

PAGES = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CLIENT_VARIABLES = {"VARVEL_URL", "VARVEL_KEY", "VARVEL_DATA", "VARVEL_DATA_DIR"}
"""Read by the command line, or given to apps; `VARVEL_DATA` is a setting, too."""
NAMES_OF_CLIENTS = {"fal_client", "upload_file", "upload_image"}
EXAMPLES = [page for page in PAGES if page.parent.name == "docs" and "```sh" in page.read_text()]
PREAMBLE = """
set -eo pipefail
H={url}
A="Authorization: Key {key}"
curl() {{ command curl -fsS --max-time 60 "$@"; echo; }}
varvel() {{ {varvel} "$@"; }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("docs") / "data", "--no-examples") as running:
        for name in ("echo", "hello"):
            running.varvel("deploy", str(ROOT / "examples" / name / "app.py"), timeout=300)
        yield running


def fenced(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_pages_made_from_code_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [item for item in targets if "://" not in item and not (page.parent / item).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page.read_text())) - {"app.py", "main.py", "greet/app.py"}
    places = (ROOT, ROOT / "src", ROOT / "src" / "varvel")
    assert not {name for name in named if not any((place / name).exists() for place in places)}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_variable_that_a_page_names_exists(page: Path) -> None:
    known = {environment_name(item.name) for item in fields(Settings)} | CLIENT_VARIABLES
    assert set(re.findall(r"\bVARVEL_[A-Z_]*[A-Z]\b", page.read_text())) <= known


def test_the_variables_of_the_command_line_are_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VARVEL_URL", "http://one"), ("VARVEL_KEY", "two"), ("VARVEL_DATA", str(tmp_path))):
        monkeypatch.setenv(name, value)
    found = find_place(None, None, None)
    assert (found.url, found.key, found.data) == ("http://one", "two", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_name_in_code_on_a_page_is_in_the_source(page: Path) -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text()))
    assert named <= _names_of_the_source() | NAMES_OF_CLIENTS


@cache
def _names_of_the_source() -> set[str]:
    texts = [path.read_text() for room in ("src", "examples") for path in (ROOT / room).rglob("*.py")]
    found = {name for text in texts for name in re.findall(r"[a-z]+(?:_[a-z0-9]+)+", text)}
    # Percentiles are named by a rule.
    return found | set(METRICS)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    text = page.read_text()
    shown = [line for block in fenced(text, "(?:sh|console)?") for line in block.splitlines()]
    shown += re.findall(r"`(varvel [^`]+)`", text)
    for line in shown:
        for words in re.findall(r"(?:^|[\s(])varvel ((?:[a-z]+ ?)+)", line):
            assert _exists(words.split()), f"{page.name} names 'varvel {words}'"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_word_of_make_on_a_page_is_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)(?:`|$)", page.read_text(), re.MULTILINE)) <= targets


def _exists(words: list[str]) -> bool:
    """Whether the words begin with a command; in a group, with one of it or with nothing more."""
    here: Any = get_command(build())
    for word in words:
        inner = getattr(here, "commands", None)
        if inner is None:
            return True
        if word not in inner:
            return False
        here = inner[word]
    return True


def test_every_operation_is_on_a_page_and_every_path_on_a_page_is_served(server: Server) -> None:
    with server.client() as client:
        described = client.get("/openapi.json").json()
    served = {f"/v1{path}" for path in described["paths"]}
    text = "\n".join(page.read_text() for page in PAGES)
    words = set(re.findall(r"/v1/[A-Za-z0-9_/{}.$%:-]+", text))
    named = {word.rstrip(".:/-") for word in words if not word.endswith("...")} - {"/v1"}
    assert not {path for path in served if path not in text}
    assert not {path for path in named if not any(_fits(path, pattern) for pattern in served)}


def _fits(path: str, pattern: str) -> bool:
    """Whether a path (with values, with variables of a shell, or its beginning as a folder) is one of a pattern."""
    regular = re.sub(r"\\\{(dir|file|path|target_path)\\\}", ".+", re.escape(pattern))
    regular = re.sub(r"\\\{[a-z_]+\\\}", "[^/]+", regular)
    return re.fullmatch(regular, path) is not None


@pytest.mark.parametrize("page", EXAMPLES, ids=[page.name for page in EXAMPLES])
def test_the_examples_of_a_page_run(page: Path, server: Server, tmp_path: Path) -> None:
    varvel = shlex.join(VARVEL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".varvel").symlink_to(server.data)
    environ = {**server.environ, "VARVEL_URL": server.url, "VARVEL_KEY": server.key, "PYTHONPATH": str(ROOT)}
    script = PREAMBLE.format(url=server.url, key=server.key, varvel=varvel)
    script += "\n".join(fenced(page.read_text(), "sh")).replace("H=http://127.0.0.1:8787", "")
    script = script.replace("localhost:8788", server.tls)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
