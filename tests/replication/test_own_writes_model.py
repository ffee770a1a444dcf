"""Nobody's own rows go back: random histories of applications that read and then write (DESIGN 14).

The sites of `test_model` once more, with the project's own payloads, `ReplicationState`, certification and policy, and
now with `writing_again` deciding what of an own unit is written. Each site has *home rows*, which only it writes, with
unique values of their own: its application reads one, adds to it, and writes it back, alone or in transactions that
touch shared rows too. Many units are flagged for nothing: they count as writes of their whole table, as after a restart
or a statement elsewhere.

Two properties, after every step and at the end: a home row shows its site the value that was committed there last, both
of a pair that one transaction wrote; and every site's table is the log applied in order.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.replication.policy import last_write_wins
from mysqlraft.replication.state import ReplicationState, Step, StepKind
from mysqlraft.replication.writing_again import Stored, operations
from tests.harness.amount import histories
from tests.replication.harness import founders
from tests.replication.reference import Row, RowChange, Table
from tests.replication.test_model import (
    TABLE,
    Applied,
    Local,
    Log,
    Options,
    Site,
    change_table,
    decoded,
    encoded,
    keys_of,
    packed,
    stops,
)

HISTORIES = histories(1000)
HOME = 1000
"""Home rows of a site: primary key and unique value HOME * number + 0..3."""


@dataclass(frozen=True)
class Rules:
    """``exact``: what was written later is left out. ``remote``: of how many of other sites' units, too.
    ``statements``: TRUNCATE, which empties home rows of all sites as well."""

    exact: bool = True
    remote: float = 0.0
    wild: float = 0.4
    crashes: bool = False
    statements: bool = False


@dataclass
class Unwritten:
    """A unit that the next batch writes. ``end``, ``contested``: of an own one, where it ends in the binlog, and the
    keys for which it is written again."""

    changes: list[RowChange]
    end: int
    own: bool
    contested: Set[int] | None


class Reader(Site):
    """A site whose application reads its home rows before it writes them."""

    def __init__(self, number: int, log: Log, rng: random.Random, rules: Rules) -> None:
        self.rules = rules
        self.home: dict[int, int] = {}
        self.went_back = 0
        self.undisturbed = 0
        self.own_end = 0
        self.work: dict[int, list[Unwritten]] = {}
        super().__init__(number, log, rng, Options(crashes=rules.crashes, statements=rules.statements))

    def execute(self, keyspace: int) -> None:
        rng, table = self.rng, self.table
        if rng.random() < 0.5:
            length = len(self.binlog)
            super().execute(keyspace)
            if len(self.binlog) == length or rng.random() < 0.7:
                return
            # What it did to shared rows is one transaction with a home row.
            record = self.binlog[-1]
            assert isinstance(record, Local)
            if record.statement:
                return
            changes = record.changes
        else:
            changes = []
            self.binlog.append(Local(changes))
        first = HOME * self.number + rng.randrange(3)
        for key in (first, first + 1) if rng.random() < 0.3 else (first,):
            read = table[key][1] if key in table else None
            before: Row | None = None if read is None else (key, table[key][0], read)
            after: Row = (key, key, (read or 0) + 1)
            table.apply([(before, after)])
            self.home[key] = self.home.get(key, 0) + 1
            changes.append((before, after))

    def writable(self) -> list[int]:
        return [key for key in self.table if key < HOME]

    def capture(self) -> None:
        """As the site it is of, and some units count as writes of their whole table."""
        if self.reading is None or self.reading == len(self.binlog):
            return
        record = self.binlog[self.reading]
        if not isinstance(record, Local) or record.statement or self.rng.random() >= self.rules.wild:
            super().capture()
            return
        self.reading += 1
        base = next((r.index for r in reversed(self.binlog[: self.reading]) if isinstance(r, Applied)), 0)
        self.pending.clear()
        unit = Unit(base, 0, packed(keys_of(record.changes)), [encoded(record.changes)], [0])
        here, done = Position("", self.reading), ("", self.reading)
        self.propose(Payload(PayloadKind.UNITS, Flavour.MYSQL, base, here, done, [TABLE], [unit]))

    def to_write(self, step: Step) -> list[list[RowChange]]:
        assert step.payload is not None or not step.units
        # Of a unit of its own this is where it ends, of another site's where its own that are in the log before it end.
        self.own_end = self.state.origins[self.number].done[1]
        for unit, certification in step.units:
            assert step.payload is not None
            if step.kind is StepKind.LARGE:
                unit.changes = [c for part in self.state.parts(step.parts) for u in part.units for c in u.changes]
            changes = [row for change in last_write_wins(unit, certification).changes for row in decoded(change)]
            if changes:
                self.work.setdefault(step.index, []).append(
                    Unwritten(changes, self.own_end, certification.own, certification.contested)
                )
        return []

    def begin_apply(self, limit: int) -> None:
        if not self.actions:
            self.work.clear()
        super().begin_apply(limit)

    def start(self) -> None:
        super().start()
        self.work = {}
        # What of its own the table holds as the log has it, is known from the progress row.
        self.own_end = self.state.origins[self.number].done[1]

    def commit_apply(self) -> None:
        if self.actions and self.actions[0].kind == "rows":
            for index in sorted(index for index in self.work if index <= self.actions[0].index):
                for unit in self.work.pop(index):
                    self.write(unit)
        super().commit_apply()

    def write(self, unit: Unwritten) -> None:
        if not (self.rules.exact and (unit.own or self.rng.random() < self.rules.remote)):
            self.table.apply(unit.changes)
            return
        later = last_images(self.binlog[unit.end :])
        contested = None if unit.contested is None else set(unit.contested)
        for before, after in unit.changes:
            if contested is not None:
                keys = hashes(before, after)
                if contested.isdisjoint(keys):
                    self.undisturbed += 1
                    continue
                contested |= keys
            write(self.table, before, after, later)

    def look(self) -> None:
        self.went_back += any(self.table.get(key, (0, 0))[1] != value for key, value in self.home.items())


def hashes(before: Row | None, after: Row | None) -> set[int]:
    """The keys of a row as the careful lane knows them: of what it was, its primary key may be all."""
    keys = {("pk", row[0]) for row in (before, after) if row} | ({("u", after[1])} if after else set())
    return {key for (key,) in struct.iter_unpack("<Q", packed(frozenset(keys)))}


class Images(dict[int, Row | None]):
    """What local transactions leave of each row that they write; None: they delete it. ``emptied``: of every row."""

    emptied = False

    def __contains__(self, key: object) -> bool:
        return self.emptied or super().__contains__(key)


def last_images(records: Sequence[object]) -> Images:
    """What the local transactions among the records leave."""
    images = Images()
    for record in records:
        if isinstance(record, Local) and record.statement:
            images.clear()
            images.emptied = True
        for before, after in record.changes if isinstance(record, Local) else []:
            if before:
                images[before[0]] = None
            if after:
                images[after[0]] = after
    return images


def write(table: Table, before: Row | None, after: Row | None, later: Images) -> None:
    """One row by the project's own rule, with the look-ups that the careful lane makes."""
    stored: Stored[int] = Stored()
    if before and before[0] in table:
        stored.before = before[0]
    if after:
        stored.same = after[0] if after[0] in table else None
        stored.holders = [(1, key) for key, (unique, _) in table.items() if unique == after[1]]

    def given_later(key: int, unique: int) -> bool:
        image = later.get(key)
        return image is not None and after is not None and image[1] == after[1]

    made = operations(
        stored,
        puts=after is not None,
        before_later=before is not None and before[0] in later,
        after_later=after is not None and after[0] in later,
        given_later=given_later,
    )
    for key in made.gone:
        del table[key]
    if made.put:
        assert after is not None
        if made.start is not None:
            del table[made.start]
        assert after[0] not in table, "the row is not to be found twice"
        assert all(unique != after[1] for unique, _ in table.values()), "a value is not to be held twice"
        table[after[0]] = (after[1], after[2])


