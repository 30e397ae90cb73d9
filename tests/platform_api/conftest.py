"""One server for all tests of this folder: each test has apps or owners of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platform_api.world import World
from tests.platform_api.world import world as serve


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serve(tmp_path_factory.mktemp("platform")) as made:
        yield made
