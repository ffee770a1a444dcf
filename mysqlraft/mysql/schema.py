"""The daemon's own schema, and the definitions of the tables that it writes to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mysqlraft.mysql.finding import identifier

SCHEMA = "mysqlraft"
VERSION = 1

Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs one statement and returns its rows."""

_TABLES = {
    "version": "CREATE TABLE mysqlraft.version (version INT UNSIGNED NOT NULL PRIMARY KEY) ENGINE = InnoDB",
    # binary: no collation of the server's may change what is stored or how it compares.
    "progress": (
        "CREATE TABLE mysqlraft.progress ("
        "id TINYINT UNSIGNED NOT NULL PRIMARY KEY,"
        " applied BIGINT UNSIGNED NOT NULL,"
        " state LONGBLOB NOT NULL,"
        " intent VARBINARY(1024) NULL"
        ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    ),
    # Where capture began when the site was new: kept before it is proposed, as the log may take its time.
    "beginning": (
        "CREATE TABLE mysqlraft.beginning ("
        "id TINYINT UNSIGNED NOT NULL PRIMARY KEY,"
        " base BIGINT UNSIGNED NOT NULL,"
        " position LONGBLOB NOT NULL"
        ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    ),
    "conflicts": (
        "CREATE TABLE mysqlraft.conflicts ("
        "log_index BIGINT UNSIGNED NOT NULL,"
        " unit_number INT UNSIGNED NOT NULL,"
        " number INT UNSIGNED NOT NULL,"
        " schema_name VARCHAR(64) NOT NULL,"
        " table_name VARCHAR(64) NOT NULL,"
        " type VARCHAR(40) NOT NULL,"
        " row_key TEXT NOT NULL,"
        " origin TINYINT UNSIGNED NOT NULL,"
        " committed_at DATETIME(6) NOT NULL,"
        " other_origin TINYINT UNSIGNED NOT NULL,"
        " other_index BIGINT UNSIGNED NOT NULL,"
        " other_committed_at DATETIME(6) NULL,"
        " image LONGTEXT NULL,"
        " other_image LONGTEXT NULL,"
        " resolution VARCHAR(200) NOT NULL,"
        " PRIMARY KEY (log_index, unit_number, number)"
        ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    ),
}


class SchemaError(Exception):
    """The schema `mysqlraft` is of another version; the text says what to do."""


def ensure_schema(query: Query) -> None:
    """Creates what is missing of the schema `mysqlraft`; does nothing if all is there.

    Raises:
        SchemaError: it was made by a newer mysqlraft.
    """
    present = {
        str(row[0])
        for row in query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'mysqlraft'")
    }
    if "version" in present:
        rows = query("SELECT MAX(version) FROM mysqlraft.version")
        found = rows[0][0]
        if found is not None and int(found) > VERSION:
            raise SchemaError(
                f"the server's schema mysqlraft has version {found}; this mysqlraft knows {VERSION}: upgrade it"
            )
    else:
        query("CREATE DATABASE IF NOT EXISTS mysqlraft DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    for name, statement in _TABLES.items():
        if name not in present:
            query(statement)
    # A crash may have come between any two statements: each row is looked for, too.
    if not query("SELECT 1 FROM mysqlraft.version"):
        query(f"INSERT INTO mysqlraft.version VALUES ({VERSION})")
    if not query("SELECT 1 FROM mysqlraft.progress"):
        query("INSERT INTO mysqlraft.progress VALUES (1, 0, '', NULL)")


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """A column as information_schema describes it. ``collation`` is the server's number, None without characters."""

    name: str
    data_type: str
    column_type: str
    octets: int | None
    precision: int | None
    scale: int | None
    fraction: int | None
    collation: int | None

    @property
    def unsigned(self) -> bool:
        return "unsigned" in self.column_type or "zerofill" in self.column_type

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of an ENUM or SET."""
        return tuple(label.replace("''", "'") for label in re.findall(r"'((?:[^']|'')*)'", self.column_type))


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A table as it is at this server. ``primary_key``: column names in the order of the key; ``engine``: None for a
    view."""

    schema: str
    table: str
    engine: str | None
    columns: tuple[ColumnDefinition, ...]
    primary_key: tuple[str, ...]

    @property
    def name(self) -> str:
        return identifier(self.schema, self.table)


def describe(query: Query, schema: str, table: str) -> TableDefinition | None:
    """The definition of a table; None if there is none of that name."""
    where = f"table_schema = {quoted(schema)} AND table_name = {quoted(table)}"
    collations = collation_numbers(query)
    columns = tuple(
        ColumnDefinition(
            str(name),
            str(data_type).lower(),
            _text(column_type),
            None if octets is None else int(octets),
            None if precision is None else int(precision),
            None if scale is None else int(scale),
            None if fraction is None else int(fraction),
            None if collation is None else collations.get(str(collation)),
        )
        for name, data_type, column_type, octets, precision, scale, fraction, collation in query(
            "SELECT column_name, data_type, column_type, character_octet_length, numeric_precision, numeric_scale,"
            f" datetime_precision, collation_name FROM information_schema.columns WHERE {where}"
            " ORDER BY ordinal_position"
        )
    )
    if not columns:
        return None
    primary = tuple(
        str(row[0])
        for row in query(
            f"SELECT column_name FROM information_schema.statistics WHERE {where} AND index_name = 'PRIMARY'"
            " ORDER BY seq_in_index"
        )
    )
    engines = query(f"SELECT engine FROM information_schema.tables WHERE {where}")
    return TableDefinition(schema, table, engines[0][0] if engines else None, columns, primary)


def collation_numbers(query: Query) -> dict[str, int]:
    """Collation name -> the server's number for it."""
    applicability = "information_schema.collation_character_set_applicability"
    names = {str(row[0]).lower() for row in query(f"SHOW COLUMNS FROM {applicability}")}
    if "full_collation_name" in names:  # MariaDB >= 10.10: one name may belong to several character sets
        rows = query(f"SELECT full_collation_name, id FROM {applicability}")
    else:
        rows = query("SELECT collation_name, id FROM information_schema.collations")
    return {str(name): int(number) for name, number in rows if number is not None}


def quoted(text: str) -> str:
    """A text as an SQL expression that no sql_mode reads otherwise."""
    return f"CONVERT(0x{text.encode().hex()} USING utf8mb4)" if text else "''"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
