"""Child processes of a deployment (uv, the inspection): their output comes line by line, their time is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Say = Callable[[str, str], None]
"""Takes one line of output: level (stdout, stderr, info, error), text."""
LONGEST_LINE = 64 * 1024
"""Bytes; what is longer comes in pieces."""


async def run(
    command: Sequence[str],
    *,
    say: Say,
    timeout: float,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> int:
    """Run to the end; the exit status (negative: the signal). Raises `TimeoutError`; the whole group is killed then."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=dict(environ) if environ is not None else None,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        asyncio.create_task(_lines(process.stdout, "stdout", say)),
        asyncio.create_task(_lines(process.stderr, "stderr", say)),
    ]
    try:
        async with asyncio.timeout(timeout):
            status = await process.wait()
        # Something that the child left behind may hold the pipes open: do not wait for it.
        await asyncio.wait(readers, timeout=1.0)
        return status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _lines(stream: asyncio.StreamReader, level: str, say: Say) -> None:
    pending = b""
    while part := await stream.read(LONGEST_LINE):
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            _tell(line, level, say)
        if len(pending) >= LONGEST_LINE:
            _tell(pending, level, say)
            pending = b""
    _tell(pending, level, say)


def _tell(line: bytes, level: str, say: Say) -> None:
    if text := line.decode("utf-8", "replace").rstrip():
        say(level, text)
