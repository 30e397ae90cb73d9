"""`/serverless/apps`: what is deployed, its queue, and its history of runners, events and revisions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from varvel.apps.model import App, Revision
from varvel.ids import iso
from varvel.platform import app_history
from varvel.platform.access import ApiCaller, own_app
from varvel.platform.app_history import CATEGORIES, EVENTS_LIMIT, REVISIONS_LIMIT, Aggregation
from varvel.platform.buckets import DAY
from varvel.platform.envelope import Number, Reply, failures
from varvel.platform.parameters import (
    CommaList,
    Cursor,
    End,
    Frame,
    IdempotencyKey,
    Start,
    bucket_window,
    time_range,
)
from varvel.platform.parts import PlatformParts

_Word = WithJsonSchema({"type": "string"})


class AppEntry(Reply):
    """One deployed app and the settings in force."""

    endpoint_id: str = Field(description="`owner/name`, as the other operations take it.")
    name: str
    owner: str
    environment: str
    machine_type: str
    auth_mode: Literal["private", "public", "shared"]
    keep_alive: Number = Field(description="Seconds that an idle runner waits for another request.")
    min_concurrency: Number
    max_concurrency: Number
    request_timeout: Number = Field(description="Seconds.")
    startup_timeout: Number = Field(description="Seconds.")
    valid_regions: list[str] = Field(description="Regions that the app names; empty when it names none.")
    updated_at: str
    endpoints: list[str] | SkipJsonSchema[None] = Field(
        default=None, description="Route-level ids; only with expand=endpoints."
    )


class AppList(Reply):
    """The caller's apps by name."""

    apps: list[AppEntry]


class QueueInfo(Reply):
    """The queue of one app."""

    queue_size: int = Field(ge=0, description="Requests that wait for a runner.")


class RunnerCounts(Reply):
    """Runners by state in one bucket."""

    timestamp: str = Field(description="Begin of the bucket, UTC.")
    running: Number
    idle: Number
    pending: Number = Field(description="Not started yet, or in their set-up.")
    draining: Number = Field(description="Taking no more requests, or being stopped.")


class RunnerHistory(Reply):
    """Runners over time, oldest bucket first. A bucket in which there was none has zeros."""

    endpoint_id: str
    timeframe: Literal["minute", "hour", "day", "week", "month"]
    aggregation: Literal["max", "avg"]
    history: list[RunnerCounts]


class Actor(Reply):
    """Who did it."""

    nickname: str | SkipJsonSchema[None] = None
    full_name: str | SkipJsonSchema[None] = None


class EventPayload(Reply):
    """Details; which are there depends on the category."""

    job_id: str | SkipJsonSchema[None] = None
    machine_type: str | SkipJsonSchema[None] = None
    reason: str | SkipJsonSchema[None] = None
    state: str | SkipJsonSchema[None] = None
    new_application_id: str | SkipJsonSchema[None] = None
    old_application_id: str | SkipJsonSchema[None] = None
    old_config: dict[str, Any] | SkipJsonSchema[None] = None
    new_config: dict[str, Any] | SkipJsonSchema[None] = None
    old_app_auth_mode: str | SkipJsonSchema[None] = None
    new_app_auth_mode: str | SkipJsonSchema[None] = None
    actor: Actor | SkipJsonSchema[None] = None


class Event(Reply):
    """Something that happened to an app."""

    event_id: str
    category: Literal[CATEGORIES]  # type: ignore[valid-type]
    created_at: str
    payload: EventPayload


class EventList(Reply):
    """A page of events, newest first."""

    next_cursor: str | None
    has_more: bool
    endpoint_id: str
    events: list[Event]


class RevisionEntry(Reply):
    """One deployed version."""

    revision_id: str
    created_at: str
    is_current: bool
    message: str | None
    annotations: dict[str, str] | None
    status: Literal["deployed", "failed", "deploying"] | None
    deployed_by: str | None


class RevisionList(Reply):
    """A page of revisions, newest first."""

    next_cursor: str | None
    has_more: bool
    endpoint_id: str
    revisions: list[RevisionEntry]


def app_entry(app: App, *, endpoints: bool) -> AppEntry:
    """How the list shows an app."""
    spec, scaling = app.current.spec, app.scaling
    entry = AppEntry(
        endpoint_id=str(app.app),
        name=app.app.name,
        owner=app.app.owner,
        environment=app.environment,
        machine_type=spec.machine_type,
        auth_mode=app.auth_mode,
        keep_alive=scaling.keep_alive,
        min_concurrency=scaling.min_concurrency,
        max_concurrency=scaling.max_concurrency,
        request_timeout=scaling.request_timeout,
        startup_timeout=scaling.startup_timeout,
        valid_regions=list(spec.regions),
        updated_at=iso(app.updated_at),
    )
    if endpoints:
        entry.endpoints = list(dict.fromkeys(app.endpoint_id(route) for route in spec.routes))
    return entry


def revision_entry(revision: Revision, current: str) -> RevisionEntry:
    """How the list shows a revision."""
    return RevisionEntry(
        revision_id=revision.revision_id,
        created_at=iso(revision.created_at),
        is_current=revision.revision_id == current,
        message=revision.message,
        annotations=revision.annotations,
        status=revision.status,
        deployed_by=revision.deployed_by,
    )


def router(parts: PlatformParts) -> APIRouter:
    """The operations of this section."""
    section = APIRouter(tags=["Serverless"])
    _listing(section, parts)
    _queue(section, parts)
    _history(section, parts)
    return section


