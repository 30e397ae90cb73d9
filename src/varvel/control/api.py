"""`/control`: deploying and looking after apps, for the command line. Errors as in the Platform API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from varvel import __version__, ids
from varvel.control import apps, deploys, server
from varvel.errors import InvalidRequest, NotFound, VarvelError, platform_error
from varvel.platform.edge import Edge

if TYPE_CHECKING:
    from varvel.apps.catalog import SqliteCatalog
    from varvel.apps.deploy import Deployer
    from varvel.auth.keys import KeyStore
    from varvel.auth.limits import RateLimits
    from varvel.auth.model import Authenticator
    from varvel.runners.model import Pool
    from varvel.settings import Settings

PREFIX = "/control"


@dataclass(frozen=True, kw_only=True)
class ControlParts:
    """What the control API is given."""

    settings: Settings
    authenticator: Authenticator
    keys: KeyStore
    limits: RateLimits
    catalog: SqliteCatalog
    deployer: Deployer
    pool: Pool
    ready: Callable[[], dict[str, Any]]
    """State of the server's parts, as `/readyz` tells it."""
    clock: Callable[[], float] = ids.now


def build(parts: ControlParts) -> FastAPI:
    """The application that answers `/control/...`; every call needs an ADMIN key."""
    app = FastAPI(title="Varvel control", version=__version__, openapi_url=None, redirect_slashes=False)
    for section in (apps.router(parts), deploys.router(parts), server.router(parts)):
        app.include_router(section, prefix=PREFIX)
    app.add_exception_handler(VarvelError, _on_varvel_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(
        Edge,
        settings=parts.settings,
        authenticator=parts.authenticator,
        limits=parts.limits,
        clock=parts.clock,
    )
    return app


async def _on_varvel_error(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, VarvelError)
    return JSONResponse(platform_error(problem, request.state.request_id), problem.status, problem.headers)


async def _on_invalid(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    fault = problem.errors()[0]
    place = ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0])
    return await _on_varvel_error(request, InvalidRequest(f"{place}: {fault['msg']}"))


async def _on_http_error(request: Request, problem: Exception) -> JSONResponse:
    """What the router itself refuses."""
    assert isinstance(problem, HTTPException)
    if problem.status_code == 404:
        return await _on_varvel_error(request, NotFound())
    error = InvalidRequest(str(problem.detail))
    return JSONResponse(platform_error(error, request.state.request_id), problem.status_code, problem.headers)
