"""Statements that change the schema: run once at every site, at their place in the log.

A statement commits by itself, so it cannot share a transaction with the progress row. First an intent is committed to
the progress row: the log index, and where the binlog stood. Then the statement runs; then the progress row moves to its
index. After a crash in between, the binlog from the intent's position on holds the statement, under the thread id of
apply's sessions, or it does not: both servers write a statement to the binlog together with its effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgpack

from mysqlraft.binlog.commuting import commutes as statement_commutes
from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import APPLY_THREAD_ID, HEADER, EventType, query, rotate
from mysqlraft.binlog.statements import classify
from mysqlraft.mysql.connection import Session, StatementError, version_numbers
from mysqlraft.mysql.finding import identifier
from mysqlraft.mysql.schema import SCHEMA, quoted
from mysqlraft.replication.entry import Ddl
from mysqlraft.replication.filters import TableFilter

OpenDump = Callable[[], DumpConnection]
"""Opens a dump connection with a server id that no other replica of this server has."""


class Intent(NamedTuple):
    """A statement is about to run: its log index, and where the binlog stood."""

    log_index: int
    file: str
    offset: int


_NAMES_ITS_SCHEMA = frozenset(("CREATE DATABASE", "CREATE SCHEMA", "DROP DATABASE", "DROP SCHEMA"))
"""Their event in the binlog calls the schema that they name the default one, and it need not exist here."""
_NO_SUCH_SCHEMA = 1049
_TRANSACTION = (b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT", b"XA")


def binlog_end(session: Session) -> tuple[str, int]:
    """File and offset where the server's binlog ends."""
    renamed = not session.mariadb and version_numbers(session.version) >= (8, 2)
    rows = session.query("SHOW BINARY LOG STATUS" if renamed else "SHOW MASTER STATUS")
    return str(rows[0][0]), int(rows[0][1])


def read_intent(session: Session) -> Intent | None:
    """The last intent that was stored. It counts only for the statement of its index."""
    packed = session.query("SELECT intent FROM mysqlraft.progress WHERE id = 1")[0][0]
    return None if packed is None else Intent(*msgpack.unpackb(packed))


def store_intent(session: Session, intent: Intent) -> None:
    """Commits the intent; from then on the statement may run. Raises as `Session.run` does."""
    packed: bytes = msgpack.packb(tuple(intent))
    session.run([b"UPDATE mysqlraft.progress SET intent = 0x%b WHERE id = 1" % packed.hex().encode()])


def changes_rows(ddl: Ddl) -> bool:
    """Whether running it a second time at its origin makes sense: it changes rows, and nothing else."""
    return classify(ddl.statement, ddl.schema).verb.startswith("TRUNCATE")


def commutes(ddl: Ddl) -> bool:
    """Whether it may stand before or after rows of its tables alike."""
    return statement_commutes(ddl.statement, ddl.schema)


def concerns(session: Session, ddl: Ddl, replicated: TableFilter) -> bool:
    """Whether the statement is about anything that is replicated here.

    Only a server that has the trigger can tell the table of a DROP TRIGGER, and its origin does not have it any more.
    If the trigger was on a table that the filter leaves out, it was never made here, or is another one.
    """
    what = classify(ddl.statement, ddl.schema)
    if what.verb != "DROP TRIGGER" or replicated.all_of(what.objects[0][0]):
        return True
    schema, trigger = what.tables[0]
    if trigger is None:  # its name is not plain
        return True
    rows = session.query(
        f"SELECT event_object_table FROM information_schema.triggers WHERE trigger_schema = {quoted(schema)}"
        f" AND trigger_name = {quoted(trigger.removeprefix('TRIGGER '))}"
    )
    return bool(rows) and replicated(schema, str(rows[0][0]))


def run(session: Session, ddl: Ddl) -> None:
    """Runs the statement as its origin's session would have. `apply_session.setup` is due afterwards.

    Raises:
        StatementError: the server refuses it.
        SessionLost: the connection broke; whether it ran is unknown.
    """
    settings = [f"SET SESSION {name} = {_value(value)}" for name, value in ddl.context.items()]
    if settings:
        session.run([setting.encode() for setting in settings])
    if ddl.schema and classify(ddl.statement, ddl.schema).verb not in _NAMES_ITS_SCHEMA:
        try:
            session.run([f"USE {identifier(ddl.schema)}".encode()])
        except StatementError as error:
            if error.code != _NO_SUCH_SCHEMA or any(not schema for schema, _ in classify(ddl.statement, "").objects):
                raise
            # The session's schema is not replicated, and what the statement is about is not in it. Any other name
            # without a schema is to be found missing, not in the schema of the statement before.
            session.run([f"USE {SCHEMA}".encode()])
    # The bytes of the origin's binlog, in the character set that the context names.
    session.run([ddl.statement.encode("utf-8", "surrogateescape")])


def has_run(session: Session, ddl: Ddl, intent: Intent, open_dump: OpenDump) -> bool:
    """Whether the binlog holds the statement, run by apply, after the intent's position.

    Raises:
        PositionLost: the server no longer has that part of its binlog.
        ConnectionLost: it broke; try again.
    """
    end = binlog_end(session)
    file = intent.file
    if (file, intent.offset) == end:
        return False
    wanted = classify(ddl.statement, ddl.schema)
    dump = open_dump()
    try:
        dump.start_at(intent.file, intent.offset)
        while True:
            for event in dump.batch():
                if isinstance(event, LargeEvent):
                    for _ in event.chunks():
                        pass
                    continue
                kind = event[4]
                if kind == EventType.ROTATE:
                    file = rotate(event)[0]
                elif kind in (EventType.QUERY, EventType.MARIADB_QUERY_COMPRESSED):
                    found = query(event[HEADER:])
                    text = unpack(found.statement) if kind == EventType.MARIADB_QUERY_COMPRESSED else found.statement
                    if found.thread_id == APPLY_THREAD_ID and not text.upper().startswith(_TRANSACTION):
                        # The server may have put it into other words.
                        ran = classify(text.decode("utf-8", "surrogateescape"), found.schema)
                        if (ran.verb, ran.objects) == (wanted.verb, wanted.objects):
                            return True
                position = int.from_bytes(event[13:17], "little")
                if file == end[0] and position >= end[1]:
                    return False
    finally:
        dump.close()


def _value(value: object) -> str:
    if isinstance(value, str) and not re.fullmatch(r"\d+\.\d+", value):
        return quoted(value)
    return str(value)
