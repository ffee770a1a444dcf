"""Row keys: the hash of every unique key value of every row image.

Two rows that the server holds for the same under a unique key must have the same hash; two that it does not may, and
then a conflict is seen where there is none. So every fold here errs to one side. Integers, dates, decimals, ENUM, SET
and BIT hash as their bytes: for these the binlog has one form of each value (negative zeros are the exception). Strings
are folded by their collation first (`mysqlraft.binlog.collations`).

The seed of a key is its schema, table and column *names*: the same at every site and on both servers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xxhash import xxh3_64_intdigest

from mysqlraft.binlog.collations import Fold
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.rows import RowKind, columns_of
from mysqlraft.binlog.slicer import run, walk_source
from mysqlraft.binlog.tablemap import BINARY_COLLATION, Column, ColumnType, TableMap

_T = ColumnType


@dataclass(frozen=True, slots=True)
class KeyPart:
    """A column of a unique key. ``prefix``: characters (bytes of a binary string) that count; 0: all."""

    column: str
    prefix: int = 0


@dataclass(frozen=True, slots=True)
class KeyDefinition:
    """A unique key other than the primary key, which table maps bring themselves.

    ``refusal``: why rows cannot tell its values ("" if they can): an expression, a period without overlaps.
    """

    name: str
    parts: tuple[KeyPart, ...]
    refusal: str = ""


class KeySource(Protocol):
    """What capture asks the server about a table beyond its table map."""

    def unique_keys(self, schema: str, table: str) -> list[KeyDefinition] | None:
        """The unique keys of a table as it is now, without the primary key; None if it is gone."""
        ...

    def columns(self, schema: str, table: str) -> list[str] | None:
        """The names of a table's columns as it is now, as far as anybody sees them; None if it is gone."""
        ...

    def generated_columns(self, schema: str, table: str) -> frozenset[str]:
        """The names of a table's generated columns as it is now; none if it is gone."""
        ...

    def binlog_end(self) -> tuple[str, int]:
        """File and offset where the server's binlog ends."""
        ...

    def fold(self, collation: int) -> Fold:
        """How strings of a collation are folded."""
        ...

    def text(self, statement: bytes, collation: int) -> str:
        """A statement of a client with this collation's character set, as text."""
        ...

    def characters(self, statement: bytes, collation: int) -> list[bytes]:
        """The characters of such a statement."""
        ...

    def writes_only(self, schema: str, table: str, calls: Sequence[str]) -> bool:
        """Whether what writes this table, and calls functions of these names, writes no other: it is a table, without
        triggers, and none of the functions is a stored one."""
        ...


class UnhashableKey(BinlogError):
    """A table with a unique key whose values the binlog does not hold, or without a primary key; the text says what to
    do. What is in the binlog stays as it was written: no setting and no new key helps rows that are there already."""


_LOST = (
    "These rows cannot be replicated: exclude the table in `replicate`, alike at every site, restart, and copy what it "
    "holds into a new table with a primary key"
)


Slicer = Callable[[bytes, int, int, Callable[[int], None]], int]
"""(images, start, end, add) -> number of rows; calls ``add`` with each row key, not each a different one."""


def seed_of(schema: str, table: str, parts: Sequence[KeyPart]) -> int:
    """The seed of a key's hashes: without case, which not all servers tell apart in names."""
    words = [schema.lower(), table.lower(), *(part.column.lower() for part in parts)]
    return xxh3_64_intdigest("\0".join(words).encode("utf-8", "surrogateescape"))


def keys_of(table: TableMap, source: KeySource) -> list[KeyDefinition]:
    """The primary key and all unique keys of a table, as it is now. Raises as `known_keys` does."""
    return known_keys(table, source)[0]


def known_keys(table: TableMap, source: KeySource) -> tuple[list[KeyDefinition], bool]:
    """The primary key and all unique keys of a table, as it is now; whether it is still there to tell them.

    Raises:
        UnhashableKey: one of them cannot be told from rows, or there is no primary key.
    """
    where = f"{table.schema}.{table.table}"
    if not table.named:
        raise UnhashableKey(
            f"{where}: rows were written while binlog_row_metadata was not FULL, so the binlog has no column names for "
            f"them. Set it (SET GLOBAL binlog_row_metadata = 'FULL', and in [mysqld]) for rows to come. {_LOST}"
        )
    if not table.primary_key:
        raise UnhashableKey(f"{where}: rows were written while it had no primary key. {_LOST}")
    primary = tuple(KeyPart(table.columns[index].name, prefix) for index, prefix in table.primary_key)
    found = [KeyDefinition("PRIMARY", primary)]
    unique = source.unique_keys(table.schema, table.table)
    for key in unique or ():
        if key.refusal:
            raise UnhashableKey(
                f"{where}: unique key {key.name} {key.refusal}. Drop the key and reload (SIGHUP), or exclude the table "
                "in `replicate`, alike at every site, and restart"
            )
        # A key that came later may have columns that these rows do not: no row here can collide on it.
        if all(table.column(part.column) for part in key.parts):
            found.append(key)
    return found, unique is not None


