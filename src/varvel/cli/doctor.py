"""`varvel doctor`: what this machine allows, what is wrong, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from varvel.apps import machine
from varvel.cli.connection import DENIED, FAILED, UNREACHABLE, Failure
from varvel.cli.session import Session, command, table

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
        state = "limited" if problem.code == UNREACHABLE else "wrong"
        mend = "varvel up" if problem.code == UNREACHABLE else "give an ADMIN key with --key or VARVEL_KEY"
        server = {"name": "server", "state": state, "detail": problem.message, "mend": mend}
        return {"findings": [server, *(asdict(item) for item in machine.findings(session.place.data.absolute()))]}
    return {**told, "findings": [_server(session, told), *told["findings"]]}


def _server(session: Session, told: dict[str, Any]) -> dict[str, str]:
    up = told["parts"].get("telemetry", "up") == "up"
    detail = f"{session.place.url}, version {told['version']}, you are {told['owner']}"
    mend = "" if up else "the telemetry store is down: calls go on; the server's log says why"
    return {"name": "server", "state": "ok" if up else "limited", "detail": detail, "mend": mend}


def _table(found: dict[str, Any]) -> Table:
    rows = ((item["name"], _MARKS[item["state"]], item["detail"], item["mend"]) for item in found["findings"])
    return table(("what", "state", "found", "how to mend it"), rows)
