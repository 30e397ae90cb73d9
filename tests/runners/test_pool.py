from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.runners.conftest import ECHO, World, call, states, until

from varvel.apps.model import AppId, Scaling
from varvel.errors import NotFound
from varvel.runners.errors import (
    RunnerDisconnected,
    RunnerIncomplete,
    SchedulingFailed,
    StartFailed,
    StartTimedOut,
    StartTimeout,
)
from varvel.runners.model import RunnerState, Trouble


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_first_call_starts_a_runner_and_waits_for_it(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    slot = await pool.acquire(app)
    assert await call(slot, b"/sub?x=1", b"hello") == (200, b"hello")
    assert states(pool) == [RunnerState.RUNNING]
    assert slot.cold_boot > 0
    slot.release()
    assert states(pool) == [RunnerState.IDLE]
    assert world.categories() == ["runner_pending", "runner_setup", "runner_started"]


async def test_a_warm_call_has_no_cold_boot(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    (await pool.acquire(app)).release()
    slot = await pool.acquire(app)
    assert slot.cold_boot == 0
    slot.release()
    assert len(pool.runners()) == 1


async def test_a_slot_given_back_twice_counts_once(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    slot = await pool.acquire(app)
    slot.release()
    slot.release()
    assert pool.in_flight(app) == 0


async def test_runners_grow_to_the_most_and_no_further(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=2), await world.pool()
    slots = await asyncio.gather(pool.acquire(app), pool.acquire(app))
    assert len({slot.runner_id for slot in slots}) == 2
    with pytest.raises(StartTimeout):
        await pool.acquire(app, timeout=0.1)
    assert len(pool.runners()) == 2
    for slot in slots:
        slot.release()


async def test_direct_calls_are_served_in_their_order_and_before_the_queue(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=1), await world.pool()
    order: list[str] = []
    slot = await pool.acquire(app)

    async def direct(name: str) -> None:
        mine = await pool.acquire(app)
        order.append(name)
        mine.release()

    def queued(free: AppId) -> None:
        if mine := pool.try_acquire(free):
            order.append("queued")
            mine.release()

    pool.on_free(queued)
    assert pool.try_acquire(app) is None
    tasks = [asyncio.ensure_future(direct(name)) for name in ("first", "second")]
    await asyncio.sleep(0.05)
    slot.release()
    await asyncio.gather(*tasks)
    await until(lambda: len(order) == 3)
    assert order == ["first", "second", "queued"]


async def test_demand_of_the_queue_starts_runners_and_tells_of_them(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=2), await world.pool()
    taken: list[Any] = []

    def serve(free: AppId) -> None:
        while len(taken) < 5 and (slot := pool.try_acquire(free)):
            taken.append(slot)

    pool.on_free(serve)
    assert pool.try_acquire(app) is None
    pool.demand(app, 5)
    await until(lambda: len(taken) == 2)
    assert all(slot.cold_boot > 0 for slot in taken)
    for slot in taken[:2]:
        slot.release()
    assert len(taken) == 4
    pool.demand(app, 0)
    for slot in taken[2:]:
        slot.release()


async def test_multiplexing_shares_one_runner(world: World) -> None:
    app, pool = world.app(ECHO, max_multiplexing=3), await world.pool()
    slots = [await pool.acquire(app) for _ in range(3)]
    assert len({slot.runner_id for slot in slots}) == 1
    assert pool.runners()[0].in_flight == 3
    for slot in slots:
        slot.release()


async def test_a_hint_finds_the_runner_that_gave_it(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=2), await world.pool()
    first, second = await asyncio.gather(pool.acquire(app), pool.acquire(app))
    second.release(hints=["lora-a"])
    first.release()
    hinted = await pool.acquire(app, hint="lora-a")
    assert hinted.runner_id == second.runner_id
    hinted.release()


async def test_an_idle_runner_ends_after_keep_alive(world: World) -> None:
    app, pool = world.app(ECHO, keep_alive=0.3), await world.pool()
    (await pool.acquire(app)).release()
    pid = pool.runners()[0].pid
    await until(lambda: not pool.runners())
    assert pid is not None
    assert not alive(pid)
    assert world.categories()[-2:] == ["runner_stopping", "runner_finished"]


async def test_a_runner_that_nobody_used_ends_sooner_than_keep_alive(world: World) -> None:
    app, pool = world.app(ECHO, keep_alive=60), await world.pool(fresh_idle=0.2)
    pool.demand(app, 1)
    await until(lambda: states(pool) == [RunnerState.IDLE])
    pool.demand(app, 0)
    await until(lambda: not pool.runners(), 3)


async def test_the_least_number_is_kept_without_requests_and_replaced_when_one_dies(world: World) -> None:
    app, pool = world.app(ECHO, min_concurrency=1, keep_alive=0.1), await world.pool(fresh_idle=0.1)
    await until(lambda: states(pool) == [RunnerState.IDLE])
    first = pool.runners(app)[0]
    await asyncio.sleep(0.6)
    assert states(pool) == [RunnerState.IDLE]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: states(pool) == [RunnerState.IDLE] and pool.runners()[0].pid != first.pid)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_killed_runner_breaks_its_call_and_the_next_one_gets_another(world: World, kill: bool) -> None:
    app, pool = (
        world.app("import asyncio\n" + ECHO.replace("more = True", "await asyncio.sleep(30)")),
        await world.pool(),
    )
    slot = await pool.acquire(app)
    running = asyncio.ensure_future(call(slot))
    await asyncio.sleep(0.1)
    pid = pool.runners()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunnerDisconnected):
        await running
    slot.release(kill=kill)
    another = await pool.acquire(app)
    assert another.runner_id != slot.runner_id
    another.release()
    assert world.reasons("runner_failed") == ["The runner ended unasked (signal 9)"]
    assert world.logs.messages(level="error") == ["The runner ended unasked (signal 9)"]


@pytest.mark.parametrize("kill", [False, True])
async def test_an_app_that_exits_in_a_request_is_a_broken_connection(world: World, kill: bool) -> None:
    app = world.app("import os\n" + ECHO.replace("more = True", "print('last words'); os._exit(7)"))
    pool = await world.pool()
    slot = await pool.acquire(app)
    with pytest.raises(RunnerDisconnected):
        await call(slot, request_id="R1")
    assert world.logs.messages(request_id="R1") == ["last words"]
    slot.release(kill=kill)
    await until(lambda: not pool.runners())
    assert world.logs.messages(level="error") == ["The runner ended unasked (exit status 7)"]
    assert world.reasons("runner_failed") == ["The runner ended unasked (exit status 7)"]


@pytest.mark.parametrize(("announced", "sent"), [(5, b"more than announced"), (50, b"less")])
async def test_an_app_that_answers_another_length_than_announced_fails_the_call(
    world: World, announced: int, sent: bytes
) -> None:
    source = f"""
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        headers = [(b"content-length", b"{announced}")]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        await send({{"type": "http.response.body", "body": {sent!r}}})
    """
    app, pool = world.app(source), await world.pool()
    slot = await pool.acquire(app)
    with pytest.raises(RunnerIncomplete):
        await call(slot)
    with pytest.raises(RunnerIncomplete):
        await call(slot)
    slot.release()


async def test_an_app_that_fails_on_import_says_why_and_is_not_tried_at_once_again(world: World) -> None:
    app, pool = world.app("import a_module_that_is_not_there"), await world.pool()
    failures: list[tuple[AppId, Trouble]] = []
    pool.on_start_failed(lambda app, trouble: failures.append((app, trouble)))
    assert pool.trouble(app) is None
    with pytest.raises(SchedulingFailed, match="No module named 'a_module_that_is_not_there'"):
        await pool.acquire(app)
    with pytest.raises(SchedulingFailed, match="a_module_that_is_not_there"):
        await pool.acquire(app)
    assert failures == [(app, Trouble("The app failed to start (exit status 1)", 30.0))]
    trouble = pool.trouble(app)
    assert trouble is not None
    assert 25 < trouble.retry_in <= 30
    assert world.categories() == ["runner_pending", "runner_setup", "runner_startup_failure"]
    assert "No module named 'a_module_that_is_not_there'" in world.reasons("runner_startup_failure")[0]
    error, said = world.logs.messages(level="error")
    first, second, *_ = error.splitlines()
    assert first.startswith("Traceback")
    assert second.endswith('app.py", line 1, in <module>')
    assert said == "The app failed to start (exit status 1). The next start is put off by 30 seconds"
    pool.demand(app, 1)
    assert states(pool) == [RunnerState.CRASH_BACKOFF]


async def test_a_new_revision_ends_the_backoff_of_a_broken_one(world: World) -> None:
    app, pool = world.app("broken("), await world.pool()
    with pytest.raises(SchedulingFailed, match="SyntaxError"):
        await pool.acquire(app)
    pool.demand(app, 1)
    world.deploy(world.revision(ECHO, scaling=Scaling()))
    pool.switched(app)
    slot = await pool.acquire(app, timeout=10)
    assert (await call(slot))[0] == 200
    slot.release()
    pool.demand(app, 0)


@pytest.mark.parametrize(
    ("source", "attribute", "problem"),
    [
        ("app = 3", "app", "app.py:app is not an ASGI app: a int cannot be called"),
        ("", "app", "app.py has no 'app'"),
        ("import sys\nsys.exit(4)", "app", "exit status 4"),
        ("import os\nos.kill(os.getpid(), 9)", "app", "signal 9"),
    ],
)
async def test_what_cannot_be_served_fails_its_deployment_with_the_reason(
    world: World, source: str, attribute: str, problem: str
) -> None:
    pool = await world.pool()
    with pytest.raises(StartFailed) as failure:
        await pool.start_one(world.revision(source, attribute=attribute))
    assert problem in failure.value.message
    assert not pool.runners()


async def test_a_start_up_hook_that_fails_fails_the_start(world: World) -> None:
    source = """
    async def app(scope, receive, send):
        await receive()
        print("loading weights")
        await send({"type": "lifespan.startup.failed", "message": "no weights here"})
    """
    pool = await world.pool()
    with pytest.raises(StartFailed, match="no weights here"):
        await pool.start_one(world.revision(source))
    assert world.logs.messages(level="stdout") == ["loading weights"]


async def test_an_app_that_never_becomes_ready_is_ended_after_its_startup_timeout(world: World) -> None:
    app, pool = world.app("import time\nprint('busy')\ntime.sleep(60)", startup_timeout=1.0), await world.pool()
    waiting = asyncio.ensure_future(pool.acquire(app))
    await until(lambda: pool.runners() and pool.runners()[0].pid)
    pid = pool.runners()[0].pid
    with pytest.raises(StartTimedOut, match=r"not ready after 1 seconds\nbusy") as failure:
        await waiting
    assert (failure.value.status, failure.value.data_type) == (504, "startup_timeout")
    assert pid is not None
    await until(lambda: not alive(pid))


async def test_it_is_pending_and_set_up_before_it_is_idle(world: World) -> None:
    app, pool = world.app("import time\ntime.sleep(0.3)\n" + ECHO), await world.pool()
    pool.demand(app, 1)
    assert states(pool) == [RunnerState.PENDING]
    await until(lambda: states(pool) == [RunnerState.SETUP])
    await until(lambda: states(pool) == [RunnerState.IDLE])
    pool.demand(app, 0)


async def test_a_switch_drains_the_old_revision_and_new_calls_get_the_new_one(world: World) -> None:
    old, pool = world.app(ECHO), await world.pool()
    busy = await pool.acquire(old)
    revision = world.revision(ECHO.replace('b"x-path"', 'b"x-new"'), scaling=Scaling(max_concurrency=2))
    await pool.start_one(revision)
    assert sorted(runner.revision_id for runner in pool.runners()) == ["revision-1", "revision-2"]
    world.deploy(revision)
    pool.switched(old)
    assert {runner.revision_id: runner.state for runner in pool.runners()} == {
        "revision-1": RunnerState.DRAINING,
        "revision-2": RunnerState.IDLE,
    }
    fresh = await pool.acquire(old)
    assert fresh.revision_id == "revision-2"
    assert fresh.cold_boot == 0
    assert (await call(busy, body=b"old one"))[1] == b"old one"
    busy.release()
    await until(lambda: len(pool.runners()) == 1)
    fresh.release()
    assert "runner_draining" in world.categories()


async def test_a_runner_that_is_to_be_killed_is_gone_at_once(world: World) -> None:
    app = world.app("import signal\n" + ECHO, termination_grace=30)
    pool = await world.pool()
    slot = await pool.acquire(app)
    slot.release(kill=True)
    await until(lambda: not pool.runners(), 2)


async def test_the_children_of_a_runner_end_with_it(world: World) -> None:
    source = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nprint(child.pid)\n" + ECHO
    app, pool = world.app(source), await world.pool()
    slot = await pool.acquire(app)
    child = int(world.logs.messages(level="stdout")[0])
    assert alive(child)
    slot.release(kill=True)
    await until(lambda: not pool.runners())
    await until(lambda: not alive(child))


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(world: World) -> None:
    source = (
        "import signal, threading\n"
        + ECHO
        + (
            "\nimport uvicorn\nuvicorn.Server.handle_exit = lambda *a: None\n"
            "import varvel_runner.host\nvarvel_runner.host.Server.handle_exit = lambda *a: None\n"
        )
    )
    app, pool = world.app(source, keep_alive=0.1, termination_grace=0.4), await world.pool()
    (await pool.acquire(app)).release()
    await until(lambda: states(pool) == [RunnerState.TERMINATING])
    await until(lambda: not pool.runners(), 3)


async def test_idle_runners_of_other_apps_make_room_on_a_full_machine(world: World) -> None:
    first, second = world.app(ECHO, "first"), world.app(ECHO, "second")
    pool = await world.pool(max_runners=1)
    (await pool.acquire(first)).release()
    slot = await pool.acquire(second, timeout=5)
    assert [runner.app for runner in pool.runners()] == [second]
    slot.release()


async def test_an_unknown_app_is_not_found(world: World) -> None:
    pool = await world.pool()
    with pytest.raises(NotFound):
        await pool.acquire(AppId("me", "nobody"))
    assert pool.try_acquire(AppId("me", "nobody")) is None


async def test_a_removed_app_ends_its_runners_and_those_that_wait(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=1), await world.pool()
    slot = await pool.acquire(app)
    waiting = asyncio.ensure_future(pool.acquire(app))
    await asyncio.sleep(0.05)
    del world.catalog.deployed[app]
    pool.removed(app)
    with pytest.raises(NotFound):
        await waiting
    slot.release()
    await until(lambda: not pool.runners())


async def test_a_caller_that_goes_away_while_it_waits_takes_no_slot(world: World) -> None:
    app, pool = world.app(ECHO, max_concurrency=1), await world.pool()
    slot = await pool.acquire(app)
    gone = asyncio.ensure_future(pool.acquire(app))
    patient = asyncio.ensure_future(pool.acquire(app))
    await asyncio.sleep(0.05)
    slot.release()
    gone.cancel()
    (await asyncio.wait_for(patient, 5)).release()
    assert pool.in_flight(app) == 0


async def test_stop_lets_a_call_end_within_the_grace(world: World) -> None:
    app = world.app("import asyncio\n" + ECHO.replace("more = True", "await asyncio.sleep(0.5); more = True"))
    pool = await world.pool()
    slot = await pool.acquire(app)
    running = asyncio.ensure_future(call(slot, body=b"in time"))
    await asyncio.sleep(0.1)
    await pool.stop(5)
    assert await running == (200, b"in time")
    slot.release()


async def test_runner_seconds_add_up_to_the_life_of_the_runner(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    started = asyncio.get_running_loop().time()
    for _ in range(50):
        slot = await pool.acquire(app)
        await call(slot)
        slot.release()
    await pool.stop(2)
    lived = asyncio.get_running_loop().time() - started
    rows = world.intervals()
    counted = sum(
        row.seconds * (row.pending + row.setup + row.idle + row.running + row.draining + row.terminating)
        for row in rows
    )
    assert counted == pytest.approx(lived, abs=0.1)
    assert len(rows) < 12
    assert {row.environment for row in rows} == {"main"}


async def test_a_failing_health_check_asked_for_by_a_response_ends_the_runner(world: World) -> None:
    source = ECHO.replace('"status": 200', '"status": 500 if scope["path"] == "/health" else 200')
    app = world.deploy(world.revision(source, scaling=Scaling(), health_check={"path": "/health"}))
    pool = await world.pool()
    slot = await pool.acquire(app)
    slot.release(health_check=True)
    await until(lambda: not pool.runners())
    assert "The runner does not answer its health check and is ended" in world.logs.messages()


async def test_a_healthy_runner_stays_after_a_check(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    slot = await pool.acquire(app)
    slot.release(health_check=True)
    await asyncio.sleep(0.2)
    assert states(pool) == [RunnerState.IDLE]


async def test_an_app_sees_who_it_is_and_no_secret_of_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_KEY", "secret")
    monkeypatch.setenv("VARVEL_ANYTHING", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    source = "import json, os, sys\n" + ECHO.replace(
        '"body": body', '"body": json.dumps([dict(os.environ), os.getcwd(), sys.argv]).encode()'
    )
    app = world.deploy(world.revision(source, scaling=Scaling(), env={"MINE": "1"}))
    pool = await world.pool()
    slot = await pool.acquire(app)
    import json

    environ, folder, argv = json.loads((await call(slot))[1])
    slot.release()
    assert environ["FAL_APP_NAME"] == "me/app"
    assert environ["FAL_APP_ID"] == "revision-1"
    assert environ["FAL_JOB_ID"] == slot.runner_id
    assert environ["VARVEL_DATA_DIR"] == str(world.folder / "data" / "files" / "me")
    assert environ["MINE"] == "1"
    assert folder == str(world.folder / "revision1")
    assert argv == ["app.py"]
    assert not {"FAL_KEY", "VARVEL_ANYTHING", "AWS_SECRET_ACCESS_KEY"} & set(environ)
    assert "secret" not in environ.values()
