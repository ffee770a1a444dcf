"""Committed entries into batches: what one server transaction of apply holds, ready to be sent.

A batch is a run of entries. Their rows become BINLOG statements of the fast lane, merged across units; what is in
conflict stands between them in its place, as a statement of its own or by the careful lane: the log's order is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from mysqlraft.binlog.rows import columns_of, image_of, layout_of, pick, primary_key, split
from mysqlraft.binlog.tablemap import TableMap, parse
from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.conflicts import CONFLICTS_PER_UNIT, Conflict, ConflictWriter
from mysqlraft.replication.entry import Change, ChangeKind, Flavour, Payload, Unit
from mysqlraft.replication.look_ahead import Later, LookAhead
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.replication.policy import Certification, Decision, Policy
from mysqlraft.replication.row_events import STATEMENT_BYTES, Item, Statement, StatementBuilder
from mysqlraft.replication.state import LogEntry, Origin, ReplicationState, Step, StepKind
from mysqlraft.replication.tables import LocalTables, TableMismatch

Work = Statement | Item
"""A statement of the fast lane, or a change for the careful lane."""


@dataclass(slots=True)
class Batch:
    """Entries `first` to `index`; ``state`` is the state dumped at `index`, which needs the log from ``needed_from``
    on, and ``tables`` what has to be kept beside it from now on, if anything. ``work`` may be iterated over again.

    ``units`` counts those that are written, ``careful`` those of them that are in conflict or written again.
    ``generation`` is that of the tables which the work was made for.
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
    generation: int = 0
    tables: bytes | None = None


class Lanes:
    """Puts changes into statements of the fast lane or hands them over for the careful one, in order."""

    def __init__(
        self,
        mariadb: bool,
        tables: LocalTables,
        conflicts: ConflictWriter,
        policy: Policy,
        look_ahead: LookAhead,
        pending: PendingRows,
    ) -> None:
        self._flavour = Flavour.MARIADB if mariadb else Flavour.MYSQL
        self._tables = tables
        self._conflicts = conflicts
        self._policy = policy
        self._look_ahead = look_ahead
        self._pending = pending
        self._builder = StatementBuilder(mariadb)

    @property
    def generation(self) -> int:
        """That of the tables."""
        return self._tables.generation

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
        later: Later | None = None,
    ) -> Iterator[Work]:
        """The changes as work; the fast lane may hold the last of it back until `flush`.

        ``conflicts``: all that these changes are in, if that is known. ``later``: what is to be left out.

        Raises:
            TableMismatch: a table of this site cannot take the rows.
        """
        self.check_flavour(payload)
        lane_of = _lanes(certification, conflicts, later)
        for change in changes:
            table = payload.tables[change.table]
            local = self._tables.find(table)
            lane = _Lane.FAST if lane_of is None else lane_of(change)
            passed = later is not None and self._tables.passed(local)
            if lane is not _Lane.FAST:
                yield from self.flush()
            for body, fitting in local.fitting(change):
                item = Item(body or table, fitting, committed_at, later, table, passed)
                if lane is _Lane.CAREFUL:
                    yield item
                    continue
                for piece in (item,) if len(fitting.images) <= STATEMENT_BYTES else _cut(item):
                    if (statement := self._builder.add(piece)) is not None:
                        yield statement
            if lane is _Lane.ALONE:
                yield from self.flush()

    def later(
        self, payload: Payload, number: int, unit: Unit, certification: Certification, own: Origin
    ) -> Later | None:
        """What is to be left out of unit `number` of a payload; None: it is written in full. ``own``: this site's
        origin, as the log has it after the unit."""
        index = certification.index
        if certification.own:
            if not is_contended(certification):
                return None
            return self._look_ahead.later_than(index, payload, number, certification.contested)
        if own.resume is None or not self._pending.meets(unit.keys):
            return None
        return self._look_ahead.pending_at(index, own.resume, own.done)

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


def _cut(item: Item) -> Iterator[Item]:
    """The item in pieces that a statement takes, or of one row."""
    change = item.change
    if change.count == 1:
        yield item
        return
    start = end = count = 0
    for before, after in split(parse(item.table), change.kind, change.layout, change.images):
        size = len(before or b"") + len(after or b"")
        if count and end + size - start > STATEMENT_BYTES:
            yield replace(item, change=replace(change, count=count, images=change.images[start:end]))
            start, count = end, 0
        end += size
        count += 1
    yield replace(item, change=replace(change, count=count, images=change.images[start:end]))


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


def _lanes(
    certification: Certification, conflicts: Sequence[Conflict] | None, later: Later | None
) -> Callable[[Change], _Lane] | None:
    """The quickest lane that is likely to succeed (None: the fast one): strict success is right whichever it was, see
    `careful_lane`. What may have to be left out goes by the careful lane.

    What is in conflict with other sites' writes is known from the log, and so is whether their row is there: if not, or
    if it is in the way, the fast lane would fail. Without that knowledge a change stands alone, so that one that fails
    takes no others with it.
    """
    if later is not None:
        return lambda change: _Lane.CAREFUL
    if not is_contended(certification):
        return None
    if conflicts is None or len(conflicts) >= CONFLICTS_PER_UNIT:
        return lambda change: _Lane.ALONE
    in_the_way = {conflict.change for conflict in conflicts if conflict.in_the_way}
    return lambda change: _Lane.CAREFUL if id(change) in in_the_way else _Lane.FAST


