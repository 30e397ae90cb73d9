"""A process of this machine: starting the host in it, signalling it, and knowing how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import varvel_runner
from varvel.runners.errors import StartFailed

BOOT = """
import importlib.util as u, sys
s = u.spec_from_file_location("varvel_runner", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
m = u.module_from_spec(s); sys.modules["varvel_runner"] = m; s.loader.exec_module(m)
from varvel_runner.main import main
main(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
"""
HOST = str(Path(varvel_runner.__file__).parent)


class Process(Protocol):
    """A runner's process, and all that it starts."""

    pid: int

    async def wait(self) -> int | None:
        """The exit status once it has ended, negative for a signal; None if nobody can know it."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it and all its children at once."""
        ...


class LocalProcess:
    """A process of this machine, held by a descriptor, so that no other process of its number is ever signalled."""

    def __init__(self, child: subprocess.Popen[bytes] | None = None, *, pid: int = 0, descriptor: int = -1) -> None:
        self.pid = child.pid if child else pid
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._descriptor = os.pidfd_open(self.pid) if child else descriptor
        self._ended = asyncio.Event()
        self.status: int | None = None
        """Set by the parent that forked it, when that is not this process."""
        self._loop.add_reader(self._descriptor, self._on_end)

    async def wait(self) -> int | None:
        await self._ended.wait()
        if self._child is None and self.status is None:
            await asyncio.sleep(0.1)  # its parent's word may come a little later than its end
        return self.status

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._child is not None:
            self.status = self._child.wait()
        self._ended.set()


def spawn(
    python: str, arguments: list[str], channel: int, environ: Mapping[str, str], **options: object
) -> subprocess.Popen[bytes]:
    """Start the host in a new interpreter and session. Blocks for milliseconds. Raises `StartFailed`."""
    try:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [python, "-c", BOOT, HOST, *arguments],
            pass_fds=(channel,),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
    except OSError as problem:
        raise StartFailed(f"{python} cannot be started: {problem}") from problem
