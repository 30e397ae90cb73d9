"""Reading log lines as programs do: the history to its last page, and a stream that is taken up when it breaks."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx

Lines = list[dict[str, Any]]


def history(client: httpx.Client, params: dict[str, Any], labels: Any = None, limit: int = 1000) -> Lines:
    """Every line that meets the conditions, oldest first."""
    found: Lines = []
    cursor: dict[str, str] = {}
    while True:
        answer = client.post("/serverless/logs/history", params={"limit": limit, **params, **cursor}, json=labels)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        if not page["has_more"]:
            return found[::-1]
        cursor = {"cursor": page["next_cursor"]}


class Follower(threading.Thread):
    """Follows a stream. When the connection breaks it comes back with the id of its last event."""

    def __init__(self, client: httpx.Client, params: dict[str, Any], labels: Any = None) -> None:
        """It takes the client for its own, and closes it."""
        super().__init__(daemon=True)
        self._client, self._params, self._labels = client, params, labels
        self._ending = threading.Event()
        self.open = threading.Event()
        self.lines: Lines = []
        self.ids: list[str] = []
        self.others: list[str] = []
        """Events that are not lines."""
        self.connections = 0

    def run(self) -> None:
        with self._client:
            while not self._ending.is_set():
                try:
                    self._follow()
                except httpx.TransportError:
                    time.sleep(0.02)

    def _follow(self) -> None:
        headers = {"Last-Event-ID": self.ids[-1]} if self.ids else {}
        with self._client.stream(
            "POST", "/serverless/logs/stream", params=self._params, json=self._labels, headers=headers, timeout=1.0
        ) as answer:
            if answer.status_code != 200:  # the store of a server that has just started may not answer yet
                return
            self.connections += 1
            self.open.set()
            name = last = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    last = value
                elif field == "event":
                    name = value
                elif field == "data" and name:
                    self.others.append(f"{name} {value}")
                elif field == "data":
                    self.ids.append(last)
                    self.lines.append(json.loads(value))
                elif not line:
                    name = ""
                if self._ending.is_set():
                    return

    def until(self, last: str, timeout: float = 20.0) -> None:
        """Wait for the event of that id."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not (self.ids and self.ids[-1] >= last):
            time.sleep(0.02)

    def end(self) -> None:
        """Let go at the next line, or when there is none for a second. `join` waits for it."""
        self._ending.set()
