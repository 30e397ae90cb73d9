"""The owner's files at `/data` itself: a bind mount that only this process and its children see."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from varvel_runner.lines import Lines

PLACE = "/data"
NEW_MOUNTS = 0x00020000
NEW_USER = 0x10000000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000


def show(order: dict[str, Any], lines: Lines) -> None:
    """Mount the order's data folder at `/data`; where that cannot be, say so and go on without it."""
    if not order["data"]:
        return
    try:
        _refuse_to_hide(order)
        _mount(order["data"])
    except OSError as problem:
        lines.send("debug", f"/data cannot be mounted here ({problem}); files are in the folder VARVEL_DATA_DIR")


def _refuse_to_hide(order: dict[str, Any]) -> None:
    for name in ("python", "folder", "socket", "data"):
        if Path(order[name]).is_relative_to(PLACE):
            raise OSError(f"it would hide {order[name]}")


def _mount(source: str) -> None:
    Path(PLACE).mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER))
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _check(libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None))
    _check(libc.mount(os.fsencode(source), PLACE.encode(), None, BIND | RECURSIVE, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
