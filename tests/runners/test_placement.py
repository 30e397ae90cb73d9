"""What every `Placement` does, and what the warmed parents of the local one add."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.runners.conftest import ECHO, World, call, states, until
from tests.runners.test_pool import alive

from varvel.runners.errors import StartFailed
from varvel.runners.pool import LocalPool


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def warmed_parents() -> set[int]:
    """Process ids of this process's warmed parents."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
        if b"\0zygote\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


async def warm(world: World, pool: LocalPool) -> int:
    """Bring the pool's parent up by a first runner; gives the parent's pid."""
    before = warmed_parents()  # pools of other tests in this process may keep theirs
    app = world.app(ECHO, "first", max_concurrency=4)
    (await pool.acquire(app)).release()
    await until(lambda: len(warmed_parents() - before) == 1)
    zygote = pool._placement._zygotes._kept[(sys.executable, "asgi")]  # type: ignore[union-attr]
    await until(lambda: zygote.ready, 30)
    return (warmed_parents() - before).pop()


async def test_the_second_runner_is_forked_from_a_warmed_parent(world: World) -> None:
    pool = await world.pool(warm_parents=2)
    zygote = await warm(world, pool)
    source = "import os, random\nprint(os.getppid(), random.random(), os.getsid(0) == os.getpid())\n" + ECHO
    app = world.app(source, "second", max_concurrency=2)
    began = time.perf_counter()
    slots = await asyncio.gather(pool.acquire(app), pool.acquire(app))
    assert time.perf_counter() - began < 1.0
    assert await call(slots[0], body=b"forked") == (200, b"forked")
    for slot in slots:
        slot.release()
    first, second = (line.split() for line in world.logs.messages(app="me/second"))
    assert first[0] == second[0] == str(zygote)
    assert first[1] != second[1], "both drew the same random number"
    assert first[2] == second[2] == "True"


async def test_a_forked_runner_tells_its_exit_status(world: World) -> None:
    pool = await world.pool(warm_parents=1)
    await warm(world, pool)
    with pytest.raises(StartFailed, match="exit status 9"):
        await pool.start_one(world.revision("import os\nos._exit(9)"))
    with pytest.raises(StartFailed, match="No module named 'nowhere'"):
        await pool.start_one(world.revision("import nowhere"))


async def test_runners_start_afresh_when_the_warmed_parent_has_died(world: World) -> None:
    pool = await world.pool(warm_parents=1)
    zygote = await warm(world, pool)
    forked = world.app(ECHO, "forked")
    held = await pool.acquire(forked)
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: not alive(zygote))
    other = await pool.acquire(world.app(ECHO, "other"))
    assert await call(other, body=b"afresh") == (200, b"afresh")
    assert await call(held, body=b"still here") == (200, b"still here")
    other.release()
    held.release(kill=True)
    await until(lambda: not pool.runners(forked))


async def test_one_runner_does_not_see_the_variables_of_another(world: World) -> None:
    pool = await world.pool(warm_parents=1)
    await warm(world, pool)
    source = "import os\nprint(sorted(name for name in os.environ if name.startswith('MINE')))\n" + ECHO
    for name in ("MINE_A", "MINE_B"):
        world.deploy(revision := world.revision(source, name.lower().replace("_", "-"), env={name: "1"}))
        (await pool.acquire(revision.app)).release()
    assert world.logs.messages(level="stdout") == ["['MINE_A']", "['MINE_B']"]


async def test_an_interpreter_that_is_not_there_fails_the_start(world: World) -> None:
    from dataclasses import replace

    pool = await world.pool()
    with pytest.raises(StartFailed, match="/nowhere/python cannot be started"):
        await pool.start_one(replace(world.revision(ECHO), python=Path("/nowhere/python")))
    assert states(pool) == []


async def test_the_server_package_is_not_loaded_into_apps(world: World) -> None:
    source = "import sys\nprint(sorted(name for name in sys.modules if name.split('.')[0] == 'varvel'))\n" + ECHO
    app, pool = world.app(source), await world.pool()
    (await pool.acquire(app)).release()
    assert world.logs.messages(level="stdout") == ["[]"]


SERVER = """
import asyncio, sys, time
from pathlib import Path
from tests.runners.conftest import ECHO, MemoryLogs, World
from varvel.settings import Settings

async def main():
    folder = Path(sys.argv[1])
    world = World(folder, Settings(data=folder / "data", warm_parents=1))
    pool = await world.pool()
    stubborn = "import signal, time\\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\\n"
    first, second = world.app(ECHO, "first"), world.app(stubborn + ECHO, "second", termination_grace=0.5)
    await pool.acquire(first)
    for _ in range(600):
        zygotes = pool._placement._zygotes._kept
        if zygotes and all(zygote.ready for zygote in zygotes.values()):
            break
        await asyncio.sleep(0.05)
    await pool.acquire(second)
    pids = [runner.pid for runner in pool.runners()]
    pids += [zygote._process.pid for zygote in zygotes.values()]
    print(*pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_runners_and_warmed_parents_end_when_the_server_is_killed(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert server.stdout is not None
    pids = [int(word) for word in (await server.stdout.readline()).split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    server.kill()
    await server.wait()
    await until(lambda: not any(alive(pid) for pid in pids), 10)
