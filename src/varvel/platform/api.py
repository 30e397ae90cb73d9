"""The Platform API: every section of its page joined into one FastAPI application."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

import varvel
from varvel.errors import InvalidRequest, VarvelError, platform_error
from varvel.platform import (
    account,
    analytics,
    apps,
    drains,
    export,
    files,
    focus,
    keys,
    logs,
    meta,
    metrics,
    requests,
    usage,
)
from varvel.platform.edge import Edge
from varvel.platform.parts import PlatformParts

PREFIX = "/v1"
_TYPES = {401: "authorization_error", 403: "authorization_error", 404: "not_found", 429: "rate_limited"}


def build(parts: PlatformParts, sections: Sequence[APIRouter] | None = None) -> FastAPI:
    """The application that answers `/v1/...` and `/openapi.json`; with all sections unless some are given."""
    app = FastAPI(title="Varvel Platform API", version=varvel.__version__, openapi_url=None, redirect_slashes=False)
    app.state.parts = parts
    for section in _sections(parts) if sections is None else sections:
        app.include_router(section, prefix=PREFIX)
    app.add_exception_handler(VarvelError, _on_varvel_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)

    @cache
    def page() -> bytes:
        return json.dumps(describe(app, parts.settings.public_url)).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        # Made when first asked for: it takes longer than the rest of a start.
        return Response(await to_thread.run_sync(page), media_type="application/json")

    app.add_middleware(
        Edge,
        settings=parts.settings,
        authenticator=parts.authenticator,
        limits=parts.limits,
        clock=parts.clock,
    )
    return app


def _sections(parts: PlatformParts) -> list[APIRouter]:
    rooms = (files, requests, logs, analytics, metrics, apps, export, drains, usage, keys, account, focus, meta)
    return [room.router(parts) for room in rooms]


def describe(app: FastAPI, public_url: str = "") -> dict[str, Any]:
    """OpenAPI 3.1 of the application, its paths relative to `/v1` as in the specification."""
    page = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description="Look after the apps of a Varvel server: files, requests, logs, analytics, metrics, usage, keys.",
        servers=[{"url": f"{public_url.rstrip('/')}{PREFIX}"}],
    )
    page["paths"] = {path.removeprefix(PREFIX): item for path, item in page["paths"].items()}
    # Invalid parameters are answered with 400 here.
    for item in page["paths"].values():
        for operation in item.values():
            operation["responses"].pop("422", None)
            for status, reply in operation["responses"].items():
                if int(status) >= 400:
                    # Errors are JSON where the reply itself is text, too.
                    reply["content"] = {"application/json": next(iter(reply["content"].values()))}
    for name in ("HTTPValidationError", "ValidationError"):
        page.get("components", {}).get("schemas", {}).pop(name, None)
    return page


async def _on_varvel_error(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, VarvelError)
    return JSONResponse(platform_error(problem, request.state.request_id), problem.status, problem.headers)


async def _on_invalid(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    return await _on_varvel_error(request, InvalidRequest(_first_fault(problem)))


def _first_fault(problem: RequestValidationError) -> str:
    fault = problem.errors()[0]
    if fault["type"] == "json_invalid":
        return "body: is not valid JSON"
    place = ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0])
    return f"{place}: {fault['msg']}"


async def _on_http_error(request: Request, problem: Exception) -> JSONResponse:
    """What the router itself refuses: unknown paths, methods that a path does not have, bodies that do not parse."""
    assert isinstance(problem, HTTPException)
    kind = _TYPES.get(problem.status_code, "validation_error" if problem.status_code < 500 else "server_error")
    message = "Resource not found" if problem.status_code == 404 else str(problem.detail)
    message = message or HTTPStatus(problem.status_code).phrase
    body = {"error": {"type": kind, "message": message, "request_id": request.state.request_id}}
    headers = {"Allow": _allowed(request)} if problem.status_code == 405 else problem.headers
    return JSONResponse(body, problem.status_code, headers)


def _allowed(request: Request) -> str:
    """Every method that the path has: the router tells only those of the first route that it tried."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))
