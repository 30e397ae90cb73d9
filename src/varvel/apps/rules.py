"""Rules of what an app may be called and how it may be configured. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from varvel.apps.errors import BadOptions, BadTarget
from varvel.apps.model import AppSpec, AuthMode, Scaling

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
MAIN = "main"
PLAIN_STEMS = frozenset({"app", "main", "server", "api", "__init__", "__main__", "index"})
"""File names that say nothing of the app: then its folder gives the name."""
TUNABLE = frozenset(
    {
        "keep_alive",
        "min_concurrency",
        "max_concurrency",
        "concurrency_buffer",
        "concurrency_buffer_perc",
        "scaling_delay",
        "request_timeout",
    }
)
"""Scaling that may be changed while the app runs, and then outlives deploys."""
CONDITIONS = frozenset({"server_error", "timeout", "connection_error"})
LONGEST = 7 * 86_400.0
MOST_RUNNERS = 10_000
HEALTH_CHECK_KEYS = frozenset(
    {"path", "method", "start_period_seconds", "timeout_seconds", "failure_threshold", "call_regularly"}
)


@dataclass(frozen=True, slots=True)
class Target:
    """What to deploy: a Python file, relative to its folder, and the app in it (None: find it)."""

    file: str
    attribute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of an app: of the `[tool.varvel]` table, of a `fal.App` class, or given when deploying."""

    name: str | None = None
    auth: AuthMode | None = None
    machine_type: str | None = None
    num_gpus: int | None = None
    regions: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    skip_retry_conditions: tuple[str, ...] | None = None
    retry_config: dict[str, int] | None = None
    health_check: dict[str, Any] | None = None
    env: dict[str, str] | None = None
    scaling: dict[str, float] = field(default_factory=dict)
    """Values of `Scaling` by name."""

    def over(self, other: Options) -> Options:
        """These, and where these say nothing, the `other`."""
        merged = {
            item.name: getattr(self, item.name) if getattr(self, item.name) is not None else getattr(other, item.name)
            for item in fields(self)
        }
        return Options(**{**merged, "scaling": {**other.scaling, **self.scaling}})


def parse_target(text: str) -> Target:
    """`app.py:app`, `app.py::Class` or `app.py`, with `/` between folders. Raises `BadTarget`."""
    file, _, attribute = text.replace("::", ":").partition(":")
    parts = file.split("/")
    if not file.endswith(".py") or file.startswith("/") or "\\" in file or any(part in ("", "..") for part in parts):
        raise BadTarget(f"{text!r} is not FILE.py or FILE.py:NAME")
    if attribute and not all(part.isidentifier() for part in attribute.split(".")):
        raise BadTarget(f"{attribute!r} cannot be the name of an app in a Python file")
    return Target("/".join(part for part in parts if part != "."), attribute or None)


def kebab(text: str) -> str:
    """A name made of another: `MyApp` -> `my-app`, `My Folder` -> `my-folder`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text)
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")[:63]


def default_name(target: Target, folder_name: str) -> str:
    """The name of an app that was given none: of its file, or of its folder when the file's says nothing."""
    stem = target.file.rsplit("/", 1)[-1].removesuffix(".py")
    inner = target.file.split("/")[-2] if "/" in target.file else folder_name
    return kebab(inner if stem in PLAIN_STEMS else stem) or "app"


def app_name(name: str, environment: str) -> str:
    """The name under which the app is addressed: `ocr`, or `ocr--staging` in an environment. Raises `BadOptions`."""
    if not NAME.fullmatch(name) or "--" in name:
        raise BadOptions(f"an app's name is lower-case letters, digits and single dashes, not {name!r}")
    if not ENVIRONMENT.fullmatch(environment) or "--" in environment:
        raise BadOptions(f"an environment's name is lower-case letters, digits and single dashes, not {environment!r}")
    return name if environment == MAIN else f"{name}--{environment}"


def parse_options(table: Mapping[str, Any], where: str) -> Options:
    """Options from a table of a file or a request; `where` is said in errors. Raises `BadOptions`."""
    values: dict[str, Any] = {}
    scaling: dict[str, float] = {}
    for key, value in table.items():
        known = _ALIASES.get(key, key)
        if known in _SCALING:
            scaling[known] = _scaling_value(known, value, where)
        elif known in _READERS:
            values[known] = _READERS[known](value, f"{where}: {key}")
        else:
            raise BadOptions(f"{where}: there is no setting {key!r}; there are {', '.join(sorted(_known()))}")
    return Options(**values, scaling=scaling)


def scaling_of(values: Mapping[str, float], where: str = "scaling") -> Scaling:
    """`Scaling` from values by name, over the defaults. Raises `BadOptions` when they contradict each other."""
    checked: dict[str, Any] = {key: _scaling_value(key, value, where) for key, value in values.items()}
    scaling = Scaling(**checked)
    if scaling.min_concurrency > scaling.max_concurrency:
        raise BadOptions(
            f"{where}: min_concurrency {scaling.min_concurrency} is more than max_concurrency {scaling.max_concurrency}"
        )
    return scaling


