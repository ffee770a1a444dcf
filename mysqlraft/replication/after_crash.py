"""Statements that a MariaDB server writes into its binlog when it comes back from a crash.

It had carried them out, or half of them, and not written them yet. Their thread is none, so what was apply's has to be
told from the application's otherwise: apply stores what it is about to run (`ddl.Intent`), and moves the progress row
once that has run. It was apply's if the progress row that the binlog holds last before it names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.errors import ConnectionLost
from mysqlraft.binlog.events import HEADER, EventType, rotate
from mysqlraft.binlog.own_schema import PROGRESS, read_intent
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.rows import layout_of
from mysqlraft.binlog.statements import Statement
from mysqlraft.binlog.stream import ROWS_EVENTS
from mysqlraft.binlog.tablemap import TableMap, names, parse
from mysqlraft.replication.ddl import unpacked

Query = Callable[[str], Sequence[Sequence[Any]]]


class RunAtCrash:
    """Whether apply was running a statement when the server crashed."""

    def __init__(self, open_dump: Callable[[], DumpConnection], ask: Query, stopping: Callable[[], bool]) -> None:
        """As of `FinishedBefore`."""
        self._open_dump = open_dump
        self._ask = ask
        self._stopping = stopping

    def __call__(self, statement: bytes, what: Statement, file: str, offset: int) -> bool:
        """``file``, ``offset``: where the statement's group begins.

        Raises:
            ConnectionLost, BinlogError: as `DumpConnection.batch` does.
            pymysql.err.MySQLError, OSError: as PyMySQL does.
        """
        files = [str(row[0]) for row in self._ask("SHOW BINARY LOGS")]
        for earlier in sorted(files, key=file_number, reverse=True):
            if file_number(earlier) > file_number(file):
                continue
            if (packed := self._last(earlier, offset if earlier == file else None)) is not None:
                return bool(packed) and unpacked(packed).names(statement, what)
        return False

    def _last(self, file: str, stop: int | None) -> bytes | None:
        """The intent that the last progress row in the file shows, before ``stop`` if given; nothing if none is open;
        None without such a row."""
        found: bytes | None = None
        progress: dict[bytes, TableMap] = {}
        dump = self._open_dump()
        try:
            dump.start_at(file, 4)
            while not self._stopping():
                for event in dump.batch():
                    if isinstance(event, LargeEvent):
                        for _ in event.chunks():
                            pass
                        continue
                    kind, number = event[4], event[HEADER : HEADER + 6]
                    if kind == EventType.ROTATE and rotate(event)[0] != file:
                        return found
                    if stop is not None and int.from_bytes(event[13:17], "little") > stop:
                        return found
                    if kind == EventType.TABLE_MAP:
                        progress.pop(number, None)
                        if names(event[HEADER + 8 :]) == PROGRESS:
                            progress[number] = parse(event[HEADER + 8 :])
                    elif kind in ROWS_EVENTS and number in progress:
                        table, (rows, extra, compressed) = progress[number], ROWS_EVENTS[kind]
                        found = read_intent(table, len(layout_of(table, rows)), event, rows, extra, compressed)
            raise ConnectionLost("capture ends")
        finally:
            dump.close()
