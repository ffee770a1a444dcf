"""Committed entries into batches: what one server transaction of apply holds, ready to be sent.

A batch is a run of entries. Their rows become BINLOG statements of the fast lane, merged across units; what is in
conflict stands between them in its place, as a statement of its own or by the careful lane: the log's order is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.conflicts import CONFLICTS_PER_UNIT, Conflict, ConflictWriter
from mysqlraft.replication.entry import Change, ChangeKind, Flavour, Payload, Unit
from mysqlraft.replication.policy import Certification, Decision, Policy
from mysqlraft.replication.row_events import Item, Statement, StatementBuilder
from mysqlraft.replication.state import LogEntry, ReplicationState, Step, StepKind
from mysqlraft.replication.tables import LocalTables, TableMismatch

Work = Statement | Item
"""A statement of the fast lane, or a change for the careful lane."""


@dataclass(slots=True)
class Batch:
    """Entries `first` to `index`; ``state`` is the state dumped at `index`, which needs the log from ``needed_from``
    on. ``work`` may be iterated over again.

    ``units`` counts those that are written, ``careful`` those of them that are in conflict or written again.
    """

    first: int
    index: int
    state: bytes
    work: Iterable[Work] = ()
    conflicts: list[Conflict] = field(default_factory=list)
    units: int = 0
    careful: int = 0
    rows: int = 0
    needed_from: int = 0


class Lanes:
    """Puts changes into statements of the fast lane or hands them over for the careful one, in order."""

    def __init__(self, mariadb: bool, tables: LocalTables, conflicts: ConflictWriter, policy: Policy) -> None:
        self._flavour = Flavour.MARIADB if mariadb else Flavour.MYSQL
        self._tables = tables
        self._conflicts = conflicts
        self._policy = policy
        self._builder = StatementBuilder(mariadb)

    def decide(self, unit: Unit, certification: Certification) -> Decision:
        """What this site writes for the unit."""
        return self._policy(unit, certification)

    def work(
        self,
        payload: Payload,
        changes: Iterable[Change],
        committed_at: int,
        certification: Certification,
        conflicts: Sequence[Conflict] | None = None,
    ) -> Iterator[Work]:
        """The changes as work; the fast lane may hold the last of it back until `flush`.

        ``conflicts``: all that these changes are in, if that is known.

        Raises:
            TableMismatch: a table of this site cannot take the rows.
        """
        self.check_flavour(payload)
        lane_of = _lanes(certification, conflicts)
        for change in changes:
            table = payload.tables[change.table]
            self._tables.check(table)
            item = Item(table, change, committed_at)
            lane = lane_of(change)
            if lane is not _Lane.FAST:
                yield from self.flush()
            if lane is _Lane.CAREFUL:
                yield item
                continue
            if (statement := self._builder.add(item)) is not None:
                yield statement
            if lane is _Lane.ALONE:
                yield from self.flush()

    def check_flavour(self, payload: Payload) -> None:
        """Raises TableMismatch for what only the other kind of server could do."""
        if payload.flavour is not self._flavour:
            raise TableMismatch(
                f"what a {payload.flavour.name} server wrote cannot be applied to a {self._flavour.name} server: "
                "all sites of a cluster must be of one kind"
            )

    def flush(self) -> Iterator[Statement]:
        statement = self._builder.finish()
        if statement is not None:
            yield statement

    def reset(self) -> None:
        """Forgets what it holds back."""
        self._builder.finish()

    def conflicts(
        self, number: int, parts: Iterable[tuple[Payload, Unit]], certification: Certification, resolution: str
    ) -> Iterator[Conflict]:
        """What the history says of unit `number` of its entry, given as its parts; nothing unless it is in conflict."""
        if certification.verdict is not Verdict.CONFLICT:
            return
        yield from self._conflicts.describe(certification, number, _located(parts), resolution)


def _located(parts: Iterable[tuple[Payload, Unit]]) -> Iterator[tuple[bytes, Change, int]]:
    for payload, unit in parts:
        for change in unit.changes:
            yield payload.tables[change.table], change, unit.committed_at


class _Lane(Enum):
    """How a change goes to the server: merged with others, as a statement of its own, or row by row."""

    FAST = "fast"
    ALONE = "alone"
    CAREFUL = "careful"


def is_contended(certification: Certification) -> bool:
    """A conflict, and what this site writes again: other rows than its origin's may be in the table."""
    verdict = certification.verdict
    return verdict is Verdict.CONFLICT or (certification.own and verdict is Verdict.REASSERT)


