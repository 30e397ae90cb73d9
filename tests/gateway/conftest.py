from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway.rig import Rig, rig


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """One gateway for the tests that leave it as they found it; `me/echo` is private, `me/open` public."""
    async with rig(
        tmp_path_factory.mktemp("gateway"), buffer_body=64 * 1024, max_body=1024 * 1024, status_heartbeat=0.3
    ) as running:
        running.apps.add("echo", "app")
        running.apps.add("open", "app", auth_mode="public")
        running.apps.add("common", "app", auth_mode="shared")
        running.apps.add("hasty", "app", request_timeout=0.3)
        running.apps.add("broken", "missing")
        running.apps.add("talkative", "late.app", auth_mode="shared")
        running.apps.add("never", "never_ready", startup_timeout=0.6)
        yield running
