"""Lists that are read page by page while rows arrive: no row comes twice, none that was there is left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.platform_api.world import ECHO, World

APP = "me/paged"
AHEAD = 30
"""Rows that are there before the first page is asked for."""
PAGE = 4


@pytest.fixture(scope="module")
def clients(world: World) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Of the Platform API and of the data plane, with an app that was called."""
    world.deploy("me", ECHO, "paged", options={"name": "paged", "keep_alive": 60})
    with world.client("me") as client, world.caller("me") as caller:
        for number in range(AHEAD):
            call(caller, number)
            tune(caller, number)
            make_key(client, number)
        yield client, caller


def call(caller: httpx.Client, number: int) -> None:
    """A request that prints a line."""
    wish = {"print": f"line {number}", "sleep": 0.002 * (number % 4)}
    assert caller.post(f"/run/{APP}", json=wish).status_code == 200


def tune(caller: httpx.Client, number: int) -> None:
    """An event."""
    answer = caller.patch(f"/control/apps/{APP}", json={"scaling": {"keep_alive": 60 + number}})
    assert answer.status_code == 200, answer.text


def make_key(client: httpx.Client, number: int) -> None:
    assert client.post("/keys", json={"alias": f"paged {number}"}).status_code == 201


Fetch = Callable[[httpx.Client, dict[str, Any]], tuple[list[str], str | None]]


def requests(client: httpx.Client, params: dict[str, Any]) -> tuple[list[str], str | None]:
    page = client.get("/serverless/requests/by-endpoint", params={"endpoint_id": APP, **params}).json()
    return [item["request_id"] for item in page["items"]], page["next_cursor"]


def longest(client: httpx.Client, params: dict[str, Any]) -> tuple[list[str], str | None]:
    return requests(client, {**params, "sort_by": "duration"})


def lines(client: httpx.Client, params: dict[str, Any]) -> tuple[list[str], str | None]:
    page = client.post("/serverless/logs/history", params={"app_id": APP, **params}).json()
    return [item["timestamp"] for item in page["items"]], page["next_cursor"]


def events(client: httpx.Client, params: dict[str, Any]) -> tuple[list[str], str | None]:
    page = client.get(f"/serverless/apps/{APP}/events", params=params).json()
    return [item["event_id"] for item in page["events"]], page["next_cursor"]


def keys(client: httpx.Client, params: dict[str, Any]) -> tuple[list[str], str | None]:
    page = client.get("/keys", params=params).json()
    return [item["key_id"] for item in page["keys"]], page["next_cursor"]


def read(client: httpx.Client, fetch: Fetch, limit: int, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    found, cursor = fetch(client, {"limit": limit})
    while cursor is not None:
        meanwhile()
        page, cursor = fetch(client, {"limit": limit, "cursor": cursor})
        found += page
    return found


@contextmanager
def arriving(write: Callable[[int], None]) -> Iterator[Callable[[], None]]:
    """What it gives lets one more row arrive while the caller goes on, once the one before it has arrived."""
    wanted, written = threading.Semaphore(0), threading.Semaphore(1)
    ending = threading.Event()

    def run() -> None:
        number = 0
        while wanted.acquire() and not ending.is_set():
            number += 1
            write(number)
            written.release()

    def one_more() -> None:
        assert written.acquire(timeout=10), "nothing arrives"
        wanted.release()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield one_more
        assert written.acquire(timeout=10)
    finally:
        ending.set()
        wanted.release()
        thread.join(10)


@pytest.mark.parametrize("fetch", [requests, longest, lines, events, keys])
def test_pages_neither_repeat_nor_skip_while_rows_arrive(
    clients: tuple[httpx.Client, httpx.Client], fetch: Fetch
) -> None:
    client, caller = clients

    def write(number: int) -> None:
        if fetch is events:
            tune(caller, 100 + number)
        elif fetch is keys:
            make_key(client, 100 + number)
        else:
            call(caller, number)

    before = read(client, fetch, 100)
    assert len(before) >= AHEAD
    with arriving(write) as meanwhile:
        meanwhile()
        found = read(client, fetch, PAGE, meanwhile)
    after = read(client, fetch, 100)
    assert len(after) >= len(before) + len(found) // PAGE - 1, "too few arrived to tell"
    assert len(found) == len(set(found)), "a row came twice"
    there = set(before)
    assert [row for row in found if row in there] == before, "a row was left out, or moved"
    assert set(found) <= set(after)


@pytest.mark.parametrize("fetch", [requests, longest, events, keys])
def test_the_numbered_cursor_of_older_clients_leads_to_the_second_page(
    clients: tuple[httpx.Client, httpx.Client], fetch: Fetch
) -> None:
    client, _ = clients
    assert fetch(client, {"limit": PAGE, "cursor": "Mg=="})[0] == read(client, fetch, 100)[PAGE : 2 * PAGE]


def test_an_iso_time_is_a_cursor_of_the_logs(clients: tuple[httpx.Client, httpx.Client]) -> None:
    client, _ = clients
    every = read(client, lines, 100)
    assert lines(client, {"limit": PAGE, "cursor": every[7]})[0] == every[8 : 8 + PAGE]


def test_a_cursor_lives_through_a_kill_of_the_server(world: World, clients: tuple[httpx.Client, httpx.Client]) -> None:
    client, _ = clients
    cursors = {fetch: fetch(client, {"limit": PAGE})[1] for fetch in (requests, lines, events)}
    rest = {fetch: fetch(client, {"limit": PAGE, "cursor": cursor}) for fetch, cursor in cursors.items()}
    world.server.kill()
    world.server.start()
    deadline = time.monotonic() + 10
    while client.get("/serverless/files/list").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {fetch: fetch(client, {"limit": PAGE, "cursor": cursor}) for fetch, cursor in cursors.items()} == rest
