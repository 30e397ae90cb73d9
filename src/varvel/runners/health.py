"""Is a runner well? Its app's own check, or at least a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from varvel.runners.errors import RunnerError
from varvel.runners.runner import READY, Runner
from varvel.runners.transport import Connections

EVERY = 15.0
"""Seconds between two regular checks."""


def due(runner: Runner, now: float) -> bool:
    """Whether a regular check is to be made now."""
    check = runner.revision.spec.health_check
    if not check or not check.get("call_regularly", True) or runner.state not in READY or runner.checking:
        return False
    start = max(float(check.get("start_period_seconds") or 30.0), runner.revision.spec.scaling.startup_timeout)
    return now - runner.checked_at >= EVERY and (runner.checked_well or now - runner.created >= start)


async def check(runner: Runner, now: float, fail: Callable[[Runner], None], *, at_once: bool) -> None:
    """Check a runner; `fail` is called when it is to be ended.

    A check asked for by a response (`at_once`) counts alone, a regular one only after `failure_threshold` in a row.
    """
    if runner.connections is None or runner.checking:
        return
    how = runner.revision.spec.health_check or {}
    runner.checking, runner.checked_at = True, now
    try:
        async with asyncio.timeout(float(how.get("timeout_seconds") or 5.0)):
            well = await _answers(runner.connections, how)
    except (TimeoutError, RunnerError):
        well = False
    finally:
        runner.checking = False
    runner.checked_well = runner.checked_well or well
    runner.health_failures = 0 if well else runner.health_failures + 1
    if not well and (at_once or runner.health_failures >= int(how.get("failure_threshold") or 3)):
        fail(runner)


async def _answers(connections: Connections, how: Mapping[str, Any]) -> bool:
    if not how.get("path"):
        return await connections.reachable()
    method, path = str(how.get("method") or "POST"), str(how["path"])
    response = await connections.send(method, path.encode(), [(b"content-type", b"application/json")], b"{}")
    await response.read(1 << 20)
    response.close()
    return response.status < 400