def _lanes(certification: Certification, conflicts: Sequence[Conflict] | None) -> Callable[[Change], _Lane]:
    """The quickest lane that is likely to succeed: strict success is right whichever it was, see `careful_lane`.

    What is in conflict with other sites' writes is known from the log, and so is whether their row is there: if not, or
    if it is in the way, the fast lane would fail. Without that knowledge a change stands alone, so that one that fails
    takes no others with it. What a site inserted itself is still there when it inserts it again.
    """
    if not is_contended(certification):
        return lambda change: _Lane.FAST
    if certification.own:
        return lambda change: _Lane.CAREFUL if change.kind is ChangeKind.WRITE else _Lane.ALONE
    if conflicts is None or len(conflicts) >= CONFLICTS_PER_UNIT:
        return lambda change: _Lane.ALONE
    in_the_way = {conflict.change for conflict in conflicts if conflict.in_the_way}
    return lambda change: _Lane.CAREFUL if id(change) in in_the_way else _Lane.FAST


class LargeWork:
    """The work that a unit in parts is, read from the log while it is iterated over."""

    def __init__(self, state: ReplicationState, step: Step, lanes: Lanes) -> None:
        self._state, self._step, self._lanes = state, step, lanes
        self._certification = step.units[0][1]

    def __iter__(self) -> Iterator[Work]:
        lanes, certification = self._lanes, self._certification
        lanes.reset()
        for payload, unit in self._parts():
            changes = lanes.decide(unit, certification).changes
            yield from lanes.work(payload, changes, unit.committed_at, certification)
        yield from lanes.flush()

    def batch(self) -> Batch:
        """The unit as a batch of its own."""
        index, certification = self._step.index, self._certification
        batch = Batch(index, index, self._state.dump(), needed_from=self._state.needed_from)
        decision = self._lanes.decide(self._step.units[0][0], certification)
        batch.conflicts += self._lanes.conflicts(0, self._parts(), certification, decision.resolution)
        if not certification.own or certification.verdict is not Verdict.CLEAN:
            batch.work = self
            batch.units, batch.careful = 1, int(is_contended(certification))
        return batch

    def _parts(self) -> Iterator[tuple[Payload, Unit]]:
        for payload in self._state.parts(self._step.parts):
            for unit in payload.units:
                yield payload, unit


class BatchBuilder:
    """Steps the state through entries and collects what they mean into a batch."""

    def __init__(self, state: ReplicationState, lanes: Lanes) -> None:
        self.state = state
        self._lanes = lanes
        lanes.reset()
        self._begin()

    def _begin(self) -> None:
        self._first = self.state.index + 1
        self._work: list[Work] = []
        self._batch = Batch(self._first, 0, b"", self._work)
        self.bytes = 0

    @property
    def entries(self) -> int:
        """How many were added since the last batch."""
        return self.state.index + 1 - self._first

    @property
    def rows(self) -> int:
        return self._batch.rows

    @property
    def writes(self) -> bool:
        """Whether there is more to write than the progress row."""
        return bool(self._batch.units or self._batch.conflicts)

    def add(self, entry: LogEntry) -> Step:
        """Takes the next entry. The rows of a LARGE step and the statement of a DDL step are the caller's.

        Raises:
            PayloadError, StateError, TableMismatch: replication cannot go on beyond the entry before this one.
        """
        step = self.state.step(entry)
        if step.kind is StepKind.UNITS:
            assert step.payload is not None
            self.bytes += len(entry.payload)
            for number, (unit, certification) in enumerate(step.units):
                self._unit(step.payload, number, unit, certification)
        return step

    def _unit(self, payload: Payload, number: int, unit: Unit, certification: Certification) -> None:
        batch, lanes = self._batch, self._lanes
        decision = lanes.decide(unit, certification)
        conflicts = list(lanes.conflicts(number, [(payload, unit)], certification, decision.resolution))
        batch.conflicts += conflicts
        if not decision.changes:
            return
        self._work += lanes.work(payload, decision.changes, unit.committed_at, certification, conflicts)
        batch.units += 1
        batch.careful += is_contended(certification)
        batch.rows += sum([change.count for change in decision.changes])

    def take(self) -> Batch:
        """The batch so far; the next entry begins another."""
        batch = self._batch
        self._work += self._lanes.flush()
        batch.index, batch.state = self.state.index, self.state.dump()
        batch.needed_from = self.state.needed_from
        self._begin()
        return batch
