"""Whether a statement in the binlog is to be run at the other sites, and what of it."""

from __future__ import annotations

from collections.abc import Callable

from mysqlraft.binlog.changes import SchemaChange
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import THREAD_SPECIFIC, Query
from mysqlraft.binlog.keys import KeySource
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.repeating import did_nothing
from mysqlraft.binlog.row_statements import replicated_rows
from mysqlraft.binlog.scheduled_events import elsewhere, elsewhere_in_bytes
from mysqlraft.binlog.session_context import session_context
from mysqlraft.binlog.statements import Statement, StatementKind, words
from mysqlraft.binlog.temporary_tables import TemporaryTables

_START_TRANSACTION = "START TRANSACTION"
_OF_ONE_TABLE = ("ALTER TABLE", "CREATE INDEX", "DROP INDEX", "TRUNCATE TABLE")
"""Statements that a session which logs statements writes of its temporary tables as of any others."""
_INSIDE = ("", "CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME")
"""How statements begin that may be inside a transaction and change no row: on temporary tables, or nothing at all."""
_UTF8MB4 = 45
"""The number of a collation of it, with both kinds of server."""
_LONGEST_LIST = 500
"""Names in a statement; of more it is not sure that all were found."""


def schema_change(
    found: Query,
    statement: bytes,
    text: str,
    what: Statement,
    *,
    timestamp: int,
    flags: int,
    committed_at: int,
    inside: bool,
    mariadb: bool,
    replicated: Callable[[str, str | None], bool],
    source: KeySource,
    temporary: TemporaryTables,
    note: Callable[[str], None],
) -> SchemaChange | None:
    """What of a statement the other sites have to run; None for nothing, of which ``note`` hears.

    ``statement``: its bytes; ``text``: what they say; ``timestamp``, ``flags``: of its event; ``committed_at``: of
    its transaction; ``inside``: rows of the same transaction follow; ``temporary``: those that are there before it.

    Raises:
        BinlogError: it cannot be replicated as it is.
    """

    def may(schema: str, table: str | None) -> bool:
        return bool(schema) and schema not in NEVER and replicated(schema, table)

    if what.kind is StatementKind.UNKNOWN:
        raise _untold(text)
    if what.kind is StatementKind.OTHER:
        if inside and what.verb.partition(" ")[0] not in _INSIDE:
            raise BinlogError(
                "a transaction holds a statement of which this mysqlraft does not know whether it changes rows "
                f"(SET GLOBAL binlog_format = ROW, in every session): {text[:200]}"
            )
        note(f"not replicated: {what.verb} (it changes no replicated schema or table)")
        return None
    context = session_context(found.status, timestamp, mariadb=mariadb)
    if what.kind is StatementKind.ROWS:
        rows_of = replicated_rows(
            text, what, found.schema, context.schemas, mariadb=mariadb, replicated=replicated, source=source
        )
        if rows_of:
            raise BinlogError(
                f"a statement that changes rows of {rows_of} was logged as a statement "
                f"(SET GLOBAL binlog_format = ROW, in every session): {text[:200]}"
            )
        return None
    if flags & THREAD_SPECIFIC and what.verb in _OF_ONE_TABLE and (found.thread_id, what.objects[0]) in temporary:
        note(f"not replicated: {what.verb} of a temporary table")
        return None
    # A function that is a program's is in no schema.
    if any(not schema for schema, _ in what.objects) and not what.verb.endswith(" FUNCTION"):
        raise _untold(text)
    objects = [(schema, table) for schema, table in what.objects if may(schema, table)]
    if what.verb.endswith(" TRIGGER") and len(objects) < len(what.objects):
        objects = []  # of a table that is not replicated
    # A table that is made with rows has no number of its own; rows follow only where it was made.
    if not objects or (not inside and did_nothing(text, what, context, flags, mariadb=mariadb)):
        return None
    if what.source is not None and not may(*what.source):
        raise _across(text, what.source)
    tables = dict.fromkeys(what.tables)
    named_schemas = {schema for schema, _ in tables}
    # Under lower_case_table_names=1 the server names them in lower case, however the statement writes them.
    named_schemas |= {schema.lower() for schema in named_schemas if schema not in context.schemas}
    # Schemas that only the server knows of: anything in them.
    tables |= {(name, None): None for name in context.schemas if name not in NEVER and name not in named_schemas}
    if len(objects) < len(what.objects):
        text = _replicated_only(text, what, objects)
        statement = text.encode("utf-8", "surrogateescape")
        context.variables["character_set_client"] = _UTF8MB4
    for schema, table in objects:
        all_of = getattr(replicated, "all_of", None)
        if table is None and what.verb in ("DROP DATABASE", "DROP SCHEMA") and all_of and not all_of(schema):
            raise BinlogError(
                f"{text[:200]}: a pattern excludes tables of {schema} from replication, which the other sites "
                "would lose with it. Change `replicate` so that it names all of the schema or nothing of it, alike "
                "at every site, and restart"
            )
    if what.verb.endswith(" EVENT"):
        utf8 = text.encode("utf-8", "surrogateescape") == statement
        text = elsewhere(text, context.invoker)
        if utf8:
            statement = text.encode("utf-8", "surrogateescape")
        else:
            client = int(context.variables.get("character_set_client", _UTF8MB4))
            statement = elsewhere_in_bytes(source.characters(statement, client), context.invoker)
    if inside:
        text, statement = _by_itself(text, statement)
    return SchemaChange(list(tables), statement, text, found.schema, context.variables, committed_at, inside)


def _untold(statement: str) -> BinlogError:
    return BinlogError(f"a statement of which this mysqlraft does not know what it changes: {statement[:200]}")


def _by_itself(text: str, statement: bytes) -> tuple[str, bytes]:
    """CREATE TABLE without what says that the table's rows follow in the same transaction; its partitions may be behind
    that."""
    clause = [word for word in words(text) if not word.quoted and word.text.upper() in ("START", "TRANSACTION")][-2:]
    if " ".join(word.text.upper() for word in clause) != _START_TRANSACTION:
        return text, statement
    before, after = text[: clause[0].start], text[clause[1].end :]
    # The statement is the server's own: nothing but its names and comments is not ASCII, whatever the character set.
    mark = _START_TRANSACTION.encode()
    pieces = statement.split(mark)
    met = before.count(_START_TRANSACTION) + 1
    return before + after, mark.join(pieces[:met]) + mark.join(pieces[met:])


def _name(text: str) -> str:
    return "`" + text.replace("`", "``") + "`"


def _replicated_only(statement: str, what: Statement, objects: list[tuple[str, str | None]]) -> str:
    """A statement that names objects outside the filter, without them.

    Raises:
        BinlogError: nothing would be left that means the same.
    """
    if what.verb in ("DROP TABLE", "DROP TABLES", "DROP VIEW", "DROP SEQUENCE") and len(what.objects) <= _LONGEST_LIST:
        exists = "IF EXISTS " if what.conditional else ""
        names = ", ".join(f"{_name(schema)}.{_name(table or '')}" for schema, table in objects)
        return f"{what.verb} {exists}{names}"
    raise _across(statement, next(pair for pair in what.objects if pair not in objects))


def _across(statement: str, outside: tuple[str, str | None]) -> BinlogError:
    return BinlogError(
        f"{statement[:200]}: it names {'.'.join(filter(None, outside))}, which is not replicated, beside tables that "
        "are. Change `replicate` so that it has both or none, alike at every site, and restart"
    )
