"""`@fal-ai/client`, unmodified, through the server's own proxy route."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import serving

HERE = Path(__file__).parent / "js"
APP = """
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import fal
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class Greeting(BaseModel):
    name: str


class Count(BaseModel):
    n: int


class Talker(fal.App):
    keep_alive = 30
    max_multiplexing = 4

    @fal.endpoint("/")
    def greet(self, request: Greeting) -> dict[str, Any]:
        print("greeting", request.name)
        return {"hello": request.name}

    @fal.endpoint("/strict")
    def strict(self, request: Count) -> dict[str, Any]:
        return {"n": request.n}

    @fal.endpoint("/stream")
    async def stream(self) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for i in range(3):
                await asyncio.sleep(0.01)
                yield f'data: {{"i": {i}}}\\n\\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.realtime("/realtime")
    async def talk(self, request: Greeting) -> Greeting:
        return Greeting(name=f"hello {request.name}")
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")
def test_every_call_of_the_javascript_client_works_through_the_proxy(tmp_path: Path) -> None:
    assert (HERE / "node_modules" / "@fal-ai" / "client").exists(), "run `make test`, which installs the client"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "talker.py").write_text(APP)
    with serving(tmp_path / "data", "--no-examples") as server:
        server.varvel("deploy", f"{tmp_path}/app/talker.py::Talker")
        environ = {**os.environ, "VARVEL_URL": server.url, "FAL_KEY": server.key}
        done = subprocess.run(
            ["node", "session.mjs"], cwd=HERE, env=environ, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["run"]["data"] == {"hello": "run"}
        assert said["status"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
        assert (said["polled"], said["streamed"]) == ({"hello": "polled"}, {"hello": "streamed"})
        assert said["lastUpdates"] == ["COMPLETED", "COMPLETED"]
        assert said["events"] == [{"i": 0}, {"i": 1}, {"i": 2}]
        assert said["done"] == {"i": 2}
        assert said["uploaded"] == "varvel"
        assert said["invalid"] == ["ValidationError", 422]
        assert said["realtime"]["name"] == "hello realtime"
        assert said["polledRequestId"]
