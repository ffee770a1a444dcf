"""The replica process: capture and apply of one site, wired together.

    python -m mysqlraft.replication.replica FD FD     started by the consensus process, never by hand

Order of a start
----------------

1. Preflight. Errors are reported as the reason why replication is stopped, and looked at again until they are gone. At
   a site that has applied anything before, those of tables wait until 4: what mends them may be in the log.
2. `Applier` reads the progress row, and rebuilds the replicated state from the log.
3. Before the first entry is applied, this site proposes OPEN in a session of its own. If the log knows no position of
   this site yet, it is the end of the binlog now, and the base is what the tables hold now: no applied transaction can
   come between the two, as nothing is applied before.
4. Apply goes on. When it passes the OPEN, accepted, `Capture` starts at the position that the state holds there, once
   every table can be replicated.

A session is followed by a new one if another supersedes it, if its OPEN is not accepted because a greater one was on
its way, if it is void because this site broke the protocol, and if capture lost the server in the middle of a unit.

What apply cannot get over ends the process with `EXIT_STOPPED`, the reason having been reported. What capture cannot
get over ends capture: the reason is reported, and apply goes on, for this site is to see what others do whatever its
own binlog holds. What may pass by itself they retry themselves.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pymysql
from pymysql.connections import Connection
from pymysql.constants import ER

from mysqlraft import config, logs
from mysqlraft.admin.status import State
from mysqlraft.binlog import key_memo
from mysqlraft.binlog.dump import DumpConnection, file_identity
from mysqlraft.binlog.errors import BinlogError, ConnectionLost
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.place import Place, TransactionStops
from mysqlraft.binlog.position import file_number
from mysqlraft.config import Config, ConfigError
from mysqlraft.failures import Failures
from mysqlraft.ipc import (
    BEAT_SECONDS,
    EXIT_FAILED,
    EXIT_STOPPED,
    NOTHING_SKIPPED,
    Link,
    LogReader,
    SessionOver,
    SkipLists,
)
from mysqlraft.memory import give_large_blocks_back
from mysqlraft.mysql import account, opening
from mysqlraft.mysql.connection import MAY_PASS
from mysqlraft.mysql.finding import Finding
from mysqlraft.mysql.preflight import any_case, inspect
from mysqlraft.replication.apply import Applier, ApplyState
from mysqlraft.replication.capture import Capture, CaptureState, UnitBroken, position_now
from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, Position, decode, kind_of
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.left_out import LeftOutRows
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.replication.server_watch import BUSY_AFTER, TELL_AFTER
from mysqlraft.replication.state import LogEntry, ReplicationState, Step, StepKind
from mysqlraft.replication.table_guard import TableGuard

logger = logging.getLogger("mysqlraft.replication.replica")

REPORT_SECONDS = 0.5
START_REPORT_SECONDS = 0.1
"""While it starts, somebody waits for it."""
PREFLIGHT_SECONDS = 3.0
GUARD_SECONDS = 1.0
"""How often tables that keep capture from going on are looked at again."""
STOP_SECONDS = 5.0
COUNT_SECONDS = 3600.0
COUNT_PAUSE_SECONDS = 60.0
VOID_IN_A_ROW = 3
"""Sessions of this site that may be void without a unit between them."""
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Stopped(Exception):
    """Consensus asked for an end while this process was waiting for something."""


class Reader(IntEnum):
    """Who reads the binlog. Two connections with the same server id would end each other."""

    CAPTURE = 0
    APPLY = 1
    LOOK_AHEAD = 2
    SCAN = 3


def dump_server_id(cluster: str, site: int, reader: Reader) -> int:
    """A server id that no other server should have: from the upper quarter, by cluster and site."""
    return 3 << 30 | (zlib.crc32(cluster.encode()) & 0xFF_FFFF) << 6 | site << 2 | reader


@dataclass(frozen=True, slots=True)
class _CaptureStop:
    """What capture's thread could not get over, and which transaction it is, if it is one."""

    reason: str
    place: Place | None


