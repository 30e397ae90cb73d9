"""Apps and their revisions, as the rest of Varvel sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

AuthMode = Literal["private", "public", "shared"]


class AppId(NamedTuple):
    """`owner/name`; in an environment other than `main` the name ends in `--environment`."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many runners an app has and how long they live. Times in seconds. Defaults are the hosted platform's."""

    keep_alive: float = 60.0
    min_concurrency: int = 0
    max_concurrency: int = 4
    concurrency_buffer: int = 0
    concurrency_buffer_perc: int = 0
    scaling_delay: float = 0.0
    max_multiplexing: int = 1
    startup_timeout: float = 600.0
    request_timeout: float = 3600.0
    termination_grace: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """What a revision is made of: everything needed to start a runner, and nothing of where it runs."""

    kind: Literal["asgi", "fal"]
    file: str
    """Entry file, relative to the revision's folder."""
    attribute: str
    """Name of the ASGI app, or of the `fal.App` class, in that file."""
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    """Requirement overrides for the resolver (`[tool.uv] override-dependencies` of PEP 723 blocks)."""
    machine_type: str = "S"
    num_gpus: int = 0
    auth_mode: AuthMode = "private"
    scaling: Scaling = field(default_factory=Scaling)
    routes: tuple[str, ...] = ("/",)
    """Paths of the app's endpoints, for endpoint ids: `/` is `owner/name`, `/turbo` is `owner/name/turbo`."""
    regions: tuple[str, ...] = ()
    skip_retry_conditions: tuple[str, ...] = ()
    retry_config: dict[str, int] = field(default_factory=dict)
    """Extra attempts a condition: `server_error`, `timeout`, `connection_error`."""
    health_check: dict[str, Any] | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One deployed version of an app, ready to run."""

    revision_id: str
    app: AppId
    spec: AppSpec
    created_at: float
    folder: Path
    """Where its files were copied to."""
    python: Path
    """Interpreter of its environment."""
    message: str | None = None
    annotations: dict[str, str] | None = None
    status: Literal["deployed", "failed", "deploying"] = "deploying"
    deployed_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app and the revision that serves it. `scaling` is the one in force (spec plus what was tuned since)."""

    app: AppId
    environment: str
    current: Revision
    auth_mode: AuthMode
    scaling: Scaling
    created_at: float
    updated_at: float

    def endpoint_id(self, path: str) -> str:
        """The route-level endpoint id of a request path (`""` or `/...`): the longest registered route that it equals.

        `/` and unregistered paths are recorded under the bare app id.
        """
        path = path.rstrip("/")
        return f"{self.app}{path}" if path and path in self.current.spec.routes else str(self.app)


class Catalog(Protocol):
    """What is deployed. Reads of single apps come from memory, for they are on each request's way."""

    def get(self, app: AppId) -> App | None: ...
    def revision(self, revision_id: str) -> Revision | None: ...
    def apps(self, owner: str | None = None) -> list[App]: ...
    async def revisions(self, app: AppId) -> list[Revision]:
        """All revisions, newest first."""
        ...
