"""How the daemon logs in to its site's server."""

from __future__ import annotations

import ssl
from typing import Any

from pymysql.connections import Connection

from mysqlraft.config import ConfigError, MysqlSettings, TlsSettings
from mysqlraft.mysql import opening

APPLICATION = "mysqlraft"
"""What the server shows as the name of the program behind a connection."""


def arguments(settings: MysqlSettings) -> dict[str, Any]:
    """Keyword arguments of `opening.connect` for a connection in autocommit mode; the password is read now.

    Raises:
        ConfigError: the password or a certificate cannot be read.
    """
    found: dict[str, Any] = {
        "user": settings.user,
        "password": settings.read_password(),
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": settings.connect_timeout,
        "program_name": APPLICATION,
    }
    if settings.socket is not None:
        found["unix_socket"] = str(settings.socket)
    else:
        found |= {"host": settings.host, "port": settings.port}
    if settings.tls is not None:
        found["ssl"] = _context(settings.tls)
    else:
        found["ssl_disabled"] = True
    return found


def connect(settings: MysqlSettings, **options: Any) -> Connection[Any]:
    """Opens a connection; ``options`` are further arguments of `opening.connect`.

    Raises:
        ConfigError: the password or a certificate cannot be read.
        pymysql.err.OperationalError: the server cannot be reached, or refuses the account.
    """
    return opening.connect(**{**arguments(settings), **options})


def where(settings: MysqlSettings) -> str:
    """The server's address, for people."""
    return str(settings.socket) if settings.socket is not None else f"{settings.host}:{settings.port}"


def _context(tls: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"mysql.tls: a file cannot be used: {error}") from None
    context.check_hostname = tls.verify_identity
    return context