@dataclass(slots=True)
class _Failure:
    """How apply's thread ended."""

    reason: str
    status: int


class Replica:
    """One life of the replica process."""

    def __init__(
        self,
        settings: Config,
        link: Link,
        committed: LogReader,
        last_session: int,
        applied_before: int = 0,
        skips: SkipLists = NOTHING_SKIPPED,
    ) -> None:
        """``last_session``, ``applied_before``: how far earlier replica processes have got. ``skips``: what is to be
        gone past, beside the statements that the file names."""
        self._config = settings
        self._link = link
        self._committed = committed
        self._site = settings.own.id
        self._replicated = TableFilter(settings.replicate.include, settings.replicate.exclude)
        self._guard: TableGuard | None = None
        self._waits: tuple[State, str] | None = None
        self._flavour = Flavour.MYSQL
        self._server = ""
        self._any_case: bool | None = None
        self._state, self._reason = State.STARTING, "connecting to the server"
        self._applier: Applier | None = None
        self._capture: Capture | None = None
        self._capture_thread: threading.Thread | None = None
        self._failure: _Failure | None = None
        self._wake = threading.Event()
        self._last_session = last_session
        self._applied_before = applied_before
        self._skips = skips
        self._pending = PendingRows()
        self._capture_stop: _CaptureStop | None = None
        self._unfinished: set[Place] = set()
        """Transactions that the server never finished. A new process finds out anew."""
        self._capture_failures = Failures()
        self._session = 0
        self._accepted = False
        self._conflicts_before: int | None = None
        """Those in the history of before this process; None until they are counted."""
        self._checks: tuple[tuple[int, int], ...] = ()
        self._returned_index = 0
        self._void: deque[tuple[int, int, str]] = deque(maxlen=8)
        """(log index, origin, reason) of the last void sessions since this process began."""
        self._void_index = self._void_in_a_row = 0
        self._returned = 0
        self._reasserted = 0
        self._under_way: deque[tuple[int, int]] = deque()
        self._work: deque[int] = deque()
        self._worked = 0

    def run(self) -> int:
        """Replicates until consensus asks for an end, or nothing more can be done; returns the exit status."""
        link = self._link
        link.window_bytes = self._config.capture.window_bytes
        link.start(self._wake.set)
        self._thread("beat", self._beat)
        try:
            arguments = self._preflight()
        except Stopped:
            return 0
        survey = partial(account.connect, self._config.server, read_timeout=opening.SURVEY_SECONDS)
        self._guard = TableGuard(ServerKeySource(survey), self._replicated)
        applier = self._applier = Applier(
            site=self._site,
            connect=arguments,
            log=self._committed,
            dump_server_id=dump_server_id(self._config.cluster.id, self._site, Reader.APPLY),
            look_ahead_server_id=dump_server_id(self._config.cluster.id, self._site, Reader.LOOK_AHEAD),
            pending=self._pending,
            batch_rows=self._config.apply.batch_rows,
            batch_bytes=self._config.apply.batch_bytes,
            yield_after=self._config.apply.yield_after,
            skip={*self._config.apply.skip, *self._skips.statements},
            passed_over=self._passed_over,
            replicated=self._replicated,
            applied_before=self._applied_before,
            on_ready=self._on_ready,
            on_step=self._on_step,
            directory=self._config.data_dir / "certification",
        )
        applying = self._thread("apply", self._apply)
        while self._failure is None and not link.stopping.is_set():
            self._report()
            self._wake.wait(START_REPORT_SECONDS if self._state is State.STARTING else REPORT_SECONDS)
            self._wake.clear()
        self._report()
        link.open_session(None)
        if self._capture is not None:
            self._capture.stop()
        applier.stop()
        for thread in (self._capture_thread, applying):
            if thread is not None:
                thread.join(STOP_SECONDS)
        self._report()
        return self._failure.status if self._failure is not None else 0

    def _passed_over(self) -> tuple[Place, ...]:
        """The transactions of this site's binlog that capture leaves out."""
        return (*(Place(*fields) for *fields, _ in self._skips.captured), *self._unfinished)

    def _thread(self, name: str, body: Any) -> threading.Thread:
        thread = threading.Thread(target=body, name=name, daemon=True)
        thread.start()
        return thread

    def _beat(self) -> None:
        while not self._link.stopping.wait(BEAT_SECONDS):
            self._link.beat()

    def _fail(self, reason: str, status: int) -> None:
        if self._failure is None and not self._link.stopping.is_set():
            self._failure = _Failure(reason, status)
            logger.error("replication ends reason=%r", reason)
        self._wake.set()

    # Preflight

    def _preflight(self) -> dict[str, Any]:
        """Waits until the server can be reached and is fit to be replicated; returns how to connect to it."""
        attempt = 0
        while True:
            try:
                arguments = account.arguments(self._config.server)
                connection = opening.connect(**arguments, read_timeout=opening.SURVEY_SECONDS)
                try:
                    self._any_case = any_case(connection)
                    self._replicated = TableFilter(
                        self._config.replicate.include, self._config.replicate.exclude, any_case=self._any_case
                    )
                    inspection = inspect(connection, self._config, self._replicated)
                    errors = inspection.errors
                    if not inspection.server_errors and errors and _has_applied(connection):
                        errors = ()  # of tables: they hold capture, which looks for itself
                finally:
                    connection.close()
            except (pymysql.err.MySQLError, OSError, ConfigError) as error:
                pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                attempt += 1
                self._tell(State.RETRYING, f"the server at {account.where(self._config.server)}: {_text(error)}")
                self._pause(pause)
                continue
            attempt = 0
            self._server = f"{inspection.flavour} {inspection.version}"
            self._flavour = Flavour.MARIADB if inspection.flavour == "mariadb" else Flavour.MYSQL
            if not errors:
                for finding in inspection.findings:
                    logger.info("preflight %s: %s", finding.severity.value, finding.what)
                return arguments
            self._tell(State.STOPPED, _reason(errors))
            self._pause(PREFLIGHT_SECONDS)

    def _tell(self, state: State, reason: str) -> None:
        self._state, self._reason = state, reason
        self._link.report(self._status())

    def _pause(self, seconds: float) -> None:
        if self._link.stopping.wait(seconds):
            raise Stopped

    # Sessions

    def _on_ready(self, state: ReplicationState) -> None:
        """Apply has read where it is, and has not begun: this site's session is opened."""
        self._thread("count", partial(self._count_conflicts, state.index))
        origin = state.origins[self._site]
        base, resume, done = origin.base, origin.resume, origin.done
        attempt = 0
        while True:
            try:
                connection = account.connect(self._config.server)
                try:
                    if resume is None:
                        base, resume = self._beginning(connection, state.index)
                        done = (resume.file, resume.offset)
                        logger.info("this site begins at file=%s offset=%d base=%d", *done, base)
                finally:
                    connection.close()
                break
            except (*MAY_PASS, OSError, ConnectionLost) as error:
                self._reason = f"the server at {account.where(self._config.server)}: {_text(error)}"
                self._pause(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
        self._reason = "waiting until the log holds this site's session"
        self._open_session(state, Payload(PayloadKind.OPEN, self._flavour, base, resume, done))

    def _count_conflicts(self, index: int) -> None:
        """Counts the history up to a log index, which may take as long as the history is: nothing waits for it."""
        while True:
            try:
                connection = account.connect(self._config.server, read_timeout=COUNT_SECONDS)
                with closing(connection), connection.cursor() as cursor:
                    # A snapshot held for that long would keep the server from purging.
                    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
                    cursor.execute("SELECT COUNT(*) FROM mysqlraft.conflicts WHERE log_index <= %s", (index,))
                    self._conflicts_before = int((cursor.fetchone() or (0,))[0])
                return
            except (pymysql.err.MySQLError, OSError, ConfigError) as error:
                logger.warning("the conflict history is counted later reason=%r", _text(error))
            if self._link.stopping.wait(COUNT_PAUSE_SECONDS):
                return

    def _beginning(self, connection: Connection[Any], index: int) -> tuple[int, Position]:
        """Base and position where this new site's capture begins.

        They stay what they were the first time, also after a restart: what is committed until the log holds them is
        to be captured as well.
        """
        with connection.cursor() as cursor:
            cursor.execute("SELECT base, position FROM mysqlraft.beginning")
            row = cursor.fetchone()
            if row is not None:
                return int(row[0]), Position(*msgpack.unpackb(row[1]))
            position = position_now(connection)
            server_id = dump_server_id(self._config.cluster.id, self._site, Reader.CAPTURE)
            arguments = account.arguments(self._config.server)
            identity = file_identity(partial(DumpConnection, arguments, server_id), position.file)
            position = replace(position, identity=identity)
            packed = msgpack.packb((position.file, position.offset, position.gtids, position.identity))
            cursor.execute("INSERT INTO mysqlraft.beginning VALUES (1, %s, %s)", (index, packed))
            connection.commit()
            return index, position

    def _open_session(self, state: ReplicationState, payload: Payload) -> None:
        last = max(self._last_session, state.sessions.last(self._site)[0])
        session = self._last_session = max(last + 1, time.time_ns() // 1000)
        self._session, self._accepted = session, False
        self._link.open_session(session)
        self._link.propose(session, 1, payload.encode())
        logger.info("session opened session=%d", session)

    def _on_step(self, entry: LogEntry, step: Step, state: ReplicationState) -> None:
        """Apply has looked at an entry."""
        self._checks = state.checks
        payload = step.payload
        if step.kind is StepKind.DDL and entry.origin != self._site and self._guard is not None:
            assert payload is not None
            assert payload.ddl is not None
            self._guard.statement_ahead(entry.index, payload.ddl.tables)
        if step.kind is not StepKind.NOTHING:
            self._work.append(entry.index)
        if step.accepted and payload is not None and step.units:
            self._under_way.append((entry.index, step.units[0][0].committed_at))
        if step.void and entry.index > self._void_index:
            self._void_index = entry.index
            logger.error("session void index=%d site=%d reason=%r", entry.index, entry.origin, step.void)
            self._void.append((entry.index, entry.origin, step.void))
        if entry.origin != self._site or entry.index <= self._returned_index:
            return
        self._returned_index = entry.index
        if step.void:
            if entry.session >= self._session:
                self._session_void(step.void, state)
        elif entry.session == self._session:
            if entry.sequence != 1:
                if step.accepted and step.kind in (StepKind.UNITS, StepKind.LARGE):
                    self._returned += len(step.units)
                    self._void_in_a_row = 0
            elif step.accepted:
                self._accepted = True
                self._start_capture(state)
            else:
                logger.warning("session not accepted, a greater one was on its way session=%d", entry.session)
                self._reopen(state)
        elif step.accepted and entry.session > self._session:
            logger.warning("session superseded session=%d by=%d", self._session, entry.session)
            self._reopen(state)

    def _session_void(self, reason: str, state: ReplicationState) -> None:
        self._void_in_a_row += 1
        if self._void_in_a_row < VOID_IN_A_ROW:
            self._reopen(state)
        else:
            self._stop_capture(
                f"what this site proposes breaks the protocol again and again: {reason}. This is a mistake in "
                "mysqlraft: upgrade it, and report the log's last entries of this site (`mysqlraft log`). A reload "
                "(SIGHUP) tries again",
                None,
            )

    def _reopen_after(self, session: int, state: ReplicationState) -> None:
        """The session's capture has ended, and needs another one."""
        if session == self._session:
            self._reopen(state)

    def _reopen(self, state: ReplicationState) -> None:
        """Ends this session's capture, and opens a greater session."""
        self._link.open_session(None)
        if self._capture is not None:
            self._capture.stop()
            self._capture = None
        origin = state.origins[self._site]
        assert origin.resume is not None, "a session of this site was accepted"
        self._open_session(state, Payload(PayloadKind.OPEN, self._flavour, origin.base, origin.resume, origin.done))

    def _start_capture(self, state: ReplicationState) -> None:
        origin = state.origins[self._site]
        assert origin.resume is not None, "its OPEN has just been accepted"
        assert self._applier is not None
        watch = self._applier.watch
        session = self._session
        self._capture_stop = None
        capture = self._capture = Capture(
            account.arguments(self._config.server),
            self,
            CaptureState(origin.resume, origin.done, origin.base),
            session=session,
            server_id=dump_server_id(self._config.cluster.id, self._site, Reader.CAPTURE),
            scan_server_id=dump_server_id(self._config.cluster.id, self._site, Reader.SCAN),
            replicated=self._replicated,
            position=self._config.capture.position,
            part_bytes=self._config.capture.part_bytes,
            mark_seconds=self._config.capture.mark_seconds,
            skip=_ahead(self._skips, origin.resume),
            left_out=LeftOutRows(),
            unfinished=frozenset(self._unfinished),
            pending=self._pending,
            server_now=lambda: watch.server,
            memo=self._config.data_dir / key_memo.FILE,
        )
        self._returned = 0
        self._wake.set()
        run = partial(self._run_capture, capture, session, self._capture_thread)
        self._capture_thread = self._thread("capture", run)
        resume = origin.resume
        logger.info("capture starts file=%s offset=%d gtids=%s", resume.file, resume.offset, resume.gtids or "-")

    # The threads

    def _apply(self) -> None:
        applier = self._applier
        assert applier is not None
        try:
            applier.run()
        except (Stopped, SessionOver):
            return
        except Exception as error:
            logger.exception("apply failed after log index %d", applier.status.index)
            self._fail(f"apply: internal error, {type(error).__name__}: {error}", EXIT_FAILED)
            return
        if applier.status.state is ApplyState.STOPPED:
            self._fail(applier.status.reason, EXIT_STOPPED)

    def _run_capture(self, capture: Capture, session: int, before: threading.Thread | None) -> None:
        """``before``: the last session's capture, which may still wait for the server; both use guard and server id."""
        assert self._guard is not None
        if before is not None:
            before.join()
        try:
            # Before anything is read: rows without a primary key end capture, and the process with it.
            self._until_fit(session, self._guard.look)
            capture.run()
        except SessionOver:
            return
        except UnitBroken as error:
            logger.warning("session ends in the middle of a unit session=%d reason=%r", session, str(error))
            if error.unfinished is not None:
                self._unfinished.add(error.unfinished)
            assert self._applier is not None
            self._applier.ask(partial(self._reopen_after, session))
        except TransactionStops as error:
            place = error.place
            self._stop_capture(
                f"{error}. It is transaction {place} of this site's binlog. `mysqlraft skip --captured {place}` goes "
                "on without it, once it is in a file; a reload (SIGHUP) tries it again",
                place,
            )
        except BinlogError as error:
            self._stop_capture(str(error), None)
        except Exception as error:
            logger.exception("capture failed")
            why = f"internal error, {type(error).__name__}: {error}"
            if self._capture_failures.failed(why, capture.status()["position"]):
                self._stop_capture(
                    f"{why}, {self._capture_failures.in_a_row} times in a row. The daemon's log says more. A reload "
                    "(SIGHUP) tries again",
                    None,
                )
                return
            # Parts of a unit may have left, so it takes another session.
            self._waits = State.RETRYING, f"capture: {why}"
            if not self._link.stopping.wait(_PAUSES[min(self._capture_failures.in_a_row, len(_PAUSES)) - 1]):
                assert self._applier is not None
                self._applier.ask(partial(self._reopen_after, session))

    def _stop_capture(self, reason: str, place: Place | None) -> None:
        if not self._link.stopping.is_set():
            self._capture_stop = _CaptureStop(reason, place)
            logger.error("capture stopped reason=%r", reason)
        self._wake.set()

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """What capture proposes goes to the log, as long as every table can be replicated; apply learns that one may
        have changed."""
        assert self._applier is not None
        assert self._guard is not None
        if kind_of(payload) is PayloadKind.DDL:
            ddl = decode(payload).ddl
            assert ddl is not None
            self._applier.forget_tables(ddl.tables)
        self._until_fit(session, partial(self._guard.errors, payload))
        self._link.propose(session, sequence, payload)

    def _until_fit(self, session: int, look: Callable[[int], tuple[Finding, ...]]) -> None:
        """Returns when ``look(log index in the tables)`` finds nothing.

        Raises:
            SessionOver: the session may not propose any more.
        """
        while found := self._unfit(look):
            if found != self._waits:
                logger.error("capture waits reason=%r", found[1])
                self._waits = found
                self._wake.set()
            if self._link.stopping.wait(GUARD_SECONDS) or not self._link.is_open(session):
                raise SessionOver(f"session {session} is over")
        self._waits = None

    def _unfit(self, look: Callable[[int], tuple[Finding, ...]]) -> tuple[State, str] | None:
        """Why capture may not go on, or not yet; None if it may."""
        assert self._applier is not None
        try:
            errors = look(self._applier.status.index)
        except (pymysql.err.MySQLError, OSError, ConfigError) as error:
            return State.RETRYING, f"the server at {account.where(self._config.server)}: {_text(error)}"
        return (State.CAPTURE_STOPPED, _reason(errors)) if errors else None

    # Status

    def _report(self) -> None:
        self._state, self._reason = self._judge()
        self._link.report(self._status())

    def _judge(self) -> tuple[State, str]:
        """The state of replication here, and the reason for it."""
        if self._failure is not None:
            return (State.STOPPED if self._failure.status == EXIT_STOPPED else State.RETRYING), self._failure.reason
        if self._link.stopping.is_set():
            return State.STOPPING, "asked to stop"
        assert self._applier is not None
        status, watch = self._applier.status, self._applier.watch
        if watch.silent > TELL_AFTER:
            applying = f"the server at {account.where(self._config.server)} does not answer"
        elif status.state is ApplyState.RETRYING:
            applying = f"apply: {status.reason}"
        elif watch.waits_for:
            applying = "apply waits for a row that a transaction of the application holds"
        elif watch.busy > BUSY_AFTER:
            applying = (
                f"apply has waited {watch.busy:.0f} s for one answer of the server, which may wait for a lock, or for "
                "room on its disk (its error log says so)"
            )
        else:
            applying = ""
        if (stop := self._capture_stop) is not None:
            return State.CAPTURE_STOPPED, "; ".join(filter(None, (f"capture: {stop.reason}", applying)))
        if applying:
            return State.RETRYING, applying
        if status.state is not ApplyState.RUNNING or not self._accepted or self._capture is None:
            return State.STARTING, self._reason if self._session else f"reading the log: {status.reason}".rstrip(": ")
        if (waits := self._waits) is not None:
            return waits
        capture = self._capture.status()
        if capture["last_error"]:
            return State.RETRYING, f"capture: {capture['last_error']}"
        if not capture["connected"]:
            return State.STARTING, "capture connects"
        return State.RUNNING, ""

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = {"state": self._state.value, "reason": self._reason, "server": self._server or None}
        found["names_ignore_case"] = self._any_case
        if self._applier is None or not self._session:
            return found
        status = self._applier.status
        capture = self._capture.status() if self._capture is not None else None
        found |= {
            "applied": status.index,
            "worked": self._last_worked(status.index),
            "stopped_at": status.stopped_at or None,
            "capture_stopped_at": self._stopped_at(),
            "needed_from": status.needed_from,
            "lag_seconds": self._lag(status.index),
            "left_out": capture["left_out"] if capture else {},
            "conflicts": None if self._conflicts_before is None else self._conflicts_before + status.conflicts,
            "pending": max(0, capture["transactions"] - self._returned) if capture else 0,
            "capture": {**capture["position"], "base": capture["base"]} if capture else None,
            "units": {
                "captured": capture["transactions"] if capture else 0,
                "applied": status.units,
                "careful": status.careful,
                "rows_left_out": status.left_out,
                "rows_in_full": status.in_full,
                "in_full_because": status.blind,
            },
            "apply": {
                "rows": status.rows,
                "transactions": status.transactions,
                "fallbacks": status.fallbacks,
                "retries": status.retries,
                "waits_for": self._applier.watch.waits_for,
                "yielded": self._applier.watch.yielded,
            },
            "server_silent_seconds": round(self._applier.watch.silent),
            "session": self._session,
            "checks": [(index, f"{digest:016x}") for index, digest in self._checks],
            "outstanding_bytes": self._link.outstanding_bytes,
            "void": [list(void) for void in self._void],
        }
        if capture:
            found["capture_details"] = capture
        return found

    def _last_worked(self, applied: int) -> int:
        """The last index with units or a statement that this process has applied; 0 if none yet."""
        while self._work and self._work[0] <= applied:
            self._worked = self._work.popleft()
        return self._worked

    def _stopped_at(self) -> tuple[str, int, str, str] | None:
        """The fields of the place of the transaction at which capture has stopped."""
        place = self._capture_stop.place if self._capture_stop is not None else None
        return None if place is None else (place.file, place.offset, place.identity, place.gtid)

    def _lag(self, applied: int) -> float:
        """How long ago the oldest unit was committed, at its origin, that is known and not applied here; in seconds."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= applied:
            under_way.popleft()
        if not under_way:
            return 0.0
        return round(max(0.0, time.time() - under_way[0][1] / 1e6), 3)


def _ahead(skips: SkipLists, resume: Position) -> dict[Place, Path]:
    """Of the own transactions to be left out, those that capture may come upon when it reads on from there. The others
    are behind it in its server's binlog. Capture itself finds which are of the server that it reads: that may be one
    that has taken the place of the other."""
    server = resume.identity.partition("-")[0]
    places = ((Place(*fields), Path(path)) for *fields, path in skips.captured)
    return {
        place: path
        for place, path in places
        if place.identity.partition("-")[0] != server
        or (file_number(place.file), place.offset) >= (file_number(resume.file), resume.offset)
    }


def _has_applied(connection: Connection[Any]) -> bool:
    """Whether the server's tables hold any of the log already."""
    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT 1 FROM mysqlraft.progress WHERE applied > 0")
        except pymysql.err.MySQLError as error:
            if error.args[0] in (ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR):
                return False
            raise
        return cursor.fetchone() is not None


def _reason(errors: Sequence[Finding]) -> str:
    first = errors[0].what
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"the server is not fit to be replicated: {first}{more}; `mysqlraft check` prints the SQL that mends it"


def _text(error: Exception) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def main(arguments: list[str]) -> int:
    # A Ctrl-C and the service manager's SIGTERM reach both processes; this one is asked by the other.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(arguments[0])))
    committed = LogReader(socket.socket(fileno=int(arguments[1])), link.stopping)
    try:
        path, text, last_session, applied_before, skips = link.read_start()
    except EOFError:
        return 0
    settings = config.parse(text, Path(path))
    logs.configure(settings.log)
    # The threads wait for sockets most of the time. With Python's default of 5 ms, one that has just been woken would
    # wait as long for one that computes.
    sys.setswitchinterval(0.0005)
    give_large_blocks_back()
    gc.freeze()
    threading.excepthook = partial(_thread_failed, link)
    try:
        return Replica(settings, link, committed, last_session, applied_before, skips).run()
    except Exception as error:
        logger.exception("the replica process fails")
        link.last_words(f"internal error, {type(error).__name__}: {error}")
        return EXIT_FAILED


def _thread_failed(link: Link, failure: threading.ExceptHookArgs) -> None:
    """A thread has ended that nothing goes on without."""
    name = failure.thread.name if failure.thread is not None else "?"
    trace = (failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    logger.error("thread %s fails", name, exc_info=trace)
    link.last_words(f"internal error in thread {name}, {failure.exc_type.__name__}: {failure.exc_value}")
    logging.shutdown()
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    # Threads that are still inside the server's answer are not waited for.
    os._exit(status)
