"""TLS for every link: contexts, self-signed certificates, and the four bytes that come before it.

A dialler first says in the clear what kind of link this will be (PREAMBLE), the listener answers one byte, then TLS begins: so
data links can go to blocking threads before anything is encrypted for the loop. Certificates are not verified against
authorities: their hash is bound into the mutual proof of the secret (``wire/handshake.py``), which no one in the middle can make.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from pathlib import Path

from vinecore.errors import UsageError

CONTROL_PREAMBLE = b"VTC1"
DATA_PREAMBLE = b"VTD1"
PREAMBLES = (CONTROL_PREAMBLE, DATA_PREAMBLE)
GO_AHEAD = b"+"
VALID_DAYS = 365


def server_context(key_path: str | os.PathLike[str], certificate_path: str | os.PathLike[str]) -> ssl.SSLContext:
    """The listener's context.

    Raises:
        UsageError: key or certificate cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate_path, key_path)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"ssl=(key, certificate): {str(key_path)!r} and {str(certificate_path)!r} cannot be used ({error}): "
            "give a PEM key and its certificate"
        ) from None
    return context


def client_context() -> ssl.SSLContext:
    """The dialler's context: it encrypts; whom it talks to is proved by the secret and the certificate's hash."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_server_name(name: str) -> bool:
    """Whether a dialler could tell it in the handshake."""
    try:
        client_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, ssl.SSLError):
        return False
    return bool(name)


def binding_of_file(certificate_path: str | os.PathLike[str]) -> bytes:
    """Hash of our own certificate, as the other side sees it."""
    return binding_of(ssl.PEM_cert_to_DER_cert(_first_certificate(Path(certificate_path).read_text())))


def binding_of(certificate: bytes | None) -> bytes:
    """Hash of a certificate in DER form."""
    return hashlib.sha256(certificate or b"").digest()


def _first_certificate(text: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = text.find(begin)
    if start < 0:
        raise UsageError("the certificate's file holds no PEM certificate")
    return text[start : text.index(end, start) + len(end)] + "\n"


def self_signed() -> tuple[bytes, bytes]:
    """A new key and a certificate for it, in PEM.

    Raises:
        UsageError: the package cryptography is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise UsageError(
            "ssl=True makes a certificate, which needs the package cryptography: pip install 'daskvine[tls]', "
            "or give ssl=(key_file, certificate_file)"
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vine manager")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return (
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain),
        certificate.public_bytes(encoding),
    )


class Identity:
    """What a listener shows: its context, and the hash that goes into the proof."""

    __slots__ = ("binding", "context")

    def __init__(self, context: ssl.SSLContext, binding: bytes) -> None:
        self.context = context
        self.binding = binding

    @classmethod
    def of_files(cls, key_path: str, certificate_path: str) -> Identity:
        """From PEM files.

        Raises:
            UsageError: they cannot be used.
        """
        context = server_context(key_path, certificate_path)
        return cls(context, binding_of_file(certificate_path))

    @classmethod
    def of_pem(cls, key: bytes, certificate: bytes, directory: Path) -> Identity:
        """From PEM bytes, which pass through files of ours for a moment: the standard library loads nothing else."""
        key_path, certificate_path = directory / ".tls-key", directory / ".tls-certificate"
        try:
            for path, content in ((key_path, key), (certificate_path, certificate)):
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
            return cls.of_files(str(key_path), str(certificate_path))
        finally:
            key_path.unlink(missing_ok=True)
            certificate_path.unlink(missing_ok=True)
