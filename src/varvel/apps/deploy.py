"""Deploying: from a folder to a revision that serves. A deployment that fails leaves what served before."""

from __future__ import annotations

import asyncio
import filecmp
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from varvel import ids
from varvel.apps import folder as folders
from varvel.apps import source as sources
from varvel.apps.catalog import SqliteCatalog
from varvel.apps.environments import Environments
from varvel.apps.errors import BadTarget, DeployRefused, NoSuchApp, NoSuchRevision, RunnerFailed
from varvel.apps.looking import Facts, look
from varvel.apps.model import App, AppId, AppSpec, AuthMode, Revision
from varvel.apps.process import Say
from varvel.apps.rules import MAIN, Options, Target, app_name, build_spec, default_name, kebab, parse_target
from varvel.apps.source import Needs, Source
from varvel.errors import VarvelError
from varvel.settings import Settings
from varvel.telemetry.model import EventRow, LogSink

LOG_SOURCE = "grpc-register"
"""Run source of build output in the logs."""
REQUIREMENTS = "requirements.txt"
_log = structlog.get_logger("varvel.apps")


class Starter(Protocol):
    """What a deployment asks of the runners."""

    async def start_one(self, revision: Revision) -> None:
        """Start a runner of `revision` and wait until it is ready. Raises a `VarvelError` with its last output."""
        ...

    def switched(self, app: AppId) -> None:
        """Another revision serves `app` now: drain the runners of others."""
        ...

    def scaled(self, app: AppId) -> None:
        """The scaling of `app` was changed."""
        ...

    def removed(self, app: AppId) -> None:
        """`app` is gone: end its runners."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What somebody wants deployed."""

    owner: str
    folder: Path
    """Its files; they are copied."""
    target: str
    """`app.py:app`, relative to `folder`."""
    folder_name: str = ""
    """How the folder is called where it came from; empty: as `folder` itself."""
    options: Options = field(default_factory=Options)
    """Beat those in the file."""
    environment: str = MAIN
    strategy: Literal["rolling", "recreate"] = "rolling"
    """`rolling` starts a runner before it switches, `recreate` does not."""
    message: str | None = None
    annotations: dict[str, str] | None = None
    by: str | None = None
    reset_scale: bool = False


