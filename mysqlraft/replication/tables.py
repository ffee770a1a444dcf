"""Do the rows of a unit fit the table of that name at this site?

The server's own check is thin: it compares types, but neither names, signedness, character sets nor an ENUM's labels,
says "error 1105" of what it refuses, and drops columns that it does not have. So the comparison is made here, once for
each table map. The local table may have more columns than the rows, at its end: these take their defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pymysql.err
from pymysql.constants import ER

from mysqlraft.binlog.encodings import encoding_of
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.keys import KeyDefinition, keys_of
from mysqlraft.binlog.rows import columns_of, split
from mysqlraft.binlog.statement_scan import ANYTHING, changed_tables
from mysqlraft.binlog.tablemap import (
    BINARY_COLLATION,
    Column,
    ColumnType,
    MoreColumn,
    TableMap,
    TableMapError,
    parse,
    widened,
)
from mysqlraft.mysql.finding import identifier
from mysqlraft.mysql.preflight_tables import GENERATED_NOT_LOGGED
from mysqlraft.mysql.schema import ColumnDefinition, TableDefinition, describe
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.short_rows import AddedValues, Completion, UnknownValue

_T = ColumnType

_INTEGERS = {"tinyint": _T.TINY, "smallint": _T.SHORT, "mediumint": _T.INT24, "int": _T.LONG, "bigint": _T.LONGLONG}
_PLAIN = {"float": _T.FLOAT, "double": _T.DOUBLE, "year": _T.YEAR, "date": _T.DATE}
_TEMPORAL = {"time": _T.TIME2, "datetime": _T.DATETIME2, "timestamp": _T.TIMESTAMP2}
_OLD_TEMPORAL = {_T.TIME: _T.TIME2, _T.DATETIME: _T.DATETIME2, _T.TIMESTAMP: _T.TIMESTAMP2, _T.NEWDATE: _T.DATE}
_BLOBS = {
    "tinyblob": 1,
    "tinytext": 1,
    "blob": 2,
    "text": 2,
    "mediumblob": 3,
    "mediumtext": 3,
    "longblob": 4,
    "longtext": 4,
}
_LARGE = {"json": _T.JSON, "vector": _T.VECTOR}
_GEOMETRIES = frozenset(
    (
        "geometry",
        "point",
        "linestring",
        "polygon",
        "multipoint",
        "multilinestring",
        "multipolygon",
        "geometrycollection",
        "geomcollection",
    )
)


_INCOMPARABLE = frozenset(("vector",))
"""Types that the server refuses to compare with anything."""


_REMEDY = (
    "Stop the writers of the table, SET SESSION sql_log_bin = 0, make it here what it is in the rows, and reload; if a "
    "statement had changed it, change it again so, once all of the log is applied"
)


class TableMismatch(Exception):
    """Rows that the table of this site cannot take as they are; the text names table, column and both types."""


@dataclass(frozen=True, slots=True)
class LocalTable:
    """A table at this site, and the table map that fits it. ``keys``: the primary key first, then the unique ones.

    ``completion``: what rows under this map lack of the table, if statements added it; ``unknown``: why that cannot be
    told, so that only rows that are deleted can be under this map. ``never_null``: columns that may be NULL in the rows
    only. ``not_computed``: generated columns that this server does not compute of rows without them.
    """

    map: TableMap
    definition: TableDefinition
    keys: tuple[KeyDefinition, ...]
    completion: Completion | None = None
    unknown: str = ""
    never_null: frozenset[int] = frozenset()
    not_computed: frozenset[int] = frozenset()

    def check(self) -> bytes:
        """A statement that fails if the table has got other columns since it was looked up: inside a transaction that
        wrote to it, it cannot get any before the end of that."""
        nulls = ",".join(["NULL"] * sum(column.visible for column in self.definition.columns))
        name = self.definition.name
        if any(column.data_type in _INCOMPARABLE for column in self.definition.columns):
            columns = f"SELECT * FROM {name} WHERE FALSE UNION ALL SELECT {nulls}"
            return f"DO (SELECT COUNT(*) FROM ({columns}) AS c)".encode()
        return f"DO ({nulls}) IN (SELECT * FROM {name} WHERE FALSE)".encode()

    def fitting(self, change: Change) -> Iterable[tuple[bytes | None, Change]]:
        """The change as it can be written: a table map's body if it is not that of its rows, and what is left of it.

        Raises:
            TableMismatch: what its rows lack cannot be told, or a row has NULL where the table does not: the server
                would put the default of the moment there.
        """
        if change.kind is not ChangeKind.DELETE:
            if self.unknown:
                raise TableMismatch(self.unknown)
            if self.never_null:
                self._refuse_nulls(change)
            if self.not_computed:
                self._refuse_rows_without(change)
        if self.completion is None:
            return ((None, change),)
        return self.completion.changes(self.map, change)

    def _refuse_rows_without(self, change: Change) -> None:
        _, columns = columns_of(self.map, change.kind, change.layout)
        assert columns is not None
        since = ".".join(map(str, GENERATED_NOT_LOGGED))
        if missing := self.not_computed - {column.index for column in columns}:
            raise TableMismatch(
                f"{self.map.schema}.{self.map.table}: a row comes without the generated column "
                f"{self.map.columns[min(missing)].name}, as MariaDB {since} and later log it, and this "
                "server does not compute it. Upgrade the server, and start the daemon again"
            )

    def _refuse_nulls(self, change: Change) -> None:
        _, columns = columns_of(self.map, change.kind, change.layout)
        assert columns is not None
        bits = sum(1 << number for number, column in enumerate(columns) if column.index in self.never_null)
        for _, after in split(self.map, change.kind, change.layout, change.images):
            assert after is not None
            if nulls := int.from_bytes(after[: (len(columns) + 7) // 8], "little") & bits:
                column = columns[(nulls & -nulls).bit_length() - 1]
                raise TableMismatch(
                    f"{self.map.schema}.{self.map.table}: column {column.index + 1}, {column.name}, is NULL in a row, "
                    f"and NOT NULL at this site. {_REMEDY}"
                )


class LocalTables:
    """The tables at this site, looked up once for each table map until `forget`. ``added``: what statements added to
    them; without it, what rows lack takes the table's default. ``generation`` counts how often any were forgotten."""

    def __init__(self, source: ServerKeySource, added: AddedValues | None = None) -> None:
        self.source = source
        self.generation = 0
        self._added = added
        self._found: dict[bytes, LocalTable] = {}

    def forget(self, tables: Iterable[tuple[str, str | None]] = ()) -> None:
        """A statement on these may have changed them; a name None: anything in the schema; no tables: any."""
        changed = set(changed_tables(tables))
        for body, found in list(self._found.items()):
            schema, table = found.map.schema.lower(), found.map.table.lower()
            if changed & {(schema, table), (schema, None), ANYTHING}:
                del self._found[body]
        self.generation += 1

    def find(self, body: bytes) -> LocalTable:
        """The local table for a table map's body. Raises TableMismatch."""
        found = self._found.get(body)
        if found is None:
            try:
                found = self._find(body, parse(body))
            except TableMapError as error:
                raise TableMismatch(str(error)) from None
            self._found[body] = found
        return found

    def passed(self, local: LocalTable) -> bool:
        """Whether rows may still come that lack some of the columns that these have."""
        added, table = self._added, local.map
        return added is not None and any(added.passed(table.schema, table.table, each.name) for each in table.columns)

    def _find(self, body: bytes, rows: TableMap) -> LocalTable:
        definition = describe(self.source.query, rows.schema, rows.table)
        if definition is None:
            try:
                # What the account has no rights to is not shown, either; that is another error, and may pass.
                self.source.query(f"SELECT 1 FROM {identifier(rows.schema, rows.table)} LIMIT 0")
            except pymysql.err.MySQLError as error:
                if not error.args or error.args[0] not in (ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR):
                    raise
            raise TableMismatch(
                f"{rows.schema}.{rows.table} does not exist at this site, but another site's rows are to go into it: "
                "SET SESSION sql_log_bin = 0, create it here as it is there, and reload. If a statement had dropped "
                "it, drop it again once all of the log is applied"
            )
        if definition.engine != "InnoDB":
            found = f"a {definition.engine} table" if definition.engine else "a view"
            raise TableMismatch(
                f"{rows.schema}.{rows.table} is {found} at this site, whose rows cannot be written together with the "
                f"place in the log. SET SESSION sql_log_bin = 0; ALTER TABLE {definition.name} ENGINE = InnoDB"
            )
        compare(rows, definition)
        keys = tuple(keys_of(rows, self.source))
        try:
            completion, unknown = self._completion(body, rows, definition), ""
        except UnknownValue as error:
            completion, unknown = None, _unknown(rows, definition, error)
        pairs = zip(rows.columns, definition.columns, strict=False)
        never_null = frozenset(column.index for column, local in pairs if column.nullable and not local.nullable)
        not_computed = frozenset(number for number, column in enumerate(definition.columns) if column.computed)
        if not_computed and self._computes():
            not_computed = frozenset()
        not_computed = frozenset(number for number in not_computed if number < len(rows.columns))
        return LocalTable(rows, definition, keys, completion, unknown, never_null, not_computed)

    def _computes(self) -> bool:
        """Whether the server computes generated columns, and what an index has of them, of rows without them. MariaDB
        10.11 leaves old values in stored ones, and breaks indexes on others."""
        if not self.source.is_mariadb():
            return True
        numbers = re.findall(r"\d+", self.source.version().removeprefix("5.5.5-"))
        return tuple(map(int, numbers[:2])) >= GENERATED_NOT_LOGGED

    def _completion(self, body: bytes, rows: TableMap, definition: TableDefinition) -> Completion | None:
        missing = definition.columns[len(rows.columns) :]
        if not missing or self._added is None:
            return None
        # MySQL computes these for any row, MariaDB only for statements: its rows have them.
        passed = partial(self._added.passed, rows.schema, rows.table)
        late = [column.name for column in missing if column.stored and passed(column.name)]
        if late and self.source.is_mariadb():
            raise UnknownValue("MariaDB does not compute stored columns of rows that lack them", late)
        numbers = {
            column.name: number for number, column in enumerate(missing, len(rows.columns)) if not column.computed
        }
        found = self._added.additions(rows.schema, rows.table, numbers)
        added = {numbers[name]: addition for name, addition in found.items()}
        if not added:
            return None
        wide = widened(
            body, [added_column(column) for column in definition.columns[len(rows.columns) : max(added) + 1]]
        )
        table = parse(wide)
        values = tuple(
            (table.columns[number], self._added.value(addition, rows.schema, rows.table, table.columns[number]))
            for number, addition in added.items()
        )
        return Completion(table, wide, values)


