"""A certificate authority of one home, and the certificate by which the parts of its object store know each other."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flashslm.infra.state_files import write_whole

AUTHORITY, CERTIFICATE, KEY = "ca.crt", "node.crt", "node.key"
_VALID_DAYS = 3650
_RENEW_DAYS = 30


def ensure_certificates(directory: Path) -> Path:
    """Make an authority, a certificate and its key in `directory` (mode 0700), unless good ones are there.

    The authority's key is not kept, so that no second certificate can be signed. One certificate serves every part, as
    server and as client.
    """
    if not _is_good(directory):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        for name, content in _make().items():
            write_whole(directory / name, content)
    return directory


def _is_good(directory: Path) -> bool:
    """Whether all three files can be read, belong together and stay valid for a while."""
    try:
        authority, own = (
            x509.load_pem_x509_certificate((directory / n).read_bytes()) for n in (AUTHORITY, CERTIFICATE)
        )
        key = serialization.load_pem_private_key((directory / KEY).read_bytes(), password=None)
        own.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature):  # absent, damaged, or of another authority
        return False
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=_RENEW_DAYS)
    return key.public_key() == own.public_key() and own.not_valid_after_utc > soon


def _make() -> dict[str, bytes]:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("flashslm store authority")
    ca = _builder(authority_name, authority_name, authority_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    own = _builder(_name("flashslm store"), authority_name, key.public_key())
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    own = own.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    own = own.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    pem = serialization.Encoding.PEM
    return {
        AUTHORITY: ca.sign(authority_key, hashes.SHA256()).public_bytes(pem),
        CERTIFICATE: own.sign(authority_key, hashes.SHA256()).public_bytes(pem),
        KEY: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a clock that is set back
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
