"""Mutual TLS from a shared secret: whoever knows the secret is let in, and nobody else.

secret ──HKDF──▶ signing key of the authority ──signs──▶ certificate of this process, for its own address

Every process that knows the secret derives the same authority and signs a fresh certificate by it, so no file has to
be handed around. Both ends of a connection must show such a certificate before a byte of either is read.

A server shows its certificate to anybody who connects, and guesses at the secret can be tried against it at leisure:
hence the least length.
"""

import ipaddress
import os
import shutil
import ssl
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from llamarl.core.errors import ConfigError, MissingDependencyError

MIN_SECRET_CHARACTERS = 32
"""Shortest secret: 32 hexadecimal digits are 128 bits."""
_VALID = timedelta(days=366)
_CLOCK_SKEW = timedelta(days=1)
"""Hosts' clocks may differ so much."""


def read_secret(variable: str, environment: Mapping[str, str] = os.environ) -> str:
    """The secret in an environment variable: in no argument, which every user of a machine can list, and in no file.

    Raises:
        ConfigError: the variable is not set, or its value is too short to be hard to guess.
    """
    secret = environment.get(variable, "")
    make = f"export {variable}=$(python -c 'import secrets; print(secrets.token_hex(32))')"
    if not secret:
        raise ConfigError(f"{variable} is not set: hosts know each other by its value; on one host: {make}")
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"{variable} has {len(secret)} characters; it takes {MIN_SECRET_CHARACTERS} that nobody can guess: {make}"
        )
    return secret


class Identity:
    """A certificate of this process and the authority that it trusts, in files of a folder that only it can read.

    Args:
        secret: shared by everybody who may connect.
        host: the address or name by which others reach this process; their TLS checks it.

    Raises:
        MissingDependencyError: `cryptography` is not installed.
    """

    def __init__(self, secret: str, host: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="llamarl-tls-"))  # mode 700
        self.authority, self.certificate, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        self._folder = folder
        for path, content in zip((self.authority, self.certificate, self.key), _issue(secret, host), strict=True):
            path.write_bytes(content)

    def server_context(self) -> ssl.SSLContext:
        """Settings of a server that lets in who shows a certificate of the same authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """Settings of a client that talks to a server of the same authority, and of the name it asked for."""
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def close(self) -> None:
        """Removes the files; contexts go on. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        return context


def _issue(secret: str, host: str) -> tuple[bytes, bytes, bytes]:
    """The authority's certificate, this process's certificate and its key, as PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise MissingDependencyError.for_extra("cryptography", "hosts") from None

    seed = HKDF(hashes.SHA256(), 32, salt=b"llamarl", info=b"authority of a run").derive(secret.encode())
    authority, own = Ed25519PrivateKey.from_private_bytes(seed), Ed25519PrivateKey.generate()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llamarl")])
    now = datetime.now(UTC)

    def certify(common_name: str, key: Ed25519PrivateKey, *extensions: tuple[Any, bool]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _VALID)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        pem: bytes = builder.sign(authority, None).public_bytes(serialization.Encoding.PEM)
        return pem

    def usage(*, signs_certificates: bool) -> Any:
        purposes = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        unused = dict.fromkeys((*purposes, "crl_sign", "encipher_only", "decipher_only"), False)
        return x509.KeyUsage(digital_signature=not signs_certificates, key_cert_sign=signs_certificates, **unused)

    root = certify(
        "llamarl",
        authority,
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (usage(signs_certificates=True), True),
    )
    leaf = certify(
        "llamarl process",
        own,
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage(signs_certificates=False), True),
        (x509.SubjectAlternativeName([_general_name(host)]), False),
    )
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root, leaf, key


def _general_name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
