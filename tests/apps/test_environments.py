from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from varvel.apps.environments import READY, Environments, complete, content_hash
from varvel.apps.errors import RequirementsFailed
from varvel.apps.source import Needs


def quiet(level: str, text: str) -> None:
    """Nobody listens."""


async def test_an_app_that_needs_nothing_is_served_by_varvels_own_interpreter(tmp_path: Path) -> None:
    environments = Environments(tmp_path, 60)
    assert await environments.ensure(Needs(), imports_fal=False, say=quiet) == Path(sys.executable)
    assert not list(tmp_path.iterdir())


async def test_an_environment_is_built_once_and_shared(tmp_path: Path) -> None:
    environments = Environments(tmp_path, 100)
    said: list[str] = []
    needs = Needs(requirements=("six",))
    first, second = await asyncio.gather(
        *(environments.ensure(needs, imports_fal=False, say=lambda _, text: said.append(text)) for _ in range(2))
    )
    assert first == second
    assert sum(text.startswith("building environment") for text in said) == 1
    assert any(text.strip().startswith("+ six==") for text in said)
    found = subprocess.run([first, "-c", "import six, uvicorn, httptools, uvloop"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert subprocess.run([first, "-c", "import varvel"], capture_output=True).returncode != 0


async def test_an_override_replaces_what_a_package_asks_for(tmp_path: Path) -> None:
    needs = Needs(requirements=("python-dateutil",), overrides=("six; sys_platform == 'never'",))
    python = await Environments(tmp_path, 100).ensure(needs, imports_fal=False, say=quiet)
    assert subprocess.run([python, "-c", "import six"], capture_output=True).returncode != 0


async def test_a_build_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    needs = Needs(requirements=("six",))
    whole = Needs(requirements=complete(needs.requirements, imports_fal=False))
    half = tmp_path / content_hash(whole)
    half.mkdir()
    (half / "rubbish").write_text("x")
    python = await Environments(tmp_path, 100).ensure(needs, imports_fal=False, say=quiet)
    assert python == half / "bin" / "python"
    assert (half / READY).exists()
    assert not (half / "rubbish").exists()


async def test_a_python_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequirementsFailed, match=r"3\.99"):
        await Environments(tmp_path, 60).ensure(Needs(python=">=3.99"), imports_fal=False, say=quiet)
    assert not list(tmp_path.iterdir())


async def test_a_build_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(RequirementsFailed, match=r"not built in 0\.001 s"):
        await Environments(tmp_path, 0.001).ensure(Needs(requirements=("six",)), imports_fal=False, say=quiet)


def test_the_same_needs_in_another_order_are_the_same_environment() -> None:
    one = Needs(requirements=("six", "attrs"))
    assert content_hash(one) == content_hash(Needs(requirements=("attrs", "six")))
    assert content_hash(one) != content_hash(Needs(requirements=("attrs",)))
    assert content_hash(one) != content_hash(Needs(requirements=("six", "attrs"), overrides=("six==1.16.0",)))


def test_what_a_runner_needs_is_added_unless_the_app_chose_a_version() -> None:
    assert "uvicorn==0.34.0" in complete(["uvicorn==0.34.0"], imports_fal=False)
    assert not any(item.startswith("uvicorn>") for item in complete(["uvicorn==0.34.0"], imports_fal=False))
    assert any(item.startswith("fal>") for item in complete([], imports_fal=True))
    assert complete(["fal==1.70.0"], imports_fal=True).count("fal==1.70.0") == 1
