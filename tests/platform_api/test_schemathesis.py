"""Calls that the served OpenAPI page allows, and calls that it does not, made up by schemathesis against a live server.

No answer may be a fault of the server, and each must have a status, a content type and a shape that the page tells
of. Examples are few and the same each time, so that this fits into CI; `VARVEL_EXAMPLES` asks for more.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.platform_api.test_matrix import TABLE
from tests.platform_api.world import ECHO, World, finished

EXAMPLES = int(os.environ.get("VARVEL_EXAMPLES", "8"))
OWNER, APP = "fuzz", "app"
DRAIN = "https://127.0.0.1:9/"
CASES = [
    (name, mode)
    for name in TABLE
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if not (name == "getMeta" and mode is GenerationMode.NEGATIVE)  # it takes nothing that could be wrong
]


def no_fault(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """503 is what is said while telemetry is away; here it is not, so that it counts as a fault too."""
    assert response.status_code < 500, response.text


CHECKS = [
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(world: World) -> Any:
    """The page of a server on which the owner `fuzz` has an app with requests, log lines, files and keys."""
    world.owner(OWNER)
    world.deploy(OWNER, ECHO, APP)
    with world.caller(OWNER) as caller, world.client(OWNER) as client:
        for status in (200, 422, 500):
            caller.post(f"/run/{OWNER}/{APP}", json={"status": status, "print": "seen"})
        submitted = caller.post(f"/queue/{OWNER}/{APP}", json={"print": "queued"}).json()
        finished(caller, f"{OWNER}/{APP}", submitted["request_id"])
        client.post("/serverless/files/file/local/folder/file.txt", files={"file_upload": b"text"})
        client.post("/keys", json={"alias": "spare"})
    page = requests.get(f"{world.server.url}/openapi.json", timeout=30).json()
    loaded = schemathesis.openapi.from_dict(page)
    loaded.config.update(base_url=f"{world.server.url}/v1")
    return loaded


@pytest.fixture(scope="module")
def session(world: World, schema: Any) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.headers["Authorization"] = f"Key {world.keys[OWNER]}"
        yield made
    # The library's own checks call beside this session and leave their connections to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def steer(name: str, case: Case[Any], number: int, url: str) -> None:
    """Lead a call to things that exist, away from the rest of the world, and to an end."""
    path, query, body = case.path_parameters or {}, case.query or {}, case.body
    if "owner" in path and number % 3:
        path["owner"] = OWNER
    if "name" in path and number % 3:
        path["name"] = APP
    for wanted in ("file", "dir"):
        if wanted in path and number % 3 == 1:
            path[wanted] = "folder/file.txt" if wanted == "file" else "folder"
    if number % 2:
        for wanted in ("endpoint_id", "app_id"):
            if wanted in query:
                query[wanted] = f"{OWNER}/{APP}"
    if name == "serverlessLogsStream":
        case.query = {**query, "end": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))}
    if isinstance(body, dict) and isinstance(body.get("url"), str):
        body["url"] = DRAIN if "Drain" in name else (f"{url}/v1/meta", "http://127.0.0.1:9/", "nonsense")[number % 3]


@pytest.mark.parametrize(("name", "mode"), CASES, ids=lambda value: str(getattr(value, "value", value)))
def test_answers_are_as_the_page_says(
    world: World, schema: Any, session: requests.Session, name: str, mode: GenerationMode
) -> None:
    operation = next(
        result.ok() for result in schema.get_all_operations() if result.ok().definition.raw["operationId"] == name
    )
    numbers = iter(range(10_000))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def hold(case: Case[Any]) -> None:
        steer(name, case, next(numbers), world.server.url)
        case.call_and_validate(session=session, checks=CHECKS, timeout=20)

    hold()
