"""Row events built for the server's BINLOG statement, which replays them natively.

Facts (verified on MySQL 9.7 and MariaDB 10.11 by ``tests/replication/test_lanes.py``): a session must first be given a
format description event; MySQL then needs ``SET GTID_NEXT = 'AUTOMATIC'``. Any number of tables and events may share a
statement if all TABLE_MAPs come first and only the last rows event carries STMT_END_F. A statement that fails is undone
as a whole and leaves the transaction open. Its cost grows with the square of its number of events on MariaDB, so rows
of adjacent events of a table are merged, and a statement ends at `STATEMENT_EVENTS` or `STATEMENT_BYTES`.

Every rows event says that foreign keys are not to be looked at: what a foreign key did at the origin is in the log (or
cannot be, see docs/conflicts.md), and what it would do here could differ from site to site.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from mysqlraft.binlog.events import EventType
from mysqlraft.replication.entry import Change, ChangeKind

if TYPE_CHECKING:
    from mysqlraft.replication.look_ahead import Later

STATEMENT_BYTES = 256 << 10
STATEMENT_EVENTS = 200

_HEADER = struct.Struct("<IBIIIH")
_HEADER_SIZE = _HEADER.size
_STATEMENT_END = 1
_NO_FOREIGN_KEY_CHECKS = 2
_MYSQL = {
    ChangeKind.WRITE: EventType.WRITE_ROWS,
    ChangeKind.UPDATE: EventType.UPDATE_ROWS,
    ChangeKind.DELETE: EventType.DELETE_ROWS,
}
_MARIADB = {
    ChangeKind.WRITE: EventType.WRITE_ROWS_V1,
    ChangeKind.UPDATE: EventType.UPDATE_ROWS_V1,
    ChangeKind.DELETE: EventType.DELETE_ROWS_V1,
}
_LARGE = 4 << 20
"""Bytes."""
_NO_EXTRA_DATA = b"\x02\x00"


@dataclass(slots=True)
class Item:
    """A change and the table map it is to be read with; ``committed_at`` as in `Unit`.

    ``later``: what local transactions that come after the unit wrote, if that is to be left out. ``written``: the table
    map that the unit has the rows under, if they were completed. ``passed``: whether rows of other sites may still come
    that lack some of the unit's columns.
    """

    table: bytes
    change: Change
    committed_at: int
    later: Later | None = None
    written: bytes = b""
    passed: bool = False


@dataclass(slots=True)
class Statement:
    """A BINLOG statement and what it was made of. ``rows`` counts rows, ``tables`` are the table maps."""

    sql: bytes
    items: list[Item]
    rows: int
    tables: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Rows:
    """A rows event in the making."""

    table: bytes
    kind: ChangeKind
    layout: bytes
    images: list[bytes] = field(default_factory=list)


class StatementBuilder:
    """Puts changes, in their order, into as few events and statements as possible."""

    def __init__(self, mariadb: bool) -> None:
        self._types = _MARIADB if mariadb else _MYSQL
        self._extra = b"" if mariadb else _NO_EXTRA_DATA
        self._reset()

    def _reset(self) -> None:
        self._tables: dict[bytes, int] = {}
        self._events: list[_Rows] = []
        self._items: list[Item] = []
        self._bytes = 0
        self._rows = 0

    def add(self, item: Item) -> Statement | None:
        """Adds a change; a statement, without it, if it did not fit in any more."""
        change = item.change
        finished = None
        if self._items and self._bytes + len(change.images) > STATEMENT_BYTES:
            finished = self.finish()
        last = self._events[-1] if self._events else None
        if last is not None and last.layout == change.layout and last.kind == change.kind and last.table == item.table:
            last.images.append(change.images)
        else:
            if len(self._events) >= STATEMENT_EVENTS:
                finished = self.finish()
            if item.table not in self._tables:
                self._tables[item.table] = len(self._tables) + 1
                self._bytes += len(item.table)
            self._events.append(_Rows(item.table, change.kind, change.layout, [change.images]))
        self._items.append(item)
        self._bytes += len(change.images)
        self._rows += change.count
        return finished

    def finish(self) -> Statement | None:
        """What was added since the last statement, if anything."""
        if not self._items:
            return None
        when = self._items[0].committed_at // 1_000_000
        parts = [
            part
            for table, number in self._tables.items()
            for part in _event(when, EventType.TABLE_MAP, number.to_bytes(6, "little"), b"\x01\x00", table)
        ]
        for event in self._events:
            flags = _NO_FOREIGN_KEY_CHECKS | (_STATEMENT_END if event is self._events[-1] else 0)
            parts += _event(
                when,
                self._types[event.kind],
                self._tables[event.table].to_bytes(6, "little"),
                flags.to_bytes(2, "little"),
                self._extra,
                event.layout,
                *event.images,
            )
        statement = Statement(_binlog(parts), self._items, self._rows, tuple(self._tables))
        self._reset()
        return statement


def statements(mariadb: bool, items: Iterable[Item]) -> list[Statement]:
    """All changes, in their order."""
    builder = StatementBuilder(mariadb)
    made = [builder.add(item) for item in items]
    made.append(builder.finish())
    return [statement for statement in made if statement is not None]


def format_description(version: str, mariadb: bool) -> bytes:
    """The statement that tells a session how the events after it are laid out."""
    lengths = bytearray(EventType.MARIADB_DELETE_ROWS_COMPRESSED if mariadb else EventType.GTID_TAGGED)
    for kind, length in (
        (EventType.QUERY, 13),
        (EventType.FORMAT_DESCRIPTION, 57 + len(lengths)),
        (EventType.TABLE_MAP, 8),
        *((kind, 8) for kind in _MARIADB.values()),
        *((kind, 10) for kind in _MYSQL.values()),
    ):
        lengths[kind - 1] = length & 0xFF
    body = struct.pack("<H50sIB", 4, version.encode(), 0, _HEADER_SIZE)
    return _binlog(_event(0, EventType.FORMAT_DESCRIPTION, body, bytes(lengths), b"\0"))


def _event(when: int, kind: int, *parts: bytes) -> list[bytes]:
    size = _HEADER_SIZE + sum(map(len, parts))
    return [_HEADER.pack(when & 0xFFFFFFFF, kind, 0, size, 0, 0), *parts]


def _binlog(parts: list[bytes]) -> bytes:
    if sum(map(len, parts)) <= _LARGE:
        return b"BINLOG '%b'" % b2a_base64(b"".join(parts), newline=False)
    # A large row: what is made of it is in memory once.
    made = BytesIO()
    made.write(b"BINLOG '")
    rest = b""
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), _LARGE):
            data = rest + bytes(view[at : at + _LARGE])
            end = len(data) // 3 * 3
            made.write(b2a_base64(data[:end], newline=False))
            rest = data[end:]
    made.write(b2a_base64(rest, newline=False) + b"'")
    return made.getvalue()
