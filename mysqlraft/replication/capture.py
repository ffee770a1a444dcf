"""Capture: the site's binlog into payloads, proposed in order (DESIGN 5).

One thread: it reads the dump connection, turns events into units and hands payloads to `Link.propose`, which blocks
while too much is on the way. Small units share a payload while more is waiting to be read, and leave at once when
nothing is: there is no timer between a COMMIT and its proposal. A large unit leaves in parts while it is still read.

The dump connection breaks whenever the server restarts. Capture connects again and reads on from the position of its
last proposal. If parts of a unit have left, it does not: the server that answers next may be another one, with another
transaction in that place. `run` then ends with `UnitBroken`, and a new session reads the whole unit again. Beside that,
only what cannot be mended by trying again ends `run`: a position that the server no longer has, an event that cannot be
carried.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CR

from mysqlraft.binlog import key_memo
from mysqlraft.binlog.added_columns import gives_each_row_its_own
from mysqlraft.binlog.changes import Rows, SchemaChange
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.large_row import largest_row
from mysqlraft.binlog.place import Place, TransactionStops, UnfinishedUnit
from mysqlraft.binlog.read_on import read_on
from mysqlraft.binlog.statement_scan import StatementScan
from mysqlraft.binlog.statements import classify
from mysqlraft.binlog.stream import UNLIMITED, Prepared, TransactionStream
from mysqlraft.binlog.temporary_tables import TemporaryTables
from mysqlraft.binlog.transaction_file import write_transaction
from mysqlraft.binlog.xa import FinishedBefore, Xid, prepared
from mysqlraft.mysql import opening
from mysqlraft.mysql.connection import MAY_PASS, SessionLost, StatementError
from mysqlraft.raft.forward import MAX_PAYLOAD_BYTES
from mysqlraft.replication.after_crash import RunAtCrash
from mysqlraft.replication.carried_rows import CarriedRows, RowsOfTable
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.replication.left_out import LeftOutRows
from mysqlraft.replication.made import made, renamed_nothing, wait_until_done
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.replication.pieces import cut
from mysqlraft.replication.system_zone import REMEDY, system_zone

logger = logging.getLogger(__name__)

BATCH_BYTES = 256 << 10
BATCH_UNITS = 500
_BACK_OFF = (0.05, 5.0)
"""Seconds before connecting again: the first time, and at most."""


class UnitBroken(Exception):
    """What comes after the parts of a unit that have left will not come: their session can only be followed by another
    one. ``unfinished``: where the unit is, if the server never finished it and the next session has to leave it out."""

    def __init__(self, why: str, unfinished: Place | None = None) -> None:
        super().__init__(why)
        self.unfinished = unfinished


class Link(Protocol):
    """The way to the log."""

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """Takes over a payload; blocks while the window is full. Raises to end capture."""
        ...


@dataclass(frozen=True, slots=True)
class CaptureState:
    """Where capture starts: what the replicated state holds for this site at the session's OPEN."""

    resume: Position
    done: tuple[str, int]
    base: int


