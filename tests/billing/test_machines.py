from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from varvel.billing.machines import GB, machine_types
from varvel.settings import BadSetting, Settings, load


def written(folder: Path, text: str) -> Settings:
    (folder / "varvel.toml").write_text(text)
    return load({"data": folder}, {})


def test_the_sizes_of_the_hosted_platform_are_there_and_cost_nothing(tmp_path: Path) -> None:
    types = machine_types(Settings(data=tmp_path))
    assert (types("M").cores, types("M").memory_bytes, types("M").price_second) == (2, 2 * GB, 0)
    assert (types("GPU-H100").gpus, types("GPU-H100").vram_bytes) == (1, 80 * GB)
    assert "XL" in types
    assert "huge" not in types


def test_the_owner_sets_prices_and_new_types(tmp_path: Path) -> None:
    settings = written(
        tmp_path,
        """
        port = 9000
        [machines.M]
        price_second = 0.00004
        surge = 1.5
        surge_hours = ["22:30-01:00", "12:00-13:15"]
        percent_discount = 20
        [machines.attic]
        cores = 32
        memory_bytes = 137438953472
        gpus = 2
        """,
    )
    assert settings.port == 9000
    types = machine_types(settings)
    assert (types("M").cores, types("M").price_second, types("M").percent_discount) == (2, 0.00004, 20)
    assert types("M").surge_hours == ((1350, 1440), (0, 60), (720, 795))
    assert (types("attic").name, types("attic").cores, types("attic").gpus) == ("attic", 32, 2)
    assert len(list(types)) == 13


def test_an_unknown_type_is_of_size_s_and_free(tmp_path: Path) -> None:
    types = machine_types(written(tmp_path, "[machines.S]\nprice_second = 1.0"))
    assert (types("gone").name, types("gone").cores, types("gone").price_second) == ("gone", 1, 0)
    assert types("S").price_second == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[machines.M]\nprice = 1", "price"),
        ("[machines.M]\nprice_second = 'much'", "price_second"),
        ("[machines.M]\nprice_second = -1", "negative"),
        ("[machines.M]\nprice_second = nan", "price_second"),
        ("[machines.M]\nsurge = 0.5", "surge"),
        ("[machines.M]\npercent_discount = 120", "percent_discount"),
        ("[machines.M]\nsurge_hours = ['9-17']", "surge_hours"),
        ("[machines.M]\nsurge_hours = ['09:00-24:30']", "surge_hours"),
        ("[machines.M]\nsurge_hours = 9", "surge_hours"),
        ("[machines]\nM = 1", "machines.M"),
        ("machines = 1", "machines"),
    ],
)
def test_a_wrong_table_is_refused_by_name(tmp_path: Path, text: str, named: Any) -> None:
    with pytest.raises(BadSetting, match=named):
        machine_types(written(tmp_path, text))


def test_a_runner_has_the_gpus_that_its_app_asks_for_or_those_of_its_type(tmp_path: Path) -> None:
    types = machine_types(written(tmp_path, "[machines.attic]\ngpus = 2"))
    assert types.gpus_of_runner("GPU-H100", 0) == 1
    assert types.gpus_of_runner("GPU-H100", 8) == 8
    assert types.gpus_of_runner("attic", 0) == 2
    assert types.gpus_of_runner("L", 4) == 0, "a CPU type has none to give"
