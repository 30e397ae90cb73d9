"""A server that is killed while files come in: nothing is half there, and nothing stays of it."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from pathlib import Path

import pytest
from tests.serving import Server

API = "/v1/serverless/files"
HEAD = b'--b\r\nContent-Disposition: form-data; name="file_upload"; filename="x"\r\n\r\n'
DEADLINE = 60.0


def half(server: Server, method: str, path: str, data: bytes) -> http.client.HTTPConnection:
    """Send the first half of an upload, and wait until some of it is on disk."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path)
    connection.putheader("Authorization", server.headers["Authorization"])
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(len(HEAD) + len(data) + 100))
    connection.endheaders(HEAD)
    before = written(server)
    connection.send(data[: len(data) // 2])
    deadline = time.monotonic() + DEADLINE
    while written(server) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return connection


def written(server: Server) -> int:
    aside = server.data / "files" / ".incoming"
    return sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "data", "--no-examples", environ={"VARVEL_RATE_LIMIT": "0"})


def test_killed_in_the_middle_of_uploads_it_keeps_the_old_and_forgets_the_new(server: Server) -> None:
    data = os.urandom(8_000_000)
    server.start()
    try:
        with server.client() as client:
            old = client.post(f"{API}/file/local/a.bin", files={"file_upload": b"old"})
            assert old.json() is True
            upload = client.post(f"{API}/file/multipart/big.bin/initiate").json()["upload_id"]
            parts = f"{API}/file/multipart/big.bin/{upload}"
            kept = client.put(f"{parts}/1", files={"file_upload": b"first"}).json()
        connections = [
            half(server, "POST", f"{API}/file/local/a.bin", data),
            half(server, "POST", f"{API}/file/local/new/b.bin", data),
            half(server, "POST", f"{API}/file/local/c?unzip=true", data),
            half(server, "PUT", f"{parts}/2", data),
        ]
        server.kill()
        for connection in connections:
            connection.close()
        server.start()
        with server.client() as client:
            [entry] = client.get(f"{API}/list").json()
            assert (entry["name"], entry["checksum_md5"]) == ("a.bin", hashlib.md5(b"old").hexdigest())
            assert client.get(f"{API}/uploads/{upload}").json() == {"parts": [kept]}
            assert written(server) < 1000
            done = client.post(f"{parts}/complete", json={"parts": [kept]})
            assert done.json() == {"etag": hashlib.md5(b"first").hexdigest()}
            assert client.get(f"{API}/file/big.bin").content == b"first"
            assert client.post(f"{API}/verify").json() == {"files": 2, "bytes": 8, "mismatched": []}
        assert list((server.data / "files" / ".incoming").iterdir()) == []
    finally:
        server.stop()
