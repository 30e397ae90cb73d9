"""What the queue refuses."""

from __future__ import annotations

from varvel.errors import VarvelError


class QueueFull(VarvelError):
    """More requests wait than the caller allows (`fal_max_queue_length`)."""

    status = 429
    platform_type = "rate_limited"
    data_type = "queue_full"


class AlreadyEnded(VarvelError):
    """The request has ended before; a request ends once."""

    status = 500
