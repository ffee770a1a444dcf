"""Statements that the server's binlog holds from a place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mysqlraft.binlog.collations import Collations
from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import APPLY_THREAD_ID, HEADER, EventType, Query, query, rotate
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.session_context import Context, session_context
from mysqlraft.binlog.statement_text import statement_text
from mysqlraft.binlog.statements import StatementKind, classify
from mysqlraft.replication.additions import Additions
from mysqlraft.replication.entry import Ddl, Position

OpenDump = Callable[[], DumpConnection]
"""Opens a dump connection with a server id that no other replica of this server has."""

_UTF8 = 45
_TRANSACTION = (b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT", b"XA")


class Logged(NamedTuple):
    """A statement that ends at ``end`` (number of the file, offset). ``timestamp``: of its event, in seconds."""

    end: tuple[int, int]
    timestamp: int
    event: Query
    statement: bytes

    @property
    def by_apply(self) -> bool:
        return self.event.thread_id == APPLY_THREAD_ID

    def context(self, *, mariadb: bool) -> Context:
        """Raises BinlogError: settings that this mysqlraft does not know."""
        return session_context(self.event.status, self.timestamp, mariadb=mariadb).variables

    def text(self, collations: Collations, *, mariadb: bool) -> str:
        """Raises as `context` does, and as `statement_text`."""
        client = int(self.context(mariadb=mariadb).get("character_set_client", _UTF8))
        return statement_text(self.statement, client, collations)


def statements_after(open_dump: OpenDump, file: str, offset: int, end: tuple[str, int]) -> Iterator[Logged]:
    """The statements from a place between two transactions on, up to ``end`` (file, offset).

    Raises:
        PositionLost: the server no longer has that part of its binlog.
        ConnectionLost: it broke; try again.
    """
    if (file, offset) == end:
        return
    dump = open_dump()
    try:
        dump.start_at(file, offset)
        while True:
            for event in dump.batch():
                if isinstance(event, LargeEvent):
                    for _ in event.chunks():
                        pass
                    continue
                kind = event[4]
                position = int.from_bytes(event[13:17], "little")
                if kind == EventType.ROTATE:
                    file = rotate(event)[0]
                elif kind in (EventType.QUERY, EventType.MARIADB_QUERY_COMPRESSED):
                    found = query(event[HEADER:])
                    text = unpack(found.statement) if kind == EventType.MARIADB_QUERY_COMPRESSED else found.statement
                    if not text.upper().startswith(_TRANSACTION):
                        timestamp = int.from_bytes(event[:4], "little")
                        yield Logged((file_number(file), position), timestamp, found, text)
                if file == end[0] and position >= end[1]:
                    return
    finally:
        dump.close()


def own_additions(
    open_dump: OpenDump,
    resume: Position,
    done: tuple[str, int],
    end: tuple[str, int],
    collations: Collations,
    *,
    mariadb: bool,
) -> Additions:
    """What statements added that are not apply's, and that the log does not hold yet: it holds what is before ``done``.

    Raises:
        PositionLost, ConnectionLost: as `statements_after`.
        BinlogError: a statement ran under settings that this mysqlraft does not know.
    """
    found = Additions()
    known = (file_number(done[0]), done[1]) if done[0] else (-1, 0)
    for number, logged in enumerate(statements_after(open_dump, resume.file, resume.offset, end)):
        if logged.by_apply or logged.end <= known:
            continue
        text = logged.text(collations, mariadb=mariadb)
        what = classify(text, logged.event.schema)
        if what.kind is not StatementKind.SCHEMA or all(schema in NEVER for schema, _ in what.objects):
            continue
        context = logged.context(mariadb=mariadb)
        ddl = Ddl(list(what.tables), logged.statement, logged.event.schema, context, 0, text)
        found.enter(number, ddl)
    return found


def own_statements(
    open_dump: OpenDump,
    resume: Position,
    done: tuple[str, int],
    end: tuple[str, int],
    collations: Collations,
    *,
    mariadb: bool,
) -> set[tuple[str, str | None]]:
    """What the statements are about, in lower case, that are not apply's, and that the log does not hold yet. Raises as
    `own_additions` does."""
    known = (file_number(done[0]), done[1]) if done[0] else (-1, 0)
    found: set[tuple[str, str | None]] = set()
    for logged in statements_after(open_dump, resume.file, resume.offset, end):
        if not logged.by_apply and logged.end > known:
            what = classify(logged.text(collations, mariadb=mariadb), logged.event.schema)
            found.update((schema.lower(), None if name is None else name.lower()) for schema, name in what.tables)
    return found
