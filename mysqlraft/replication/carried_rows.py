"""The rows of a table as a statement has left them, for statements that give each row a value of its own.

What AUTO_INCREMENT or a random default puts into the rows that are there differs from server to server, so the values
of the statement's own site have to win everywhere: the other sites run the statement, and then write these rows over
their own, in the statement's place in the log (`entry.Ddl.parts`).

The server itself is asked for the rows as the binlog holds them, so that every type is exact: they are copied, so many
at a time, into a table like theirs in the daemon's own schema, and read from the binlog under that name. The
application goes on writing meanwhile. What it has committed by then is in the rows, and comes once more as units, which
are behind the statement in the log and hold whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from mysqlraft.binlog.added_columns import column_change
from mysqlraft.binlog.changes import Rows
from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.position import StreamPosition, file_number
from mysqlraft.binlog.read_on import in_file
from mysqlraft.binlog.rows import Field, columns_of, pick, split
from mysqlraft.binlog.statements import classify
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.binlog.tablemap import Column, parse, renamed
from mysqlraft.binlog.values import literal
from mysqlraft.mysql.connection import Connect, Session, SessionLost, StatementError
from mysqlraft.mysql.finding import identifier
from mysqlraft.mysql.schema import SCHEMA, TableDefinition, describe, named
from mysqlraft.replication.apply_session import retryable
from mysqlraft.replication.binlog_statements import statements_after
from mysqlraft.replication.ddl import binlog_end
from mysqlraft.replication.entry import Change, ChangeKind

CHUNK = 1000
"""Rows copied together, at most."""
CHUNK_BYTES = 16 << 20
"""Bytes copied together, about: the copy is a transaction that server and binlog hold."""
_COPY = "carried"


@dataclass(slots=True)
class CarriedRows:
    """Whole rows, and their table map."""

    table: bytes
    changes: list[Change]


class RowsOfTable:
    """Reads the rows of a table that a statement has changed."""

    def __init__(
        self,
        connect: Connect,
        open_dump: Callable[[], DumpConnection],
        source: ServerKeySource,
        part_bytes: int,
        row_bytes: int,
    ) -> None:
        """``open_dump``: opens a dump connection that no other reader of this server ends. ``part_bytes``: rows come in
        pieces of about so many bytes. ``row_bytes``: a row has at most so many."""
        self._connect = connect
        self._open_dump = open_dump
        self._source = source
        self._part_bytes = part_bytes
        self._row_bytes = row_bytes

    def read(
        self, schema: str, table: str, since: tuple[str, int], converted: Collection[str] = ()
    ) -> Iterator[CarriedRows]:
        """All rows, as they are at some moment after ``since``, the place in the binlog where the statement ended. Each
        is whole, and no two need be of the same moment. ``converted``: columns that have other values elsewhere, so
        that a primary key of them would not find its row.

        Raises:
            BinlogError: they cannot be told, or a later statement has changed the table.
            SessionLost, ConnectionLost: the server is not there; try again.
        """
        session = Session(self._connect)
        try:
            yield from self._read(session, schema, table, converted)
            later = self._changed(session, schema, table, since)
        except StatementError as error:
            if retryable(error):
                raise SessionLost(str(error)) from error
            raise BinlogError(f"its rows cannot be copied to be carried: {error}") from error
        except BinlogError as error:
            raise BinlogError(str(error).replace(f"{SCHEMA}.{_COPY}", f"{schema}.{table}")) from error
        finally:
            session.close()
        if later:
            raise BinlogError(f"the table was changed again, by {later}, before its rows were carried")

    def _read(self, session: Session, schema: str, table: str, converted: Collection[str]) -> Iterator[CarriedRows]:
        definition = describe(session.query, schema, table)
        if definition is None or not definition.primary_key:
            raise BinlogError("the table is gone, or has no primary key, so its rows cannot be carried")
        key = {name.casefold() for name in definition.primary_key}
        if found := [name for name in converted if name.casefold() in key]:
            raise BinlogError(f"{found[0]} is in the primary key, by which the other sites would have to find the rows")
        copy = identifier(SCHEMA, _COPY)
        session.run([statement.encode() for statement in _settings(session.mariadb)])
        session.run(
            [
                f"DROP TABLE IF EXISTS {copy}".encode(),
                f"CREATE TABLE {copy} LIKE {definition.name}".encode(),
            ]
        )
        together = _together(session, schema, table)
        last: str | None = ""
        place = binlog_end(session)
        dump = self._open_dump()
        stream = TransactionStream(
            self._source,
            lambda schema, table: (schema, table) == (SCHEMA, _COPY),
            mariadb=session.mariadb,
            position=StreamPosition(*place, "", place),
            part_bytes=self._part_bytes,
            row_bytes=self._row_bytes,
            never=(),
        )
        try:
            dump.start_at(*place)
            while last is not None:
                session.run([_copied(definition, copy, last, together).encode()])
                last = None
                for rows in _through(dump, stream, binlog_end(session)):
                    carried, last = self._carried(rows, schema, table)
                    yield carried
                session.run([f"TRUNCATE TABLE {copy}".encode()])
        finally:
            dump.close()
            stream.close()
        session.run([f"DROP TABLE {copy}".encode()])

    def _carried(self, rows: Rows, schema: str, table: str) -> tuple[CarriedRows, str]:
        """The rows under the table's own name, and the condition for those behind them."""
        group = rows.groups[-1]
        table_map = parse(group.table)
        _, columns = columns_of(table_map, group.kind, group.layout)
        assert columns is not None
        *_, (_, last) = split(table_map, group.kind, group.layout, group.images[-1])
        assert last is not None
        order = [table_map.columns[index] for index, _ in table_map.primary_key]
        condition = _behind(order, pick(columns, order, last), self._source)
        changes = [
            Change(0, ChangeKind.WRITE, group.layout, group.count, b"".join(group.images)) for group in rows.groups
        ]
        return CarriedRows(renamed(group.table, schema, table), changes), condition

    def _changed(self, session: Session, schema: str, table: str, since: tuple[str, int]) -> str:
        """A statement in the binlog that has changed the table's columns or dropped it since; "" if there is none."""
        wanted = (schema.lower(), table.lower())
        for logged in statements_after(self._open_dump, in_file(*since), binlog_end(session)):
            text = logged.text(self._source.collations, mariadb=session.mariadb)
            met = [
                (name.lower(), None if other is None else other.lower())
                for name, other in classify(text, logged.event.schema).tables
            ]
            if wanted in met or (wanted[0], None) in met:
                change = column_change(text, logged.event.schema)
                if change.added or not change.whole:
                    return text[:200]
        return ""


