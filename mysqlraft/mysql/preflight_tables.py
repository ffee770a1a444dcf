"""Preflight: can every replicated table be replicated?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pymysql
from pymysql.constants import ER

from mysqlraft.mysql.finding import Finding, Severity, identifier
from mysqlraft.mysql.schema import named

Query = Callable[[str], Sequence[Sequence[Any]]]
Replicated = Callable[[str, str], bool]

CASCADES_LOGGED = (9, 6)
"""From this MySQL on, rows that a foreign key changes are in the binlog."""
FUNCTIONAL_INDEXES = (8, 0, 13)
GENERATED_NOT_LOGGED = (11, 8)
"""From this MariaDB on (found with 11.8.9; 10.11 logs them), generated columns of rows that are changed or deleted are
not in the binlog. It computes them where it applies such rows; servers before it do not."""

_OF_PERIODS = ("date", "datetime", "timestamp")
_ZONE_CALLS = ("from_unixtime(", "'system\\'")
_CASCADING = ("CASCADE", "SET NULL", "SET DEFAULT")


def check_tables(
    query: Query, replicated: Replicated, variables: Mapping[str, str], version: tuple[int, ...], *, mariadb: bool
) -> Iterator[Finding]:
    """``version``: the server's."""
    tables = [
        (schema, table, engine)
        for schema, table, engine in query(
            "SELECT table_schema, table_name, engine FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
        )
        if replicated(schema, table)
    ]
    for schema, table, kind in query(
        "SELECT table_schema, table_name, table_type FROM information_schema.tables"
        " WHERE table_type IN ('SYSTEM VERSIONED', 'SEQUENCE')"
    ):
        if replicated(schema, table):
            yield Finding(
                "table_type",
                Severity.ERROR,
                f"{schema}.{table} is a {kind.lower()}{' table' if kind != 'SEQUENCE' else ''}",
                "it cannot be replicated: its history, or its next value, would differ from site to site; exclude it "
                "in `replicate`, alike at every site",
            )
    names = {(schema, table) for schema, table, _ in tables}
    for schema, table, engine in tables:
        if engine != "InnoDB":
            yield Finding(
                "engine",
                Severity.ERROR,
                f"{schema}.{table} is a {engine} table",
                "its rows cannot be written and rolled back together with the place in the log",
                (f"ALTER TABLE {identifier(schema, table)} ENGINE = InnoDB",),
            )
    yield from _primary_keys(query, names)
    if not mariadb and version >= FUNCTIONAL_INDEXES:
        yield from _functional_indexes(query, names)
    if mariadb:
        yield from _without_overlaps(query, names)
        if version >= GENERATED_NOT_LOGGED:
            yield from _generated_in_keys(query, names)
    else:
        yield from _generated_in_the_session(query, names)
    logged = not mariadb and version >= CASCADES_LOGGED and variables.get("innodb_native_foreign_keys") != "ON"
    if not logged:
        yield from _cascades(query, names)