def compare(rows: TableMap, local: TableDefinition) -> None:
    """Raises TableMismatch at the first difference that matters."""
    where = f"{rows.schema}.{rows.table}"
    if len(rows.columns) > len(local.columns):
        extra = rows.columns[len(local.columns)]
        raise TableMismatch(
            f"{where}: the rows have {len(rows.columns)} columns, the table at this site {len(local.columns)}; "
            f"column {extra.index + 1}, {extra.name or '?'} ({_shown(extra)}), is missing here. {_REMEDY}"
        )
    for column, definition in zip(rows.columns, local.columns, strict=False):
        problem = ""
        if column.name and column.name.casefold() != definition.name.casefold():
            problem = "the name differs"
        else:
            problem = _difference(column, definition)
        if problem:
            raise TableMismatch(
                f"{where}: column {column.index + 1} is {column.name or '?'} {_shown(column)} in the rows, and "
                f"{definition.name} {definition.column_type} at this site: {problem}. {_REMEDY}"
            )
    if rows.primary_key:
        primary = [rows.columns[index].name.casefold() for index, _ in rows.primary_key]
        if primary != [name.casefold() for name in local.primary_key]:
            raise TableMismatch(
                f"{where}: the primary key is ({', '.join(primary)}) in the rows, and "
                f"({', '.join(local.primary_key)}) at this site. {_REMEDY}"
            )


