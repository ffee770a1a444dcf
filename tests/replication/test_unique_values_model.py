"""Rows with several unique values: does every site end at the log's own result, and do own rows stay?

The sites of `test_model` and `test_own_writes_model`, in one model and with more of what real ones have: two tables of
rows with a primary key and two unique values, which may be NULL, and which the server takes for equal when they differ
in their last bit, as letters do in their case; payloads that hold several units, units in parts, wild units; tables
that are emptied, a unique key that is dropped and made again; members that are added late; daemons that crash at any
moment. Generations of keys are small, so that a history has many.

Each site has *home rows*, which only it writes, with unique values that only it gives. Its application adds to them,
swaps their unique values, moves them to other primary keys, deletes them and brings them back, in transactions that
also touch rows of all sites. After every step these rows have to be what was committed there last.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgpack
import pytest

from mysqlraft.replication import certify
from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.ddl import changes_rows, commutes
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.replication.policy import Certification, last_write_wins
from mysqlraft.replication.state import ReplicationState, Step, StepKind
from mysqlraft.replication.writing_again import Stored, operations
from tests.harness.amount import histories
from tests.replication.harness import LoggedEntry, founders
from tests.replication.test_model import Log

HISTORIES = histories(300)
HOME = 1000
"""Primary keys and unique values of a site's home rows are HOME * number and above."""
TABLES = ("t", "o")
MAPS = [b"\x01s\x00\x01t\x00", b"\x01s\x00\x01o\x00"]
U, W = 1, 2
"""The unique keys, and where a row has their values."""


class Row(NamedTuple):
    key: int
    u: int | None
    w: int | None
    value: int


RowChange = tuple[Row | None, Row | None]
Written = tuple[int, Row | None, Row | None]
"""Table, before and after image."""


def same(value: int) -> int:
    """What the server compares instead of a value."""
    return value // 2


class Table(dict[int, Row]):
    """What is `same` of the primary key -> the row. ``unique``: the unique keys that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.unique = {U, W}

    def holders(self, row: Row) -> Iterator[tuple[int, Row]]:
        """The other rows that hold one of the row's unique values, and which."""
        for number in sorted(self.unique):
            value = row[number]
            if value is not None:
                for key, other in self.items():
                    held = other[number]
                    if key != same(row.key) and held is not None and same(held) == same(value):
                        yield number, other

    def apply(self, before: Row | None, after: Row | None) -> None:
        """What the log says of a row: delete(before's key), then write(after)."""
        if before:
            self.pop(same(before.key), None)
        if after:
            for _, other in list(self.holders(after)):
                self.pop(same(other.key), None)
            self[same(after.key)] = after

    def change(self, statement: str) -> bool:
        """Runs a statement; whether it succeeds."""
        if statement.startswith("TRUNCATE"):
            self.clear()
        elif "DROP INDEX" in statement:
            self.unique.discard(W)
        elif "ADD UNIQUE" in statement:
            held = [same(row.w) for row in self.values() if row.w is not None]
            if len(set(held)) < len(held):
                return False
            self.unique.add(W)
        return True


Tables = tuple[Table, Table]


def hashes(table: int, before: Row | None, after: Row | None, unique: set[int]) -> set[int]:
    """The keys of a row."""
    found = set()
    for row in (before, after):
        if row:
            values = [(0, row.key), *[(number, row[number]) for number in unique]]
            found |= {table << 60 | n << 40 | same(value) for n, value in values if value is not None}
    return found


def packed(keys: set[int]) -> bytes:
    return struct.pack(f"<{len(keys)}Q", *sorted(keys))


def encoded(written: Written) -> Change:
    table, *images = written
    return Change(table, ChangeKind.UPDATE, b"", 1, msgpack.packb(images))


def decoded(change: Change) -> Written:
    before, after = msgpack.unpackb(change.images)
    return change.table, None if before is None else Row(*before), None if after is None else Row(*after)


@dataclass
class Local:
    """A local transaction in the binlog; without changes: a statement on a table."""

    changes: list[Written]
    statement: str = ""
    table: int = 0


@dataclass
class Applied:
    """A transaction of apply's in the binlog, and the index that it reached; a statement that it ran has none."""

    index: int = 0


