"""A statement is to make the same of its objects at every site; whether it did is looked at, not believed.

The origin says what they are after the statement. It can say so only if no later statement on any of them lies in its
binlog, up to where that ended after the question. Elsewhere the objects are looked at once the statement has run. They
may be others for good reasons: another site's statement that came in between in the log, or one of the site's own that
the log does not hold yet; then nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import pymysql
from pymysql.constants import ER

from mysqlraft.binlog.statement_scan import Place, StatementScan
from mysqlraft.binlog.statements import classify
from mysqlraft.mysql.connection import Session, StatementError
from mysqlraft.mysql.definitions import Query, ask_in_turn, definition_of, difference
from mysqlraft.replication.entry import Ddl, Made

_UNTOLD = frozenset((ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, 1356))
"""Errors of a server that cannot say what an object is: it has just gone, or is a view of what is not there."""
_ABSENT = frozenset((ER.SP_DOES_NOT_EXIST, ER.TRG_DOES_NOT_EXIST, 1539, ER.SPECIFIC_ACCESS_DENIED_ERROR))
"""Further errors of SHOW CREATE, of the same meaning. 1539: there is no such event."""
_NOT_DONE = (
    "is still locked by a statement that the binlog holds already. SHOW PROCESSLIST lists it; if it waits for a "
    "semi-synchronous replica, let one answer, or SET GLOBAL rpl_semi_sync_source_enabled = OFF"
)
MOST_OBJECTS = 20
"""Of a statement, that are looked at."""
MOST_CHARACTERS = 65536
"""Of the definitions of a statement's objects together."""


def wait_until_done(query: Query, tables: Iterable[tuple[str, str | None]]) -> None:
    """Waits until what MySQL's binlog says of these objects is to be seen at the server.

    Raises:
        pymysql.err.MySQLError, OSError: as ``query`` does; also if that takes too long.
    """
    for schema, name in list(tables)[:MOST_OBJECTS]:
        if name is None:
            continue
        try:
            ask_in_turn(query, schema, name)
        except pymysql.err.MySQLError as error:
            code = error.args[0] if error.args else None
            if code == ER.LOCK_WAIT_TIMEOUT:
                raise type(error)(code, f"{schema}.{name} {_NOT_DONE}") from error
            if code not in _UNTOLD | _ABSENT:
                raise


def made(
    query: Query,
    version: str,
    tables: Iterable[tuple[str, str | None]],
    end: Place,
    binlog_end: Callable[[], Place],
    scan: StatementScan,
    *,
    mariadb: bool,
) -> Made | None:
    """What the objects of a statement are that ended at ``end`` in the binlog, as far as it can be told. ``query``:
    over connections with `definitions.SETTINGS`.

    Raises:
        pymysql.err.MySQLError, OSError, ConnectionLost, BinlogError: as ``query`` and ``scan`` do.
    """
    found: list[tuple[str, str, str]] = []
    tables = list(tables)
    left = MOST_CHARACTERS
    for schema, name in tables[:MOST_OBJECTS]:
        if name is None:
            continue
        try:
            definition = definition_of(query, schema, name, mariadb=mariadb)
        except pymysql.err.MySQLError as error:
            if not error.args or error.args[0] not in _UNTOLD:
                raise
            continue
        left -= len(definition or "")
        if definition is not None and left > 0:
            found.append((schema, name, definition))
    # A trigger goes with its table, which is another one of them.
    ahead = binlog_end()
    if any(scan.last_on(schema, name or "", end, ahead) is not None for schema, name in tables):
        return None
    return Made(version, found) if found else None


def differing(session: Session, ddl: Ddl, own: Callable[[], AbstractSet[tuple[str, str | None]]]) -> str:
    """What of the statement's objects is not what it is at the origin; "" if all are, or nothing can be said.

    ``own``: what the statements of this site that the log may not hold yet are about, in lower case; asked for only
    where there is a difference.

    Raises:
        as `Session.query` does, and ``own``.
    """
    stated = ddl.made
    if stated is None or stated.version != session.version:
        return ""
    for schema, name, there in stated.definitions:
        try:
            here = definition_of(session.query, schema, name, mariadb=session.mariadb)
        except StatementError as error:
            if error.code not in _UNTOLD:
                raise
            here = None
        if (
            here is not None
            and here != there
            and own().isdisjoint({(schema.lower(), name.lower()), (schema.lower(), None)})
        ):
            return f"{schema}.{name} is not what it is where the statement comes from: {difference(there, here)}"
    return ""


def renamed_nothing(ddl: Ddl) -> bool:
    """Whether RENAME TABLE was about temporary tables, which MariaDB's binlog does not say: none of the names that it
    has left is a table's afterwards, or the only old one still is."""
    what = classify(ddl.text, ddl.schema)
    if ddl.made is None or what.verb != "RENAME TABLE":
        return False
    there = {(schema, name): bool(definition) for schema, name, definition in ddl.made.definitions}
    left: dict[tuple[str, str | None], None] = {}
    # Three names in a circle, by which two tables change places, leave two of them.
    for old, new in zip(what.tables[::2], what.tables[1::2], strict=False):
        left.pop(old, None)
        left[new] = None
    found = [there.get((schema, name or "")) for schema, name in left]
    only = what.tables[0] if len(what.tables) == 2 else None
    return all(each is False for each in found) or (only is not None and bool(there.get((only[0], only[1] or ""))))
