"""Apply: the committed log into the site's server, in order, exactly once.

One thread (`Applier.run`). While the server executes a batch the next one is decoded, certified, merged and encoded;
its statements leave as soon as the answer to the one before is in. A lone entry is a batch of its own and takes one
round trip. Entries that wait go together into one batch.

Exactly once: the progress row moves with the rows in one transaction. When a COMMIT is lost on the way, the next
session, which is fenced (`apply_session`), reads the progress row: the batch is either there or is written again.

What can fail, and what happens:

- rows already there or missing: the careful lane, inside the same transaction (`batch_writer`);
- a lock that the application holds, a deadlock, a full disk, a read-only server, a lost connection: `RETRYING`, with
  growing pauses, for as long as it takes; the reason is in the status;
- what no repetition can mend (a table that does not fit, a statement that fails, an entry that cannot be read):
  everything before that entry is applied, then `STOPPED` with an error that names it. A new start tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pymysql
from pymysql.constants import ER

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.place import Place
from mysqlraft.binlog.read_on import ReadOn, read_on
from mysqlraft.ipc import LinkError
from mysqlraft.mysql import opening
from mysqlraft.mysql.connection import Session, SessionLost, StatementError
from mysqlraft.mysql.schema import SchemaError, ensure_schema
from mysqlraft.replication import ddl
from mysqlraft.replication.additions import Additions
from mysqlraft.replication.apply_session import (
    about_locks,
    deadlock,
    denied,
    open_session,
    own_schema_gone,
    read_certification,
    read_progress,
    retryable,
    row_error,
    setup,
    wait_for_tables,
)
from mysqlraft.replication.batch import Batch, BatchBuilder, CarriedWork, Lanes, LargeWork
from mysqlraft.replication.batch_writer import BatchOutdated, BatchWriter, TablesChanged
from mysqlraft.replication.binlog_statements import own_additions, own_statements
from mysqlraft.replication.careful_lane import CarefulLane
from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.conflicts import ConflictWriter
from mysqlraft.replication.entry import OtherVersion, Payload, PayloadKind, kind_of
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.look_ahead import LookAhead
from mysqlraft.replication.made import differing
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.replication.policy import Policy, last_write_wins
from mysqlraft.replication.recent import RecentEntries
from mysqlraft.replication.runs import Damaged
from mysqlraft.replication.server_watch import ANSWER_SECONDS, ServerWatch
from mysqlraft.replication.short_rows import AddedValues
from mysqlraft.replication.state import LOAD_ANEW, LogEntry, ReplicationState, StateError, Step, StepKind
from mysqlraft.replication.tables import LocalTables, TableMismatch

log = logging.getLogger(__name__)

BATCH_ROWS = 2000
BATCH_BYTES = 4 << 20
BATCH_ENTRIES = 1000
GATHER_ENTRIES = 64
GATHER_ROWS = 256
"""While more entries wait, an idle server gets a batch when it has this many entries or rows. A smaller one would spend
more on its commit than on its rows."""
YIELD_AFTER = 30.0
ROW_ERRORS = 10
"""How often in a row a batch may fail on rows that the careful lane has just looked at: the application races it."""
_PAUSES = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_IDLE_WAIT = 0.5
PROGRESS_SECONDS = 0.2
"""How long the progress row may stay behind entries that write nothing here, as most of this site's own do: a
transaction for each of them would have the application's next COMMIT wait for its fsync."""


class CommittedLog(Protocol):
    """Where committed entries come from; `mysqlraft.ipc.LogReader` is one."""

    awaited: int
    """An index that somebody waits for, 0 if nobody does."""

    def reached(self, index: int) -> None:
        """What was awaited is in the tables, and so is everything up to ``index``."""

    def want(self, first: int) -> None:
        """Asks for all committed entries from this index on; `take` then returns them in order."""

    def take(self, timeout: float | None = None) -> Sequence[LogEntry]:
        """The next entries, or none after ``timeout`` seconds."""

    def fetch(self, first: int, last: int) -> Iterable[LogEntry]:
        """Committed entries, once more."""


_SHOW_EVERY = 1024
"""Log indices."""


