"""Parts killed in the middle of load: nothing acknowledged is lost, nothing happens twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import chaos


@pytest.mark.timeout(400)
def test_thirty_kills_under_load_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    verdict = chaos.run(tmp_path, 30, seed=20261123, pause=0.3)
    assert verdict.acknowledged > 300
    assert verdict.answered > 20
    assert verdict.holds, str(verdict)
