"""The careful lane: row by row and native, whatever is in the table already (DESIGN 7).

For a row to be written the rows that hold any of its key values are locked and looked up; then events are replayed:
DELETE_ROWS with a primary-key-only image for the others, UPDATE_ROWS from the primary key to the raw after image if the
row exists, WRITE_ROWS if not. No trigger fires, and nothing but key columns is decoded.

Rows are taken in groups that cost two round trips each. A group ends where a row has a key value in common with an
earlier one, or where the lookup found a row that an earlier one already touches: its answers would be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from mysqlraft.binlog.keys import KeyDefinition, Slicer, compile_slicer
from mysqlraft.binlog.rows import Field, Image, columns_of, image_of, layout_of, pick, primary_key, split
from mysqlraft.binlog.tablemap import Column, ColumnType
from mysqlraft.binlog.values import encode, literal, selected
from mysqlraft.mysql.connection import Session
from mysqlraft.mysql.finding import identifier
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.row_events import Item, statements
from mysqlraft.replication.tables import LocalTable, LocalTables

GROUP = 64
"""Rows looked up together."""

_BYTES = frozenset((ColumnType.BLOB, ColumnType.VARCHAR, ColumnType.STRING, ColumnType.VAR_STRING))

PrimaryKey = Image
"""A primary-key-only image as the server stores it."""


@dataclass(slots=True)
class _Row:
    """One row of a change. ``keys``: hashes of all its key values."""

    before: Image | None
    after: Image | None
    keys: frozenset[int]


@dataclass(slots=True)
class _Found:
    """What a lookup found: the stored row under the before image's key, under the after image's, and others."""

    before: PrimaryKey | None = None
    same: PrimaryKey | None = None
    others: list[PrimaryKey] = field(default_factory=list)

    def all(self) -> set[PrimaryKey]:
        return {key for key in (self.before, self.same, *self.others) if key is not None}


class CarefulLane:
    """Applies changes inside the session's open transaction."""

    def __init__(self, session: Session, tables: LocalTables) -> None:
        self._session = session
        self._tables = tables
        self._shapes: dict[tuple[bytes, int, bytes], _Shape] = {}

    def forget(self) -> None:
        """A statement may have changed a table."""
        self._shapes.clear()

    def apply(self, item: Item) -> int:
        """Writes every row of the change; how many stored rows had to give way to one with another primary key.

        Raises:
            StatementError, SessionLost: as of `Session.run`.
            TableMismatch: the local table cannot take the rows.
        """
        change = item.change
        at = item.table, int(change.kind), change.layout
        shape = self._shapes.get(at)
        if shape is None:
            shape = self._shapes[at] = _Shape(self._tables, *at)
        evicted = 0
        rows = shape.rows(change.images)
        waiting: list[_Row] = []
        while True:
            waiting += islice(rows, GROUP - len(waiting))
            if not waiting:
                return evicted
            group = _disjoint(waiting)
            found = shape.look_up(self._session, group)
            done = _independent(found)
            changes: list[Change] = []
            for row, place in zip(group[:done], found[:done], strict=True):
                changes += shape.changes(row, place)
                evicted += len(place.others)
            made = [Item(item.table, change, item.committed_at) for change in changes]
            if made:
                self._session.run([statement.sql for statement in statements(self._session.mariadb, made)])
            waiting = waiting[done:]


def _disjoint(rows: list[_Row]) -> list[_Row]:
    """The longest beginning without two rows that share a key value."""
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if not seen.isdisjoint(row.keys):
            return rows[:number]
        seen |= row.keys
    return rows


def _independent(found: list[_Found]) -> int:
    """How many lookups, from the first on, did not find a row that an earlier one found too."""
    seen: set[PrimaryKey] = set()
    for number, place in enumerate(found):
        touched = place.all()
        if not seen.isdisjoint(touched):
            return number
        seen |= touched
    return len(found)