@dataclass(frozen=True)
class Options:
    """``wild``: how often a unit counts as a write of its whole tables. ``remote``: how often rows of other sites
    that meet what is pending are left out. ``statements``: TRUNCATE; ``keys``: a unique key is dropped and made again;
    ``late``: members are added.

    The others are mistakes that the model has to notice. ``naive``: own units are skipped; ``in_full``: nothing is left
    out of them; ``follows``: what is written again may meet the unit's rows that follow; ``gives``: whether every
    holder of a unique value was given it later.
    """

    wild: float = 0.0
    remote: float = 0.0
    crashes: bool = False
    statements: bool = False
    keys: bool = False
    late: bool = False
    naive: bool = False
    in_full: bool = False
    follows: bool = True
    gives: bool | None = None


@dataclass
class Unwritten:
    """A unit that the next batch writes. ``end``: behind what is later, in the binlog."""

    unit: Unit
    certification: Certification
    end: int


@dataclass
class Batch:
    """What the server will do next for apply; local transactions come in between."""

    index: int
    units: list[Unwritten]
    progress: bytes
    certification: bytes | None
    statement: str = ""
    table: int = 0


def ddl_of(payload: Payload | None) -> tuple[Ddl, int]:
    """A statement, and the number of its table."""
    assert payload is not None
    assert payload.ddl is not None
    return payload.ddl, TABLES.index(str(payload.ddl.tables[0][1]))


def stops(ddl: Ddl, verdict: Verdict) -> bool:
    """What apply does about a statement in conflict, or raced."""
    return verdict is Verdict.CONFLICT or (verdict is Verdict.REASSERT and not changes_rows(ddl) and not commutes(ddl))