class ApplyState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    STOPPED = "stopped"


@dataclass(slots=True)
class ApplyStatus:
    """Read by other threads at any time: each field is set at once. ``index`` is the log index in the tables, and
    ``needed_from`` the first entry that a start from them would read again (0: not known yet).
    ``stopped_at``: the log index of the statement that was the end, if it was one.

    The counters count since the start: units and rows written here, units that went by the careful lane, changes that
    the fast lane failed on, conflicts, transactions, attempts that were repeated, rows that were left out because
    local transactions wrote them later, and rows of own units that were written in full all the same: as that could not
    be known (``blind`` says why, as long as it cannot), or as they lack columns.
    """

    state: ApplyState = ApplyState.STARTING
    reason: str = ""
    index: int = 0
    needed_from: int = 0
    stopped_at: int = 0
    units: int = 0
    rows: int = 0
    careful: int = 0
    fallbacks: int = 0
    conflicts: int = 0
    transactions: int = 0
    retries: int = 0
    left_out: int = 0
    in_full: int = 0
    blind: str = ""


class ApplyError(Exception):
    """Replication at this site cannot go on beyond the entry before this one; the text says why."""


class StatementStops(ApplyError):
    """It is the statement at ``index`` that cannot be run here, or may not be, or rows there that missed one."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class _OtherTables(Exception):
    """The tables do not hold the log up to where they did: an older copy of the server, or a replica of it, has taken
    its place, or it has taken that of a replica."""


class _Stopping(Exception):
    """`Applier.stop` was called while there was something to wait for."""


_FINAL = (ApplyError, OtherVersion, StateError, TableMismatch, BinlogError, LinkError)


def _progress_gone(index: int) -> str:
    return (
        "the schema mysqlraft was dropped or emptied: its progress row alone says how much of the log the tables hold, "
        f"which was up to index {index} at least. {LOAD_ANEW}"
    )


_IN_USE = (
    "it waits for a transaction that has used its table, or for a session that has locked that or the server (LOCK "
    "TABLES, FLUSH TABLES WITH READ LOCK). SHOW PROCESSLIST lists them; apply goes on once they end"
)
_COMPUTED = frozenset((1690, 3141, 3819, 3903, 4025))
"""The value of an expression is out of its type's range, is no JSON, or does not fit an index; a CHECK is violated."""
_NO_PARTITION = frozenset((1526, 1748))


def _explained(error: StatementError) -> str:
    """The error, and what to do if it is about locks, the account, or what this server computes of a row."""
    if error.code == ER.LOCK_WAIT_TIMEOUT:
        return f"{error}: {_IN_USE}"
    if denied(error):
        return f"{error}. `mysqlraft check --grants` prints the statements that give the account its rights"
    if error.code in _COMPUTED:
        return (
            f"{error}. Its origin took the row, so the CHECK, generated column or index came later, or depends on the "
            "settings of the session (time_zone, sql_mode). SET SESSION sql_log_bin = 0, drop the CHECK or index, or "
            "make the column an ordinary one (ALTER TABLE ... MODIFY), at every site, and reload (SIGHUP)"
        )
    if error.code in _NO_PARTITION:
        return (
            f"{error}. Its origin took the row, before a statement changed the partitions. SET SESSION sql_log_bin = "
            "0, add a partition for it (ALTER TABLE ... ADD or REORGANIZE PARTITION), at every site, and reload "
            "(SIGHUP)"
        )
    return str(error)


OnReady = Callable[[ReplicationState], None]
OnStep = Callable[[LogEntry, Step, ReplicationState], None]


