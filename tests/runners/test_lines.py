"""What apps print, log and raise, through real runners."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tests.runners.conftest import ECHO, World, call, until

CALLED = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    rid = dict(scope["headers"]).get(b"x-fal-request-id", b"").decode()
    await work(rid)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""


async def called(world: World, work: str, *request_ids: str, **scaling: Any) -> None:
    """Call an app whose `work` does this, once for each id, all at the same time."""
    app = world.app(work + CALLED, **scaling)
    pool = await world.pool()
    slots = [await pool.acquire(app) for _ in request_ids]
    await asyncio.gather(
        *(call(slot, request_id=request_id) for slot, request_id in zip(slots, request_ids, strict=True))
    )
    for slot in slots:
        slot.release()


async def test_every_way_of_writing_is_a_line_with_its_level_and_request(world: World) -> None:
    work = """
import logging, os, sys, warnings
async def work(rid):
    print("printed")
    print("to stderr", file=sys.stderr)
    sys.stdout.write("in ")
    sys.stdout.write("pieces\\n")
    sys.stdout.buffer.write(b"bytes\\n")
    logging.getLogger("mine").info("informed")
    logging.getLogger("mine").warning("warned %d", 3)
    logging.getLogger("mine").error("failed")
    os.write(1, b"from C\\n")
    os.write(2, b"from C to 2\\n")
    print("no line end", end="")
"""
    await called(world, work, "R1")
    lines = [(line["level"], line["message"]) for line in world.logs.lines if line["request_id"] == "R1"]
    assert sorted(lines) == sorted(
        [
            ("stdout", "printed"),
            ("stderr", "to stderr"),
            ("stdout", "in pieces"),
            ("stdout", "bytes"),
            ("info", "informed"),
            ("warning", "warned 3"),
            ("error", "failed"),
            ("stdout", "from C"),
            ("stderr", "from C to 2"),
            ("stdout", "no line end"),
        ]
    )
    line = world.logs.lines[0]
    assert line["job_id"]
    assert line["app"] == "me/app"
    assert line["revision"] == "revision-1"
    assert line["endpoint"] == "me/app"
    assert line["labels"] == {
        "fal_app_name": "me/app",
        "fal_app_id": "revision-1",
        "fal_job_id": line["job_id"],
        "fal_source": "gateway",
        "fal_request_id": "R1",
        "fal_endpoint": "me/app",
    }


async def test_a_line_without_its_end_is_there_with_the_answer_although_the_app_goes_on(world: World) -> None:
    app = world.app(
        """
        import asyncio
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            print("unfinished", end="")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"do", "more_body": True})
            await send({"type": "http.response.body", "body": b"ne"})
            print("afterwards", end="")
            await asyncio.sleep(0.3)
        """
    )
    pool = await world.pool()
    slot = await pool.acquire(app)
    assert await call(slot, request_id="R1") == (200, b"done")
    assert world.logs.messages(request_id="R1") == ["unfinished"]
    slot.release()
    await until(lambda: world.logs.messages(request_id="R1") == ["unfinished", "afterwards"])


async def test_lines_keep_their_order_and_their_time(world: World) -> None:
    await called(world, "async def work(rid):\n    for n in range(500): print(n)\n", "R1")
    assert world.logs.messages() == [str(n) for n in range(500)]
    times = [line["at"] for line in world.logs.lines]
    assert times == sorted(times)


async def test_lines_are_taken_before_the_answer_is_read(world: World) -> None:
    app = world.app("async def work(rid): print(rid)\n" + CALLED)
    pool = await world.pool()
    slot = await pool.acquire(app)
    for number in range(200):
        response = await slot.send("POST", b"/", [(b"x-fal-request-id", b"R%d" % number)], b"")
        assert await response.read(100) == b"done"
        assert world.logs.lines[-1]["message"] == f"R{number}"
    slot.release()


async def test_request_ids_are_right_under_concurrency_in_tasks_and_threads(world: World) -> None:
    work = """
import asyncio, concurrent.futures, logging, os, threading, time
pool = concurrent.futures.ThreadPoolExecutor(2)

def say(way, rid):
    for n in range(3):
        print(way, rid, end=" ")
        time.sleep(0.001)
        print(n)

async def nested(rid):
    await asyncio.sleep(0.002)
    logging.getLogger().info(f"task {rid} 0")

async def work(rid):
    await asyncio.sleep(0.01)
    task = asyncio.create_task(nested(rid))
    thread = threading.Thread(target=say, args=("thread", rid))
    thread.start()
    loop = asyncio.get_running_loop()
    await asyncio.gather(
        asyncio.to_thread(say, "to_thread", rid),
        loop.run_in_executor(None, say, "executor", rid),
        loop.run_in_executor(pool, say, "own-pool", rid),
        task,
    )
    await asyncio.to_thread(thread.join)
