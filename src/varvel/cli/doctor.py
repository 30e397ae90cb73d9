"""`varvel doctor`: what this machine allows, what is wrong, and how to mend it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from varvel.apps import machine
from varvel.cli.connection import DENIED, FAILED, UNREACHABLE, Failure
from varvel.cli.session import Session, command, table
from varvel.errors import VarvelError
from varvel.settings import load

OTHERS = 0o077
_MARKS = {"ok": "ok", "limited": "limited", "wrong": "WRONG"}


@command
def doctor(session: Session) -> None:
    """Look at the server and its machine; without a server, at this machine.

    Exit code 1 when something is wrong; what is only limited is none.
    """
    found = _look(session)
    session.show(found, lambda: _table(found))
    if any(item["state"] == "wrong" for item in found["findings"]):
        raise typer.Exit(FAILED)


def _look(session: Session) -> dict[str, Any]:
    try:
        told: dict[str, Any] = session.server.get("/control/doctor")
    except Failure as problem:
        if problem.code not in (UNREACHABLE, DENIED):
            raise
        here = [asdict(item) for item in machine.findings(session.place.data.absolute())]
        ports = list(_ports(session)) if problem.code == UNREACHABLE else []
        return {"findings": [_away(problem), *_key(session), *ports, *here]}
    return {**told, "findings": [_server(session, told), *_key(session), *_authority(session), *told["findings"]]}


def _away(problem: Failure) -> dict[str, str]:
    if problem.code == UNREACHABLE:
        return _finding("server", "limited", problem.message, "start one: varvel up")
    return _finding("server", "wrong", problem.message, "give an ADMIN key with --key or VARVEL_KEY")


def _server(session: Session, told: dict[str, Any]) -> dict[str, str]:
    up = told["parts"].get("telemetry", "up") == "up"
    detail = f"{session.place.url}, version {told['version']}, you are {told['owner']}"
    mend = "" if up else "the telemetry store is down: calls go on; the server's log says why"
    return _finding("server", "ok" if up else "limited", detail, mend)


def _key(session: Session) -> Iterator[dict[str, str]]:
    """Which key is shown, and whether others of this machine may read it."""
    place = session.place
    if place.key is None:
        started = (place.data / "state.db").is_file()
        mend = "stop the server, then: varvel keys recover" if started else "the first 'varvel up' makes one"
        yield _finding("key", "wrong" if started else "limited", f"none in {place.data / 'admin.key'}", mend)
        return
    path = place.data / "admin.key"
    if path.is_file() and path.stat().st_mode & OTHERS:
        yield _finding("key", "wrong", f"others may read {path}", f"chmod 600 {path}")
        return
    yield _finding("key", "ok", f"from {place.key_from}")


def _authority(session: Session) -> Iterator[dict[str, str]]:
    path = session.place.data / "tls" / "ca.pem"
    if path.is_file():
        yield _finding("TLS", "ok", f"clients trust {path} (SSL_CERT_FILE, --cacert, NODE_EXTRA_CA_CERTS)")


def _ports(session: Session) -> Iterator[dict[str, str]]:
    """Whether a server that was started with the settings of the environment would have its ports."""
    try:
        settings = load({"data": session.place.data})
    except VarvelError as problem:
        yield _finding("settings", "wrong", problem.message, "mend the variable or the line of varvel.toml")
        return
    for name in ("port", "tls_port"):
        number = getattr(settings, name)
        try:
            socket.create_server((settings.host, number)).close()
        except OSError as problem:
            mend = f"stop what listens there (ss -ltnp), or give another --{name.replace('_', '-')}"
            yield _finding(name, "wrong", f"{number} of {settings.host}: {problem.strerror}", mend)
        else:
            yield _finding(name, "ok", f"{number} of {settings.host} is free")


def _finding(name: str, state: str, detail: str, mend: str = "") -> dict[str, str]:
    return {"name": name, "state": state, "detail": detail, "mend": mend}


def _table(found: dict[str, Any]) -> Table:
    """A row for each finding; how it is mended stands below it."""
    rows: list[tuple[str, str, str]] = []
    for item in found["findings"]:
        rows.append((item["name"], _MARKS[item["state"]], item["detail"]))
        if item["mend"]:
            rows.append(("", "", f"-> {item['mend']}"))
    return table(("what", "state", "found, and how to mend it"), rows, fold=("found, and how to mend it",))
