"""Preflight's look at the tables, repeated after every statement.

Preflight sees the tables of the start. A statement that runs later, here or at another site, may leave a table that
cannot be replicated: without a primary key, of another engine, with a foreign key whose cascades this server keeps to
itself. From then on nothing more of this site is proposed until the table is as it should be, or gone; apply goes on,
as the statement that mends it may come from another site.
"""

from __future__ import annotations

from collections.abc import Callable

import pymysql
from pymysql.constants import CR, ER

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.statements import classify
from mysqlraft.mysql.finding import Finding, identifier
from mysqlraft.mysql.preflight import table_errors
from mysqlraft.replication.entry import Payload, PayloadKind, decode, kind_of

_NOT_SEEN = {ER.LOCK_WAIT_TIMEOUT, CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST}
"""Errors that say nothing about the table."""


class TableGuard:
    """Whether what capture has read may be proposed. One thread; `statement_ahead` may be called from any.

    Every local statement gets a look of its own: the one before may have been too early to see it, as a statement can
    be in the binlog before its effect shows. A look that found every table fit covers other sites' statements up to
    the log index ``_reached``.
    """

    def __init__(self, source: ServerKeySource, replicated: Callable[[str, str], bool]) -> None:
        self._source = source
        self._replicated = replicated
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
        if kind_of(data) is PayloadKind.DDL:
            self._wait_for_effect(decode(data))
        elif self._ahead <= self._reached:
            return ()
        errors = self._look()
        if errors:
            # A look takes several queries: a table that was dropped in between lacks everything in the later ones.
            still = set(self._look())
            errors = tuple(error for error in errors if error in still)
        if not errors:
            self._reached = applied
        return errors

    def _look(self) -> tuple[Finding, ...]:
        return table_errors(self._source.query, self._replicated)

    def _wait_for_effect(self, payload: Payload) -> None:
        """The binlog may hold a statement a moment before its effect can be seen, which the tables' locks outlast."""
        assert payload.ddl is not None
        for schema, table in classify(payload.ddl.statement, payload.ddl.schema).objects:
            if table is not None:
                try:
                    self._source.query(f"SHOW CREATE TABLE {identifier(schema, table)}")
                except pymysql.err.MySQLError as error:
                    if error.args[0] in _NOT_SEEN:
                        raise
                    # It is gone, or no table.