def _difference(column: Column, local: ColumnDefinition) -> str:
    """What makes a value of `column` another one in the local column; "" if nothing does."""
    expected = _shape(local)
    if expected is None:
        # A type that is stored under another's number, such as MariaDB's INET6: the server compares these itself.
        return ""
    kind, details = expected
    if _OLD_TEMPORAL.get(column.type, column.type) != kind:
        return "the type differs"
    if details != _details(column):
        return "the size differs"
    if column.type in (_T.ENUM, _T.SET):
        labels = _labels(column)
        if labels and labels != local.labels:
            return "the labels differ"
    elif kind in (*_INTEGERS.values(), _T.NEWDECIMAL, _T.FLOAT, _T.DOUBLE) and column.unsigned != local.unsigned:
        return "one is unsigned"
    if column.collation is not None and column.collation != (local.collation or BINARY_COLLATION):
        return "the character set or collation differs"
    return ""


def _shape(local: ColumnDefinition) -> tuple[ColumnType, tuple[int, ...]] | None:
    """The type and `_details` that the local column has in the binlog; None if that cannot be told."""
    kind = local.data_type
    if "COMPRESSED" in local.column_type.upper():
        return None
    if kind in _INTEGERS:
        return _INTEGERS[kind], ()
    if kind in _PLAIN:
        return _PLAIN[kind], ()
    if kind in _TEMPORAL:
        return _TEMPORAL[kind], (local.fraction or 0,)
    if kind in _BLOBS:
        return _T.BLOB, (_BLOBS[kind],)
    if kind in _LARGE:
        return _LARGE[kind], (4,)
    if kind in _GEOMETRIES:
        return _T.GEOMETRY, (4,)
    if kind == "decimal":
        return _T.NEWDECIMAL, (local.precision or 0, local.scale or 0)
    if kind == "bit":
        return _T.BIT, (local.precision or 0,)
    if kind in ("char", "binary"):
        return _T.STRING, (local.octets or 0,)
    if kind in ("varchar", "varbinary"):
        return _T.VARCHAR, (local.octets or 0,)
    if kind == "enum":
        return _T.ENUM, (1 if len(local.labels) < 256 else 2,)
    if kind == "set":
        width = (len(local.labels) + 7) // 8
        return _T.SET, (width if width < 5 else 8,)
    return None


