"""Which statements lie ahead of a stream in the binlog: was a table at an earlier place what the server says it is now?

The server tells today's unique keys. Rows that a stream has come to may be older, and then other keys may have been in
force; but only if a statement on their table lies between. After a restart most of a backlog would be in doubt. So the
binlog is read on, by type of event alone and on a connection of its own, up to where it ended when the keys were asked
for, once for all tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.errors import BinlogError, ConnectionLost
from mysqlraft.binlog.events import HEADER, EventType, query, rotate
from mysqlraft.binlog.keys import KeySource
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.statement_text import text_of
from mysqlraft.binlog.statements import StatementKind, classify

_QUERIES = (int(EventType.QUERY), int(EventType.MARIADB_QUERY_COMPRESSED))
_SHAPES = (b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT ", b"RELEASE SAVEPOINT ", b"XA ")
"""How statements begin that shape a transaction."""
ANYTHING = ("", None)
HELD_BYTES = 16 << 20
"""How much of the binlog is held in memory at most, to look at it before it is captured."""

Place = tuple[str, int]
"""File and offset."""


class StatementScan:
    """Remembers where the last statement on each table ended. For one thread."""

    def __init__(
        self,
        open_dump: Callable[[], DumpConnection],
        source: KeySource,
        stopping: Callable[[], bool],
    ) -> None:
        """``open_dump``: opens a dump connection that no other reader of this server ends. ``stopping``: whether the
        owner wants to end."""
        self._open_dump = open_dump
        self._source = source
        self._stopping = stopping
        self._from: Place | None = None
        self._to: Place = ("", 0)
        self._last: dict[tuple[str, str | None], Place] = {}

    def last_on(self, schema: str, table: str, start: Place, end: Place) -> Place | None:
        """The end of the last statement after ``start`` and up to ``end`` that may have changed the table's definition;
        None if there is none.

        Raises:
            ConnectionLost, BinlogError: as `DumpConnection.batch` does.
            pymysql.err.MySQLError, OSError: as PyMySQL does.
        """
        if self._from is None or _order(start) < _order(self._from) or _order(start) > _order(self._to):
            self._from = self._to = start
            self._last.clear()
        if _order(self._to) < _order(end):
            self._read(end)
        met = ((schema.lower(), table.lower()), (schema.lower(), None), ANYTHING)
        found = max((self._last[name] for name in met if name in self._last), key=_order, default=start)
        return found if _order(found) > _order(start) else None

    def head_start(self, dump: DumpConnection, start: Place, end: Place) -> None:
        """Looks at what a dump that has been asked for ``start`` sends up to ``end``, before its reader gets it, as far
        as that may be held: a short backlog need not be read twice.

        Raises:
            as `DumpConnection.peek` does.
        """
        self._from = self._to = start
        self._last.clear()
        if _order(start) < _order(end):
            dump.peek(lambda event: self._see(event, end, mariadb=dump.mariadb), HELD_BYTES)

    def _read(self, end: Place) -> None:
        dump = self._open_dump()
        try:
            dump.start_at(*self._to)
            while _order(self._to) < _order(end):
                if self._stopping():
                    raise ConnectionLost("capture ends")
                for event in dump.skim():
                    self._see(event, end, mariadb=dump.mariadb)
        finally:
            dump.close()

    def _see(self, event: bytes | LargeEvent, end: Place, *, mariadb: bool) -> bool:
        """Notes what an event is about, and its end. Returns whether there is more before ``end``."""
        if isinstance(event, LargeEvent):
            for _ in event.chunks():
                pass
            event = event.header
        kind = event[4]
        file, offset = self._to
        if kind == EventType.ROTATE:
            self._to = rotate(event)
            return True
        if low := int.from_bytes(event[13:17], "little"):
            # The header counts to 4 GiB only; files may be larger.
            offset = (offset & ~0xFFFFFFFF | low) + (1 << 32 if low < offset & 0xFFFFFFFF else 0)
        if kind in _QUERIES:
            for name in self._changed(event, kind, mariadb=mariadb):
                self._last[name] = file, offset
        self._to = file, offset
        return _order(self._to) < _order(end)

    def _changed(self, event: bytes, kind: int, *, mariadb: bool) -> list[tuple[str, str | None]]:
        found = query(event[HEADER:])
        statement = unpack(found.statement) if kind == EventType.MARIADB_QUERY_COMPRESSED else found.statement
        if statement.startswith(_SHAPES):
            return []
        try:
            what = classify(text_of(found, statement, self._source, mariadb=mariadb), found.schema)
        except BinlogError:
            return [ANYTHING]  # capture will say what is wrong with it when it comes there
        if what.kind is StatementKind.UNKNOWN:
            return [ANYTHING]  # capture stops at it; somebody may have it skipped
        return changed_tables(what.tables) if what.kind is StatementKind.SCHEMA else []


def changed_tables(tables: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """What a statement on these tables may have changed the definition of, in lower case; ("", None): of anything."""
    return [(schema.lower(), None if table is None else table.lower()) for schema, table in tables] or [ANYTHING]


def _order(place: Place) -> tuple[int, int]:
    return file_number(place[0]), place[1]
