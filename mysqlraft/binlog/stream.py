"""Events into transactions.

Theory of operation
-------------------

A binlog is a sequence of groups: a GTID event, then either one statement that changes the schema, or BEGIN, table maps
with rows events, and an XID (COMMIT). `TransactionStream.read` takes events in order and yields (changes.py)

    `Rows`          a local transaction, or one part of it if it is large: parts leave while the rest is still coming
    `SchemaChange`  a statement to be run at the other sites, and None before it

and nothing for everything else, which only moves `position`:

- Applied transactions, those whose first rows event is on `PROGRESS`: they move ``base``. Their other events are passed
  over by type alone.
- Transactions on tables that are not replicated; statements that change no schema (noted).
- Everything up to ``done``, when reading begins before it.
- Transactions that somebody has decided to leave out.

XA transactions are held, on disk when large, from XA PREPARE until XA COMMIT. While one is open, ``position.resume``
stays before it: a restart reads it again. What a server may forget of them in a crash is in xa.py.

MySQL logs CREATE TABLE ... SELECT as one transaction: the statement, then the rows. Its `SchemaChange` comes with a
position one byte into the transaction, so that a restart between the two goes on with the rows.

An event of unknown type is an error unless its header says that it may be ignored.

The stream itself knows groups: how they begin and end, whose they are, and what is prepared. What it keeps of a group
is in open_transaction.py, of tables in mapped_tables.py, of its place in position.py; what a statement is to become at
the other sites is in schema_change.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.changes import Item, RowGroup, Rows
from mysqlraft.binlog.compression import payload_events, unpack
from mysqlraft.binlog.dump import LargeEvent
from mysqlraft.binlog.errors import BinlogError, BinlogIncomplete, PositionLost
from mysqlraft.binlog.events import (
    APPLY_THREAD_ID,
    HEADER,
    IGNORABLE,
    MARIADB_GTID_FIELDS,
    RECOVERY_THREAD_ID,
    EventType,
    Query,
    gtid_of,
    is_begin,
    load_query,
    query,
    tagged_gtid,
)
from mysqlraft.binlog.key_memo import KeyMemo
from mysqlraft.binlog.keys import KeySource, Slicer
from mysqlraft.binlog.large_row import LargeRowCutter
from mysqlraft.binlog.mapped_tables import MappedTable, MappedTables
from mysqlraft.binlog.open_transaction import OpenTransaction
from mysqlraft.binlog.own_schema import NEVER, PROGRESS, read_applied
from mysqlraft.binlog.place import Place, TransactionStops, UnfinishedUnit, gtid_text
from mysqlraft.binlog.position import Cursor, StreamPosition, file_number
from mysqlraft.binlog.rows import RowKind, split
from mysqlraft.binlog.schema_change import schema_change
from mysqlraft.binlog.spool import Spool
from mysqlraft.binlog.statement_scan import StatementScan
from mysqlraft.binlog.statement_text import text_of
from mysqlraft.binlog.statements import Statement, StatementKind, classify
from mysqlraft.binlog.temporary_tables import TemporaryTables
from mysqlraft.binlog.xa import ROLLBACK, Xid, is_commit, xid_of

PART_BYTES = 1 << 20
UNLIMITED = 1 << 62

_IDLE, _OPEN, _PASS = 0, 1, 2

_E = EventType
# Plain integers: looking up members of an enumeration costs more than the rest of the loop that compares them.
_TABLE_MAP, _XID, _GTID, _MARIADB_GTID, _QUERY = (
    int(kind) for kind in (_E.TABLE_MAP, _E.XID, _E.GTID, _E.MARIADB_GTID, _E.QUERY)
)
# The rows events of both servers: type -> (kind, whether it has an extra-data field, whether it is compressed).
ROWS_EVENTS: dict[int, tuple[RowKind, bool, bool]] = {
    _E.WRITE_ROWS: (RowKind.WRITE, True, False),
    _E.UPDATE_ROWS: (RowKind.UPDATE, True, False),
    _E.DELETE_ROWS: (RowKind.DELETE, True, False),
    _E.WRITE_ROWS_V1: (RowKind.WRITE, False, False),
    _E.UPDATE_ROWS_V1: (RowKind.UPDATE, False, False),
    _E.DELETE_ROWS_V1: (RowKind.DELETE, False, False),
    _E.MARIADB_WRITE_ROWS_COMPRESSED_V1: (RowKind.WRITE, False, True),
    _E.MARIADB_UPDATE_ROWS_COMPRESSED_V1: (RowKind.UPDATE, False, True),
    _E.MARIADB_DELETE_ROWS_COMPRESSED_V1: (RowKind.DELETE, False, True),
    _E.MARIADB_WRITE_ROWS_COMPRESSED: (RowKind.WRITE, True, True),
    _E.MARIADB_UPDATE_ROWS_COMPRESSED: (RowKind.UPDATE, True, True),
    _E.MARIADB_DELETE_ROWS_COMPRESSED: (RowKind.DELETE, True, True),
}
_NOTHING = frozenset(
    (
        _E.STOP,
        _E.HEARTBEAT,
        _E.HEARTBEAT_V2,
        _E.PREVIOUS_GTIDS,
        _E.IGNORABLE,
        _E.ROWS_QUERY,
        _E.TRANSACTION_CONTEXT,
        _E.VIEW_CHANGE,
        _E.INTVAR,
        _E.RAND,
        _E.USER_VAR,
        _E.BEGIN_LOAD_QUERY,
        _E.MARIADB_ANNOTATE_ROWS,
        _E.MARIADB_BINLOG_CHECKPOINT,
        _E.MARIADB_GTID_LIST,
        _E.MARIADB_START_ENCRYPTION,
    )
)

_NAMES, _NAMES_WITH_ACCENTS = 33, 579
"""The number of utf8mb3_general_ci, by which both kinds of server compare the names of savepoints; but MariaDB by
utf8mb3_general1400_as_ci, as soon as it has that (11.5)."""
_STANDALONE, _GROUP_COMMIT, _PREPARED, _COMPLETED = 1, 2, 64, 128
_START_ALTER, _ROLLBACK_ALTER = 2, 8

_CREATED = 52
"""In FORMAT_DESCRIPTION: when the server was started that began the file; 0 if it only went on to it."""


@dataclass(slots=True)
class Counters:
    """What went by since the stream began; ``applied_rows`` counts rows events of applied transactions."""

    transactions: int = 0
    applied: int = 0
    applied_rows: int = 0
    rows: int = 0
    statements: int = 0
    passed: int = 0
    skipped: int = 0


@dataclass(slots=True)
class Prepared:
    """An XA transaction between PREPARE and COMMIT. ``before``: the position before it."""

    before: StreamPosition
    spool: Spool


class TransactionStream:
    """See the head of this module. Not for use by several threads."""

    def __init__(
        self,
        source: KeySource,
        replicated: Callable[[str, str | None], bool],
        *,
        mariadb: bool,
        position: StreamPosition,
        base: int | None = None,
        part_bytes: int = PART_BYTES,
        row_bytes: int = UNLIMITED,
        note: Callable[[str], None] = lambda text: None,
        left_out: Callable[[tuple[str, str], int, str, int], None] = lambda name, rows, file, offset: None,
        scan: StatementScan | None = None,
        finished_before: Callable[[Xid, str], bytes] = lambda xid, file: b"",
        run_at_crash: Callable[[bytes, Statement, str, int], bool] = lambda statement, what, file, offset: False,
        skip: Iterable[Place] = (),
        elsewhere: tuple[str, int] | None = None,
        never: Collection[str] = NEVER,
        temporary: TemporaryTables | None = None,
        memo: KeyMemo | None = None,
    ) -> None:
        """``position``: where reading begins; what lies before its ``done`` is passed over. ``left_out``
        hears of rows without a primary key: the table, how many of one event, and where that ends. ``skip``:
        transactions of which nothing is read, whatever is in them. ``elsewhere``: as `Cursor` has it. ``never``:
        schemas whose rows are not read, whatever ``replicated`` says. ``row_bytes``: a row that travels has at most so
        many.

        ``temporary``: what a stream before this one knew of sessions that go on.

        ``base`` is the base at ``done``; None: not known, and of no matter. ``scan``: of the statements ahead; without,
        row keys are taken to be those of today. ``finished_before``: as `FinishedBefore`; without, nothing was finished
        before. ``run_at_crash``: as `RunAtCrash`; without, apply ran nothing then. ``note`` hears of each statement
        that is not replicated. ``memo``: of the stream before, one that serves this position.
        """
        self.base = base or 0
        self._is_based = base is not None
        self.counters = Counters()
        self.committed_at = 0
        self._replicated = replicated
        self._note = note
        self._left_out = left_out
        self._mariadb = mariadb
        self._source = source
        self._part_bytes = part_bytes
        self._large_rows = LargeRowCutter(part_bytes, row_bytes)
        self._large_from = min(part_bytes, row_bytes)
        self._temporary = TemporaryTables() if temporary is None else temporary
        self._skip = {(place.identity, place.file, place.offset) for place in skip}
        self._cursor = Cursor(position, mariadb=mariadb, elsewhere=elsewhere)
        self._tables = MappedTables(source, replicated, scan, never, memo)
        self._numbered: dict[bytes, MappedTable] = {}
        """By the number that this group's table maps give each."""
        self._transaction = OpenTransaction()
        self._prepared: dict[Xid, Prepared] = {}
        self.doubtful: dict[Xid, Prepared] = {}
        """Those of them that were prepared before the server was started last: it may have forgotten them."""
        self._finished_before = finished_before
        self._run_at_crash = run_at_crash
        self._outer_end = 0
        """Inside a compressed transaction: where its one event ends."""
        self._group = b""
        self._left: Place | None = None
        """A transaction that was open when its file ended: the server never finished it."""
        self._first = True
        self._reset()

    def _reset(self) -> None:
        """Between two groups."""
        self._mode = _IDLE
        self._gtid: tuple[Any, ...] | None = None
        self._passing = False
        self._skipping = False
        self._applied: int | None = None
        self._applied_before: int | None = None
        self._spool: Spool | None = None
        self._xid: Xid | None = None
        self._alter = 0

    @property
    def inside(self) -> bool:
        """Whether a transaction has begun and not ended: a place where a connection must not be resumed."""
        return self._mode != _IDLE or self._gtid is not None

    @property
    def position(self) -> StreamPosition:
        """After the last complete transaction."""
        if not self._prepared:
            return self._cursor.position
        before = next(iter(self._prepared.values())).before
        return self._cursor.resuming(before.file, before.offset, before.gtids)

    @property
    def memo(self) -> KeyMemo | None:
        """For the stream after this one; None if there is nothing to be said, or the file's identity is not known.

        Statements that the server does not send, because they were read at another one, lie before its binlog's end of
        when reading began: the look ahead, which is by file, has seen them.
        """
        file, offset = self._cursor.at
        identity = self._cursor.identity_of(file)
        known = self._tables.known((file_number(file), offset))
        return KeyMemo(file, offset, identity, known) if identity and known else None

    def end_of(self, event: bytes) -> tuple[str, int] | None:
        """File and offset where an event ends that is about to be read; None for one that the dump itself made, or
        whose place the server does not say (`Cursor.end`)."""
        if event[13:17] == b"\0\0\0\0":
            return None
        return self._cursor.file, self._cursor.end(event)

    def read_up_to(self, file: str, offset: int) -> bool:
        """Whether all transactions before this place have been read."""
        at = self._cursor.at
        return (file_number(at[0]), at[1]) >= (file_number(file), offset)

    def forget(self, forgotten: Iterable[tuple[Xid, Prepared]]) -> None:
        """Drops those of them that are still open: the server has no such transactions."""
        for xid, prepared in forgotten:
            if self._prepared.get(xid) is prepared:
                self._note("an XA transaction that the server forgot, because it crashed, was dropped")
                self._close_prepared(xid)

    def _close_prepared(self, xid: Xid) -> None:
        self.doubtful.pop(xid, None)
        if (prepared := self._prepared.pop(xid, None)) is not None:
            prepared.spool.close()

    def close(self) -> None:
        """Gives back what is held on disk."""
        for prepared in self._prepared.values():
            prepared.spool.close()
        if self._spool is not None:
            self._spool.close()

    # The loop

    def read(self, events: Iterable[bytes | LargeEvent]) -> Iterator[Item]:
        """Takes events in the order of the binlog. Read it to its end: it works as far as it is read.

        Raises:
            TransactionStops: a transaction that cannot be carried on with.
            BinlogError: the same of what is no part of one.
        """
        try:
            yield from self._read(events)
        except (ValueError, LookupError, struct.error) as error:
            file, offset = self._cursor.at
            where = f"{self._cursor.file}, after {file}:{offset}"
            raise self._stop(f"an event in {where} is garbled or cut short: {error}") from error
        except (BinlogIncomplete, TransactionStops):
            raise
        except BinlogError as error:
            raise self._stop(str(error)) from error

    def _stop(self, why: str) -> BinlogError:
        return TransactionStops(why, self._place()) if self.inside else BinlogError(why)

    def _place(self) -> Place:
        """Of the transaction that is being read."""
        file, start = self._begins()
        return Place(file, start, self._cursor.identity_of(file), gtid_text(self._gtid))

    def _read(self, events: Iterable[bytes | LargeEvent]) -> Iterator[Item]:
        rows_events, by_map, numbered, transaction = ROWS_EVENTS, self._tables.by_map, self._numbered, self._transaction
        for event in events:
            if isinstance(event, LargeEvent):
                yield from self._payload(event.header, event.chunks())
                continue
            kind = event[4]
            if kind == _TABLE_MAP:
                if self._mode == _OPEN:
                    key = event[HEADER:]
                    numbered[key[:6]] = by_map.get(key) or self._tables.add(key, self._begins())
            elif kind in rows_events:
                if self._mode == _OPEN:
                    large = self._take_rows(event, *rows_events[kind])
                    if large is not None:
                        yield from self._take_large(*large)
                    elif transaction.held >= self._part_bytes and (part := self._take_part()) is not None:
                        yield part
                elif self._mode == _PASS:
                    self.counters.applied_rows += 1
            elif kind == _XID:
                if self._mode == _OPEN and transaction.groups and self._spool is None:
                    self.counters.transactions += 1
                    cursor = self._cursor
                    end = cursor.file, self._outer_end or cursor.end(event)
                    rows = transaction.take(self.base, self.committed_at, end)
                    cursor.advance(end, self._gtid)
                    self._reset()
                    yield rows
                else:
                    yield from self._commit(event)
            elif kind == _GTID:
                self._mysql_gtid(event, kind)
            elif kind == _MARIADB_GTID:
                self._mariadb_gtid(event)
            elif kind == _QUERY and is_begin(event):
                self._begin(None)
            else:
                yield from self._other(event, kind)

    def _other(self, event: bytes, kind: int) -> Iterator[Item]:
        if kind in (_E.ANONYMOUS_GTID, _E.GTID_TAGGED):
            self._mysql_gtid(event, kind)
        elif kind in (_E.QUERY, _E.MARIADB_QUERY_COMPRESSED):
            yield from self._query(event, kind)
        elif kind == _E.ROTATE:
            if self.inside:
                self._left = self._place()
            self._cursor.rotate(event)
        elif kind in _NOTHING:
            pass
        elif kind == _E.FORMAT_DESCRIPTION:
            self._format(event)
        elif kind == _E.XA_PREPARE:
            yield from self._prepare(event)
        elif kind == _E.TRANSACTION_PAYLOAD:
            yield from self._payload(event[:HEADER], iter((event[HEADER:],)))
        elif kind == _E.PARTIAL_UPDATE_ROWS:
            self._partial_update(event)
        elif kind == _E.EXECUTE_LOAD_QUERY:
            if self._mode == _OPEN:
                found = load_query(event[HEADER:])
                yield from self._statement(event, found, found.statement, inside=True)
        elif kind == _E.INCIDENT:
            raise BinlogIncomplete(
                "the server logged an incident: its binlog does not hold every change. This site must be loaded anew"
            )
        elif int.from_bytes(event[17:19], "little") & IGNORABLE:
            self._note(f"an event of unknown type {kind}, marked ignorable, was passed over")
        else:
            raise BinlogError(f"the binlog holds an event of type {kind}, which this mysqlraft does not know")

    # Groups begin

    def _begin_group(self, event: bytes) -> None:
        if self._mode or self._gtid is not None:
            file, offset = self._cursor.at
            raise BinlogIncomplete(f"a transaction begins inside another, after {file}:{offset}")
        self._group = event

    def _name_group(self, event: bytes, gtid: tuple[Any, ...]) -> None:
        """Its GTID is known, and with that whether it is to be passed over."""
        self._gtid = gtid
        if self._cursor.looks_back:
            self._passing = self._cursor.begin(self._cursor.start(event), gtid)
        if self._skip:
            file = self._cursor.file
            self._skipping = (self._cursor.identity_of(file), file, self._cursor.start(event)) in self._skip
            self._passing = self._passing or self._skipping

    def _mysql_gtid(self, event: bytes, kind: int) -> None:
        self._begin_group(event)
        if len(event) < 68 and kind != _E.GTID_TAGGED:
            raise BinlogError("a GTID event is cut short")
        self._name_group(event, gtid_of(event) or ())
        if kind == _E.GTID_TAGGED:
            self.committed_at = tagged_gtid(event[HEADER:])[3]
            return
        stamp = int.from_bytes(event[61:68], "little")
        if stamp >> 55:
            # The transaction came from elsewhere: the time of its first commit follows.
            stamp = int.from_bytes(event[68:75], "little")
        self.committed_at = stamp

    def _mariadb_gtid(self, event: bytes) -> None:
        self._begin_group(event)
        seconds, server_id, number, domain, flags = MARIADB_GTID_FIELDS.unpack_from(event)
        self._name_group(event, (domain, server_id, number))
        self.committed_at = seconds * 1_000_000
        at = HEADER + (21 if flags & _GROUP_COMMIT else 13)
        if flags & (_PREPARED | _COMPLETED):
            gtrid, bqual = event[at + 4], event[at + 5]
            data = event[at + 6 : at + 6 + gtrid + bqual]
            if flags & _PREPARED:
                self._begin((int.from_bytes(event[at : at + 4], "little"), data[:gtrid], data[gtrid:]))
            return
        if len(event) > at:
            self._alter = event[at]
        if not flags & _STANDALONE:
            self._begin(None)

    def _begin(self, xid: Xid | None) -> None:
        self._mode = _PASS if self._skipping or (self._passing and xid is None) else _OPEN
        self._first = True
        self._numbered.clear()
        if xid is not None:
            self._xid = xid
            self._spool = Spool(self._part_bytes)

    # Rows

    def _take_rows(
        self, event: bytes, kind: RowKind, extra: bool, compressed: bool
    ) -> tuple[MappedTable, RowKind, bytes, bytes, int, Slicer] | None:
        """Takes over the rows of one event, unless they are so many that they must leave in several parts."""
        table = self._numbered.get(event[HEADER : HEADER + 6])
        if table is None:
            raise BinlogError("rows of a table without a table map before them")
        if self._first:
            self._first = False
            if table.name == PROGRESS:
                size = table.layout_bytes[kind == RowKind.UPDATE]
                self._applied_before, self._applied = read_applied(table.parsed, size, event, kind, extra, compressed)
                self._mode = _PASS
                return None
        if table.keys is None:
            if table.keyless:
                self._leave_out(table, event, kind, extra, compressed)
            return None
        start = HEADER + 8 + (event[HEADER + 8] | event[HEADER + 9] << 8 if extra else 0)
        middle = start + table.layout_bytes[kind == 1]
        layout = event[start:middle]
        # What is large is cut where it is, not copied first.
        plain = not compressed and table.hidden is None
        large = plain and len(event) - middle > self._large_from
        images, at = (event, middle) if large else (event[middle:], 0)
        if compressed:
            images = unpack(images)
        if table.hidden is not None:
            layout, images = table.hidden.cut(kind, layout, images)
        slicer = table.slicers[kind].get(layout) or self._tables.slicer(table, kind, layout)
        if len(images) - at > self._large_from:
            return table, kind, layout, images, at, slicer
        self.counters.rows += self._transaction.add(table, kind, layout, images, slicer)
        return None

    def _leave_out(self, table: MappedTable, event: bytes, kind: RowKind, extra: bool, compressed: bool) -> None:
        """Rows that no other site could find again: counted, and that is all."""
        start = HEADER + 8 + (int.from_bytes(event[HEADER + 8 : HEADER + 10], "little") if extra else 0)
        middle = start + table.layout_bytes[kind == 1]
        images = unpack(event[middle:]) if compressed else event[middle:]
        count = sum(1 for _ in split(table.parsed, kind, event[start:middle], images))
        if self.end_of(event) is None:
            self._cursor.end(self._group)  # the nearest place that is known
        self._left_out(table.name, count, self._cursor.file, self._outer_end or self._cursor.end(event))

    def _partial_update(self, event: bytes) -> None:
        """An update that has only what changed of a JSON value, of a table that may not be replicated."""
        table = self._numbered.get(event[HEADER : HEADER + 6])
        self._first = False
        if self._mode == _OPEN and (table is None or table.keys is not None):
            where = "" if table is None else f"{'.'.join(table.name)}: "
            raise BinlogError(
                f"{where}an update carries part of a JSON value only. For updates to come, SET PERSIST "
                "binlog_row_value_options = '', and let every session connect again. This one cannot be replicated, "
                "as the binlog has no more of it: leave its transaction out (mysqlraft skip --captured), then delete "
                "the rows that it changed and insert them again here, in one transaction, so that the other sites get "
                "them whole"
            )

    def _take_large(
        self, table: MappedTable, kind: RowKind, layout: bytes, images: bytes, at: int, slicer: Slicer
    ) -> Iterator[Rows]:
        transaction = self._transaction
        for rows in self._large_rows.cut(table, kind, layout, images, at):
            if rows.large and transaction.groups and (part := self._take_part()) is not None:
                yield part
            self.counters.rows += transaction.add_cut(table, kind, rows, images, slicer)
            if (rows.large or transaction.held >= self._part_bytes) and (part := self._take_part()) is not None:
                yield part

    def _take_part(self) -> Rows | None:
        """What is held of the open transaction; None if it was put by, because XA COMMIT has yet to come, or ROLLBACK
        TO may."""
        if self._spool is None:
            if not self._transaction.may_go_back:
                return self._transaction.take(self.base, self.committed_at)
            self._spool = Spool(self._part_bytes)
        self._transaction.put_by(self._spool, self._cursor.at)
        return None

    # Groups end

    def _commit(self, event: bytes) -> Iterator[Rows]:
        spool = self._spool
        if spool is not None and spool.records:
            if self._transaction.groups:
                self._transaction.put_by(spool, self._cursor.at)
            yield from self._release(event, spool, first=self._transaction.parts)
            return
        if spool is not None:
            spool.close()
        rows = None
        if self._mode == _OPEN:
            if self._transaction.groups or self._transaction.parts:
                self.counters.transactions += 1
                end = self._cursor.file, self._outer_end or self._cursor.end(event)
                rows = self._transaction.take(self.base, self.committed_at, end)
            else:
                self.counters.passed += 1
        elif self._applied is not None:
            self.counters.applied += 1
            if not self._passing:
                self._look_for_gap()
                self.base = self._applied
        self._end_group(event)
        if rows is not None:
            yield rows

    def _look_for_gap(self) -> None:
        """An applied transaction begins where the one before has ended: else the server wrote what is in no file that
        it has now, and perhaps local transactions with it."""
        before = self._applied_before
        if self._is_based and before is not None and before > self.base:
            file, offset = self._cursor.at
            raise PositionLost(
                f"behind {file}:{offset} it goes on with log index {before + 1}, where {self.base} was the last. What "
                "the server wrote in between is not in this binlog (skip_log_bin, another log_bin, a file removed)"
            )

    def _end_group(self, event: bytes) -> None:
        cursor = self._cursor
        cursor.advance((cursor.file, self._outer_end or cursor.end(event)), self._gtid)
        self._transaction.clear()
        self.counters.skipped += self._skipping
        self._reset()

    def _payload(self, header: bytes, chunks: Iterator[bytes]) -> Iterator[Item]:
        """A compressed transaction: all of it, from BEGIN to XID, in one event."""
        self._outer_end = self._cursor.end(header)
        try:
            for event in payload_events(chunks):
                yield from self._read((event,))
                if self._mode == _PASS:
                    break
            for _ in chunks:
                pass
            if self._mode == _PASS:
                yield from self._commit(header)
            elif self.inside:
                raise BinlogError("a compressed transaction ends before its COMMIT")
        finally:
            self._outer_end = 0

    def _rollback(self, event: bytes) -> None:
        if self._transaction.parts:
            raise UnfinishedUnit("the binlog rolls back", self._place())
        if self._mode == _OPEN and self._transaction.groups:
            self._note("a transaction that ends with ROLLBACK is in the binlog: it was not replicated")
        if self._spool is not None:
            self._spool.close()
        self._end_group(event)

    # XA

    def _prepare(self, event: bytes) -> Iterator[Rows]:
        """XA PREPARE, or XA COMMIT ... ONE PHASE."""
        body = event[HEADER:]
        if len(body) < 13:
            raise BinlogError("an XA PREPARE event is cut short")
        spool, xid = self._spool, self._xid
        if spool is None or xid is None:
            yield from self._commit(event)
            return
        if self._transaction.groups:
            self._transaction.put_by(spool, self._cursor.at)
        self._spool = None
        if not body[0]:
            # One with the same name was forgotten by the server. Those that are open are in their order.
            self._close_prepared(xid)
            self._prepared[xid] = Prepared(self._cursor.position, spool)
            self._end_group(event)
        elif self._passing:
            spool.close()
            self._end_group(event)
        else:
            yield from self._release(event, spool)

    def _finish_prepared(self, event: bytes, statement: bytes) -> Iterator[Rows]:
        """XA COMMIT or XA ROLLBACK of what was prepared."""
        xid = xid_of(statement)
        prepared = self._prepared.get(xid)
        if prepared is None:
            if not self._passing:
                self._finished_again(statement, xid)
            self._end_group(event)
        elif self._passing or not is_commit(statement):
            self._close_prepared(xid)
            self._end_group(event)
        else:
            yield from self._release(event, prepared.spool, xid)

    def _finished_again(self, statement: bytes, xid: Xid) -> None:
        """XA COMMIT or XA ROLLBACK of what is not prepared: the server may have forgotten that it was finished.

        Raises:
            BinlogError: that is not so.
        """
        before, shown = self._finished_before(xid, self._cursor.file), statement.decode("latin-1")
        if statement.startswith(before or b"?"):
            self._note("an XA transaction was finished a second time, because the server crashed and forgot the first")
        elif before:
            only = "here only" if before == ROLLBACK else "at the other sites only"
            raise BinlogError(
                f"{shown}: before the server crashed, and forgot it, it had logged {before.decode()} of the same, so "
                f"its rows are {only}: make the sites equal once it is left out"
            )
        else:
            raise BinlogError(
                f"{shown}: the binlog does not hold its rows. It was prepared before capture began at this site, or "
                "the server crashed during its XA COMMIT ... ONE PHASE. Leave it out, and see that the rows that it "
                "wrote are the same at all sites"
            )

    def _release(self, event: bytes, spool: Spool, xid: Xid | None = None, first: int = 0) -> Iterator[Rows]:
        """The rows that were put by; ``first``: how many parts of the transaction have left before."""
        base, committed_at = self.base, self.committed_at
        unsure: set[bytes] = set()
        for part, (keys, packed, size, tables) in enumerate(spool.read()):
            groups = [RowGroup(table, RowKind(kind), layout, n, [images]) for table, kind, layout, n, images in packed]
            last = part == spool.records - 1
            unsure.update(tables)
            if last:
                self.counters.transactions += 1
                self._finished(xid)
                self._end_group(event)
            yield Rows(base, committed_at, keys, groups, size, first + part, last, sorted(unsure) if last else [])
        if not spool.records:
            self._finished(xid)
            self._end_group(event)
        spool.close()

    def _finished(self, xid: Xid | None) -> None:
        if xid is not None:
            self._prepared.pop(xid, None)
            self.doubtful.pop(xid, None)

    # Statements

    def _query(self, event: bytes, kind: int) -> Iterator[Item]:
        found = query(event[HEADER:])
        text = found.statement
        if kind == _E.MARIADB_QUERY_COMPRESSED:
            text = unpack(text)
        if text == b"BEGIN":
            self._begin(None)
        elif text == b"COMMIT":
            yield from self._commit(event)
        elif text == b"ROLLBACK":
            self._rollback(event)
        elif self._mode != _IDLE:
            if self._inner(text):
                pass
            elif self._mode == _OPEN:
                yield from self._statement(event, found, text, inside=True)
            else:
                # MariaDB replaces a table, and fills it, in one transaction (CREATE OR REPLACE TABLE ... SELECT).
                self._tables.forget(())
        elif text.startswith(b"XA START "):
            self._begin(xid_of(text))
        elif text.startswith((b"XA COMMIT ", b"XA ROLLBACK ")):
            yield from self._finish_prepared(event, text)
        else:
            yield from self._statement(event, found, text, inside=False)

    def _inner(self, text: bytes) -> bool:
        """Handles the statements that shape a transaction from inside; False: it is none of them."""
        if text.startswith(b"XA END "):
            return True
        if text.startswith(b"SAVEPOINT "):
            self._transaction.save(text[10:], self._spool)
            return True
        if text.startswith(b"ROLLBACK TO "):
            if self._mode == _OPEN:
                self._transaction.rollback_to(text[12:].removeprefix(b"SAVEPOINT "), self._spool, self._fold_of_names())
            return True
        return text.startswith(b"RELEASE SAVEPOINT ")

    def _fold_of_names(self) -> Callable[[bytes], bytes]:
        try:
            fold = self._source.fold(_NAMES_WITH_ACCENTS if self._mariadb else _NAMES)
        except LookupError:
            fold = self._source.fold(_NAMES)
        return fold.prefixed(0)

    def _statement(self, event: bytes, found: Query, text: bytes, *, inside: bool) -> Iterator[Item]:
        if self._skipping:
            self._tables.forget(())
            self._end_group(event)
            return
        statement = text_of(found, text, self._source, mariadb=self._mariadb)
        what = classify(statement, found.schema)
        temporary = self._temporary
        timestamps = self._tables.timestamps(what.tables) if what.verb == "ALTER TABLE" else None
        if what.kind is StatementKind.SCHEMA:
            self._tables.forget(what.tables)
        change = None
        start = self._cursor.start(self._group)
        done = self._passing or self._cursor.has_begun(start, self._gtid)
        by_apply = found.thread_id == APPLY_THREAD_ID
        if self._mariadb and found.thread_id == RECOVERY_THREAD_ID and not done:
            by_apply = self._run_at_crash(text, what, self._cursor.file, start)
        if not by_apply and not done and not self._alter & (_START_ALTER | _ROLLBACK_ALTER):
            change = schema_change(
                found,
                text,
                statement,
                what,
                timestamp=int.from_bytes(event[:4], "little"),
                flags=int.from_bytes(event[17:19], "little"),
                committed_at=self.committed_at,
                inside=inside,
                mariadb=self._mariadb,
                replicated=self._replicated,
                source=self._source,
                temporary=temporary,
                note=self._note,
            )
        temporary.read(found.thread_id, what)
        if change is not None:
            change.place = self._place()
            change.timestamps = timestamps
        if inside:
            if change is not None:
                yield None
                self._cursor.part_read(start, self._gtid)
                yield change
            return
        if change is not None:
            yield None
        self._end_group(event)
        if change is not None:
            self.counters.statements += 1
            yield change

    def _begins(self) -> tuple[str, int]:
        """Where the group that is being read begins."""
        return self._cursor.file, self._cursor.start(self._group)

    # Files

    def _format(self, event: bytes) -> None:
        self._cursor.identify(event)
        if not int.from_bytes(event[13:17], "little"):
            return  # repeated by the server at the start of a dump
        if self.inside:
            # The server crashed while it wrote the transaction; it never committed.
            if self._transaction.parts:
                assert self._left is not None, "it began in another file"
                raise UnfinishedUnit("the server crashed inside", self._left)
            self._note("a transaction that the server never finished, because it crashed, was dropped")
            if self._spool is not None:
                self._spool.close()
            self._transaction.clear()
            self._reset()
        if event[HEADER + _CREATED : HEADER + _CREATED + 4].strip(b"\0"):
            self.doubtful.update(self._prepared)
            self._temporary.clear()
        self._cursor.enter()
