"""Which rows local transactions wrote, and where: exact primary keys, and the unique values of the last image.

`LocalWrites` is filled by `look_ahead` from the binlog, and by `rest_of` with the units that share a payload. A row is
known by its table as the binlog names it, its primary key's columns and types, and the bytes of their values: two rows
that are written under different definitions of the primary key are never taken for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

from mysqlraft.binlog.keys import KeyDefinition, KeyPart
from mysqlraft.binlog.rows import RowsError, columns_of, primary_key
from mysqlraft.binlog.slicer import run, walk_source
from mysqlraft.binlog.tablemap import Column, TableMap, parse
from mysqlraft.replication.entry import Payload
from mysqlraft.replication.tables import LocalTables, TableMismatch

Place = tuple[int, int]
"""Where a transaction ends: the number of the binlog file, and the offset in it."""

TableId = tuple[Any, ...]
"""A table's name, and its primary key's columns with their types."""
PrimaryKey = tuple[bytes | None, ...]
"""The values of the primary key's columns, in the order of the table, without length bytes; as `brief` has them if one
may be long."""
RowId = tuple[TableId, PrimaryKey]

_Keys = tuple[tuple[KeyPart, ...], ...]
UniqueValues = dict[tuple[KeyPart, ...], tuple[bytes | None, ...]]
"""The values of an image under secondary unique keys, each as `brief` has it."""

_BRIEF = 64
"""Bytes of a value that is kept as it is."""

_Add = Callable[[PrimaryKey | None, PrimaryKey | None, tuple[bytes | None, ...]], None]
_Reader = Callable[[bytes, _Add], None]


class _Written(NamedTuple):
    """``place``: where a row was written last; ``values``: those that it was given there under ``keys``, one after the
    other (None: it was deleted, or they are not known); ``columns``: how many the last image has. There are many of
    these: rows share what they can."""

    place: Place
    values: tuple[bytes | None, ...] | None
    keys: _Keys
    columns: int


class LocalWrites:
    """Row -> how it was written; table -> where it was emptied last, and where rows of so many columns were written
    last. Invariant: places are added in their order."""

    def __init__(self) -> None:
        self._widths: dict[tuple[str, str], dict[int, Place]] = {}
        self._emptied: dict[tuple[str, str], Place] = {}
        self._tables: dict[TableId, dict[PrimaryKey, _Written]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def written_after(self, row: RowId, place: Place) -> bool:
        """Whether a transaction that ends after `place` wrote the row."""
        found = self._tables.get(row[0], {}).get(row[1])
        return (found is not None and found.place > place) or self._emptied.get(row[0][:2], place) > place

    def columns_after(self, row: RowId, place: Place) -> int:
        """How many columns the row's last image has, in a transaction that ends after `place`; 0 if there is none."""
        found = self._tables.get(row[0], {}).get(row[1])
        return found.columns if found is not None and found.place > place else 0

    def narrower_after(self, schema: str, table: str, columns: int, place: Place) -> bool:
        """Whether one of them wrote rows of fewer columns to the table."""
        widths = self._widths.get((schema, table), {})
        return any(last > place for width, last in widths.items() if width < columns)

    def unique_values_after(self, row: RowId, place: Place) -> UniqueValues | None:
        """What the last of those transactions gave the row; None if none did, or that is not known."""
        found = self._tables.get(row[0], {}).get(row[1])
        if found is None or found.place <= place or found.values is None:
            return None
        values = iter(found.values)
        return {parts: tuple(islice(values, len(parts))) for parts in found.keys}

    def add(
        self, place: Place, table: TableMap, kind: int, layout: bytes, images: bytes, keys: Sequence[KeyDefinition]
    ) -> None:
        """Rows of one change. ``keys``: the secondary unique keys of the table.

        Raises:
            RowsError: the images lack a column of the primary key, or do not fit the table map.
        """
        last = self._tables.setdefault(table_id(table), {})
        columns = len(table.columns)
        self._widths.setdefault((table.schema, table.table), {})[columns] = place
        names = _shared(tuple(key.parts for key in keys))

        def add(before: PrimaryKey | None, after: PrimaryKey | None, values: tuple[bytes | None, ...]) -> None:
            if before is not None and before != after:
                last[before] = _Written(place, None, (), columns)
            if after is not None:
                last[after] = _Written(place, brief(values) if names else None, names, columns)

        try:
            _reader(table, kind, layout, names)(images, add)
        except IndexError:
            raise RowsError(f"{table.schema}.{table.table}: row images are cut short") from None

    def empty(self, place: Place, schema: str, table: str) -> None:
        """All rows of the table were deleted by a statement."""
        for (its_schema, its_table, _), rows in self._tables.items():
            if (its_schema, its_table) == (schema, table):
                rows.clear()
        self._emptied[schema, table] = place

    def update(self, other: LocalWrites) -> None:
        """Adds what was written after all that is here."""
        for table, rows in other._tables.items():
            self._tables.setdefault(table, {}).update(rows)
        for name, widths in other._widths.items():
            self._widths.setdefault(name, {}).update(widths)

    def forget(self, place: Place) -> None:
        """Drops what was written up to `place` and not since."""
        for rows in self._tables.values():
            for key in [key for key, found in rows.items() if found.place <= place]:
                del rows[key]
        self._emptied = {name: emptied for name, emptied in self._emptied.items() if emptied > place}


