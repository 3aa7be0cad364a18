"""Certificates of a small authority of the test's own, for 127.0.0.1 and localhost."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Authority:
    """An authority, its certificate in `file`."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    file: Path

    @classmethod
    def make(cls, directory: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("A test's authority")
        certificate = (
            _builder(name, name, key, days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        file = directory / "ca.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(key, certificate, file)

    def issue(
        self, directory: Path, *, name: str = "localhost", days: float = 30, is_rsa: bool = False
    ) -> Path:
        """Issue a certificate; returns a file with it and its key."""
        key: Key = ec.generate_private_key(ec.SECP256R1())
        if is_rsa:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            _builder(_name(name), self.certificate.subject, key, days=days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = directory / f"{name}-{certificate.serial_number:x}.pem"
        pem, key_format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        file.write_bytes(
            certificate.public_bytes(pem)
            + key.private_bytes(pem, key_format, serialization.NoEncryption())
        )
        return file

    def server_context(self, directory: Path, *, days: float = 30) -> ssl.SSLContext:
        """Return what a server needs whose certificate lasts so long."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(directory, days=days))
        return context


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, *, days: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=40))
        .not_valid_after(now + dt.timedelta(days=days))
    )
