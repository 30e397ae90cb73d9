from __future__ import annotations

from pathlib import Path

from varvel.telemetry.spool import SEGMENT, Spool, ts_of


def lines(first: int, count: int, size: int = 10) -> list[bytes]:
    return [b'{"ts":%d,"message":"%s"}' % (ts, b"x" * size) for ts in range(first, first + count)]


def drain(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    while spool:
        found += spool.oldest()
        spool.delete_oldest()
    return found


def test_lines_come_back_in_order_also_after_a_restart_and_over_many_files(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10**9)
    big = lines(1, 12, SEGMENT // 4)
    for each in big[:8]:
        assert spool.append([each]) == 1
    again = Spool(tmp_path, 10**9)
    assert again.bytes == spool.bytes
    again.append(big[8:])
    assert drain(again) == big
    assert again.bytes == 0
    assert not list(tmp_path.glob("*.ndjson"))


def test_no_more_bytes_are_kept_than_the_bound_allows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    assert spool.append(lines(1, 10)) == 3
    assert spool.bytes <= 100
    assert drain(spool) == lines(1, 3)
    assert spool.append(lines(4, 1)) == 1


def test_half_a_line_that_a_crash_left_is_left_out_and_spoils_no_later_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10**6)
    spool.append(lines(1, 2))
    (path,) = tmp_path.glob("*.ndjson")
    path.write_bytes(path.read_bytes()[:-7])
    again = Spool(tmp_path, 10**6)
    again.append(lines(3, 1))
    assert drain(again) == [*lines(1, 1), *lines(3, 1)]


def test_the_clock_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10)
    assert spool.read_clock() == 0
    spool.write_clock(1234)
    assert Spool(tmp_path, 10).read_clock() == 1234


def test_a_line_tells_its_time_only_when_it_is_whole() -> None:
    assert ts_of(b'{"ts":12,"a":"b"}') == 12
    assert ts_of(b'{"ts":12,"a":"b') is None
    assert ts_of(b"") is None
