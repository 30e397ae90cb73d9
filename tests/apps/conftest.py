from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.apps.world import Logs, Runners, World

from varvel.apps.catalog import SqliteCatalog
from varvel.apps.deploy import Deployer
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.telemetry.model import EventRow


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database.open(tmp_path / "state.db")
    catalog = SqliteCatalog(database)
    await catalog.start()
    runners, logs, events = Runners(), Logs(), list[EventRow]()
    settings = Settings(data=tmp_path, import_timeout=20.0, build_timeout=100.0, app_size=100_000)
    deployer = Deployer(settings, catalog, runners, logs, events.append)
    yield World(tmp_path, database, catalog, deployer, runners, logs, events)
    await database.close()
