"""The table of machine types: sizes, multipliers and prices.

Sizes are those of the hosted platform. Prices are zero until the owner of the machine says what a second costs,
in `DIR/varvel.toml`; a table with a new name makes a new type:

    [machines.M]
    price_second = 0.00004
    surge = 1.5
    surge_hours = ["17:00-22:00"]    # UTC; without them surge holds always
    percent_discount = 20

The multiplier turns a second of execution into billable units where the app itself sets none. It is the number of
cores for CPU types and 16 for GPU types.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from math import isfinite
from typing import Any

from varvel.billing.rules import MachineType
from varvel.settings import BadSetting, Settings

GB = 1024**3
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_CPU = {"XS": (0.5, GB // 2), "S": (1.0, GB), "M": (2.0, 2 * GB), "L": (4.0, 15 * GB), "XL": (8.0, 30 * GB)}
_GPU = {
    "GPU-A6000": 48, "GPU-A100": 40, "GPU-L40": 48, "GPU-H100": 80,
    "GPU-RTXPRO6000": 96, "GPU-H200": 141, "GPU-B200": 192,
}  # fmt: skip
"""Gigabytes of memory of one GPU."""


class MachineTypes:
    """All machine types by name. Calling it gives a type; an unknown name gives one of size S without a price."""

    def __init__(self, types: Mapping[str, MachineType]) -> None:
        self._types = dict(types)

    def __call__(self, name: str) -> MachineType:
        found = self._types.get(name)
        return found if found is not None else replace(self._types["S"], name=name, price_second=0.0)

    def gpus_of_runner(self, machine_type: str, num_gpus: int) -> int:
        """How many GPUs a runner has: those that its app asks for, else those of its type; 0 on CPU types."""
        gpus = self(machine_type).gpus
        return gpus and (num_gpus or gpus)

    def __contains__(self, name: str) -> bool:
        return name in self._types

    def __iter__(self) -> Iterator[MachineType]:
        return iter(self._types.values())


def defaults() -> dict[str, MachineType]:
    """The types that are there without a word in `varvel.toml`."""
    types = {
        name: MachineType(name=name, cores=cores, memory_bytes=memory, price_second=0.0, multiplier=cores)
        for name, (cores, memory) in _CPU.items()
    }
    for name, gigabytes in _GPU.items():
        types[name] = MachineType(
            name=name,
            cores=8.0,
            memory_bytes=30 * GB,
            gpus=1,
            vram_bytes=gigabytes * GB,
            price_second=0.0,
            multiplier=16.0,
        )
    return types


def machine_types(settings: Settings) -> MachineTypes:
    """The defaults, changed by the `[machines.NAME]` tables of `DIR/varvel.toml`. Raises `BadSetting`."""
    path = settings.data / "varvel.toml"
    try:
        tables = tomllib.loads(path.read_text()).get("machines", {}) if path.exists() else {}
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise BadSetting(f"{path} cannot be read: {problem}") from problem
    types = defaults()
    if not isinstance(tables, dict):
        raise BadSetting(f"{path}: machines must be tables, such as [machines.M]")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadSetting(f"{path}: machines.{name} must be a table")
        base = types.get(name, replace(types["S"], name=name))
        types[name] = changed(base, table, f"{path}: machines.{name}")
    return MachineTypes(types)


def changed(base: MachineType, table: Mapping[str, Any], place: str) -> MachineType:
    """`base` with the values of a table. Raises `BadSetting`, which begins with `place`."""
    known = {item.name for item in fields(MachineType)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise BadSetting(f"{place} has no {', '.join(unknown)}; it may have {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "surge_hours":
            values[key] = _hours(value, place)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise BadSetting(f"{place}.{key} must be a number, not {value!r}")
        else:
            values[key] = int(value) if key in ("memory_bytes", "vram_bytes", "gpus") else float(value)
    made = replace(base, **values)
    if made.surge < 1:
        raise BadSetting(f"{place}.surge is a factor of 1 or more, not {made.surge:g}")
    if not 0 <= (made.percent_discount or 0) <= 100:
        raise BadSetting(f"{place}.percent_discount lies between 0 and 100, not {made.percent_discount:g}")
    if min(made.price_second, made.multiplier, made.cores, made.memory_bytes, made.gpus, made.vram_bytes) < 0:
        raise BadSetting(f"{place} has a negative number")
    return made


def _hours(value: Any, place: str) -> tuple[tuple[int, int], ...]:
    texts = [value] if isinstance(value, str) else value
    spans: list[tuple[int, int]] = []
    for text in texts if isinstance(texts, list) else [texts]:
        found = _HOURS.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise BadSetting(f'{place}.surge_hours must be like "17:00-22:00", not {text!r}')
        begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
        if begin == end or end > 1440:
            raise BadSetting(f"{place}.surge_hours: {text!r} is no span of a day")
        # Over midnight is two spans.
        spans += [(begin, end)] if begin < end else [(begin, 1440), (0, end)]
    return tuple(span for span in spans if span[0] < span[1])
