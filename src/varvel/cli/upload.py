"""Uploads: multipart bodies that are never whole in memory, and files that become URLs."""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from varvel.cli.connection import USAGE, Failure
from varvel.cli.progress import pieces, transfer
from varvel.cli.session import Session


def form(
    session: Session, path: Path, field: str, extra: dict[str, str], label: str
) -> tuple[Iterator[bytes], dict[str, str]]:
    """Body and headers of a multipart form with `extra` fields and one file, with a bar while it goes."""
    size = path.stat().st_size

    def content() -> Iterator[bytes]:
        with transfer(session.err, label, size) as advance:
            yield from pieces(path, advance)

    return wrapped(field, path.name, content(), size, extra)


def wrapped(
    field: str, name: str, content: Iterable[bytes], size: int, extra: dict[str, str] | None = None
) -> tuple[Iterator[bytes], dict[str, str]]:
    """Body and headers of a multipart form whose file has `size` bytes of `content`."""
    boundary = uuid.uuid4().hex
    safe = name.replace('"', "%22").replace("\r", "").replace("\n", "")
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in (extra or {}).items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{safe}"\r\n'
    opening = (head + "Content-Type: application/octet-stream\r\n\r\n").encode()
    closing = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield opening
        yield from content
        yield closing

    headers = {
        "content-type": f"multipart/form-data; boundary={boundary}",
        "content-length": str(len(opening) + size + len(closing)),
    }
    return body(), headers


def to_url(session: Session, path: Path) -> str:
    """Upload a file for an app to read; its URL."""
    if not path.is_file():
        raise Failure(f"there is no file {path}", USAGE)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    token = session.server.call("POST", "/storage/auth/token", params={"storage_type": "fal-cdn-v3"}, json={})
    headers = {
        "authorization": f"{token['token_type']} {token['token']}",
        "content-type": kind,
        "content-length": str(path.stat().st_size),
        "x-fal-file-name": path.name,
    }
    with transfer(session.err, path.name, path.stat().st_size) as advance:
        reply = session.server.call("POST", "/files/upload", content=pieces(path, advance), headers=headers)
    return str(reply["access_url"])
