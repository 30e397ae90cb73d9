"""API keys of the caller's account."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from varvel import ids
from varvel.auth.keys import NewKey
from varvel.auth.rules import KeyRecord
from varvel.errors import AccessDenied, InvalidRequest
from varvel.platform.access import AdminCaller
from varvel.platform.cursors import PageNumber
from varvel.platform.envelope import failures
from varvel.platform.parameters import CommaList, Cursor, IdempotencyKey, instant
from varvel.platform.parts import PlatformParts

PAGE = 50
MAX_PAGE = 1000
_EXPANSIONS = ("creator_info", "usage")


class Key(BaseModel):
    """A key, without its secret."""

    key_id: str = Field(description="First half of the key.")
    alias: str = Field(description="The name that it was given.")
    scope: str = Field(description="Only keys of scope API are managed here.", json_schema_extra={"enum": ["API"]})
    created_at: str = Field(description="When it was made (UTC).")
    creator_nickname: str | SkipJsonSchema[None] = Field(
        default=None, description="Who made it (`expand=creator_info`)."
    )
    creator_email: str | SkipJsonSchema[None] = Field(
        default=None, description="Their address (`expand=creator_info`)."
    )
    last_used_at: str | None = Field(default=None, description="Last use, to the minute (`expand=usage`).")
    expires_at: str | None = Field(default=None, description="When it ends (`expand=usage`).")


class KeyPage(BaseModel):
    """A page of keys."""

    next_cursor: str | None = Field(description="Where the next page begins; null on the last.")
    has_more: bool = Field(description="Whether there is a next page.")
    keys: list[Key]


class KeyRequest(BaseModel):
    """The key to make."""

    alias: str = Field(description="A name for it.", min_length=1, max_length=255)
    expires_at: str | None = Field(default=None, description="When it ends (ISO 8601); never when absent.")

    @field_validator("alias")
    @classmethod
    def _not_blank(cls, alias: str) -> str:
        if not alias.strip():
            raise ValueError("must not be blank")
        return alias


class CreatedKey(BaseModel):
    """A new key. The secret is shown this once."""

    key_id: str = Field(description="First half of the key.")
    key_secret: str = Field(description="Second half; it is not kept and cannot be shown again.")
    key: str = Field(description="Both halves, `id:secret`: what goes behind `Authorization: Key`.")


class Rotation(BaseModel):
    """How to replace a key."""

    overlap_seconds: float = Field(
        default=3600.0, ge=0, le=30 * 86_400, description="How long the old one still holds."
    )


def router(parts: PlatformParts) -> APIRouter:
    """`/keys`"""
    section = APIRouter(tags=["Keys"])
    _add_list(section, parts)
    _add_writes(section, parts)
    return section


def _add_list(section: APIRouter, parts: PlatformParts) -> None:
    @section.get(
        "/keys",
        operation_id="listApiKeys",
        summary="List keys",
        response_model=KeyPage,
        response_model_exclude_unset=True,
        responses=failures(400, 403),
    )
    async def list_keys(
        caller: AdminCaller,
        limit: Annotated[int, Query(ge=1, description=f"Keys a page, {MAX_PAGE} at most.")] = PAGE,
        cursor: Cursor = None,
        expand: Annotated[
            list[str] | None,
            Query(description="creator_info adds who made each key, usage adds last use and expiry."),
            CommaList(choices=_EXPANSIONS),
        ] = None,
    ) -> KeyPage:
        """The API keys of your account, newest first."""
        return _page(parts, caller.owner, min(limit, MAX_PAGE), cursor, expand or [])


def _add_writes(section: APIRouter, parts: PlatformParts) -> None:
    @section.post(
        "/keys",
        operation_id="createApiKey",
        summary="Create a key",
        status_code=201,
        response_model=CreatedKey,
        responses=failures(400, 403),
    )
    async def create_key(caller: AdminCaller, body: KeyRequest) -> CreatedKey:
        """Make a key of scope API. It holds at once; its secret is in this reply and nowhere else."""
        expires_at = None if body.expires_at is None else instant(body.expires_at, "expires_at")
        new = await parts.keys.create(caller.owner, body.alias, creator=caller.owner, expires_at=expires_at)
        return _created(new)

    @section.delete(
        "/keys/{key_id}",
        operation_id="deleteApiKey",
        summary="Delete a key",
        status_code=204,
        response_class=Response,
        responses=failures(400, 403),
    )
    async def delete_key(
        caller: AdminCaller,
        key_id: Annotated[str, Path(min_length=1, description="The key to end.")],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """End a key at once and for good. A key that does not exist (any more) is no error."""

        async def work() -> Response:
            _refuse_admin(parts.keys.get(caller.owner, key_id))
            await parts.keys.revoke(caller.owner, key_id)
            return Response(status_code=204)

        return await parts.idempotency.once(caller, idempotency_key, "deleteApiKey", {"key_id": key_id}, work)

    @section.post(
        "/keys/{key_id}/rotate",
        operation_id="rotateApiKey",
        summary="Replace a key",
        status_code=201,
        response_model=CreatedKey,
        responses=failures(400, 403, 404),
    )
    async def rotate_key(
        caller: AdminCaller,
        key_id: Annotated[str, Path(min_length=1, description="The key to replace.")],
        body: Rotation | None = None,
    ) -> CreatedKey:
        """Make a key with the same name in place of another, which goes on for the overlap and then ends."""
        _refuse_admin(parts.keys.get(caller.owner, key_id))
        return _created(await parts.keys.rotate(caller.owner, key_id, (body or Rotation()).overlap_seconds))


def _refuse_admin(record: KeyRecord | None) -> None:
    if record is not None and record.scope != "API":
        raise AccessDenied("ADMIN keys are not managed here")


def _created(new: NewKey) -> CreatedKey:
    return CreatedKey(key_id=new.key_id, key_secret=new.key_secret, key=new.key)


def _page(parts: PlatformParts, owner: str, limit: int, cursor: str | None, expand: list[str]) -> KeyPage:
    records = _after(parts, parts.keys.list(owner), cursor, limit)
    page, rest = records[:limit], records[limit:]
    last = page[-1] if rest else None
    following = parts.cursors.encode("keys", (last.created_at, last.key_id)) if last else None
    keys = [_shown(parts, record, expand) for record in page]
    return KeyPage(next_cursor=following, has_more=following is not None, keys=keys)


def _after(parts: PlatformParts, records: list[KeyRecord], cursor: str | None, limit: int) -> list[KeyRecord]:
    if cursor is None:
        return records
    place = parts.cursors.decode("keys", cursor)
    if isinstance(place, PageNumber):
        return records[place.offset(limit) :]
    if len(place.key) != 2:
        raise InvalidRequest("cursor: not a cursor of this list")
    return [record for record in records if (record.created_at, record.key_id) < place.key]


def _shown(parts: PlatformParts, record: KeyRecord, expand: list[str]) -> Key:
    shown = Key(key_id=record.key_id, alias=record.alias, scope=record.scope, created_at=ids.iso(record.created_at))
    if "creator_info" in expand:
        shown.creator_nickname = record.creator
        if email := parts.keys.email(record.creator):
            shown.creator_email = email
    if "usage" in expand:
        shown.last_used_at = None if record.last_used_at is None else ids.iso(record.last_used_at)
        shown.expires_at = None if record.expires_at is None else ids.iso(record.expires_at)
    return shown
