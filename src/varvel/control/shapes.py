"""Apps, revisions and runners as the control API shows them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from varvel import ids
from varvel.apps.model import App, Catalog, Revision
from varvel.runners.model import RunnerInfo


def revision_shape(revision: Revision, catalog: Catalog) -> dict[str, Any]:
    """A revision, with what it was made of."""
    app = catalog.get(revision.app)
    spec = asdict(revision.spec)
    # Values of the environment may be secrets; their names are enough here.
    spec["env"] = sorted(revision.spec.env)
    return {
        "revision_id": revision.revision_id,
        "app": str(revision.app),
        "endpoints": [f"{revision.app}{'' if route == '/' else route}" for route in revision.spec.routes],
        "created_at": ids.iso(revision.created_at),
        "is_current": app is not None and app.current.revision_id == revision.revision_id,
        "message": revision.message,
        "annotations": revision.annotations,
        "status": revision.status,
        "deployed_by": revision.deployed_by,
        "spec": spec,
    }


def app_shape(app: App, catalog: Catalog, runners: list[RunnerInfo]) -> dict[str, Any]:
    """An app as it serves now."""
    return {
        "app": str(app.app),
        "environment": app.environment,
        "auth_mode": app.auth_mode,
        "scaling": asdict(app.scaling),
        "created_at": ids.iso(app.created_at),
        "updated_at": ids.iso(app.updated_at),
        "revision": revision_shape(app.current, catalog),
        "runners": [runner_shape(runner) for runner in runners],
    }


def runner_shape(runner: RunnerInfo) -> dict[str, Any]:
    """A runner at this moment."""
    return {
        "runner_id": runner.runner_id,
        "app": str(runner.app),
        "revision_id": runner.revision_id,
        "machine_type": runner.machine_type,
        "state": runner.state.value,
        "in_flight": runner.in_flight,
        "started_at": ids.iso(runner.started_at),
        "pid": runner.pid,
        "cpu_percent": runner.cpu_percent,
        "memory_bytes": runner.memory_bytes,
    }
