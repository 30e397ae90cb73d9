"""The files of a revision: copied once, so that later edits do not reach what runs."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from varvel.apps.errors import BadTarget, FolderTooLarge

IGNORED = frozenset(
    {
        ".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".varvel", ".mypy_cache",
        ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".idea", ".DS_Store",
    }
)  # fmt: skip
"""Names of files and folders that are never part of an app."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest app folder: bytes in all, and number of files."""

    size: int
    files: int


def listing(folder: Path, limits: Limits) -> list[Path]:
    """Files of an app's folder, relative to it, without what is ignored. Raises `BadTarget`, `FolderTooLarge`.

    Links to files inside the folder count as those files; links that lead out of it, and what is not a file, are
    left out.
    """
    if not folder.is_dir():
        raise BadTarget(f"{folder} is not a folder")
    found: list[Path] = []
    size = 0
    for path in _walk(folder):
        found.append(path.relative_to(folder))
        size += path.stat().st_size
        if len(found) > limits.files or size > limits.size:
            raise FolderTooLarge(
                f"{folder} holds more than an app may have ({limits.files} files, {limits.size} bytes in all): "
                "everything beside the app's file is deployed with it, so give the app a folder of its own"
            )
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED and not Path(place, name).is_symlink()]
        for name in files:
            path = Path(place, name)
            if name in IGNORED or name.endswith(".pyc") or not path.is_file():
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                continue
            yield path


def copy(source: Path, target: Path, limits: Limits) -> None:
    """Copy an app's files to `target`, which must not exist, and sync them to disk."""
    names = listing(source, limits)
    target.mkdir(parents=True)
    for name in names:
        to = target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, to)


def pack(folder: Path, limits: Limits, file: Path) -> int:
    """Write the folder's files to a compressed tar; how many there are. Raises `BadTarget`, `FolderTooLarge`."""
    names = listing(folder, limits)
    with tarfile.open(file, "w:gz", compresslevel=3) as archive:
        for name in names:
            archive.add((folder / name).resolve(), arcname=name.as_posix(), recursive=False, filter=_anonymous)
    return len(names)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(file: Path, target: Path, limits: Limits) -> None:
    """Write the files of a tar below `target`. Only plain files and folders are taken, only below it.

    Raises `BadTarget` (not a tar, or a member that would land elsewhere) or `FolderTooLarge`.
    """
    target.mkdir(parents=True)
    size = count = 0
    try:
        with tarfile.open(file, "r:*") as archive:
            for member in archive:
                count, size = count + 1, size + member.size
                if count > limits.files or size > limits.size:
                    raise FolderTooLarge(f"the app has more than {limits.files} files or {limits.size} bytes")
                if not (member.isfile() or member.isdir()):
                    raise BadTarget(f"{member.name} is neither a file nor a folder")
                archive.extract(member, target, filter="data")
    except (tarfile.TarError, EOFError, OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None and not isinstance(problem, tarfile.TarError):
            raise
        raise BadTarget(f"the upload is not a tar of an app's folder: {problem}") from problem
