"""The daemon's own schema, and the definitions of the tables that it writes to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mysqlraft.mysql.finding import identifier

SCHEMA = "mysqlraft"
CREATE_SCHEMA = "CREATE DATABASE IF NOT EXISTS mysqlraft DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
VERSION = 2

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
    # What certification knows of tables: seldom written, so not in the row that every applied transaction writes.
    "certification": (
        "CREATE TABLE mysqlraft.certification ("
        "id TINYINT UNSIGNED NOT NULL PRIMARY KEY,"
        " state LONGBLOB NOT NULL"
        ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    ),
    # Rows that this site has and no other one, see mysqlraft.replication.left_out.
    "left_out": (
        "CREATE TABLE mysqlraft.left_out ("
        "schema_name VARCHAR(64) NOT NULL,"
        " table_name VARCHAR(64) NOT NULL,"
        " row_count BIGINT UNSIGNED NOT NULL,"
        " file VARCHAR(255) NOT NULL,"
        " position BIGINT UNSIGNED NOT NULL,"
        " PRIMARY KEY (schema_name, table_name)"
        ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    ),
    # Always empty: rows that come and go within one transaction, see mysqlraft.replication.batch_writer.
    "weight": (
        "CREATE TABLE mysqlraft.weight (id INT UNSIGNED NOT NULL PRIMARY KEY"
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


Step = Callable[[Query], None]
"""Makes one change to the schema of a version before; does nothing if that was made already."""

STEPS: dict[int, tuple[Step, ...]] = {
    # progress.state has format 5 from now on, and the table certification is new. No table changes.
    2: (),
}
"""Version -> the steps to it from the version before. A crash may come between any two steps, and then all of them are
taken again."""


class SchemaError(Exception):
    """The schema `mysqlraft` is of another version; the text says what to do."""


def ensure_schema(query: Query) -> None:
    """Creates what is missing of the schema `mysqlraft`, and converts what a mysqlraft before made; does nothing if all
    is there.

    Raises:
        SchemaError: it was made by a newer mysqlraft.
    """
    # Without a row, a crash has come before the end of the first time, maybe to a mysqlraft before.
    found = 1
    present = {
        str(row[0])
        for row in query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'mysqlraft'")
    }
    if "version" in present:
        rows = query("SELECT MAX(version) FROM mysqlraft.version")
        found = int(rows[0][0] or 1)
        if found > VERSION:
            raise SchemaError(
                f"the server's schema mysqlraft has version {found}; this mysqlraft knows {VERSION}: upgrade it"
            )
    else:
        query(CREATE_SCHEMA)
    for name, statement in _TABLES.items():
        if name not in present:
            query(statement)
    for version in range(found + 1, VERSION + 1):
        for step in STEPS[version]:
            step(query)
        query(f"UPDATE mysqlraft.version SET version = {version}")
    # A crash may have come between any two statements: each row is looked for, too.
    if not query("SELECT 1 FROM mysqlraft.version"):
        query(f"INSERT INTO mysqlraft.version VALUES ({VERSION})")
    if not query("SELECT 1 FROM mysqlraft.progress"):
        query("INSERT INTO mysqlraft.progress VALUES (1, 0, '', NULL)")


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """A column as information_schema describes it. ``collation`` is the server's number, None without characters.
    ``visible``: SELECT * has it. ``computed``: from other columns, by the server; ``stored``: when a row is written."""

    name: str
    data_type: str
    column_type: str
    octets: int | None
    precision: int | None
    scale: int | None
    fraction: int | None
    collation: int | None
    nullable: bool = True
    visible: bool = True
    computed: bool = False
    stored: bool = False

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
    where = named("table_schema", schema, "table_name", table)
    collations = collation_numbers(query)
    # Its VECTOR is a VARBINARY with functions of its own, and is that in the binlog.
    mariadb = "mariadb" in str(query("SELECT VERSION()")[0][0]).lower()
    columns = tuple(
        ColumnDefinition(
            str(name),
            "varbinary" if mariadb and str(data_type).lower() == "vector" else str(data_type).lower(),
            _text(column_type),
            None if octets is None else int(octets),
            None if precision is None else int(precision),
            None if scale is None else int(scale),
            None if fraction is None else int(fraction),
            None if collation is None else collations.get(str(collation)),
            str(nullable).upper() == "YES",
            "INVISIBLE" not in str(extra).upper(),
            bool(computed),
            bool(computed) and "STORED" in str(extra).upper(),
        )
        for name, data_type, column_type, octets, precision, scale, fraction, collation, nullable, extra, computed in (
            query(
                "SELECT column_name, data_type, column_type, character_octet_length, numeric_precision, numeric_scale,"
                " datetime_precision, collation_name, is_nullable, extra, generation_expression"
                f" FROM information_schema.columns WHERE {where} ORDER BY ordinal_position"
            )
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
    """A text as an SQL literal that no sql_mode reads otherwise.

    A literal, no expression: MariaDB looks at one table for `table_name = LITERAL` in information_schema, and waits for
    whoever is changing it. For an expression it goes through the schema's files, of which one is missing for a moment
    while its table is altered.
    """
    return f"_utf8mb4 0x{text.encode().hex()}" if text else "''"


def exactly(column: str, name: str) -> str:
    """The condition that a column of information_schema is the name of this schema or table.

    The server compares these columns without regard to case, and to accents, also where these tell two tables apart.
    """
    found, wanted = (
        f"CAST(IF(@@lower_case_table_names, LOWER({text}), {text}) AS BINARY)" for text in (column, quoted(name))
    )
    # The first half is what the server finds the rows by.
    return f"({column} = {quoted(name)} AND {found} = {wanted})"


def named(in_schema: str, schema: str, called: str, table: str) -> str:
    """The condition for one table's rows of a table of information_schema, of which these are the columns."""
    return f"{exactly(in_schema, schema)} AND {exactly(called, table)}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
