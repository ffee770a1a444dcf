"""A session at the site's server that runs many statements in one round trip.

PyMySQL opens the connection; statements then go out several to a packet. Answers are counted, not asked for: the flag
"more results follow" is missing from the answer to a BINLOG statement (both servers), so it cannot be relied on.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import pymysql
from pymysql.connections import Connection
from pymysql.constants import COMMAND

Connect = Callable[[], "Connection[Any]"]
"""Opens a connection of the daemon's account, in autocommit mode."""

TOO_LARGE = 1153
"""The error for a packet larger than the server takes; it would end the connection instead of saying so."""
_COM_SET_OPTION = 0x1B
_MULTI_STATEMENTS_ON = b"\0\0"
_MULTI_STATEMENTS_OFF = b"\1\0"
MAY_PASS = (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError)
"""PyMySQL's errors of a connection, and of a server that lacks something (InternalError: room for its own files)."""
_LOST = frozenset((0, 1053, 1077, 1927, 4031))
"""Errors after which the connection is of no use: shutting down, killed, timed out; 0: not from the server."""


class StatementError(Exception):
    """The server refused the statement at `position` of a packet; it ran those before it and none after it."""

    def __init__(self, position: int, code: int, message: str) -> None:
        super().__init__(f"error {code}: {message}")
        self.position, self.code, self.message = position, code, message


class SessionLost(Exception):
    """The connection is gone. What it had not committed is rolled back; whether a COMMIT on the way ran is unknown."""


