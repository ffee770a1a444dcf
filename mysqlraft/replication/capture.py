"""Capture: the site's binlog into payloads, proposed in order (DESIGN 5).

One thread: it reads the dump connection, turns events into units and hands payloads to `Link.propose`, which blocks
while too much is on the way. Small units share a payload while more is waiting to be read, and leave at once when
nothing is: there is no timer between a COMMIT and its proposal. A large unit leaves in parts while it is still read.

The dump connection breaks whenever the server restarts. Capture connects again and reads on from the position of its
last proposal; the parts of a unfinished unit that had left are passed over, since the same binlog is cut in the same
places. Only what cannot be mended by trying again ends `run`: a position that the server no longer has, an event that
cannot be carried.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pymysql
from pymysql.connections import Connection

from mysqlraft.binlog.changes import Rows, SchemaChange
from mysqlraft.binlog.dump import DumpConnection, file_identity
from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost
from mysqlraft.binlog.gtid import DomainPositions
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.position import StreamPosition, file_number
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit

BATCH_BYTES = 256 << 10
BATCH_UNITS = 500
_BACK_OFF = (0.05, 5.0)
"""Seconds before connecting again: the first time, and at most."""


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
        replicated: Callable[[str, str | None], bool],
        position: str = "auto",
        part_bytes: int = 1 << 20,
        mark_seconds: float = 10.0,
        sequence: int = 2,
    ) -> None:
        """``connect``: keyword arguments of ``pymysql.connect``. ``server_id``: of the dump connection, which no server
        and no other replica may have. ``position``: "gtid", "file" or "auto": by GTID where the server has them.
        ``sequence``: of the first payload (1 is the session's OPEN).
        """
        self._connect = {**connect, "autocommit": True}
        self._link = link
        self._state = start
        self._session = session
        self._server_id = server_id
        self._replicated = replicated
        self._by = position
        self._part_bytes = part_bytes
        self._batch_bytes = min(BATCH_BYTES, part_bytes)
        self._mark_seconds = mark_seconds
        self._sequence = sequence
        self._stopping = threading.Event()
        self._dump: DumpConnection | None = None
        self._stream: TransactionStream | None = None
        self._flavour = Flavour.MYSQL
        self._tables: dict[bytes, int] = {}
        self._units: list[Unit] = []
        self._size = 0
        self._held_transactions = self._held_rows = 0
        self._parts_sent = 0
        self._proposed_at = time.monotonic()
        self._active = False
        self._notes: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._reading = False
        self._last_error = ""
        self._lag = 0.0

    # For the owner

    def run(self) -> None:
        """Captures until `stop`.

        Raises:
            PositionLost: the server no longer has the binlog to go on with; the text says what to do.
            BinlogError: the binlog holds what cannot be replicated.
        """
        source = ServerKeySource(lambda: pymysql.connect(**self._connect))
        wait, longest = _BACK_OFF
        try:
            while not self._stopping.is_set():
                proposed = self._sequence
                try:
                    self._read(source)
                except (ConnectionLost, OSError, pymysql.err.OperationalError, pymysql.err.InterfaceError) as error:
                    if self._stopping.is_set():
                        return
                    self._last_error = str(error)
                    self._totals["reconnects"] += 1
                    wait = _BACK_OFF[0] if self._sequence > proposed else min(2 * wait, longest)
                    self._stopping.wait(wait)
                except PositionLost as error:
                    raise PositionLost(self._explain(error)) from None
                finally:
                    self._reading = False
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
        }

    # Reading

    def _read(self, source: ServerKeySource) -> None:
        """One dump connection, from login until it ends."""
        dump = self._dump = DumpConnection(self._connect, self._server_id)
        if self._stopping.is_set():
            return
        self._flavour = Flavour.MARIADB if dump.mariadb else Flavour.MYSQL
        state = self._state
        resume = state.resume
        if self._stream is not None:
            self._stream.close()
        stream = self._stream = TransactionStream(
            source,
            self._replicated,
            mariadb=dump.mariadb,
            position=StreamPosition(resume.file, resume.offset, resume.gtids, state.done, resume.identity),
            base=state.base,
            part_bytes=self._part_bytes,
            note=self._note,
        )
        by_gtid = self._by_gtid(source, dump.mariadb)
        if by_gtid:
            self._verify_gtids(source, dump.mariadb)
        self._verify_file(source, by_gtid)
        if by_gtid:
            dump.start_after(resume.gtids)
        else:
            dump.start_at(resume.file, resume.offset)
        while True:
            if not dump.ready() and not self._idle(dump, stream):
                continue
            events = dump.batch()
            self._reading = True
            self._last_error = ""
            for item in stream.read(events):
                if type(item) is Rows:
                    if item.last and not item.part:
                        self._add(item)
                    else:
                        self._propose_part(stream, item)
                elif item is None:
                    self._flush(stream)
                else:
                    self._propose_statement(stream, cast(SchemaChange, item))
                if self._size >= self._batch_bytes or len(self._units) >= BATCH_UNITS:
                    self._flush(stream)

    def _by_gtid(self, source: ServerKeySource, mariadb: bool) -> bool:
        if self._by == "file" or not self._state.resume.gtids:
            if self._by == "gtid":
                raise BinlogError("capture.position is gtid, but the position to start from has no GTIDs")
            return False
        if mariadb:
            return True
        on = str(source.query("SELECT @@global.gtid_mode")[0][0]) == "ON"
        if self._by == "gtid" and not on:
            raise BinlogError("capture.position is gtid, but the server has gtid_mode OFF")
        return on

    def _verify_gtids(self, source: ServerKeySource, mariadb: bool) -> None:
        """The server must have everything that was captured. If it went back, it gives the GTIDs out again, and what
        has them now would be passed over.
        """
        gtids = self._state.resume.gtids
        if not mariadb:
            if not source.query(f"SELECT GTID_SUBSET('{gtids}', @@global.gtid_executed)")[0][0]:
                raise PositionLost("transactions that were captured are not in its gtid_executed: it has gone back")
            return
        held = DomainPositions(str(source.query("SELECT @@global.gtid_binlog_pos")[0][0])).last
        for domain, (_, number) in DomainPositions(gtids).last.items():
            if domain not in held or held[domain][1] < number:
                raise PositionLost(
                    f"captured up to {number} in GTID domain {domain}, which is after its gtid_binlog_pos: it has gone "
                    "back"
                )

    def _verify_file(self, source: ServerKeySource, by_gtid: bool) -> None:
        """The file of the position must be the one that was read, not another that now has its name and its GTIDs.

        By GTID, another server may have taken the place of this one; it has files of its own. And the file may have
        been purged since, when nothing that is still to be read was in it.
        """
        (file, offset), expected = self._state.done, self._state.resume.identity
        if not expected:
            return
        own = expected.startswith(f"{source.query('SELECT @@global.server_id')[0][0]}-")
        if by_gtid and not own:
            return
        sizes = {str(row[0]): int(row[1]) for row in source.query("SHOW BINARY LOGS")}
        if file not in sizes:
            if by_gtid and all(file_number(name) > file_number(file) for name in sizes):
                return
            raise PositionLost(f"it has no {file}, but earlier files" if by_gtid else f"it has no {file}")
        if sizes[file] < offset:
            raise PositionLost(f"its {file} ends at {sizes[file]}, before that place")
        if file_identity(self._connect, self._server_id, file) != expected:
            raise PositionLost(f"its {file} is another file than the one that was read: its binlog was made anew")

    def _idle(self, dump: DumpConnection, stream: TransactionStream) -> bool:
        """All that has arrived was read: sends what is held, and a mark when one is due. True: go on and read."""
        if self._units:
            self._flush(stream)
            return dump.ready()
        self._lag = 0.0
        applied = stream.counters.applied_rows
        if applied != self._totals["applied_rows"]:
            self._totals["applied_rows"] = applied
            self._active = True
        if not self._active or stream.base <= self._state.base or stream.inside:
            return True
        due = self._proposed_at + self._mark_seconds - time.monotonic()
        if due > 0:
            return dump.wait(due)
        self._active = False
        self._propose(stream, Payload(PayloadKind.MARK, self._flavour, *self._where(stream)))
        return True

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
        self._held_rows += sum(change.count for change in changes)

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
        if rows.part < self._parts_sent and not rows.last:
            return  # it left before the connection broke
        self._add(rows)
        payload = Payload(PayloadKind.PART, self._flavour, *self._where(stream), list(self._tables), self._units)
        payload.part, payload.last = rows.part, rows.last
        self._forget_batch()
        if not rows.last:
            # The position stays before the unit until all of it has left.
            payload.resume, payload.done = self._state.resume, self._state.done
        self._propose(stream, payload, moves=rows.last)
        self._parts_sent = 0 if rows.last else rows.part + 1

    def _propose_statement(self, stream: TransactionStream, change: SchemaChange) -> None:
        payload = Payload(PayloadKind.DDL, self._flavour, *self._where(stream))
        payload.ddl = Ddl(change.tables, change.statement, change.schema, change.context, change.committed_at)
        self._totals["statements"] += 1
        self._propose(stream, payload)

    def _where(self, stream: TransactionStream) -> tuple[int, Position, tuple[str, int]]:
        """Base and positions after what is about to be proposed."""
        at = stream.position
        return stream.base, Position(at.file, at.offset, at.gtids, at.identity), at.done

    def _propose(self, stream: TransactionStream, payload: Payload, *, moves: bool = True) -> None:
        transactions, rows = self._held_transactions, self._held_rows
        self._held_transactions = self._held_rows = 0
        data = payload.encode()
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
            self._state = CaptureState(payload.resume, payload.done, payload.base)

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
        cursor.execute("XA RECOVER")
        if prepared := cursor.fetchall():
            raise BinlogError(
                f"{len(prepared)} prepared XA transactions are open at the server: finish them (XA RECOVER lists them) "
                "before this site joins"
            )
    return Position(file, offset, gtids)
