"""The conflict history: what a unit overwrote, as rows of `mysqlraft.conflicts`, the same at every site.

Everything comes from the log: which rows of the unit meet which last writer (certification), and what that writer
wrote (its entry is read again). Only units in conflict cost anything. Types are named as EDB's Postgres Distributed
names them; docs/conflicts.md explains each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mysqlraft.binlog.display import row_json
from mysqlraft.binlog.keys import KeyDefinition, KeySource, Slicer, compile_slicer, keys_of
from mysqlraft.binlog.rows import Image, columns_of, image_of, layout_of, pick, split
from mysqlraft.binlog.tablemap import Column, TableMap, parse
from mysqlraft.mysql.schema import quoted
from mysqlraft.replication.entry import Change, ChangeKind, Payload
from mysqlraft.replication.policy import Certification

IMAGE_CHARACTERS = 16 << 10
"""Longer images are cut, and say so."""
CONFLICTS_PER_UNIT = 1000
"""More are not described; the last one says so."""
_REMEMBERED = 256
"""Entries whose rows are kept while conflicts with them are described."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OVERWRITTEN_IN_PLACE = frozenset(("update_origin_change", "delete_recently_updated", "insert_recently_deleted"))
"""Types of conflicts in which the row is there, or is not, as its change expects."""

Read = Callable[[int], Iterable[Payload]]
"""Log index of a last writer -> the payloads that it wrote."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One row of the history. ``committed_at`` in microseconds since 1970; ``other_*``: what was overwritten."""

    index: int
    unit: int
    number: int
    schema: str
    table: str
    type: str
    key: str
    origin: int
    committed_at: int
    other_origin: int
    other_index: int
    other_committed_at: int | None
    image: str | None
    other_image: str | None
    resolution: str
    change: int
    """`id` of the change in conflict, which itself may be large and is not to be kept for this; not a column."""

    @property
    def in_the_way(self) -> bool:
        """Whether the change cannot simply be done: its row is missing, or others have to give way to it."""
        return self.type not in _OVERWRITTEN_IN_PLACE


@dataclass(slots=True)
class _Written:
    """What an entry last did to a key: ``row`` holds it afterwards, None if none does; then it was ``gone``."""

    row: Image | None
    gone: Image | None
    shape: _Shape | None
    committed_at: int

    @property
    def shown(self) -> str | None:
        """The row, or the one that is gone. Few of an entry's rows are ever asked for."""
        if self.shape is None:
            return None
        if self.row is not None:
            return self.shape.shown(self.row, after=True)
        return self.shape.shown(self.gone, after=False)


class ConflictWriter:
    """Describes conflicts. Not for use by several threads."""

    def __init__(self, source: KeySource, read: Read) -> None:
        self._source = source
        self._read = read
        self._shapes: dict[tuple[bytes, int, bytes], _Shape] = {}
        self._entries: OrderedDict[int, dict[int, _Written]] = OrderedDict()

    def forget(self) -> None:
        """A statement may have changed the keys of a table."""
        self._shapes.clear()
        self._entries.clear()

    def describe(
        self,
        certification: Certification,
        unit: int,
        changes: Iterable[tuple[bytes, Change, int]],
        resolution: str,
    ) -> Iterator[Conflict]:
        """The history's rows for unit number `unit` of the entry; ``changes`` with table map and committed_at."""
        writers = {key: (index, origin) for key, index, origin in certification.writers}
        written: dict[int, _Written] = {}
        for index in sorted({index for index, _ in writers.values()}):
            wanted = {key for key, (at, _) in writers.items() if at == index}
            written |= self._written(index, wanted)
        number = 0
        for body, change, committed_at in changes:
            shape = self._shape(body, change)
            for row in shape.rows(change.images):
                for met in _meetings(row, writers, written):
                    if number == CONFLICTS_PER_UNIT:
                        return
                    if number == CONFLICTS_PER_UNIT - 1:
                        resolution += f" (only the first {CONFLICTS_PER_UNIT} conflicts of this unit are listed)"
                    yield Conflict(
                        certification.index,
                        unit,
                        number,
                        shape.map.schema,
                        shape.map.table,
                        met.type(shape.kind),
                        shape.key(row, met.position),
                        certification.origin,
                        committed_at,
                        met.origin,
                        met.index,
                        met.written.committed_at or None,
                        shape.shown(row.after, after=True),
                        met.written.shown,
                        resolution,
                        id(change),
                    )
                    number += 1

    def _written(self, index: int, wanted: set[int]) -> dict[int, _Written]:
        """What the entry at `index` did to the wanted keys."""
        found = self._entries.get(index)
        if found is None:
            found, payloads = {}, 0
            for payload in self._read(index):
                payloads += 1
                for unit in payload.units:
                    for change in unit.changes:
                        shape = self._shape(payload.tables[change.table], change)
                        for row in shape.rows(change.images):
                            _note(found, shape, row, unit.committed_at)
                if payloads > 1:
                    # A unit in parts may be of any size: only what was asked for is kept.
                    found = {key: written for key, written in found.items() if key in wanted}
            if payloads == 1:
                self._entries[index] = found
                if len(self._entries) > _REMEMBERED:
                    self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(index)
        return {key: found[key] for key in wanted if key in found}

    def _shape(self, body: bytes, change: Change) -> _Shape:
        at = body, int(change.kind), change.layout
        shape = self._shapes.get(at)
        if shape is None:
            shape = self._shapes[at] = _Shape(self._source, parse(body), change.kind, change.layout)
        return shape


def _note(found: dict[int, _Written], shape: _Shape, row: _Row, committed_at: int) -> None:
    gone = _Written(None, row.before if row.after is None else None, shape, committed_at)
    holds = _Written(row.after, None, shape, committed_at) if row.after is not None else None
    for position, key in row.keys:
        if position < 0:
            found[key] = gone
    if holds is not None:
        for key in row.after_keys:
            found[key] = holds


@dataclass(slots=True)
class _Meeting:
    """A row and another that it overwrites. ``position``: the first key they share, as in `_Row`."""

    position: int
    index: int
    origin: int
    written: _Written
    several: bool = False

    def type(self, kind: ChangeKind) -> str:
        exists = self.written.row is not None
        if kind is ChangeKind.DELETE:
            return "delete_recently_updated" if exists else "delete_missing"
        if self.several:
            return "multiple_unique_conflicts"
        if kind is ChangeKind.WRITE:
            return "insert_exists" if exists else "insert_recently_deleted"
        if not exists:
            return "update_missing"
        if self.position < 0:
            return "update_origin_change"
        return "update_pkey_exists" if self.position == 1 else "update_unique_exists"


def _meetings(row: _Row, writers: dict[int, tuple[int, int]], written: dict[int, _Written]) -> list[_Meeting]:
    """One for each other row that this row shares a key with."""
    met: dict[tuple[int, Image | None], _Meeting] = {}
    for position, key in row.keys:
        if key in writers:
            index, origin = writers[key]
            outcome = written.get(key) or _Written(None, None, None, 0)
            met.setdefault((index, outcome.row), _Meeting(position, index, origin, outcome))
    found = list(met.values())
    several = sum(one.written.row is not None for one in found) > 1
    for one in found:
        one.several = several
    return found


@dataclass(slots=True)
class _Row:
    """One row. ``keys``: (position, hash): 1, 2, ... for the after image's keys, the primary key first; -1, -2, ...
    for the before image's, which come first."""

    before: Image | None
    after: Image | None
    keys: list[tuple[int, int]]

    @property
    def after_keys(self) -> list[int]:
        return [key for position, key in self.keys if position > 0]


class _Shape:
    """How the rows of one table map, kind and layout are keyed and shown."""

    def __init__(self, source: KeySource, table: TableMap, kind: ChangeKind, layout: bytes) -> None:
        self.map, self.kind, self._layout = table, kind, layout
        self._before, self._after = columns_of(table, kind, layout)
        self._keys: list[KeyDefinition] = keys_of(table, source)
        self._slicers: list[list[Slicer]] = [
            []
            if columns is None
            else [
                compile_slicer(
                    table, ChangeKind.WRITE, layout_of(table, ChangeKind.WRITE, after=columns), [key], source
                )
                for key in self._keys
            ]
            for columns in (self._before, self._after)
        ]

    def rows(self, images: bytes) -> Iterator[_Row]:
        for before, after in split(self.map, self.kind, self._layout, images):
            keys: list[tuple[int, int]] = []
            for image, slicers, sign in ((before, self._slicers[0], -1), (after, self._slicers[1], 1)):
                if image is not None:
                    for number, slicer in enumerate(slicers, 1):
                        hashes: list[int] = []
                        slicer(image, 0, len(image), hashes.append)
                        keys += [(sign * number, key) for key in hashes]
            yield _Row(before, after, keys)

    def shown(self, image: Image | None, *, after: bool) -> str | None:
        columns = self._after if after else self._before
        if image is None or columns is None:
            return None
        return _bounded(row_json(columns, image))

    def key(self, row: _Row, position: int) -> str:
        """The value of the key at `position`, as text."""
        columns, image = (self._after, row.after) if position > 0 else (self._before, row.before)
        assert columns is not None
        assert image is not None
        wanted: Sequence[Column] = [
            column
            for part in self._keys[abs(position) - 1].parts
            if (column := self.map.column(part.column)) is not None
        ]
        return _bounded(row_json(wanted, image_of(pick(columns, wanted, image))))


def insert(conflicts: Sequence[Conflict]) -> bytes:
    """The statement that stores them."""
    rows = [
        ",".join(
            (
                str(c.index),
                str(c.unit),
                str(c.number),
                quoted(c.schema),
                quoted(c.table),
                quoted(c.type),
                quoted(c.key),
                str(c.origin),
                _time(c.committed_at),
                str(c.other_origin),
                str(c.other_index),
                _time(c.other_committed_at),
                "NULL" if c.image is None else quoted(c.image),
                "NULL" if c.other_image is None else quoted(c.other_image),
                quoted(c.resolution),
            )
        )
        for c in conflicts
    ]
    return f"INSERT INTO mysqlraft.conflicts VALUES ({'),('.join(rows)})".encode()


def _bounded(text: str) -> str:
    if len(text) <= IMAGE_CHARACTERS:
        return text
    return f"{text[:IMAGE_CHARACTERS]}... (cut: {len(text)} characters)"


def _time(microseconds: int | None) -> str:
    if microseconds is None:
        return "NULL"
    return f"'{_EPOCH + timedelta(microseconds=microseconds):%Y-%m-%d %H:%M:%S.%f}'"