class Site:
    def __init__(self, number: int, log: Log, rng: random.Random, options: Options) -> None:
        self.number, self.log, self.rng, self.options = number, log, rng, options
        # The server: tables, the binlog, and the progress row.
        self.tables: Tables = Table(), Table()
        self.binlog: list[Local | Applied] = []
        self.base = 0
        self.progress = self.stored_tables = b""
        self.home: list[dict[int, Row]] = [{}, {}]
        """What was committed of the home rows, by primary key."""
        self.went_back = self.undisturbed = self.written_again = 0
        self.stopped = False
        self.stopped_at = 0
        self.session = 0
        self.proposed: list[tuple[int, int, bytes]] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self.start()

    def start(self) -> None:
        """The daemon starts, for the first time or again."""
        self.state = ReplicationState.load(
            self.progress, self.number, self.log.fetch, tables=self.stored_tables,
            checkpoint_every=self.rng.choice([3, 10, 50]),
        )  # fmt: skip
        self.batches: list[Batch] = []
        self.reading: int | None = None
        self.known: tuple[tuple[frozenset[int], ...], int] | None = None
        self.session = max(self.session, self.state.sessions.last(self.number)[0]) + 1
        self.sequence = 0
        self.propose(Payload(PayloadKind.OPEN, Flavour.MYSQL, self.base, Position("", 0), ("", 0)))

    def crash(self) -> None:
        if self.rng.random() < 0.5:
            self.proposed.clear()
        self.start()

    def propose(self, payload: Payload) -> None:
        self.sequence += 1
        self.proposed.append((self.session, self.sequence, payload.encode()))

    def deliver(self) -> None:
        """One proposal reaches the log; once in a while an old one does again."""
        if self.sent and self.rng.random() < 0.1:
            entry = self.rng.choice(self.sent[-5:])
        elif self.proposed:
            entry = self.proposed.pop(0)
            self.sent.append(entry)
        else:
            return
        self.log.append(LoggedEntry(len(self.log) + 1, self.number, *entry))

    # The application.

    def execute(self, keyspace: int) -> None:
        rng = self.rng
        number = rng.randrange(2)
        table = self.tables[number]
        name = TABLES[number]
        dice = rng.random()
        statement = ""
        if self.options.statements and dice < 0.01:
            statement = f"TRUNCATE TABLE {name}"
        elif self.options.keys and dice < 0.03:
            statement = f"ALTER TABLE {name} " + ("DROP INDEX w" if W in table.unique else "ADD UNIQUE w (w)")
        if statement:
            if table.change(statement):
                self.binlog.append(Local([], statement, number))
            if not table:
                self.home[number].clear()
            return
        changes: list[Written] = []
        for _ in range(rng.randint(1, 3)):
            made = self.tables[number := rng.randrange(2)]
            for before, after in self.home_rows(number) if rng.random() < 0.5 else self.shared_rows(made, keyspace):
                made.apply(before, after)
                changes.append((number, before, after))
        if changes:
            self.binlog.append(Local(changes))

    def shared_rows(self, table: Table, keyspace: int) -> list[RowChange]:
        """Changes of rows that all sites write, in one statement. Some of them are REPLACE: others make room."""
        rng = self.rng

        def some() -> int | None:
            return None if rng.random() < 0.2 else rng.randrange(keyspace)

        rows = [row for row in table.values() if row.key < HOME]
        before = rng.choice(rows) if rows and rng.random() < 0.6 else None
        if before is not None and rng.random() < 0.25:
            return [(before, None)]
        after = Row(rng.randrange(keyspace), some(), some(), rng.randrange(10**6))
        if before is not None:
            key, u, w = (rng.random() < p for p in (0.8, 0.6, 0.6))
            after = Row(
                before.key if key else after.key, before.u if u else after.u, before.w if w else after.w, after.value
            )
        meets = [row for _, row in table.holders(after)]
        there = table.get(same(after.key))
        if there is not None and there != before:
            meets.append(there)
        meets = list(dict.fromkeys(row for row in meets if row != before))
        if meets and rng.random() < 0.6:
            return []  # the server refuses it
        return [*[(row, None) for row in meets], (before, after)]

    def home_rows(self, number: int) -> list[RowChange]:
        """Changes of rows that only this site writes."""
        rng, home = self.rng, self.home[number]
        first = HOME * self.number
        rows = list(home.values())
        free = [key for key in range(first, first + 10, 2) if not any(same(key) == same(row.key) for row in rows)]

        def unused(at: int) -> int:
            held = {same(row[at] or 0) for row in rows}
            return rng.choice([v for v in range(first, first + 24, 2) if same(v) not in held]) + rng.randrange(2)

        made: list[RowChange] = []
        dice = rng.random()
        if not rows or (dice < 0.15 and free):
            made = [(None, Row(rng.choice(free) + rng.randrange(2), unused(U), unused(W), 0))]
        elif dice < 0.25:
            made = [(rng.choice(rows), None)]
        elif dice < 0.4 and len(rows) > 1:
            # One takes over the other's unique values, one or both of them.
            a, b = rng.sample(rows, 2)
            both = rng.random() < 0.5
            away = a._replace(u=unused(U), w=unused(W) if both else a.w, value=a.value + 1)
            taken = b._replace(u=a.u, w=a.w if both else b.w, value=b.value + 1)
            made = [(a, away), (b, taken)]
            if rng.random() < 0.5:
                made.append((away, away._replace(u=b.u, w=b.w if both else away.w)))
        elif dice < 0.5 and free:
            a = rng.choice(rows)
            made = [(a, a._replace(key=rng.choice(free) + rng.randrange(2), value=a.value + 1))]
        elif dice < 0.6:
            a = rng.choice(rows)
            made = [(a, Row(a.key ^ 1, (a.u or 0) ^ 1, (a.w or 0) ^ 1, a.value + 1))]
        else:
            a = rng.choice(rows)
            made = [(a, a._replace(value=a.value + 1))]
        for before, after in made:
            if before:
                del home[before.key]
            if after:
                home[after.key] = after
        return made

    def look(self) -> None:
        """Whether what the application committed is there."""
        for table, home in zip(self.tables, self.home, strict=True):
            first = HOME * self.number
            here = {row.key: row for row in table.values() if first <= row.key < first + HOME}
            self.went_back += here != home

    # Capture.

    def capture(self) -> None:
        """Reads up to three transactions, or a statement, once the own OPEN is in the log."""
        if self.reading is None:
            return
        units: list[Unit] = []
        wanted = self.rng.randint(1, 3)
        while self.reading < len(self.binlog) and len(units) < wanted:
            record = self.binlog[self.reading]
            if isinstance(record, Applied) or record.statement:
                if units and not (isinstance(record, Applied) and record.index):
                    break
                self.reading += 1
                if isinstance(record, Applied) and record.index:
                    continue
                self.known = None
                if isinstance(record, Local):
                    self.statement(record)
                    return
                continue
            self.reading += 1
            units.append(self.unit(record))
            if len(units[-1].changes) > 1 and self.rng.random() < 0.2:
                break
        if not units:
            return
        here, done = Position("", self.reading), ("", self.reading)
        last = units[-1]
        base = last.base
        if len(units) > 1 or len(last.changes) < 2 or self.rng.random() < 0.6:
            self.propose(Payload(PayloadKind.UNITS, Flavour.MYSQL, base, here, done, MAPS, units))
            return
        unique = self.known[0] if self.known else ()
        for part, change in enumerate(last.changes):
            table, before, after = decoded(change)
            ends = part == len(last.changes) - 1
            keys = packed(hashes(table, before, after, set(unique[table])))
            share = Unit(last.base, last.committed_at, keys, [change], last.wild if ends else [])
            self.propose(Payload(PayloadKind.PART, Flavour.MYSQL, base, here, done, MAPS, [share], part, ends))

    def statement(self, record: Local) -> None:
        assert self.reading is not None
        ddl = Ddl([("s", TABLES[record.table])], record.statement.encode(), "s", {}, 0)
        here, done = Position("", self.reading), ("", self.reading)
        self.propose(Payload(PayloadKind.DDL, Flavour.MYSQL, self.captured_base(), here, done, ddl=ddl))

    def captured_base(self) -> int:
        assert self.reading is not None
        return max([r.index for r in self.binlog[: self.reading] if isinstance(r, Applied)], default=0)

    def unit(self, record: Local) -> Unit:
        """``committed_at`` is where it ends in the binlog."""
        assert self.reading is not None
        self.known = self.known or (tuple(frozenset(table.unique) for table in self.tables), len(self.binlog))
        unique, known_from = self.known
        keys: set[int] = set()
        for table, before, after in record.changes:
            keys |= hashes(table, before, after, set(unique[table]))
        tables = sorted({table for table, _, _ in record.changes})
        unsure = self.options.keys and known_from > self.reading
        wild = tables if unsure or self.rng.random() < self.options.wild else []
        return Unit(
            self.captured_base(), self.reading, packed(keys), [encoded(change) for change in record.changes], wild
        )

    # Apply.

    def begin_apply(self, limit: int) -> None:
        """Decides what the next batches write."""
        if self.batches or self.stopped or self.state.index == len(self.log):
            return
        units: list[Unwritten] = []
        tables: bytes | None = None
        for entry in self.log[self.state.index : self.state.index + limit]:
            before, index = self.state.dump(), self.state.index
            tables = self.state.dump_tables() or tables
            step = self.state.step(entry)
            if step.kind is StepKind.DDL:
                assert step.certification is not None
                ddl, table = ddl_of(step.payload)
                if stops(ddl, step.certification.verdict):
                    self.stopped, self.stopped_at = True, entry.index
                    self.batches = []
                    return
                runs = not step.certification.own or step.certification.verdict is Verdict.REASSERT
                self.batches.append(Batch(index, units, before, tables, ddl.text if runs else "", table))
                units, tables = [], None
            if (entry.origin, entry.session, entry.sequence) == (self.number, self.session, 1) and step.accepted:
                resume = self.state.origins[self.number].resume
                self.reading = resume.offset if resume else 0
            units += self.to_write(step)
        self.batches.append(Batch(self.state.index, units, self.state.dump(), self.state.dump_tables() or tables))

    def to_write(self, step: Step) -> Iterator[Unwritten]:
        pending = self.state.origins[self.number].done[1]
        for unit, certification in step.units:
            if step.kind is StepKind.LARGE:
                parts = [u for part in self.state.parts(step.parts) for u in part.units]
                whole = replace(unit, changes=[c for part in parts for c in part.changes])
                whole.committed_at = parts[0].committed_at
                unit = whole
            if last_write_wins(unit, certification).changes and not (self.options.naive and certification.own):
                yield Unwritten(unit, certification, unit.committed_at if certification.own else pending)

    def commit_apply(self) -> None:
        """The server executes the next batch."""
        if not self.batches:
            return
        batch = self.batches.pop(0)
        for unwritten in batch.units:
            self.write(unwritten)
        self.progress = batch.progress
        self.stored_tables = batch.certification or self.stored_tables
        self.base = batch.index
        self.binlog.append(Applied(batch.index))
        if batch.statement:
            if not self.tables[batch.table].change(batch.statement):
                # Rows of its own that are not in the log yet: this site stops, loud, until they are gone.
                self.stopped = True
                self.batches.clear()
                return
            self.binlog.append(Applied())

    def write(self, unwritten: Unwritten) -> None:
        certification = unwritten.certification
        exact = certification.own or self.rng.random() < self.options.remote
        if self.options.in_full or not exact:
            for change in unwritten.unit.changes:
                table, before, after = decoded(change)
                self.tables[table].apply(before, after)
            return
        later = Later(self.binlog[unwritten.end :])
        contested = None if certification.contested is None else set(certification.contested)
        for change in unwritten.unit.changes:
            table, before, after = decoded(change)
            if contested is not None:
                # Of what a row was, its primary key may be all that is known.
                known = None if before is None else before._replace(u=None, w=None)
                keys = hashes(table, known, after, self.tables[table].unique)
                if contested.isdisjoint(keys):
                    self.undisturbed += 1
                    continue
                if self.options.follows:
                    contested |= keys
            self.written_again += certification.own
            self.write_row(table, before, after, later)

    def write_row(self, number: int, before: Row | None, after: Row | None, later: Later) -> None:
        """One row by the project's own rule, with the look-ups that the careful lane makes."""
        table = self.tables[number]
        stored: Stored[Row] = Stored()
        if before:
            stored.before = table.get(same(before.key))
        if after:
            stored.same = table.get(same(after.key))
            stored.holders = list(table.holders(after))
            if stored.same is not None:
                own = [(n, stored.same) for n in table.unique if after[n] is not None and stored.same[n] is not None]
                stored.holders += [(n, row) for n, row in own if same(after[n] or 0) == same(row[n] or 0)]

        def wrote(image: Row | None, found: Row | None) -> bool:
            return image is not None and any(later.wrote(number, row) for row in (image, found) if row is not None)

        def given_later(holder: Row, unique: int) -> bool:
            if self.options.gives is not None:
                return self.options.gives
            last = later.image(number, holder)
            assert after is not None
            return last is not None and last[unique] in (after[unique], holder[unique])

        made = operations(
            stored,
            puts=after is not None,
            before_later=wrote(before, stored.before),
            after_later=wrote(after, stored.same),
            given_later=given_later,
        )
        for row in made.gone:
            del table[same(row.key)]
        if made.put:
            assert after is not None
            if made.start is not None:
                del table[same(made.start.key)]
            assert same(after.key) not in table, "the row is not to be found twice"
            assert not list(table.holders(after)), "a value is not to be held twice"
            table[same(after.key)] = after


