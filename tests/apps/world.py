"""The neighbours of a deployment, as small as they can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from varvel.apps.catalog import SqliteCatalog
from varvel.apps.deploy import Deployer, Order
from varvel.apps.model import AppId, Revision
from varvel.apps.rules import parse_options
from varvel.runners.errors import StartFailed
from varvel.state.database import Database
from varvel.telemetry.model import EventRow


class Runners:
    """Runners that start, or do not."""

    def __init__(self) -> None:
        self.refuse: str | None = None
        self.started: list[Revision] = []
        self.calls: list[tuple[str, AppId]] = []

    async def start_one(self, revision: Revision) -> None:
        if self.refuse is not None:
            raise StartFailed(self.refuse)
        self.started.append(revision)

    def switched(self, app: AppId) -> None:
        self.calls.append(("switched", app))

    def scaled(self, app: AppId) -> None:
        self.calls.append(("scaled", app))

    def removed(self, app: AppId) -> None:
        self.calls.append(("removed", app))


class Logs:
    """Lines as (app, level, message)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []
        self.sources: set[str] = set()

    def take(
        self,
        *,
        app: str,
        revision: str,
        job_id: str,
        level: str,
        message: str,
        request_id: str = "",
        endpoint: str = "",
        source: str = "gateway",
        labels: dict[str, str] | None = None,
        at: float | None = None,
    ) -> int:
        self.lines.append((app, level, message))
        self.sources.add(source)
        return len(self.lines)

    def text(self) -> str:
        return "\n".join(message for _, _, message in self.lines)


@dataclass
class World:
    """A deployer on a real database, with runners that only say whether they would start."""

    data: Path
    database: Database
    catalog: SqliteCatalog
    deployer: Deployer
    runners: Runners
    logs: Logs
    events: list[EventRow] = field(default_factory=list)

    def folder(self, text: str, name: str = "thing", **more: str) -> Path:
        place = self.data / "source" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "app.py").write_text(text)
        for file, content in more.items():
            (place / file.replace("_txt", ".txt")).write_text(content)
        return place

    def order(self, text: str, target: str = "app.py", name: str = "thing", **options: object) -> Order:
        return Order(
            owner="me", folder=self.folder(text, name), target=target, options=parse_options(options, "flags"), by="me"
        )

    def categories(self) -> list[str]:
        return [event.category for event in self.events]
