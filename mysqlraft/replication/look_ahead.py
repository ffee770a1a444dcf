"""A look ahead into the site's binlog: what local transactions wrote after a unit that has to be written again.

Capture cannot say it: after a restart it begins only when apply reaches its OPEN. So apply reads the binlog itself, on
a connection of its own, from the first unit that it has to write again on; and only while that happens, as every
transaction read here is read twice. What is read stays known when the connection ends.

Apply locks the rows that it is about to write, asks the server where its binlog ends, and has `reach` read up to there:
both servers write a transaction to the binlog before they release its locks, so then all is known of these rows. While
it holds locks the application may wait for them, so whatever is there already is read before (`later_than`,
`pending_at`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple

import pymysql
from pymysql.constants import CR

from mysqlraft.binlog.changes import Rows, SchemaChange
from mysqlraft.binlog.collations import Fold
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost
from mysqlraft.binlog.events import EventType
from mysqlraft.binlog.keys import KeyDefinition, KeySource
from mysqlraft.binlog.place import Place as ServerPlace
from mysqlraft.binlog.position import StreamPosition, file_number
from mysqlraft.binlog.rows import RowsError
from mysqlraft.binlog.statements import classify
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.binlog.tablemap import TableMapError, parse
from mysqlraft.mysql import opening
from mysqlraft.mysql.connection import StatementError
from mysqlraft.replication.entry import Payload, Position
from mysqlraft.replication.local_writes import LocalWrites, Place, RowId, UniqueValues, rest_of, secondary_keys
from mysqlraft.replication.tables import LocalTables

log = logging.getLogger(__name__)

IDLE = 20.0
"""Seconds without a unit to be written again, after which the connection is closed."""
SILENCE = 3.0
"""Seconds that the server may send nothing, heartbeats aside, while something is still to come."""
_BEHIND = 1.0
"""Seconds after which what the server has written since is read before locks are taken, not under them."""
_SOON = 0.1
_ROUNDS = 5
"""The server goes on writing while its binlog is read: it is read again until that takes no more than `_SOON` seconds,
but not more often than so."""
MOST_ROWS = 2_000_000
"""Rows that are remembered, about 250 bytes each, and up to 100 for each of their unique values."""
_FORGET_AT = 10_000
"""Rows that are remembered before those that no unit can ask for any more are dropped."""
PATIENCE = 10.0
"""Seconds for which a server that cannot be reached is asked again, before rows are written in full."""
_UNREACHABLE = frozenset((*range(2000, 2100), *opening.NO_ROOM))
"""Errors of a connection that may be had a moment later: those of the client, and too many connections."""
_HEARTBEATS = (EventType.HEARTBEAT, EventType.HEARTBEAT_V2)
_ERRORS = (BinlogError, ConnectionLost, RowsError, TableMapError, pymysql.err.MySQLError, OSError)


class LookAhead:
    """Used by the thread that applies only.

    Invariant: `writes` holds, of every local transaction between where reading began and `_read_to`, all rows. What it
    holds is true even if reading cannot go on: then some of what is later is missing.
    """

    def __init__(
        self,
        open_dump: Callable[[], DumpConnection],
        server_id: Callable[[], int],
        tables: LocalTables,
        replicated: Callable[[str, str | None], bool],
        passed_over: Callable[[], Iterable[ServerPlace]] = tuple,
    ) -> None:
        """``open_dump``: opens a dump connection that no other reader of this server ends. ``server_id``: asks the
        server for its own; it may raise as PyMySQL does. ``passed_over``: the transactions that capture leaves out by
        now, which the log will never hold."""
        self.writes = LocalWrites()
        self._open_dump = open_dump
        self._server_id = server_id
        self._tables = tables
        self._replicated = replicated
        self._passed_over = passed_over
        self._dump: DumpConnection | None = None
        self._stream: TransactionStream | None = None
        self._server = ""
        self._caught_up = 0.0
        """When all that was in the binlog was read last, or could not be."""
        self._position = StreamPosition("", 4, "", ("", 0))
        self._open = LocalWrites()
        self._at: Place = (0, 0)
        self._read_to: Place = (0, 0)
        self._seen = 0
        """How many events have come, heartbeats aside."""
        self._begun: Place | None = None
        self._too_large: Place | None = None
        """Inside a transaction of more rows than are remembered: nothing before it can be followed so far."""
        self._rest: tuple[Payload | None, LocalWrites] = None, LocalWrites()
        """The last payload, and what its units wrote."""
        self._used = 0.0
        self._unreachable_since: float | None = None
        self._wanted: deque[tuple[int, Place]] = deque()
        """Log index and place of the payloads that were asked for and are not in the tables for good."""
        self._forget_at = _FORGET_AT
        self.left_out = 0
        """Rows that were not written, because local transactions wrote them later."""
        self.in_full = 0
        """Rows of own units that were written although what came after them could not be known, or wrote them too."""
        self.problem = ""
        """Why the last `reach` could not read as far as it had to."""

    def later_than(self, index: int, payload: Payload, number: int, contested: Set[int] | None = None) -> Later:
        """What comes after unit `number` of the own payload at log index `index`. Begins to read there, if nothing is
        read yet, and reads what is in the binlog by now, give or take a moment. ``contested``: as in `Certification`.

        Raises:
            pymysql.err.MySQLError, OSError: the server cannot be asked which one it is, or for a table's definition.
        """
        since = self._since(index, payload.resume, payload.done)
        if self._rest[0] is not payload:
            self._rest = payload, rest_of(payload, self._tables)
        return Later(self, since, self._rest[1], number, own=True, contested=contested)

    def pending_at(self, index: int, resume: Position, done: tuple[str, int]) -> Later:
        """What comes after the unit of another site at log index `index`. ``resume``, ``done``: where this site's own
        units that the log holds before it end. Reads as `later_than` does, and raises as it does."""
        return Later(self, self._since(index, resume, done), LocalWrites(), 0, own=False)

    def _since(self, index: int, resume: Position, done: tuple[str, int]) -> _Since | None:
        self._used = time.monotonic()
        if not self._is_here(resume):
            return None
        since = _Since((file_number(done[0]), done[1]), resume, done)
        if not self._wanted or self._wanted[-1][0] < index:
            self._wanted.append((index, since.place))
        if not self._try(since, self._follow):
            self._caught_up = time.monotonic()
        return since

    def reach(self, since: _Since, file: str, offset: int) -> bool:
        """Reads from there up to this end of the server's binlog; whether it could.

        Raises:
            StatementError: the server cannot be reached, but may be a moment later; one that can be tried again.
        """
        end = (file_number(file), offset)
        reached = self._try(since, lambda: self._read_up_to(end))
        if reached:
            self.problem = ""
        elif self._unreachable_since is not None and time.monotonic() - self._unreachable_since < PATIENCE:
            raise StatementError(0, CR.CR_SERVER_LOST, f"looking ahead in the binlog: {self.problem}")
        return reached

    def applied(self, index: int) -> None:
        """What is at and before this log index is in the tables for good."""
        wanted = self._wanted
        while wanted and wanted[0][0] <= index:
            place = wanted.popleft()[1]
            if len(self.writes) > self._forget_at:
                self.writes.forget(place)
                self._forget_at = max(_FORGET_AT, 2 * len(self.writes))

    def rest(self) -> None:
        """Nothing is to be written again now: gives the connection back if that has been so for a while."""
        if time.monotonic() - self._used > IDLE:
            self._unreachable_since = None  # a later outage has its own patience
            if self._begun is not None:
                self.close()

    def disconnect(self) -> None:
        """Ends the connection: another server may have taken the place of the one that was read."""
        self._disconnect()

    def close(self) -> None:
        """Ends the connection, and forgets what was read: the next unit to be written again begins anew."""
        self._disconnect()
        self.writes = LocalWrites()
        self._rest = None, LocalWrites()
        self._begun = self._too_large = None
        self._caught_up = 0.0

    def _is_here(self, position: Position) -> bool:
        """Whether the position is one in this server's binlog."""
        if self._dump is None:
            server = str(self._server_id())
            if server != self._server:
                # Places in the binlog of another server say nothing about this one's.
                self.close()
                self._wanted.clear()
            self._server = server
        if position.identity.partition("-")[0] != self._server:
            self._report("a unit is of another server, whose binlog this one does not have")
            return False
        return True

    def _begin(self, since: _Since) -> None:
        if self._dump is None and not self._is_here(since.resume):
            raise BinlogError(self.problem)
        if self._too_large is not None:
            if since.place < self._too_large:
                raise BinlogError(_too_many_rows())
            self.close()
        if self._begun is None or since.place < self._begun:
            self.close()
        elif self._dump is not None or since.place <= self._read_to:
            return
        # Without a connection nothing is read that lies before what is asked for: the server may not send it any more.
        self._begun = self._read_to = self._at = since.place
        resume = since.resume
        self._position = StreamPosition(resume.file, resume.offset, "", since.done, resume.identity)

    def _try(self, since: _Since, read: Callable[[], None]) -> bool:
        for again in (True, False):
            try:
                self._begin(since)
                read()
                if self._dump is not None:
                    self._unreachable_since = None
                return True
            except _ERRORS as error:
                self._lose(error)
                # The server ends a connection on which nothing was read for a while.
                hopeful = isinstance(error, ConnectionLost | OSError)
                if isinstance(error, PositionLost) and self._begun is not None:
                    # What reading began for is gone from the binlog: what is asked for now may be there.
                    hopeful = since.place > self._begun
                    self._begun = None
                if not (again and hopeful):
                    break
        return False

    def _follow(self) -> None:
        """Reads all that is in the binlog, if that was last done a while ago."""
        rounds = 0 if time.monotonic() - self._caught_up < _BEHIND else _ROUNDS
        for _ in range(rounds):
            began = time.monotonic()
            file, offset = self._tables.source.binlog_end()
            self._read_up_to((file_number(file), offset))
            self._caught_up = time.monotonic()
            if self._caught_up - began < _SOON:
                break

    def _read_up_to(self, end: Place) -> None:
        silent_since = time.monotonic()
        while self._read_to < end:
            seen = self._seen
            if not self._read(max(0.0, silent_since + SILENCE - time.monotonic())):
                raise ConnectionLost(f"the server sent nothing of its binlog for {SILENCE:g} s")
            if self._seen != seen:
                silent_since = time.monotonic()

    def _read(self, seconds: float) -> bool:
        """Reads what arrives within so many seconds; False: nothing did."""
        if len(self.writes) > MOST_ROWS:
            raise BinlogError(_too_many_rows())
        if self._dump is None:
            self._connect()
        dump, stream = self._dump, self._stream
        assert dump is not None
        assert stream is not None
        if not dump.wait(seconds):
            return False
        for item in stream.read(self._counted(stream, dump.batch())):
            if isinstance(item, Rows):
                self._take(item)
            elif item is not None:
                self._statement(item)
        self._position = stream.position
        return True

    def _counted(self, stream: TransactionStream, events: Iterable[bytes | LargeEvent]) -> Iterator[bytes | LargeEvent]:
        for event in events:
            header = event.header if isinstance(event, LargeEvent) else event
            self._seen += header[4] not in _HEARTBEATS
            end = stream.end_of(header)
            if end is not None:
                self._at = file_number(end[0]), end[1]
            yield event
            self._read_to = max(self._read_to, self._at)

    def _take(self, rows: Rows) -> None:
        if not rows.part:
            # Parts that were left behind here belong to a transaction that never ended.
            self._open = LocalWrites()
        for group in rows.groups:
            keys = secondary_keys(self._tables, group.table)
            for images in group.images:
                self._open.add(self._at, parse(group.table), group.kind, group.layout, images, keys)
        if not rows.last and len(self._open) > MOST_ROWS:
            self._too_large = self._at
            raise BinlogError(_too_many_rows())
        if rows.last:
            self.writes.update(self._open)
            self._open = LocalWrites()

    def _statement(self, change: SchemaChange) -> None:
        what = classify(change.text, change.schema)
        if what.verb.startswith("TRUNCATE") and len(what.objects) == 1:
            schema, table = what.objects[0]
            if table is not None:
                self.writes.empty(self._at, schema, table)

    def _connect(self) -> None:
        self._dump = self._open_dump()
        self._stream = TransactionStream(
            _Keys(self._tables.source),
            self._replicated,
            mariadb=self._dump.mariadb,
            position=self._position,
            skip=self._passed_over(),
            finished_before=lambda xid, file: b"XA",  # capture says if that is not so
        )
        self._open = LocalWrites()
        # What was read beyond it comes again: until it is all known anew, the last write of a row may not be.
        file, offset = self._position.done
        self._read_to = self._at = file_number(file), offset
        self._dump.start_at(self._position.file, self._position.offset)

    def _disconnect(self) -> None:
        dump, stream = self._dump, self._stream
        self._dump = self._stream = None
        if stream is not None:
            stream.close()
        if dump is not None:
            dump.close()

    def _lose(self, error: Exception) -> None:
        self._disconnect()
        if not _may_pass(error):
            self._unreachable_since = None
        elif self._unreachable_since is None:
            self._unreachable_since = time.monotonic()
        self._report(str(error))

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("the look ahead into the binlog cannot go on: %s", problem)
        self.problem = problem


