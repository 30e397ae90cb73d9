from __future__ import annotations

import json

from tests.runners.conftest import World, call, until

HELLO = """
import fal
from pydantic import BaseModel

class Input(BaseModel):
    prompt: str

class Output(BaseModel):
    text: str
    request: str

class Hello(fal.App):
    def setup(self):
        print("set up")
        self.word = "hello"

    def handle_exit(self):
        print("asked to end")

    def teardown(self):
        print("torn down")

    @fal.endpoint("/boom")
    def boom(self, input: Input) -> Output:
        raise RuntimeError("boom " + input.prompt)

    @fal.endpoint("/")
    def greet(self, input: Input) -> Output:
        print("greeting", input.prompt)
        return Output(text=f"{self.word} {input.prompt}", request=self.current_request.request_id or "")
"""


async def test_an_unmodified_fal_app_is_served_with_its_hooks(world: World) -> None:
    app = world.app(HELLO, kind="fal", attribute="Hello", keep_alive=0.1)
    pool = await world.pool()
    slot = await pool.acquire(app)
    answer = await call(slot, b"/", b'{"prompt": "you"}', request_id="R1", content_type="application/json")
    assert (answer[0], json.loads(answer[1])) == (200, {"text": "hello you", "request": "R1"})
    refused = await call(slot, b"/", b"{}", content_type="application/json")
    assert refused[0] == 422
    slot.release()
    await until(lambda: not pool.runners())
    said = [line for line in world.logs.messages(level="stdout") if not line.startswith("[debug]")]
    assert said == ["set up", "greeting you", "asked to end", "torn down"]
    assert world.logs.messages(request_id="R1") == ["greeting you"]


async def test_an_exception_of_a_fal_app_is_one_line_of_its_request(world: World) -> None:
    app = world.app(HELLO, kind="fal", attribute="Hello")
    pool = await world.pool()
    slot = await pool.acquire(app)
    answer = await call(slot, b"/boom", b'{"prompt": "now"}', request_id="R2", content_type="application/json")
    assert (answer[0], json.loads(answer[1])) == (500, {"detail": "Internal Server Error"})
    slot.release()
    (line,) = world.logs.messages(request_id="R2")
    assert json.loads(line)["traceback"].startswith("RuntimeError: boom now")
