"""Where the server goes on a caller's behalf, and where it never does."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from varvel.egress import Egress, EgressFailed, EgressRefused, check_url, is_public

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "224.0.1.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "fc00::1",
    "fd00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.15.0.1",
    "172.32.0.1",
    "192.167.1.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_in_every_disguise_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "/x",
        "//x/y",
        "ftp://x/y",
        "file:///etc/passwd",
        "gopher://x",
        "javascript:1",
        "http://",
        "http:///x",
        "http://x:99999/",
        "http://[::1",
        "unix:/run/x.sock",
        "data:,x",
    ],
)
def test_only_absolute_web_urls_are_urls(url: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(url)


async def fetch(egress: Egress, url: str, **options: Any) -> bytes:
    async with egress.request("GET", url, timeout=5, **options) as response:
        return await response.read()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "0",
        "127.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "169.254.169.254",
        "10.0.0.1",
        "user:pass@127.0.0.1",
        "127.0.0.1%2f@127.0.0.1",
    ],
)
async def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        egress = Egress()
        try:
            with pytest.raises((EgressRefused, EgressFailed)):
                await fetch(egress, f"http://{host}:{listener.getsockname()[1]}/")
        finally:
            await egress.close()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_name_that_leads_to_a_private_address_is_refused_on_the_socket() -> None:
    egress = Egress()
    try:
        with pytest.raises(EgressRefused, match="private"):
            await fetch(egress, "http://localhost:9/")
    finally:
        await egress.close()


async def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        egress = Egress(private=True)
        try:
            with pytest.raises(EgressFailed, match="longer"):
                async with egress.request("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.2):
                    pass
        finally:
            await egress.close()


async def test_a_closed_port_is_said_to_be_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    egress = Egress(private=True)
    try:
        with pytest.raises(EgressFailed, match="cannot be reached"):
            await fetch(egress, f"http://127.0.0.1:{port}/")
    finally:
        await egress.close()