def _settings(mariadb: bool) -> Iterator[str]:
    yield "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO', time_zone = '+00:00', foreign_key_checks = 0"
    yield "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
    if mariadb:
        yield "SET SESSION binlog_annotate_row_events = OFF, max_statement_time = 0"
    else:
        yield "SET SESSION binlog_rows_query_log_events = OFF"


def _together(session: Session, schema: str, table: str) -> int:
    """How many rows are copied together."""
    found = session.query(
        "SELECT avg_row_length FROM information_schema.tables"
        f" WHERE {named('table_schema', schema, 'table_name', table)}"
    )
    length = int(found[0][0] or 0) if found else 0
    return max(1, min(CHUNK, CHUNK_BYTES // max(1, length)))


def _copied(definition: TableDefinition, copy: str, condition: str, together: int) -> str:
    """The statement that copies the next rows in the order of the primary key."""
    columns = ", ".join(identifier(column.name) for column in definition.columns if not column.computed)
    order = ", ".join(identifier(name) for name in definition.primary_key)
    where = f" WHERE {condition}" if condition else ""
    rows = f"SELECT {columns} FROM {definition.name}{where} ORDER BY {order} LIMIT {together}"
    return f"INSERT INTO {copy} ({columns}) {rows}"


def _behind(order: Sequence[Column], key: Sequence[Field | None], source: ServerKeySource) -> str:
    """SQL for the rows behind the one with this primary key."""
    found = []
    equal: list[str] = []
    for column, value in zip(order, key, strict=True):
        assert value is not None, "a primary key has no NULL"
        name, text = identifier(column.name), literal(column, value, source.collations)
        found.append("(" + " AND ".join([*equal, f"{name} > {text}"]) + ")")
        equal.append(f"{name} = {text}")
    return " OR ".join(found)


def _through(dump: DumpConnection, stream: TransactionStream, end: tuple[str, int]) -> Iterator[Rows]:
    """What the stream reads up to a place."""
    wanted = file_number(end[0]), end[1]
    while (file_number(stream.position.file), stream.position.offset) < wanted:
        for item in stream.read(dump.batch()):
            # The last part of a transaction may have none.
            if isinstance(item, Rows) and item.groups:
                yield item
