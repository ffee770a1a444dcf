"""The conflict history: what a unit overwrote, as rows of `mysqlraft.conflicts`, the same at every site.

Everything comes from the log: which rows of the unit meet which last writer (certification), and what that writer
wrote (its entry is read again). Only units in conflict cost anything. Types are named as EDB's Postgres Distributed
names them; docs/conflicts.md explains each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Protocol

from mysqlraft.binlog.display import row_json
from mysqlraft.binlog.keys import KeyDefinition, KeySource, Slicer, compile_slicer, keys_of
from mysqlraft.binlog.rows import Image, columns_of, image_of, layout_of, pick, split
from mysqlraft.binlog.tablemap import Column, TableMap, parse
from mysqlraft.mysql.schema import quoted
from mysqlraft.replication.entry import Change, ChangeKind, Payload
from mysqlraft.replication.large_rows import LargeRows
from mysqlraft.replication.policy import Certification

IMAGE_BYTES = 16 << 10
"""Longer images and keys are cut, and say so: alike at every site, whatever its server would take."""
INSERT_BYTES = 256 << 10
"""A statement that stores conflicts ends here, but has one at least, which takes 100 KiB at most."""
CONFLICTS_PER_UNIT = 1000
"""More are not described; the last one says so."""
REMEMBERED_BYTES = 32 << 20
"""Rows of entries that are kept while conflicts with them are described; those of the last entry in any case."""
_KEY_BYTES = 256
"""Bytes that a key takes in memory beside its row, about."""
_KEPT = 4 << 20
"""Bytes of a change; a part with a larger one is not kept."""
_REMEMBERED_LARGE = 8
"""Units in parts of which it is kept where their rows are."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OVERWRITTEN_IN_PLACE = frozenset(("update_origin_change", "delete_recently_updated", "insert_recently_deleted"))
"""Types of conflicts in which the row is there, or is not, as its change expects."""


