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
tables, so that units of other origins that did not know it are re-asserted; one that commutes with rows changes none
and makes no unique key, so it counts as no write. A statement is *raced* if an R at its origin wrote
to one of its tables at an index between its base and its own: there these rows came after it, elsewhere before. A
TRUNCATE then runs again at its origin; a statement that commutes with rows does not mind; any other stops every site
(`apply`).

So that every site stops, what makes a statement raced must not depend on keys: after a rebuild some verdicts err to
REASSERT. It is decided table by table: rows of another origin, or of a unit of its own that was *crossed*. A unit is
crossed if rows of another origin, a statement of another origin, or a crossed unit of its own lie above its base in
one of its tables. Only crossed units are ever re-asserted. What the log above some index says of the tables depends on
what they were there, so what they were is stored (``tables``) with some index from which a rebuild goes on exactly.

Whole tables
------------

The keys of a unit may lack some: of a unique key that was made after it (a statement above its base), or before its
rows were captured (``wild``). Such a unit is entered as a write of its whole table, and a wild one is re-asserted
whenever an R of its origin wrote to the table above its base.

The same statement twice
------------------------

Two sites may run the same statement at once if to run it twice is to run it once (`mysqlraft.binlog.repeating`): each
finds the other's to have nothing left to do, as long as nobody did anything else to the table in between, and that is
what is asked of every other statement on it. Such a statement is raced by rows like any other.

Below the floor
---------------

Only a member that was added after keys had been forgotten has a base below the floor, until it has caught up. Its
units are re-asserted, crossed, and a write of their whole tables, and in conflict only with writers above the floor:
who wrote below it is known no more, and what little is, not at every site.

Memory
------

Writers above the floor are kept in generations: a dictionary that takes new keys, the full one before it, and sorted
runs for those before that (`runs`: in files, if there is a directory). A generation goes when the floor has passed its
last index, so nothing is ever deleted key by key, and since a unit is only compared with generations that reach above
its base, a busy cluster looks at one dictionary, two at most.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

from mysqlraft.binlog.repeating import ONLY_MAKES
from mysqlraft.replication.runs import Memo, Run, Runs


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

GENERATION = 1 << 17  # as many as the smallest of `runs`
"""Keys after which a dictionary (about 100 bytes a key) makes room for the next."""
SEGMENT = 1 << 19
"""Keys of a large unit that are sorted together."""
_STATEMENTS = 16
"""Statements on a table that are held before those up to the floor are given back."""
_TABLES = 256
"""Tables that are held before those that nobody touched above the floor are given back."""


class _Table:
    """What was done to a table.

    ``touched``, ``stated``: origin << 1 | reasserted -> the last index, of units and of statements. ``crossed``: origin
    -> the last crossed unit's index. ``whole``, ``statement``, ``redefined``: the last writer of all its rows, the last
    statement on it, and the last one that does not commute with rows. ``statements``: (`repetition`, origin) -> the
    last index of such a statement.
    """

    __slots__ = ("crossed", "redefined", "stated", "statement", "statements", "touched", "whole")

    def __init__(self) -> None:
        self.touched: dict[int, int] = {}
        self.stated: dict[int, int] = {}
        self.statements: dict[tuple[int, int], int] = {}
        self.crossed: dict[int, int] = {}
        self.whole = self.statement = self.redefined = 0

    @property
    def last(self) -> int:
        """The last index of all."""
        return max([self.statement >> _INDEX_SHIFT, *self.touched.values()])


