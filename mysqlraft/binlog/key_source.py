"""The unique keys of tables and the folds of collations, asked of the site's server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft.binlog.collations import Collations, Fold
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import KeyDefinition, KeyPart
from mysqlraft.binlog.statement_text import characters_of, statement_text
from mysqlraft.mysql import opening
from mysqlraft.mysql.definitions import SETTINGS
from mysqlraft.mysql.finding import identifier
from mysqlraft.mysql.schema import named, quoted

_DENIED = (1044, 1142, 1143, 1227)
_GONE = (1049, 1146, 1051, 1305, 1360, 1539)
"""Errors that say a table, its schema, a routine, a trigger or an event does not exist."""


_EXTRA = 5
"""The column of SHOW COLUMNS that says how a column gets its values."""


class ServerKeySource:
    """A `KeySource` over a connection of its own, opened when first needed, and again when it has broken or is so old
    that the address may lead to another server by now.

    On MariaDB SHOW CREATE TABLE makes an ALTER TABLE of the application's under LOCK TABLES, as dumps have them, the
    victim of a deadlock. No other question does, so the same is found out by those.
    """

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None
        self._opened = 0.0
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
            code = error.args[0] if error.args else 0
            if code in _DENIED:
                self.close()  # rights that are given back are those of the next connection
            if code in _DENIED or code in _GONE:
                raise
            self.close()
            return self._run(statement)

    def _run(self, statement: str) -> Sequence[Sequence[Any]]:
        if self._connection is None:
            self._connection, self._opened = self._open(), time.monotonic()
        elif time.monotonic() - self._opened > opening.RENEW_SECONDS:
            self._connection, self._opened = opening.renewed(self._connection, self._open), time.monotonic()
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _open(self) -> Connection[Any]:
        connection = self._connect()
        # With each connection: the next question may come over another one.
        with connection.cursor() as cursor:
            cursor.execute(SETTINGS)
        return connection

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

    def columns(self, schema: str, table: str) -> list[str] | None:
        """The names of a table's columns as it is now, as far as anybody sees them; None if it is gone."""
        try:
            return [str(row[0]) for row in self.query(f"SHOW COLUMNS FROM {identifier(schema, table)}")]
        except pymysql.err.MySQLError as error:
            if error.args and error.args[0] in _GONE:
                return None
            raise

    def generated_columns(self, schema: str, table: str) -> frozenset[str]:
        """The names of a table's generated columns as it is now; none if it is gone."""
        try:
            columns = self.query(f"SHOW COLUMNS FROM {identifier(schema, table)}")
        except pymysql.err.MySQLError as error:
            if error.args and error.args[0] in _GONE:
                return frozenset()
            raise
        return frozenset(str(row[0]) for row in columns if " GENERATED" in str(row[_EXTRA]))

    def fold(self, collation: int) -> Fold:
        return self.collations.fold(collation)

    def text(self, statement: bytes, collation: int) -> str:
        """A statement of a client with this collation's character set, as text."""
        return statement_text(statement, collation, self.collations)

    def characters(self, statement: bytes, collation: int) -> list[bytes]:
        """The characters of such a statement."""
        return characters_of(statement, collation, self.collations)

    def unique_keys(self, schema: str, table: str) -> list[KeyDefinition] | None:
        """The unique keys of a table as it is now, without the primary key; None if it is gone.

        Raises:
            BinlogError: the account may not see the table.
        """
        name = identifier(schema, table)
        create, periods = "", False
        try:
            indexes = self.query(f"SHOW INDEX FROM {name}")
            if self.is_mariadb() and (ends := _ends_of_periods(indexes)):
                types = {row[0]: str(row[1]) for row in self.query(f"SHOW COLUMNS FROM {name}")}
                periods = any(types[start] == types[end] and types[start].startswith(_TEMPORAL) for start, end in ends)
            if periods:
                # Asked only where nothing else would tell, see above.
                create = str(self.query(f"SHOW CREATE TABLE {name}")[0][1])
        except pymysql.err.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in _GONE:
                return None
            if code in _DENIED:
                raise BinlogError(f"the account may not read the definition of {name}: GRANT SELECT on it") from None
            raise
        return _definitions(indexes, create)

    def writes_only(self, schema: str, table: str, calls: Sequence[str]) -> bool:
        """Whether what writes this table, and calls functions of these names, writes no other: it is a table, without
        triggers, and none of the functions is a stored one.

        Raises:
            pymysql.err.MySQLError: the server cannot be asked.
        """
        kinds = self.query(
            "SELECT table_type FROM information_schema.tables"
            f" WHERE {named('table_schema', schema, 'table_name', table)}"
        )
        if [str(row[0]) for row in kinds] != ["BASE TABLE"]:
            return False
        others = "SELECT 1 FROM information_schema.triggers WHERE " + named(
            "event_object_schema", schema, "event_object_table", table
        )
        if calls:
            names = ", ".join(quoted(name) for name in dict.fromkeys(calls))
            others += f" UNION SELECT 1 FROM information_schema.routines WHERE routine_name IN ({names})"
        return not self.query(others)

    def definition(self, schema: str, table: str) -> str:
        """All that a statement can change of a table and preflight looks at, as text; rows that are inserted change
        none of it. Waits for whoever is changing the table.

        Raises:
            pymysql.err.MySQLError: the server cannot tell, or there is no such table.
        """
        name = identifier(schema, table)
        if not self.is_mariadb():
            return _COUNTER.sub("", str(self.query(f"SHOW CREATE TABLE {name}")[0][1]))
        indexes = [(*row[:_CARDINALITY], *row[_CARDINALITY + 1 :]) for row in self.query(f"SHOW INDEX FROM {name}")]
        others = (
            f"SHOW FULL COLUMNS FROM {name}",
            "SELECT table_type, engine, create_options FROM information_schema.tables"
            f" WHERE {named('table_schema', schema, 'table_name', table)}",
            "SELECT constraint_name, delete_rule, update_rule FROM information_schema.referential_constraints"
            f" WHERE {named('constraint_schema', schema, 'table_name', table)}",
        )
        return repr([indexes, *map(self.query, others)])

    def version(self) -> str:
        """What the server says that it is."""
        return str(self.query("SELECT VERSION()")[0][0])

    def system_offset_at(self, timestamp: str) -> int:
        """How many seconds the time zone SYSTEM was before UTC at a moment, in seconds since 1970."""
        utc = f"TIMESTAMPADD(SECOND, {int(float(timestamp))}, '1970-01-01')"
        return int(self.query(f"SELECT {_AFTER_UTC.format(utc=utc)}")[0][0])

    def system_offsets_of(self, literals: Sequence[str]) -> set[int]:
        """The same at these times of its own, as far as they are times that a TIMESTAMP can hold."""
        found: set[int] = set()
        for literal in literals:
            local = f"CAST({quoted(literal)} AS DATETIME)"
            ((year, seconds),) = self.query(
                f"SELECT YEAR({local}), TIMESTAMPDIFF(SECOND, CONVERT_TZ({local}, 'SYSTEM', '+00:00'), {local})"
            )
            if seconds is not None and year in _OF_TIMESTAMPS:
                found.add(int(seconds))
        return found

    def system_zone_varies(self) -> bool:
        """Whether the time zone SYSTEM has ever been another offset from UTC: it is asked for at 1,000 moments."""
        digits = " UNION ALL ".join(f"SELECT {digit} AS n" for digit in range(10))
        utc = f"TIMESTAMPADD(DAY, {_DAYS_APART} * (a.n + 10 * b.n + 100 * c.n), '1970-01-02')"
        tables = ", ".join(f"({digits}) AS {name}" for name in "abc")
        return int(self.query(f"SELECT COUNT(DISTINCT {_AFTER_UTC.format(utc=utc)}) FROM {tables}")[0][0]) > 1

    def is_mariadb(self) -> bool:
        if self._connection is None:
            self._connection = self._connect()
        return "MariaDB" in str(getattr(self._connection, "server_version", ""))


_AFTER_UTC = "TIMESTAMPDIFF(SECOND, {utc}, CONVERT_TZ({utc}, '+00:00', 'SYSTEM'))"
_OF_TIMESTAMPS = range(1970, 2107)
"""The years that a TIMESTAMP may be in."""
_DAYS_APART = 24
"""Days between two of the 1,000 moments, so that the last is before 2038."""
_CARDINALITY = 6
_COUNTER = re.compile(r" AUTO_INCREMENT=\d+")
"""What inserting a row changes of a definition."""
_TEMPORAL = ("date", "timestamp")


def _ends_of_periods(indexes: Sequence[Sequence[Any]]) -> list[tuple[str, str]]:
    """The last two columns of each unique key that may have a period WITHOUT OVERLAPS: they are its two ends."""
    parts: dict[str, list[Sequence[Any]]] = {}
    for row in indexes:
        if not int(row[1]):
            parts.setdefault(row[2], []).append(row)
    return [
        (rows[-2][4], rows[-1][4]) for rows in parts.values() if len(rows) > 2 and not rows[-2][9] and not rows[-1][9]
    ]


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
