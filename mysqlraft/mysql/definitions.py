"""What an object of a schema is, as text that is the same at every server of one version where the object is the same.

Nothing in it changes with rows, privileges or the settings of the session that asks, or with other objects: it has no
foreign keys, whose other table may be renamed. Nor has it the states of events, which differ from site to site on
purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mysqlraft.mysql.finding import identifier
from mysqlraft.mysql.schema import exactly, named, quoted

Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs one statement and returns its rows. The connection's settings are its own: see `SETTINGS`."""

SETTINGS = "SET SESSION time_zone = '+00:00', sql_mode = '', sql_quote_show_create = 1"
"""What a connection has to run before it asks: definitions show literals as the session would write them."""

_COUNTER = re.compile(r" AUTO_INCREMENT=\d+")

_FOREIGN_KEY = re.compile(r"  CONSTRAINT `(?:[^`]|``)*` FOREIGN KEY ")

# Columns of information_schema, by the kind of object: (table, column of the schema, column of the name, the rest). Of
# the rest the first is shown to those only who may see it.
_INFORMATION = {
    "TRIGGER": (
        *("triggers", "trigger_schema", "trigger_name"),
        "action_statement, event_manipulation, event_object_table, action_timing, action_order, definer, sql_mode,"
        " character_set_client, collation_connection",
    ),
    "EVENT": (
        *("events", "event_schema", "event_name"),
        "event_definition, event_type, interval_value, interval_field, on_completion, definer, sql_mode, event_comment",
    ),
    "FUNCTION": (
        *("routines", "routine_schema", "routine_name"),
        "routine_definition, routine_type, dtd_identifier, is_deterministic, sql_data_access, security_type, definer,"
        " sql_mode, routine_comment, character_set_client, collation_connection",
    ),
    "LIBRARY": (
        *("libraries", "library_schema", "library_name"),
        "library_definition, language, sql_mode, library_comment",
    ),
    "DATABASE": (
        *("schemata", "schema_name", "schema_name"),
        "default_character_set_name, default_collation_name",
    ),
}
_INFORMATION["PROCEDURE"] = _INFORMATION["FUNCTION"]
_VIEW = (
    *("views", "table_schema", "table_name"),
    "view_definition, check_option, definer, security_type, character_set_client, collation_connection",
)
# Of a table of MariaDB, whose SHOW CREATE TABLE makes an application's ALTER TABLE the victim of a deadlock.
_TABLE = (
    (
        "column",
        *("columns", "table_schema", "table_name"),
        "column_name, column_type, is_nullable, column_default, collation_name, extra, generation_expression,"
        " column_comment",
        "ordinal_position",
    ),
    (
        "index",
        *("statistics", "table_schema", "table_name"),
        "index_name, non_unique, seq_in_index, column_name, sub_part, index_type, index_comment",
        "index_name, seq_in_index",
    ),
    (
        "check",
        *("check_constraints", "constraint_schema", "table_name"),
        "constraint_name, check_clause",
        "constraint_name",
    ),
    (
        "partition",
        *("partitions", "table_schema", "table_name"),
        "partition_name, subpartition_name, partition_method, partition_expression, partition_description",
        "partition_ordinal_position, subpartition_ordinal_position",
    ),
    (
        "table",
        *("tables", "table_schema", "table_name"),
        "table_type, engine, table_collation, create_options, table_comment",
        "table_name",
    ),
)


def definition_of(query: Query, schema: str, name: str, *, mariadb: bool) -> str | None:
    """The definition, in lines, "" if there is no such table or view; None if the account is not shown the object,
    which may not be there. ``name``: as of `mysqlraft.binlog.statements.Statement`: of a table or view, or with the
    kind of object before it. Waits for whoever is changing the object.

    Raises:
        what ``query`` does.
    """
    kind, _, rest = name.partition(" ")
    if rest and kind in _INFORMATION:
        return _lines(query, kind.lower(), *_INFORMATION[kind], schema, rest) or None
    view = _lines(query, "view", *_VIEW, schema, name)
    if view is None or view:
        return view
    if mariadb:
        found = [_lines(query, *part[:5], schema, name, order=part[5]) for part in _TABLE]
        return "\n".join(lines for lines in found if lines)
    where = named("table_schema", schema, "table_name", name)
    if not query(f"SELECT 1 FROM information_schema.tables WHERE {where}"):
        return ""
    create = _COUNTER.sub("", str(query(f"SHOW CREATE TABLE {identifier(schema, name)}")[0][1]))
    return "\n".join(line for line in create.split("\n") if not _FOREIGN_KEY.match(line))


def ask_in_turn(query: Query, schema: str, name: str) -> None:
    """Waits until no statement on the object is half done. MySQL's are in the binlog before anybody sees what they did;
    with semi-synchronous replication a replica has to answer in between. SHOW CREATE waits for them, which MySQL's
    information_schema does not. ``name``: as of `definition_of`.

    Raises:
        what ``query`` does, also if there is no such object.
    """
    kind, _, rest = name.partition(" ")
    if kind == "DATABASE" and rest:
        query(f"SHOW CREATE DATABASE {identifier(schema)}")
    elif rest and kind in _INFORMATION:
        query(f"SHOW CREATE {kind} {identifier(schema, rest)}")
    else:
        query(f"SHOW CREATE TABLE {identifier(schema, name)}")


def _lines(
    query: Query,
    what: str,
    table: str,
    in_schema: str,
    called: str,
    columns: str,
    schema: str,
    name: str,
    *,
    order: str = "",
) -> str | None:
    # Routines and events of one schema are not told by case.
    is_it = exactly(called, name) if called in ("table_name", "schema_name") else f"{called} = {quoted(name)}"
    rows = query(
        f"SELECT {columns} FROM information_schema.{table} WHERE {exactly(in_schema, schema)} AND {is_it}"
        + (f" ORDER BY {order}" if order else "")
    )
    if rows and not rows[0][0]:
        return None
    return "\n".join(f"{what} " + ", ".join(_text(value) for value in row) for row in rows)


def _text(value: Any) -> str:
    return "-" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def difference(there: str, here: str) -> str:
    """What of two definitions differs, for people."""
    if not there or not here:
        return "it exists only there" if there else "it exists only here"
    theirs, ours = there.splitlines(), here.splitlines()
    only_there = [line.strip() for line in theirs if line not in ours]
    only_here = [line.strip() for line in ours if line not in theirs]
    return f"there: {' / '.join(only_there) or 'in another order'}; here: {' / '.join(only_here) or 'in another order'}"