class Certifier:
    """The last writer of every row key above `floor`.

    Invariants: for each key written by an entry above `floor` the greatest writer found in any generation is its last
    writer. Every unit still to come has a base of at least `floor`, except those replayed while the map is rebuilt,
    and these are re-asserted if their base is below it: to write once too often is always safe.
    """

    def __init__(self, floor: int = 0, runs: Runs | None = None) -> None:
        self.floor = floor
        self.runs = Runs() if runs is None else runs
        self._known_from = floor
        """Keys that were written at or below it may be missing, whatever the floor."""
        self._recent: dict[int, int] = {}
        self._recent_last = 0
        self._older: dict[int, int] = {}
        self._older_last = 0
        self._memo: Memo | None = None
        """Of the end of the older generation, if it was taken."""
        self._entered = 0
        """Keys since `tend` was called last."""
        self._large = False
        """Whether a large unit was entered since then."""
        self._tables: dict[TableName, _Table] = {}
        self._together: dict[tuple[TableName, ...], list[_Table]] = {}
        """What `_met` has found for these tables."""
        self._trim_at = _TABLES

    def __len__(self) -> int:
        """How many keys are held; one that was written in several generations counts in each."""
        return len(self._recent) + len(self._older) + len(self.runs)

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
        verdict = Verdict.REASSERT if base < self.floor or base < self._known_from else Verdict.CLEAN
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
            for table in self._met(wild) if wild else ():
                touches = (*table.touched.items(), *table.stated.items())
                if any(last > base and writer != own for writer, last in touches):
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
        hashes = _unpack(keys)
        self._recent.update(dict.fromkeys(hashes, writer))
        self._recent_last = index
        self._entered += len(hashes)
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
        self._entered += sum(map(len, arrays))
        if sum(map(len, arrays)) <= GENERATION:
            for each in arrays:
                self._recent.update(dict.fromkeys(each, writer))
            self._recent_last = index
        else:
            # The recent generation is looked at first, so what was written before this unit goes below it.
            self._rotate(None)
            for each in arrays:
                self.runs.add(each, writer, index)
            self._large = True
        self._touch(writer, base, tables, wild)

    def tend(self, memo: Callable[[], Memo] | None = None) -> None:
        """Makes room for new keys. Call it between any two entries; ``memo`` takes what else the state is there, to
        start from later (None: it is not worth it).

        Raises:
            Damaged: a run's file is, see `runs`.
        """
        if len(self._recent) >= GENERATION or self._large:
            self._large = False
            self._rotate(None if memo is None else memo())
        if self.runs:
            floors = [self.floor, *self.runs.floors]
            if self._memo is not None:
                floors.append(self._memo.floor)
            self.runs.tend(self._entered, (min(floors) + 1) << _INDEX_SHIFT)
        self._entered = 0

    def put_by(self, memo: Callable[[], Memo]) -> None:
        """Puts all keys into runs and keeps a memo at once: what took long to be read is not to be read again."""
        if self.runs:
            self._rotate(None)
            self._rotate(None)
            self.runs.remember(memo())

    @property
    def tables(self) -> list[Any]:
        """What is known of each table that was touched above the floor: schema, table, and the value of each slot, a
        dictionary as pairs."""
        return [
            (*name, *[_pairs(getattr(table, slot)) for slot in _Table.__slots__])
            for name, table in self._tables.items()
            if table.last > self.floor
        ]

    def restore(self, floor: int, tables: Iterable[Sequence[Any]]) -> None:
        """Makes it what it was when `floor` and `tables` were read, but for keys. Lists may be in place of tuples."""
        self.floor = floor
        self._tables = {}
        self._together.clear()
        for schema, name, *values in tables:
            table = self._table((schema, name))
            for slot, value in zip(_Table.__slots__, values, strict=True):
                setattr(table, slot, value if isinstance(value, int) else _dictionary(value))

    def certify_ddl(
        self,
        index: int,
        origin: int,
        base: int,
        tables: Iterable[TableName],
        *,
        commutes: bool = False,
        repetition: int = 0,
    ) -> Verdict:
        """Judges a statement and enters it as a write of its tables, unless it ``commutes`` with rows. ``repetition``:
        see `mysqlraft.binlog.repeating`.

        CONFLICT: another site changed one of the tables at the same time. REASSERT: it is raced. Both are the same at
        every site for a statement with a base of at least `floor`, as all are that do not only rebuild the map.
        """
        tables = tuple(tables)
        above = self._above(base)
        own = origin << _ORIGIN_SHIFT
        # Another site's statement that may stand beside it is no reason to run it again.
        verdict = Verdict.REASSERT if self._crossed(origin, base, tables, by_statements=False) else Verdict.CLEAN
        if any(self._meets(table, origin, above >> _INDEX_SHIFT, repetition) for table in self._met(tables)):
            verdict = Verdict.CONFLICT
        writer = index << _INDEX_SHIFT | own | (verdict is not Verdict.CLEAN)
        if not commutes:
            self._touch(writer, base, tables, tables, statement=True)
        for name in tables:
            table = self._table(name)
            table.statement = writer
            if not commutes:
                table.redefined = writer
            if len(table.statements) >= _STATEMENTS:
                table.statements = {one: last for one, last in table.statements.items() if last > self.floor}
            table.statements[repetition, origin] = index
        return verdict

    def _meets(self, table: _Table, origin: int, first: int, repetition: int) -> bool:
        """Whether another origin's statement from log index `first` on may not be run beside this one.

        The same one may. Another one that only makes what is not there may, if one of the two sites is known to have
        run both: then what either makes is there before the other's comes, and nothing was done to it.
        """
        for other, who in self._others(table, origin, first, repetition):
            both_make = other & repetition & ONLY_MAKES
            known = (other, origin), (repetition, who)
            if not both_make or all(table.statements.get(one, 0) <= self.floor for one in known):
                return True
        return False

    def _others(self, table: _Table, origin: int, first: int, repetition: int) -> Iterator[tuple[int, int]]:
        """`repetition` and origin of the other statements of other origins from log index `first` on."""
        for (other, who), last in table.statements.items():
            if last >= first and who != origin and not (other and other == repetition):
                yield other, who

    def alone(self, origin: int, base: int, tables: Iterable[TableName], repetition: int) -> bool:
        """Whether the origin knew all statements on these tables that are in the log, but for the same as this one."""
        first = max(base, self.floor) + 1
        return not any(True for table in self._met(tables) for _ in self._others(table, origin, first, repetition))

    def restore_crossed(self, stored: Iterable[tuple[str, str | None, int, int]]) -> None:
        """Schema, table, origin and index of the last crossed unit of each above the floor: what the formats before
        stored instead of `tables`."""
        for table in self._tables.values():
            table.crossed.clear()
        for schema, name, origin, last in stored:
            self._table((schema, name)).crossed[origin] = last

    def conflicting(self, origin: int, base: int, keys: bytes) -> list[tuple[int, int, int]]:
        """(key, index, origin) of each last writer that a unit conflicts with; ask before `enter`."""
        above = self._above(base)
        found = []
        generations: list[dict[int, int] | Run] = [self._recent, *self._generations_above(base)]
        for key in _unpack(keys):
            writer = max([generation.get(key) or 0 for generation in generations])
            if writer >= above and (other := (writer & _ORIGIN_MASK) >> _ORIGIN_SHIFT) != origin:
                found.append((key, writer >> _INDEX_SHIFT, other))
        return found

    def contested(self, origin: int, base: int, keys: bytes) -> set[int]:
        """The keys of a unit that another site has written meanwhile, or its own one writing again; ask before
        `enter`."""
        above, own = self._above(base), origin << _ORIGIN_SHIFT
        generations: list[dict[int, int] | Run] = [self._recent, *self._generations_above(base)]
        return {
            key
            for key in _unpack(keys)
            if _disturbs(max([generation.get(key) or 0 for generation in generations]), above, own)
        }

    def by_keys_alone(
        self, origin: int, base: int, tables: Iterable[TableName], wild: Iterable[TableName] = ()
    ) -> bool:
        """Whether the keys that are `contested` are all for which a unit may have to be written again."""
        if base < self.floor or base < self._known_from or tuple(wild):
            return False
        above, own = self._above(base), origin << _ORIGIN_SHIFT
        return not any(
            _disturbs(table.whole, above, own) or _disturbs(table.redefined, above, own) for table in self._met(tables)
        )

    def forget(self, floor: int) -> None:
        """Drops what lies wholly at or below `floor`, the lowest base of all origins."""
        if floor <= self.floor:
            return
        self.floor = floor
        if self._recent and self._recent_last <= floor:
            self._recent = {}
        if self._older and self._older_last <= floor:
            self._older = {}
            self._memo = None
        if self.runs:
            self._forget_runs()
        if len(self._tables) > self._trim_at:
            self._tables = {name: table for name, table in self._tables.items() if table.last > floor}
            self._together.clear()
            self._trim_at = max(_TABLES, 2 * len(self._tables))

    def _forget_runs(self) -> None:
        if self.runs.last <= self.floor:
            self.runs.discard()
            self._memo = None
        else:
            # A start from the memo goes on with the floor of then.
            self.runs.forget(self.floor if self._memo is None else min(self.floor, self._memo.floor))

    def _above(self, base: int) -> int:
        """The least writer that a unit with this base did not know. Those up to the floor may be held or forgotten,
        after a restart others than before it, so none of them counts."""
        return (max(base, self.floor) + 1) << _INDEX_SHIFT

    def _generations_above(self, base: int) -> list[dict[int, int] | Run]:
        """The generations before the recent one that hold an index above `base`."""
        found: list[dict[int, int] | Run] = []
        if self._older_last > base and self._older:
            found.append(self._older)
        if self.runs:
            found += self.runs.above(base)
        return found

    def _rotate(self, memo: Memo | None) -> None:
        if self._older:
            keys = array("Q", sorted(self._older))
            self.runs.add(keys, array("Q", map(self._older.__getitem__, keys)), self._older_last)
        if self.runs:
            self.runs.write()
        if self._memo is not None:
            self.runs.remember(self._memo)
        self._older, self._older_last, self._memo = self._recent, self._recent_last, memo
        self._recent = {}

    def _table(self, name: TableName) -> _Table:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = _Table()
            self._together.clear()
        return table

    def _met(self, names: Iterable[TableName]) -> list[_Table]:
        """What is known of these tables, and of their schemas as a whole."""
        names = tuple(names)
        met = self._together.get(names)
        if met is None:
            if len(self._together) >= _TABLES:
                self._together.clear()
            met = self._together[names] = [table for name in names for table in self._known(name)]
        return met

    def _known(self, name: TableName) -> list[_Table]:
        if name[1] is None:
            return [table for other, table in self._tables.items() if other[0] == name[0]]
        return [self._tables[known] for known in (name, (name[0], None)) if known in self._tables]

    def _crossed(self, origin: int, base: int, names: Iterable[TableName], *, by_statements: bool = True) -> bool:
        """Whether an R at the origin may have written to one of the tables above `base`: the same at every site."""
        if base < self.floor:
            return True
        own = origin << _ORIGIN_SHIFT
        for table in self._met(names):
            if table.crossed.get(origin, 0) > base:
                return True
            for touches in (table.touched, table.stated) if by_statements else (table.touched,):
                for writer, last in touches.items():
                    if last > base and writer & ~1 != own:
                        return True
        return False

    def _touch(
        self,
        writer: int,
        base: int,
        names: Iterable[TableName],
        wild: Iterable[TableName],
        *,
        statement: bool = False,
    ) -> None:
        """Enters a writer of these tables, of all rows of the wild ones."""
        names, wild = tuple(names), tuple(wild)
        index, own = writer >> _INDEX_SHIFT, writer & _ORIGIN_MASK
        above = (base + 1) << _INDEX_SHIFT
        # A clean statement is never run again at its origin, though another site's same one may lie above its base.
        crossed = bool(writer & 1) if statement else self._crossed(own >> _ORIGIN_SHIFT, base, names)
        for name in names:
            whole = name in wild or base < self.floor
            if crossed and not whole:
                # A statement that it did not know may have made a unique key.
                whole = any(
                    table.redefined >= above and (table.redefined & _ORIGIN_MASK != own or table.redefined & 1)
                    for table in self._met((name,))
                )
            table = self._table(name)
            (table.stated if statement else table.touched)[writer & (_ORIGIN_MASK | 1)] = index
            if crossed:
                table.crossed[own >> _ORIGIN_SHIFT] = index
            if whole:
                table.whole = writer


def _disturbs(writer: int, above: int, own: int) -> bool:
    """Whether a unit did not know this writer, and what it has written may be in the unit's rows at their origin."""
    return writer >= above and (writer & _ORIGIN_MASK != own or bool(writer & 1))


def _pairs(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value


def _dictionary(pairs: Iterable[Sequence[Any]]) -> dict[Any, Any]:
    return {tuple(key) if isinstance(key, list) else key: value for key, value in pairs}


def sorted_keys(parts: Iterable[bytes]) -> Iterable[array[int]]:
    """The keys of a large unit's parts in sorted arrays of about SEGMENT keys each, none twice in one."""
    pending = array("Q")
    for keys in parts:
        pending.frombytes(keys)
        if len(pending) >= SEGMENT:
            yield array("Q", sorted(set(pending)))
            pending = array("Q")
    if pending:
        yield array("Q", sorted(set(pending)))


def _unpack(keys: bytes) -> Sequence[int]:
    hashes = array("Q")
    hashes.frombytes(keys)
    return hashes