def build_spec(
    *,
    kind: Literal["asgi", "fal"],
    target: Target,
    attribute: str,
    requirements: tuple[str, ...],
    overrides: tuple[str, ...],
    routes: tuple[str, ...],
    options: Options,
) -> AppSpec:
    """The whole specification of a revision."""
    return AppSpec(
        kind=kind,
        file=target.file,
        attribute=attribute,
        requirements=requirements,
        overrides=overrides,
        machine_type=options.machine_type or "S",
        num_gpus=options.num_gpus or 0,
        auth_mode=options.auth or "private",
        scaling=scaling_of(options.scaling),
        routes=tuple(dict.fromkeys(["/", *(options.routes or ()), *routes])),
        regions=options.regions or (),
        skip_retry_conditions=options.skip_retry_conditions or (),
        retry_config=options.retry_config or {},
        health_check=options.health_check,
        env=options.env or {},
    )


_ALIASES = {"auth_mode": "auth", "app_auth": "auth", "termination_grace_period_seconds": "termination_grace"}
_WHOLE = frozenset(item.name for item in fields(Scaling) if isinstance(item.default, int))
_SCALING = frozenset(item.name for item in fields(Scaling))
_LEAST = {"max_concurrency": 1, "max_multiplexing": 1, "startup_timeout": 0.1, "request_timeout": 0.1}


def _known() -> set[str]:
    return {*_SCALING, *_READERS}


def _scaling_value(name: str, value: object, where: str) -> float:
    if name not in _SCALING:
        raise BadOptions(f"{where}: there is no scaling setting {name!r}; there are {', '.join(sorted(_SCALING))}")
    whole = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
        raise BadOptions(f"{where}: {name} must be {'a whole number' if whole else 'a number'}, not {value!r}")
    least, most = _LEAST.get(name, 0), MOST_RUNNERS if whole else LONGEST
    if not least <= value <= most:
        raise BadOptions(f"{where}: {name} must be from {least} to {most:g}, not {value!r}")
    return int(value) if whole else float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadOptions(f"{where} must be text, not {value!r}")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise BadOptions(f"{where} must be a list, not {value!r}")
    return tuple(_text(item, where) for item in value)


def _auth(value: object, where: str) -> AuthMode:
    if value not in ("private", "public", "shared"):
        raise BadOptions(f"{where} must be private, public or shared, not {value!r}")
    return cast(AuthMode, value)


def _machine(value: object, where: str) -> str:
    # A hosted app may list fallbacks; the first is what it wants.
    return _text(value[0] if isinstance(value, list | tuple) and value else value, where)


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 64:
        raise BadOptions(f"{where} must be a whole number from 0 to 64, not {value!r}")
    return value


def _routes(value: object, where: str) -> tuple[str, ...]:
    found = _texts(value, where)
    if wrong := [route for route in found if not route.startswith("/")]:
        raise BadOptions(f"{where}: a route begins with /, not {wrong[0]!r}")
    return tuple(route.rstrip("/") or "/" for route in found)


def _conditions(value: object, where: str) -> tuple[str, ...]:
    found = _texts(value, where)
    if wrong := sorted(set(found) - CONDITIONS):
        raise BadOptions(f"{where}: {wrong[0]!r} is none of {', '.join(sorted(CONDITIONS))}")
    return found


def _retries(value: object, where: str) -> dict[str, int]:
    """`{"timeout": 2}` or, as hosted apps write it, `{"timeout": {"retries": 2}}`."""
    if not isinstance(value, Mapping):
        raise BadOptions(f"{where} must be a table, not {value!r}")
    found = {}
    for condition, count in value.items():
        if condition not in CONDITIONS:
            raise BadOptions(f"{where}: {condition!r} is none of {', '.join(sorted(CONDITIONS))}")
        number = count.get("retries") if isinstance(count, Mapping) else count
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 9:
            raise BadOptions(f"{where}: {condition} must be a number of retries from 0 to 9, not {count!r}")
        found[str(condition)] = number
    return found


def _health_check(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        raise BadOptions(f"{where} must be a table with a path, not {value!r}")
    if unknown := sorted(set(value) - HEALTH_CHECK_KEYS):
        raise BadOptions(
            f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(sorted(HEALTH_CHECK_KEYS))}"
        )
    return dict(value)


def _env(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BadOptions(f"{where} must be a table, not {value!r}")
    for key, text in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or not isinstance(text, str):
            raise BadOptions(f"{where}: {key!r} = {text!r} is not a variable with a text value")
    return dict(value)


_READERS: dict[str, Callable[[object, str], Any]] = {
    "name": _text,
    "auth": _auth,
    "machine_type": _machine,
    "num_gpus": _count,
    "regions": _texts,
    "routes": _routes,
    "skip_retry_conditions": _conditions,
    "retry_config": _retries,
    "health_check": _health_check,
    "env": _env,
}
