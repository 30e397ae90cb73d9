"""The first five minutes: a page goes through the queue, and every trace of it is shown."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from varvel.apps import examples
from varvel.cli import call, deploy, logs, upload
from varvel.cli.connection import FAILED, Failure, Place, Refused
from varvel.cli.progress import waiting
from varvel.cli.session import Session, print_text

T = TypeVar("T")
APP = "me/ocr"
START_SECONDS = 900.0
"""Longest that a server may take to start: the first time it builds environments."""
STOP_SECONDS = 60.0
RECORD_SECONDS = 60.0
"""Longest that the record of a request may take, and the telemetry store to start on a busy machine."""
PASTE_SECONDS = 120.0
UNAVAILABLE = 503


def run(session: Session, tls_port: int, paste: bool = False) -> None:
    """Send the sample page to a running server and print what came of it. Raises `Failure`.

    With `paste` the three commands are also run, in a shell of their own.
    """
    folder = examples.folder()
    if folder is None:
        raise Failure("the examples are not there: run this in Varvel's own folder")
    _deploy_missing(session, folder)
    sample = folder / examples.SAMPLE
    _head(session, f"Sending {_near(sample)} through the queue to {APP}")
    url = upload.to_url(session, sample)
    submitted = call.submit(session, APP, {"image_url": url}, {})
    answer = call.follow(session, submitted, lines=False).json()
    _head(session, "The text that came back")
    print_text(answer["text"])
    record = wait_for_record(session, submitted["request_id"])
    _head(session, "Its request record")
    print_text(json.dumps(record, indent=2))
    lines = request_logs(session, submitted["request_id"])
    _head(session, "Its log lines")
    for item in lines:
        logs.show(session, item)
    _head(session, "Three commands to paste next")
    for line in commands(session.place, tls_port, url, sample):
        print_text(line + "\n")
        if paste and ("fal_client" not in line or importlib.util.find_spec("fal_client")):
            _paste(session, line, answer["text"].splitlines()[0])


def _paste(session: Session, line: str, expected: str) -> None:
    """Run a command as a person would who pastes it. Raises `Failure` when the text does not come back."""
    environ = {key: value for key, value in os.environ.items() if key not in ("VARVEL_URL", "VARVEL_KEY", "FAL_KEY")}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PASTE_SECONDS, env=environ)
    if done.returncode != 0 or expected not in done.stdout:
        raise Failure(f"that command failed with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    session.out.print("[green]pasted: the same text came back[/green]\n")


def _deploy_missing(session: Session, folder: Path) -> None:
    there = {app["app"] for app in session.server.get("/control/apps")["apps"]}
    for target in examples.TARGETS:
        name = target.partition("/")[0]
        if f"me/{name}" not in there:
            _head(session, f"Deploying examples/{name}")
            order = {"target": "app.py", "options": {"name": name}}
            deploy.send(session, folder / name, order, lambda _, text: session.say(text))


def wait_for_record(session: Session, request_id: str) -> dict[str, Any]:
    """The request's record with its billable units, which come a moment after it. Raises `Failure`."""
    params = {"endpoint_id": APP, "request_id": request_id, "expand": "billing"}

    def look() -> dict[str, Any] | None:
        found = session.server.get("/v1/serverless/requests/by-endpoint", **params)["items"]
        return found[0] if found and found[0].get("billable_units") is not None else None

    return _await(look, f"request {request_id} has no record with billable units")


def request_logs(session: Session, request_id: str) -> list[dict[str, Any]]:
    """The request's lines. Raises `Failure` when there are none: the example prints."""
    return _await(
        lambda: logs.history(session.server, {"request_id": request_id}, 100),
        f"request {request_id} has no log lines",
    )


def _await(look: Callable[[], T | None], missing: str) -> T:
    """What `look` finds, as soon as it finds something. A telemetry store that is still starting is waited for."""
    deadline = time.monotonic() + RECORD_SECONDS
    while True:
        try:
            found = look()
        except Refused as problem:
            if problem.status != UNAVAILABLE or time.monotonic() > deadline:
                raise
            found = None
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"{missing} after {RECORD_SECONDS:g} s")
        time.sleep(0.1)


