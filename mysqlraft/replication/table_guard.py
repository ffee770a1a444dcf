"""Preflight's look at the tables, repeated when capture starts and after every statement.

A statement that runs here or at another site may leave a table that cannot be replicated: without a primary key, of
another engine, with a foreign key whose cascades this server keeps to itself. From then on nothing more of this site is
proposed until the table is as it should be, or gone; apply goes on, as the statement that mends it may come from
another site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pymysql
from pymysql.constants import CR, ER

from mysqlraft.binlog.statements import classify
from mysqlraft.mysql.finding import Finding
from mysqlraft.mysql.preflight import table_errors
from mysqlraft.replication.entry import PayloadKind, decode, kind_of

_GONE = {ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR}
_CUT_SHORT = {
    ER.LOCK_WAIT_TIMEOUT,
    ER.QUERY_INTERRUPTED,
    ER.STATEMENT_TIMEOUT,
    ER.SERVER_SHUTDOWN,
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
}
"""Errors that say nothing about the table: whoever is changing it was not waited for."""


class Source(Protocol):
    """A connection that only reads; `ServerKeySource` is one."""

    def query(self, statement: str) -> Sequence[Sequence[Any]]: ...
    def definition(self, schema: str, table: str) -> str: ...
    def close(self) -> None: ...


class TableGuard:
    """Whether what capture has read may be proposed. One thread; `statement_ahead` may be called from any.

    A *look* asks the server about every table. Invariant: what was committed while a table could not be replicated
    leaves only after a look that found all tables fit again. Only statements change what a look finds, so a payload
    that has been read leaves

    - after a look of its own, if it is a statement. One from before may have been too early to see it, as a statement
      can be in the binlog before its effect shows. All that was committed here after a local statement comes after it;
    - without, if every statement of another site that apply has announced was covered by a look, those up to log index
      ``_reached``. What is announced later runs later;
    - without, while such a statement runs, if the tables that it names are what they were before the last look that
      found all fit: then it has had no effect yet, and had none when the payload was read. Nothing else would tell. Its
      effect shows some time before its index is in the tables, and what is committed here in between has the same base
      as what came before it;
    - after a look otherwise, so once the index of the statement is in the tables.
    """

    def __init__(self, source: Source, replicated: Callable[[str, str], bool]) -> None:
        self._source = source
        self._replicated = replicated
        self._reached = -1
        self._ahead: tuple[int, tuple[tuple[str, str | None], ...]] = 0, ()
        """The last statement that was announced: its log index and its tables."""
        self._before: tuple[int, tuple[str, ...]] | None = None
        """Log index of the statement that was ahead at the last look that found all fit, and what its tables were."""

    def close(self) -> None:
        self._source.close()

    def statement_ahead(self, log_index: int, tables: Iterable[tuple[str, str | None]]) -> None:
        """Apply is about to run another site's statement, on these tables; table None: on anything in the schema."""
        self._ahead = log_index, tuple(tables)

    def errors(self, data: bytes, applied: int) -> tuple[Finding, ...]:
        """What keeps the payload `data` from being proposed. ``applied``: a log index that the tables hold.

        Raises:
            pymysql.err.MySQLError: the server cannot be asked.
        """
        if kind_of(data) is PayloadKind.DDL:
            self._wait_for_effect(data)
        elif self._ahead[0] <= self._reached or self._unchanged(applied):
            return ()
        return self.look(applied)

    def look(self, applied: int) -> tuple[Finding, ...]:
        """What keeps any table from being replicated. ``applied``: a log index that the tables hold.

        Raises:
            pymysql.err.MySQLError: the server cannot be asked.
        """
        ahead, tables = self._ahead
        before = self._definitions(tables) if applied < ahead else None
        errors = table_errors(self._source.query, self._replicated)
        if errors:
            # A look takes several queries: a table that was dropped in between lacks everything in the later ones.
            still = set(table_errors(self._source.query, self._replicated))
            errors = tuple(error for error in errors if error in still)
        if not errors:
            self._reached = applied
            self._before = None if before is None else (ahead, before)
        return errors

    def _unchanged(self, applied: int) -> bool:
        """Whether the statement ahead is still without effect on its tables."""
        ahead, tables = self._ahead
        if applied >= ahead or self._before is None or self._before[0] != ahead:
            return False
        return self._definitions(tables) == self._before[1]

    def _definitions(self, tables: Iterable[tuple[str, str | None]]) -> tuple[str, ...] | None:
        """What the tables are, "" for one that is not there; None if that is not known of all of them."""
        found = []
        for schema, table in tables:
            if table is None:
                return None
            definition = self._definition(schema, table)
            if definition is None:
                return None
            found.append(definition)
        return tuple(found)

    def _definition(self, schema: str, table: str) -> str | None:
        """What the table is, "" if it is not there, None if the server cannot tell: such an error is the same before
        and after a statement. Waits for whoever is changing the table."""
        try:
            return self._source.definition(schema, table)
        except pymysql.err.MySQLError as error:
            if error.args[0] in _CUT_SHORT:
                raise
            return "" if error.args[0] in _GONE else None

    def _wait_for_effect(self, data: bytes) -> None:
        """The binlog may hold a statement a moment before its effect can be seen, which the tables' locks outlast."""
        ddl = decode(data).ddl
        assert ddl is not None
        for schema, table in classify(ddl.text, ddl.schema).objects:
            if table is not None:
                self._definition(schema, table)
