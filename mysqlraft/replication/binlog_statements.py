"""Statements that the server's binlog holds from a place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mysqlraft.binlog.collations import Collations
from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import APPLY_THREAD_ID, HEADER, RECOVERY_THREAD_ID, EventType, Query, gtid_of, query
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.read_on import ReadOn
from mysqlraft.binlog.session_context import Context, session_context
from mysqlraft.binlog.statement_text import statement_text
from mysqlraft.binlog.statements import StatementKind, classify, without_mariadb
from mysqlraft.replication.additions import Additions
from mysqlraft.replication.entry import Ddl

OpenDump = Callable[[], DumpConnection]
"""Opens a dump connection with a server id that no other replica of this server has."""

_UTF8 = 45
_TRANSACTION = (b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT", b"XA")


class Logged(NamedTuple):
    """A statement. ``read``: whether the position after which it was found is of somebody who has read it already.
    ``timestamp``: of its event, in seconds."""

    read: bool
    timestamp: int
    event: Query
    statement: bytes

    @property
    def by_apply(self) -> bool:
        return self.event.thread_id == APPLY_THREAD_ID

    @property
    def recovered(self) -> bool:
        """Whether the server wrote it when it came back from a crash (MariaDB), whosever it was."""
        return self.event.thread_id == RECOVERY_THREAD_ID

    def context(self, *, mariadb: bool) -> Context:
        """Raises BinlogError: settings that this mysqlraft does not know."""
        return session_context(self.event.status, self.timestamp, mariadb=mariadb).variables

    def text(self, collations: Collations, *, mariadb: bool) -> str:
        """Raises as `context` does, and as `statement_text`."""
        client = int(self.context(mariadb=mariadb).get("character_set_client", _UTF8))
        text = statement_text(self.statement, client, collations)
        return text if mariadb else without_mariadb(text)


def statements_after(open_dump: OpenDump, start: ReadOn, end: tuple[str, int]) -> Iterator[Logged]:
    """The statements after a position up to ``end`` (file, offset), the end of the server's binlog not before now.

    Raises:
        PositionLost: the server no longer has that part of its binlog.
        ConnectionLost: it broke; try again.
    """
    if start.by_file and (start.position.file, start.position.offset) == end:
        return
    dump = open_dump()
    cursor = start.cursor(mariadb=dump.mariadb)
    wanted = file_number(end[0]), end[1]
    read = False
    try:
        start.start(dump)
        while True:
            for event in dump.batch():
                if isinstance(event, LargeEvent):
                    for _ in event.chunks():
                        pass
                    event = event.header
                kind = event[4]
                if kind == EventType.ROTATE:
                    cursor.rotate(event)
                    continue
                if (gtid := gtid_of(event)) is not None:
                    begins = cursor.start(event)
                    read = cursor.begin(begins, gtid) or cursor.has_begun(begins, gtid)
                elif kind in (EventType.QUERY, EventType.MARIADB_QUERY_COMPRESSED):
                    found = query(event[HEADER:])
                    text = unpack(found.statement) if kind == EventType.MARIADB_QUERY_COMPRESSED else found.statement
                    if not text.upper().startswith(_TRANSACTION):
                        yield Logged(read, int.from_bytes(event[:4], "little"), found, text)
                # One that the dump itself made has no place. A heartbeat has: all before it has been sent, or is in
                # the GTIDs.
                if event[13:17] != b"\0\0\0\0" and (file_number(cursor.file), cursor.end(event)) >= wanted:
                    return
    finally:
        dump.close()


def own_additions(
    open_dump: OpenDump,
    start: ReadOn,
    end: tuple[str, int],
    collations: Collations,
    *,
    mariadb: bool,
) -> Additions:
    """What statements added that are not apply's, and that the log does not hold yet. ``start``: after what it holds.

    Raises:
        PositionLost, ConnectionLost: as `statements_after`.
        BinlogError: a statement ran under settings that this mysqlraft does not know.
    """
    found = Additions()
    for number, logged in enumerate(statements_after(open_dump, start, end)):
        if logged.by_apply or logged.read:
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
    start: ReadOn,
    end: tuple[str, int],
    collations: Collations,
    *,
    mariadb: bool,
) -> set[tuple[str, str | None]]:
    """What the statements are about, in lower case, that are not apply's, and that the log does not hold yet. Raises as
    `own_additions` does."""
    found: set[tuple[str, str | None]] = set()
    for logged in statements_after(open_dump, start, end):
        if not logged.by_apply and not logged.read:
            what = classify(logged.text(collations, mariadb=mariadb), logged.event.schema)
            found.update((schema.lower(), None if name is None else name.lower()) for schema, name in what.tables)
    return found
