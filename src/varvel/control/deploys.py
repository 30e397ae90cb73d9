"""`POST /control/deploy`: an app's folder comes in, its deployment goes out line by line."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from varvel.apps import folder as folders
from varvel.apps.deploy import Order
from varvel.apps.model import Revision
from varvel.apps.rules import MAIN, parse_options
from varvel.control.shapes import revision_shape
from varvel.errors import InvalidRequest, TooLarge, VarvelError, known, platform_error
from varvel.platform.access import AdminCaller

if TYPE_CHECKING:
    from varvel.control.api import ControlParts

LONGEST_MESSAGE = 1000
MOST_ANNOTATIONS = 50


class DeployOrder(BaseModel):
    """What to deploy; the files come beside it."""

    model_config = ConfigDict(extra="forbid")

    target: str
    folder_name: str = ""
    options: dict[str, Any] = {}
    """As in a `[tool.varvel]` table."""
    environment: str = MAIN
    strategy: Literal["rolling", "recreate"] = "rolling"
    message: str | None = Field(default=None, max_length=LONGEST_MESSAGE)
    annotations: dict[str, str] | None = Field(default=None, max_length=MOST_ANNOTATIONS)
    reset_scale: bool = False


def router(parts: ControlParts) -> APIRouter:
    """The deploy operation."""
    section = APIRouter()
    limits = folders.Limits(parts.settings.app_size, parts.settings.app_files)

    @section.post("/deploy")
    async def deploy(caller: AdminCaller, order: Annotated[str, Form()], files: UploadFile) -> StreamingResponse:
        """Multipart: `order` (JSON of a `DeployOrder`) and `files` (a tar of the folder, compressed or not).

        Answers JSON lines: `{"line": {"level", "message"}}` each, then `{"revision": ...}` or `{"error": ...}`.
        """
        wanted = _parse(order)
        options = parse_options(wanted.options, "options")
        if (files.size or 0) > limits.size:
            raise TooLarge(f"The app is larger than the {limits.size} bytes that this server takes")
        place = parts.settings.data / "apps" / ".uploads" / uuid.uuid4().hex
        try:
            await asyncio.to_thread(_unpack, files, place, limits)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            raise
        whole = Order(
            owner=caller.owner,
            folder=place,
            target=wanted.target,
            folder_name=wanted.folder_name or "app",
            options=options,
            environment=wanted.environment,
            strategy=wanted.strategy,
            message=wanted.message,
            annotations=wanted.annotations,
            by=caller.owner,
            reset_scale=wanted.reset_scale,
        )
        return StreamingResponse(_lines(parts, whole, place), media_type="application/x-ndjson")

    return section


def _parse(text: str) -> DeployOrder:
    try:
        return DeployOrder.model_validate_json(text)
    except ValidationError as problem:
        fault = problem.errors()[0]
        place = ".".join(["order", *(str(part) for part in fault["loc"])])
        raise InvalidRequest(f"{place}: {fault['msg']}") from problem


def _unpack(upload: UploadFile, place: Path, limits: folders.Limits) -> None:
    """The upload is in a temporary file by now; its folder is made beside the apps, on the same disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    archive = place.with_suffix(".tar")
    try:
        with archive.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        folders.unpack(archive, place, limits)
    finally:
        archive.unlink(missing_ok=True)


async def _lines(parts: ControlParts, order: Order, place: Path) -> AsyncIterator[bytes]:
    """The deployment's lines as they come. When the caller goes away before its end, it is given up."""
    said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def say(level: str, message: str) -> None:
        said.put_nowait({"line": {"level": level, "message": message}})

    task = asyncio.create_task(parts.deployer.deploy(order, say))
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (item := await said.get()) is not None:
            yield _json(item)
        yield _json(_ending(parts, task))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


def _ending(parts: ControlParts, task: asyncio.Task[Revision]) -> dict[str, Any]:
    problem = task.exception()
    if problem is None:
        return {"revision": revision_shape(task.result(), parts.catalog)}
    error = known(problem) or VarvelError("An unexpected error occurred")
    return {**platform_error(error, ""), "status": error.status}


def _json(item: dict[str, Any]) -> bytes:
    return json.dumps(item).encode() + b"\n"
