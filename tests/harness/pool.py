"""Running servers, lent to one test after another.

Starting a server takes a second; emptying one takes milliseconds. A server that comes back from a test is emptied and
lent again; one that a test stopped, killed or reconfigured is thrown away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pymysql
from pymysql.cursors import Cursor

from mysqlraft.sandbox.servers import Engine, Installation, Server, start_all

_SYSTEM_SCHEMAS = frozenset({"mysql", "sys", "information_schema", "performance_schema"})
_SYSTEM_ACCOUNTS = frozenset({"mysql.sys", "mysql.session", "mysql.infoschema", "mariadb.sys", "PUBLIC", "root"})
_SYSTEM_SESSIONS = frozenset({"system user", "event_scheduler"})
_CHANGE_BY_THEMSELVES = ("gtid_", "timestamp", "tls_", "ssl_")


class LendServers(Protocol):
    """The `servers` fixture."""

    def __call__(self, count: int, /) -> list[Server]:
        """Lends so many running servers for the rest of the test."""


class ServerFactory(Protocol):
    """The `server_factory` fixture."""

    def __call__(self, *, start: bool = True, **arguments: Any) -> Server:
        """Makes a server with keyword arguments of Server.create, and starts it."""


class ServerPool:
    """Servers of one engine with the default options, numbered from `server_id` 1."""

    def __init__(self, installation: Installation, directory: Path) -> None:
        self.installation = installation
        self._directory = directory
        self._made = 0
        self._idle: list[Server] = []
        self._lent: dict[Server, tuple[int | None, dict[str, str]]] = {}

    @property
    def engine(self) -> Engine:
        return self.installation.engine

    def borrow(self, count: int) -> list[Server]:
        """`count` running servers without user schemas or accounts, and with distinct server ids."""
        while len(self._idle) < count:
            fresh = []
            for _ in range(count - len(self._idle)):
                self._made += 1
                directory = self._directory / f"{self.engine}-{self._made}"
                fresh.append(Server.create(self.installation, directory, server_id=self._made))
            start_all(fresh)
            self._idle += fresh
        servers, self._idle = self._idle[:count], self._idle[count:]
        for server in servers:
            self._lent[server] = (server.pid, _global_variables(server))
        return servers

    def give_back(self, servers: Sequence[Server]) -> None:
        """Takes servers back from a test, in whatever state it left them."""
        for server in servers:
            pid, variables = self._lent.pop(server)
            if server.running and server.pid == pid and _restored(server, variables):
                self._idle.append(server)
            else:
                server.remove()

    def close(self) -> None:
        """Removes all servers."""
        for server in [*self._idle, *self._lent]:
            server.remove()
        self._idle.clear()
        self._lent.clear()


def _global_variables(server: Server) -> dict[str, str]:
    with server.connect() as connection, connection.cursor() as cursor:
        return _read_variables(cursor)


def _read_variables(cursor: Cursor) -> dict[str, str]:
    cursor.execute("SHOW GLOBAL VARIABLES")
    return {name: value for name, value in cursor.fetchall() if not name.startswith(_CHANGE_BY_THEMSELVES)}


def _restored(server: Server, variables: dict[str, str]) -> bool:
    """Makes the server as good as new. False if it is not to be had that way."""
    try:
        with server.connect(read_timeout=30) as connection, connection.cursor() as cursor:
            _end_other_sessions(cursor)
            cursor.execute("XA RECOVER")
            prepared = cursor.fetchall()
            cursor.execute("SHOW REPLICA STATUS" if server.engine == "mysql" else "SHOW SLAVE STATUS")
            if prepared or cursor.fetchall():
                return False
            _drop_what_tests_made(cursor)
            _reset_variables(cursor, variables)
            cursor.execute(_reset_binlog(server))
            return _read_variables(cursor) == variables
    except pymysql.err.MySQLError:
        return False


def _end_other_sessions(cursor: Cursor) -> None:
    """A session left open may hold locks that the clean-up would wait for."""
    cursor.execute("SELECT CONNECTION_ID()")
    ((own,),) = cursor.fetchall()
    cursor.execute("SHOW PROCESSLIST")
    for row in cursor.fetchall():
        thread, user, command = int(row[0]), row[1], row[4]
        if thread != own and user not in _SYSTEM_SESSIONS and command != "Daemon":
            with contextlib.suppress(pymysql.err.OperationalError):  # it has gone by itself
                cursor.execute(f"KILL {thread}")


def _drop_what_tests_made(cursor: Cursor) -> None:
    cursor.execute("SET SESSION foreign_key_checks = 0")
    cursor.execute("SHOW DATABASES")
    for (schema,) in cursor.fetchall():
        if schema.lower() not in _SYSTEM_SCHEMAS:
            cursor.execute(f"DROP DATABASE `{schema.replace('`', '``')}`")
    cursor.execute("SELECT user, host FROM mysql.user")
    for user, host in cursor.fetchall():
        if user not in _SYSTEM_ACCOUNTS:
            cursor.execute("DROP USER %s@%s", (user, host))


def _reset_variables(cursor: Cursor, variables: dict[str, str]) -> None:
    for name, value in _read_variables(cursor).items():
        if name in variables and value != variables[name]:
            wanted = variables[name]
            cursor.execute(f"SET GLOBAL {name} = {wanted}" if wanted.isdecimal() else f"SET GLOBAL {name} = '{wanted}'")


def _reset_binlog(server: Server) -> str:
    """The statement that begins a new history, so that the next test reads its own events only."""
    if server.engine == "mysql" and server.installation.version >= (8, 4, 0):
        return "RESET BINARY LOGS AND GTIDS"
    return "RESET MASTER"
