"""What every `Placement` must do. A new one is added to `placements`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.runners.conftest import ECHO, MemoryLogs, until
from tests.runners.test_pool import alive

from varvel.runners.output import Output
from varvel.runners.placement import LocalPlacement, Order, Placement
from varvel.runners.transport import Connections


async def fresh() -> Placement:
    return LocalPlacement({}, warm_parents=0)


async def forking() -> Placement:
    placement = LocalPlacement({}, warm_parents=1)
    placement.warm(sys.executable, "asgi")
    zygote = placement._zygotes._kept[(sys.executable, "asgi")]
    await until(lambda: zygote.ready, 30)
    return placement


placements = [fresh, forking]


@pytest.fixture(params=placements)
async def placement(request: pytest.FixtureRequest) -> AsyncIterator[Placement]:
    made: Placement = await request.param()
    yield made
    await made.stop()


class Heard:
    """An output, and what came of it."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.logs = MemoryLogs()
        self.output = Output(
            sink=self.logs,
            app="me/app",
            revision="revision",
            runner_id="runner",
            rate=1000,
            labels={},
            on_ready=self.ready.set,
            on_gone=self.gone.set,
        )


Ordered = Callable[[str], Order]


@pytest.fixture
def ordered(tmp_path: Path) -> Ordered:
    def order(source: str) -> Order:
        (tmp_path / "app.py").write_text(source)
        return Order(
            python=sys.executable,
            kind="asgi",
            folder=str(tmp_path),
            file="app.py",
            attribute="app",
            socket=str(tmp_path / "s.sock"),
            data="",
            environ={"PATH": "/usr/bin:/bin", "MINE": "yes"},
            log_rate=1000,
            grace=1.0,
        )

    return order


async def test_a_runner_becomes_ready_answers_and_ends_when_asked(placement: Placement, ordered: Ordered) -> None:
    heard, order = Heard(), ordered("import os\nprint(os.environ['MINE'])\n" + ECHO)
    process = await placement.start(order, heard.output)
    await asyncio.wait_for(heard.ready.wait(), 20)
    connections = Connections(order.socket, 1000)
    response = await connections.send("POST", b"/", [], b"ping")
    assert await response.read(10) == b"ping"
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 5) == 0
    heard.output.close()
    connections.close()
    assert heard.logs.messages() == ["yes"]
    assert not Path(order.socket).exists()


async def test_the_exit_status_is_known(placement: Placement, ordered: Ordered) -> None:
    heard = Heard()
    process = await placement.start(ordered("print('bye')\nimport os\nos._exit(5)"), heard.output)
    assert await asyncio.wait_for(process.wait(), 20) == 5
    heard.output.close()
    assert heard.logs.messages() == ["bye"]
    assert heard.gone.is_set()
    assert not heard.ready.is_set()


async def test_a_killed_runner_takes_its_children_with_it(placement: Placement, ordered: Ordered) -> None:
    heard = Heard()
    source = "import subprocess\nprint(subprocess.Popen(['sleep', '60']).pid)\n" + ECHO
    process = await placement.start(ordered(source), heard.output)
    await asyncio.wait_for(heard.ready.wait(), 20)
    child = int(heard.logs.messages()[0])
    process.kill()
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL
    await until(lambda: not alive(process.pid) and not alive(child))
    heard.output.close()


async def test_signals_after_the_end_harm_nobody(placement: Placement, ordered: Ordered) -> None:
    heard = Heard()
    process = await placement.start(ordered("raise SystemExit(3)"), heard.output)
    assert await asyncio.wait_for(process.wait(), 20) == 3
    process.terminate()
    process.kill()
    heard.output.close()


async def test_a_runner_ends_when_nobody_listens_to_it_any_more(placement: Placement, ordered: Ordered) -> None:
    heard = Heard()
    process = await placement.start(ordered(ECHO), heard.output)
    await asyncio.wait_for(heard.ready.wait(), 20)
    heard.output.close()
    assert await asyncio.wait_for(process.wait(), 5) == 0
