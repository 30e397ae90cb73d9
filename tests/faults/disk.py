"""A small file system of its own, for tests of what happens when it is full, or when files cross its edge."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

ROOM = 96 * 1024 * 1024


class Disk:
    """A file system of its own under `folder`, which can be filled up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mount(self) -> None:
        """Raises OSError where that is not allowed."""
        folder = os.fsencode(self.folder)
        if self._libc.mount(b"tmpfs", folder, b"tmpfs", 0, f"size={ROOM},mode=0700".encode()):
            raise OSError(ctypes.get_errno(), "mount")

    def unmount(self) -> None:
        self._libc.umount2(os.fsencode(self.folder), 2)  # even if something still looks into it

    def fill(self) -> None:
        """Leave not a byte; what is freed by whoever writes beside is taken, too."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (1024 * 1024, 4096, 1):
                try:
                    while True:
                        ballast.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        (self.folder / "ballast").unlink()

    def files(self, *folders: str) -> set[str]:
        """Names of all files in some folders of it."""
        found = (path for name in folders for path in (self.folder / name).rglob("*"))
        return {str(path.relative_to(self.folder)) for path in found if path.is_file() and path.suffix != ".pyc"}
