"""A server with two owners, keys of every kind, and apps that were really called."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from tests.serving import ROOT, Server, serving

ECHO = ROOT / "examples" / "echo" / "app.py"
HELLO = ROOT / "examples" / "hello" / "app.py"
SETTINGS = {
    "VARVEL_RATE_LIMIT": "0",
    "VARVEL_METRICS_CACHE": "0",
    "VARVEL_EGRESS_PRIVATE": "true",
    "VARVEL_USAGE_TICK": "1",
}
"""Tests call faster than the default allows, wait for nothing that is cached, and fetch from this machine."""


@dataclass
class World:
    """The server, and a key for each kind of caller by name."""

    server: Server
    keys: dict[str, str] = field(default_factory=dict)

    @cached_property
    def wire(self) -> httpx.Client:
        """A client without a key."""
        return self._client({}, "")

    def client(self, key: str) -> httpx.Client:
        """A client of `/v1` with the key of that name."""
        return self._client({"Authorization": f"Key {self.keys[key]}"}, "/v1")

    def caller(self, key: str) -> httpx.Client:
        """A client of the data plane."""
        return self._client({"Authorization": f"Key {self.keys[key]}"}, "")

    def _client(self, headers: dict[str, str], prefix: str) -> httpx.Client:
        # All is plain HTTP; certificates are not read, for that takes longer than most calls.
        return httpx.Client(base_url=f"{self.server.url}{prefix}", headers=headers, timeout=60, verify=False)

    def deploy(self, key: str, target: Path, name: str, **order: Any) -> None:
        """Deploy the `app` (or `Hello`) of a file under `name` for the owner of the key."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(target, target.name)
        attribute = "Hello" if target == HELLO else "app"
        whole = {"target": f"{target.name}:{attribute}", "options": {"name": name}, "folder_name": name, **order}
        with self.caller(key) as client:
            told = client.post("/control/deploy", data={"order": json.dumps(whole)}, files={"files": packed.getvalue()})
        assert '"revision"' in told.text.splitlines()[-1], told.text

    def owner(self, name: str) -> None:
        """Add an owner; its ADMIN key goes by its name."""
        with self.caller("me") as client:
            told = client.post("/control/owners", json={"nickname": name})
        assert told.status_code == 201, told.text
        self.keys[name] = told.json()["key"]

    def key(self, owner: str, alias: str, **options: Any) -> tuple[str, str]:
        """Id and whole key of a new API key."""
        with self.client(owner) as client:
            made = client.post("/keys", json={"alias": alias, **options})
        assert made.status_code == 201, made.text
        return made.json()["key_id"], made.json()["key"]


def finished(client: httpx.Client, app: str, request_id: str, timeout: float = 30.0) -> dict[str, Any]:
    """Wait for the end of a queued request; its last status."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        answer = client.get(f"/queue/{app}/requests/{request_id}/status")
        if answer.status_code == 200:
            return dict(answer.json())
        assert answer.status_code == 202, answer.text
        time.sleep(0.03)
    raise AssertionError(f"{request_id} did not end")


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A server in `folder`, with the first owner's ADMIN key as `me`."""
    with serving(folder / "data", "--no-examples", environ=SETTINGS) as server:
        made = World(server, {"me": server.key})
        with made.wire:
            yield made
