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

A statement that changes the schema counts as a write of every row of its schemas.
"""

from __future__ import annotations

from array import array
from collections import deque
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


class Certifier:
    """The last writer of every row key above `floor`.

    Invariants: the map holds, for each key written by an entry above `floor`, exactly its last writer. Every unit
    still to come has a base of at least `floor`, except those replayed while the map is rebuilt, and these are
    re-asserted if their base is below it: to write once too often is always safe.
    """

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        self._writers: dict[int, int] = {}
        self._schemas: dict[str, int] = {}
        self._history: deque[tuple[int, Sequence[int]]] = deque()

    def __len__(self) -> int:
        return len(self._writers)

    def certify(self, index: int, origin: int, base: int, keys: bytes, schemas: Iterable[str]) -> Verdict:
        """Judges the unit and enters it as the last writer of its keys.

        Call it once for each unit in log order. ``keys`` are packed little-endian u64.
        """
        hashes = _unpack(keys)
        verdict = self._judge(origin, base, hashes, schemas)
        writer = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT | (verdict is not Verdict.CLEAN)
        self._writers.update(dict.fromkeys(hashes, writer))
        self._history.append((index, hashes))
        return verdict

    def certify_ddl(self, index: int, origin: int, base: int, schemas: Iterable[str]) -> Verdict:
        """Judges a statement against others of the same schemas; CONFLICT: two sites changed a schema at once."""
        verdict = Verdict.CLEAN
        above = (base + 1) << _INDEX_SHIFT
        for schema in schemas:
            writer = self._schemas.get(schema, 0)
            if writer >= above and (writer & _ORIGIN_MASK) >> _ORIGIN_SHIFT != origin:
                verdict = Verdict.CONFLICT
            self._schemas[schema] = index << _INDEX_SHIFT | origin << _ORIGIN_SHIFT
        return verdict

    def conflicting(self, origin: int, base: int, keys: bytes) -> list[tuple[int, int, int]]:
        """(key, index, origin) of each last writer that a unit conflicts with; ask before `certify`."""
        above = (base + 1) << _INDEX_SHIFT
        found = []
        for key in _unpack(keys):
            writer = self._writers.get(key, 0)
            if writer >= above and (other := (writer & _ORIGIN_MASK) >> _ORIGIN_SHIFT) != origin:
                found.append((key, writer >> _INDEX_SHIFT, other))
        return found

    def forget(self, floor: int) -> None:
        """Drops every writer at or below `floor`, the lowest base of all origins."""
        self.floor = max(self.floor, floor)
        end = (self.floor + 1) << _INDEX_SHIFT
        history, writers = self._history, self._writers
        while history and history[0][0] <= self.floor:
            for key in history.popleft()[1]:
                if writers.get(key, end) < end:
                    del writers[key]
        for schema in [s for s, writer in self._schemas.items() if writer < end]:
            del self._schemas[schema]

    def _judge(self, origin: int, base: int, hashes: Sequence[int], schemas: Iterable[str]) -> Verdict:
        verdict = Verdict.REASSERT if base < self.floor else Verdict.CLEAN
        above = (base + 1) << _INDEX_SHIFT
        own = origin << _ORIGIN_SHIFT
        get = self._writers.get
        for key in hashes:
            writer = get(key, 0)
            if writer >= above:
                if writer & _ORIGIN_MASK != own:
                    return Verdict.CONFLICT
                if writer & 1:
                    verdict = Verdict.REASSERT
        if self._schemas:
            for schema in schemas:
                writer = self._schemas.get(schema, 0)
                if writer >= above and writer & _ORIGIN_MASK != own:
                    verdict = Verdict.REASSERT
        return verdict


def _unpack(keys: bytes) -> array[int]:
    hashes = array("Q")
    hashes.frombytes(keys)
    return hashes
