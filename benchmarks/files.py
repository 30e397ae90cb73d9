"""Files: download beside a bare uvicorn, upload beside the checksums alone, listings, and memory on a large file.

    python -m benchmarks.files [--megabytes 512] [--large 5000] [--rounds 5]

Everything goes over loopback, the client on the same machine; the sides take turns in each round.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from tests.serving import Server, free_ports

from benchmarks.load import memory_mb
from benchmarks.report import spread, table, write

BLOCK = 1024 * 1024
NOISE = os.urandom(16 * BLOCK)
BOUNDARY = "varvel-benchmark-boundary"
ENTRIES = 10_000
LISTINGS = 10
API = "/v1/serverless/files"


@contextmanager
def bare(file: Path) -> Iterator[str]:
    """The file on uvicorn alone; gives its URL."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "benchmarks.apps.file_app:app", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "error"], env={**os.environ, "FILE": str(file)})
    try:
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("HEAD", "/")
                connection.getresponse()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def download(url: str, headers: dict[str, str], size: int) -> float:
    """MB a second of one download, read into one buffer."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    buffer = memoryview(bytearray(BLOCK))
    began = time.perf_counter()
    connection.request("GET", place.path, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    got = 0
    while count := answer.readinto(buffer):
        got += count
    took = time.perf_counter() - began
    connection.close()
    assert got == size, got
    return size / took / 1e6


def upload(server: Server, path: str, size: int) -> float:
    """MB a second of one upload as a form, until it is stored and synced."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file_upload"; filename="x"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    began = time.perf_counter()
    connection.putrequest("POST", f"{API}/file/local/{path}")
    connection.putheader("Authorization", server.headers["Authorization"])
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(len(head) + size + len(tail)))
    connection.endheaders(head)
    for piece in pieces(size):
        connection.send(piece)
    connection.send(tail)
    answer = connection.getresponse()
    body = answer.read()
    took = time.perf_counter() - began
    connection.close()
    assert answer.status == 200, body
    return size / took / 1e6


def pieces(size: int) -> Iterator[memoryview]:
    """So many bytes of noise."""
    view = memoryview(NOISE)
    while size:
        piece = view[: min(size, 256 * 1024)]
        view = view[len(piece) :] or memoryview(NOISE)
        size -= len(piece)
        yield piece


def hashing(size: int) -> float:
    """MB a second of both checksums of what is in memory already, on a thread each: the best that they do alone."""
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda digest: _hash(digest, size), _digests()))
    return size / (time.perf_counter() - began) / 1e6


def hashing_cost(size: int) -> float:
    """MB a second of CPU time of both checksums."""
    began = time.process_time()
    for digest in _digests():
        _hash(digest, size)
    return size / (time.process_time() - began) / 1e6


def _digests() -> tuple[Any, Any]:
    return hashlib.sha256(), hashlib.md5(usedforsecurity=False)


def _hash(digest: Any, size: int) -> None:
    for start in range(0, size, BLOCK):
        digest.update(memoryview(NOISE)[start % len(NOISE) :][: min(BLOCK, size - start)])


def listing(server: Server, folder: str) -> float:
    """Milliseconds of one listing, from the request to the last byte of the reply."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.connect()
    began = time.perf_counter()
    connection.request("GET", f"{API}/list/{folder}", headers=server.headers)
    body = connection.getresponse().read()
    took = (time.perf_counter() - began) * 1000
    connection.close()
    entries = json.loads(body)
    assert len(entries) == ENTRIES
    assert all(entry["checksum_md5"] for entry in entries)
    return took


def listed(server: Server, folder: str) -> dict[str, float]:
    """Milliseconds of the median of some listings, and of the server's CPU time of one."""
    spent = cpu(server.pid)
    took = [listing(server, folder) for _ in range(LISTINGS)]
    return {"listing": statistics.median(took), "listing cost": (cpu(server.pid) - spent) / LISTINGS * 1000}


def written_by_an_app(folder: Path) -> None:
    """A folder of small files of which the server knows nothing yet."""
    folder.mkdir()
    for number in range(ENTRIES):
        (folder / f"entry-{number}.txt").write_bytes(b"%d" % number)
    # A file that changed just now may change again in the same tick of the clock: its sums would not be kept.
    time.sleep(0.1)


def scanning(folder: Path) -> float:
    """Milliseconds to read the names and sizes of a folder, and nothing else."""
    began = time.perf_counter()
    with os.scandir(folder) as names:
        found = [(entry.name, entry.stat().st_size) for entry in names]
    assert len(found) == ENTRIES
    return (time.perf_counter() - began) * 1000


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has spent."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Memory:
    """The largest PSS of a server's process itself while something is done, beside what it was before."""

    def __init__(self, server: Server) -> None:
        self._pid = server.pid
        self.before = self.most = memory_mb([server.pid])

    def watch(self, work: subprocess.Popen[bytes]) -> None:
        while work.poll() is None:
            self.most = max(self.most, memory_mb([self._pid]))
            time.sleep(0.1)
        assert work.returncode == 0


