"""Reading a test server's binlog: what the statements of a test wrote, event by event or row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pymysql.connections import Connection

from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import HEADER, EventType
from mysqlraft.binlog.rows import columns_of, split
from mysqlraft.binlog.tablemap import Column, TableMap, parse
from mysqlraft.replication.capture import position_now
from mysqlraft.sandbox.servers import Server

_KINDS = {
    EventType.WRITE_ROWS: 0,
    EventType.UPDATE_ROWS: 1,
    EventType.DELETE_ROWS: 2,
    EventType.WRITE_ROWS_V1: 0,
    EventType.UPDATE_ROWS_V1: 1,
    EventType.DELETE_ROWS_V1: 2,
}


def logs_generated_columns(server: Server) -> bool:
    """MariaDB 11.8 logs those of new rows only."""
    return server.engine == "mysql" or server.installation.version < (11, 8, 0)


def settings(server: Server) -> dict[str, Any]:
    """Keyword arguments of pymysql.connect for this server."""
    return {
        "unix_socket": str(server.socket),
        "user": server.user,
        "password": server.password,
        "charset": "utf8mb4",
        "autocommit": True,
        "ssl_disabled": True,
    }


def run(connection: Connection[Any], *statements: str) -> Sequence[Sequence[Any]]:
    """Runs statements; the rows of the last."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


def events(server: Server, *statements: str, sql_mode: str = "") -> list[bytes]:
    """The events that the statements write, in order."""
    with server.connect() as connection:
        run(connection, f"SET sql_mode = '{sql_mode}'", "SET time_zone = '+00:00'")
        begin = position_now(connection)
        run(connection, *statements)
        end = position_now(connection)
    dump = DumpConnection(settings(server), 900_001)
    try:
        dump.start_at(begin.file, begin.offset)
        found: list[bytes] = []
        while True:
            for event in dump.batch():
                assert not isinstance(event, LargeEvent)
                if event[4] not in (EventType.FORMAT_DESCRIPTION, EventType.ROTATE, EventType.HEARTBEAT):
                    found.append(event)
                    # MariaDB from 11.4 on gives a place only to events that begin or end a transaction.
                    if int.from_bytes(event[13:17], "little") >= end.offset:
                        return found
    finally:
        dump.close()


@dataclass(frozen=True)
class RowsEvent:
    """One rows event, taken apart."""

    table: TableMap
    kind: int
    layout: bytes
    images: bytes

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of its last image."""
        before, after = columns_of(self.table, self.kind, self.layout)
        return after or before or ()

    def rows(self) -> list[tuple[bytes | None, bytes | None]]:
        return list(split(self.table, self.kind, self.layout, self.images))


def rows_events(found: Sequence[bytes]) -> Iterator[RowsEvent]:
    """The rows events among these."""
    table = None
    for event in found:
        if event[4] == EventType.TABLE_MAP:
            table = parse(event[HEADER + 8 :])
        elif event[4] in _KINDS:
            assert table is not None
            kind = _KINDS[EventType(event[4])]
            start = HEADER + 8
            if event[4] >= EventType.WRITE_ROWS:
                start += int.from_bytes(event[start : start + 2], "little")
            width = (len(table.columns) + 7) // 8
            middle = start + (1 if len(table.columns) < 251 else 3) + width * (2 if kind == 1 else 1)
            yield RowsEvent(table, kind, event[start:middle], event[middle:])
