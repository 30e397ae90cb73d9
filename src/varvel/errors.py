"""The one root of Varvel's errors, and the shapes in which callers see them.

A room raises a leaf of `VarvelError`; the edge that the call came through turns it into that edge's wire
shape. There are two here: `platform_error` (everything under `/v1`) and `data_plane_error` (`/run`, `/queue`,
uploads, tokens). A caller never sees a traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar


class VarvelError(Exception):
    """Something went wrong inside Varvel."""

    status: ClassVar[int] = 500
    """HTTP status at either edge."""
    platform_type: ClassVar[str] = "server_error"
    """`error.type` of the Platform API: authorization_error, validation_error, not_found, rate_limited,
    server_error or not_implemented."""
    data_type: ClassVar[str] = "internal_error"
    """`error_type` of the data plane."""

    def __init__(self, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.headers = dict(headers or {})
        super().__init__(self.message)


class InvalidRequest(VarvelError):
    """The request is not valid."""

    status = 400
    platform_type = "validation_error"
    data_type = "bad_request"


class AuthenticationRequired(VarvelError):
    """Authentication required"""

    status = 401
    platform_type = "authorization_error"
    data_type = "unauthorized"


class AccessDenied(VarvelError):
    """Access denied"""

    status = 403
    platform_type = "authorization_error"
    data_type = "forbidden"


class NotFound(VarvelError):
    """Resource not found"""

    status = 404
    platform_type = "not_found"
    data_type = "not_found"


class Conflict(VarvelError):
    """The request conflicts with the present state.

    Never sent to data plane clients as 409, which they would retry: the data plane answers 400.
    """

    status = 400
    platform_type = "validation_error"
    data_type = "bad_request"


class TooLarge(VarvelError):
    """The body is larger than this server takes."""

    status = 413
    platform_type = "validation_error"
    data_type = "bad_request"


class RateLimited(VarvelError):
    """Rate limit exceeded"""

    status = 429
    platform_type = "rate_limited"
    data_type = "rate_limited"


class StorageFull(VarvelError):
    """No room is left on the disk; free some and try again."""

    status = 507
    platform_type = "server_error"
    data_type = "internal_error"


class TelemetryUnavailable(VarvelError):
    """The telemetry store is starting or down; calls go on and nothing is lost. Try again in a few seconds."""

    status = 503
    platform_type = "server_error"
    data_type = "internal_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "2"})


class NotImplementedHere(VarvelError):
    """This is not built yet."""

    status = 501
    platform_type = "not_implemented"
    data_type = "internal_error"


def known(problem: BaseException) -> VarvelError | None:
    """The error of ours that `problem` is or means: a full disk can come up anywhere. None for a fault of ours."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull()
    return problem if isinstance(problem, VarvelError) else None


def platform_error(error: VarvelError, request_id: str) -> dict[str, Any]:
    """Body of an error of the Platform API: `{"error": {"type", "message", "request_id"}}`."""
    return {"error": {"type": error.platform_type, "message": error.message, "request_id": request_id}}


def data_plane_error(detail: str, error_type: str) -> dict[str, str]:
    """Body of an error of the gateway itself: `{"detail", "error_type"}`; `X-Fal-Error-Type` says the same."""
    return {"detail": detail, "error_type": error_type}