class Later:
    """What the local transactions among these records leave of each row that they write, by exact primary keys."""

    def __init__(self, records: list[Local | Applied]) -> None:
        self._images: dict[tuple[int, int], Row | None] = {}
        self._emptied: set[int] = set()
        for record in records:
            if not isinstance(record, Local):
                continue
            if record.statement.startswith("TRUNCATE"):
                self._images = {at: row for at, row in self._images.items() if at[0] != record.table}
                self._emptied.add(record.table)
            for table, before, after in record.changes:
                if before:
                    self._images[table, before.key] = None
                if after:
                    self._images[table, after.key] = after

    def wrote(self, table: int, row: Row) -> bool:
        return table in self._emptied or (table, row.key) in self._images

    def image(self, table: int, row: Row) -> Row | None:
        return self._images.get((table, row.key))


class Outcome(NamedTuple):
    converged: bool
    back: bool
    undisturbed: int
    written_again: int
    stopped: bool


def run(seed: int, options: Options) -> Outcome:
    """One random history, drained at its end."""
    rng = random.Random(seed)
    keyspace = rng.choice([4, 8, 16])
    log = Log()
    members = rng.randint(2, 4)
    log.append(founders(range(1, members + 1)))
    sites = [Site(n, log, rng, options) for n in range(1, members + 1)]
    added: dict[int, int] = {}
    for _ in range(rng.randint(20, 300)):
        site, dice = rng.choice(sites), rng.random()
        if options.late and len(sites) < 5 and rng.random() < 0.01:
            members += 1
            log.append(replace(founders(range(1, members + 1)), index=len(log) + 1))
            added[members] = len(log)
            sites.append(Site(members, log, rng, options))
            continue
        if dice < 0.35:
            if site.base >= added.get(site.number, 0):
                site.execute(keyspace)
        elif dice < 0.6:
            site.capture()
        elif dice < 0.8:
            site.deliver()
        elif dice < 0.9:
            site.begin_apply(rng.randint(1, 4))
        elif dice < 0.99 or not options.crashes:
            site.commit_apply()
        else:
            site.crash()
        site.look()
    drain(sites, log)
    return outcome(sites, log)