class Applier:
    """Applies the log at one site. Make it, call `run` in a thread, `stop` from another.

    Invariants: at most one batch is on its way; ``status.index`` is what the progress row holds once it is not, of the
    server that the session is at.
    """

    def __init__(
        self,
        *,
        site: int,
        connect: Mapping[str, Any],
        log: CommittedLog,
        dump_server_id: int,
        look_ahead_server_id: int,
        pending: PendingRows | None = None,
        policy: Policy = last_write_wins,
        skip: Iterable[int] = (),
        passed_over: Callable[[], Iterable[Place]] = tuple,
        replicated: TableFilter | None = None,
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
        applied_before: int = 0,
        yield_after: float | None = YIELD_AFTER,
        on_ready: OnReady | None = None,
        on_step: OnStep | None = None,
        directory: Path | None = None,
    ) -> None:
        """``connect``: keyword arguments of `opening.connect`. ``dump_server_id``: a server id that no replica of
        the server has, for a look into the binlog after a crash; ``look_ahead_server_id``: another one, for the look
        ahead. ``pending``: fed by this site's capture. ``skip``: log indices of statements that are neither judged nor
        run, because what they do was done by hand. ``passed_over``: as of `LookAhead`. ``replicated``: which tables
        are; all, if not given. ``directory``: for the files of `runs`; without it they are kept in memory.
        ``yield_after``: as of `ServerWatch`.

        ``applied_before``: a log index that the tables are known to have held once.

        ``on_ready(state)`` is called once, when the state has been read and rebuilt; then ``on_step(entry, step,
        state)`` once for every entry in index order, before it is applied. Both in `run`'s thread.
        """
        self.status = ApplyStatus()
        self._site = site
        self._connect = partial(
            opening.connect,
            **{**connect, "autocommit": True, "charset": "utf8mb4", "cursorclass": pymysql.cursors.Cursor},
        )
        patience = {"connect_timeout": ANSWER_SECONDS, "read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
        self.watch = ServerWatch(partial(self._connect, **patience), yield_after)
        """Whether the server is there, and whom apply waits for; it watches while `run` does."""
        self._open_dump = partial(DumpConnection, connect, dump_server_id, heartbeat=1.0)
        self._open_look_ahead = partial(DumpConnection, connect, look_ahead_server_id, heartbeat=1.0)
        self._log = log
        self._policy = policy
        self._skip = frozenset(skip)
        self._replicated = replicated or TableFilter()
        self._batch_rows, self._batch_bytes = batch_rows, batch_bytes
        self._applied_before = applied_before
        self._on_ready, self._on_step = on_ready, on_step
        self._directory = directory
        self._stop = threading.Event()
        self._changed: deque[Sequence[tuple[str, str | None]]] = deque()
        self._asked: deque[Callable[[ReplicationState], None]] = deque()
        self._source = ServerKeySource(self._connect)
        self._recent = RecentEntries()
        self._held_since = 0.0
        self._state = ReplicationState(site, log.fetch)
        added = AddedValues(self._connect, lambda: self._state.additions, self._pending_additions)
        self._tables = LocalTables(self._source, added)
        self._pending = pending or PendingRows()
        self._look_ahead = LookAhead(
            self._open_look_ahead,
            lambda: int(self._source.query("SELECT @@global.server_id")[0][0]),
            self._tables,
            self._replicated,
            passed_over,
        )
        self._conflicts: ConflictWriter | None = None
        self._session: Session | None = None
        self._writer: BatchWriter | None = None
        self._failures = 0
        """Attempts that failed since something last succeeded."""
        self._row_failures = 0
        """Those of them that failed on rows."""
        self._deadlocks = 0
        """Those of them that lost a deadlock."""
        self._on_the_way: Batch | None = None
        self._again: Iterator[LogEntry] = iter(())
        self._waiting: deque[LogEntry] = deque()
        self._loaded = False
        """Whether what the tables hold is known: ``status.index``."""
        self._last_taken = 0
        """Log index; what comes after what is in the tables, up to here, has to be read again after a failure."""
        self._last_stepped = 0
        self._last_reported = 0
        """`on_step` has been called up to this log index. It has not for an entry at which the server was lost."""
        self._one_by_one_until = 0

    def stop(self) -> None:
        """Makes `run` return soon; what is on its way to the server is waited for."""
        self._stop.set()

    def forget_tables(self, tables: Sequence[tuple[str, str | None]]) -> None:
        """The definitions of these tables may have changed, as of `LocalTables.forget`; any thread may say so."""
        self._changed.append(tables)

    def ask(self, what: Callable[[ReplicationState], None]) -> None:
        """Has ``what(state)`` called in `run`'s thread, soon, between two entries; any thread may ask."""
        self._asked.append(what)

    def run(self) -> None:
        """Applies until `stop`, or until nothing more can be done: `status` then says why.

        Raises whatever nobody has thought of, and what the callbacks raise.
        """
        self.watch.start()
        try:
            state = self._start()
            self._running()
            while True:
                try:
                    self._apply(state)
                    return
                except _FINAL as error:
                    if self._one_by_one_until:
                        raise
                    # Apply what comes before it, and find out which entry it is.
                    log.warning(
                        "apply failed after log index %d, going on entry by entry: %s", self.status.index, error
                    )
                    self._one_by_one_until = self._last_stepped + 1
                except TablesChanged as error:
                    log.info("apply looks at tables again after log index %d: %s", self.status.index, error)
                    if not isinstance(error, BatchOutdated):
                        self._forget_tables()
                except _OtherTables as error:
                    log.warning("%s: apply goes on from there", error)
                    self._retry(str(error))
                except Damaged as error:
                    log.warning("%s: what was known of row keys is read from the log again", error)
                    state.certifier.runs.discard()
                except (pymysql.err.MySQLError, OSError, SessionLost, StatementError) as error:
                    # While an entry was looked at: the table's definition, a collation.
                    self._retry(str(error))
                state = self._load()
        except _Stopping:
            pass
        except (*_FINAL, SchemaError) as error:
            self.status.reason = str(error)
            self.status.stopped_at = error.index if isinstance(error, StatementStops) else 0
            self.status.state = ApplyState.STOPPED
            log.error("apply stopped after log index %d: %s", self.status.index, error)
        finally:
            self.watch.stop()
            self._lose_session()
            self._look_ahead.close()
            self._source.close()

    # Starting, and starting over.

    def _start(self) -> ReplicationState:
        self._with_session(lambda session: ensure_schema(session.query))
        state = self._load()
        self._last_stepped = self._last_reported = state.index
        if self._on_ready is not None:
            self._on_ready(state)
        self._log.want(state.index + 1)
        return state

    def _load(self) -> ReplicationState:
        """The state that the progress row holds; what was stepped beyond it comes again."""
        self._on_the_way = None
        self._lose_session()
        self._loaded = False
        applied, data = self._with_session(read_progress)
        if not data and self._held:
            raise StateError(_progress_gone(self._held))
        tables = self._with_session(read_certification)
        try:
            state = ReplicationState.load(data, self._site, self._fetch, tables=tables, directory=self._directory)
        except OtherVersion:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise StateError(
                f"mysqlraft.progress.state is damaged ({type(error).__name__}: {error}). {LOAD_ANEW}"
            ) from error
        state.take_checks(self._state)
        self._state = state
        if state.index != applied:
            raise StateError(f"mysqlraft.progress: applied is {applied}, its state that of {state.index}. {LOAD_ANEW}")
        self._again = iter(self._log.fetch(applied + 1, self._last_taken) if applied < self._last_taken else ())
        self._loaded = True
        self.status.index, self.status.needed_from = applied, state.needed_from
        return state

    def _fetch(self, first: int, last: int) -> Iterator[LogEntry]:
        """Entries from the log. While the state is rebuilt, which may take long, the status says how far it is."""
        starting = self.status.state is ApplyState.STARTING
        for entry in self._log.fetch(first, last):
            if starting and entry.index % _SHOW_EVERY == 0:
                self.status.reason = f"log index {entry.index:,} of {last:,}"
                if self._stop.is_set():
                    raise _Stopping
            yield entry

    # Going on.

    def _apply(self, state: ReplicationState) -> None:
        self._conflicts = ConflictWriter(self._source, _Writers(state, self._recent))
        mariadb = self._with_session(lambda session: session.mariadb)
        lanes = Lanes(mariadb, self._tables, self._conflicts, self._policy, self._look_ahead, self._pending)
        builder = BatchBuilder(state, lanes)
        while not self._stop.is_set():
            while self._asked:
                self._asked.popleft()(state)
            wait = self._patience(builder)
            entry = self._next(wait)
            if entry is None:
                if builder.writes or (builder.entries and wait == 0 and self._on_the_way is None):
                    self._dispatch(builder.take())
                else:
                    self._complete()
                    self._look_at_progress()
                    self._tell_reached()
                    self._look_ahead.rest()
                    if self._failures and self._on_the_way is None and not builder.entries:
                        self._running()  # What failed has been done, and nothing came after it.
                continue
            kind = kind_of(entry.payload) if entry.origin else None
            if kind in (PayloadKind.PART, PayloadKind.DDL):
                # These may need a transaction of their own, which begins where the one before ends.
                if builder.entries:
                    self._dispatch(builder.take())
                self._complete()
            while self._changed:
                self._forget_tables(self._changed.popleft())
            step = self._step(builder, entry)
            if builder.entries == 1:
                self._held_since = time.monotonic()
            if step.kind is StepKind.LARGE:
                builder.take()
                self._dispatch(LargeWork(state, step, lanes).batch())
            elif step.kind is StepKind.DDL:
                ran = self._statement(step, lanes)
                batch = builder.take()
                self._dispatch(CarriedWork(state, step, lanes).batch() if ran and step.parts else batch)
            elif (
                builder.rows >= self._batch_rows
                or builder.bytes >= self._batch_bytes
                or builder.entries >= BATCH_ENTRIES
                or self._one_by_one_until
                or (builder.writes and self._gathered(builder) and self._server_is_idle())
            ):
                self._dispatch(builder.take())
            if self._one_by_one_until:
                # What comes next may be what cannot be applied: it must not take this one with it.
                self._complete()
        if builder.entries:
            self._dispatch(builder.take())
        self._complete()

    def _gathered(self, builder: BatchBuilder) -> bool:
        """Whether the batch is worth a transaction: nothing more waits, or it is large enough. It leaves then even
        while entries arrive: a machine that reads them just as fast as they come would otherwise never write any."""
        return not self._waiting or builder.entries >= GATHER_ENTRIES or builder.rows >= GATHER_ROWS

    def _server_is_idle(self) -> bool:
        """Whether the last batch is in."""
        return self._on_the_way is None or (self._session is not None and self._session.answered())

    def _patience(self, builder: BatchBuilder) -> float:
        """How long the next entry may be waited for."""
        if self._on_the_way is not None or builder.writes:
            return 0
        if not builder.entries:
            return _IDLE_WAIT
        if 0 < self._log.awaited <= builder.state.index:
            return 0
        return max(0.0, self._held_since + PROGRESS_SECONDS - time.monotonic())

    def _next(self, wait: float) -> LogEntry | None:
        """The next entry; None if there is none within ``wait`` seconds."""
        entry = next(self._again, None)
        if entry is not None:
            return entry
        if not self._waiting:
            self._waiting.extend(self._log.take(wait))
        while self._waiting:
            entry = self._waiting.popleft()
            self._last_taken = entry.index
            if entry.index > self._state.index:  # else another server had it already
                return entry
        return None

    def _step(self, builder: BatchBuilder, entry: LogEntry) -> Step:
        try:
            step = builder.state.step(entry)
            missed = step.missed
            if missed is not None and not missed.decided(entry.index, self._skip):
                raise StatementStops(entry.index, missed.stops(entry.index, entry.origin))
            builder.add(entry, step)
        except (OtherVersion, TableMismatch, BinlogError) as error:
            raise ApplyError(f"log index {entry.index}, from site {entry.origin}: {error}") from error
        finally:
            self._last_stepped = max(self._last_stepped, entry.index)
        if step.accepted and entry.origin == self._site:
            self._pending.returned(entry.session, entry.sequence)
        if step.kind is StepKind.UNITS and step.payload is not None:
            self._recent.add(entry.index, step.payload, len(entry.payload))
        if entry.index > self._last_reported and self._on_step is not None:
            self._last_reported = entry.index
            self._on_step(entry, step, builder.state)
        return step

    # Batches.

    def _dispatch(self, batch: Batch) -> None:
        """Sends the batch once the one before is in."""
        self._complete()
        self._on_the_way = batch
        if self._writer is None:
            return
        try:
            self._writer.begin(batch)
        except (SessionLost, StatementError) as error:
            self._failed(error, batch)
            self._on_the_way = None
            self._commit(batch)

    def _complete(self) -> None:
        """Waits for the batch on its way, if there is one, until it is committed."""
        batch, self._on_the_way = self._on_the_way, None
        if batch is None:
            return
        if self._writer is not None:
            try:
                self._writer.finish()
                self._committed(batch)
                return
            except (SessionLost, StatementError) as error:
                self._failed(error, batch)
        self._commit(batch)

    def _commit(self, batch: Batch) -> None:
        """Commits the batch, however often it takes; something has gone wrong before."""
        while True:
            try:
                session = self._connected(batch.index)
                applied, data = read_progress(session)
                if applied == batch.index:
                    break
                if not data and batch.first > 1:
                    raise StateError(_progress_gone(batch.first - 1))
                if applied != batch.first - 1:
                    raise StateError(
                        f"mysqlraft.progress holds {applied}, neither {batch.first - 1} nor {batch.index}: "
                        "another daemon writes to it"
                    )
                assert self._writer is not None
                self._writer.deadlocks = self._deadlocks
                # The first failure is what brought us here.
                wait_for_tables(session, max(0, self._failures - 1))
                self._writer.begin(batch)
                self._writer.finish()
                wait_for_tables(session, 0)
                break
            except (SessionLost, StatementError) as error:
                self._failed(error, batch)
        self._committed(batch)

    def _committed(self, batch: Batch) -> None:
        status = self.status
        status.index, status.needed_from = batch.index, batch.needed_from
        status.units += batch.units
        status.rows += batch.rows
        status.careful += batch.careful
        status.conflicts += len(batch.conflicts)
        status.transactions += 1
        self._look_ahead.applied(batch.index)
        status.left_out, status.in_full = self._look_ahead.left_out, self._look_ahead.in_full
        status.blind = self._look_ahead.problem
        if self._writer is not None:
            status.fallbacks += self._writer.fallbacks
            self._writer.fallbacks = 0
        if batch.index >= self._one_by_one_until:
            self._one_by_one_until = 0
        self._running()
        self._tell_reached()

    def _look_at_progress(self) -> None:
        """While nothing is on the way, looks at what the tables hold if the session has ended, or somebody waits.

        Raises:
            _OtherTables: not what they did.
        """
        ended = self._session is not None and self._session.answered()
        if ended or 0 < self._log.awaited <= self.status.index:
            _, data = self._with_session(read_progress)
            if not data and self._held:
                raise StateError(_progress_gone(self._held))

    def _tell_reached(self) -> None:
        if 0 < self._log.awaited <= self.status.index:
            self._log.reached(self.status.index)

    # Statements.

    def _statement(self, step: Step, lanes: Lanes) -> bool:
        """Runs the statement of a DDL step, exactly once, unless this site has run it as the application's. Returns
        whether it is another site's and has run, so that the rows that it carries are due."""
        assert step.payload is not None
        assert step.payload.ddl is not None
        assert step.certification is not None
        statement, certification = step.payload.ddl, step.certification
        where = f"log index {step.index}, from site {certification.origin}: {statement.shown}"
        self._forget_tables(statement.tables)
        if step.index in self._skip:
            return False
        tables = ", ".join(schema if name is None else f"{schema}.{name}" for schema, name in statement.tables)
        go_on = (
            f"Every site stops here. Stop the writers, make definition and rows of {tables} equal at all sites by hand "
            f"(SET sql_log_bin = 0), the statement included, then `mysqlraft skip --index {step.index}` at each"
        )
        if certification.verdict is Verdict.CONFLICT:
            raise StatementStops(step.index, f"{where}: another site changed {tables} at the same time. {go_on}")
        raced = certification.verdict is Verdict.REASSERT
        if raced and not ddl.changes_rows(statement) and not ddl.commutes(statement):
            raise StatementStops(
                step.index,
                f"{where}: another site wrote rows of {tables} while the statement ran at site {certification.origin}, "
                f"so they came after it there and before it elsewhere. {go_on}",
            )
        if certification.own and not (raced and ddl.changes_rows(statement)):
            return False
        ways_on = (
            f"Mend what is in its way and reload (SIGHUP), or do by hand what it does and "
            f"`mysqlraft skip --index {step.index}`"
        )
        try:
            lanes.check_flavour(step.payload)
        except TableMismatch as error:
            raise StatementStops(step.index, f"{where}: {error}. {ways_on}") from error
        intent: ddl.Intent | None = None
        while True:
            try:
                session = self._connected()
                if not ddl.concerns(session, statement, self._replicated):
                    log.info("nothing to do here for %s", where)
                    return False
                if intent is None:
                    intent = ddl.read_intent(session)
                    if intent is not None and intent.log_index != step.index:
                        intent = None
                if intent is None or not ddl.has_run(session, statement, intent, self._open_dump):
                    intent = intent or ddl.intent_at(session, step.index, statement, self._open_dump)
                    ddl.store_intent(session, intent)
                    try:
                        wait_for_tables(session, self._failures)
                        self.watch.runs_statement = True
                        ddl.run(session, statement)
                    finally:
                        self.watch.runs_statement = False
                        setup(session)
                differs = differing(session, statement, self._own_statements) if step.alone else ""
                if differs:
                    raise StatementStops(
                        step.index,
                        f"{where}: it has run, but {differs}. Make it here what it is there (SET sql_log_bin = 0) and "
                        f"reload (SIGHUP); or, to keep the difference, `mysqlraft skip --index {step.index}`",
                    )
                return True
            except (SessionLost, ConnectionLost, pymysql.err.MySQLError, OSError) as error:
                self._retry(str(error))
                self._lose_session()
            except StatementError as error:
                if not retryable(error):
                    raise StatementStops(step.index, f"{where}: {error}. {ways_on}") from error
                self._retry(f"{where}: {_IN_USE if about_locks(error) else error}")
            except BinlogError as error:
                # The binlog is gone in which it would be found.
                raise StatementStops(
                    step.index,
                    f"{where}: whether it ran here before a crash cannot be told ({error}). If it has, "
                    f"`mysqlraft skip --index {step.index}`; if not, do by hand what it does, and the same",
                ) from error

    def _pending_additions(self) -> Additions:
        """What this site's own statements added that are in its binlog, and not in the log as far as it was stepped."""
        mariadb = self._connected().mariadb
        try:
            end, start = self._source.binlog_end(), self._log_ends()
            if start is None:
                return Additions()
            return own_additions(self._open_dump, start, end, self._source.collations, mariadb=mariadb)
        except ConnectionLost as error:
            raise SessionLost(str(error)) from error
        except BinlogError as error:
            raise BinlogError(
                f"its rows lack a column, and what this site's own statements put into it cannot be told: {error}"
            ) from error

    def _own_statements(self) -> set[tuple[str, str | None]]:
        """What this site's own statements are about that are in its binlog, and may not be in the log yet."""
        mariadb = self._connected().mariadb
        try:
            end, start = self._source.binlog_end(), self._log_ends()
            if start is None:
                return set()
            return own_statements(self._open_dump, start, end, self._source.collations, mariadb=mariadb)
        except PositionLost as error:
            # Capture says so, too. None of them will be in the log.
            log.warning("this site's own statements cannot be read: %s", error)
            return set()

    def _log_ends(self) -> ReadOn | None:
        """After what of this site's binlog is in the log, as far as it was stepped; None: capture has not begun.

        Raises:
            as `read_on` does.
        """
        origin = self._state.origins[self._site]
        if origin.resume is None:
            return None
        source, mariadb = self._source, self._connected().mariadb
        position = origin.resume.read_to(origin.done)
        return read_on(position, source.query, source.binlog_end, self._open_dump, mariadb=mariadb)

    # Failures.

    def _connected(self, on_the_way: int = 0) -> Session:
        """The session, made anew if the last one was lost. ``on_the_way``: the index that the tables may hold in place
        of ``status.index``.

        Raises:
            _OtherTables: the tables of the server that answers now hold neither: nothing may be written to them before
                the state has been loaded anew.
        """
        if self._session is None:
            try:
                session = open_session(self._connect)
            except StatementError as error:
                # Too many connections, another password: it is not about what was to be done, and may change.
                raise SessionLost(_explained(error)) from error
            if self._loaded:
                self._check_progress(session, on_the_way)
            self._writer = BatchWriter(session, CarefulLane(session, self._tables))
            self._session = self.watch.session = session
        return self._session

    def _check_progress(self, session: Session, on_the_way: int) -> None:
        try:
            applied, _ = read_progress(session)
        except BaseException:
            session.close()
            raise
        if applied not in (self.status.index, on_the_way):
            session.close()
            raise _OtherTables(f"the tables hold the log up to index {applied}, where it was {self.status.index}")

    @property
    def _held(self) -> int:
        """A log index that the tables are known to have held."""
        return max(self._applied_before, self.status.index)

    def _with_session(self, use: Callable[[Session], Any]) -> Any:
        """What `use` returns, repeated until the server can be used."""
        while True:
            try:
                return use(self._connected())
            except (SessionLost, StatementError) as error:
                if isinstance(error, StatementError) and own_schema_gone(error) and self._held:
                    raise StateError(_progress_gone(self._held)) from error
                self._retry(str(error))
                self._lose_session()

    def _failed(self, error: SessionLost | StatementError, batch: Batch) -> None:
        """After an attempt at the batch: returns when the next one is due. Raises ApplyError if none is."""
        if isinstance(error, SessionLost):
            self._lose_session()
        else:
            if about_locks(error):
                self.watch.failed(deadlock=deadlock(error))
            self._deadlocks += deadlock(error)
            if own_schema_gone(error):
                raise StateError(_progress_gone(batch.first - 1)) from error
            if denied(error):
                self._lose_session()  # rights that are given back are those of the next connection
                self._retry(_explained(error))
                return
            rows = row_error(error)
            if rows and self._writer is not None and self._writer.tables_changed():
                raise TablesChanged(str(error)) from error
            self._rollback()
            self._row_failures += rows
            if self._row_failures > ROW_ERRORS or not (rows or retryable(error)):
                raise ApplyError(f"log index {batch.first} to {batch.index}: {_explained(error)}") from error
        self._retry(str(error) if isinstance(error, SessionLost) else _explained(error))

    def _rollback(self) -> None:
        try:
            if self._session is not None:
                self._session.run([b"ROLLBACK"])
        except (SessionLost, StatementError):
            self._lose_session()

    def _retry(self, reason: str) -> None:
        """Waits before the next attempt, longer each time. Raises _Stopping."""
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self.status.retries += 1
        if self._failures > 1:
            # A single deadlock or lock wait is everyday life.
            self.status.reason = reason
            self.status.state = ApplyState.RETRYING
            log.warning("apply waits %.2f s after log index %d: %s", pause, self.status.index, reason)
        if self._stop.wait(pause):
            raise _Stopping

    def _running(self) -> None:
        self._failures = self._row_failures = self._deadlocks = 0
        if self._writer is not None:
            self._writer.deadlocks = 0
        self.watch.succeeded()
        if self.status.state is not ApplyState.RUNNING:
            self.status.state = ApplyState.RUNNING
            self.status.reason = ""

    def _lose_session(self) -> None:
        if self._session is not None:
            with suppress(SessionLost, StatementError):
                self._session.close()
            # Whatever else asks is to ask the server that answers next.
            self._source.close()
            self._look_ahead.disconnect()
        self._session = self._writer = self.watch.session = None

    def _forget_tables(self, tables: Iterable[tuple[str, str | None]] = ()) -> None:
        self._tables.forget(tables)
        if self._conflicts is not None:
            self._conflicts.forget()
        if self._writer is not None:
            self._writer.forget()


@dataclass(frozen=True, slots=True)
class _Writers:
    """The entries that conflicts are with; of those looked at last none is read from the log again."""

    state: ReplicationState
    recent: RecentEntries

    def indices_of(self, index: int) -> Sequence[int]:
        return self.state.indices_of(index)

    def read(self, indices: Sequence[int]) -> Iterator[Payload]:
        if len(indices) == 1 and (payload := self.recent.get(indices[0])) is not None:
            return iter((payload,))
        return self.state.parts(list(indices))
