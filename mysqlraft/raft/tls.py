"""Mutual TLS between sites: what a site shows, whom it believes, and whose certificate it has before it.

Both ends of a connection show a certificate that the cluster's authority has signed, and each checks that the other's
names the *site* that it claims to be: not its host, so a site may move, and no site can pass for another one. TLS 1.3
only: all ends are of this program, so there is nothing older to get on with.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_BY_THE_CLOCK = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class TlsError(Exception):
    """Certificates that cannot be used. `item` is the one to look at: "certificate", "key" or "ca". `by_the_clock`:
    they would do at another time."""

    def __init__(self, item: str, reason: str, *, by_the_clock: bool = False) -> None:
        super().__init__(reason)
        self.item = item
        self.by_the_clock = by_the_clock


class Tls(NamedTuple):
    """What a site needs to speak with the others. New connections take what is current; see `Handshake.tls`."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def load(certificate: Path, key: Path, ca: Path, site: str) -> Tls:
    """Read the PEM files of the site with this name, and prove that they will do.

    The proof is a handshake of the site with itself, in memory: it fails for every reason for which the peers' would
    (another key, another authority, expired, not meant for servers or clients), but before anything is lost.

    Raises TlsError.
    """
    for item, path in (("certificate", certificate), ("key", key), ("ca", ca)):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise TlsError(item, f"{path} cannot be read: {error.strerror}") from None
    tls = Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    tls.server.num_tickets = 0  # nobody resumes: a connection is dialled once
    for context in tls:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # `names` is compared with the site instead
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise TlsError("ca", f"{ca} holds no certificates in PEM form ({_reason(error)})") from None
        try:
            # Without a password OpenSSL would ask at the terminal for that of an encrypted key.
            context.load_cert_chain(certificate, key, password=_no_password)
        except _Encrypted:
            raise TlsError("key", f"{key} is encrypted: a daemon has nobody to ask for its password") from None
        except ssl.SSLError as error:
            if "KEY_VALUES_MISMATCH" in str(error):
                raise TlsError("key", f"{key} is not the key of {certificate}") from None
            raise TlsError(
                "certificate", f"{certificate} and {key} are not a certificate and its key in PEM form"
                f" ({_reason(error)})"
            ) from None  # fmt: skip
    try:
        shown = _shake_hands(tls)
    except ssl.SSLError as error:
        raise TlsError(
            "certificate",
            f"{certificate} would be refused by the other sites, which believe {ca}: {_reason(error)}",
            by_the_clock=isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _BY_THE_CLOCK,
        ) from None
    if site not in names(shown):
        raise TlsError("certificate", f"{certificate} does not name this site, {site}, but {shown_names(shown)}")
    return tls


def names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Whom a certificate (as `SSLSocket.getpeercert` tells it) is for: its DNS names or, if it has none, its common
    name. A wildcard is a name like any other here: it would let every site pass for all."""
    alternative = frozenset(name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS")
    if alternative:
        return alternative
    return frozenset(value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName")


def shown_names(certificate: Mapping[str, Any]) -> str:
    """The names for a message."""
    return ", ".join(sorted(names(certificate))) or "nobody"


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).replace("_", " ").lower()


def _shake_hands(tls: Tls) -> Mapping[str, Any]:
    """Both ends of a connection, each checking the other; returns the certificate that was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client.wrap_bio(to_client, to_server)
    server = tls.server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return client.getpeercert() or {}
