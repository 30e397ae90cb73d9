"""`varvel deploy`: an app's folder goes to the server, its build comes back line by line."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from varvel.apps import folder as folders
from varvel.apps.environments import PACKAGE_LINES
from varvel.apps.errors import DeployRefused, FolderTooLarge
from varvel.apps.rules import parse_target
from varvel.cli import upload
from varvel.cli.connection import FAILED, USAGE, Failure
from varvel.cli.progress import waiting
from varvel.cli.session import Session, command
from varvel.settings import Settings


def split_path(text: str) -> tuple[Path, str]:
    """Folder and target of `path/to/app.py:app`. Raises `Failure`."""
    file, separator, attribute = text.replace("::", ":").partition(":")
    path = Path(file)
    if path.is_dir():
        found = sorted(item.name for item in path.glob("*.py"))
        hint = f"name a file in it, such as {path / found[0]}" if found else "there is no Python file in it"
        raise Failure(f"{file} is a folder: {hint}", USAGE)
    if not path.is_file():
        raise Failure(f"there is no file {file}", USAGE)
    return path.resolve().parent, path.name + separator + attribute


def send(session: Session, folder: Path, order: dict[str, Any], say: Callable[[str, str], None]) -> dict[str, Any]:
    """Deploy a folder; the revision. `say` hears the build. Raises `Failure`."""
    limits = folders.Limits(Settings.app_size, Settings.app_files)
    with tempfile.TemporaryDirectory(prefix="varvel-") as place:
        packed = Path(place, "app.tar.gz")
        try:
            parse_target(order["target"])
            folders.pack(folder, limits, packed)
        except FolderTooLarge as problem:
            raise Failure(f"{problem.message}. {_largest(folder)}") from problem
        except DeployRefused as problem:
            raise Failure(problem.message) from problem
        whole = {**order, "folder_name": folder.name}
        body, headers = upload.form(session, packed, "files", {"order": json.dumps(whole)}, "uploading")
        with session.server.stream("POST", "/control/deploy", content=body, headers=headers) as reply:
            return _follow(reply.iter_lines(), say)


def _largest(folder: Path) -> str:
    """What makes a folder large, so that it can be moved or named with --data of the app instead."""
    sizes: dict[str, int] = {}
    for place, _, names in os.walk(folder):
        top = Path(place).relative_to(folder).parts[:1]
        for name in names:
            entry = f"{top[0]}/" if top else name
            with contextlib.suppress(OSError):
                sizes[entry] = sizes.get(entry, 0) + Path(place, name).lstat().st_size
    found = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in found)
    return f"Largest in it: {shown}. What apps read belongs into their files: 'varvel files put'"


def _follow(lines: Iterator[str], say: Callable[[str, str], None]) -> dict[str, Any]:
    said: set[str] = set()
    for text in lines:
        item = json.loads(text)
        if "line" in item:
            said.add(item["line"]["message"].strip())
            say(item["line"]["level"], item["line"]["message"])
        elif "error" in item:
            raise Failure(f"not deployed: {_unsaid(item['error']['message'], said)}")
        elif "revision" in item:
            revision: dict[str, Any] = item["revision"]
            return revision
    raise Failure("the server ended before the deployment did; look at its log", FAILED)


def _unsaid(message: str, said: set[str]) -> str:
    """The message without what its reader has seen go by already: a traceback, the output of uv."""
    first, *rest = message.rstrip().splitlines()
    unsaid = [line for line in rest if line.strip() not in said]
    if first.endswith(":") and not unsaid:
        first = f"{first[:-1]}, as said above"
    return "\n".join([first, *unsaid])


@command
def deploy(
    session: Session,
    target: Annotated[str, typer.Argument(help="FILE.py or FILE.py:NAME. The file's whole folder is copied.")],
    name: Annotated[str | None, typer.Option(help="Name of the app; else the file's or the folder's.")] = None,
    auth: Annotated[str | None, typer.Option(help="private, public or shared.")] = None,
    env: Annotated[str, typer.Option(help="Environment; other than main it becomes part of the name.")] = "main",
    strategy: Annotated[str, typer.Option(help="rolling proves a runner first; recreate does not.")] = "rolling",
    message: Annotated[str | None, typer.Option("--message", "-m", help="Kept with the revision.")] = None,
    annotation: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept with the revision; repeatable.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE as in a tool.varvel table, such as keep_alive=300; repeatable."),
    ] = None,
    reset_scale: Annotated[bool, typer.Option(help="Forget scaling that was changed since.")] = False,
) -> None:
    """Deploy an app: any ASGI app or fal.App class in a Python file.

    Everything in the file's folder goes along, but for .git, .venv, __pycache__, node_modules and the like.
    Requirements come from the file's '# /// script' block, from requirements.txt beside it, or from the fal.App.
    """
    folder, inner = split_path(target)
    options = {key: _value(text) for key, text in _pairs(setting or [], "--set")}
    options |= {key: value for key, value in {"name": name, "auth": auth}.items() if value is not None}
    order = {
        "target": inner,
        "options": options,
        "environment": env,
        "strategy": strategy,
        "message": message,
        "annotations": dict(_pairs(annotation or [], "--annotation")) or None,
        "reset_scale": reset_scale,
    }
    with waiting(session.err, "deploying") as now:
        revision = send(session, folder, order, _teller(session, now))
    session.show(revision, lambda: _told(session, revision))


def _teller(session: Session, now: Callable[[str], None]) -> Callable[[str, str], None]:
    def say(level: str, text: str) -> None:
        now(text.strip()[:60])
        if not text.startswith(PACKAGE_LINES):
            session.say(text, "red" if level in ("error", "stderr") else "dim")

    return say


def _told(session: Session, revision: dict[str, Any]) -> str:
    lines = [f"{revision['app']} is deployed as {revision['revision_id']}"]
    lines += [f"  {session.place.url}/queue/{endpoint}" for endpoint in revision["endpoints"]]
    return "\n".join(lines)


def _pairs(items: list[str], flag: str) -> list[tuple[str, str]]:
    found = []
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise Failure(f"{flag} {item!r} is not KEY=VALUE", USAGE)
        found.append((key, value))
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
