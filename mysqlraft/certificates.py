"""An authority of the cluster's own, and certificates that it signs: one for each site, naming the site.

For clusters without a PKI: `mysqlraft certificates`, the demo, docker-compose.yml. The daemon itself makes none. Keys
are P-256: small, and a handshake costs next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SITE_DAYS = 825
"""How long a site's certificate is valid; longer than this, and some programs would refuse it."""
_SKEW = timedelta(hours=1)
"""Valid from so long ago: sites' clocks differ."""


def make(
    directory: Path, cluster: str, sites: Iterable[str], *, days: int = SITE_DAYS, renew: bool = False
) -> list[Path]:
    """Make ca.pem, ca.key and, for each site, NAME.pem and NAME.key in `directory`; returns the certificates made.

    What is there already stays, so a site can be added later; with `renew`, the sites' certificates and keys are made
    anew by the same authority. Raises OSError, ValueError (of an authority that is none).
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[Path] = []
    if not (directory / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(directory / "ca", _authority(cluster, key), key)
        made.append(directory / "ca.pem")
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    signing = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    if not isinstance(signing, ec.EllipticCurvePrivateKey) or signing.public_key() != authority.public_key():
        raise ValueError(f"{directory}/ca.key is not the key of {directory}/ca.pem")
    for site in sites:
        if renew or not (directory / f"{site}.pem").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            _write(directory / site, _site(site, key, authority, signing, days), key)
            made.append(directory / f"{site}.pem")
    return made


def settings(directory: Path, site: str) -> dict[str, str]:
    """The `tls` section of a site that uses what `make` made."""
    return {
        "certificate": str(directory / f"{site}.pem"),
        "key": str(directory / f"{site}.key"),
        "ca": str(directory / "ca.pem"),
    }


def _authority(cluster: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mysqlraft {cluster}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _unsigned(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _site(
    site: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signing: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return (
        _unsigned(name, authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(site)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(both, critical=False)
        .add_extension(issuer, critical=False)
        .sign(signing, hashes.SHA256())
    )


def _unsigned(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """The key first, for its owner only: whoever sees the certificate finds its key."""
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for suffix, mode, content in (("key", 0o600, private), ("pem", 0o644, certificate.public_bytes(pem))):
        path = stem.with_name(f"{stem.name}.{suffix}")
        partial = path.with_name(f"{path.name}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
        partial.replace(path)
