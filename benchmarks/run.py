"""Runs the benchmarks and prints their pages, which are also written to `benchmarks/results/`.

python -m benchmarks.run [sync] [queue] [cold] [up] [store] [files] [metrics] [--rounds N] [--short]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable

from benchmarks import cold, files, metrics_page, queue, sides, store_scale, sync, up

LOCK = sides.HERE / "requirements-peers.lock"
SUITES: dict[str, Callable[[int, bool], str]] = {
    "sync": lambda rounds, short: sync.run(
        rounds, seconds=1 if short else 3, connections=(1, 64) if short else (1, 8, 64)
    ),
    "queue": lambda rounds, short: queue.run(rounds, seconds=1 if short else 5),
    "cold": lambda rounds, short: cold.run(rounds),
    "up": lambda rounds, short: up.run(rounds),
    "store": lambda rounds, short: store_scale.bench(rounds + 4, (100_000,) if short else store_scale.SIZES),
    "files": lambda rounds, short: files.run(rounds, 64, 500) if short else files.run(rounds),
    "metrics": lambda rounds, short: metrics_page.bench(rounds * 4 + 1),
}
LONG = frozenset({"store", "files", "metrics"})
"""What runs only when it is named: it takes minutes and gigabytes, or needs no peers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "suite", nargs="*", help=f"of {', '.join(SUITES)}; without one all but {', '.join(sorted(LONG))}"
    )
    parser.add_argument("--rounds", type=int, help="turns that the sides take; 5, or 1 with --short")
    parser.add_argument("--short", action="store_true", help="see that it works; the figures mean little")
    arguments = parser.parse_args()
    unknown = set(arguments.suite) - set(SUITES)
    if unknown:
        parser.error(f"no suite is called {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed; `sh tools/peers.sh bench` does it")
    rounds = arguments.rounds or (1 if arguments.short else 5)
    suites = arguments.suite or [name for name in SUITES if name not in LONG]
    if {"sync", "queue"} & set(suites):
        peers()
    for name in suites:
        print(SUITES[name](rounds, arguments.short), flush=True)


def peers() -> None:
    """Make the peers' environment when it is not there. Without a network the benchmark runs without them."""
    if (sides.PEERS / ".ready").exists():
        return
    uv = shutil.which("uv") or str(sides.HERE.parent / ".venv" / "bin" / "uv")
    try:
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(sides.PEERS)], check=True)
        python = str(sides.PEERS / "bin" / "python")
        subprocess.run([uv, "pip", "sync", "-q", "--require-hashes", "--python", python, str(LOCK)], check=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        print(f"the peers cannot be installed ({problem}); their rows are left out", file=sys.stderr)
        shutil.rmtree(sides.PEERS, ignore_errors=True)
        return
    (sides.PEERS / ".ready").touch()


if __name__ == "__main__":
    main()