class Deployer:
    """Makes revisions of apps. One deployment of an app at a time, those of different apps side by side."""

    def __init__(
        self,
        settings: Settings,
        catalog: SqliteCatalog,
        pool: Starter,
        logs: LogSink,
        record: Callable[[EventRow], None],
        clock: Callable[[], float] = ids.now,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._pool = pool
        self._logs = logs
        self._record = record
        self._clock = clock
        self._apps = settings.data / "apps"
        self._environments = Environments(settings.data / "envs", settings.build_timeout)
        self._limits = folders.Limits(settings.app_size, settings.app_files)
        self._locks: defaultdict[AppId, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def deploy(self, order: Order, progress: Say | None = None) -> Revision:
        """Copy, build, look, start, switch. `progress` hears what is happening, line by line.

        Raises `DeployRefused` for what the deployer can mend, `StorageFull`.
        """
        target = parse_target(order.target)
        if not (order.folder / target.file).is_file():
            raise BadTarget(f"there is no file {target.file} in {order.folder_name or order.folder}")
        attempt = _Attempt(order, target, ids.uuid7(), self._clock(), self._logs, progress)
        place = self._apps / order.owner / ".incoming" / attempt.revision_id
        try:
            await asyncio.to_thread(folders.copy, order.folder, place, self._limits)
            revision = await self._prepare(attempt, place)
        except BaseException as problem:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            await self._failed(attempt, None, problem)
            raise
        async with self._locks[revision.app]:
            return await self._release(attempt, revision)

    async def ensure(self, order: Order, progress: Say | None = None) -> Revision:
        """`deploy`, unless the app's current revision has these files and this target already."""
        target = parse_target(order.target)
        for app in self._catalog.apps(order.owner):
            if _is_of(app, order, target) and await asyncio.to_thread(
                _same_files, order.folder, app.current.folder, self._limits
            ):
                return app.current
        return await self.deploy(order, progress)

    async def rollback(self, app: AppId, revision_id: str, by: str | None = None) -> Revision:
        """Let an earlier revision serve again, after a runner of it came up.

        Raises `NoSuchApp`, `NoSuchRevision`, `DeployRefused`.
        """
        if self._catalog.get(app) is None:
            raise NoSuchApp(f"There is no app {app}")
        found = next((item for item in await self._catalog.revisions(app) if item.revision_id == revision_id), None)
        if found is None or found.status == "failed":
            raise NoSuchRevision(f"{app} has no deployed revision {revision_id}")
        order = Order(owner=app.owner, folder=found.folder, target=found.spec.file, by=by)
        attempt = _Attempt(order, Target(found.spec.file, None), revision_id, self._clock(), self._logs, None)
        attempt.app = app
        async with self._locks[app]:
            return await self._release(attempt, found, new=False)

    async def tune(
        self, app: AppId, changes: dict[str, float], *, auth_mode: AuthMode | None = None, by: str | None = None
    ) -> App:
        """Change scaling or auth without a deployment. Raises `NoSuchApp`, `BadOptions`."""
        async with self._locks[app]:
            before = self._catalog.get(app)
            after = await self._catalog.tune(app, changes, auth_mode=auth_mode, at=self._clock())
        self._pool.scaled(app)
        self._config_changed(before, after, by)
        return after

    async def delete(self, app: AppId) -> None:
        """Remove an app, its revisions and their files. Its history stays. Raises `NoSuchApp`."""
        async with self._locks[app]:
            await self._catalog.remove(app)
            self._pool.removed(app)
            await asyncio.to_thread(shutil.rmtree, self._apps / app.owner / app.name, ignore_errors=True)

    # -- steps of a deployment

    async def _prepare(self, attempt: _Attempt, place: Path) -> Revision:
        """The revision, with its files in place and its environment built."""
        order = attempt.order
        parsed, needs = await asyncio.to_thread(_read_source, place, attempt.target)
        attempt.name_after(order.options.over(parsed.options), _guess(parsed, attempt.target))
        attempt.say("info", f"deploying {attempt.app}")
        python, facts = await self._look(attempt, place, parsed, needs)
        options = order.options.over(parsed.options).over(facts.options)
        attempt.name_after(options, None)
        needs = _with(needs, facts.requirements)
        spec = build_spec(
            kind=facts.kind,
            target=attempt.target,
            attribute=facts.attribute,
            requirements=needs.requirements,
            overrides=needs.overrides,
            routes=facts.routes,
            options=options,
        )
        folder = self._apps / attempt.app.owner / attempt.app.name / attempt.revision_id
        await asyncio.to_thread(_move, place, folder)
        return Revision(
            revision_id=attempt.revision_id,
            app=attempt.app,
            spec=spec,
            created_at=attempt.started_at,
            folder=folder,
            python=python,
            message=order.message,
            annotations=order.annotations,
            status="deploying",
            deployed_by=order.by,
        )

    async def _look(self, attempt: _Attempt, place: Path, parsed: Source, needs: Needs) -> tuple[Path, Facts]:
        """Build the environment and look at the app in it.

        The requirements of a `fal.App` are only known for certain when it was imported, which may need them:
        those that can be read without running it come first, and if it then says otherwise, a second round.
        """
        for _ in range(2):
            python = await self._environments.ensure(needs, imports_fal=parsed.imports_fal, say=attempt.say)
            env = attempt.order.options.over(parsed.options).env
            facts = await look(
                python, place, attempt.target, say=attempt.say, timeout=self._settings.import_timeout, env=env
            )
            whole = _with(needs, facts.requirements)
            if whole == needs:
                break
            needs = whole
        return python, facts

    async def _release(self, attempt: _Attempt, revision: Revision, *, new: bool = True) -> Revision:
        """Keep the revision, prove it with a runner, and let it serve."""
        before = self._catalog.get(revision.app)
        rolling = attempt.order.strategy == "rolling"
        try:
            if new:
                await self._catalog.add(revision)
            self._event(attempt, "deployment_started", before)
            if rolling:
                await self._prove(attempt, revision, before)
            after = await self._catalog.switch(
                revision,
                environment=attempt.order.environment,
                auth_mode=revision.spec.auth_mode,
                at=self._clock(),
                reset_scale=attempt.order.reset_scale,
            )
        except BaseException as problem:
            await self._failed(attempt, revision if new else None, problem)
            raise
        self._pool.switched(revision.app)
        if not rolling:
            self._event(attempt, "deployment_recreate_applied", before)
        self._event(attempt, "deployment_ended", before)
        self._config_changed(before, after, attempt.order.by)
        attempt.say("info", f"{revision.app} is deployed as revision {revision.revision_id}")
        return after.current

    async def _prove(self, attempt: _Attempt, revision: Revision, before: App | None) -> None:
        if before:
            self._event(attempt, "deployment_rolling_started", before)
        attempt.say("info", "starting a runner")
        try:
            await self._pool.start_one(revision)
        except Exception as problem:
            if before:
                self._event(attempt, "deployment_rolling_failed", before, reason=_reason(problem))
            if not isinstance(problem, VarvelError):
                raise
            raise RunnerFailed(f"no runner of {revision.app} became ready: {problem.message}") from problem
        if before:
            self._event(attempt, "deployment_rolling_ended", before)

    async def _failed(self, attempt: _Attempt, revision: Revision | None, problem: BaseException) -> None:
        """Say why, leave the failed revision in the list of its app, and remove its files."""
        reason = _reason(problem)
        attempt.say("error", f"deployment failed: {reason.splitlines()[0]}")
        if not isinstance(problem, VarvelError | asyncio.CancelledError):
            _log.error("deployment failed", app=str(attempt.app), exc_info=problem)
        before = self._catalog.get(attempt.app)
        try:
            if revision is not None:
                await self._catalog.fail(revision)
                await asyncio.to_thread(shutil.rmtree, revision.folder, ignore_errors=True)
            elif before is not None and self._catalog.revision(attempt.revision_id) is None:
                await self._catalog.add(attempt.failed_revision(before.current))
        except VarvelError as trouble:
            _log.error("failed deployment not noted", app=str(attempt.app), error=trouble.message)
        self._event(attempt, "deployment_failed", before, reason=reason)

    # -- events

    def _event(self, attempt: _Attempt, category: str, before: App | None, *, reason: str | None = None) -> None:
        payload: dict[str, Any] = {"new_application_id": attempt.revision_id}
        if before is not None:
            payload["old_application_id"] = before.current.revision_id
        if reason is not None:
            payload["reason"] = reason
        self._put_event(attempt.app, category, payload, attempt.order.by)

    def _config_changed(self, before: App | None, after: App, by: str | None) -> None:
        if before is None or (before.scaling == after.scaling and before.auth_mode == after.auth_mode):
            return
        payload: dict[str, Any] = {}
        if before.scaling != after.scaling:
            payload |= {"old_config": asdict(before.scaling), "new_config": asdict(after.scaling)}
        if before.auth_mode != after.auth_mode:
            payload |= {"old_app_auth_mode": before.auth_mode, "new_app_auth_mode": after.auth_mode}
        self._put_event(after.app, "config_changed", payload, by)

    def _put_event(self, app: AppId, category: str, payload: dict[str, Any], by: str | None) -> None:
        if by is not None:
            payload["actor"] = {"nickname": by}
        self._record(
            EventRow(
                event_id=ids.uuid7(),
                owner=app.owner,
                app=str(app),
                category=category,
                created_at=int(self._clock() * 1_000_000),
                payload=json.dumps(payload),
            )
        )


class _Attempt:
    """One deployment on its way: what it is called by now, and who hears of it."""

    def __init__(
        self, order: Order, target: Target, revision_id: str, started_at: float, logs: LogSink, progress: Say | None
    ) -> None:
        self.order = order
        self.target = target
        self.revision_id = revision_id
        self.started_at = started_at
        self._logs = logs
        self._progress = progress
        self._fallback = default_name(target, order.folder_name or order.folder.name)
        self.app = AppId(order.owner, self._fallback)
        self.name_after(order.options, None)

    def name_after(self, options: Options, guess: str | None) -> None:
        """Take the name that the options give, else the guess, else that of the file."""
        name = options.name or guess or self._fallback
        self.app = AppId(self.order.owner, app_name(name, self.order.environment))

    def say(self, level: str, text: str) -> None:
        """One line, to the app's logs and to whoever waits for the deployment."""
        self._logs.take(
            app=str(self.app), revision=self.revision_id, job_id="", level=level, message=text, source=LOG_SOURCE
        )
        if self._progress is not None:
            self._progress(level, text)

    def failed_revision(self, current: Revision) -> Revision:
        """What remains of a deployment that never got as far as a specification."""
        return replace(
            current,
            revision_id=self.revision_id,
            app=self.app,
            spec=AppSpec(kind=current.spec.kind, file=self.target.file, attribute=self.target.attribute or ""),
            created_at=self.started_at,
            message=self.order.message,
            annotations=self.order.annotations,
            status="failed",
            deployed_by=self.order.by,
        )


def _read_source(place: Path, target: Target) -> tuple[Source, Needs]:
    """The parsed file, and what it and the `requirements.txt` beside it need."""
    path = place / target.file
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise BadTarget(f"{target.file} is not a Python file in UTF-8") from problem
    parsed = sources.parse(text, target.file)
    if target.attribute and not parsed.open_ended and target.attribute.split(".")[0] not in parsed.names:
        raise BadTarget(f"{target.file} has no {target.attribute!r}; it has {', '.join(sorted(parsed.names))}")
    listed: tuple[str, ...] = ()
    for beside in dict.fromkeys([path.parent / REQUIREMENTS, place / REQUIREMENTS]):
        if beside.is_file():
            listed = sources.requirements_file(beside.read_text(encoding="utf-8"))
            break
    literal = _fal_class(parsed, target)
    needs = _with(_with(parsed.needs, listed), (parsed.fal_classes[literal] or ()) if literal else ())
    return parsed, needs


def _fal_class(parsed: Source, target: Target) -> str | None:
    """The `fal.App` class that the target means, by the look of the file."""
    if target.attribute in parsed.fal_classes:
        return target.attribute
    return next(iter(parsed.fal_classes)) if target.attribute is None and len(parsed.fal_classes) == 1 else None


def _guess(parsed: Source, target: Target) -> str | None:
    found = _fal_class(parsed, target)
    return kebab(found) or None if found else None


def _with(needs: Needs, requirements: tuple[str, ...]) -> Needs:
    return replace(needs, requirements=tuple(dict.fromkeys([*needs.requirements, *requirements])))


def _move(place: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    place.rename(folder)


def _is_of(app: App, order: Order, target: Target) -> bool:
    """Whether the order may mean the app's current revision."""
    spec = app.current.spec
    named = order.options.name is None or app.app.name == app_name(order.options.name, order.environment)
    same_target = spec.file == target.file and target.attribute in (None, spec.attribute)
    return named and same_target and app.environment == order.environment and app.current.python.exists()


def _same_files(one: Path, other: Path, limits: folders.Limits) -> bool:
    if not other.is_dir():
        return False
    names = folders.listing(one, limits)
    if names != folders.listing(other, limits):
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def _reason(problem: BaseException) -> str:
    if isinstance(problem, VarvelError):
        return problem.message
    return "cancelled" if isinstance(problem, asyncio.CancelledError) else f"{type(problem).__name__}: {problem}"


__all__ = ["DeployRefused", "Deployer", "Order", "Starter"]