def _primary_keys(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    indexes: dict[tuple[str, str], dict[str, list[tuple[str | None, bool]]]] = {}
    for schema, table, index, column, part, nullable in query(
        "SELECT table_schema, table_name, index_name, column_name, sub_part, nullable"
        " FROM information_schema.statistics WHERE non_unique = 0"
        " ORDER BY table_schema, table_name, index_name, seq_in_index"
    ):
        usable = part is None and nullable != "YES"
        indexes.setdefault((schema, table), {}).setdefault(index, []).append((column, usable))
    for schema, table in sorted(tables):
        unique = indexes.get((schema, table), {})
        if "PRIMARY" in unique:
            continue
        key = next((columns for columns in unique.values() if all(c and usable for c, usable in columns)), None)
        if key is not None:
            change = f"ADD PRIMARY KEY ({', '.join(identifier(column or '') for column, _ in key)})"
            why = "rows are found by it; this table has a unique key without NULLs that can be it"
        else:
            name = _new_column(query, schema, table)
            change = f"ADD COLUMN {identifier(name)} BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY"
            why = (
                "rows are found by it; if the table has rows already, give it the key before its data is copied to the "
                "other sites, as each server would number the rows in its own way"
            )
        yield Finding(
            "primary_key",
            Severity.ERROR,
            f"{schema}.{table} has no primary key",
            why,
            (f"ALTER TABLE {identifier(schema, table)} {change}",),
        )


def _new_column(query: Query, schema: str, table: str) -> str:
    """A name that the table has no column of."""
    taken = {
        str(column).lower()
        for s, t, column in query("SELECT table_schema, table_name, column_name FROM information_schema.columns")
        if (s, t) == (schema, table)
    }
    return next(name for name in ("id", "row_id", *(f"row_id_{n}" for n in range(2, 5000))) if name not in taken)


def _functional_indexes(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    found = {
        (schema, table, index): None
        for schema, table, index in query(
            "SELECT table_schema, table_name, index_name FROM information_schema.statistics"
            " WHERE non_unique = 0 AND expression IS NOT NULL"
        )
        if (schema, table) in tables
    }
    for schema, table, index in found:
        yield Finding(
            "functional_index",
            Severity.ERROR,
            f"{schema}.{table} has the unique index {index} on an expression",
            "its values are not in the row images, so two sites that write the same one would go unnoticed; a unique "
            "index on a stored generated column of the same expression is seen",
            (f"ALTER TABLE {identifier(schema, table)} DROP INDEX {identifier(index)}",),
        )


def _generated_in_keys(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    found = {
        (schema, table, index): column
        for schema, table, index, column in query(
            "SELECT s.table_schema, s.table_name, s.index_name, s.column_name FROM information_schema.statistics s"
            " JOIN information_schema.columns c USING (table_schema, table_name, column_name)"
            " WHERE s.non_unique = 0 AND c.is_generated = 'ALWAYS'"
        )
        if (schema, table) in tables
    }
    for (schema, table, index), column in found.items():
        yield Finding(
            "generated_key",
            Severity.ERROR,
            f"{schema}.{table} has the unique index {index} with the generated column {column}",
            "this MariaDB does not log it of a row that is changed or deleted, so two sites that write the same value "
            "would go unnoticed; an index that is not unique may have it",
            (f"ALTER TABLE {identifier(schema, table)} DROP INDEX {identifier(index)}",),
        )


def _without_overlaps(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    """Keys of MariaDB's that end in a period. Only SHOW CREATE TABLE tells them from others on the same columns."""
    keys: dict[tuple[str, str, str], list[tuple[str, bool]]] = {}
    for schema, table, index, column, kind in query(
        "SELECT s.table_schema, s.table_name, s.index_name, s.column_name, c.data_type"
        " FROM information_schema.statistics s JOIN information_schema.columns c"
        " USING (table_schema, table_name, column_name) WHERE s.non_unique = 0"
        " ORDER BY s.table_schema, s.table_name, s.index_name, s.seq_in_index"
    ):
        if (schema, table) in tables:
            keys.setdefault((schema, table, index), []).append((column, _text(kind) in _OF_PERIODS))
    for (schema, table, index), columns in keys.items():
        if len(columns) < 3 or not all(may_be for _, may_be in columns[-2:]):
            continue
        where = identifier(schema, table)
        try:
            create = _text(query(f"SHOW CREATE TABLE {where}")[0][1])
        except pymysql.err.MySQLError as error:
            if error.args[0] in (ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR):
                continue  # it has just gone
            raise
        name = f"KEY {identifier(index)}"
        drop, made = (f"INDEX {identifier(index)}", f"UNIQUE {name}")
        if index == "PRIMARY":
            name = drop = made = "PRIMARY KEY"
        if not any(f"{name} (" in line and " WITHOUT OVERLAPS)" in line for line in create.splitlines()):
            continue
        # Where the columns are in the key's own order, that of a period's end before its start, MariaDB keeps the key.
        plain = ", ".join(identifier(column) for column, _ in (*columns[:-2], columns[-1], columns[-2]))
        yield Finding(
            "without_overlaps",
            Severity.ERROR,
            f"{schema}.{table} has the key {index} WITHOUT OVERLAPS",
            "two sites that write periods which overlap, and are not the same, would go unnoticed, and the rows of one "
            "fit nowhere else; a key on the same columns is seen",
            (f"ALTER TABLE {where} DROP {drop}, ADD {made} ({plain})",),
        )


def _generated_in_the_session(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    """Generated columns that MySQL stores, or has in an index, and whose value depends on the time zone of whoever
    writes the row. (MariaDB makes none.) Apply cannot write what the row has at its origin: the server computes it."""
    columns: dict[tuple[str, str], dict[str, tuple[str, str, bool, str]]] = {}
    for schema, table, *column in query(
        "SELECT table_schema, table_name, column_name, data_type, column_type, extra, generation_expression"
        " FROM information_schema.columns WHERE generation_expression <> '' OR data_type = 'timestamp'"
    ):
        name, kind, full, extra, expression = (_text(value) for value in column)
        columns.setdefault((schema, table), {})[name] = kind, full, "STORED" in extra, expression
    for place, found in columns.items():
        if place not in tables or not any(expression for *_, expression in found.values()):
            continue
        # A column that is computed from one that depends on the zone depends on it.
        depends = {name for name, (kind, *_, expression) in found.items() if _by_zone(kind, expression)}
        while more := {
            name
            for name, (*_, expression) in found.items()
            if name not in depends and any(identifier(other) in expression for other in depends)
        }:
            depends |= more
        stored = [name for name in depends if found[name][3] and found[name][2]]
        indexes: dict[str, str] = {}
        for index, column_name in query(
            "SELECT index_name, column_name FROM information_schema.statistics"
            f" WHERE {named('table_schema', place[0], 'table_name', place[1])}"
        ):
            if column_name in depends and found[column_name][3] and column_name not in stored:
                indexes.setdefault(index, column_name)
        changes = [(f"MODIFY {identifier(name)} {found[name][1]}", name, "is stored") for name in sorted(stored)]
        changes += [(f"DROP INDEX {identifier(i)}", name, f"is in the index {i}") for i, name in indexes.items()]
        for change, name, how in changes:
            yield Finding(
                "generated_column",
                Severity.ERROR,
                f"{'.'.join(place)} has the generated column {name}, which comes from a TIMESTAMP or is one, or from "
                f"FROM_UNIXTIME, and {how}",
                "its value depends on the time zone of the session that writes the row, and each server computes it "
                "anew, so it would differ from site to site; compute it from a DATETIME, in the query, or in a trigger",
                (f"ALTER TABLE {identifier(*place)} {change}",),
            )


def _by_zone(kind: str, expression: str) -> bool:
    """Whether a column's value depends on a time zone by itself: the session's, or the machine's."""
    return kind == "timestamp" or any(call in expression.lower() for call in _ZONE_CALLS)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cascades(query: Query, tables: set[tuple[str, str]]) -> Iterator[Finding]:
    rules = [
        row
        for row in query(
            "SELECT constraint_schema, table_name, constraint_name, unique_constraint_schema, referenced_table_name,"
            " update_rule, delete_rule FROM information_schema.referential_constraints"
        )
        if (row[0], row[1]) in tables and (row[5] in _CASCADING or row[6] in _CASCADING)
    ]
    if not rules:
        return
    columns: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for schema, table, constraint, column, referenced in query(
        "SELECT constraint_schema, table_name, constraint_name, column_name, referenced_column_name"
        " FROM information_schema.key_column_usage WHERE referenced_column_name IS NOT NULL"
        " ORDER BY constraint_schema, table_name, constraint_name, ordinal_position"
    ):
        columns.setdefault((schema, table, constraint), []).append((column, referenced))
    for schema, table, constraint, parent_schema, parent, on_update, on_delete in rules:
        pairs = columns[schema, table, constraint]
        child_columns = ", ".join(identifier(column) for column, _ in pairs)
        parent_columns = ", ".join(identifier(column) for _, column in pairs)
        where = identifier(schema, table)
        actions = ", ".join(
            f"ON {event} {rule}" for event, rule in (("UPDATE", on_update), ("DELETE", on_delete)) if rule in _CASCADING
        )
        yield Finding(
            "cascade",
            Severity.ERROR,
            f"{schema}.{table} has the foreign key {constraint} with {actions}",
            "this server changes rows of it without saying so in its binlog, so the others never learn of them; MySQL "
            "9.6 and later do say so; here the application has to delete and change these rows itself",
            (
                f"ALTER TABLE {where} DROP FOREIGN KEY {identifier(constraint)}",
                f"ALTER TABLE {where} ADD CONSTRAINT {identifier(constraint)} FOREIGN KEY ({child_columns})"
                f" REFERENCES {identifier(parent_schema, parent)} ({parent_columns})",
            ),
        )
