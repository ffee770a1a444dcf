"""The careful lane: row by row and native, whatever is in the table already (DESIGN 7).

For a row to be written the rows that hold any of its key values are locked and looked up; then events are replayed:
DELETE_ROWS with a primary-key-only image for the others, UPDATE_ROWS from the primary key to the raw after image if the
row exists, WRITE_ROWS if not. No trigger fires, and nothing but key columns is decoded.

Rows that local transactions wrote later are left out of own units that are written again, and of other sites' units
that meet what is pending (`writing_again`): the look-up locks rows, then the look ahead reads to the binlog's end.
While a column is added the rows of own units may lack it; then the look-up asks what the stored rows have there.

Rows of adjacent changes are taken in groups that cost two round trips each; the second of the last group is the
caller's, who may have more to send with it. A group ends where a row has a key value in common with an earlier one, or
where the lookup found a row that an earlier one already touches: its answers would be out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mysqlraft.binlog.encodings import encoding_of
from mysqlraft.binlog.keys import KeyDefinition, Slicer, compile_slicer
from mysqlraft.binlog.rows import Field, Image, columns_of, image_of, layout_of, pick, primary_key, split
from mysqlraft.binlog.tablemap import BINARY_COLLATION, Column, ColumnType
from mysqlraft.binlog.values import ValueFormError, encode, field_of, literal, selected, value_of
from mysqlraft.mysql.connection import Session
from mysqlraft.mysql.finding import identifier
from mysqlraft.replication.ddl import binlog_end_query
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.local_writes import RowId, brief, row_id, unique_values
from mysqlraft.replication.look_ahead import Later
from mysqlraft.replication.row_events import Item, Statement, statements
from mysqlraft.replication.tables import LocalTable, LocalTables
from mysqlraft.replication.writing_again import Stored, operations

GROUP = 64
"""Rows looked up together."""

_BYTES = frozenset((ColumnType.BLOB, ColumnType.VARCHAR, ColumnType.STRING, ColumnType.VAR_STRING))

_BEFORE, _SAME = -1, 0
"""What a look-up is for: the row under the before image's primary key, or under the after image's; a greater number:
the row that holds the value of that key."""

PrimaryKey = Image
"""A primary-key-only image as the server stores it."""


@dataclass(slots=True)
class _Found(Stored[PrimaryKey]):
    """Where it may matter what comes later, ``values``: of a holder under a key, as they are stored; ``added``: what a
    row has in the columns that the unit does not know, () if that cannot be said."""

    values: dict[tuple[int, PrimaryKey], tuple[bytes | None, ...]] = field(default_factory=dict)
    added: dict[PrimaryKey, tuple[Field | None, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Row:
    """One row of a change. ``keys``: hashes of all its key values; ``later``, ``passed``: as in `Item`."""

    shape: _Shape
    before: Image | None
    after: Image | None
    keys: frozenset[int]
    committed_at: int
    later: Later | None
    passed: bool


class CarefulLane:
    """Applies changes inside the session's open transaction."""

    def __init__(self, session: Session, tables: LocalTables) -> None:
        self._session = session
        self._tables = tables
        self._shapes: dict[tuple[bytes, int, bytes, bytes], _Shape] = {}
        self.exact = False
        """Whether a prefix key is looked up by the exact condition alone, which reads and locks the whole table. It
        finds what the condition that the index serves may miss: equal strings of different lengths."""

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
            completed = None
            for number, (row, place) in enumerate(zip(group[:done], found[:done], strict=True)):
                if row.shape.short and row.after is not None and place.before is None:
                    # There is no row to keep what the update does not know: it is an insert, and looked up as such.
                    done, completed = number, self._completed(row)
                    break
            changes = [
                item
                for row, place in zip(group[:done], found[:done], strict=True)
                for item in row.shape.changes(row, place)
            ]
            waiting = waiting[done:]
            if completed is not None:
                waiting[0] = completed
            # A row may be large: it is not held longer than its change needs it.
            del group, found, row, place
            made = statements(self._session.mariadb, changes)

    @property
    def generation(self) -> int:
        """That of the tables."""
        return self._tables.generation

    def checks(self, tables: Iterable[bytes]) -> list[bytes]:
        """Statements that fail if one of the tables has other columns than those that it was written with."""
        return list(dict.fromkeys(self._tables.find(body).check() for body in tables))

    def _rows(self, items: Iterable[Item]) -> Iterator[_Row]:
        for item in items:
            change = item.change
            shape = self._shape(item.table, int(change.kind), change.layout, item.written or item.table)
            for row in shape.rows(change.images, item.committed_at, item.later, item.passed):
                if row.later is None:
                    yield row
                elif shape.is_undisturbed(row, row.later):
                    continue
                elif shape.left_out(row, row.later):
                    row.later.ahead.left_out += 1
                else:
                    yield row

    def _shape(self, body: bytes, kind: int, layout: bytes, written: bytes) -> _Shape:
        at = body, kind, layout, written
        shape = self._shapes.get(at)
        if shape is None:
            shape = self._shapes[at] = _Shape(self._tables, *at)
        return shape

    def _completed(self, row: _Row) -> _Row:
        """The row as one to be inserted, with all columns."""
        body, layout, image = row.shape.completed(row)
        shape = self._shape(body, int(ChangeKind.WRITE), layout, row.shape.written)
        (completed,) = shape.rows(image, row.committed_at, row.later, row.passed)
        return completed

    def _look_up(self, rows: Sequence[_Row]) -> list[_Found]:
        """Locks and finds the stored rows that each row meets, in one round trip."""
        asked = [
            (number, what, query)
            for number, row in enumerate(rows)
            for what, query in row.shape.queries(row, self.exact)
        ]
        found = [_Found() for _ in rows]
        if not asked:
            return found
        own = list(dict.fromkeys(row.later for row in rows if row.later is not None))
        queries = [query for _, _, query in asked]
        # Statements run in their order: this one once the rows are locked.
        answered = self._session.queries([*queries, binlog_end_query(self._session)] if own else queries)
        for (number, what, _), answers in zip(asked, answered, strict=False):
            place, shape = found[number], rows[number].shape
            for answer in answers:
                stored = shape.primary_key(answer)
                if rows[number].later is not None:
                    place.added[stored] = shape.added(answer)
                if what == _BEFORE:
                    place.before = stored
                elif what == _SAME:
                    place.same = stored
                else:
                    place.holders.append((what, stored))
                    place.values[what, stored] = shape.key_values(what, answer)
        if own:
            file, offset = answered[-1][0][:2]
            for later in own:
                if not later.reach(str(file), int(offset)):
                    later.ahead.in_full += sum(row.later is later for row in rows) if later.own else 0
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
    """How rows of one table map, kind and layout are looked up and written. ``written``: as in `Item`."""

    def __init__(self, tables: LocalTables, body: bytes, kind: int, layout: bytes, written: bytes) -> None:
        local: LocalTable = tables.find(body)
        self.body, self.written = body, written
        self._map, self._kind, self._layout = local.map, ChangeKind(kind), layout
        self.table = local.definition.name
        self._keys = local.keys
        unit = local if written == body else tables.find(written)
        self._width = len(unit.map.columns)
        self._completion = unit.completion
        self._added = () if unit.completion is None else unit.completion.values
        """The columns that the unit does not know, and what statements gave to them."""
        self.short = local.completion is not None and kind == ChangeKind.UPDATE
        """Updates of rows that have columns which these do not know: they keep them."""
        self._primary = primary_key(local.map)
        self._before, self._after = columns_of(local.map, kind, layout)
        self._names = tables.source.collations
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

    def rows(self, images: bytes, committed_at: int, later: Later | None, passed: bool) -> Iterator[_Row]:
        for before, after in split(self._map, self._kind, self._layout, images):
            keys: list[int] = []
            for image, slicer in zip((before, after), self._slicers, strict=True):
                if image is not None and slicer is not None:
                    slicer(image, 0, len(image), keys.append)
            yield _Row(self, before, after, frozenset(keys), committed_at, later, passed)

    def _told(self, later: Later) -> bool:
        """Whether it can be said of each row whether it has to be written: its columns that the rows written later do
        not know are looked at (`_plain`). Not of another site's unit: it may have given such columns their values."""
        return (later.own or self._completion is None) and not later.narrower(
            self._map.schema, self._map.table, self._width
        )

    def _plain(self, found: _Found, stored: PrimaryKey, known: int) -> bool:
        """Whether a stored row has what statements gave to every row in the columns after so many: then it does not
        matter whether what keeps them finds this row or none (`tests/replication/test_added_columns_model.py`)."""
        if self._completion is None:
            return True
        unknown = [(column.index, value) for column, value in self._added if column.index >= known]
        if len(unknown) < len(self._completion.map.columns) - known:
            return False  # no statement added one of them
        return found.added[stored][len(self._added) - len(unknown) :] == tuple(value for _, value in unknown)

    def is_undisturbed(self, row: _Row, later: Later) -> bool:
        """Whether the row is here as its unit has left it, or as later ones have, with all its columns."""
        return later.is_undisturbed(row.keys) and self._completion is None

    def left_out(self, row: _Row, later: Later) -> bool:
        """Whether nothing of the row has to be written, whatever is stored: no look-up and no lock is needed then."""
        if self._completion is not None or not self._told(later):
            return False
        if row.after is not None and len(self._keys) > 1:
            return False  # it may have to take the place of another holder of its unique values
        return all(
            image is None or (columns is not None and later.wrote(row_id(self._map, columns, image)))
            for columns, image in ((self._before, row.before), (self._after, row.after))
        )

    def queries(self, row: _Row, exact: bool) -> Iterator[tuple[int, str]]:
        """(what for, query) for each stored row that the row may meet; from `_SAME` on the number of a key."""
        if row.before is not None and self._before is not None:
            yield _BEFORE, self._query(row, 0, self._before, row.before, exact)
        if row.after is not None and self._after is not None:
            for key in range(len(self._keys)):
                query = self._query(row, key, self._after, row.after, exact, holder=key != _SAME)
                if query:
                    yield key, query

    def primary_key(self, answer: Sequence[Any]) -> PrimaryKey:
        """Of a row that a query found."""
        return image_of([encode(column, value) for column, value in zip(self._primary, answer, strict=False)])

    def added(self, answer: Sequence[Any]) -> tuple[Field | None, ...]:
        """What the row has in the columns that the unit does not know; () if it cannot be read."""
        asked = zip(self._added, answer[len(answer) - len(self._added) :], strict=True)
        try:
            return tuple([encode(column, value) for (column, _), value in asked])
        except ValueFormError:
            return ()

    def key_values(self, key: int, answer: Sequence[Any]) -> tuple[bytes | None, ...]:
        """What a row holds under a key, as `brief` has it; () if that was not asked for, or cannot be read."""
        values: list[bytes | None] = []
        for column, value in zip(self._key_columns[key], answer[len(self._primary) :], strict=False):
            try:
                encoded = encode(column, value)
            except ValueFormError:
                return ()
            values.append(None if encoded is None else value_of(column, encoded))
        return brief(tuple(values))

    def completed(self, row: _Row) -> tuple[bytes, bytes, Image]:
        """Table map, layout and image of the row with all columns."""
        assert self._completion is not None
        assert self._after is not None
        assert row.after is not None
        completion = self._completion
        return completion.body, completion.layout(self._after), completion.image(self._after, row.after)

    def changes(self, row: _Row, found: _Found) -> Iterator[Item]:
        """What makes `row` so: delete(before's key), then write(after), without what is left out of it."""
        later = row.later
        if later is not None and not self._told(later):
            later.ahead.in_full += later.own
            later = None
        before, after = self._before, self._after
        before_wrote = self._written_as(later, before, row.before, found.before)
        after_wrote = self._written_as(later, after, row.after, found.same)
        before_later = self._stays(later, before_wrote, found, found.before)
        after_later = self._stays(later, after_wrote, found, found.same)
        if after_later and not before_later and found.before is not None and found.before == found.same:
            after_later = self._may_go(row, found)  # it goes: only its new spelling was written later
        if later is not None and later.own and (before_later, after_later) != (bool(before_wrote), bool(after_wrote)):
            later.ahead.in_full += 1
        made = operations(
            found,
            puts=row.after is not None,
            before_later=before_later,
            after_later=after_later,
            given_later=lambda key, unique: (
                later is not None
                and (after_later or self._may_go(row, found))
                and self._given(later, row, found, key, unique)
            ),
        )
        if later is not None and not made.put and not made.gone:
            later.ahead.left_out += 1
        if made.gone:
            # Not a matter of what is later any more: these rows are locked, and they have to go.
            gone = Change(0, ChangeKind.DELETE, self._delete, len(made.gone), b"".join(made.gone))
            yield Item(self.body, gone, row.committed_at)
        if not made.put or row.after is None:
            return
        if made.start is None:
            put = Change(0, ChangeKind.WRITE, self._write, 1, row.after)
        else:
            put = Change(0, ChangeKind.UPDATE, self._update, 1, made.start + row.after)
        yield Item(self.body, put, row.committed_at, row.later, self.written, row.passed)

    def _written_as(
        self, later: Later | None, columns: tuple[Column, ...] | None, image: Image | None, stored: PrimaryKey | None
    ) -> list[RowId]:
        """What the row of an image, and the stored row that was found for it, were written later as."""
        if later is None or columns is None or image is None:
            return []
        rows = [row_id(self._map, columns, image)]
        if stored is not None:
            rows.append(row_id(self._map, self._primary, stored))
        return [row for row in rows if later.wrote(row)]

    def _stays(self, later: Later | None, rows: Sequence[RowId], found: _Found, stored: PrimaryKey | None) -> bool:
        """Whether a row that was written later may be left as it is for that."""
        if later is None or not rows:
            return False
        known = max(self._width, min(later.columns(row) for row in rows))
        return stored is None or self._plain(found, stored, known)

    def _may_go(self, row: _Row, found: _Found) -> bool:
        """Whether the row may be missing here until the later unit comes that takes a unique value from it. Another
        site's update that lacks a column would find it in the log, and keep what it has there."""
        return not row.passed and (found.same is None or self._plain(found, found.same, self._width))

    def _given(self, later: Later, row: _Row, found: _Found, stored: PrimaryKey, unique: int) -> bool:
        """Whether the last later image of a stored row has the after image's value of a key, that value byte for byte
        or another one that the server takes for the same, as it is stored; and the row may be left for that."""
        assert self._after is not None
        assert row.after is not None
        key, holder = self._keys[unique], row_id(self._map, self._primary, stored)
        given = (later.unique_values(holder) or {}).get(key.parts)
        if given is None or not self._stays(later, [holder], found, stored):
            return False
        return given in (unique_values(self._map, self._after, row.after, key), found.values[unique, stored])

    def _query(
        self, row: _Row, key: int, columns: tuple[Column, ...], image: Image, exact: bool, *, holder: bool = False
    ) -> str:
        """Locks the row that holds the image's value of this key; "" if a NULL in it keeps it from colliding. It asks
        for its primary key. Where it may matter what comes later, it also asks for what a ``holder`` has under this
        key, and for the columns that the unit does not know."""
        wanted = self._key_columns[key]
        fields = pick(columns, wanted, image)
        definition: KeyDefinition = self._keys[key]
        conditions = []
        served = False
        for column, part, value in zip(wanted, definition.parts, fields, strict=True):
            if value is None:
                return ""
            name = identifier(column.name)
            if not part.prefix or column.type not in _BYTES:
                conditions.append(f"{name} = {literal(column, value, self._names)}")
                continue
            beginning, whole = _beginning(column, value, part.prefix)
            text = literal(column, beginning, self._names)
            conditions.append(f"LEFT({name}, {part.prefix}) = LEFT({text}, {part.prefix})")
            if not exact and whole is not None:
                served = True
                conditions.append(f"{name} = {text}" if whole else f"({name} = {text} OR {_like(name, text)})")
        # The server would rather read a small table from end to end, and wait for every lock in it.
        hint = f" FORCE INDEX ({identifier(definition.name)})" if served else ""
        asked = [self._selected]
        if row.later is not None:
            more = [*(wanted if holder else ()), *(column for column, _ in self._added)]
            asked += [selected(column, identifier(column.name)) for column in more]
        return f"SELECT {', '.join(asked)} FROM {self.table}{hint} WHERE {' AND '.join(conditions)} FOR UPDATE"


def _beginning(column: Column, value: bytes, length: int) -> tuple[bytes, bool | None]:
    """The field that holds the first ``length`` characters of a field's, and whether that is all of them; the field as
    it is, and None, in a character set that Python does not know."""
    stored = value_of(column, value)
    if column.collation is None or column.collation == BINARY_COLLATION:
        return field_of(column, stored[:length]), len(stored) < length
    try:
        encoding = encoding_of(column.collation)
        characters = stored.decode(encoding)
        return field_of(column, characters[:length].encode(encoding)), len(characters) < length
    except (UnicodeError, LookupError):
        return value, None


def _like(name: str, text: str) -> str:
    """What an index on the beginning of a column serves: that the column begins with the characters of ``text``."""
    for sign in ("\\\\", "%", "_"):
        text = f"REPLACE({text}, '{sign}', '\\\\{sign}')"
    return f"{name} LIKE CONCAT({text}, '%')"


def _column(columns: dict[int, Column], name: str) -> Column:
    return next(column for column in columns.values() if column.name.casefold() == name.casefold())
