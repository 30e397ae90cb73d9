"""Who may call an operation, and whose things it may touch.

Keys are read before the body of a request is (`varvel.platform.edge`); the dependencies here only look at what
was found. A handler declares `caller: ApiCaller`, or `AdminCaller` where the specification asks for an ADMIN key.
They wait for nothing, but are coroutines: FastAPI would call plain functions in a thread, which costs more than these.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from varvel.apps.model import App, AppId, Catalog
from varvel.auth.model import Caller
from varvel.errors import AccessDenied, AuthenticationRequired, NotFound
from varvel.platform.parameters import endpoint_parts

_api_key = APIKeyHeader(
    name="Authorization", scheme_name="apiKey", auto_error=False, description="`Key <id>:<secret>`, of either scope."
)
_admin_key = APIKeyHeader(
    name="Authorization", scheme_name="adminApiKey", auto_error=False, description="`Key <id>:<secret>`, scope ADMIN."
)


def _known(request: Request) -> Caller:
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise AuthenticationRequired()
    return caller


async def api_caller(request: Request, _: Annotated[str | None, Security(_api_key)] = None) -> Caller:
    """Anyone with a valid key. Raises `AuthenticationRequired`."""
    return _known(request)


async def admin_caller(request: Request, _: Annotated[str | None, Security(_admin_key)] = None) -> Caller:
    """Anyone with a valid ADMIN key. Raises `AuthenticationRequired` or `AccessDenied`."""
    caller = _known(request)
    if caller.scope != "ADMIN":
        raise AccessDenied("This operation needs a key with scope ADMIN")
    return caller


ApiCaller = Annotated[Caller, Depends(api_caller)]
AdminCaller = Annotated[Caller, Depends(admin_caller)]


def require_owner(caller: Caller, owner: str) -> None:
    """Raises `AccessDenied` unless `owner` is the caller's own account."""
    if owner != caller.owner:
        raise AccessDenied(f"{owner} is not your account")


def own_app(catalog: Catalog, caller: Caller, owner: str, name: str) -> App:
    """The caller's app `owner/name`. Raises `AccessDenied` (another's) or `NotFound`."""
    require_owner(caller, owner)
    found = catalog.get(AppId(owner, name))
    if found is None:
        raise NotFound(f"There is no app {owner}/{name}")
    return found


def own_endpoints(caller: Caller, endpoint_ids: list[str]) -> list[tuple[AppId, str]]:
    """App and route (empty for a bare app id) of each id; all must be the caller's.

    Raises `InvalidRequest` or `AccessDenied`. The apps need not exist any more: their history does.
    """
    found = [endpoint_parts(endpoint_id) for endpoint_id in endpoint_ids]
    for owner, _, _ in found:
        require_owner(caller, owner)
    return [(AppId(owner, name), route) for owner, name, route in found]