def _listing(section: APIRouter, parts: PlatformParts) -> None:
    @section.get(
        "/serverless/apps",
        operation_id="serverlessListApps",
        summary="List your apps",
        response_model=AppList,
        response_model_exclude_unset=True,
        responses=failures(400, 403),
    )
    async def list_apps(
        caller: ApiCaller,
        environment: Annotated[
            str | None, _Word, Query(description="Only this environment; `main` when absent.")
        ] = None,
        search: Annotated[str | None, _Word, Query(description="Part of the name, in any case.")] = None,
        expand: Annotated[
            list[str] | None, CommaList(choices=("endpoints",)), Query(description="`endpoints` adds route-level ids.")
        ] = None,
    ) -> AppList:
        """Your apps, with the ids that the other operations take and the settings in force."""
        found = [
            app
            for app in parts.catalog.apps(caller.owner)
            if app.environment == (environment or "main") and (search or "").lower() in app.app.name.lower()
        ]
        found.sort(key=lambda app: app.app.name)
        return AppList(apps=[app_entry(app, endpoints=bool(expand)) for app in found])


def _queue(section: APIRouter, parts: PlatformParts) -> None:
    @section.get(
        "/serverless/apps/{owner}/{name}/queue",
        operation_id="serverlessGetAppQueueInfo",
        summary="Size of an app's queue",
        response_model=QueueInfo,
        responses=failures(403, 404),
    )
    async def queue_info(caller: ApiCaller, owner: str, name: str) -> QueueInfo:
        """How many requests wait. Those that run are not counted."""
        return QueueInfo(queue_size=parts.scheduler.size(own_app(parts.catalog, caller, owner, name).app))

    @section.delete(
        "/serverless/apps/{owner}/{name}/queue",
        operation_id="serverlessFlushAppQueue",
        summary="Empty an app's queue",
        status_code=204,
        response_class=Response,
        responses=failures(400, 403, 404),
    )
    async def flush(caller: ApiCaller, owner: str, name: str, idempotency_key: IdempotencyKey = None) -> Response:
        """Cancel every request that waits; those that run go on. There is no way back.

        Sent again with the same `Idempotency-Key` within ten minutes it does nothing and answers the same.
        """
        app = own_app(parts.catalog, caller, owner, name).app

        async def work() -> Response:
            await parts.scheduler.flush(app)
            return Response(status_code=204)

        return await parts.idempotency.once(caller, idempotency_key, "flush", {"app": str(app)}, work)


def _history(section: APIRouter, parts: PlatformParts) -> None:
    @section.get(
        "/serverless/apps/{owner}/{name}/runners/history",
        operation_id="serverlessGetRunnerHistory",
        summary="Runners over time",
        response_model=RunnerHistory,
        responses=failures(400, 403, 404, 503),
    )
    async def runner_history(
        caller: ApiCaller,
        owner: str,
        name: str,
        start: Start = None,
        end: End = None,
        timeframe: Frame = None,
        aggregation: Annotated[
            Aggregation, Query(description="`max` is the most at any moment of a bucket, `avg` the mean over its time.")
        ] = "max",
    ) -> RunnerHistory:
        """How many runners were running, idle, pending and draining; 90 days at most."""
        app = own_app(parts.catalog, caller, owner, name)
        buckets = bucket_window(start, end, "UTC", timeframe, "false", now=parts.clock(), at_most=90 * DAY)
        rows = await app_history.runners(parts.telemetry, app.app, buckets, aggregation)
        return RunnerHistory(
            endpoint_id=str(app.app),
            timeframe=buckets.timeframe,
            aggregation=aggregation,
            history=[RunnerCounts(**row) for row in rows],
        )

    @section.get(
        "/serverless/apps/{owner}/{name}/events",
        operation_id="serverlessListAppEvents",
        summary="What happened to an app",
        response_model=EventList,
        response_model_exclude_unset=True,
        responses=failures(400, 403, 404, 503),
    )
    async def list_events(
        caller: ApiCaller,
        owner: str,
        name: str,
        start: Start = None,
        end: End = None,
        category: Annotated[
            list[str] | None, CommaList(choices=CATEGORIES), Query(description="Only these categories.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=EVENTS_LIMIT, description="Events a page.")] = 50,
        cursor: Cursor = None,
    ) -> EventList:
        """Deployments, changes of configuration, and the life of runners, newest first."""
        app = own_app(parts.catalog, caller, owner, name).app
        span = time_range(start, end, now=parts.clock())
        rows, following = await app_history.events(parts, app, span, category or [], limit, cursor)
        events = [
            Event(
                event_id=row["event_id"],
                category=row["category"],
                created_at=iso(int(row["created_at"]) / 1e6),
                payload=EventPayload(**app_history.payload(row["payload"])),
            )
            for row in rows
        ]
        return EventList(endpoint_id=str(app), events=events, next_cursor=following, has_more=following is not None)

    @section.get(
        "/serverless/apps/{owner}/{name}/revisions",
        operation_id="serverlessListAppRevisions",
        summary="Versions of an app",
        response_model=RevisionList,
        responses=failures(400, 403, 404),
    )
    async def list_revisions(
        caller: ApiCaller,
        owner: str,
        name: str,
        limit: Annotated[int, Query(ge=1, le=REVISIONS_LIMIT, description="Revisions a page.")] = 50,
        cursor: Cursor = None,
    ) -> RevisionList:
        """Every version that was deployed, newest first, and which one serves."""
        app = own_app(parts.catalog, caller, owner, name)
        found = await parts.catalog.revisions(app.app)
        page, following = app_history.revisions_page(parts.cursors, found, limit, cursor)
        return RevisionList(
            endpoint_id=str(app.app),
            revisions=[revision_entry(revision, app.current.revision_id) for revision in page],
            next_cursor=following,
            has_more=following is not None,
        )
