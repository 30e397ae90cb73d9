"""The way out: HTTP calls that the server makes on a caller's behalf, kept away from private addresses.

The address is checked on the very socket that is about to connect, so neither a name that resolves differently a
second time nor a redirect gets past it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from varvel.errors import InvalidRequest

_EMBEDS_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "fec0::/10")
)


class EgressRefused(InvalidRequest):
    """The URL leads to an address that this server does not call"""


class EgressFailed(InvalidRequest):
    """The URL could not be read"""


class AddressRefused(OSError):
    """Raised on the socket, before it connects."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is private")


def is_public(address: str) -> bool:
    """Whether an IP address (in text) is one of the public internet, also when it is wrapped in an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or _embedded(ip)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _NEVER)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(ip in network for network in _EMBEDS_IPV4):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def check_url(url: str) -> URL:
    """The parsed URL, if it is an absolute http or https one. Raises `EgressRefused`."""
    try:
        parsed = URL(url)
        port = parsed.port
    except ValueError as problem:
        raise EgressRefused("url: is not a URL") from problem
    if parsed.scheme not in ("http", "https") or not parsed.host or not port:
        raise EgressRefused("url: must be an absolute http or https URL")
    return parsed


class Egress:
    """One pool of outgoing connections. Make it inside the event loop's life; `close` it at the end."""

    def __init__(self, *, private: bool = False, redirects: int = 5, connections: int = 100) -> None:
        self._private = private
        self._redirects = redirects
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, timeout: float, redirects: bool = True, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; `timeout` seconds bound it to the end of the body.

        Raises `EgressRefused` for a URL or redirect that leads where it must not, `EgressFailed` when the other
        side fails, also in the middle of the body. Other `options` are aiohttp's.
        """
        target = check_url(url)
        try:
            async with self._open().request(
                method,
                target,
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=redirects,
                max_redirects=self._redirects,
                **options,
            ) as response:
                yield response
        except aiohttp.ClientConnectorError as problem:
            if isinstance(problem.os_error, AddressRefused):
                raise EgressRefused(f"url: {problem.host} leads to a private address") from problem
            raise EgressFailed(f"url: {problem.host} cannot be reached") from problem
        except aiohttp.TooManyRedirects as problem:
            raise EgressFailed(f"url: more than {self._redirects} redirects") from problem
        except aiohttp.InvalidURL as problem:
            raise EgressRefused("url: leads to something that is not an http or https URL") from problem
        except TimeoutError as problem:
            raise EgressFailed(f"url: took longer than {timeout:g} s") from problem
        except aiohttp.ClientError as problem:
            raise EgressFailed(f"url: {problem}") from problem

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, socket_factory=self._socket)
            # Proxies of the environment would resolve names for us, out of reach of the check.
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _socket(self, address: Any) -> socket.socket:
        family, kind, protocol, _, place = address
        if not self._private and not is_public(str(place[0])):
            raise AddressRefused
        return socket.socket(family=family, type=kind, proto=protocol)
