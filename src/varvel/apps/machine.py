"""What this machine allows, and what is missing on it: each finding says how it is mended."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varvel.apps.environments import uv_path
from varvel.apps.errors import RequirementsFailed

LITTLE_DISK = 2 * 1024**3
LITTLE_MEMORY = 2 * 1024**3
FEW_FILES = 4096
PROBE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` says what to do where it is not fine."""

    name: str
    state: Literal["ok", "limited", "wrong"]
    detail: str
    mend: str = ""


def findings(data: Path) -> list[Finding]:
    """Look at this machine for a server with this data folder. Takes up to a second or two; starts small children."""
    return [
        item
        for check in (_python, _uv, _fal, _data, _memory, _files, _namespaces, _gpus, _prices)
        for item in check(data)
    ]


def _python(_: Path) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _uv(_: Path) -> Iterator[Finding]:
    try:
        done = subprocess.run([uv_path(), "--version"], capture_output=True, text=True, timeout=PROBE_SECONDS)
        yield Finding("uv", "ok", done.stdout.strip())
    except (RequirementsFailed, OSError, subprocess.SubprocessError) as problem:
        yield Finding("uv", "wrong", str(problem), "install it beside Varvel: pip install uv")


def _fal(_: Path) -> Iterator[Finding]:
    if importlib.util.find_spec("fal") is not None:
        yield Finding("fal", "ok", "fal.App classes start from a warmed parent")
    else:
        mend = "pip install 'varvel[fal]' saves that"
        yield Finding("fal", "limited", "each fal.App gets an environment of its own with fal in it", mend)


def _data(data: Path) -> Iterator[Finding]:
    place = next(item for item in (data, *data.parents) if item.exists())
    if not os.access(place, os.W_OK):
        yield Finding("data folder", "wrong", f"{place} cannot be written", "give another with --data")
        return
    free = shutil.disk_usage(place).free
    detail = f"{data}, {free / 1024**3:.1f} GiB free"
    if free < LITTLE_DISK:
        yield Finding("data folder", "limited", detail, "free some room: models and logs need it")
    else:
        yield Finding("data folder", "ok", detail)


def _memory(_: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{cores} cores, {total / 1024**3:.1f} GiB"
    if total < LITTLE_MEMORY:
        yield Finding("machine", "limited", detail, "logs and analytics alone want 1 GiB")
    else:
        yield Finding("machine", "ok", detail)


def _files(_: Path) -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        yield Finding("open files", "limited", f"at most {hard}", "raise the hard limit (ulimit -Hn) for many callers")
    else:
        yield Finding("open files", "ok", f"{soft}, can be raised to {'any' if hard < 0 else hard}")


def _namespaces(_: Path) -> Iterator[Finding]:
    """Whether runners can see the owner's files at `/data` itself."""
    tool = shutil.which("unshare")
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    mend = "apps find their files under the path in VARVEL_DATA_DIR instead"
    if tool is None:
        yield Finding("/data in apps", "limited", "unshare is not installed", mend)
        return
    try:
        done = subprocess.run([tool, *flags, "true"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError) as problem:
        yield Finding("/data in apps", "limited", str(problem), mend)
        return
    if done.returncode == 0:
        yield Finding("/data in apps", "ok", "this machine allows mount namespaces")
    else:
        yield Finding("/data in apps", "limited", done.stderr.strip() or "mount namespaces are not allowed", mend)


def _gpus(_: Path) -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("GPUs", "ok", "none found (no nvidia-smi)")
        return
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError) as problem:
        yield Finding("GPUs", "wrong", str(problem), "nvidia-smi must work for GPU apps")
        return
    state: Literal["ok", "wrong"] = "ok" if done.returncode == 0 else "wrong"
    yield Finding(
        "GPUs", state, (done.stdout or done.stderr).strip() or "none", "" if state == "ok" else "mend the driver"
    )


def _prices(data: Path) -> Iterator[Finding]:
    path = data / "varvel.toml"
    try:
        tables = tomllib.loads(path.read_text()).get("machines", {}) if path.exists() else {}
        priced = sorted(name for name, values in tables.items() if values.get("price_second"))
    except (OSError, tomllib.TOMLDecodeError, AttributeError) as problem:
        yield Finding("prices", "wrong", f"{path} cannot be read: {problem}", "see docs/billing.md for its tables")
        return
    if priced:
        yield Finding("prices", "ok", f"a second costs something on {', '.join(priced)}; on other types nothing")
    else:
        mend = f"to have usage cost something: price_second under [machines.NAME] in {path} (docs/billing.md)"
        yield Finding("prices", "ok", "a second costs nothing on any machine type", mend)
