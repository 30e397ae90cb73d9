"""Load from wrk, and the CPU time that each side spends on it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

BODY = '{"text": "' + "v" * 1010 + '"}'
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """One run of wrk: requests a second, latencies in milliseconds, and answers that were not 2xx."""

    rps: float
    p50: float
    p99: float
    errors: int
    requests: int
    """Answers that came back."""
    cpu_us: dict[str, float]
    """CPU microseconds a request of each process tree watched."""


def post(
    url: str,
    *,
    connections: int,
    seconds: int,
    headers: dict[str, str] | None = None,
    watch: dict[str, list[int]] | None = None,
    body: str = BODY,
    delay: int = 0,
) -> Load:
    """Load `url` with POSTs of 1 KB of JSON from one wrk thread over keep-alive connections.

    `delay`: milliseconds that each connection waits on average between an answer and its next request. Waits are
    exponential, as between calls of people who know nothing of each other: with equal ones, connections that were
    answered together (by one sync) would ask together for ever, and each would wait for all others.
    """
    script = "\n".join(
        ['wrk.method = "POST"', f"wrk.body = [[{body}]]", 'wrk.headers["content-type"] = "application/json"']
        + [f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items()]
        + ([f"function delay() return math.floor(0.5 - math.log(1 - math.random()) * {delay}) end"] if delay else [])
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        Path(file.name).write_text(script)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s", file.name]
        before = {name: cpu_seconds(pids) for name, pids in (watch or {}).items()}
        out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
        after = {name: cpu_seconds(pids) for name, pids in (watch or {}).items()}
    total = int(_find(r"(\d+) requests in", out))
    bad = int(_find(r"Non-2xx or 3xx responses: (\d+)", out, "0"))
    broken = sum(int(item) for item in re.findall(r"(?:connect|read|write|timeout) (\d+)", out))
    return Load(
        rps=float(_find(r"Requests/sec:\s+([\d.]+)", out)),
        p50=_ms(_find(r"\n\s+50%\s+(\S+)", out)),
        p99=_ms(_find(r"\n\s+99%\s+(\S+)", out)),
        errors=bad + broken,
        requests=total,
        cpu_us={name: (after[name] - before[name]) / max(total, 1) * 1e6 for name in before},
    )


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    root = psutil.Process(pid)
    return [root.pid, *(child.pid for child in root.children(recursive=True))]


def memory_mb(pids: list[int]) -> float:
    """Proportional set size of the processes together, in MB."""
    return float(sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 1e6)


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the processes have used so far, in user and system mode."""
    times = [psutil.Process(pid).cpu_times() for pid in pids if psutil.pid_exists(pid)]
    return float(sum(item.user + item.system for item in times))


def _find(pattern: str, text: str, default: str | None = None) -> str:
    match = re.search(pattern, text)
    if match is None and default is None:
        raise AssertionError(f"wrk said something else:\n{text}")
    return match.group(1) if match else str(default)


def _ms(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert match is not None, text
    return float(match.group(1)) * _UNITS[match.group(2)]
