"""What is deployed: in the state database, and in memory for the reads on each request's way."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

from varvel.apps import store
from varvel.apps.errors import NoSuchApp
from varvel.apps.model import App, AppId, AuthMode, Revision, Scaling
from varvel.apps.rules import TUNABLE, scaling_of
from varvel.apps.store import AppRow
from varvel.state.database import Database


class SqliteCatalog:
    """Implements `varvel.apps.model.Catalog`. Call `start` once before anything else."""

    def __init__(self, database: Database, data: Path | None = None) -> None:
        self._database = database
        self._data = data or database.path.parent
        self._apps: dict[AppId, App] = {}
        self._rows: dict[AppId, AppRow] = {}
        self._revisions: dict[str, Revision] = {}

    async def start(self) -> None:
        """Read everything. A deployment that was cut off by a crash counts as failed."""
        await self._database.write(lambda db: db.execute(store.UNFINISHED).rowcount)
        rows, revisions = await self._database.read(self._read)
        self._revisions = {revision.revision_id: revision for revision in revisions}
        for row in rows:
            self._remember(row)

    def _read(self, db: sqlite3.Connection) -> tuple[list[AppRow], list[Revision]]:
        found = [store.read_revision(tuple(row), self._data) for row in db.execute(store.CURRENT_REVISIONS)]
        return store.read_apps(db), found

    # -- reads

    def get(self, app: AppId) -> App | None:
        return self._apps.get(app)

    def revision(self, revision_id: str) -> Revision | None:
        """A revision that serves, or was looked at since the server started."""
        return self._revisions.get(revision_id)

    def apps(self, owner: str | None = None) -> list[App]:
        """All apps by id, of one owner or of all."""
        found = [app for app in self._apps.values() if owner in (None, app.app.owner)]
        return sorted(found, key=lambda app: (app.app.owner, app.app.name))

    async def revisions(self, app: AppId) -> list[Revision]:
        def read(db: sqlite3.Connection) -> list[Revision]:
            rows = db.execute(store.REVISIONS_OF_APP, (app.owner, app.name))
            return [store.read_revision(tuple(row), self._data) for row in rows]

        found = await self._database.read(read)
        self._revisions |= {revision.revision_id: revision for revision in found}
        return found

    def tuned(self, app: AppId) -> dict[str, float]:
        """Scaling of the app that was changed since it was deployed."""
        row = self._rows.get(app)
        return dict(row.tuned) if row else {}

    # -- writes

    async def add(self, revision: Revision) -> None:
        """Keep a new revision, which serves nothing yet."""
        await self._database.write(lambda db: store.add_revision(db, revision, self._data))
        self._revisions[revision.revision_id] = revision

    async def fail(self, revision: Revision) -> Revision:
        """Mark a revision that never served."""
        await self._database.write(lambda db: db.execute(store.SET_STATUS, ("failed", revision.revision_id)).rowcount)
        failed = replace(revision, status="failed")
        self._revisions[revision.revision_id] = failed
        return failed

    async def switch(
        self, revision: Revision, *, environment: str, auth_mode: AuthMode, at: float, reset_scale: bool = False
    ) -> App:
        """Let `revision` serve its app from now on. What was tuned stays, unless `reset_scale`."""
        old = self._rows.get(revision.app)
        row = AppRow(
            app=revision.app,
            environment=old.environment if old else environment,
            current_revision=revision.revision_id,
            auth_mode=auth_mode,
            tuned=old.tuned if old and not reset_scale else {},
            created_at=old.created_at if old else at,
            updated_at=at,
        )

        def write(db: sqlite3.Connection) -> None:
            db.execute(store.SET_STATUS, ("deployed", revision.revision_id))
            store.put_app(db, row)

        await self._database.write(write)
        self._revisions[revision.revision_id] = replace(revision, status="deployed")
        return self._remember(row)

    async def tune(self, app: AppId, changes: dict[str, float], *, auth_mode: AuthMode | None = None, at: float) -> App:
        """Change scaling, or who may call, from now on. Raises `NoSuchApp`, `BadOptions`."""
        row = self._rows.get(app)
        if row is None:
            raise NoSuchApp(f"There is no app {app}")
        row = replace(row, tuned={**row.tuned, **changes}, auth_mode=auth_mode or row.auth_mode, updated_at=at)
        in_force(self._revisions[row.current_revision], row.tuned)
        await self._database.write(lambda db: store.put_app(db, row))
        return self._remember(row)

    async def remove(self, app: AppId) -> None:
        """Forget an app and its revisions. Its history stays in telemetry. Raises `NoSuchApp`."""
        if app not in self._apps:
            raise NoSuchApp(f"There is no app {app}")

        def write(db: sqlite3.Connection) -> None:
            db.execute(store.DELETE_APP, (app.owner, app.name))
            db.execute(store.DELETE_REVISIONS, (app.owner, app.name))

        await self._database.write(write)
        del self._apps[app], self._rows[app]
        self._revisions = {key: item for key, item in self._revisions.items() if item.app != app}

    def _remember(self, row: AppRow) -> App:
        current = self._revisions[row.current_revision]
        app = App(
            app=row.app,
            environment=row.environment,
            current=current,
            auth_mode=row.auth_mode,
            scaling=in_force(current, row.tuned),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        self._apps[row.app], self._rows[row.app] = app, row
        return app


def in_force(revision: Revision, tuned: dict[str, float]) -> Scaling:
    """The revision's scaling with what was tuned over it. Raises `BadOptions`."""
    spec = revision.spec.scaling
    own = {name: getattr(spec, name) for name in Scaling.__dataclass_fields__}
    return scaling_of({**own, **{name: value for name, value in tuned.items() if name in TUNABLE}})
