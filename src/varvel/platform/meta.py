"""What is true of the whole server."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from varvel.platform.envelope import ErrorReply
from varvel.platform.parts import PlatformParts


class Meta(BaseModel):
    """What is true of the whole server."""

    webhook_ip_ranges: list[str] = Field(description="CIDR ranges of the addresses from which webhooks are sent.")


def router(parts: PlatformParts) -> APIRouter:
    """`/meta`"""
    section = APIRouter(tags=["Meta"])

    @section.get(
        "/meta",
        operation_id="getMeta",
        summary="Describe the server",
        responses={
            429: {"model": ErrorReply, "description": "Too many calls in a minute"},
            500: {"model": ErrorReply, "description": "Something broke inside the server"},
        },
    )
    async def meta() -> Meta:
        """Needs no key. `webhook_ip_ranges` is what to let through a firewall for webhooks of this server."""
        return Meta(webhook_ip_ranges=[text for text in parts.settings.webhook_ip_ranges.split(",") if text])

    return section