class Session:
    """One connection. Not for several threads at once, but for ``waiting_since`` and `abort`.

    ``waiting_since``: when it began to wait for the answer that it waits for now, by `time.monotonic`; None: for none.
    ``max_packet``: bytes that may be sent together; the server ends the connection over more.
    """

    def __init__(self, connect: Connect) -> None:
        """Raises SessionLost if there is no server to be reached, StatementError if it refuses the account."""
        self.waiting_since: float | None = None
        try:
            self._connection = cast(Any, connect())
            self._command(_COM_SET_OPTION, _MULTI_STATEMENTS_ON)
            self.max_packet = 1 << 10  # until it is known
            version, packet = self.query("SELECT VERSION(), @@max_allowed_packet")[0]
        except (pymysql.err.MySQLError, OSError) as error:
            raise _translated(error, 0) from None
        self.version = str(version)
        self.max_packet = int(packet)
        self.mariadb = "mariadb" in self.version.lower()
        self.id = int(self._connection.thread_id())

    def query(self, sql: str) -> Sequence[Sequence[Any]]:
        """The rows of one statement."""
        return self.queries([sql])[0]

    def queries(self, statements: Sequence[str]) -> list[Sequence[Sequence[Any]]]:
        """The rows of each statement, none of which is a BINLOG, in one round trip if they fit into one packet."""
        found: list[Sequence[Sequence[Any]]] = []
        try:
            with self._connection.cursor() as cursor, self._waiting():
                for together in _packets([statement.encode() for statement in statements], self.max_packet):
                    cursor.execute(b";".join(together))
                    found.append(cursor.fetchall())
                    while cursor.nextset():
                        found.append(cursor.fetchall())
        except (pymysql.err.MySQLError, OSError) as error:
            raise _translated(error, len(found)) from None
        return found

    def run(self, statements: Sequence[bytes]) -> None:
        """Runs statements that return no rows, in one round trip if they fit into one packet.

        Raises:
            StatementError: the server refused one; those after it did not run.
            SessionLost: the connection broke.
        """
        done = 0
        for together in _packets(statements, self.max_packet):
            try:
                self.send(together)
                self.receive(len(together))
            except StatementError as error:
                raise StatementError(done + error.position, error.code, error.message) from None
            done += len(together)

    def use(self, schema: str) -> None:
        """Makes it the default schema. Its name is sent as it is, so no character set can make a statement of it.

        Raises:
            StatementError: there is no such schema, or the account may not use it.
            SessionLost: the connection broke.
        """
        self._command(COMMAND.COM_INIT_DB, schema.encode("utf-8", "surrogateescape"))

    def run_foreign(self, statement: bytes) -> None:
        """Runs one statement that somebody else wrote, in whatever character set the session now expects. The server
        refuses it if it finds several in it. Raises as `run` does."""
        self._check_size(statement)
        self._command(_COM_SET_OPTION, _MULTI_STATEMENTS_OFF)
        try:
            self._command(COMMAND.COM_QUERY, statement)
        finally:
            self._command(_COM_SET_OPTION, _MULTI_STATEMENTS_ON)

    def _command(self, command: int, argument: bytes) -> None:
        try:
            # _execute_command and _read_packet are PyMySQL's own plumbing; they have been stable since 0.5.
            self._connection._execute_command(command, argument)
            with self._waiting():
                self._connection._read_packet()
        except (pymysql.err.MySQLError, OSError) as error:
            raise _translated(error, 0) from None

    def send(self, statements: Sequence[bytes]) -> None:
        """Sends statements that return no rows, and does not wait: `receive` the answers before anything else."""
        packet = b";".join(statements)
        self._check_size(packet)
        try:
            # PyMySQL cuts what is larger than a packet of the protocol again and again: a view is not copied.
            self._connection._execute_command(COMMAND.COM_QUERY, memoryview(packet))
        except (pymysql.err.MySQLError, OSError) as error:
            raise _translated(error, 0) from None

    def _check_size(self, packet: bytes) -> None:
        """The server ends the connection over a packet that is too large."""
        if len(packet) >= self.max_packet:
            wanted = 1 << (2 * len(packet)).bit_length()
            raise StatementError(
                0,
                TOO_LARGE,
                f"{len(packet)} bytes to be sent at once are more than this server's max_allowed_packet of "
                f"{self.max_packet}: SET GLOBAL max_allowed_packet = {wanted}",
            )

    def answered(self) -> bool:
        """Whether something of the answer to what was sent has arrived."""
        return bool(select.select([self._connection._sock], [], [], 0)[0])

    def receive(self, count: int) -> None:
        """Waits for the answers to `count` statements. Raises as `run` does."""
        answered = 0
        try:
            while answered < count:
                self.waiting_since = time.monotonic()
                self._connection._read_packet()
                answered += 1
        except (pymysql.err.MySQLError, OSError) as error:
            raise _translated(error, answered) from None
        finally:
            self.waiting_since = None

    def wait_patiently(self) -> None:
        """From now on an answer may take any time: somebody else finds out whether the server still works on it."""
        self._connection._read_timeout = None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waiting_since = time.monotonic()
        try:
            yield
        finally:
            self.waiting_since = None

    def abort(self) -> None:
        """Makes the thread that waits for an answer stop waiting, with SessionLost."""
        if (open_socket := self._connection._sock) is not None:
            with suppress(OSError):  # it may be closed by now
                # Not the TLS socket's own method: that one lets a reader go on with what is still encrypted.
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(pymysql.err.MySQLError, OSError):
            self._connection._force_close()


def _packets(statements: Sequence[bytes], limit: int) -> Iterator[Sequence[bytes]]:
    """As many at a time as fit into `limit` bytes, at least one."""
    first = size = 0
    for position, statement in enumerate(statements):
        if size + len(statement) + 1 >= limit and position > first:
            yield statements[first:position]
            first, size = position, 0
        size += len(statement) + 1
    if first < len(statements):
        yield statements[first:]


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a server's version: (9, 7, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.removeprefix("5.5.5-"))[:3])


def _translated(error: Exception, position: int) -> StatementError | SessionLost:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    message = str(error.args[1]) if len(error.args) > 1 else str(error)
    if isinstance(error, OSError | pymysql.err.InterfaceError) or code in _LOST or 2000 <= code < 3000:
        return SessionLost(message)
    return StatementError(position, code, message)