def compile_slicer(
    table: TableMap, kind: int, layout: bytes, keys: Sequence[KeyDefinition], source: KeySource
) -> Slicer:
    """Generates the function that hashes the keys of such rows.

    Raises:
        UnhashableKey: a key column is not in the images.
        RowsError: the layout is not this table's.
    """
    sides = [columns for columns in columns_of(table, kind, layout) if columns is not None]
    scope: dict[str, object] = {"h": xxh3_64_intdigest}
    wanted = {_column(table, part).index for key in keys for part in key.parts}
    lines = ["def slice_keys(b, p, end, add):", " rows = 0", " while p < end:"]
    for side, columns in zip("xy", sides, strict=False):
        present = {column.index for column in columns}
        if missing := wanted - present:
            name = table.columns[min(missing)].name
            raise UnhashableKey(
                f"{table.schema}.{table.table}: rows lack column {name} of a unique key, as MariaDB logs no generated "
                "column of a row that is changed or deleted. Leave the transaction out (mysqlraft skip --captured), "
                "drop the key at every site, and see that the rows that it wrote are the same there"
            )
        lines += walk_source(columns, wanted, side, "  ")
    for number, key in enumerate(keys):
        parts = [_column(table, part) for part in key.parts]
        folds = [
            _fold_source(column, part.prefix, source, scope, f"{number}_{n}")
            for n, (column, part) in enumerate(zip(parts, key.parts, strict=True))
        ]
        seed = seed_of(table.schema, table.table, key.parts)
        hashes = []
        for side in "xy"[: len(sides)]:
            values = [f"k{column.index}{side}" for column in parts]
            folded = [fold.format(v=value) for fold, value in zip(folds, values, strict=True)]
            joined = folded[0] if len(folded) == 1 else "b'\\0'.join((" + ", ".join(folded) + "))"
            nulls = [f"{v} is not None" for v, column in zip(values, parts, strict=True) if column.nullable]
            hashes.append((values, f"add(h({joined}, {seed}))", " and ".join(nulls)))
        first = hashes[0]
        lines.append(f"  {'if ' + first[2] + ': ' if first[2] else ''}{first[1]}")
        if kind == RowKind.UPDATE:
            second = hashes[1]
            changed = " or ".join(f"{x} != {y}" for x, y in zip(first[0], second[0], strict=True))
            lines.append(f"  if {'(' + changed + ') and ' + second[2] if second[2] else changed}: {second[1]}")
    lines += ["  rows += 1", " if p != end: raise IndexError", " return rows"]
    slicer: Slicer = run(lines, **scope)["slice_keys"]
    return slicer


def _column(table: TableMap, part: KeyPart) -> Column:
    column = table.column(part.column)
    if column is None:
        raise UnhashableKey(f"{table.schema}.{table.table} has no column {part.column}")
    return column


def _fold_source(column: Column, prefix: int, source: KeySource, scope: dict[str, object], number: str) -> str:
    """An expression over ``{v}``, a value's bytes, that is the same for equal values."""
    kind = column.type
    if kind in (_T.FLOAT, _T.DOUBLE):
        zero = bytes(column.size)
        return f"({zero!r} if {{v}} == {zero[:-1] + bytes((128,))!r} else {{v}})"
    if kind is _T.NEWDECIMAL:
        zero = b"\x80" + bytes(column.size - 1)
        negative = b"\x7f" + b"\xff" * (column.size - 1)
        return f"({zero!r} if {{v}} == {negative!r} else {{v}})"
    if kind not in (_T.STRING, _T.VARCHAR, _T.VAR_STRING, _T.BLOB):
        return "{v}" if not prefix else f"{{v}}[:{prefix}]"
    if column.collation is None or column.collation == BINARY_COLLATION:
        text = "{v}" if not prefix else f"{{v}}[:{prefix}]"
        return f"{text}.rstrip(b'\\0')" if kind is _T.STRING else text
    fold = source.fold(column.collation)
    scope[f"f{number}"] = fold.prefixed(prefix)
    if fold.ascii is None:
        return f"f{number}({{v}})"
    scope[f"t{number}"], scope[f"d{number}"] = fold.ascii, fold.ignored
    cut = f"[:{prefix}]" if prefix else ""
    quick = f"{{v}}{cut}.translate(t{number}, d{number}).rstrip({fold.pad!r})"
    return f"({quick} if {{v}}.isascii() else f{number}({{v}}))"
