"""The private CA: what clients trust, and what is renewed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import trustme

from varvel import tls


async def _handshake(folder: Path, host: str) -> str:
    chain, key = tls.ensure(folder, "127.0.0.1")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(chain, key)

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=folder / "ca.pem")
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=host)
        text = (await reader.read()).decode()
        writer.close()
        return text
    finally:
        server.close()


async def test_a_client_that_trusts_the_ca_reaches_the_server_by_address_and_by_name(tmp_path: Path) -> None:
    assert await _handshake(tmp_path, "127.0.0.1") == "hello"
    assert await _handshake(tmp_path, "localhost") == "hello"


def test_a_second_start_keeps_ca_and_certificate(tmp_path: Path) -> None:
    tls.ensure(tmp_path, "127.0.0.1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tls.ensure(tmp_path, "127.0.0.1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_host_name_renews_the_certificate_under_the_same_ca(tmp_path: Path) -> None:
    tls.ensure(tmp_path, "127.0.0.1")
    ca, leaf = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    tls.ensure(tmp_path, "box.example")
    assert (tmp_path / "ca.pem").read_bytes() == ca
    assert (tmp_path / "server.pem").read_bytes() != leaf


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    tls.ensure(tmp_path, "127.0.0.1")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key")} == {0o600}


def test_apps_trust_this_server_beside_what_they_trust_anyway(tmp_path: Path) -> None:
    other = trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    told = tls.trust(tmp_path / "tls", "127.0.0.1", {"SSL_CERT_FILE": str(tmp_path / "other.pem")})
    assert set(told) == {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
    trusted = ssl.create_default_context(cafile=told["SSL_CERT_FILE"]).get_ca_certs()
    own = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem")).get_ca_certs()
    chosen = ssl.create_default_context(cafile=str(tmp_path / "other.pem")).get_ca_certs()
    assert sorted(map(str, trusted)) == sorted(map(str, own + chosen))
    usual = ssl.create_default_context(cafile=tls.trust(tmp_path / "tls", "127.0.0.1", {})["SSL_CERT_FILE"])
    assert len(usual.get_ca_certs()) > 50