def commands(place: Place, tls_port: int, url: str, sample: Path) -> list[str]:
    """The same call by curl, by fal_client and by varvel, to be pasted into a shell in this folder."""
    key = f"$(cat {shlex.quote(_near(place.data / 'admin.key'))})"
    body = json.dumps({"image_url": url})
    host = f"localhost:{tls_port}"
    python = _near(Path(sys.executable)) if importlib.util.find_spec("fal_client") else "python3"
    code = f'import fal_client; print(fal_client.subscribe("{APP}", arguments={body})["text"])'
    flags = "" if place.url == "http://127.0.0.1:8787" else f" --url {place.url}"
    flags += "" if place.data.absolute() == Path(".varvel").absolute() else f" --data {shlex.quote(_near(place.data))}"
    return [
        f"curl {place.url}/run/{APP} -H \"Authorization: Key {key}\" -H 'Content-Type: application/json' -d '{body}'",
        f"SSL_CERT_FILE={shlex.quote(_near(place.data / 'tls' / 'ca.pem'))} FAL_KEY={key} "
        f"FAL_RUN_HOST={host}/run FAL_QUEUE_RUN_HOST={host}/queue {shlex.quote(python)} -c {shlex.quote(code)}",
        f"{_varvel()} call {APP} image_url=@{shlex.quote(_near(sample))}{flags}",
    ]


def _near(path: Path) -> str:
    """The path as it is typed from here."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _varvel() -> str:
    beside = Path(sys.executable).with_name("varvel")
    return shlex.quote(_near(beside)) if beside.exists() else "varvel"


def _head(session: Session, text: str) -> None:
    session.out.print(f"\n[bold]{escape(text)}[/bold]")


def demo(
    data: Annotated[Path | None, typer.Option(help="Data folder. Default: a fresh one that is removed again.")] = None,
    port: Annotated[int, typer.Option(help="Plain port; 0 takes a free one.")] = 0,
    tls_port: Annotated[int, typer.Option(help="TLS port; 0 takes a free one.")] = 0,
) -> None:
    """Start a server, send it the sample page, show every trace of that, stop the server.

    Exit code 0 when all of it worked.
    """
    ports = [wanted or free for wanted, free in zip((port, tls_port), _free_ports(), strict=True)]
    with tempfile.TemporaryDirectory(prefix="varvel-demo-") as place:
        folder = data or Path(place, "data")
        url = f"http://127.0.0.1:{ports[0]}"
        log = Path(place, "server.log")
        console = Console(stderr=True)
        console.print(
            "Starting a server; at first it builds environments for the examples, which takes a minute or so."
        )
        with _server(folder, ports, log, console):
            session = Session(Place(url, (folder / "admin.key").read_text().strip(), folder))
            try:
                run(session, ports[1], paste=True)
            finally:
                session.close()
        session.out.print("[green]All of it worked; the server is stopped.[/green] 'varvel up' starts one that stays.")


@contextmanager
def _server(folder: Path, ports: list[int], log: Path, console: Console) -> Iterator[None]:
    """A `varvel up` of our own, ended by its process id. Raises `Failure` with its last words."""
    flags = ["--data", str(folder), "--port", str(ports[0]), "--tls-port", str(ports[1]), "--no-demo"]
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "varvel.cli.main", "up", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        with waiting(console, "starting") as now:
            _wait_ready(child, log, now)
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            status = child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if status != 0:
        raise Failure(f"the server ended with status {status}:\n{_tail(log)}")


def _wait_ready(child: subprocess.Popen[bytes], log: Path, now: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    assert child.stdout is not None
    seen = b""
    while time.monotonic() < deadline:
        if not select.select([child.stdout], [], [], 0.2)[0]:
            now(_doing(log))
            continue
        part = os.read(child.stdout.fileno(), 65536)
        seen += part
        if not part:
            break
        if any(line.startswith(b"ready ") for line in seen.splitlines()):
            return
    raise Failure(f"the server did not become ready:\n{_tail(log)}", FAILED)


def _doing(log: Path) -> str:
    """The last line of a deployment in the server's log."""
    lines = log.read_text(errors="replace").splitlines()[-1:]
    try:
        said = json.loads(lines[0]) if lines else {}
    except ValueError:
        said = {}
    return str(said.get("event") or "starting")[:70]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _free_ports() -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports
