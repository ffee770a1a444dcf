"""The careful lane: row by row and native, whatever is in the table already (DESIGN 7).

For a row to be written the rows that hold any of its key values are locked and looked up; then events are replayed:
DELETE_ROWS with a primary-key-only image for the others, UPDATE_ROWS from the primary key to the raw after image if the
row exists, WRITE_ROWS if not. No trigger fires, and nothing but key columns is decoded.

Rows of adjacent changes are taken in groups that cost two round trips each; the second of the last group is the
caller's, who may have more to send with it. A group ends where a row has a key value in common with an earlier one, or
where the lookup found a row that an earlier one already touches: its answers would be out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mysqlraft.binlog.keys import KeyDefinition, Slicer, compile_slicer
from mysqlraft.binlog.rows import Field, Image, columns_of, image_of, layout_of, pick, primary_key, split
from mysqlraft.binlog.tablemap import Column, ColumnType
from mysqlraft.binlog.values import encode, literal, selected
from mysqlraft.mysql.connection import Session
from mysqlraft.mysql.finding import identifier
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.row_events import Item, Statement, statements
from mysqlraft.replication.tables import LocalTable, LocalTables

GROUP = 64
"""Rows looked up together."""

_BYTES = frozenset((ColumnType.BLOB, ColumnType.VARCHAR, ColumnType.STRING, ColumnType.VAR_STRING))

PrimaryKey = Image
"""A primary-key-only image as the server stores it."""


@dataclass(slots=True)
class _Row:
    """One row of a change. ``keys``: hashes of all its key values."""

    shape: _Shape
    before: Image | None
    after: Image | None
    keys: frozenset[int]
    committed_at: int


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

    def apply(self, items: Iterable[Item]) -> list[Statement]:
        """Writes every row of the changes, but for those of the statements returned: they are to be run next, before
        anything else is. One that fails is no more than a fast lane's that fails.

        Raises:
            StatementError, SessionLost: as of `Session.run`.
            TableMismatch: the local table cannot take the rows.
        """
        rows = self._rows(items)
        waiting: list[_Row] = []
        made: list[Statement] = []
        while True:
            waiting += islice(rows, GROUP - len(waiting))
            if not waiting:
                return made
            if made:
                self._session.run([statement.sql for statement in made])
            group = _disjoint(waiting)
            found = self._look_up(group)
            done = _independent(group, found)
            changes = [
                Item(row.shape.body, change, row.committed_at)
                for row, place in zip(group[:done], found[:done], strict=True)
                for change in row.shape.changes(row, place)
            ]
            made = statements(self._session.mariadb, changes)
            waiting = waiting[done:]

    def _rows(self, items: Iterable[Item]) -> Iterator[_Row]:
        for item in items:
            change = item.change
            at = item.table, int(change.kind), change.layout
            shape = self._shapes.get(at)
            if shape is None:
                shape = self._shapes[at] = _Shape(self._tables, *at)
            yield from shape.rows(change.images, item.committed_at)

    def _look_up(self, rows: Sequence[_Row]) -> list[_Found]:
        """Locks and finds the stored rows that each row meets, in one round trip."""
        asked = [(number, what, query) for number, row in enumerate(rows) for what, query in row.shape.queries(row)]
        found = [_Found() for _ in rows]
        if not asked:
            return found
        answered = self._session.queries([query for _, _, query in asked])
        for (number, what, _), answers in zip(asked, answered, strict=True):
            place = found[number]
            for answer in answers:
                stored = rows[number].shape.primary_key(answer)
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


def _disjoint(rows: list[_Row]) -> list[_Row]:
    """The longest beginning without two rows that share a key value."""
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if not seen.isdisjoint(row.keys):
            return rows[:number]
        seen |= row.keys
    return rows


def _independent(rows: Sequence[_Row], found: Sequence[_Found]) -> int:
    """How many lookups, from the first on, did not find a row that an earlier one found too."""
    seen: set[tuple[str, PrimaryKey]] = set()
    for number, (row, place) in enumerate(zip(rows, found, strict=True)):
        touched = {(row.shape.table, key) for key in place.all()}
        if not seen.isdisjoint(touched):
            return number
        seen |= touched
    return len(found)


class _Shape:
    """How rows of one table map, kind and layout are looked up and written."""

    def __init__(self, tables: LocalTables, body: bytes, kind: int, layout: bytes) -> None:
        local: LocalTable = tables.find(body)
        self.body = body
        self._map, self._kind, self._layout = local.map, ChangeKind(kind), layout
        self.table = local.definition.name
        self._keys = local.keys
        self._primary = primary_key(local.map)
        self._before, self._after = columns_of(local.map, kind, layout)
        self._charset = tables.source.collations.charset
        by_index = {column.index: column for column in local.map.columns}
        self._key_columns = [[_column(by_index, part.column) for part in key.parts] for key in local.keys]
        # Of what a row was, its primary key may be all that is known.
        known = {column.name.casefold() for column in self._before or ()}
        known_keys = [key for key in local.keys if all(part.column.casefold() in known for part in key.parts)]
        self._slicers: list[Slicer | None] = [
            None
            if columns is None
            else compile_slicer(
                local.map, ChangeKind.WRITE, layout_of(local.map, ChangeKind.WRITE, after=columns), keys, tables.source
            )
            for columns, keys in ((self._before, known_keys), (self._after, local.keys))
        ]
        self._selected = ", ".join(selected(column, identifier(column.name)) for column in self._primary)
        self._delete = layout_of(local.map, ChangeKind.DELETE, before=self._primary)
        after = self._after or ()
        self._update = layout_of(local.map, ChangeKind.UPDATE, before=self._primary, after=after)
        self._write = layout_of(local.map, ChangeKind.WRITE, after=after)

    def rows(self, images: bytes, committed_at: int) -> Iterator[_Row]:
        for before, after in split(self._map, self._kind, self._layout, images):
            keys: list[int] = []
            for image, slicer in zip((before, after), self._slicers, strict=True):
                if image is not None and slicer is not None:
                    slicer(image, 0, len(image), keys.append)
            yield _Row(self, before, after, frozenset(keys), committed_at)

    def queries(self, row: _Row) -> Iterator[tuple[str, str]]:
        """(what for, query) for each stored row that the row may meet."""
        if row.before is not None and self._before is not None:
            yield "before", self._query(0, self._before, row.before)
        if row.after is not None and self._after is not None:
            for key in range(len(self._keys)):
                query = self._query(key, self._after, row.after)
                if query:
                    yield "after" if key else "same", query

    def primary_key(self, answer: Sequence[Any]) -> PrimaryKey:
        """Of a row that a query found."""
        return image_of([encode(column, value) for column, value in zip(self._primary, answer, strict=True)])

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
        return f"SELECT {self._selected} FROM {self.table} WHERE {' AND '.join(conditions)} FOR UPDATE"

    def _condition(self, column: Column, prefix: int, value: Field) -> str:
        name = identifier(column.name)
        text = literal(column, value, self._charset)
        if prefix and column.type in _BYTES:
            return f"LEFT({name}, {prefix}) = LEFT({text}, {prefix})"
        return f"{name} = {text}"


def _column(columns: dict[int, Column], name: str) -> Column:
    return next(column for column in columns.values() if column.name.casefold() == name.casefold())
