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

A statement that changes the schema counts as a write of every row of its schemas. The converse, rows that were
written under a statement, matters only for statements that change rows (TRUNCATE): for these every origin's last
write of each schema is kept.

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
from collections.abc import Iterable, Sequence
from enum import IntEnum


class Verdict(IntEnum):
    CLEAN = 0
    REASSERT = 1
    CONFLICT = 2


# A writer is packed as index << 5 | origin << 1 | reasserted: "written above base b" is then one comparison.
_ORIGIN_SHIFT = 1
_INDEX_SHIFT = 5
_ORIGIN_MASK = 0b11110

GENERATION = 1 << 17
"""Keys after which a dictionary (about 100 bytes a key) makes room for the next."""
SEGMENT = 1 << 19
"""Keys of a large unit that are sorted together."""


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
        self._schemas: dict[str, int] = {}
        self._touched: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        """How many keys are held; one that was written in several generations counts in each."""
        return len(self._recent) + len(self._older) + sum(len(segment.keys) for segment in self._segments)

    def certify(self, index: int, origin: int, base: int, keys: bytes, schemas: Iterable[str]) -> Verdict:
        """Judges the unit and enters it as the last writer of its keys.

        Call it once for each unit in log order. ``keys`` are packed little-endian u64.
        """
        schemas = tuple(schemas)
        verdict = self.judge(origin, base, keys, schemas)
        self.enter(index, origin, keys, schemas, verdict)
        return verdict

    def judge(self, origin: int, base: int, keys: bytes, schemas: Iterable[str]) -> Verdict:
        """What a unit with these keys is, seen from the entries before it."""
        verdict = Verdict.REASSERT if base < self.floor else Verdict.CLEAN
        above = (base + 1) << _INDEX_SHIFT
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
        if self._schemas:
            for schema in schemas:
                writer = self._schemas.get(schema, 0)
                if writer >= above and (writer & _ORIGIN_MASK != own or writer & 1):
                    verdict = Verdict.REASSERT
        return verdict

    def enter(self, index: int, origin: int, keys: bytes, schemas: Iterable[str], verdict: Verdict) -> None:
        """Makes the unit at `index` the last writer of its keys."""
        rewritten = verdict is not Verdict.CLEAN
        writer = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT | rewritten
        self._recent.update(dict.fromkeys(_unpack(keys), writer))
        self._recent_last = index
        if len(self._recent) >= GENERATION:
            self._rotate()
        self._touch(index, origin, schemas, rewritten)

    def enter_large(
        self, index: int, origin: int, keys: Iterable[array[int]], schemas: Iterable[str], verdict: Verdict
    ) -> None:
        """`enter` for a unit in parts; its keys may stay in the arrays given: sorted, none much above SEGMENT keys."""
        rewritten = verdict is not Verdict.CLEAN
        writer = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT | rewritten
        arrays = list(keys)
        if sum(map(len, arrays)) <= GENERATION:
            for each in arrays:
                self._recent.update(dict.fromkeys(each, writer))
            self._recent_last = index
        else:
            # The recent generation is looked at first, so what was written before this unit goes below it.
            self._rotate()
            self._segments += [_Segment(each, writer, index) for each in arrays]
        self._touch(index, origin, schemas, rewritten)

    def certify_ddl(self, index: int, origin: int, base: int, schemas: Iterable[str]) -> Verdict:
        """Judges a statement and enters it as a write of its schemas.

        CONFLICT: another site changed one of the schemas at the same time. REASSERT: an R at its origin wrote rows of
        them, so a statement that changes rows must run there again.
        """
        schemas = tuple(schemas)
        verdict = Verdict.REASSERT if base < self.floor else Verdict.CLEAN
        above = (base + 1) << _INDEX_SHIFT
        own = origin << _ORIGIN_SHIFT
        for (schema, writer), last in self._touched.items():
            if schema in schemas and last > base and writer != own:
                verdict = Verdict.REASSERT
        for schema in schemas:
            writer = self._schemas.get(schema, 0)
            if writer >= above:
                if writer & _ORIGIN_MASK != own:
                    verdict = Verdict.CONFLICT
                elif writer & 1:
                    verdict = max(verdict, Verdict.REASSERT)
        for schema in schemas:
            self._schemas[schema] = index << _INDEX_SHIFT | own | (verdict is not Verdict.CLEAN)
        return verdict

    def conflicting(self, origin: int, base: int, keys: bytes) -> list[tuple[int, int, int]]:
        """(key, index, origin) of each last writer that a unit conflicts with; ask before `enter`."""
        above = (base + 1) << _INDEX_SHIFT
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
        if self._schemas:
            end = (floor + 1) << _INDEX_SHIFT
            self._schemas = {schema: writer for schema, writer in self._schemas.items() if writer >= end}
        if min(self._touched.values(), default=floor + 1) <= floor:
            self._touched = {key: last for key, last in self._touched.items() if last > floor}

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

    def _touch(self, index: int, origin: int, schemas: Iterable[str], rewritten: bool) -> None:
        for schema in schemas:
            self._touched[schema, origin << _ORIGIN_SHIFT | rewritten] = index


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