def large(server: Server, size: int) -> Memory:
    """Send a large file up and down again in another process, and watch the server."""
    memory = Memory(server)
    code = (
        "import sys; from types import SimpleNamespace; from benchmarks import files;"
        "s = SimpleNamespace(port=int(sys.argv[1]), headers={'Authorization': sys.argv[2]}); n = int(sys.argv[3]);"
        "files.upload(s, 'large.bin', n);"
        "files.download(f'http://127.0.0.1:{s.port}{files.API}/file/large.bin', s.headers, n)"
    )
    key = server.headers["Authorization"]
    memory.watch(subprocess.Popen([sys.executable, "-c", code, str(server.port), key, str(size)]))
    return memory


def run(rounds: int = 5, megabytes: int = 512, large_megabytes: int = 5000) -> str:
    """Rounds of download, bare download, upload, hashing and listing; then the large file."""
    size = megabytes * 1_000_000
    sides: dict[str, list[float]] = {
        name: []
        for name in (
            "download",
            "bare",
            "upload",
            "hashing",
            "hashing cost",
            "cost",
            "cold",
            "listing",
            "listing cost",
            "scanning",
        )
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="varvel-files-")))
        server = Server(folder / "data", "--no-examples", environ={"VARVEL_RATE_LIMIT": "0"})
        server.start()
        stack.callback(server.stop)
        upload(server, "one.bin", size)
        mine = folder / "data" / "files" / "me"
        theirs = stack.enter_context(bare(mine / "one.bin"))
        for number in range(rounds + 1):
            many = mine / f"many-{number}"
            written_by_an_app(many)
            spent = cpu(server.pid)
            uploaded = upload(server, "up.bin", size)
            cost = (cpu(server.pid) - spent) / (size / 1e6)
            found = {
                "download": download(f"{server.url}{API}/file/one.bin", server.headers, size),
                "bare": download(theirs, {}, size),
                "upload": uploaded,
                "hashing": hashing(size),
                "hashing cost": hashing_cost(size),
                "cost": cost * 1000,
                "cold": listing(server, many.name),
                **listed(server, many.name),
                "scanning": scanning(many),
            }
            for name, value in found.items():
                sides[name] += [value] if number else []
        memory = large(server, large_megabytes * 1_000_000)
    raw: list[dict[str, Any]] = [{"what": name, "values": values} for name, values in sides.items()]
    raw.append({"what": "memory", "before_mb": memory.before, "most_mb": memory.most, "megabytes": large_megabytes})
    return write("files", raw, page(sides, memory, megabytes, large_megabytes))


def page(sides: dict[str, list[float]], memory: Memory, megabytes: int, large_megabytes: int) -> str:
    """What each side did, the ratios round by round, and the goals."""

    def ratio(ours: str, theirs: str) -> str:
        return spread([a / b for a, b in zip(sides[ours], sides[theirs], strict=True)])

    rows = [
        [f"download of {megabytes} MB, MB/s", spread(sides["download"], 0), spread(sides["bare"], 0),
         "uvicorn with FileResponse", ratio("download", "bare"), ">= 0.8"],
        [f"upload of {megabytes} MB, both checksums, synced, MB/s", spread(sides["upload"], 0),
         spread(sides["hashing"], 0), "both checksums alone, side by side", ratio("upload", "hashing"), ">= 0.8"],
        [f"listing of {ENTRIES:,} entries, checksums known, ms", spread(sides["listing"], 1),
         spread(sides["scanning"], 1), "os.scandir and stat alone", ratio("listing", "scanning"), "<= 50"],
        [f"listing of {ENTRIES:,} small files that an app just wrote, ms", spread(sides["cold"], 1),
         spread(sides["scanning"], 1), "os.scandir and stat alone", ratio("cold", "scanning"), ""],
        ["upload: CPU of the server, ms a MB", spread(sides["cost"]),
         spread([1000 / rate for rate in sides["hashing cost"]]), "both checksums alone", "", ""],
        ["listing: CPU of the server, ms", spread(sides["listing cost"], 1), "", "", "", ""],
        [f"{large_megabytes:,} MB up and down: memory of the server, MB", f"{memory.most:.0f}",
         f"{memory.before:.0f}", "before", f"{memory.most - memory.before:+.0f} MB", "flat"],
    ]  # fmt: skip
    return table(["work", "Varvel", "beside it", "which is", "ratio", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--large", type=int, default=5000, help="megabytes of the large file")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(run(given.rounds, given.megabytes, given.large))


if __name__ == "__main__":
    main()
