"""Runs in an app's environment, never in the server: imports the file and tells what app is in it.

`python inspection.py DESCRIPTOR FOLDER FILE [ATTRIBUTE]` writes one JSON object to the descriptor: what it
found, or `{"error": ..., "trace": ...}`. What the app prints goes to stdout and stderr, where the server reads it.
Standard library only, for any Python that an app may ask for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

FAL_ATTRIBUTES = (
    "machine_type", "num_gpus", "regions", "keep_alive", "min_concurrency", "max_concurrency", "concurrency_buffer",
    "concurrency_buffer_perc", "scaling_delay", "max_multiplexing", "startup_timeout", "request_timeout",
    "termination_grace_period_seconds", "skip_retry_conditions", "retry_config",
)  # fmt: skip
OWN_FRAMES = (__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
USUAL_NAMES = ("app", "application", "api", "asgi")


class Refused(Exception):
    """The file was imported, but has not the app that was asked for."""


def main() -> None:
    descriptor, folder, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    attribute = sys.argv[4] if len(sys.argv) > 4 else None
    threading.Thread(target=end_with_reader, args=(descriptor,), daemon=True).start()
    try:
        found = describe(load(folder, file), Path(folder), file, attribute)
    except Refused as problem:
        found = {"error": str(problem)}
    except BaseException as problem:
        found = {"error": last_line(problem), "trace": trace_of(problem)}
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(descriptor, "w") as out:
        json.dump(found, out)
    # Threads that the app started must not keep this process.
    os._exit(0)


def end_with_reader(descriptor: int) -> None:
    """End this process, and what the app started in it, when nobody is left to hear of it."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told always, and the end of the reader is one
    poll.poll()
    os.killpg(0, signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(1)


def load(folder: str, file: str) -> ModuleType:
    """The module, loaded as a runner will load it."""
    path = Path(folder, file)
    sys.path[:1] = list(dict.fromkeys([str(path.parent), folder]))
    name = path.stem if path.stem not in sys.modules else f"app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def describe(module: ModuleType, folder: Path, file: str, attribute: str | None) -> dict[str, Any]:
    """Kind, attribute, routes and settings of the app."""
    attribute = attribute or find(module, file)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise Refused(f"{file} has no {attribute!r}; it has {', '.join(public(module)) or 'nothing'}")
        target = getattr(target, part)
    if is_fal_app(target):
        refuse_what_is_not_here(target, attribute, folder, file)
        return describe_fal(target, attribute)
    if isinstance(target, type) or not callable(target):
        raise Refused(f"{file}:{attribute} is neither an ASGI app nor a fal.App class")
    return {"kind": "asgi", "attribute": attribute, "routes": routes_of(target), "options": {}}


def find(module: ModuleType, file: str) -> str:
    classes = [
        name for name, value in vars(module).items() if is_fal_app(value) and value.__module__ == module.__name__
    ]
    if len(classes) == 1:
        return classes[0]
    if classes:
        raise Refused(f"{file} has several fal.App classes: name one of {', '.join(classes)}")
    for name in USUAL_NAMES:
        if callable(getattr(module, name, None)):
            return name
    raise Refused(f"{file} has no app: name it, as in {file}:NAME; there are {', '.join(public(module))}")


def is_fal_app(value: Any) -> bool:
    bases = value.__mro__[1:] if isinstance(value, type) else ()
    return any(base.__module__ == "fal.app" and base.__name__ == "App" for base in bases)


def describe_fal(target: Any, attribute: str) -> dict[str, Any]:
    """Its attributes as they are. The class is not instantiated: `setup` belongs to runners."""
    host = getattr(target, "host_kwargs", {})
    options = {name: first(getattr(target, name, None), host.get(name)) for name in FAL_ATTRIBUTES}
    options["auth"] = getattr(target, "app_auth", None)
    options["name"] = getattr(target, "app_name", None)
    options["health_check"] = health_check(target)
    return {
        "kind": "fal",
        "attribute": attribute,
        "routes": list(target.get_endpoints()),
        "requirements": getattr(target, "requirements", None) or [],
        "options": {name: plain(value) for name, value in options.items() if value is not None},
    }


def refuse_what_is_not_here(target: Any, attribute: str, folder: Path, file: str) -> None:
    """The whole folder was copied: what the class asks to be brought along must be in it."""
    image = getattr(target, "image", None)
    if image is not None and not callable(image):  # an endpoint may be called so
        raise Refused(f"{attribute} sets image, which this server cannot serve: it runs apps without containers")
    if files := list(getattr(target, "app_files", None) or []):
        base = Path(folder, file).parent.joinpath(getattr(target, "app_files_context_dir", None) or "").resolve()
        if base != folder.resolve():
            raise Refused(f"{attribute}: app_files must begin in the folder that is deployed, which is where apps run")
        if missing := [name for name in files if not base.joinpath(name).exists()]:
            raise Refused(f"{attribute}: {missing[0]!r} of app_files is not in the folder that is deployed")
    modules = getattr(target, "local_python_modules", None) or []
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise Refused(f"{attribute}: {missing[0]!r} of local_python_modules is not in the folder that is deployed")
    secrets = getattr(target, "secrets", None) or []
    if missing := [name for name in secrets if name not in os.environ]:
        how = f"--set 'env={{\"{missing[0]}\": ...}}'"
        sys.stderr.write(f"{attribute} asks for the secret {missing[0]}, which is not here: give it with {how}\n")


def first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def health_check(target: Any) -> dict[str, Any] | None:
    config = getattr(target, "get_health_check_config", lambda: None)()
    if config is None:
        return None
    names = ("path", "method", "start_period_seconds", "timeout_seconds", "failure_threshold", "call_regularly")
    return {name: plain(getattr(config, name)) for name in names if getattr(config, name, None) is not None}


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def routes_of(target: Any) -> list[str]:
    """Paths of a Starlette or FastAPI app without parameters in them: those are what endpoint ids are made of."""
    paths = [getattr(route, "path", None) for route in getattr(target, "routes", None) or ()]
    own = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    return [path for path in paths if isinstance(path, str) and path and "{" not in path and path not in own]


def public(module: ModuleType) -> list[str]:
    return sorted(name for name in vars(module) if not name.startswith("_"))[:40]


def last_line(problem: BaseException) -> str:
    return traceback.format_exception_only(type(problem), problem)[-1].strip()


def trace_of(problem: BaseException) -> str:
    """The traceback from the app's own file on."""
    frames = problem.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in OWN_FRAMES:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(problem), problem, frames))


if __name__ == "__main__":
    main()
