"""Preflight's look at the tables, repeated after every statement.

Preflight sees the tables of the start. A statement that runs later, here or at another site, may leave a table that
cannot be replicated: without a primary key, of another engine, with a foreign key whose cascades this server keeps to
itself. From then on nothing more of this site is proposed until the table is as it should be, or gone; apply goes on,
as the statement that mends it may come from another site.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pymysql

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.statements import classify
from mysqlraft.binlog.stream import file_number
from mysqlraft.mysql.finding import Finding, identifier
from mysqlraft.mysql.preflight import table_errors
from mysqlraft.replication.entry import Payload, PayloadKind, decode, kind_of


class TableGuard:
    """Whether what capture has read may be proposed. One thread; `statement_ahead` may be called from any.

    Invariant: a look that found every table fit covers what was committed here before it: every local statement up to
    ``_place`` in the binlog, and other sites' statements up to the log index ``_reached``.
    """

    def __init__(self, source: ServerKeySource, replicated: Callable[[str, str], bool]) -> None:
        self._source = source
        self._replicated = replicated
        self._place = (0.0, 0)
        self._reached = self._ahead = 0

    def close(self) -> None:
        self._source.close()

    def statement_ahead(self, log_index: int) -> None:
        """Apply is about to run another site's statement."""
        self._ahead = max(self._ahead, log_index)

    def errors(self, data: bytes, applied: int) -> tuple[Finding, ...]:
        """What keeps the payload `data` from being proposed. ``applied``: the log index in the tables.

        Raises:
            pymysql.err.MySQLError: the server cannot be asked.
        """
        payload = decode(data) if kind_of(data) is PayloadKind.DDL else None
        if self._ahead <= self._reached and (payload is None or _place(*payload.done) <= self._place):
            return ()
        if payload is not None:
            self._wait_for_effect(payload)
        place = _place(*self._source.binlog_end())
        errors = self._look()
        if errors:
            # A look takes several queries: a table that was dropped in between lacks everything in the later ones.
            still = set(self._look())
            errors = tuple(error for error in errors if error in still)
        if not errors:
            self._place, self._reached = place, applied
        return errors

    def _look(self) -> tuple[Finding, ...]:
        return table_errors(self._source.query, self._replicated)

    def _wait_for_effect(self, payload: Payload) -> None:
        """The binlog may hold a statement a moment before its effect can be seen, which the tables' locks outlast."""
        assert payload.ddl is not None
        for schema, table in classify(payload.ddl.statement, payload.ddl.schema).objects:
            if table is not None:
                with suppress(pymysql.err.ProgrammingError, pymysql.err.OperationalError):
                    self._source.query(f"SHOW CREATE TABLE {identifier(schema, table)}")


def _place(file: str, offset: int) -> tuple[float, int]:
    return file_number(file), offset
