"""Statements of the apps room, and the rows that they read and write."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from varvel.apps.model import AppId, AppSpec, AuthMode, Revision

_REVISION = "revision_id, owner, name, spec, created_at, folder, python, message, annotations, status, deployed_by"

ALL_APPS = "SELECT owner, name, environment, current_revision, auth_mode, tuned, created_at, updated_at FROM apps"
CURRENT_REVISIONS = f"SELECT {_REVISION} FROM revisions WHERE revision_id IN (SELECT current_revision FROM apps)"  # noqa: S608
REVISIONS_OF_APP = (
    f"SELECT {_REVISION} FROM revisions WHERE owner = ? AND name = ? "  # noqa: S608
    "ORDER BY created_at DESC, revision_id DESC"
)
PUT_APP = (
    "INSERT INTO apps (owner, name, environment, current_revision, auth_mode, tuned, created_at, updated_at) "
    "VALUES (:owner, :name, :environment, :current_revision, :auth_mode, :tuned, :created_at, :updated_at) "
    "ON CONFLICT (owner, name) DO UPDATE SET current_revision = excluded.current_revision, "
    "auth_mode = excluded.auth_mode, tuned = excluded.tuned, updated_at = excluded.updated_at"
)
ADD_REVISION = (
    f"INSERT INTO revisions ({_REVISION}) "  # noqa: S608
    "VALUES (:revision_id, :owner, :name, :spec, :created_at, :folder, :python, :message, :annotations, :status, "
    ":deployed_by)"
)
SET_STATUS = "UPDATE revisions SET status = ? WHERE revision_id = ?"
UNFINISHED = "UPDATE revisions SET status = 'failed' WHERE status = 'deploying'"
DELETE_APP = "DELETE FROM apps WHERE owner = ? AND name = ?"
DELETE_REVISIONS = "DELETE FROM revisions WHERE owner = ? AND name = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRow:
    """An app as it is stored."""

    app: AppId
    environment: str
    current_revision: str
    auth_mode: AuthMode
    tuned: dict[str, float] = field(default_factory=dict)
    """Scaling that was changed since it was deployed; it outlives deploys."""
    created_at: float
    updated_at: float


def put_app(db: sqlite3.Connection, row: AppRow) -> None:
    """Write an app, new or changed."""
    values = {
        "owner": row.app.owner,
        "name": row.app.name,
        "environment": row.environment,
        "current_revision": row.current_revision,
        "auth_mode": row.auth_mode,
        "tuned": json.dumps(row.tuned),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }
    db.execute(PUT_APP, values)


def read_apps(db: sqlite3.Connection) -> list[AppRow]:
    """All apps."""
    return [
        AppRow(
            app=AppId(owner, name),
            environment=environment,
            current_revision=current,
            auth_mode=auth,
            tuned=json.loads(tuned),
            created_at=created,
            updated_at=updated,
        )
        for owner, name, environment, current, auth, tuned, created, updated in db.execute(ALL_APPS)
    ]


def add_revision(db: sqlite3.Connection, revision: Revision, data: Path) -> None:
    """Write a new revision."""
    values = {
        "revision_id": revision.revision_id,
        "owner": revision.app.owner,
        "name": revision.app.name,
        "spec": msgspec.json.encode(revision.spec).decode(),
        "created_at": revision.created_at,
        "folder": _relative(revision.folder, data),
        "python": _relative(revision.python, data),
        "message": revision.message,
        "annotations": json.dumps(revision.annotations) if revision.annotations is not None else None,
        "status": revision.status,
        "deployed_by": revision.deployed_by,
    }
    db.execute(ADD_REVISION, values)


def read_revision(row: tuple[Any, ...], data: Path) -> Revision:
    """A revision of one of the statements above."""
    revision_id, owner, name, spec, created_at, folder, python, message, annotations, status, by = row
    return Revision(
        revision_id=revision_id,
        app=AppId(owner, name),
        spec=msgspec.json.decode(spec, type=AppSpec),
        created_at=created_at,
        folder=data / folder,
        python=data / python,
        message=message,
        annotations=json.loads(annotations) if annotations is not None else None,
        status=status,
        deployed_by=by,
    )


def _relative(path: Path, data: Path) -> str:
    return str(path.relative_to(data) if path.is_relative_to(data) else path)