class Writers(Protocol):
    """The entries that conflicts are with, read from the log again."""

    def indices_of(self, index: int) -> Sequence[int]:
        """The log indices that the last writer at `index` consists of: several for a unit in parts."""
        ...

    def read(self, indices: Sequence[int]) -> Iterable[Payload]:
        """The payloads at these log indices, one after the other."""
        ...


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
    def size(self) -> int:
        """Bytes in memory, about."""
        return len(self.key) + len(self.image or "") + len(self.other_image or "")

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

    def __init__(self, source: KeySource, log: Writers) -> None:
        self._source = source
        self._log = log
        self._shapes: dict[tuple[bytes, int, bytes], _Shape] = {}
        self._entries: OrderedDict[int, tuple[dict[int, _Written], int]] = OrderedDict()
        """Log index -> what the entry did to each key, and how many bytes that takes."""
        self._bytes = 0
        self._large: OrderedDict[int, LargeRows] = OrderedDict()
        self._part: tuple[int, Payload] | None = None
        """The part of a large unit that was read last, and its log index."""

    def forget(self) -> None:
        """A statement may have changed the keys of a table."""
        self._shapes.clear()
        self._entries.clear()
        self._bytes = 0
        self._part = None
        while self._large:
            self._large.popitem()[1].close()

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
        indices = self._log.indices_of(index)
        if len(indices) > 1:
            return self._written_in_parts(index, indices, wanted)
        if index in self._entries:
            self._entries.move_to_end(index)
            found, _ = self._entries[index]
        else:
            found, size = dict[int, _Written](), 0
            for payload in self._log.read(indices):
                for unit in payload.units:
                    for change in unit.changes:
                        size += len(change.images)
                        shape = self._shape(payload.tables[change.table], change)
                        for row in shape.rows(change.images):
                            _note(found, shape, row, unit.committed_at)
            self._remember(index, found, size + _KEY_BYTES * len(found))
        return {key: found[key] for key in wanted if key in found}

    def _remember(self, index: int, found: dict[int, _Written], size: int) -> None:
        self._entries[index] = found, size
        self._bytes += size
        while self._bytes > REMEMBERED_BYTES and len(self._entries) > 1:
            _, (_, oldest) = self._entries.popitem(last=False)
            self._bytes -= oldest

    def _written_in_parts(self, index: int, indices: Sequence[int], wanted: set[int]) -> dict[int, _Written]:
        rows = self._large.get(index)
        if rows is None:
            rows = self._large[index] = self._places(indices)
            if len(self._large) > _REMEMBERED_LARGE:
                self._large.popitem(last=False)[1].close()
        else:
            self._large.move_to_end(index)
        found: dict[int, _Written] = {}
        places = sorted({place for key in wanted if (place := rows.find(key)) is not None})
        for part, among in groupby(places, lambda place: place.part):
            payload = self._read_part(indices, part)
            changes = [(unit, change) for unit in payload.units for change in unit.changes]
            for place in among:
                unit, change = changes[place.change]
                shape = self._shape(payload.tables[change.table], change)
                _note(found, shape, shape.row_at(change.images, place.offset), unit.committed_at)
        return {key: found[key] for key in wanted if key in found}

    def _places(self, indices: Sequence[int]) -> LargeRows:
        """Reads all parts of a unit, once."""
        rows = LargeRows()
        try:
            for payload in self._log.read(indices):
                rows.add(self._places_in(payload))
        except BaseException:
            rows.close()
            raise
        return rows

    def _places_in(self, payload: Payload) -> Iterator[tuple[int, int, int]]:
        number = 0
        for unit in payload.units:
            for change in unit.changes:
                shape = self._shape(payload.tables[change.table], change)
                offset = 0
                for row in shape.rows(change.images):
                    for _, key in row.keys:
                        yield key, number, offset
                    offset += len(row.before or b"") + len(row.after or b"")
                number += 1

    def _read_part(self, indices: Sequence[int], part: int) -> Payload:
        index = indices[part]
        if self._part is None or self._part[0] != index:
            self._part = None
            (payload,) = self._log.read([index])
            if earlier := max([change.piece for unit in payload.units for change in unit.changes], default=0):
                *_, payload = self._log.read(indices[part - earlier : part + 1])
            self._part = index, payload
        _, payload = self._part
        if any(len(change.images) > _KEPT for unit in payload.units for change in unit.changes):
            self._part = None  # One large row, which few other conflicts are with.
        return payload

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
        self._slicers: list[list[Slicer | None]] = [
            [] if columns is None else [_slicer(table, columns, key, source) for key in self._keys]
            for columns in (self._before, self._after)
        ]

    def row_at(self, images: bytes, offset: int) -> _Row:
        """The row whose images begin there."""
        return next(self.rows(images[offset:]))

    def rows(self, images: bytes) -> Iterator[_Row]:
        for before, after in split(self.map, self.kind, self._layout, images):
            keys: list[tuple[int, int]] = []
            for image, slicers, sign in ((before, self._slicers[0], -1), (after, self._slicers[1], 1)):
                if image is not None:
                    for number, slicer in enumerate(slicers, 1):
                        if slicer is None:
                            continue
                        hashes: list[int] = []
                        slicer(image, 0, len(image), hashes.append)
                        keys += [(sign * number, key) for key in hashes]
            yield _Row(before, after, keys)

    def shown(self, image: Image | None, *, after: bool) -> str | None:
        columns = self._after if after else self._before
        if image is None or columns is None:
            return None
        return _bounded(row_json(columns, image, IMAGE_BYTES), len(image))

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
        key = image_of(pick(columns, wanted, image))
        return _bounded(row_json(wanted, key, IMAGE_BYTES), len(key))


def _slicer(table: TableMap, columns: Sequence[Column], key: KeyDefinition, source: KeySource) -> Slicer | None:
    """None: not all of the key is known, as of what a large row was before."""
    known = {column.name for column in columns}
    if not all((column := table.column(part.column)) is None or column.name in known for part in key.parts):
        return None
    layout = layout_of(table, ChangeKind.WRITE, after=columns)
    return compile_slicer(table, ChangeKind.WRITE, layout, [key], source)


def inserts(conflicts: Iterable[Conflict]) -> Iterator[bytes]:
    """The statements that store them."""
    rows: list[bytes] = []
    size = 0
    for conflict in conflicts:
        row = _values(conflict)
        if rows and size + len(row) > INSERT_BYTES:
            yield b"INSERT INTO mysqlraft.conflicts VALUES " + b",".join(rows)
            rows, size = [], 0
        rows.append(row)
        size += len(row)
    if rows:
        yield b"INSERT INTO mysqlraft.conflicts VALUES " + b",".join(rows)


def _values(c: Conflict) -> bytes:
    values = ",".join(
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
    return f"({values})".encode()


def _bounded(text: str, size: int) -> str:
    """``size``: of what is shown, in the binlog."""
    data = text.encode()
    if len(data) <= IMAGE_BYTES:
        return text
    return f"{data[:IMAGE_BYTES].decode(errors='ignore')}... (cut: {size} bytes in the binlog)"


def _time(microseconds: int | None) -> str:
    if microseconds is None:
        return "NULL"
    return f"'{_EPOCH + timedelta(microseconds=microseconds):%Y-%m-%d %H:%M:%S.%f}'"
