"""Lines that are written down until the store has them: what a killed process leaves is what it had not settled."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.telemetry.test_spool import lines

from varvel.telemetry.ahead import WriteAhead
from varvel.telemetry.spool import ts_of

BIG = 10**6


def left(folder: Path) -> list[int | None]:
    return [ts_of(line) for line in WriteAhead(folder, BIG).left]


def test_what_did_not_settle_is_left_in_order(tmp_path: Path) -> None:
    ahead = WriteAhead(tmp_path, BIG)
    ahead.write(lines(1, 3), 3)
    ahead.turn()
    ahead.write(lines(4, 2), 5)
    ahead.write(lines(6, 1), 6)
    assert left(tmp_path) == [1, 2, 3, 4, 5, 6]
    ahead.settled(3)
    assert left(tmp_path) == [4, 5, 6]
    ahead.settled(5)
    assert left(tmp_path) == [4, 5, 6]  # whole files settle
    ahead.settled(6)
    assert left(tmp_path) == []


def test_a_file_that_is_used_again_shows_nothing_of_its_earlier_turns(tmp_path: Path) -> None:
    ahead = WriteAhead(tmp_path, BIG)
    for n in range(1, 6):
        ahead.write(lines(n, 1, 50), n)
    ahead.settled(5)
    ahead.write(lines(6, 1, 50), 6)  # as long as what lay there
    assert left(tmp_path) == [6]


def test_turns_are_taken_only_with_a_free_file(tmp_path: Path) -> None:
    ahead = WriteAhead(tmp_path, BIG)
    dice, taken, settled = random.Random(5), 0, 0
    for _ in range(2000):
        count = dice.randrange(1, 4)
        ahead.write(lines(taken + 1, count), taken + count)
        taken += count
        if dice.random() < 0.3:
            ahead.turn()
        if dice.random() < 0.3:
            settled = dice.randrange(settled, taken + 1)
            ahead.settled(settled)
    found = left(tmp_path)
    assert found[len(found) - (taken - settled) :] == list(range(settled + 1, taken + 1))
    assert found == list(range(taken - len(found) + 1, taken + 1))


@pytest.mark.parametrize("cut", [1, 5, 13, 40])
def test_a_piece_that_was_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    ahead = WriteAhead(tmp_path, BIG)
    ahead.write(lines(1, 2), 2)
    ahead.write(lines(3, 2), 4)
    (path,) = [path for path in tmp_path.glob("*.ahead") if path.stat().st_size]
    path.write_bytes(path.read_bytes()[:-cut])
    assert left(tmp_path) == [1, 2]


def test_lines_beyond_the_bound_are_counted_and_later_ones_are_kept_again(tmp_path: Path) -> None:
    ahead = WriteAhead(tmp_path, 1000)
    for n in range(1, 21):
        ahead.write(lines(n, 1, 50), n)
    kept = left(tmp_path)
    assert len(kept) + ahead.take_missed() == 20
    assert kept == list(range(1, len(kept) + 1))
    ahead.settled(20)
    ahead.write(lines(21, 1, 50), 21)
    assert ahead.take_missed() == 0
    assert left(tmp_path) == [21]


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """The kernel refuses more, as a full disk does."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_a_disk_without_room_loses_nothing_but_what_it_had_no_room_for(tmp_path: Path) -> None:
    ahead = WriteAhead(tmp_path, BIG)
    ahead.write(lines(1, 2), 2)
    with limited(resource.RLIMIT_FSIZE, 100):
        ahead.write(lines(3, 1, 500), 3)
    assert ahead.take_missed() == 1
    ahead.write(lines(4, 1), 4)
    assert left(tmp_path) == [1, 2, 4]


def test_a_folder_that_takes_no_file_keeps_no_server_from_starting() -> None:
    ahead = WriteAhead(Path("/proc/self"), BIG)
    ahead.write(lines(1, 2), 2)
    ahead.turn()
    ahead.settled(2)
    assert ahead.take_missed() == 2
    ahead.close()


def test_what_an_earlier_process_left_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    WriteAhead(tmp_path, BIG).write(lines(1, 2), 2)
    second = WriteAhead(tmp_path, BIG)
    second.write(lines(3, 1), 1)
    third = WriteAhead(tmp_path, BIG)
    assert [ts_of(line) for line in third.left] == [1, 2, 3]
    third.write(lines(4, 1), 1)
    third.forget()
    assert left(tmp_path) == [4]
    third.settled(1)
    third.close()
    third.write(lines(5, 1), 2)
    assert left(tmp_path) == []


def test_a_killed_process_loses_no_line_that_it_wrote(tmp_path: Path) -> None:
    program = f"""
import itertools, pathlib
from varvel.telemetry.ahead import WriteAhead
ahead = WriteAhead(pathlib.Path({str(tmp_path)!r}), 10**8)
for n in itertools.count(1):
    ahead.write([b'{{"ts":%d,"message":"%s"}}' % (n, b"x" * (n % 300))], n)
    print(n, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(2000):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    said = child.stdout.read().split("\n")
    child.wait()
    child.stdout.close()
    last = int(said[-2]) if len(said) > 1 else 2000
    found = left(tmp_path)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= last
