"""`varvel files`: the storage that apps see as their data folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from varvel.cli import resume, upload
from varvel.cli.connection import FAILED, USAGE, Failure
from varvel.cli.progress import transfer
from varvel.cli.session import Session, command, table
from varvel.cli.times import near

group = typer.Typer(help="Files of your apps: ls, get, put, rm, mv, verify.", no_args_is_help=True)
ROOT = resume.ROOT
MOUNT = "/data"
RemotePath = Annotated[str, typer.Argument(metavar="PATH", help="Path in the storage; /data/x is the same as x.")]


def inner(path: str) -> str:
    """The path inside the storage: `/data/x`, as apps see it, and `x` are one file. Raises `Failure`."""
    if ".." in path.split("/"):
        raise Failure(f"a path in the storage has no '..', as {path!r} has", USAGE)
    text = path if path.endswith("/") else f"{path}/"
    if not path.startswith("/"):
        return path
    if text == "/":
        return ""
    if not text.startswith(f"{MOUNT}/"):
        raise Failure(f"an absolute path begins with {MOUNT}/, not {path!r}", USAGE)
    return path[len(MOUNT) :].lstrip("/")


@group.command()
@command
def ls(session: Session, path: Annotated[str, typer.Argument(help="Folder; the top without it.")] = "") -> None:
    """List a folder."""
    found = session.server.get(_below("list", path))

    def made() -> Table:
        rows = ((item["size"] if item["is_file"] else None, near(item["updated_time"]), _name(item)) for item in found)
        return table(("bytes", "updated", "name"), rows)

    session.show(found, made, f"there is nothing in {path or 'the storage'}: 'varvel files put FILE PATH' uploads")


@group.command()
@command
def get(
    session: Session,
    path: RemotePath,
    target: Annotated[Path | None, typer.Argument(help="Where to; else here, under its own name.")] = None,
) -> None:
    """Download a file. It appears under its name when it is whole."""
    place = target or Path(PurePosixPath(path).name)
    place = place / PurePosixPath(path).name if place.is_dir() else place
    partial = place.with_name(f".{place.name}.part")
    try:
        with session.server.stream("GET", _at("file", path)) as reply, partial.open("wb") as file:
            size = int(reply.headers.get("content-length", 0)) or None
            with transfer(session.err, place.name, size) as advance:
                for piece in reply.iter_bytes():
                    file.write(piece)
                    advance(len(piece))
        partial.replace(place)
    except OSError as problem:
        raise Failure(f"{place} cannot be written: {problem.strerror}") from problem
    finally:
        partial.unlink(missing_ok=True)
    session.show({"path": str(place), "size": place.stat().st_size}, lambda: str(place))


@group.command()
@command
def put(
    session: Session,
    source: Annotated[str, typer.Argument(help="A file, a folder, or an http(s) URL that the server fetches.")],
    path: RemotePath,
    unzip: Annotated[bool, typer.Option(help="Unpack a ZIP archive into the folder PATH.")] = False,
    restart: Annotated[bool, typer.Option(help="Send large files anew instead of going on where they were.")] = False,
) -> None:
    """Upload a file, the files of a folder, or what a URL gives.

    A file above 64 MiB goes up in parts: after a break, the same command sends only what is missing. PATH may be a
    folder, with a slash at its end.
    """
    if source.startswith(("http://", "https://")):
        session.server.call("POST", _at("file/url", path), json={"url": source})
        session.show(True, lambda: path)
        return
    local = Path(source)
    if local.is_dir():
        folder = inner(path).rstrip("/")
        files = [(file, f"{folder}/{file.relative_to(local).as_posix()}".lstrip("/")) for file in _all_files(local)]
        sent = [_put(session, file, place, restart=restart) for file, place in files]
    elif local.is_file():
        place = inner(path)
        whole = f"{place}{local.name}" if not unzip and (place == "" or place.endswith("/")) else place
        sent = [_put(session, local, whole, unzip=unzip, restart=restart)]
    else:
        raise Failure(f"there is no file {source}", USAGE)
    session.show(sent, lambda: "\n".join(sent))


def _put(session: Session, local: Path, path: str, *, unzip: bool = False, restart: bool = False) -> str:
    if local.stat().st_size >= resume.LARGE and not unzip:
        resume.send(session, local, path, restart=restart)
        return path
    body, headers = upload.form(session, local, resume.FIELD, {}, local.name)
    target = f"{ROOT}/file/local/{MOUNT}" if unzip and not path else _at("file/local", path)
    session.server.call("POST", target, content=body, headers=headers, params={"unzip": "true"} if unzip else {})
    return path


def _all_files(folder: Path) -> list[Path]:
    return sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)


@group.command()
@command
def rm(
    session: Session,
    path: RemotePath,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder with all that is in it.")] = False,
) -> None:
    """Delete a file, or an empty folder."""
    session.server.call("DELETE", _at("file", path), params={"recursive": "true"} if recursive else {})
    session.say(f"{path} is deleted")


@group.command()
@command
def mv(
    session: Session,
    path: RemotePath,
    destination: Annotated[str, typer.Argument(help="New path; a folder to move it into ends in a slash.")],
) -> None:
    """Move a file or folder; a file at the destination is replaced."""
    place = inner(destination)
    place = f"{place}{PurePosixPath(inner(path)).name}" if place == "" or place.endswith("/") else place
    session.server.call("POST", _at("rename", path), json={"destination": place})
    session.say(f"{path} is {place} now")


@group.command()
@command
def verify(session: Session, path: Annotated[str, typer.Argument(help="File or folder; all without it.")] = "") -> None:
    """Let the server read files back and compare them with their checksums. Exit code 1 when one differs."""
    found = session.server.call("POST", _below("verify", path))
    wrong = _wrong(found)
    session.show(
        found,
        lambda: (
            "\n".join(wrong) if wrong else f"{found['files']} files, {found['bytes']} bytes: all match their checksums"
        ),
    )
    if wrong:
        raise typer.Exit(FAILED)


def _wrong(found: dict[str, Any]) -> list[str]:
    return [f"{path} differs" for path in found["mismatched"]]


def _name(item: dict[str, Any]) -> str:
    return str(item["name"]) + ("" if item["is_file"] else "/")


def _at(operation: str, path: str) -> str:
    return f"{ROOT}/{operation}/{quote(inner(path))}"


def _below(operation: str, path: str) -> str:
    """The operation on a folder, whose path may be that of the whole storage."""
    return _at(operation, path) if inner(path).strip("/") else f"{ROOT}/{operation}"
