"""The shapes that all operations share: the base of every reply, and the error envelope."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema


class Reply(BaseModel):
    """A body that holds exactly the fields of the specification."""

    model_config = ConfigDict(extra="forbid")


EXACT = 2**53
"""Below it every whole number is a float, too."""


def number(value: float | Decimal) -> int | float:
    """A number as the hosted platform writes it in JSON: without `.0` where it is whole."""
    return int(value) if -EXACT < value < EXACT and value == int(value) else float(value)


Number = Annotated[int | float, BeforeValidator(number), WithJsonSchema({"type": "number"})]
"""A `number` of a reply."""


class ErrorDetails(BaseModel):
    """What went wrong."""

    type: Literal[
        "authorization_error", "validation_error", "not_found", "rate_limited", "server_error", "not_implemented"
    ] = Field(description="Kind of error, for programs.")
    message: str = Field(description="What is wrong and, where known, how to mend it.")
    docs_url: str | SkipJsonSchema[None] = Field(
        default=None, description="A page about it.", json_schema_extra={"format": "uri"}
    )
    request_id: str | SkipJsonSchema[None] = Field(
        default=None, description="Also in the X-Request-Id header; quote it in reports."
    )


class ErrorReply(BaseModel):
    """Every reply that is not a success."""

    error: ErrorDetails


_MEANINGS = {
    400: "The request is not valid",
    401: "No valid key was sent",
    403: "The key may not do this",
    404: "There is no such thing",
    413: "The body is too large",
    416: "No such range in the file",
    429: "Too many calls in a minute",
    500: "Something broke inside the server",
    503: "The telemetry store is starting or down",
    507: "The disk is full",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of an operation: the error envelope under each status. 401, 429 and 500 are always there."""
    every = sorted({401, 429, 500, *statuses})
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in every}
