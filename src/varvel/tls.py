"""The private CA of a server, made on its first start, and the certificate that it serves with.

`ca.pem` is what clients trust (`SSL_CERT_FILE`, `NODE_EXTRA_CA_CERTS`). The leaf is renewed when a name is
missing or its end is near; the CA stays, so that what clients were told to trust goes on working.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
LEAF_DAYS = 397
RENEW_DAYS = 30


def ensure(folder: Path, host: str) -> tuple[Path, Path]:
    """Paths of the certificate chain and its key in `folder`, made or renewed as needed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key_path, ca_path = folder / "ca.key", folder / "ca.pem"
    if not (ca_key_path.exists() and ca_path.exists()):
        key, certificate = _make_ca()
        _write(ca_key_path, _private(key), 0o600)
        _write(ca_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    ca = x509.load_pem_x509_certificate(ca_path.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    chain, key_path = folder / "server.pem", folder / "server.key"
    if not (key_path.exists() and _serves(chain, host)):
        leaf_key, leaf = _make_leaf(ca, ca_key, host)
        _write(key_path, _private(leaf_key), 0o600)
        pem = leaf.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
        _write(chain, pem, 0o644)
    return chain, key_path


def trust(folder: Path, host: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables with which apps trust this server's certificate beside what they trust anyway.

    Else an app could not read what a client has uploaded over TLS. Empty when it is not known what they trust: a
    file with our authority alone would cut them off from the internet.
    """
    ensure(folder, host)
    chosen = [environ[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if environ.get(name)]
    usual = [ssl.get_default_verify_paths().openssl_cafile, ssl.get_default_verify_paths().cafile, certifi.where()]
    files = [path for path in dict.fromkeys(Path(name) for name in chosen or usual if name) if path.is_file()]
    if not files:
        return {}
    bundle = folder / "trust.pem"
    _write(bundle, b"\n".join(path.read_bytes() for path in (folder / "ca.pem", *files)), 0o644)
    return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(bundle.absolute()))


def _names(host: str) -> list[x509.GeneralName]:
    hosts = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), host])
    return [_name(item) for item in hosts if item not in ("", "0.0.0.0", "::")]  # noqa: S104 - compared, not bound


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _serves(chain: Path, host: str) -> bool:
    if not chain.exists():
        return False
    leaf = x509.load_pem_x509_certificate(chain.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    fresh = leaf.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)
    return fresh and all(name in names for name in _names(host))


def _make_ca() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Varvel CA of {socket.gethostname()}"[:64])])
    builder = _builder(name, name, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, builder.sign(key, hashes.SHA256())


def _make_leaf(
    ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, host: str
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Varvel")])
    builder = _builder(name, ca.subject, key.public_key(), LEAF_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return key, builder.sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_suffix(".tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