def added_column(local: ColumnDefinition) -> MoreColumn:
    """The local column as a table map has it."""
    shape = _shape(local)
    if shape is None:
        raise UnknownValue(f"the binlog's form of column {local.name} {local.column_type} is not known to mysqlraft")
    kind, details = shape
    code, meta = int(kind), b""
    if kind in (_T.FLOAT, _T.DOUBLE):
        meta = bytes((4 if kind is _T.FLOAT else 8,))
    elif kind is _T.BIT:
        meta = bytes((details[0] % 8, details[0] // 8))
    elif kind is _T.VARCHAR:
        meta = details[0].to_bytes(2, "little")
    elif kind in (_T.ENUM, _T.SET):
        code, meta = int(_T.STRING), bytes((int(kind), details[0]))
    elif kind is _T.STRING:
        meta = bytes((int(_T.STRING) ^ (details[0] & 0x300) >> 4, details[0] & 0xFF))
    else:
        meta = bytes(details)
    collation = local.collation if local.collation is not None else BINARY_COLLATION
    unsigned = local.unsigned or kind is _T.YEAR
    dimensions = int(local.column_type.partition("(")[2].rstrip(")")) if kind is _T.VECTOR else 0
    return MoreColumn(local.name, code, meta, local.nullable, unsigned, collation, dimensions)


def _unknown(rows: TableMap, local: TableDefinition, why: UnknownValue) -> str:
    missing = ", ".join(why.columns or [column.name for column in local.columns[len(rows.columns) :]])
    return (
        f"{rows.schema}.{rows.table}: the rows lack {missing}: {why}. Stop the writers of the table. At every site, "
        f"SET SESSION sql_log_bin = 0, drop {missing}, reload, and add it again, with the same values everywhere, once "
        "all of the log is applied"
    )


def _details(column: Column) -> tuple[int, ...]:
    if column.type in (_T.BLOB, _T.JSON, _T.VECTOR, _T.GEOMETRY):
        return (column.prefix,)
    if column.type in (_T.VARCHAR, _T.STRING, _T.ENUM, _T.SET):
        return (column.size,)
    if column.type is _T.NEWDECIMAL:
        return column.precision, column.scale
    if column.type is _T.BIT:
        return (column.precision,)
    if column.type in (_T.TIME2, _T.DATETIME2, _T.TIMESTAMP2, _T.TIME, _T.DATETIME, _T.TIMESTAMP):
        return (column.scale,)
    return ()


def _labels(column: Column) -> tuple[str, ...]:
    """The labels as text; () if they are not known, or hold more than ASCII in a character set that Python lacks."""
    try:
        encoding = "ascii" if column.collation is None else encoding_of(column.collation)
    except LookupError:
        encoding = "ascii"
    try:
        return tuple(label.decode(encoding) for label in column.labels)
    except UnicodeDecodeError:
        return ()


def _shown(column: Column) -> str:
    details: Sequence[int] = _details(column)
    text = column.type.name + (f"({', '.join(map(str, details))})" if details else "")
    if column.unsigned:
        text += " unsigned"
    if column.collation is not None:
        text += f" collation {column.collation}"
    return text
