"""One file by Starlette's FileResponse, as anybody would serve it. The path of the file is in FILE."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route


async def download(_: Request) -> FileResponse:
    return FileResponse(os.environ["FILE"])


app = Starlette(routes=[Route("/", download)])
