"""Statements that change the schema: run once at every site, at their place in the log.

A statement commits by itself, so it cannot share a transaction with the progress row. First an intent is committed to
the progress row: the log index, and where the binlog stood. Then the statement runs; then the progress row moves to its
index. After a crash in between, the binlog from the intent's position on holds the statement, under the thread id of
apply's sessions, or it does not: both servers write a statement to the binlog together with its effect. So does that of
another server that has taken the place of this one meanwhile, from the intent's GTIDs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from mysqlraft.binlog.collations import Collations
from mysqlraft.binlog.commuting import commutes as statement_commutes
from mysqlraft.binlog.dump import file_identity
from mysqlraft.binlog.position import StreamPosition
from mysqlraft.binlog.read_on import read_on
from mysqlraft.binlog.statements import Statement, classify
from mysqlraft.mysql.connection import Session, StatementError, version_numbers
from mysqlraft.mysql.schema import SCHEMA, exactly, quoted
from mysqlraft.replication.binlog_statements import OpenDump, statements_after
from mysqlraft.replication.entry import Ddl
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.patience import patient
from mysqlraft.replication.statement_session import prepare


class Intent(NamedTuple):
    """A statement is about to run: its log index, and where the binlog stood. ``gtids``, ``identity``: as in
    `StreamPosition`. ``text``, ``objects``: digests of the statement and of what it drops."""

    log_index: int
    file: str
    offset: int
    gtids: str = ""
    identity: str = ""
    text: int = 0
    objects: Sequence[int] = ()

    def names(self, statement: bytes, what: Statement) -> bool:
        """Whether it is what the server wrote of this statement when it came back from a crash."""
        if xxh3_64_intdigest(statement) == self.text:
            return True
        # The server has words of its own for tables that it had dropped so far: those of a list, of a schema, and one
        # that was to be replaced.
        dropped = _dropped(what) if what.verb.startswith("DROP ") else ()
        return bool(dropped) and all(
            _digest(schema, name) in self.objects or _digest(schema, None) in self.objects for schema, name in dropped
        )


_DROPPED_WITH_ROWS = frozenset(("TABLE", "TABLES", "VIEW", "SEQUENCE", "DATABASE", "SCHEMA"))
"""Of others the server writes the statement as it was."""


def _dropped(what: Statement) -> Sequence[tuple[str, str | None]]:
    """The tables, views, sequences and schemas that the statement drops."""
    verb, _, kind = what.verb.partition(" ")
    return what.objects if (verb == "DROP" or what.replaces) and kind in _DROPPED_WITH_ROWS else ()


def _digest(schema: str, name: str | None) -> int:
    return xxh3_64_intdigest(f"{schema}.{name}".lower().encode("utf-8", "replace"))


def unpacked(intent: bytes) -> Intent:
    return Intent(*msgpack.unpackb(intent))


_NAMES_ITS_SCHEMA = frozenset(("CREATE DATABASE", "CREATE SCHEMA", "DROP DATABASE", "DROP SCHEMA"))
"""Their event in the binlog calls the schema that they name the default one, and it need not exist here."""
_UNUSABLE_SCHEMA = (1049, 1044)
"""It does not exist at this site, or the account has no business in it."""
_LARGEST_INTENT = 1024
"""Bytes that the column holds. Without its GTIDs an intent cannot be found in another server's binlog."""
_NOT_ALL_FOUND = (1051, 4091, 4092)
"""No such table, sequence, view."""


def binlog_end_query(session: Session) -> str:
    """The statement whose answer begins with file and offset where the server's binlog ends."""
    renamed = not session.mariadb and version_numbers(session.version) >= (8, 2)
    return "SHOW BINARY LOG STATUS" if renamed else "SHOW MASTER STATUS"


def binlog_end(session: Session) -> tuple[str, int]:
    """File and offset where the server's binlog ends."""
    rows = session.query(binlog_end_query(session))
    return str(rows[0][0]), int(rows[0][1])


def intent_at(session: Session, log_index: int, ddl: Ddl, open_dump: OpenDump) -> Intent:
    """The intent for the statement that is to run next.

    Raises:
        ConnectionLost, BinlogError: as `file_identity` does; and as `Session.query` and ``open_dump`` do.
    """
    file, offset = binlog_end(session)
    gtids = session.query(f"SELECT @@global.{'gtid_binlog_pos' if session.mariadb else 'gtid_executed'}")[0][0]
    what = classify(ddl.text, ddl.schema)
    return Intent(
        log_index,
        file,
        offset,
        str(gtids).replace("\n", ""),
        file_identity(open_dump, file),
        xxh3_64_intdigest(_as_run(session, ddl)),
        [_digest(schema, name) for schema, name in _dropped(what)],
    )


