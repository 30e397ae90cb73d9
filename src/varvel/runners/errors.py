"""What can go wrong between the server and an app's runners."""

from __future__ import annotations

from varvel.errors import VarvelError


class RunnerError(VarvelError):
    """The app's runner failed."""

    status = 503
    data_type = "runner_connection_error"


class RunnerRefused(RunnerError):
    """The runner refused the connection; nothing was sent."""

    data_type = "runner_connection_refused"


class RunnerDisconnected(RunnerError):
    """The runner closed the connection before it answered."""

    data_type = "runner_disconnected"


class RunnerIncomplete(RunnerDisconnected):
    """The runner's answer ended before it was whole."""

    status = 502
    data_type = "runner_incomplete_response"


class ResponseHeadersTooLarge(RunnerIncomplete):
    """The app's response headers are larger than this server takes."""


class StartFailed(RunnerError):
    """A runner of the app could not start. The first line of the message says how, the rest is its output."""

    data_type = "runner_scheduling_failure"

    @property
    def line(self) -> str:
        """What may be told to anybody, for it holds nothing that the app printed."""
        return self.message.partition("\n")[0]


class SchedulingFailed(StartFailed):
    """The app's runners fail to start."""


class StartTimeout(RunnerError):
    """No runner was free in time."""

    status = 504
    data_type = "startup_timeout"


class StartTimedOut(SchedulingFailed):
    """The app was not ready in its `startup_timeout`."""

    status = 504
    data_type = "startup_timeout"
