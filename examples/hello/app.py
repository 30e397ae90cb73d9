"""An unmodified `fal.App`: setup, two endpoints, a stream and a realtime connection.

Nothing in this file knows of Varvel; the same class deploys to the hosted platform.

    POST /          {"name": "Ada"}              -> {"greeting": "Hello, Ada!", "served": 1}
    POST /shout     {"name": "Ada"}              -> {"greeting": "HELLO, ADA!", "served": 2}
    POST /stream    {"name": "Ada", "times": 3}  -> server-sent events, one greeting each
    WS   /realtime  {"name": "Ada"}              -> {"greeting": "Hello, Ada!", "served": 3}, as msgpack
"""

# No `from __future__ import annotations` here: fal reads the types of a realtime endpoint as they are.
import asyncio
import json
from collections.abc import AsyncIterator
from typing import ClassVar

import fal
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Input(BaseModel):
    """Whom to greet."""

    name: str = Field(default="world", max_length=200, description="Who is greeted.")


class StreamInput(Input):
    """Whom to greet, and how often."""

    times: int = Field(default=3, ge=1, le=100, description="How many greetings are streamed.")


class Output(BaseModel):
    """A greeting, and how many this runner has given so far."""

    greeting: str
    served: int


class Hello(fal.App, keep_alive=60, max_concurrency=2, name="hello"):
    """Greets. One runner serves one request at a time, as `max_multiplexing` is left at its default of 1."""

    machine_type = "S"
    requirements: ClassVar[list[str]] = []

    def setup(self) -> None:
        """Runs once in each runner, before its first request: the place to load a model."""
        self.template = "Hello, {name}!"
        self.served = 0
        print("hello is set up")

    def _greet(self, name: str) -> Output:
        self.served += 1
        return Output(greeting=self.template.format(name=name), served=self.served)

    @fal.endpoint("/")
    def greet(self, request: Input) -> Output:
        print(f"greeting {request.name}")
        return self._greet(request.name)

    @fal.endpoint("/shout")
    def shout(self, request: Input) -> Output:
        print(f"shouting at {request.name}")
        return self._greet(request.name.upper()).model_copy(update={"greeting": f"HELLO, {request.name.upper()}!"})

    @fal.endpoint("/stream")
    async def stream(self, request: StreamInput) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(request.times):
                yield f"data: {json.dumps({'greeting': self._greet(request.name).greeting, 'number': number})}\n\n"
                await asyncio.sleep(0.1)

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.realtime("/realtime")
    def realtime(self, request: Input) -> Output:
        return self._greet(request.name)