def _as_run(session: Session, ddl: Ddl) -> bytes:
    """The bytes of the origin's binlog, in the character set that the context names."""
    if session.mariadb and not ddl.reading:
        return patient(ddl.text, ddl.schema).encode("utf-8", "surrogateescape")
    return ddl.statement


def read_intent(session: Session) -> Intent | None:
    """The last intent that was stored. It counts only for the statement of its index."""
    packed = session.query("SELECT intent FROM mysqlraft.progress WHERE id = 1")[0][0]
    return None if packed is None else unpacked(packed)


def store_intent(session: Session, intent: Intent) -> None:
    """Commits the intent; from then on the statement may run. Raises as `Session.run` does."""
    packed: bytes = msgpack.packb(tuple(intent))
    if len(packed) > _LARGEST_INTENT:
        packed = msgpack.packb(tuple(intent._replace(gtids="")))
    if len(packed) > _LARGEST_INTENT:
        packed = msgpack.packb(tuple(intent._replace(objects=())))
    if len(packed) > _LARGEST_INTENT:
        packed = msgpack.packb(tuple(intent._replace(gtids="", objects=())))
    session.run([b"UPDATE mysqlraft.progress SET intent = 0x%b WHERE id = 1" % packed.hex().encode()])


def changes_rows(ddl: Ddl) -> bool:
    """Whether running it a second time at its origin makes sense: it changes rows, and nothing else."""
    return classify(ddl.text, ddl.schema).verb.startswith("TRUNCATE")


def commutes(ddl: Ddl) -> bool:
    """Whether it may stand before or after rows of its tables alike."""
    return statement_commutes(ddl.text, ddl.schema)


def concerns(session: Session, ddl: Ddl, replicated: TableFilter) -> bool:
    """Whether the statement is about anything that is replicated here.

    Only a server that has the trigger can tell the table of a DROP TRIGGER, and its origin does not have it any more.
    If the trigger was on a table that the filter leaves out, it was never made here, or is another one.
    """
    what = classify(ddl.text, ddl.schema)
    if what.verb != "DROP TRIGGER" or replicated.all_of(what.objects[0][0]):
        return True
    schema, trigger = what.tables[0]
    if trigger is None:  # its name is not plain
        return True
    rows = session.query(
        f"SELECT event_object_table FROM information_schema.triggers WHERE {exactly('trigger_schema', schema)}"
        f" AND trigger_name = {quoted(trigger.removeprefix('TRIGGER '))}"
    )
    return bool(rows) and replicated(schema, str(rows[0][0]))


def run(session: Session, ddl: Ddl) -> None:
    """Runs the statement as its origin's session would have. `apply_session.setup` is due afterwards.

    Raises:
        StatementError: the server refuses it.
        SessionLost: the connection broke; whether it ran is unknown.
    """
    schema = ddl.schema
    if classify(ddl.text, schema).verb in _NAMES_ITS_SCHEMA:
        schema = ""
    try:
        prepare(session, schema, ddl.context)
    except StatementError as error:
        if error.code not in _UNUSABLE_SCHEMA or any(not schema for schema, _ in classify(ddl.text, "").objects):
            raise
        # The session's schema is not replicated, and what the statement is about is not in it. Any other name
        # without a schema is to be found missing, not in the schema of the statement before.
        prepare(session, SCHEMA, ddl.context)
    try:
        session.run_foreign(_as_run(session, ddl))
    except StatementError as error:
        # MariaDB drops what it finds of a list, also at the origin, says that there was more in it, and logs it all.
        if not (session.mariadb and error.code in _NOT_ALL_FOUND and _drops_several(ddl)):
            raise


def _drops_several(ddl: Ddl) -> bool:
    what = classify(ddl.text, ddl.schema)
    return what.verb.startswith("DROP ") and len(what.objects) > 1


def has_run(session: Session, ddl: Ddl, intent: Intent, open_dump: OpenDump) -> bool:
    """Whether the binlog holds the statement, run by apply, after the intent's position.

    Raises:
        PositionLost: the server no longer has that part of its binlog.
        ConnectionLost: it broke; try again.
        and as `read_on` does.
    """
    here = intent.file, intent.offset
    position = StreamPosition(*here, intent.gtids, here, intent.identity)
    start = read_on(position, session.query, partial(binlog_end, session), open_dump, mariadb=session.mariadb)
    wanted = classify(ddl.text, ddl.schema)
    collations = Collations(session.query)
    for logged in statements_after(open_dump, start, binlog_end(session)):
        if logged.by_apply or logged.recovered:
            # The server may have put it into other words, and calls a sequence a table.
            ran = classify(logged.text(collations, mariadb=session.mariadb), logged.event.schema)
            same = (ran.verb.partition(" ")[0], ran.objects) == (wanted.verb.partition(" ")[0], wanted.objects)
            if same and (logged.by_apply or intent.names(logged.statement, ran)):
                return True
    return False
