"""Sync calls: Varvel beside a gateway that only forwards, the bare app, and LitServe, taking turns in one run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

from benchmarks import sides
from benchmarks.load import Load, memory_mb, post
from benchmarks.report import spread, table, write


def run(rounds: int = 5, seconds: int = 2, connections: tuple[int, ...] = (1, 64)) -> str:
    """Each round loads every side in turn; ratios are taken inside a round."""
    loads: dict[tuple[str, int], list[Load]] = defaultdict(list)
    memory: dict[str, float] = {}
    raw: list[dict[str, Any]] = []
    with ExitStack() as stack:
        members = [
            stack.enter_context(sides.bare("fastapi_echo")),
            stack.enter_context(sides.forwarded("fastapi_echo")),
        ]
        members += [stack.enter_context(sides.forwarded("raw_echo"))]
        members += [stack.enter_context(sides.varvel(app))[0] for app in ("fastapi_echo", "raw_echo")]
        if sides.PEERS.exists():
            members.append(stack.enter_context(sides.litserve()))
        for side in members:
            memory[side.name] = sum(memory_mb(pids) for pids in side.watch().values())
            post(side.url, connections=8, seconds=1, headers=side.headers)
        for number in range(rounds):
            for count in connections:
                for side in members:
                    load = post(side.url, connections=count, seconds=seconds, headers=side.headers, watch=side.watch())
                    loads[side.name, count].append(load)
                    raw.append({"round": number, "side": side.name, "c": count, **vars(load)})
    return write("sync", raw, _page(loads, memory, connections))


def _page(loads: dict[tuple[str, int], list[Load]], memory: dict[str, float], connections: tuple[int, ...]) -> str:
    names = list(dict.fromkeys(name for name, _ in loads))
    head = [
        "system",
        *(f"rps c={c} | p50 ms c={c} | p99 ms c={c}" for c in connections),
        "CPU us/request",
        "PSS MB",
        "errors",
    ]
    rows = []
    for name in names:
        cells: list[str] = []
        for count in connections:
            mine = loads[name, count]
            cells += [spread([item.rps for item in mine], 0), spread([item.p50 for item in mine])]
            cells += [spread([item.p99 for item in mine])]
        last = loads[name, connections[-1]]
        cpu = ", ".join(
            f"{part} {statistics.median(item.cpu_us[part] for item in last):.0f}" for part in last[0].cpu_us
        )
        errors = sum(item.errors for count in connections for item in loads[name, count])
        rows.append([name, *cells, cpu, f"{memory[name]:.0f}", errors])
    flat = [cell for item in head for cell in item.split(" | ")]
    return table(flat, rows) + "\n\n" + _ratios(loads, connections[-1])


def _ratios(loads: dict[tuple[str, int], list[Load]], count: int) -> str:
    pairs = [
        ("Varvel fastapi_echo", "forwarder to fastapi_echo", ">= 0.7"),
        ("Varvel raw_echo", "forwarder to raw_echo", ">= 0.4"),
        ("Varvel fastapi_echo", "LitServe", ">= 3.5"),
    ]
    rows = []
    for ours, theirs, goal in pairs:
        if (theirs, count) in loads:
            turns = zip(loads[ours, count], loads[theirs, count], strict=True)
            rows.append([f"{ours} / {theirs}", spread([a.rps / b.rps for a, b in turns]), goal])
    return table([f"ratio of requests a second at c={count}, round by round", "median (min-max)", "goal"], rows)