class _Shape:
    """How rows of one table map, kind and layout are looked up and written."""

    def __init__(self, tables: LocalTables, body: bytes, kind: int, layout: bytes) -> None:
        local: LocalTable = tables.find(body)
        self._map, self._kind, self._layout = local.map, ChangeKind(kind), layout
        self._table = local.definition.name
        self._keys = local.keys
        self._primary = primary_key(local.map)
        self._before, self._after = columns_of(local.map, kind, layout)
        self._charset = tables.source.collations.charset
        by_index = {column.index: column for column in local.map.columns}
        self._key_columns = [[_column(by_index, part.column) for part in key.parts] for key in local.keys]
        self._slicers: list[Slicer | None] = [
            None
            if columns is None
            else compile_slicer(
                local.map,
                ChangeKind.WRITE,
                layout_of(local.map, ChangeKind.WRITE, after=columns),
                local.keys,
                tables.source,
            )
            for columns in (self._before, self._after)
        ]
        self._selected = ", ".join(selected(column, identifier(column.name)) for column in self._primary)
        self._delete = layout_of(local.map, ChangeKind.DELETE, before=self._primary)
        after = self._after or ()
        self._update = layout_of(local.map, ChangeKind.UPDATE, before=self._primary, after=after)
        self._write = layout_of(local.map, ChangeKind.WRITE, after=after)

    def rows(self, images: bytes) -> Iterator[_Row]:
        for before, after in split(self._map, self._kind, self._layout, images):
            keys: list[int] = []
            for image, slicer in zip((before, after), self._slicers, strict=True):
                if image is not None and slicer is not None:
                    slicer(image, 0, len(image), keys.append)
            yield _Row(before, after, frozenset(keys))

    def look_up(self, session: Session, rows: list[_Row]) -> list[_Found]:
        """Locks and finds the stored rows that each row meets, in one round trip."""
        asked: list[tuple[int, str]] = []  # row number, what for
        queries: list[str] = []
        for number, row in enumerate(rows):
            if row.before is not None and self._before is not None:
                queries.append(self._query(0, self._before, row.before))
                asked.append((number, "before"))
            if row.after is not None and self._after is not None:
                for key in range(len(self._keys)):
                    query = self._query(key, self._after, row.after)
                    if query:
                        queries.append(query)
                        asked.append((number, "after" if key else "same"))
        found = [_Found() for _ in rows]
        for (number, what), answers in zip(asked, session.queries(queries), strict=True):
            place = found[number]
            for answer in answers:
                stored = image_of([encode(c, value) for c, value in zip(self._primary, answer, strict=True)])
                if what == "before":
                    place.before = stored
                elif what == "same":
                    place.same = stored
                elif stored not in place.others:
                    place.others.append(stored)
        for place in found:
            # The row itself, before or after its primary key changes, gives way to nothing.
            place.others = [key for key in place.others if key not in (place.same, place.before)]
        return found

    def changes(self, row: _Row, found: _Found) -> Iterator[Change]:
        """The changes that make `row` so: delete(before's key), then write(after)."""
        gone = list(found.others)
        start = found.same
        if row.after is None:
            start = None
            gone += [found.before] if found.before is not None else []
        elif found.before is not None and found.before != found.same:
            if found.same is None:
                start = found.before
            else:
                gone.append(found.before)
        if gone:
            yield Change(0, ChangeKind.DELETE, self._delete, len(gone), b"".join(gone))
        if row.after is None:
            return
        if start is None:
            yield Change(0, ChangeKind.WRITE, self._write, 1, row.after)
        else:
            yield Change(0, ChangeKind.UPDATE, self._update, 1, start + row.after)

    def _query(self, key: int, columns: tuple[Column, ...], image: Image) -> str:
        """Locks the row that holds the image's value of this key; "" if a NULL in it keeps it from colliding."""
        wanted = self._key_columns[key]
        fields = pick(columns, wanted, image)
        definition: KeyDefinition = self._keys[key]
        conditions = []
        for column, part, value in zip(wanted, definition.parts, fields, strict=True):
            if value is None:
                return ""
            conditions.append(self._condition(column, part.prefix, value))
        return f"SELECT {self._selected} FROM {self._table} WHERE {' AND '.join(conditions)} FOR UPDATE"

    def _condition(self, column: Column, prefix: int, value: Field) -> str:
        name = identifier(column.name)
        text = literal(column, value, self._charset)
        if prefix and column.type in _BYTES:
            return f"LEFT({name}, {prefix}) = LEFT({text}, {prefix})"
        return f"{name} = {text}"


def _column(columns: dict[int, Column], name: str) -> Column:
    return next(column for column in columns.values() if column.name.casefold() == name.casefold())