class Outcome(NamedTuple):
    """Of one history: whether all sites end alike, whether a home row went back, and how many rows of own units were
    not written again."""

    converged: bool
    back: bool
    undisturbed: int = 0


def run(seed: int, rules: Rules) -> Outcome:
    """One random history, drained at its end."""
    rng = random.Random(seed)
    keyspace = rng.choice([3, 6, 12])
    log = Log()
    count = rng.randint(2, 4)
    log.append(founders(range(1, count + 1)))
    sites = [Reader(n, log, rng, rules) for n in range(1, count + 1)]
    for _ in range(rng.randint(20, 300)):
        site, dice = rng.choice(sites), rng.random()
        if dice < 0.35:
            site.execute(keyspace)
        elif dice < 0.6:
            site.capture()
        elif dice < 0.8:
            site.deliver()
        elif dice < 0.9:
            site.begin_apply(rng.randint(1, 4))
        elif dice < 0.99 or not rules.crashes:
            site.commit_apply()
        else:
            site.crash()
        site.look()
    busy = True
    while busy:
        busy = False
        for site in sites:
            while site.proposed:
                site.deliver()
            while site.actions or (site.state.index < len(log) and not site.stopped):
                busy = True
                site.commit_apply()
                site.look()
                site.begin_apply(3)
            while site.reading is not None and site.reading < len(site.binlog):
                busy = True
                site.capture()
    expected = Table()
    reference = ReplicationState(0, log.fetch)
    for entry in log:
        step = reference.step(entry)
        if step.certification is not None:
            assert step.payload is not None
            assert step.payload.ddl is not None
            if stops(step.payload.ddl, step.certification.verdict, Options()):
                return Outcome(all(site.stopped_at == entry.index for site in sites), False)
            change_table(expected, step.payload.ddl.statement.decode())
        for unit, _ in step.units:
            if step.kind is StepKind.LARGE:
                unit.changes = [c for part in reference.parts(step.parts) for u in part.units for c in u.changes]
            for change in unit.changes:
                expected.apply(decoded(change))
    return Outcome(
        all(site.table == expected for site in sites),
        any(site.went_back for site in sites),
        sum(site.undisturbed for site in sites),
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("remote", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("crashes", [False, True])
def test_home_rows_never_go_back(remote: float, crashes: bool) -> None:
    rules = [Rules(remote=remote, crashes=crashes, wild=n % 2 * 0.4) for n in range(HISTORIES // 4)]
    outcomes = [run(seed, each) for seed, each in enumerate(rules)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []
    assert [seed for seed, outcome in enumerate(outcomes) if outcome.back] == []
    undisturbed = sum(outcome.undisturbed for outcome in outcomes)
    print(f"{undisturbed} rows of own units were not written again")
    assert undisturbed > len(outcomes)


def test_a_table_that_is_emptied_later_stays_empty() -> None:
    """What a unit wrote before its site's TRUNCATE is left out, and all sites end alike."""
    rules = [Rules(statements=True, crashes=n % 2 == 0, remote=n % 4 // 2) for n in range(HISTORIES // 4)]
    outcomes = [run(seed, each) for seed, each in enumerate(rules)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []


def test_the_model_can_fail() -> None:
    """Without the rule nearly every history shows its site an old value."""
    outcomes = [run(seed, Rules(exact=False)) for seed in range(200)]
    assert all(outcome.converged for outcome in outcomes)
    back = sum(outcome.back for outcome in outcomes)
    print(f"writing again in full: {back} of 200 histories show a home row an old value")
    assert back > 100