class LargeWork:
    """The work that a unit in parts is, read from the log while it is iterated over."""

    def __init__(self, state: ReplicationState, step: Step, lanes: Lanes) -> None:
        self._state, self._step, self._lanes = state, step, lanes
        self._certification = step.units[0][1]
        assert step.payload is not None
        self._last = step.payload

    def __iter__(self) -> Iterator[Work]:
        lanes, certification = self._lanes, self._certification
        lanes.reset()
        own = self._state.origins[self._state.site]
        later = lanes.later(self._last, 0, self._step.units[0][0], certification, own)
        for payload, unit in self._parts():
            changes = lanes.decide(unit, certification).changes
            yield from lanes.work(payload, changes, unit.committed_at, certification, later=later)
        yield from lanes.flush()

    def batch(self) -> Batch:
        """The unit as a batch of its own."""
        index, certification = self._step.index, self._certification
        batch = Batch(index, index, self._state.dump(), needed_from=self._state.needed_from)
        batch.tables = self._state.dump_tables()
        decision = self._lanes.decide(self._step.units[0][0], certification)
        batch.conflicts += self._lanes.conflicts(0, self._parts(), certification, decision.resolution)
        if not certification.own or certification.verdict is not Verdict.CLEAN:
            batch.work, batch.generation = self, self._lanes.generation
            batch.units, batch.careful = 1, int(is_contended(certification))
        return batch

    def _parts(self) -> Iterator[tuple[Payload, Unit]]:
        for payload in self._state.parts(self._step.parts):
            for unit in payload.units:
                yield payload, unit


class CarriedWork(LargeWork):
    """The rows that the statement of a DDL step carries, in the place of those that it has left here.

    All are deleted first: where the statement has numbered rows otherwise, each would be in another's way.
    """

    def __init__(self, state: ReplicationState, step: Step, lanes: Lanes) -> None:
        assert step.certification is not None
        clean = replace(step.certification, own=False, verdict=Verdict.CLEAN)
        super().__init__(state, replace(step, units=[(Unit(0, 0, b"", []), clean)]), lanes)

    def __iter__(self) -> Iterator[Work]:
        lanes = self._lanes
        lanes.reset()
        for deletes in (True, False):
            for payload, unit in self._parts():
                changes = unit.changes
                if deletes:
                    changes = [_deletion(parse(payload.tables[change.table]), change) for change in changes]
                yield from lanes.work(payload, changes, unit.committed_at, self._certification)
        yield from lanes.flush()


def _deletion(table: TableMap, change: Change) -> Change:
    """Of the rows that a change inserts."""
    _, columns = columns_of(table, change.kind, change.layout)
    assert columns is not None
    primary = primary_key(table)
    rows = (after for _, after in split(table, change.kind, change.layout, change.images) if after is not None)
    images = [image_of(pick(columns, primary, row)) for row in rows]
    layout = layout_of(table, ChangeKind.DELETE, before=primary)
    return Change(change.table, ChangeKind.DELETE, layout, change.count, b"".join(images))


class BatchBuilder:
    """Collects what the steps of the state mean into a batch."""

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

    def add(self, entry: LogEntry, step: Step) -> None:
        """Takes the entry that the state has just stepped. The rows of a LARGE step and the statement of a DDL step are
        the caller's.

        Raises:
            TableMismatch: replication cannot go on beyond the entry before this one.
        """
        if step.kind is StepKind.UNITS:
            assert step.payload is not None
            self.bytes += len(entry.payload)
            for number, (unit, certification) in enumerate(step.units):
                self._unit(step.payload, number, unit, certification)

    def _unit(self, payload: Payload, number: int, unit: Unit, certification: Certification) -> None:
        batch, lanes = self._batch, self._lanes
        decision = lanes.decide(unit, certification)
        conflicts: list[Conflict] = []
        if certification.verdict is Verdict.CONFLICT:
            conflicts += lanes.conflicts(number, [(payload, unit)], certification, decision.resolution)
            batch.conflicts += conflicts
            self.bytes += sum([conflict.size for conflict in conflicts])
        if not decision.changes:
            return
        if not batch.units:
            batch.generation = lanes.generation
        later = lanes.later(payload, number, unit, certification, self.state.origins[self.state.site])
        self._work += lanes.work(payload, decision.changes, unit.committed_at, certification, conflicts, later)
        batch.units += 1
        batch.careful += is_contended(certification)
        batch.rows += sum([change.count for change in decision.changes])

    def take(self) -> Batch:
        """The batch so far; the next entry begins another."""
        batch = self._batch
        self._work += self._lanes.flush()
        batch.index, batch.state = self.state.index, self.state.dump()
        batch.needed_from = self.state.needed_from
        batch.tables = self.state.dump_tables()
        self._begin()
        return batch
