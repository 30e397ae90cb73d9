"""Looks at an app in a child process of its own environment, so that the server never runs an app's code."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varvel.apps import inspection, process
from varvel.apps.errors import ImportFailed
from varvel.apps.process import Say
from varvel.apps.rules import Options, Target, parse_options
from varvel.apps.source import flat, requirement_list

LARGEST_ANSWER = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an app is, by its own word."""

    kind: Literal["asgi", "fal"]
    attribute: str
    routes: tuple[str, ...]
    requirements: tuple[str, ...]
    options: Options


async def look(
    python: Path, folder: Path, target: Target, *, say: Say, timeout: float, env: Mapping[str, str] | None = None
) -> Facts:
    """Import the app's file with `python` and read what is in it. What it prints goes to `say`.

    Raises `ImportFailed`, after the traceback was said line by line, or `BadOptions`.
    """
    read, write = os.pipe()
    arguments = [str(write), str(folder), target.file, *([target.attribute] if target.attribute else [])]
    answer = asyncio.create_task(asyncio.to_thread(_read, read))
    try:
        status = await process.run(
            [str(python), inspection.__file__, *arguments],
            say=say,
            timeout=timeout,
            cwd=folder,
            environ=_environ(env or {}),
            pass_fds=(write,),
        )
    except TimeoutError as problem:
        raise ImportFailed(f"{target.file} was not imported in {timeout:g} s") from problem
    finally:
        os.close(write)
    text = await answer
    if not text:
        raise ImportFailed(f"{target.file} ended the process that imported it (status {status})")
    return _facts(json.loads(text.replace(f"{folder}/".encode(), b"")), target, say)


def _read(descriptor: int) -> bytes:
    """All that comes until the writing end is closed everywhere."""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(LARGEST_ANSWER)


def _facts(found: dict[str, Any], target: Target, say: Say) -> Facts:
    if "error" in found:
        for line in str(found.get("trace", "")).splitlines():
            say("error", line)
        trace = f"\n{found['trace']}" if found.get("trace") else ""
        reason = f"{target.file} could not be imported: {found['error']}" if trace else found["error"]
        raise ImportFailed(reason + trace)
    where = f"{target.file}:{found['attribute']}"
    return Facts(
        kind=found["kind"],
        attribute=found["attribute"],
        routes=tuple(route.rstrip("/") or "/" for route in found["routes"]),
        requirements=requirement_list(flat(found.get("requirements", [])), f"{where}: requirements"),
        options=parse_options(found["options"], where),
    )


def _environ(env: Mapping[str, str]) -> dict[str, str]:
    """What a runner would have, without the server's own settings and secrets."""
    passed = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    own = {name: os.environ[name] for name in passed if name in os.environ}
    return own | dict(env) | {"IS_ISOLATE_AGENT": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