class Capture:
    """One session's capture. `run` is the body of a thread; everything else may be called from any."""

    def __init__(
        self,
        connect: Mapping[str, Any],
        link: Link,
        start: CaptureState,
        *,
        session: int,
        server_id: int,
        scan_server_id: int,
        replicated: Callable[[str, str | None], bool],
        position: str = "auto",
        part_bytes: int = 1 << 20,
        mark_seconds: float = 10.0,
        sequence: int = 2,
        skip: Mapping[Place, Path] | None = None,
        unfinished: Collection[Place] = (),
        pending: PendingRows | None = None,
        left_out: LeftOutRows | None = None,
        server_now: Callable[[], str] = str,
        memo: Path | None = None,
    ) -> None:
        """``connect``: keyword arguments of `opening.connect`. ``server_id``: of the dump connection, which no server
        and no other replica may have; ``scan_server_id``: another one, to look for statements ahead. ``position``:
        "gtid", "file" or "auto": by file, or by GTID where the server has another one. ``sequence``: of the first
        payload (1 is the session's OPEN). ``skip``: transactions to be left out, each once it is in the file of that
        path; ``unfinished``: those that the server never finished. ``pending``: gets the row keys of what is proposed.
        ``server_now``: which server the address has led to lately, as `opening.WHICH_SERVER` has it, "" if not known.
        ``memo``: the file in which a capture that is stopped leaves a `KeyMemo` for the next one.
        """
        self._connect = {**connect, "autocommit": True}
        self._link = link
        self._state = start
        self._session = session
        self._server_id = server_id
        self._scan_server_id = scan_server_id
        self._replicated = replicated
        self._by = position
        self._part_bytes = part_bytes
        self._row_bytes = UNLIMITED
        self._batch_bytes = min(BATCH_BYTES, part_bytes)
        self._mark_seconds = mark_seconds
        self._sequence = sequence
        self._skip = skip or {}
        self._unfinished = unfinished
        self._pending = pending
        self._left_out = left_out
        self._server_now = server_now
        self._memo = memo
        self._stopping = threading.Event()
        self._dump: DumpConnection | None = None
        self._stream: TransactionStream | None = None
        self._temporary = TemporaryTables()
        self._scan: StatementScan | None = None
        self._flavour = Flavour.MYSQL
        self._tables: dict[bytes, int] = {}
        self._units: list[Unit] = []
        self._size = 0
        self._held_transactions = self._held_rows = 0
        self._source: ServerKeySource | None = None
        self._server = ""
        """The one that is read, as `opening.WHICH_SERVER` has it."""
        self._forgotten: tuple[list[tuple[Xid, Prepared]], tuple[str, int]] | None = None
        """XA transactions that the server does not have, and the end of the binlog after it was asked: up to there they
        may be finished."""
        self._parts_out = 0
        """How many parts of a unit have left, of which the last one has not."""
        self._proposed_at = time.monotonic()
        self._active = False
        self._notes: Counter[str] = Counter()
        self._kept: list[str] = []
        self._skips_marked = 0
        self._totals: Counter[str] = Counter()
        self._reading = False
        self._last_error = ""
        self._lag = 0.0

    # For the owner

    def run(self) -> None:
        """Captures until `stop`.

        Raises:
            UnitBroken: go on in a new session.
            PositionLost: the server no longer has the binlog to go on with; the text says what to do.
            BinlogError: the binlog holds what cannot be replicated.
        """
        source = self._source = ServerKeySource(self._asking)
        wait, longest = _BACK_OFF
        try:
            while not self._stopping.is_set():
                proposed = self._sequence
                try:
                    self._read(source)
                except (ConnectionLost, OSError, *MAY_PASS) as error:
                    if self._stopping.is_set():
                        return
                    self._last_error = str(error)
                    self._totals["reconnects"] += 1
                    if self._parts_out:
                        raise UnitBroken(str(error)) from None
                    wait = _BACK_OFF[0] if self._sequence > proposed else min(2 * wait, longest)
                    self._stopping.wait(wait)
                except UnfinishedUnit as error:
                    raise UnitBroken(str(error), error.place) from None
                except PositionLost as error:
                    raise PositionLost(self._explain(error)) from None
                finally:
                    self._reading = False
                    self._server = ""  # another one may answer next
                    source.close()
                    self._forget_batch()
                    self._held_transactions = self._held_rows = 0
                    if self._dump is not None:
                        self._dump.close()
                        self._dump = None
        except BinlogError as error:
            self._last_error = str(error)
            raise
        finally:
            source.close()
            if self._stream is not None:
                if self._stopping.is_set():
                    self._leave_memo(self._stream)
                self._stream.close()

    def stop(self) -> None:
        """Makes `run` return soon. What was read and not proposed will be read again by the next session."""
        self._stopping.set()
        dump = self._dump
        if dump is not None:
            dump.abort()

    def status(self) -> dict[str, Any]:
        """Counters and position, for people and metrics.

        ``lag_seconds``: how long ago the transaction read last was committed, 0 when all has been read.
        ``notes``: what was not replicated, and how often.
        """
        state, stream = self._state, self._stream
        counters = stream.counters if stream is not None else None
        return {
            "connected": self._reading,
            "transactions": self._totals["transactions"],
            "rows": self._totals["rows"],
            "bytes": self._totals["bytes"],
            "statements": self._totals["statements"],
            "payloads": self._totals["payloads"],
            "reconnects": self._totals["reconnects"],
            "applied_seen": counters.applied if counters is not None else 0,
            "position": {"file": state.done[0], "offset": state.done[1], "gtids": state.resume.gtids},
            "base": state.base,
            "lag_seconds": round(self._lag, 3),
            "last_error": self._last_error,
            "notes": dict(self._notes),
            "skipped": list(self._kept),
            "left_out": dict(self._left_out.totals) if self._left_out is not None else {},
        }

    def _leave_memo(self, stream: TransactionStream) -> None:
        memo = stream.memo
        if self._memo is not None and memo is not None:
            memo.write(self._memo)

    # Reading

    def _asking(self, **options: Any) -> Connection[Any]:
        """A connection to the server that is read: the places and the definitions of another one mean nothing."""
        connection = opening.connect(**{**self._connect, **options})
        if self._server:
            with connection.cursor() as cursor:
                cursor.execute(opening.WHICH_SERVER)
                if cursor.fetchone() != (self._server,):
                    connection.close()
                    raise pymysql.err.OperationalError(CR.CR_SERVER_LOST, opening.ANOTHER_SERVER)
        return connection

    def _open_dump(self, server_id: int, **options: float) -> DumpConnection:
        return DumpConnection(self._connect, server_id, server=self._server, **options)

    def _read(self, source: ServerKeySource) -> None:
        """One dump connection, from login until it ends."""
        self._server = str(source.query(opening.WHICH_SERVER)[0][0])
        if self._left_out is not None:
            self._left_out.load(source.query)
        server = f"{source.query('SELECT @@global.server_id')[0][0]}-"
        for place, path in self._skip.items():
            if place.identity.startswith(server):
                self._keep(place, path, source)
        dump = self._dump = self._open_dump(self._server_id)
        if self._stopping.is_set():
            return
        self._flavour = Flavour.MARIADB if dump.mariadb else Flavour.MYSQL
        state = self._state
        if self._stream is not None:
            self._stream.close()
        open_scan = partial(self._open_dump, self._scan_server_id, heartbeat=1.0)
        scan = self._scan = StatementScan(open_scan, source, self._stopping.is_set)
        self._forgotten = None
        self._row_bytes = largest_row(int(source.query("SELECT @@global.max_allowed_packet")[0][0]))
        start = read_on(
            state.resume.read_to(state.done),
            source.query,
            source.binlog_end,
            partial(self._open_dump, self._scan_server_id),
            mariadb=dump.mariadb,
            by=self._by,
        )
        memo = None
        if self._memo is not None and start.by_file:
            memo = key_memo.read(self._memo)
            if memo is not None and not memo.serves(start.position, open_scan):
                memo = None
        stream = self._stream = TransactionStream(
            source,
            self._replicated,
            mariadb=dump.mariadb,
            position=start.position,
            elsewhere=start.elsewhere,
            base=state.base,
            part_bytes=self._part_bytes,
            row_bytes=self._row_bytes,
            note=self._note,
            left_out=self._leave_out,
            scan=scan,
            finished_before=FinishedBefore(open_scan, source.query, self._stopping.is_set),
            run_at_crash=RunAtCrash(open_scan, source.query, self._stopping.is_set),
            skip=(*self._skip, *self._unfinished),
            temporary=self._temporary,
            memo=memo,
        )
        self._skips_marked = 0
        start.start(dump)
        if start.by_file and memo is None:
            scan.head_start(dump, (start.position.file, start.position.offset), source.binlog_end())
        while True:
            if self._server_now() not in ("", self._server):
                raise ConnectionLost(opening.ANOTHER_SERVER)
            if not dump.ready() and not self._idle(dump, stream):
                continue
            self._take(stream, dump.batch())

    def _take(self, stream: TransactionStream, events: list[bytes | LargeEvent]) -> None:
        """What has arrived. Nothing of it is held here when this returns: it may be large."""
        self._reading = True
        self._last_error = ""
        for item in stream.read(events):
            if type(item) is Rows:
                if item.last and not item.part and item.size <= 2 * self._part_bytes:
                    self._add(item)
                else:
                    self._propose_part(stream, item)
            elif item is None:
                self._flush(stream)
            else:
                self._propose_statement(stream, cast(SchemaChange, item))
            if self._size >= self._batch_bytes or len(self._units) >= BATCH_UNITS:
                self._flush(stream)

    def _keep(self, place: Place, path: Path, source: ServerKeySource) -> None:
        """Puts a transaction that is left out into its file, if it is not there yet."""
        if not path.exists() and not self._stopping.is_set():
            dump = self._dump = self._open_dump(self._server_id)
            write_transaction(dump, place, path, source)
            dump.close()
        if str(path) not in self._kept:
            self._kept.append(str(path))

    def _idle(self, dump: DumpConnection, stream: TransactionStream) -> bool:
        """All that has arrived was read: sends what is held, and a mark when one is due. True: go on and read."""
        if self._units:
            self._flush(stream)
            return dump.ready()
        self._keep_left_out()
        self._look_for_forgotten(stream)
        self._lag = 0.0
        applied = stream.counters.applied_rows
        if applied != self._totals["applied_rows"]:
            self._totals["applied_rows"] = applied
            self._active = True
        # Of a file that was read to its end the server may let go at any time: then it must not be where to go on.
        passed = stream.position.file != self._state.resume.file
        skipped = stream.counters.skipped
        if skipped > self._skips_marked and not stream.inside:
            # The decision to leave it out has had its effect once the log holds a place behind it.
            self._propose(stream, Payload(PayloadKind.MARK, self._flavour, *self._where(stream)))
            return True
        if stream.inside or not (passed or (self._active and stream.base > self._state.base)):
            return True
        due = self._proposed_at + self._mark_seconds - time.monotonic()
        if due > 0:
            return dump.wait(due)
        self._active = False
        self._propose(stream, Payload(PayloadKind.MARK, self._flavour, *self._where(stream)))
        return True

    def _look_for_forgotten(self, stream: TransactionStream) -> None:
        """Asks the server whether it still has the XA transactions that were prepared before it was started."""
        assert self._source is not None
        if stream.doubtful and self._forgotten is None:
            held = prepared(self._source.query, mariadb=self._flavour is Flavour.MARIADB)
            missing = [(xid, each) for xid, each in stream.doubtful.items() if xid not in held]
            stream.doubtful.clear()
            self._forgotten = missing, self._source.binlog_end()
        if self._forgotten is not None and stream.read_up_to(*self._forgotten[1]):
            stream.forget(self._forgotten[0])
            self._forgotten = None

    # Proposing

    def _add(self, rows: Rows) -> None:
        tables = self._tables
        changes = [
            Change(
                tables.setdefault(group.table, len(tables)),
                cast(ChangeKind, group.kind),
                group.layout,
                group.count,
                group.images[0] if len(group.images) == 1 else b"".join(group.images),
            )
            for group in rows.groups
        ]
        wild = [tables.setdefault(table, len(tables)) for table in rows.wild]
        self._units.append(Unit(rows.base, rows.committed_at, rows.keys, changes, wild))
        self._size += rows.size + len(rows.keys) + 64
        self._held_transactions += rows.last
        self._held_rows += changes[0].count if len(changes) == 1 else sum([change.count for change in changes])

    def _flush(self, stream: TransactionStream) -> None:
        units = self._units
        if units:
            self._lag = max(0.0, time.time() - units[-1].committed_at / 1e6)
            payload = Payload(PayloadKind.UNITS, self._flavour, *self._where(stream), list(self._tables), units)
            self._forget_batch()
            self._propose(stream, payload)

    def _forget_batch(self) -> None:
        self._tables, self._units, self._size = {}, [], 0

    def _propose_part(self, stream: TransactionStream, rows: Rows) -> None:
        self._flush(stream)
        self._add(rows)
        tables, (unit,) = list(self._tables), self._units
        self._forget_batch()
        if rows.last and rows.size > self._part_bytes:
            # It may be a large row, of which no piece is the last part.
            self._propose_rows(stream, tables, replace(unit, wild=[]))
            unit = replace(unit, keys=b"", changes=[])
        if rows.last:
            self._propose_one_part(stream, tables, unit, last=True)
        else:
            self._propose_rows(stream, tables, unit)

    def _propose_rows(self, stream: TransactionStream, tables: list[bytes], unit: Unit) -> None:
        """Parts of a unit of which none is the last: one, or the pieces of a large row, which comes by itself."""
        if len(unit.changes) == unit.changes[0].count == 1:
            for piece in cut(unit.changes[0], self._part_bytes):
                keys = b"" if piece.piece else unit.keys
                self._propose_one_part(stream, tables, replace(unit, keys=keys, changes=[piece]), last=False)
        else:
            self._propose_one_part(stream, tables, unit, last=False)

    def _propose_one_part(self, stream: TransactionStream, tables: list[bytes], unit: Unit, *, last: bool) -> None:
        payload = Payload(PayloadKind.PART, self._flavour, *self._where(stream), tables, [unit])
        payload.part, payload.last = self._parts_out, last
        if not last:
            # The position stays before the unit until all of it has left.
            payload.resume, payload.done = self._state.resume, self._state.done
        self._propose(stream, payload, moves=last)
        self._parts_out = 0 if last else self._parts_out + 1

    def _propose_statement(self, stream: TransactionStream, change: SchemaChange) -> None:
        payload = Payload(PayloadKind.DDL, self._flavour, *self._where(stream))
        reading = change.text if change.text.encode("utf-8", "surrogateescape") != change.statement else ""
        context = change.context
        assert self._source is not None
        if self._flavour is Flavour.MYSQL and not change.inside:
            wait_until_done(self._source.query, change.tables)
        is_event = classify(change.text, change.schema).verb.endswith(" EVENT")
        converted: tuple[str, ...] = ()
        if context.get("time_zone") == "SYSTEM" and not is_event:
            # Elsewhere it may be another one. An event keeps the name, which means what it means where the event runs.
            try:
                zone = system_zone(self._source, change)
            except BinlogError as error:
                assert change.place is not None
                raise TransactionStops(f"{change.text[:200]}: {error}", change.place) from None
            context, converted = context | {"time_zone": zone.offset}, zone.converted
        ddl = payload.ddl = Ddl(change.tables, change.statement, change.schema, context, change.committed_at, reading)
        own = gives_each_row_its_own(change.text, change.schema)
        if own or converted:
            why = "it gives each row a value of its own, which differs from site to site"
            if not own:
                why = (
                    f"it may convert {', '.join(converted)} from or to TIMESTAMP, under the time zone SYSTEM, which is "
                    f"not always the same offset from UTC, so its rows have to be carried ({REMEDY})"
                )
            for rows in self._rows_of(change, stream, why, converted):
                self._propose_rows(stream, [rows.table], Unit(stream.base, change.committed_at, b"", rows.changes))
            ddl.parts = self._parts_out
        # Rows of the same transaction follow: the place between is none of the binlog's.
        if not change.inside and self._scan is not None:
            ddl.made = made(
                self._source.query,
                self._source.version(),
                change.tables,
                payload.done,
                self._source.binlog_end,
                self._scan,
                mariadb=self._flavour is Flavour.MARIADB,
            )
        if renamed_nothing(ddl):
            self._note("not replicated: RENAME TABLE of a temporary table")
            return
        self._totals["statements"] += 1
        self._propose(stream, payload)
        self._parts_out = 0

    def _rows_of(
        self, change: SchemaChange, stream: TransactionStream, why: str, converted: Collection[str]
    ) -> Iterator[CarriedRows]:
        """The rows as the statement has left them, before anything of it is in the log."""
        assert change.place is not None
        assert self._source is not None
        where = f"{change.text[:200]}: {why}"
        schema, table = change.tables[0]
        if len(change.tables) != 1 or table is None:
            raise TransactionStops(f"{where}, and of which table cannot be told for sure", change.place)
        reader = RowsOfTable(
            lambda: self._asking(charset="utf8mb4", read_timeout=opening.SURVEY_SECONDS),
            partial(self._open_dump, self._scan_server_id),
            self._source,
            self._part_bytes,
            self._row_bytes,
        )
        try:
            yield from reader.read(schema, table, stream.position.done, converted)
        except BinlogError as error:
            raise TransactionStops(f"{where}: {error}", change.place) from error
        except (SessionLost, StatementError) as error:
            raise ConnectionLost(str(error)) from error

    def _where(self, stream: TransactionStream) -> tuple[int, Position, tuple[str, int]]:
        """Base and positions after what is about to be proposed."""
        at = stream.position
        return stream.base, Position(at.file, at.offset, at.gtids, at.identity, at.passed, at.begun), at.done

    def _propose(self, stream: TransactionStream, payload: Payload, *, moves: bool = True) -> None:
        transactions, rows = self._held_transactions, self._held_rows
        self._held_transactions = self._held_rows = 0
        if moves:
            self._keep_left_out()
        data = payload.encode()
        if len(data) > MAX_PAYLOAD_BYTES:
            raise BinlogError(f"{payload.kind.name} of {len(data)} bytes: an entry takes {MAX_PAYLOAD_BYTES}")
        if self._pending is not None:
            for unit in payload.units:
                self._pending.proposed(self._session, self._sequence, unit.keys)
        self._link.propose(self._session, self._sequence, data)
        self._sequence += 1
        self._totals["transactions"] += transactions
        self._totals["rows"] += rows
        self._totals["payloads"] += 1
        self._totals["bytes"] += len(data)
        self._proposed_at = time.monotonic()
        if payload.kind is not PayloadKind.MARK:
            self._active = True
        if moves:
            self._skips_marked = stream.counters.skipped
            self._state = CaptureState(payload.resume, payload.done, payload.base)

    def _leave_out(self, name: tuple[str, str], rows: int, file: str, offset: int) -> None:
        text = f"rows of {'.'.join(name)}, which had no primary key, were left out"
        if text not in self._notes:
            logger.warning("%s", text)
        self._notes[text] += rows
        if self._left_out is not None:
            self._left_out.add(name, rows, file, offset)

    def _keep_left_out(self) -> None:
        """Before the log holds a position behind them."""
        if self._left_out is not None and self._source is not None:
            self._left_out.write(self._source.query)

    def _note(self, text: str) -> None:
        self._notes[text] += 1

    def _explain(self, error: PositionLost) -> str:
        resume = self._state.resume
        where = f"{resume.file}:{resume.offset}" + (f" (after {resume.gtids})" if resume.gtids else "")
        return (
            f"the server no longer has its binlog from {where} on: {error}. Transactions committed at this site since "
            "then have not been replicated, and cannot be by reading on. Keep what must not be lost (the binlog files "
            "of a backup put back under their names let capture go on), else load this site anew from another one"
        )