def drain(sites: list[Site], log: Log) -> None:
    busy = True
    while busy:
        busy = False
        for site in sites:
            while site.proposed:
                site.deliver()
            while site.batches or (site.state.index < len(log) and not site.stopped):
                busy = True
                site.commit_apply()
                site.look()
                site.begin_apply(3)
            while site.reading is not None and site.reading < len(site.binlog):
                busy = True
                site.capture()


def outcome(sites: list[Site], log: Log) -> Outcome:
    """Whether every site is at the log's own result."""
    expected: Tables = Table(), Table()
    reference = ReplicationState(0, log.fetch)
    stopped_at = 0
    for entry in log:
        step = reference.step(entry)
        if step.certification is not None:
            ddl, table = ddl_of(step.payload)
            if stops(ddl, step.certification.verdict):
                stopped_at = entry.index
                break
            # A statement that is not raced meets the rows that it met at its origin.
            assert expected[table].change(ddl.text)
        for unit, _ in step.units:
            parts = reference.parts(step.parts) if step.kind is StepKind.LARGE else ()
            changes = [c for part in parts for u in part.units for c in u.changes] or unit.changes
            for number, before, after in map(decoded, changes):
                expected[number].apply(before, after)
    if stopped_at:
        # All sites stop at the same statement, but those whose server refused one before.
        converged = all(site.stopped_at == stopped_at or (site.stopped and not site.stopped_at) for site in sites)
    else:
        converged = all(
            site.stopped
            or (
                site.tables == expected
                and [table.unique for table in site.tables] == [table.unique for table in expected]
                and site.state.digest == reference.digest
            )
            for site in sites
        )
    return Outcome(
        converged,
        any(site.went_back for site in sites),
        sum(site.undisturbed for site in sites),
        sum(site.written_again for site in sites),
        any(site.stopped for site in sites),
    )


