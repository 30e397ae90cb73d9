"""`/control/owners` and `/control/doctor`: who lives on this server, and how it is."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from varvel import __version__
from varvel.apps import machine
from varvel.auth.keys import FIRST_OWNER
from varvel.auth.model import Caller
from varvel.errors import AccessDenied
from varvel.platform.access import AdminCaller

if TYPE_CHECKING:
    from varvel.control.api import ControlParts


class NewOwner(BaseModel):
    """Somebody else who may deploy here."""

    model_config = ConfigDict(extra="forbid")

    nickname: str
    email: str | None = None


def router(parts: ControlParts) -> APIRouter:
    """Operations on the server itself."""
    section = APIRouter()

    @section.post("/owners", status_code=201)
    async def add_owner(caller: AdminCaller, new: NewOwner) -> dict[str, Any]:
        """The new owner's ADMIN key is in this reply and nowhere else."""
        _operator(caller)
        made = await parts.keys.add_owner(new.nickname, new.email)
        return {"nickname": new.nickname, "key": made.key, "key_id": made.key_id}

    @section.get("/owners")
    async def list_owners(caller: AdminCaller) -> dict[str, Any]:
        _operator(caller)
        return {"owners": parts.keys.owners()}

    @section.get("/doctor")
    async def doctor(caller: AdminCaller) -> dict[str, Any]:
        found = await asyncio.to_thread(machine.findings, parts.settings.data)
        return {
            "version": __version__,
            "owner": caller.owner,
            "parts": parts.ready(),
            "findings": [asdict(finding) for finding in found],
        }

    return section


def _operator(caller: Caller) -> None:
    """The owner made on the first start looks after the server; others only after their own apps."""
    if caller.owner != FIRST_OWNER:
        raise AccessDenied(f"Only {FIRST_OWNER} may do this")
