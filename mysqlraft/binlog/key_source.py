"""The unique keys of tables and the folds of collations, asked of the site's server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft.binlog.collations import Collations, Fold
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import KeyDefinition, KeyPart

_GONE = (1049, 1146, 1051)
"""Errors that say a table or its schema does not exist."""


class ServerKeySource:
    """A `KeySource` over a connection of its own, opened when first needed and again after it broke."""

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None
        self._status = "SHOW BINARY LOG STATUS"
        self.collations = Collations(self.query)

    def close(self) -> None:
        if self._connection is not None:
            with suppress(pymysql.err.Error, OSError):
                self._connection.close()
            self._connection = None

    def query(self, statement: str) -> Sequence[Sequence[Any]]:
        """Runs a statement that only reads.

        Raises:
            pymysql.err.Error: the server refuses it, or cannot be reached a second time either.
        """
        try:
            return self._run(statement)
        except (pymysql.err.InterfaceError, pymysql.err.OperationalError) as error:
            if error.args and error.args[0] in (1142, 1143, 1044, 1227, *_GONE):
                raise
            self.close()
            return self._run(statement)

    def _run(self, statement: str) -> Sequence[Sequence[Any]]:
        if self._connection is None:
            self._connection = self._connect()
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def binlog_end(self) -> tuple[str, int]:
        """File and offset where the server's binlog ends."""
        try:
            rows = self.query(self._status)
        except pymysql.err.ProgrammingError:  # MySQL < 8.2
            self._status = "SHOW MASTER STATUS"
            rows = self.query(self._status)
        if not rows:
            raise BinlogError("the server writes no binlog: start it with log_bin")
        return str(rows[0][0]), int(rows[0][1])

    def fold(self, collation: int) -> Fold:
        return self.collations.fold(collation)

    def unique_keys(self, schema: str, table: str) -> list[KeyDefinition] | None:
        """The unique keys of a table as it is now, without the primary key; None if it is gone.

        Raises:
            BinlogError: the account may not see the table.
        """
        name = f"`{schema.replace('`', '``')}`.`{table.replace('`', '``')}`"
        try:
            indexes = self.query(f"SHOW INDEX FROM {name}")
            create = str(self.query(f"SHOW CREATE TABLE {name}")[0][1])
        except pymysql.err.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in _GONE:
                return None
            if code in (1142, 1143, 1044):
                raise BinlogError(f"the account may not read the definition of {name}: GRANT SELECT on it") from None
            raise
        return _definitions(indexes, create)


_PERIOD = re.compile(r"KEY `((?:[^`]|``)*)` \(.* WITHOUT OVERLAPS\)")


def _definitions(indexes: Sequence[Sequence[Any]], create: str) -> list[KeyDefinition]:
    """From SHOW INDEX: 1 non-unique, 2 key, 4 column, 7 prefix length, 14 expression (MySQL)."""
    periods = {match.replace("``", "`") for match in _PERIOD.findall(create)}
    parts: dict[str, list[KeyPart]] = {}
    refusals: dict[str, str] = {}
    for row in indexes:
        unique, key, column, prefix = not int(row[1]), row[2], row[4], row[7]
        if not unique or key == "PRIMARY":
            continue
        if column is None:
            refusals[key] = f"is on the expression {row[14]}, whose values are not in the binlog"
        elif key in periods:
            refusals[key] = "has a period WITHOUT OVERLAPS, whose rows collide without being equal"
        parts.setdefault(key, []).append(KeyPart(str(column), int(prefix or 0)))
    return [KeyDefinition(key, tuple(found), refusals.get(key, "")) for key, found in parts.items()]