@lru_cache(maxsize=4096)
def _shared(keys: _Keys) -> _Keys:
    return keys


@lru_cache(maxsize=4096)
def table_id(table: TableMap) -> TableId:
    """What a table and the definition of its primary key are known by.

    Raises:
        RowsError: it has no primary key.
    """
    columns = tuple(
        (column.name, column.type, column.size, column.prefix, column.unsigned, column.collation, column.scale)
        for column in primary_key(table)
    )
    return table.schema, table.table, columns


def row_id(table: TableMap, columns: tuple[Column, ...], image: bytes) -> RowId:
    """The row that an image with these columns is of.

    Raises:
        RowsError: the image lacks a column of the primary key.
    """
    found: list[PrimaryKey] = []
    _image_reader(table, columns)(image, lambda before, after, values: found.append(after or ()))
    return table_id(table), found[0]


def unique_values(
    table: TableMap, columns: tuple[Column, ...], image: bytes, key: KeyDefinition
) -> tuple[bytes | None, ...]:
    """The values of an image with these columns under a key, as `brief` has them."""
    found: list[tuple[bytes | None, ...]] = []
    reader = _image_reader(table, columns, (key.parts,))
    reader(image, lambda before, after, values: found.append(values))
    return brief(found[0])


def brief(values: tuple[bytes | None, ...]) -> tuple[bytes | None, ...]:
    """The same for equal values only. A key may be on the beginning of a column that holds gigabytes."""
    return tuple([sha256(v).digest() if v is not None and len(v) > _BRIEF else v for v in values])


def rest_of(payload: Payload, tables: LocalTables) -> LocalWrites:
    """What the units of a payload wrote; the place of a unit is (0, its number)."""
    writes = LocalWrites()
    for number, unit in enumerate(payload.units):
        for change in unit.changes:
            body = payload.tables[change.table]
            keys = secondary_keys(tables, body)
            writes.add((0, number), parse(body), change.kind, change.layout, change.images, keys)
    return writes


def secondary_keys(tables: LocalTables, body: bytes) -> Sequence[KeyDefinition]:
    """The secondary unique keys of the table of this table map, as it is here; none if its rows do not fit it."""
    try:
        return tables.find(body).keys[1:]
    except TableMismatch:
        return ()


@lru_cache(maxsize=4096)
def _reader(table: TableMap, kind: int, layout: bytes, keys: tuple[tuple[KeyPart, ...], ...]) -> _Reader:
    return _compile(table, *columns_of(table, kind, layout), keys)


@lru_cache(maxsize=4096)
def _image_reader(table: TableMap, columns: tuple[Column, ...], keys: tuple[tuple[KeyPart, ...], ...] = ()) -> _Reader:
    return _compile(table, None, columns, keys)


def _compile(
    table: TableMap,
    before: tuple[Column, ...] | None,
    after: tuple[Column, ...] | None,
    keys: tuple[tuple[KeyPart, ...], ...],
) -> _Reader:
    """A function that calls ``add(primary key before, primary key after, unique values after)`` for each row: None for
    an image that is not there, the values of all ``keys`` one after the other."""
    primary = [column.index for column in primary_key(table)]
    shorten = "brief" if any(not 0 < column.size <= _BRIEF for column in primary_key(table)) else ""
    unique = [_index(table, part) for parts in keys for part in parts] if after is not None else []
    lines = ["def read(b, add):", " p, end = 0, len(b)", " while p < end:"]
    arguments = []
    for side, columns, wanted in (("x", before, primary), ("y", after, [*primary, *unique])):
        if columns is None:
            arguments.append("None")
            continue
        if missing := set(wanted) - {column.index for column in columns}:
            name = table.columns[min(missing)].name
            raise RowsError(f"{table.schema}.{table.table}: column {name} of a key is not in the image")
        lines += walk_source(columns, wanted, side, "  ")
        arguments.append(f"{shorten}((" + "".join(f"k{index}{side}," for index in primary) + "))")
    arguments.append("(" + "".join(f"k{index}y," for index in unique) + ")")
    lines += [f"  add({', '.join(arguments)})", " if p != end: raise IndexError"]
    reader: _Reader = run(lines, brief=brief)["read"]
    return reader


def _index(table: TableMap, part: KeyPart) -> int:
    column = table.column(part.column)
    if column is None:
        raise RowsError(f"{table.schema}.{table.table} has no column {part.column}")
    return column.index
