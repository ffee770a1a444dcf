"""Whether a statement in the binlog is to be run at the other sites, and what of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from mysqlraft.binlog.changes import SchemaChange
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import Query
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.statements import Statement, StatementKind, session_context

_START_TRANSACTION = re.compile(r"\s+START TRANSACTION\s*$", re.IGNORECASE)
_IF_EXISTS = re.compile(r"\s*DROP\s+\w+\s+(?:/\*.*?\*/\s*)?IF\s+EXISTS\b", re.IGNORECASE)
_LONGEST_LIST = 500
"""Names in a statement; of more it is not sure that all were found."""


def schema_change(
    found: Query,
    statement: str,
    what: Statement,
    *,
    timestamp: int,
    committed_at: int,
    inside: bool,
    replicated: Callable[[str, str | None], bool],
    note: Callable[[str], None],
) -> SchemaChange | None:
    """What of a statement the other sites have to run; None for nothing, of which ``note`` hears.

    ``timestamp``: of its event; ``committed_at``: of its transaction; ``inside``: rows of the same transaction follow.

    Raises:
        BinlogError: it cannot be replicated as it is.
    """

    def may(schema: str, table: str | None) -> bool:
        return bool(schema) and schema not in NEVER and replicated(schema, table)

    context, touched = session_context(found.status, timestamp)
    if what.kind is StatementKind.ROWS:
        named = touched or [schema for schema, _ in what.objects]
        schemas = [schema for schema in named if may(schema, None)]
        if schemas:
            raise BinlogError(
                f"a statement that changes rows of {schemas[0]} was logged as a statement "
                f"(SET GLOBAL binlog_format = ROW, in every session): {statement[:200]}"
            )
        return None
    objects = [(schema, table) for schema, table in what.objects if may(schema, table)]
    if what.verb.endswith(" TRIGGER") and len(objects) < len(what.objects):
        objects = []  # of a table that is not replicated
    if what.kind is StatementKind.OTHER or not objects:
        if what.kind is StatementKind.OTHER:
            note(f"not replicated: {what.verb} (it changes no replicated schema or table)")
        return None
    if what.source is not None and not may(*what.source):
        raise _across(statement, what.source)
    tables = dict.fromkeys(what.tables)
    named_schemas = {schema for schema, _ in tables}
    # Schemas that only the server knows of: anything in them.
    tables |= {(name, None): None for name in touched if name not in NEVER and name not in named_schemas}
    if len(objects) < len(what.objects):
        statement = _replicated_only(statement, what, objects)
    for schema, table in objects:
        all_of = getattr(replicated, "all_of", None)
        if table is None and what.verb in ("DROP DATABASE", "DROP SCHEMA") and all_of and not all_of(schema):
            raise BinlogError(
                f"{statement[:200]}: a pattern excludes tables of {schema} from replication, which the other sites "
                "would lose with it. Change `replicate` so that it names all of the schema or nothing of it, alike "
                "at every site, and restart"
            )
    if inside:
        statement = _START_TRANSACTION.sub("", statement)
    return SchemaChange(list(tables), statement, found.schema, context, committed_at, inside)


def _name(text: str) -> str:
    return "`" + text.replace("`", "``") + "`"


def _replicated_only(statement: str, what: Statement, objects: list[tuple[str, str | None]]) -> str:
    """A statement that names objects outside the filter, without them.

    Raises:
        BinlogError: nothing would be left that means the same.
    """
    if what.verb in ("DROP TABLE", "DROP TABLES", "DROP VIEW", "DROP SEQUENCE") and len(what.objects) <= _LONGEST_LIST:
        exists = "IF EXISTS " if _IF_EXISTS.match(statement) else ""
        names = ", ".join(f"{_name(schema)}.{_name(table or '')}" for schema, table in objects)
        return f"{what.verb} {exists}{names}"
    raise _across(statement, next(pair for pair in what.objects if pair not in objects))


def _across(statement: str, outside: tuple[str, str | None]) -> BinlogError:
    return BinlogError(
        f"{statement[:200]}: it names {'.'.join(filter(None, outside))}, which is not replicated, beside tables that "
        "are. Change `replicate` so that it has both or none, alike at every site, and restart"
    )
