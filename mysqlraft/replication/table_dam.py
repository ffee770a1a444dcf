"""A dam before a table: transactions that have used it go on, others wait.

Locks on a gap between rows do not queue. Any number of sessions may hold them at once, and a row that is to be inserted
there waits until none does. Sessions that take such locks one after the other, each for a moment, would keep it out for
ever. So somebody has to keep new ones from coming: a second session asks for LOCK TABLES ... WRITE. It does not get it
while apply uses the table, but all that come later wait behind it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft.mysql.connection import Connect

log = logging.getLogger(__name__)

SECONDS = 10
"""How long a dam stands at most. A transaction that has only read the table, and is about to write to it, waits behind
the dam with its locks: no server sees that."""
_NO_SUCH_THREAD = 1094


class TableDam:
    """Stands, in a thread of its own, until `end`, or until its time is over. ``problem``: why it could not be made."""

    def __init__(self, connect: Connect, table: str, reason_to_stand: Callable[[], bool]) -> None:
        """``table``: quoted. ``reason_to_stand``: asked once the connection is there."""
        self.problem = ""
        self._connect, self._table, self._reason_to_stand = connect, table, reason_to_stand
        self._connection: Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="dam", daemon=True)
        self._thread.start()

    @property
    def stands(self) -> bool:
        return self._thread.is_alive()

    def end(self, query: Callable[[str], object]) -> None:
        """Takes it away, with ``query`` on another connection of the same account."""
        connection = self._connection
        if connection is not None and self.stands:
            try:
                query(f"KILL CONNECTION {connection.thread_id()}")  # type: ignore[no-untyped-call]
            except pymysql.err.MySQLError as error:
                if error.args[0] != _NO_SUCH_THREAD:
                    raise

    def _run(self) -> None:
        try:
            connection = self._connect()
            try:
                connection._read_timeout = 2 * SECONDS  # type: ignore[attr-defined]
                with connection.cursor() as cursor:
                    cursor.execute(f"SET SESSION lock_wait_timeout = {SECONDS}")
                    self._connection = connection
                    if self._reason_to_stand():
                        log.info("apply waits for a gap in %s: transactions that begin to use it now wait", self._table)
                        cursor.execute(f"LOCK TABLES {self._table} WRITE")
            finally:
                with suppress(pymysql.err.MySQLError, OSError):
                    connection._force_close()  # type: ignore[attr-defined]
        except (pymysql.err.MySQLError, OSError) as error:
            self.problem = str(error)
