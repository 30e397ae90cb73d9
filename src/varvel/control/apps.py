"""`/control/apps` and `/control/runners`: what is deployed, how it scales, which revision serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from varvel.apps.model import App, AuthMode
from varvel.apps.rules import TUNABLE, scaling_of
from varvel.control.shapes import app_shape, revision_shape, runner_shape
from varvel.errors import InvalidRequest
from varvel.platform.access import AdminCaller, own_app

if TYPE_CHECKING:
    from varvel.control.api import ControlParts


class Tuning(BaseModel):
    """What may be changed without a deployment."""

    model_config = ConfigDict(extra="forbid")

    scaling: dict[str, float] = {}
    auth_mode: AuthMode | None = None


class Choice(BaseModel):
    """The revision that shall serve."""

    model_config = ConfigDict(extra="forbid")

    revision_id: str


def router(parts: ControlParts) -> APIRouter:
    """Operations on the caller's own apps."""
    section = APIRouter()

    def show(app: App) -> dict[str, Any]:
        return app_shape(app, parts.catalog, parts.pool.runners(app.app))

    @section.get("/apps")
    async def list_apps(caller: AdminCaller) -> dict[str, Any]:
        return {"apps": [show(app) for app in parts.catalog.apps(caller.owner)]}

    @section.get("/apps/{owner}/{name}")
    async def get_app(caller: AdminCaller, owner: str, name: str) -> dict[str, Any]:
        return show(own_app(parts.catalog, caller, owner, name))

    @section.delete("/apps/{owner}/{name}", status_code=204)
    async def delete_app(caller: AdminCaller, owner: str, name: str) -> None:
        await parts.deployer.delete(own_app(parts.catalog, caller, owner, name).app)

    @section.patch("/apps/{owner}/{name}")
    async def tune_app(caller: AdminCaller, owner: str, name: str, tuning: Tuning) -> dict[str, Any]:
        app = own_app(parts.catalog, caller, owner, name)
        if fixed := sorted(set(tuning.scaling) - TUNABLE):
            raise InvalidRequest(
                f"scaling: {fixed[0]} is set by a deployment only; these can be changed: {', '.join(sorted(TUNABLE))}"
            )
        scaling_of(tuning.scaling | _bounds(app, tuning.scaling))
        return show(await parts.deployer.tune(app.app, tuning.scaling, auth_mode=tuning.auth_mode, by=caller.owner))

    @section.post("/apps/{owner}/{name}/revision")
    async def choose_revision(caller: AdminCaller, owner: str, name: str, choice: Choice) -> dict[str, Any]:
        app = own_app(parts.catalog, caller, owner, name)
        await parts.deployer.rollback(app.app, choice.revision_id, by=caller.owner)
        return show(own_app(parts.catalog, caller, owner, name))

    @section.get("/apps/{owner}/{name}/revisions")
    async def list_revisions(caller: AdminCaller, owner: str, name: str) -> dict[str, Any]:
        app = own_app(parts.catalog, caller, owner, name)
        found = await parts.catalog.revisions(app.app)
        return {"revisions": [revision_shape(revision, parts.catalog) for revision in found]}

    @section.get("/runners")
    async def list_runners(caller: AdminCaller) -> dict[str, Any]:
        mine = [runner for runner in parts.pool.runners() if runner.app.owner == caller.owner]
        return {"runners": [runner_shape(runner) for runner in mine]}

    return section


def _bounds(app: App, changes: dict[str, float]) -> dict[str, float]:
    """The other end of the concurrency that holds now, so that a change is judged with it."""
    return {name: getattr(app.scaling, name) for name in ("min_concurrency", "max_concurrency") if name not in changes}
