"""`/serverless/log-drains`: where the caller's log lines are sent as they come."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from varvel.errors import NotImplementedHere
from varvel.ids import iso
from varvel.platform.access import AdminCaller
from varvel.platform.envelope import Reply, failures
from varvel.platform.parts import PlatformParts
from varvel.telemetry_export.drain_store import Drain, Kind
from varvel.telemetry_export.drains import BATCH_LIMIT, LogDrains


class NewDrain(Reply):
    """A drain to be made."""

    type: Kind = Field(default="http", description="`http` is signed NDJSON; `datadog` is Datadog's intake.")
    url: str = Field(max_length=2000, description="Where batches are posted; https.")
    secret: str = Field(
        min_length=1, max_length=1000, description="Signs each batch (64 characters at least), or Datadog's API key."
    )
    batch_size: Annotated[int, Field(ge=1, le=BATCH_LIMIT, description="Most lines in a post.")] = 1000


class DrainChange(Reply):
    """What may be changed."""

    active: bool = Field(description="On, to go on where it stopped, or off.")


class DrainEntry(Reply):
    """One drain; its secret is never shown."""

    drain_id: str
    type: Kind
    url: str
    batch_size: int
    active: bool = Field(description="False when it was switched off, by hand or after too many failures.")
    failures: int = Field(description="Failed posts in a row.")
    last_error: str | None
    last_sent_at: str | None
    created_at: str


class DrainList(Reply):
    """The caller's drains, oldest first."""

    drains: list[DrainEntry]


def entry(drain: Drain) -> DrainEntry:
    """How a drain is shown."""
    return DrainEntry(
        drain_id=drain.drain_id,
        type=drain.kind,
        url=drain.url,
        batch_size=drain.batch_size,
        active=drain.active,
        failures=drain.failures,
        last_error=drain.last_error,
        last_sent_at=iso(drain.last_sent_at) if drain.last_sent_at is not None else None,
        created_at=iso(drain.created_at),
    )


def router(parts: PlatformParts) -> APIRouter:
    """The operations of this section."""
    section = APIRouter(tags=["Serverless"])

    def drains() -> LogDrains:
        if parts.drains is None:
            raise NotImplementedHere("This server was composed without log drains")
        return parts.drains

    @section.get(
        "/serverless/log-drains",
        operation_id="serverlessListLogDrains",
        summary="List log drains",
        response_model=DrainList,
        responses=failures(403),
    )
    async def list_drains(caller: AdminCaller) -> DrainList:
        """Your log drains and how they are doing."""
        return DrainList(drains=[entry(drain) for drain in drains().of(caller.owner)])

    @section.post(
        "/serverless/log-drains",
        operation_id="serverlessCreateLogDrain",
        summary="Make a log drain",
        status_code=201,
        response_model=DrainEntry,
        responses=failures(400, 403),
    )
    async def create_drain(caller: AdminCaller, new: NewDrain) -> DrainEntry:
        """Have the lines of your apps posted to a URL from now on. An account has one active drain.

        Each post holds lines as the history shows them, one a line, and in `X-Fal-Signature` the hexadecimal
        HMAC-SHA256 of the body under the secret. Anything but 2xx is tried again, so a line may come twice; after
        `drain_failures` failures in a row the drain is switched off.
        """
        drain = await drains().create(
            caller.owner, kind=new.type, url=new.url, secret=new.secret, batch_size=new.batch_size
        )
        return entry(drain)

    @section.patch(
        "/serverless/log-drains/{drain_id}",
        operation_id="serverlessChangeLogDrain",
        summary="Switch a log drain on or off",
        response_model=DrainEntry,
        responses=failures(400, 403, 404),
    )
    async def change_drain(caller: AdminCaller, drain_id: str, change: DrainChange) -> DrainEntry:
        """A drain that is switched on again sends what came meanwhile, as long as the logs are kept."""
        return entry(await drains().activate(caller.owner, drain_id, change.active))

    @section.delete(
        "/serverless/log-drains/{drain_id}",
        operation_id="serverlessDeleteLogDrain",
        summary="Delete a log drain",
        status_code=204,
        response_class=Response,
        responses=failures(403, 404),
    )
    async def delete_drain(caller: AdminCaller, drain_id: str) -> Response:
        """Stop a drain and forget it."""
        await drains().delete(caller.owner, drain_id)
        return Response(status_code=204)

    return section