def position_now(connection: Connection[Any]) -> Position:
    """The end of the server's binlog, where a new site's capture begins.

    Raises:
        BinlogError: the server writes no binlog, or holds prepared XA transactions, whose rows lie before that place.
    """
    with connection.cursor() as cursor:
        try:
            cursor.execute("SHOW BINARY LOG STATUS")
        except pymysql.err.ProgrammingError:  # MySQL < 8.2, MariaDB < 10.5.2
            cursor.execute("SHOW MASTER STATUS")
        row = cursor.fetchone()
        if row is None:
            raise BinlogError("the server writes no binlog: start it with log_bin")
        file, offset = str(row[0]), int(row[1])
        if len(row) > 4:
            gtids = str(row[4]).replace("\n", "")
        else:
            cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (file, offset))
            gtids = str((cursor.fetchone() or ("",))[0] or "")
        cursor.execute("SELECT VERSION()")
        mariadb = "mariadb" in str(cursor.fetchone()).lower()

        def ask(statement: str) -> Sequence[Sequence[Any]]:
            cursor.execute(statement)
            return list(cursor.fetchall())

        if opened := prepared(ask, mariadb=mariadb):
            raise BinlogError(
                f"{len(opened)} prepared XA transactions are open at the server: finish them (XA RECOVER lists them) "
                "before this site joins"
            )
    return Position(file, offset, gtids)
