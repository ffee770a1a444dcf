"""Who may use the admin API, on both sides: what the daemon asks for, and what the verbs show it.

On loopback that is everybody on the machine, unless a token or client certificates are configured; anywhere else, one
of the two has to be.
"""

from __future__ import annotations

import hmac
import ssl

from mysqlraft.config import AdminSettings, AdminTlsSettings
from mysqlraft.keys import ConfigError

SCHEME = "Bearer "


class Access:
    """The daemon's side: its TLS, and the token that it wants to see."""

    def __init__(self, settings: AdminSettings) -> None:
        """Reads the files. Raises ConfigError."""
        self.tls = None if settings.tls is None else _server(settings.tls)
        self._token = settings.read_token()

    def reload(self, settings: AdminSettings) -> None:
        """Takes another token, and another certificate for connections to come. Raises ConfigError, and then nothing
        has changed."""
        token = settings.read_token()
        if self.tls is not None and settings.tls is not None:
            _server(settings.tls)  # whether they will do: what is in use is not to be left half changed
            _load(self.tls, settings.tls)
        self._token = token

    def admits(self, authorization: str | None) -> bool:
        """Whether a request with this `Authorization` header may be answered."""
        if self._token is None:
            return True
        # In time that does not tell how much of it was right.
        return hmac.compare_digest((authorization or "").encode(), (SCHEME + self._token).encode())


def client(settings: AdminTlsSettings) -> ssl.SSLContext:
    """A verb's side. It runs where the daemon does, so it believes the very certificate that the daemon is configured
    with, whoever signed it and whatever it names; and shows the same. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(settings.certificate)
        if settings.ca is not None:
            _load(context, settings)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"admin.tls.certificate: {settings.certificate} cannot be used: {error}") from None
    return context


def _server(settings: AdminTlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # browsers, Prometheus and curl of any age
    _load(context, settings)
    if settings.ca is not None:
        try:
            context.load_verify_locations(settings.ca)
        except OSError as error:
            raise ConfigError(f"admin.tls.ca: {settings.ca} cannot be used: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, settings: AdminTlsSettings) -> None:
    try:
        # Without a password OpenSSL would ask at the terminal for that of an encrypted key.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except OSError as error:
        files = f"{settings.certificate} and {settings.key}"
        raise ConfigError(
            f"admin.tls.certificate: {files} cannot be used as a certificate and its key: {error}"
        ) from None
