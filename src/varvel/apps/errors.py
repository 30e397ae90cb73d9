"""Why a deployment was refused. Each is the deployer's to mend, so each is a 400 whose message says how."""

from __future__ import annotations

from varvel.errors import InvalidRequest, NotFound


class DeployRefused(InvalidRequest):
    """The app cannot be deployed as it is."""


class BadTarget(DeployRefused):
    """The target does not name an app in a file."""


class BadOptions(DeployRefused):
    """The app's settings are not valid."""


class FolderTooLarge(DeployRefused):
    """The app's folder is larger than this server takes."""


class RequirementsFailed(DeployRefused):
    """The app's requirements could not be installed."""


class ImportFailed(DeployRefused):
    """The app's file could not be imported."""


class RunnerFailed(DeployRefused):
    """The app was imported, but a runner of it did not become ready."""


class NoSuchApp(NotFound):
    """There is no such app."""


class NoSuchRevision(NotFound):
    """There is no such revision."""
