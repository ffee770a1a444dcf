"""Does every site end at the log's own result, whatever the interleaving? (DESIGN 8)

Model sites execute local transactions, capture their binlog in order and apply the log in batches, all of it
interleaved at random; daemons crash, proposals are repeated, units come in parts, tables are truncated, unique keys
are dropped and made again, and rows are captured under definitions that they were not written under. What decides
is the project's own code: payloads, `ReplicationState` with its certifier and session rule, and the policy. At the
end everything drains, and each site's table must equal the log applied in order to an empty table.

Histories without crashes also keep the pending and in-flight key sets of DESIGN 8, and compare every decision.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgpack
import pytest

from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.ddl import changes_rows, commutes
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.replication.policy import last_write_wins
from mysqlraft.replication.state import ReplicationState, Step, StepKind
from tests.harness.amount import histories
from tests.replication.harness import LoggedEntry, founders
from tests.replication.reference import Row, RowChange, Table

TABLE = b"\x01s\x00\x01t\x00"
HISTORIES = histories(1000)

Keys = frozenset[tuple[str, int]]


@dataclass
class Local:
    """A local transaction L in the binlog; without changes: a statement."""

    changes: list[RowChange]
    statement: str = ""


@dataclass
class Applied:
    """An applied transaction R in the binlog: the index it reached and the keys it wrote."""

    index: int
    keys: Keys


@dataclass
class Ran:
    """A statement in the binlog that apply ran."""


@dataclass
class PendingUnit:
    """A captured unit that has not come back, as DESIGN 8 tracks it."""

    keys: Keys
    flagged: bool


class Log(list[LoggedEntry]):
    """The committed log; index 1 is its first entry."""

    def fetch(self, first: int, last: int) -> Iterator[LoggedEntry]:
        return iter(self[first - 1 : last])


def keys_of(changes: list[RowChange], *, unique: bool = True) -> Keys:
    rows = [row for change in changes for row in change if row]
    return frozenset({("pk", row[0]) for row in rows} | ({("u", row[1]) for row in rows} if unique else set()))


def packed(keys: Keys) -> bytes:
    return b"".join(struct.pack("<BxxxI", name == "u", value) for name, value in sorted(keys))


def encoded(changes: list[RowChange]) -> Change:
    images: bytes = msgpack.packb(changes)
    return Change(0, ChangeKind.UPDATE, b"", len(changes), images)


def decoded(change: Change) -> list[RowChange]:
    return [
        (None if before is None else (before[0], before[1], before[2]), None if after is None else (*after,))
        for before, after in msgpack.unpackb(change.images)
    ]


@dataclass
class Action:
    """What the server will do next for apply; local transactions come in between."""

    kind: Literal["rows", "statement"]
    index: int = 0
    statement: str = ""
    changes: list[list[RowChange]] = field(default_factory=list)
    progress: bytes = b""
    certification: bytes | None = None
    needed_from: int = 1


COMMENT = "ALTER TABLE t COMMENT 'x'"
TRUNCATE, DROP_KEY, ADD_KEY = "TRUNCATE t", "ALTER TABLE t DROP INDEX u", "ALTER TABLE t ADD UNIQUE u (u)"


def change_table(table: Table, statement: str) -> bool:
    """Runs a statement; whether it succeeds."""
    if statement == TRUNCATE:
        table.clear()
    elif statement == COMMENT:
        pass
    elif statement == ADD_KEY and len({unique for unique, _ in table.values()}) < len(table):
        return False
    else:
        table.unique = statement == ADD_KEY
    return True


def stops(ddl: Ddl, verdict: Verdict, options: Options) -> bool:
    """What apply does about a statement in conflict, or raced."""
    raced = verdict is Verdict.REASSERT and not options.lenient
    return verdict is Verdict.CONFLICT or (raced and not changes_rows(ddl) and not commutes(ddl))


@dataclass(frozen=True)
class Options:
    """``statements``: TRUNCATE; ``comments``: one that commutes with rows, at site 1; ``keys``: the unique key is
    dropped and made again. What can fail: ``naive`` skips own units, ``lenient`` goes on after raced statements.
    """

    naive: bool = False
    crashes: bool = False
    statements: bool = False
    comments: bool = False
    keys: bool = False
    lenient: bool = False


class Site:
    def __init__(self, number: int, log: Log, rng: random.Random, options: Options) -> None:
        self.number, self.log, self.rng = number, log, rng
        self.naive, self.options = options.naive, options
        self.statements = options.statements or options.keys or options.comments
        # The server: tables, the binlog, and the progress row.
        self.table = Table()
        self.binlog: list[Local | Applied | Ran] = []
        # What capture knows: whether the key is unique, and from where in the binlog on that is sure.
        self.known: tuple[bool, int] | None = None
        self.stopped_at = 0
        self.progress = self.certification = b""
        self.needed_from = 1
        """What `ReplicationState.needed_from` was when the progress was dumped: the log before it may be gone."""
        # The network: what was proposed and is not in the log yet.
        self.proposed: list[tuple[int, int, bytes]] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self.session = 0
        self.crashes = 0
        self.stopped = False
        self.pending: list[PendingUnit] = []
        self.in_flight: list[Applied] = []
        self.mismatches = 0
        self.start()

    def start(self) -> None:
        """The daemon starts, for the first time or again: all it knows is in the server and in the log."""
        self.state = ReplicationState.load(
            self.progress,
            self.number,
            self.fetch,
            tables=self.certification,
            checkpoint_every=self.rng.choice([3, 50]),
        )
        self.actions: list[Action] = []
        self.reading: int | None = None
        self.known = None
        self.session = max(self.session, self.state.sessions.last(self.number)[0]) + 1
        self.sequence = 0
        self.propose(Payload(PayloadKind.OPEN, Flavour.MYSQL, 0, Position("", 0), ("", 0)))

    def fetch(self, first: int, last: int) -> Iterable[LoggedEntry]:
        assert first >= self.needed_from, f"entry {first} is read again, the log is only needed from {self.needed_from}"
        return self.log.fetch(first, last)

    def crash(self) -> None:
        if self.rng.random() < 0.5:
            self.proposed.clear()
        self.crashes += 1
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

    def writable(self) -> list[int]:
        """Primary keys of the rows that the application changes."""
        return list(self.table)

    def execute(self, keyspace: int) -> None:
        """A local transaction of the application, or rarely a statement."""
        rng, table = self.rng, self.table
        if self.options.statements and rng.random() < 0.01:
            table.clear()
            self.binlog.append(Local([], TRUNCATE))
            return
        if self.options.comments and self.number == 1 and rng.random() < 0.1:
            self.binlog.append(Local([], COMMENT))
            return
        if self.options.keys and rng.random() < 0.02:
            statement = DROP_KEY if table.unique else ADD_KEY
            if change_table(table, statement):
                self.binlog.append(Local([], statement))
            return
        changes: list[RowChange] = []

        def taken(unique: int) -> bool:
            return table.unique and any(u == unique for u, _ in table.values())

        for _ in range(rng.randint(1, 3)):
            kind = rng.random()
            if kind < 0.4 or not self.writable():
                row: Row = (rng.randrange(keyspace), rng.randrange(keyspace), rng.randrange(10**6))
                if row[0] in table or taken(row[1]):
                    continue
                change: RowChange = (None, row)
            else:
                key = rng.choice(self.writable())
                before: Row = (key, *table[key])
                if kind >= 0.8:
                    change = (before, None)
                else:
                    new_key = key if rng.random() < 0.8 else rng.randrange(keyspace)
                    unique = before[1] if rng.random() < 0.6 else rng.randrange(keyspace)
                    if (new_key != key and new_key in table) or (unique != before[1] and taken(unique)):
                        continue
                    change = (before, (new_key, unique, rng.randrange(10**6)))
            table.apply([change])
            changes.append(change)
        if changes:
            self.binlog.append(Local(changes))

    def capture(self) -> None:
        """Reads one record of the binlog, once the own OPEN is in the log."""
        if self.reading is None or self.reading == len(self.binlog):
            return
        record = self.binlog[self.reading]
        self.reading += 1
        if isinstance(record, Ran) or (isinstance(record, Local) and record.statement):
            self.known = None
        if isinstance(record, Ran):
            return
        if isinstance(record, Applied):
            if not self.crashes:
                self.in_flight.remove(record)
            return
        here = Position("", self.reading)
        base = next((r.index for r in reversed(self.binlog[: self.reading]) if isinstance(r, Applied)), 0)
        if not record.changes:
            ddl = Ddl([("s", "t")], record.statement.encode(), "s", {}, 0)
            self.propose(Payload(PayloadKind.DDL, Flavour.MYSQL, base, here, ("", self.reading), ddl=ddl))
            return
        self.known = self.known or (self.table.unique, len(self.binlog))
        unique, known_from = self.known
        wild = [0] if self.options.keys and known_from > self.reading else []
        keys = keys_of(record.changes, unique=unique)
        self.pending.append(PendingUnit(keys, any(keys & r.keys for r in self.in_flight)))
        if len(record.changes) > 1 and self.rng.random() < 0.2:
            for part, change in enumerate(record.changes):
                last = part == len(record.changes) - 1
                part_keys = packed(keys_of([change], unique=unique))
                unit = Unit(base, 0, part_keys, [encoded([change])], wild if last else [])
                self.propose(
                    Payload(
                        PayloadKind.PART, Flavour.MYSQL, base, here, ("", self.reading), [TABLE], [unit], part, last
                    )
                )
            return
        unit = Unit(base, 0, packed(keys), [encoded(record.changes)], wild)
        self.propose(Payload(PayloadKind.UNITS, Flavour.MYSQL, base, here, ("", self.reading), [TABLE], [unit]))

    def begin_apply(self, limit: int) -> None:
        """Decides what the next batch writes; the application goes on writing until it is committed."""
        if self.actions or self.stopped:
            return
        batch = Action("rows")
        tables: bytes | None = None
        for entry in self.log[self.state.index : self.state.index + limit]:
            before = (self.state.dump(), self.state.needed_from) if self.statements else (b"", 1)
            tables = (self.state.dump_tables() if self.statements else None) or tables
            step = self.state.step(entry)
            if step.kind is StepKind.DDL:
                assert step.certification is not None
                assert step.payload is not None
                assert step.payload.ddl is not None
                ddl = step.payload.ddl
                if stops(ddl, step.certification.verdict, self.options):
                    self.stopped, self.stopped_at = True, entry.index
                    break
                batch.progress, batch.needed_from = before
                batch.certification, tables = tables, None
                self.actions.append(batch)
                if not step.certification.own or step.certification.verdict is Verdict.REASSERT:
                    self.actions.append(Action("statement", statement=ddl.text))
                batch = Action("rows")
            if entry.origin == self.number and entry.session == self.session and entry.sequence == 1 and step.accepted:
                resume = self.state.origins[self.number].resume
                self.reading = resume.offset if resume else 0
            batch.changes += self.to_write(step)
            batch.index = entry.index
        batch.progress, batch.needed_from = self.state.dump(), self.state.needed_from
        batch.certification = self.state.dump_tables() or tables
        self.actions.append(batch)
        for action in self.actions:
            if action.kind == "rows" and action.index:
                keys = frozenset[tuple[str, int]]().union(*map(keys_of, action.changes))
                self.in_flight.append(Applied(action.index, keys))
        if not batch.index:
            self.actions.remove(batch)

    def to_write(self, step: Step) -> list[list[RowChange]]:
        written = []
        for unit, certification in step.units:
            if step.kind is StepKind.LARGE:
                unit.changes = [c for part in self.state.parts(step.parts) for u in part.units for c in u.changes]
            changes = [row for change in last_write_wins(unit, certification).changes for row in decoded(change)]
            if certification.own and not self.crashes:
                own = self.pending.pop(0)
                self.mismatches += own.flagged != bool(changes)
            if self.naive and certification.own:
                changes = []
            if changes:
                written.append(changes)
                keys = keys_of(changes)
                for own in self.pending:
                    own.flagged = own.flagged or bool(own.keys & keys)
        return written

    def commit_apply(self) -> None:
        """The server executes the next action of apply."""
        if not self.actions:
            return
        action = self.actions.pop(0)
        if action.kind == "statement":
            if not change_table(self.table, action.statement):
                # Rows of its own that are not in the log yet: this site stops, loud, until they are gone.
                self.stopped = True
                self.actions.clear()
            self.binlog.append(Ran())
        elif action.index:
            for changes in action.changes:
                self.table.apply(changes)
            self.progress, self.needed_from = action.progress, action.needed_from
            self.certification = action.certification or self.certification
            keys = frozenset[tuple[str, int]]().union(*map(keys_of, action.changes))
            self.binlog.append(Applied(action.index, keys))


class Outcome(NamedTuple):
    converged: bool
    mismatches: int
    reasserted: int
    conflicts: int
    stopped: bool


def run(seed: int, options: Options = Options()) -> Outcome:
    """One random history, drained at its end."""
    rng = random.Random(seed)
    keyspace = rng.choice([3, 6, 12])
    log = Log()
    count = rng.randint(2, 4)
    log.append(founders(range(1, count + 1)))
    sites = [Site(n, log, rng, options) for n in range(1, count + 1)]
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
        elif dice < 0.99 or not options.crashes:
            site.commit_apply()
        else:
            site.crash()
    busy = True
    while busy:
        busy = False
        for site in sites:
            while site.proposed:
                site.deliver()
            while site.actions or (site.state.index < len(log) and not site.stopped):
                busy = True
                site.commit_apply()
                site.begin_apply(3)
            while site.reading is not None and site.reading < len(site.binlog):
                busy = True
                site.capture()
    reference = ReplicationState(0, log.fetch)
    expected = Table()
    verdicts = []
    for entry in log:
        step = reference.step(entry)
        if step.certification is not None:
            assert step.payload is not None
            assert step.payload.ddl is not None
            if stops(step.payload.ddl, step.certification.verdict, options):
                break
            # A statement that is not raced meets the rows that it met at its origin.
            assert change_table(expected, step.payload.ddl.text) or options.lenient
        for unit, certification in step.units:
            if step.kind is StepKind.LARGE:
                unit.changes = [c for part in reference.parts(step.parts) for u in part.units for c in u.changes]
            verdicts.append(certification.verdict)
            for change in unit.changes:
                expected.apply(decoded(change))
    stopped = any(site.stopped for site in sites)
    if any(site.stopped_at for site in sites):
        # All sites stop at the same statement, but those whose server refused one before.
        converged = all(site.stopped_at == reference.index or (site.stopped and not site.stopped_at) for site in sites)
    else:
        converged = all(
            site.stopped or (site.table == expected and site.table.unique == expected.unique) for site in sites
        )
        # Whatever each has been through, they have judged all alike: a difference would be an alarm.
        converged = converged and all(site.stopped or site.state.digest == reference.digest for site in sites)
    return Outcome(
        converged,
        sum(site.mismatches for site in sites),
        verdicts.count(Verdict.REASSERT),
        verdicts.count(Verdict.CONFLICT),
        stopped,
    )


@pytest.mark.timeout(600)
def test_every_site_ends_at_the_logs_own_result() -> None:
    outcomes = [run(seed) for seed in range(HISTORIES)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []
    assert [seed for seed, outcome in enumerate(outcomes) if outcome.mismatches] == []
    print(
        f"{HISTORIES} histories, {sum(o.conflicts for o in outcomes)} conflicts, "
        f"{sum(o.reasserted for o in outcomes)} re-asserted: every site at the log's result, "
        f"and every decision that of the pending and in-flight sets"
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("statements", [False, True])
def test_crashes_of_daemons_change_nothing(statements: bool) -> None:
    outcomes = [run(seed, Options(crashes=True, statements=statements)) for seed in range(HISTORIES // 4)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []
    stopped = sum(outcome.stopped for outcome in outcomes)
    assert stopped < len(outcomes) // 2
    print(f"{len(outcomes)} histories with crashes, {stopped} of them ended by two TRUNCATEs at once")


def test_statements_that_commute_flag_nothing() -> None:
    """Every decision is that of the pending and in-flight sets, of which these statements are no part."""
    outcomes = [run(seed, Options(comments=True)) for seed in range(HISTORIES // 4)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged or outcome.stopped] == []
    assert [seed for seed, outcome in enumerate(outcomes) if outcome.mismatches] == []


def test_truncate_among_writes() -> None:
    outcomes = [run(seed, Options(statements=True)) for seed in range(HISTORIES // 4)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("crashes", [False, True])
def test_unique_keys_come_and_go_among_writes(crashes: bool) -> None:
    """Every site ends alike, or every site stops at the same statement."""
    options = Options(crashes=crashes, statements=True, keys=True)
    outcomes = [run(seed, options) for seed in range(HISTORIES // 2)]
    assert [seed for seed, outcome in enumerate(outcomes) if not outcome.converged] == []
    stopped = sum(outcome.stopped for outcome in outcomes)
    print(f"{len(outcomes)} histories, {stopped} of them ended by a statement")
    assert len(outcomes) // 20 < stopped < len(outcomes) * 19 // 20


def test_who_judges_otherwise_is_found() -> None:
    """One verdict that differs, once, and the running checksums never meet again."""
    log = Log()
    place = Position("b", 4)
    log.append(LoggedEntry(1, 1, 1, 1, Payload(PayloadKind.OPEN, Flavour.MYSQL, 0, place, ("", 0)).encode()))
    for index in range(2, 12):
        units = [Unit(0, 0, b"%8d" % index, [])]
        log.append(
            LoggedEntry(
                index, 1, 1, index, Payload(PayloadKind.UNITS, Flavour.MYSQL, 0, place, ("", 0), [], units).encode()
            )
        )
    right, wrong = (ReplicationState(site, log.fetch, checkpoint_every=5) for site in (1, 2))
    for entry in log:
        right.step(entry)
        if entry.index == 7:
            judge = wrong.certifier.judge
            wrong.certifier.judge = lambda *given: Verdict.CONFLICT  # type: ignore[method-assign]
            wrong.step(entry)
            wrong.certifier.judge = judge  # type: ignore[method-assign]
        else:
            wrong.step(entry)
    assert [index for index, _ in right.checks] == [5, 10]
    assert right.checks[0] == wrong.checks[0]
    assert right.checks[1] != wrong.checks[1]
    assert right.digest != wrong.digest
    again = ReplicationState.load(right.dump(), 1, log.fetch, checkpoint_every=5)
    assert (again.digest, again.checks) == (right.digest, ()), "a restart takes it along"
    again.take_checks(right)
    assert again.checks == right.checks, "a new session with the server knows them still"
    early = ReplicationState(1, log.fetch, checkpoint_every=5)
    for entry in log.fetch(1, 6):
        early.step(entry)
    early.take_checks(right)
    assert early.checks == right.checks[:1], "what comes again is not yet known"


def test_the_model_can_fail_for_statements() -> None:
    """Going on after a raced statement diverges."""
    diverged = sum(not run(seed, Options(keys=True, lenient=True)).converged for seed in range(200))
    print(f"going on after raced statements: {diverged} of 200 histories diverged")
    assert diverged


def test_the_model_can_fail() -> None:
    """Skipping own units, which is what replication that knows nothing of re-assertion does, diverges."""
    diverged = sum(not run(seed, Options(naive=True)).converged for seed in range(200))
    print(f"skipping own units: {diverged} of 200 histories diverged")
    assert diverged > 100
