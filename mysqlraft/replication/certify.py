"""Certification: what a conflict is, and which of its own units a site must write again (DESIGN 6 and 8).

Theory of operation
-------------------

The binlog of a site holds, in serialization order, local transactions L and applied transactions R. A unit's *base*
is the last progress index before it there, so ``base >= m`` says "L came after the R that holds log index m", and
``base < m`` says "before". The log therefore knows everything that the pending and in-flight sets of DESIGN 8 track
at run time, and both questions are functions of the log alone:

*conflict*   (unit of origin s with base b): some key was last written above b by another origin.
*re-assert*  some key was last written above b by an R at s: a unit of another origin, or a unit of s that was itself
             re-asserted. Its origin must then write it again, in its place in the log.

Why the *last* writer of a key is enough. Suppose key k was last written, above b, by a unit u of s that was not
re-asserted, yet some R at s wrote k at m with ``b < m < index(u)``. Bases of one origin never go down, so
``base(u) <= b < m``, and u would have been re-asserted.

Nothing here depends on timing, batches or restarts; there is no state to lose. ``tests/replication/test_model.py``
runs the interleaving model against this class and shows that both formulations flag the same units.

Statements
----------

A statement that changes the schema ran at its origin before it was in the log. It counts as a write of every row of its
tables, so that units of other origins that did not know it are re-asserted. It is *raced* if an R at its origin wrote
to one of its tables at an index between its base and its own: there these rows came after it, elsewhere before. A
TRUNCATE then runs again at its origin; a statement that commutes with rows does not mind; any other stops every site
(`apply`).

So that every site stops, what makes a statement raced must not depend on keys: after a rebuild some verdicts err to
REASSERT. It is decided table by table: rows of another origin, or of a unit of its own that was *crossed*. A unit is
crossed if rows of another origin, a statement of another origin, or a crossed unit of its own lie above its base in
one of its tables. Only crossed units are ever re-asserted. ``crossed`` is all that a rebuild cannot find again, so it
is part of the stored state.

Whole tables
------------

The keys of a unit may lack some: of a unique key that was made after it (a statement above its base), or before its
rows were captured (``wild``). Such a unit is entered as a write of its whole table, and a wild one is re-asserted
whenever an R of its origin wrote to the table above its base.

Below the floor
---------------

Only a member that was added after keys had been forgotten has a base below the floor, until it has caught up. Its
units are re-asserted, crossed, and a write of their whole tables, and in conflict only with writers above the floor:
who wrote below it is known no more, and what little is, not at every site.

Memory
------

Writers above the floor are kept in generations: a dictionary that takes new keys, the full one before it, and sorted
arrays for those before that (16 bytes a key; 8 for the keys of one large unit). A generation goes when the floor has
passed its last index, so nothing is ever deleted key by key, and since a unit is only compared with generations that
reach above its base, a busy cluster looks at one dictionary, two at most.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum


class Verdict(IntEnum):
    CLEAN = 0
    REASSERT = 1
    CONFLICT = 2


# A writer is packed as index << 5 | origin << 1 | reasserted: "written above base b" is then one comparison.
_ORIGIN_SHIFT = 1
_INDEX_SHIFT = 5
_ORIGIN_MASK = 0b11110

TableName = tuple[str, str | None]
"""Schema and table, in lower case; table None: anything in the schema."""

GENERATION = 1 << 17
"""Keys after which a dictionary (about 100 bytes a key) makes room for the next."""
SEGMENT = 1 << 19
"""Keys of a large unit that are sorted together."""
_TABLES = 256
"""Tables that are held before those that nobody touched above the floor are given back."""


class _Segment:
    """Sorted keys and their writers, or the one writer of all."""

    __slots__ = ("keys", "last", "writers")

    def __init__(self, keys: array[int], writers: array[int] | int, last: int) -> None:
        self.keys, self.writers, self.last = keys, writers, last

    def get(self, key: int) -> int:
        """The writer of `key`, 0 if there is none."""
        at = bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            return 0
        return self.writers if isinstance(self.writers, int) else self.writers[at]


class _Table:
    """What was done to a table.

    ``touched``: origin << 1 | reasserted -> the last index. ``crossed``: origin -> the last crossed unit's index.
    ``whole``, ``statement``: the last writer of all its rows, and the last statement on it.
    """

    __slots__ = ("crossed", "statement", "touched", "whole")

    def __init__(self) -> None:
        self.touched: dict[int, int] = {}
        self.crossed: dict[int, int] = {}
        self.whole = self.statement = 0


class Certifier:
    """The last writer of every row key above `floor`.

    Invariants: for each key written by an entry above `floor` the greatest writer found in any generation is its last
    writer. Every unit still to come has a base of at least `floor`, except those replayed while the map is rebuilt,
    and these are re-asserted if their base is below it: to write once too often is always safe.
    """

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        self._recent: dict[int, int] = {}
        self._recent_last = 0
        self._older: dict[int, int] = {}
        self._older_last = 0
        self._segments: list[_Segment] = []
        self._tables: dict[TableName, _Table] = {}
        self._trim_at = _TABLES

    def __len__(self) -> int:
        """How many keys are held; one that was written in several generations counts in each."""
        return len(self._recent) + len(self._older) + sum(len(segment.keys) for segment in self._segments)

    def certify(
        self,
        index: int,
        origin: int,
        base: int,
        keys: bytes,
        tables: Iterable[TableName],
        wild: Iterable[TableName] = (),
    ) -> Verdict:
        """Judges the unit and enters it as the last writer of its keys.

        Call it once for each unit in log order. ``keys`` are packed little-endian u64. ``wild``: those of its tables of
        which keys may be missing.
        """
        tables, wild = tuple(tables), tuple(wild)
        verdict = self.judge(origin, base, keys, tables, wild)
        self.enter(index, origin, base, keys, tables, verdict, wild)
        return verdict

    def judge(
        self, origin: int, base: int, keys: bytes, tables: Iterable[TableName], wild: Iterable[TableName] = ()
    ) -> Verdict:
        """What a unit with these keys is, seen from the entries before it."""
        verdict = Verdict.REASSERT if base < self.floor else Verdict.CLEAN
        above = self._above(base)
        own = origin << _ORIGIN_SHIFT
        get = self._recent.get
        deeper = self._generations_above(base)
        for key in _unpack(keys):
            writer = get(key, 0)
            if not writer and deeper:
                writer = max([generation.get(key) or 0 for generation in deeper])
            if writer >= above:
                if writer & _ORIGIN_MASK != own:
                    return Verdict.CONFLICT
                if writer & 1:
                    verdict = Verdict.REASSERT
        if verdict is Verdict.CLEAN:
            for table in self._met(tables):
                if table.whole >= above and (table.whole & _ORIGIN_MASK != own or table.whole & 1):
                    verdict = Verdict.REASSERT
            for table in self._met(wild):
                if any(last > base and writer != own for writer, last in table.touched.items()):
                    verdict = Verdict.REASSERT
        if verdict is Verdict.REASSERT and not self._crossed(origin, base, tables):
            # Its own writer was re-asserted only because a rebuild could not know better.
            return Verdict.CLEAN
        return verdict

    def enter(
        self,
        index: int,
        origin: int,
        base: int,
        keys: bytes,
        tables: Iterable[TableName],
        verdict: Verdict,
        wild: Iterable[TableName] = (),
    ) -> None:
        """Makes the unit at `index` the last writer of its keys."""
        writer = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT | (verdict is not Verdict.CLEAN)
        self._recent.update(dict.fromkeys(_unpack(keys), writer))
        self._recent_last = index
        if len(self._recent) >= GENERATION:
            self._rotate()
        self._touch(writer, base, tables, wild)

    def enter_large(
        self,
        index: int,
        origin: int,
        base: int,
        keys: Iterable[array[int]],
        tables: Iterable[TableName],
        verdict: Verdict,
        wild: Iterable[TableName] = (),
    ) -> None:
        """`enter` for a unit in parts; its keys may stay in the arrays given: sorted, none much above SEGMENT keys."""
        writer = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT | (verdict is not Verdict.CLEAN)
        arrays = list(keys)
        if sum(map(len, arrays)) <= GENERATION:
            for each in arrays:
                self._recent.update(dict.fromkeys(each, writer))
            self._recent_last = index
        else:
            # The recent generation is looked at first, so what was written before this unit goes below it.
            self._rotate()
            self._segments += [_Segment(each, writer, index) for each in arrays]
        self._touch(writer, base, tables, wild)

    def certify_ddl(self, index: int, origin: int, base: int, tables: Iterable[TableName]) -> Verdict:
        """Judges a statement and enters it as a write of its tables.

        CONFLICT: another site changed one of the tables at the same time. REASSERT: it is raced. Both are the same at
        every site for a statement with a base of at least `floor`, as all are that do not only rebuild the map.
        """
        tables = tuple(tables)
        above = self._above(base)
        own = origin << _ORIGIN_SHIFT
        verdict = Verdict.REASSERT if self._crossed(origin, base, tables) else Verdict.CLEAN
        if any(table.statement >= above and table.statement & _ORIGIN_MASK != own for table in self._met(tables)):
            verdict = Verdict.CONFLICT
        writer = index << _INDEX_SHIFT | own | (verdict is not Verdict.CLEAN)
        self._touch(writer, base, tables, tables)
        for name in tables:
            self._tables[name].statement = writer
        return verdict

    @property
    def crossed(self) -> list[tuple[str, str | None, int, int]]:
        """Schema, table, origin and index of the last crossed unit of each, above the floor."""
        return [
            (*name, origin, last)
            for name, table in self._tables.items()
            for origin, last in table.crossed.items()
            if last > self.floor
        ]

    @crossed.setter
    def crossed(self, stored: Iterable[tuple[str, str | None, int, int]]) -> None:
        for table in self._tables.values():
            table.crossed.clear()
        for schema, name, origin, last in stored:
            self._table((schema, name)).crossed[origin] = last

    def conflicting(self, origin: int, base: int, keys: bytes) -> list[tuple[int, int, int]]:
        """(key, index, origin) of each last writer that a unit conflicts with; ask before `enter`."""
        above = self._above(base)
        found = []
        generations: list[dict[int, int] | _Segment] = [self._recent, *self._generations_above(base)]
        for key in _unpack(keys):
            writer = max([generation.get(key) or 0 for generation in generations])
            if writer >= above and (other := (writer & _ORIGIN_MASK) >> _ORIGIN_SHIFT) != origin:
                found.append((key, writer >> _INDEX_SHIFT, other))
        return found

    def forget(self, floor: int) -> None:
        """Drops what lies wholly at or below `floor`, the lowest base of all origins."""
        if floor <= self.floor:
            return
        self.floor = floor
        if self._recent and self._recent_last <= floor:
            self._recent = {}
        if self._older and self._older_last <= floor:
            self._older = {}
        if self._segments:
            self._segments = [segment for segment in self._segments if segment.last > floor]
        if len(self._tables) > self._trim_at:
            self._tables = {
                name: table for name, table in self._tables.items() if max(table.touched.values(), default=0) > floor
            }
            self._trim_at = max(_TABLES, 2 * len(self._tables))

    def _above(self, base: int) -> int:
        """The least writer that a unit with this base did not know. Those up to the floor may be held or forgotten,
        after a restart others than before it, so none of them counts."""
        return (max(base, self.floor) + 1) << _INDEX_SHIFT

    def _generations_above(self, base: int) -> list[dict[int, int] | _Segment]:
        """The generations before the recent one that hold an index above `base`."""
        found: list[dict[int, int] | _Segment] = []
        if self._older_last > base and self._older:
            found.append(self._older)
        if self._segments:
            found += [segment for segment in self._segments if segment.last > base]
        return found

    def _rotate(self) -> None:
        if self._older and self._older_last > self.floor:
            keys = array("Q", sorted(self._older))
            writers = array("Q", map(self._older.__getitem__, keys))
            self._segments.append(_Segment(keys, writers, self._older_last))
        self._older, self._older_last = self._recent, self._recent_last
        self._recent = {}

    def _table(self, name: TableName) -> _Table:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = _Table()
        return table

    def _met(self, names: Iterable[TableName]) -> Iterator[_Table]:
        """What is known of these tables, and of their schemas as a whole."""
        tables = self._tables
        for name in names:
            if name[1] is None:
                yield from [table for other, table in tables.items() if other[0] == name[0]]
                continue
            table = tables.get(name)
            if table is not None:
                yield table
            table = tables.get((name[0], None))
            if table is not None:
                yield table

    def _crossed(self, origin: int, base: int, names: Iterable[TableName]) -> bool:
        """Whether an R at the origin may have written to one of the tables above `base`: the same at every site."""
        if base < self.floor:
            return True
        own = origin << _ORIGIN_SHIFT
        for table in self._met(names):
            if table.crossed.get(origin, 0) > base:
                return True
            for writer, last in table.touched.items():
                if last > base and writer & ~1 != own:
                    return True
        return False

    def _touch(self, writer: int, base: int, names: Iterable[TableName], wild: Iterable[TableName]) -> None:
        """Enters a writer of these tables, of all rows of the wild ones."""
        names = tuple(names)
        wild = frozenset(wild)
        index, own = writer >> _INDEX_SHIFT, writer & _ORIGIN_MASK
        above = (base + 1) << _INDEX_SHIFT
        crossed = self._crossed(own >> _ORIGIN_SHIFT, base, names)
        for name in names:
            whole = name in wild or base < self.floor
            if crossed and not whole:
                # A statement that it did not know may have made a unique key.
                whole = any(
                    table.statement >= above and (table.statement & _ORIGIN_MASK != own or table.statement & 1)
                    for table in self._met((name,))
                )
            table = self._table(name)
            table.touched[writer & (_ORIGIN_MASK | 1)] = index
            if crossed:
                table.crossed[own >> _ORIGIN_SHIFT] = index
            if whole:
                table.whole = writer


def sorted_keys(parts: Iterable[bytes]) -> Iterable[array[int]]:
    """The keys of a large unit's parts in sorted arrays of about SEGMENT keys each."""
    pending = array("Q")
    for keys in parts:
        pending.frombytes(keys)
        if len(pending) >= SEGMENT:
            yield array("Q", sorted(pending))
            pending = array("Q")
    if pending:
        yield array("Q", sorted(pending))


def _unpack(keys: bytes) -> Sequence[int]:
    hashes = array("Q")
    hashes.frombytes(keys)
    return hashes