def _may_pass(error: Exception) -> bool:
    """Whether the connection may be had a moment later."""
    if isinstance(error, pymysql.err.MySQLError):
        return bool(error.args) and error.args[0] in _UNREACHABLE
    return isinstance(error, ConnectionLost | OSError)


def _too_many_rows() -> str:
    return f"more than {MOST_ROWS:,} rows were written at this site and are not in the log yet"


class _Since(NamedTuple):
    """After what local transactions are later, and how to read on from there: as in `Payload`."""

    place: Place
    resume: Position
    done: tuple[str, int]


class Later:
    """What local transactions that come after one unit in the log wrote: those that share its payload, if it is this
    site's ``own``, and those that the look ahead has read. What was read never becomes untrue."""

    def __init__(
        self,
        ahead: LookAhead,
        since: _Since | None,
        rest: LocalWrites,
        number: int,
        *,
        own: bool,
        contested: Set[int] | None = None,
    ) -> None:
        self.ahead = ahead
        self.own = own
        # Of a unit of another server the rows may not be here.
        self._contested = None if since is None or contested is None else set(contested)
        self._since = since
        self._rest, self._number = rest, (0, number)

    def reach(self, file: str, offset: int) -> bool:
        """Reads up to this end of the server's binlog; whether it could."""
        return self._since is not None and self.ahead.reach(self._since, file, offset)

    def wrote(self, row: RowId) -> bool:
        """Whether one of them wrote the row."""
        known = self._since is not None and self.ahead.writes.written_after(row, self._since.place)
        return known or self._rest.written_after(row, self._number)

    def is_undisturbed(self, keys: Set[int]) -> bool:
        """Whether the unit's next row, with these keys, is as the unit has left it, or as later ones have. Ask for each
        row in turn: what is written again may meet the rows that follow."""
        contested = self._contested
        if contested is None:
            return False
        if contested.isdisjoint(keys):
            return True
        contested |= keys
        return False

    def columns(self, row: RowId) -> int:
        """How many columns the last image of the row has; 0 if there is none."""
        here = self._rest.columns_after(row, self._number)
        return here if self._since is None else max(here, self.ahead.writes.columns_after(row, self._since.place))

    def narrower(self, schema: str, table: str, columns: int) -> bool:
        """Whether one of them wrote rows of fewer columns to the table."""
        known = self._since is not None and self.ahead.writes.narrower_after(schema, table, columns, self._since.place)
        return known or self._rest.narrower_after(schema, table, columns, self._number)

    def unique_values(self, row: RowId) -> UniqueValues | None:
        """Those of the last image that they gave the row; None if they gave it none, or that is not known."""
        if self._since is not None and self.ahead.writes.written_after(row, self._since.place):
            return self.ahead.writes.unique_values_after(row, self._since.place)
        return self._rest.unique_values_after(row, self._number)


class _Keys:
    """A `KeySource` for a stream whose row keys nobody looks at."""

    def __init__(self, source: KeySource) -> None:
        self._source = source

    def unique_keys(self, schema: str, table: str) -> list[KeyDefinition] | None:
        return []

    def columns(self, schema: str, table: str) -> list[str] | None:
        return self._source.columns(schema, table)

    def generated_columns(self, schema: str, table: str) -> frozenset[str]:
        return self._source.generated_columns(schema, table)

    def binlog_end(self) -> tuple[str, int]:
        return "", 0

    def fold(self, collation: int) -> Fold:
        return self._source.fold(collation)

    def text(self, statement: bytes, collation: int) -> str:
        return self._source.text(statement, collation)

    def characters(self, statement: bytes, collation: int) -> list[bytes]:
        return self._source.characters(statement, collation)

    def writes_only(self, schema: str, table: str, calls: Sequence[str]) -> bool:
        return self._source.writes_only(schema, table, calls)
