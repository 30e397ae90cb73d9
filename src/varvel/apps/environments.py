"""Python environments of apps: made by uv, named by what they hold, shared by all revisions that need the same."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from varvel.apps import process
from varvel.apps.errors import RequirementsFailed
from varvel.apps.process import Say
from varvel.apps.source import Needs
from varvel.errors import StorageFull

SERVING = ("httptools>=0.6", "uvicorn>=0.34,<1", "uvloop>=0.21", "websockets>=14")
"""What a runner needs to serve any app."""
FAL = "fal>=1.60"
READY = ".varvel-ready"
TAIL = 30
"""Lines of uv's output that a refusal repeats."""
PACKAGE_LINES = (" + ", " - ", " ~ ")
"""How uv begins the line of a package that it has installed, removed or replaced."""


def complete(requirements: Iterable[str], *, imports_fal: bool) -> tuple[str, ...]:
    """The requirements and what a runner needs beside them. The app's own choice of a version stands."""
    own = tuple(dict.fromkeys(requirements))
    named = {canonicalize_name(Requirement(item).name) for item in own}
    added = [*SERVING, FAL] if imports_fal else [*SERVING]
    return (*own, *(item for item in added if canonicalize_name(Requirement(item).name) not in named))


def content_hash(needs: Needs) -> str:
    """The name of an environment: the same needs on the same Python and machine give the same."""
    described = {
        "requirements": sorted(needs.requirements),
        "overrides": sorted(needs.overrides),
        "python": needs.python,
        "runtime": [*sys.version_info[:3], platform.machine(), sys.platform],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:20]


class Environments:
    """Makes environments in `folder` and finds them again. One build of the same content at a time."""

    def __init__(self, folder: Path, build_timeout: float) -> None:
        self._folder = folder
        self._timeout = build_timeout
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ensure(self, needs: Needs, *, imports_fal: bool, say: Say) -> Path:
        """The interpreter of an environment that holds `needs`; built now if there is none.

        An app that needs nothing is served by Varvel's own interpreter, where that can. uv's output goes to `say`.
        Raises `RequirementsFailed` with uv's message.
        """
        if serves_itself(needs, imports_fal=imports_fal):
            return Path(sys.executable)
        whole = Needs(
            requirements=complete(needs.requirements, imports_fal=imports_fal),
            overrides=needs.overrides,
            python=needs.python,
        )
        place = self._folder / content_hash(whole)
        async with self._locks[place.name]:
            if not (place / READY).exists():
                await self._build(place, whole, say)
            else:
                say("info", f"environment {place.name} is there already")
        return place / "bin" / "python"

    async def _build(self, place: Path, needs: Needs, say: Say) -> None:
        say("info", f"building environment {place.name}: {', '.join(needs.requirements)}")
        await asyncio.to_thread(_clear, place)
        try:
            await self._uv(["venv", "--quiet", "--no-project", *_python(needs.python), str(place)], say)
            await asyncio.to_thread(_write_inputs, place, needs)
            install = ["pip", "install", "--no-config", "--no-progress", "--python", str(place / "bin" / "python")]
            overrides = ["--override", str(place / "overrides.txt")] if needs.overrides else []
            await self._uv([*install, *overrides, "-r", str(place / "requirements.txt")], say)
            await asyncio.to_thread((place / READY).touch)
        except BaseException:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_clear, place)
            raise
        say("info", f"environment {place.name} is ready")

    async def _uv(self, arguments: list[str], say: Say) -> None:
        tail: list[str] = []

        def keep(level: str, text: str) -> None:
            if text.startswith("Using Python"):
                return
            tail.append(text)
            # uv tells its progress on stderr; that is no sign of trouble.
            say("info", text)

        environ = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environ |= {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
        try:
            status = await process.run([uv_path(), *arguments], say=keep, timeout=self._timeout, environ=environ)
        except TimeoutError as problem:
            raise RequirementsFailed(f"the environment was not built in {self._timeout:g} s") from problem
        if status != 0:
            text = "\n".join(tail[-TAIL:]) or f"uv ended with status {status}"
            if "No space left on device" in text:
                raise StorageFull(f"No room is left on the disk for the app's environment: {text}")
            raise RequirementsFailed(f"the requirements could not be installed:\n{text}")


def serves_itself(needs: Needs, *, imports_fal: bool) -> bool:
    """Whether Varvel's own interpreter can serve an app with these needs."""
    if needs.requirements or (needs.python and not SpecifierSet(needs.python).contains(platform.python_version())):
        return False
    return not imports_fal or importlib.util.find_spec("fal") is not None


def uv_path() -> str:
    """Where uv is: beside Varvel's interpreter, or on the PATH. Raises `RequirementsFailed`."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise RequirementsFailed("uv is not installed: 'pip install uv' in Varvel's environment mends it")
    return found


def _python(specifier: str) -> list[str]:
    if not specifier or SpecifierSet(specifier).contains(platform.python_version()):
        return ["--python", sys.executable]
    return ["--python", specifier]


def _write_inputs(place: Path, needs: Needs) -> None:
    (place / "requirements.txt").write_text("\n".join(needs.requirements) + "\n")
    (place / "overrides.txt").write_text("\n".join(needs.overrides) + "\n")


def _clear(place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