"""
    names = [f"R{number}" for number in range(12)]
    await called(world, work, *names, max_multiplexing=12)
    assert len(world.logs.lines) == 12 * (4 * 3 + 1)
    for line in world.logs.lines:
        way, rid, _ = line["message"].split()
        assert (way, line["request_id"]) == (way, rid)


async def test_a_thread_that_outlives_its_request_is_nobodys(world: World) -> None:
    work = """
import threading, time
def late():
    print("in time")
    time.sleep(0.3)
    print("late")
async def work(rid):
    threading.Thread(target=late).start()
    time.sleep(0.05)
"""
    await called(world, work, "R1")
    await until(lambda: "late" in world.logs.messages())
    assert world.logs.messages(request_id="R1") == ["in time"]


async def test_a_traceback_is_one_line_with_its_request(world: World) -> None:
    app = world.app("async def work(rid):\n    raise ValueError('at ' + rid)\n" + CALLED)
    pool = await world.pool()
    slot = await pool.acquire(app)
    assert (await call(slot, request_id="R1"))[0] == 500
    slot.release()
    (message,) = world.logs.messages(level="error", request_id="R1")
    assert "Traceback (most recent call last)" in message
    assert message.endswith("ValueError: at R1")


async def test_lines_outside_of_requests_have_no_request(world: World) -> None:
    app, pool = world.app("print('at import')\n" + ECHO), await world.pool()
    slot = await pool.acquire(app)
    await call(slot, request_id="R1")
    slot.release()
    assert world.logs.messages(request_id="") == ["at import"]


async def test_bytes_from_c_belong_to_nobody_when_several_requests_run(world: World) -> None:
    work = """
import asyncio, os
async def work(rid):
    await asyncio.sleep(0.05)
    os.write(1, f"C in {rid}\\n".encode())
    await asyncio.sleep(0.05)
"""
    await called(world, work, "R1", "R2", max_multiplexing=2)
    assert sorted(world.logs.messages(request_id="")) == ["C in R1", "C in R2"]


async def test_a_child_process_of_the_app_is_heard(world: World) -> None:
    await called(world, "import subprocess\nasync def work(rid): subprocess.run(['echo', 'from a child'])\n", "R1")
    assert world.logs.messages(request_id="R1") == ["from a child"]


async def test_a_crash_loses_no_line_that_was_written(world: World) -> None:
    work = "import os\nasync def work(rid):\n    for n in range(300): print(n)\n    os.write(2, b'C\\n'); os.abort()\n"
    app, pool = world.app(work + CALLED), await world.pool()
    slot = await pool.acquire(app)
    await asyncio.gather(call(slot, request_id="R1"), return_exceptions=True)
    slot.release()
    await until(lambda: not pool.runners())
    assert world.logs.messages(level="stdout") == [str(n) for n in range(300)]
    assert "Fatal Python error: Aborted" in world.logs.messages(level="stderr")


def dropped(world: World) -> int:
    said = [re.match(r"(\d+) lines were dropped", message) for message in world.logs.messages(level="warning")]
    return sum(int(one[1]) for one in said if one)


async def test_a_flood_is_bounded_and_what_was_dropped_is_said(world: World) -> None:
    work = "async def work(rid):\n    for n in range(5000): print(n)\n"
    app, pool = world.app(work + CALLED), await world.pool(log_rate=100)
    slot = await pool.acquire(app)
    await call(slot, request_id="R1")
    slot.release()
    await until(lambda: len(world.logs.messages(level="stdout")) + dropped(world) == 5000)
    assert len(world.logs.messages(level="stdout")) <= 400


async def test_a_flood_from_c_is_bounded_and_what_was_dropped_is_said(world: World) -> None:
    work = "import os\nasync def work(rid):\n    for n in range(50): os.write(1, b'x\\n' * 100)\n"
    app, pool = world.app(work + CALLED), await world.pool(log_rate=100)
    slot = await pool.acquire(app)
    await call(slot, request_id="R1")
    slot.release()
    await until(lambda: len(world.logs.messages(level="stdout")) + dropped(world) == 5000)
    assert len(world.logs.messages(level="stdout")) <= 400


async def test_a_line_of_any_length_and_alphabet_arrives(world: World) -> None:
    work = "async def work(rid):\n    print('é€😀' * 20_000); print('\\udcff\\x1f|'); print()\n"
    await called(world, work, "R1")
    *pieces, odd, empty = world.logs.messages(request_id="R1")
    assert "".join(pieces) == "é€😀" * 20_000
    assert all(pieces)
    assert odd == "\\udcff\x1f|"
    assert empty == ""


async def test_twenty_thousand_lines_in_a_second_are_all_kept(world: World) -> None:
    await called(world, "async def work(rid):\n    for n in range(20_000): print(n)\n", "R1")
    assert world.logs.messages(level="stdout") == [str(n) for n in range(20_000)]
