"""How every connection to the site's server is opened: so that no thread waits for ever for a server that is gone.

- The kernel asks a peer that is silent (keep-alive) and waits for acknowledgements: a host that is gone, or an address
  that has moved to another machine, ends the connection after `DEAD_SECONDS`, whatever the server was about to do.
- Logging in waits for each answer as long as for the connection itself.
- The limits that a server may set for every session (rows in an answer, rows looked at, time) are lifted: otherwise
  tables, columns and collations could be missing from the answers, and a transaction could end between two statements.
- Definitions are shown whole and in the server's usual form: primary keys that the server generated, too.
- Each statement commits by itself unless the caller wants otherwise, also where the server's default is another one:
  MySQL does not say so while it logs in, and PyMySQL believes it.
- Afterwards each answer has to come within `ANSWER_SECONDS`. A table that somebody changes is waited for by the server,
  which gives up before that. The session that apply writes through waits as long as the server works:
  `mysqlraft.replication.server_watch` asks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

DEAD_SECONDS = 30
ANSWER_SECONDS = 30.0
SURVEY_SECONDS = 600.0
"""In place of `ANSWER_SECONDS` for questions about all tables: a server may have to open each of many thousands."""
TABLE_LOCK_SECONDS = 20
CONNECT_SECONDS = 10.0

RENEW_SECONDS = 5.0
"""How long a connection that only asks is used: the address may lead to another server, while the old one lives."""
NO_ROOM = frozenset((1040, 1203, 1226))
"""Errors of a server that takes no further connection, of anybody or of this account."""
WHICH_SERVER = "SELECT CONCAT_WS(' ', @@global.server_id, @@global.hostname, @@global.port, @@global.datadir)"
"""What tells the servers apart that an address may lead to."""
ANOTHER_SERVER = "the server's address leads to another server now"

_PROBES = 3
_SESSION = (
    f"SET SESSION autocommit = 1, lock_wait_timeout = {TABLE_LOCK_SECONDS}, sql_select_limit = 18446744073709551615,"
    " sql_big_selects = 1 /*!80000 , max_execution_time = 0 */ /*!80011 , show_create_table_verbosity = 0 */"
    " /*!80030 , show_gipk_in_create_table_and_information_schema = 1 */ /*M!100600 , max_statement_time = 0,"
    " idle_transaction_timeout = 0, idle_write_transaction_timeout = 0, idle_readonly_transaction_timeout = 0 */"
)
"""MySQL reads the first three comments, MariaDB the last."""


def connect(**arguments: Any) -> Connection[Any]:
    """Opens a connection; ``arguments`` are those of `pymysql.connect`. ``connect_timeout`` bounds the login, too.

    Raises:
        pymysql.err.MySQLError, OSError: as PyMySQL does.
    """
    login = arguments.get("connect_timeout", CONNECT_SECONDS)
    given = {
        "connect_timeout": login,
        "read_timeout": login,
        "write_timeout": login,
        "init_command": _SESSION,
        **arguments,
    }
    connection: Any = pymysql.connect(**given)
    connection._read_timeout = arguments.get("read_timeout", ANSWER_SECONDS)
    connection._write_timeout = arguments.get("write_timeout", ANSWER_SECONDS)
    _keep_alive(connection._sock)
    opened: Connection[Any] = connection
    return opened


def renewed(connection: Connection[Any], connect: Callable[[], Connection[Any]]) -> Connection[Any]:
    """Another connection in place of this one, which is closed; or this one, where there is no room: what is given
    up there may be the application's for good.

    Raises:
        pymysql.err.MySQLError, OSError: as ``connect`` does.
    """
    try:
        another = connect()
    except pymysql.err.OperationalError as error:
        if error.args[0] in NO_ROOM:
            return connection
        raise
    with suppress(pymysql.err.MySQLError, OSError):
        connection.close()
    return another


def _keep_alive(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pause = DEAD_SECONDS // (2 * _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_SECONDS - _PROBES * pause)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)
