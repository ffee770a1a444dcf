"""Statements that change rows and were logged as such: whether one of them can have changed any replicated row.

What counts is what it writes, not what it reads. MySQL's binlog names the schemas of both, MariaDB's none. So the
statement itself is looked at: if it is of a form that writes one table, and at the server that is a plain table without
triggers, and no stored function is called, it writes nothing else. pt-table-checksum's are of this form.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from mysqlraft.binlog.keys import KeySource
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.statements import Reader, Statement

_MODIFIERS = ("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "QUICK", "IGNORE", "INTO", "FROM")
_AFTER_DELETE = ("", "WHERE", "ORDER", "LIMIT", "RETURNING", ";")


def replicated_rows(
    text: str,
    what: Statement,
    schema: str,
    touched: list[str],
    *,
    mariadb: bool,
    replicated: Callable[[str, str | None], bool],
    source: KeySource,
) -> str:
    """Whose replicated rows the statement may have changed: a schema, or "some table" where that is not known; "" if
    none. ``schema``: the session's default schema; ``touched``: the schemas that the server names.

    Raises:
        pymysql.err.MySQLError: the server cannot be asked.
    """

    def may(name: str) -> bool:
        return name not in NEVER and replicated(name, None)

    named = touched or [name for name, _ in what.objects]
    first = next((name for name in named if may(name)), "")
    if not first and not mariadb:
        return ""
    found = _written(text, schema)
    if found is None:
        # MariaDB does not say what a function changed.
        return first or ("some table" if what.verb in ("SELECT", "DO", "CALL") else "")
    (name, table), calls = found
    outside = bool(name) and (name in NEVER or not replicated(name, table))
    if outside and source.writes_only(name, table, calls):
        return ""
    return first or "some table"


def _written(text: str, schema: str) -> tuple[tuple[str, str], list[str]] | None:
    """The one table that a statement writes, as far as it says so itself, and the names of the functions that it calls,
    built-in ones among them; None if it is of another form."""
    reader = Reader(text)
    verb = reader.word()
    if verb not in ("INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD") or not reader.whole:
        return None
    reader.at += 1
    if verb == "LOAD":
        while reader.at < len(reader.tokens) and not reader.take("INTO", "TABLE"):
            reader.at += 1
    while reader.word() in _MODIFIERS:
        reader.at += 1
    table = reader.name(schema)
    if table is None:
        return None
    if verb == "UPDATE" and reader.word() != "SET":
        return None
    if verb == "DELETE" and reader.word() not in _AFTER_DELETE:
        return None
    rest = reader.tokens[reader.at :]
    return table, [word for (word, _), after in pairwise(rest) if after == ("(", False)]