def options_of(seed: int) -> Options:
    """What a history has."""
    rng = random.Random(seed)
    wild, remote = rng.choice([0.0, 0.0, 0.3]), rng.choice([0.0, 0.5, 1.0])
    crashes, statements, keys, late = (rng.random() < p for p in (0.5, 0.2, 0.3, 0.3))
    return Options(wild, remote, crashes, statements, keys, late)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("generation", "segment"), [(6, 2), (1 << 17, 1 << 19)])
def test_every_site_ends_at_the_logs_own_result(monkeypatch: pytest.MonkeyPatch, generation: int, segment: int) -> None:
    """And home rows are what was committed last, but where another site empties their table."""
    monkeypatch.setattr(certify, "GENERATION", generation)
    monkeypatch.setattr(certify, "SEGMENT", segment)
    outcomes = {seed: run(seed, options_of(seed)) for seed in range(generation, generation + HISTORIES // 2)}
    assert [seed for seed, each in outcomes.items() if not each.converged] == []
    assert [seed for seed, each in outcomes.items() if each.back and not options_of(seed).statements] == []
    undisturbed = sum(each.undisturbed for each in outcomes.values())
    again = sum(each.written_again for each in outcomes.values())
    print(f"{again} rows of own units were looked at to be written again, {undisturbed} were not")
    assert min(undisturbed, again) > len(outcomes)


@pytest.mark.parametrize(
    ("mistake", "diverges", "goes_back"),
    [
        (Options(naive=True), True, False),
        (Options(in_full=True), False, True),
        (Options(follows=False), True, True),
        (Options(gives=True), True, False),
        (Options(gives=False), False, True),
    ],
)
def test_the_model_can_fail(mistake: Options, diverges: bool, goes_back: bool) -> None:
    outcomes = [run(seed, mistake) for seed in range(100)]
    assert any(not each.converged for each in outcomes) == diverges
    assert any(each.back for each in outcomes) == goes_back
