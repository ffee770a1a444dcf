"""Events into transactions.

Theory of operation
-------------------

A binlog is a sequence of groups: a GTID event, then either one statement that changes the schema, or BEGIN, table maps
with rows events, and an XID (COMMIT). `TransactionStream.read` takes events in order and yields

    `Rows`          a local transaction, or one part of it if it is large: parts leave while the rest is still coming
    `SchemaChange`  a statement to be run at the other sites, and None before it

and nothing for everything else, which only moves `position`:

- Applied transactions, those whose first rows event is on `PROGRESS`: they move ``base``. Their other events are passed
  over by type alone.
- Transactions on tables that are not replicated; statements that change no schema (noted).
- Everything up to ``done``, when reading begins before it.

XA transactions are held, on disk when large, from XA PREPARE until XA COMMIT. While one is open, ``position.resume``
stays before it: a restart reads it again.

MySQL logs CREATE TABLE ... SELECT as one transaction: the statement, then the rows. Its `SchemaChange` comes with a
position one byte into the transaction, so that a restart between the two goes on with the rows.

An event of unknown type is an error unless its header says that it may be ignored.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from mysqlraft.binlog import tablemap
from mysqlraft.binlog.compression import payload_events, unpack
from mysqlraft.binlog.dump import LargeEvent, identity
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import APPLY_THREAD_ID, HEADER, IGNORABLE, EventType, Query, query, rotate, tagged_gtid
from mysqlraft.binlog.gtid import DomainPositions, GtidSet
from mysqlraft.binlog.keys import KeyDefinition, KeySource, Slicer, compile_slicer, known_keys
from mysqlraft.binlog.rows import RowKind, RowsError, columns_of, fields, split
from mysqlraft.binlog.spool import Spool
from mysqlraft.binlog.statements import Statement, StatementKind, classify, session_context

OWN_SCHEMA = "mysqlraft"
PROGRESS = (OWN_SCHEMA, "progress")
"""The table whose second column, ``applied``, an applied transaction sets before anything else."""

NEVER = frozenset((OWN_SCHEMA, "mysql", "sys", "information_schema", "performance_schema"))
"""Schemas that are never replicated."""

PART_BYTES = 1 << 20

_IDLE, _OPEN, _PASS = 0, 1, 2

_E = EventType
# Plain integers: looking up members of an enumeration costs more than the rest of the loop that compares them.
_TABLE_MAP, _XID, _GTID, _MARIADB_GTID, _QUERY = (
    int(kind) for kind in (_E.TABLE_MAP, _E.XID, _E.GTID, _E.MARIADB_GTID, _E.QUERY)
)
_BEGIN = b"\0BEGIN"
_BEGIN_SIZE = HEADER + 13 + len(_BEGIN)
"""Bytes of a BEGIN event besides its schema (length at offset 27) and status variables (length at 30)."""
# The rows events of both servers: type -> (kind, whether it has an extra-data field, whether it is compressed).
_ROWS: dict[int, tuple[RowKind, bool, bool]] = {
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

_XID_TEXT = re.compile(rb"XA (?:START|COMMIT|ROLLBACK) X'([0-9A-Fa-f]*)',X'([0-9A-Fa-f]*)',(\d+)")
_START_TRANSACTION = re.compile(r"\s+START TRANSACTION\s*$", re.IGNORECASE)

_IF_EXISTS = re.compile(r"\s*DROP\s+\w+\s+(?:/\*.*?\*/\s*)?IF\s+EXISTS\b", re.IGNORECASE)
_LONGEST_LIST = 500
"""Names in a statement; of more it is not sure that all were found."""

_STANDALONE, _GROUP_COMMIT, _PREPARED, _COMPLETED = 1, 2, 64, 128
_START_ALTER, _ROLLBACK_ALTER = 2, 8

Xid = tuple[int, bytes, bytes]


@dataclass(slots=True)
class RowGroup:
    """Rows of one table, kind and layout, adjacent in the transaction; ``table`` is the TABLE_MAP's body."""

    table: bytes
    kind: RowKind
    layout: bytes
    count: int
    images: list[bytes]


@dataclass(slots=True)
class Rows:
    """One local transaction (``part`` 0 and ``last``), or a part of one. ``keys``: distinct, packed little-endian.

    ``wild``: table maps' bodies of tables whose keys may have been others then; of several parts, in the last one.
    """

    base: int
    committed_at: int
    keys: bytes
    groups: list[RowGroup]
    size: int
    part: int
    last: bool
    wild: list[bytes]


@dataclass(slots=True)
class SchemaChange:
    """A statement to be run everywhere. ``inside``: rows of the same transaction follow."""

    tables: list[tuple[str, str | None]]
    statement: str
    schema: str
    context: dict[str, Any]
    committed_at: int
    inside: bool


Item = Rows | SchemaChange | None
"""What a stream yields. None: `TransactionStream.position` is that after all before it, and about to move."""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """``file``, ``offset``, ``gtids``: where to read from; ``done``: (file, offset) up to which all has been read;
    ``identity``: of the file of ``done``, "" if not known.
    """

    file: str
    offset: int
    gtids: str
    done: tuple[str, int]
    identity: str = ""


@dataclass(slots=True)
class Counters:
    """What went by since the stream began; ``applied_rows`` counts rows events of applied transactions."""

    transactions: int = 0
    applied: int = 0
    applied_rows: int = 0
    rows: int = 0
    statements: int = 0
    passed: int = 0


class _Table:
    """A table map as long as its number is valid; ``keys`` None: not replicated.

    ``known_from``: for rows of transactions that end before this place the keys may have been others: it is where the
    binlog ended when they had been asked for, and a statement that the stream has not come to may lie before it. None:
    the stream is past that place.
    """

    __slots__ = ("body", "keys", "known_from", "layout_bytes", "name", "parsed", "slicers")

    def __init__(
        self, name: tuple[str, str], body: bytes, keys: list[KeyDefinition] | None, known_from: tuple[float, int] | None
    ) -> None:
        self.known_from = known_from
        self.name = name
        self.body = body
        self.keys = keys
        self.parsed = tablemap.parse(body)
        count = len(self.parsed.columns)
        bitmap = (count + 7) // 8
        self.layout_bytes = (1 if count < 251 else 3) + bitmap, (1 if count < 251 else 3) + 2 * bitmap
        self.slicers: tuple[dict[bytes, Slicer], ...] = ({}, {}, {})


@dataclass(slots=True)
class _Prepared:
    """An XA transaction between PREPARE and COMMIT. ``before``: the position before it."""

    before: StreamPosition
    spool: Spool


@dataclass(slots=True)
class _Savepoint:
    name: bytes
    parts: int
    groups: int
    count: int
    images: int
    keys: int


def file_number(file: str) -> int:
    """The order of binlog files: ``binlog.000012`` -> 12."""
    return int(file.rpartition(".")[2] or 0)


class TransactionStream:
    """See the head of this module. Not for use by several threads."""

    def __init__(
        self,
        source: KeySource,
        replicated: Callable[[str, str | None], bool],
        *,
        mariadb: bool,
        position: StreamPosition,
        base: int = 0,
        part_bytes: int = PART_BYTES,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``position``: where reading begins; what lies before its ``done`` is passed over.

        ``base`` is the base at ``done``. ``note`` hears of each statement that is not replicated.
        """
        self.base = base
        self.counters = Counters()
        self.committed_at = 0
        self._source = source
        self._replicated = replicated
        self._mariadb = mariadb
        self._note = note
        self._part_bytes = part_bytes
        self._gtids: GtidSet | DomainPositions = (DomainPositions if mariadb else GtidSet)(position.gtids)
        self._has_gtids = bool(position.gtids)
        self._file = position.file
        self._at = (position.file, position.offset)
        # What lies between is read again for the sake of prepared XA transactions. Without such, nothing is: and then
        # the places must not be compared, for by its GTIDs a position may be that of another server.
        self._done = ("", 0) if position.done == (position.file, position.offset) else position.done
        # (file, identity) of the file that is read, and of the one that `position.done` is in.
        self._identity = ("", "")
        self._done_identity = (position.done[0], position.identity)
        self._prepared: dict[Xid, _Prepared] = {}
        self._by_map: dict[bytes, _Table] = {}
        self._tables: dict[bytes, _Table] = {}
        self._low = self._high = 0
        self._outer_end = 0
        self._group = b""
        self._first = True
        self._groups: list[RowGroup] = []
        self._keys: list[int] = []
        self._size = 0
        self._unsure: dict[bytes, _Table] = {}
        self._savepoints: list[_Savepoint] = []
        self._reset()

    def _reset(self) -> None:
        """Between two groups."""
        self._mode = _IDLE
        self._gtid: tuple[Any, ...] | None = None
        self._passing = False
        self._applied: int | None = None
        self._parts = 0
        self._spool: Spool | None = None
        self._xid: Xid | None = None
        self._alter = 0
        if self._unsure:
            self._unsure = {}
        if self._groups or self._savepoints:
            self._groups, self._keys, self._size = [], [], 0
            self._savepoints.clear()

    @property
    def inside(self) -> bool:
        """Whether a transaction has begun and not ended: a place where a connection must not be resumed."""
        return self._mode != _IDLE or self._gtid is not None

    @property
    def position(self) -> StreamPosition:
        """After the last complete transaction."""
        done = max(self._done, self._at, key=lambda at: (file_number(at[0]), at[1]))
        if self._prepared:
            before = next(iter(self._prepared.values())).before
            return StreamPosition(before.file, before.offset, before.gtids, done, self._identity_of(done[0]))
        return self._here(done)

    def _here(self, done: tuple[str, int]) -> StreamPosition:
        gtids = str(self._gtids) if self._has_gtids else ""
        return StreamPosition(self._at[0], self._at[1], gtids, done, self._identity_of(done[0]))

    def _identity_of(self, file: str) -> str:
        for known in (self._identity, self._done_identity):
            if known[0] == file:
                return known[1]
        return ""

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
            BinlogError: an event that cannot be carried on with.
        """
        try:
            yield from self._read(events)
        except (ValueError, LookupError, struct.error) as error:
            where = f"{self._file}, after {self._at[0]}:{self._at[1]}"
            raise BinlogError(f"an event in {where} is garbled or cut short: {error}") from error

    def _read(self, events: Iterable[bytes | LargeEvent]) -> Iterator[Item]:
        rows_events, by_map, tables = _ROWS, self._by_map, self._tables
        for event in events:
            if isinstance(event, LargeEvent):
                yield from self._payload(event.header, event.chunks())
                continue
            kind = event[4]
            if kind == _TABLE_MAP:
                if self._mode == _OPEN:
                    key = event[HEADER:]
                    tables[key[:6]] = by_map.get(key) or self._new_table(key)
            elif kind in rows_events:
                if self._mode == _OPEN:
                    large = self._take_rows(event, *rows_events[kind])
                    if large is not None:
                        yield from self._take_large(*large)
                    elif self._size >= self._part_bytes and (part := self._take(last=False)) is not None:
                        yield part
                elif self._mode == _PASS:
                    self.counters.applied_rows += 1
            elif kind == _XID:
                if self._mode == _OPEN and self._groups:
                    self.counters.transactions += 1
                    rows = self._take(last=True, event=event)
                    self._end_group(event)
                    yield rows
                else:
                    yield from self._commit(event)
            elif kind == _GTID:
                self._mysql_gtid(event, kind)
            elif kind == _MARIADB_GTID:
                self._mariadb_gtid(event)
            elif (
                kind == _QUERY
                and event.endswith(_BEGIN)
                and len(event) == _BEGIN_SIZE + event[27] + event[30] + (event[31] << 8)
            ):
                self._begin(None)
            else:
                yield from self._other(event, kind)

    def _other(self, event: bytes, kind: int) -> Iterator[Item]:
        if kind in (_E.ANONYMOUS_GTID, _E.GTID_TAGGED):
            self._mysql_gtid(event, kind)
        elif kind in (_E.QUERY, _E.MARIADB_QUERY_COMPRESSED):
            yield from self._query(event, kind)
        elif kind == _E.ROTATE:
            self._rotate(event)
        elif kind in _NOTHING:
            pass
        elif kind == _E.FORMAT_DESCRIPTION:
            self._format(event)
        elif kind == _E.XA_PREPARE:
            yield from self._prepare(event)
        elif kind == _E.TRANSACTION_PAYLOAD:
            yield from self._payload(event[:HEADER], iter((event[HEADER:],)))
        elif kind == _E.PARTIAL_UPDATE_ROWS:
            if self._mode == _OPEN:
                raise BinlogError(
                    "an update carries part of a JSON value only: SET PERSIST binlog_row_value_options = ''"
                )
        elif kind == _E.EXECUTE_LOAD_QUERY:
            if self._mode == _OPEN:
                raise BinlogError("LOAD DATA was logged as a statement: SET GLOBAL binlog_format = ROW")
        elif kind == _E.INCIDENT:
            raise BinlogError(
                "the server logged an incident: its binlog does not hold every change. This site must be loaded anew"
            )
        elif int.from_bytes(event[17:19], "little") & IGNORABLE:
            self._note(f"an event of unknown type {kind}, marked ignorable, was passed over")
        else:
            raise BinlogError(f"the binlog holds an event of type {kind}, which this mysqlraft does not know")

    # Groups begin

    def _begin_group(self, event: bytes) -> None:
        if self._mode or self._gtid is not None:
            raise BinlogError(f"a transaction begins inside another, after {self._at[0]}:{self._at[1]}")
        self._group = event
        if self._done[0]:
            done = self._done
            self._passing = (file_number(self._file), self._start() + 1) < (file_number(done[0]), done[1])

    def _start(self) -> int:
        """Where the open group begins in its file."""
        return self._end(self._group) - int.from_bytes(self._group[9:13], "little")

    def _mysql_gtid(self, event: bytes, kind: int) -> None:
        self._begin_group(event)
        if len(event) < 68 and kind != _E.GTID_TAGGED:
            raise BinlogError("a GTID event is cut short")
        if kind == _GTID:
            self._gtid = (event[20:36], "", int.from_bytes(event[36:44], "little"))
        elif kind == _E.GTID_TAGGED:
            sid, tag, number, self.committed_at = tagged_gtid(event[HEADER:])
            self._gtid = (sid, tag, number) if number else ()
            return
        else:
            self._gtid = ()
        stamp = int.from_bytes(event[61:68], "little")
        if stamp >> 55:
            # The transaction came from elsewhere: the time of its first commit follows.
            stamp = int.from_bytes(event[68:75], "little")
        self.committed_at = stamp

    def _mariadb_gtid(self, event: bytes) -> None:
        self._begin_group(event)
        body = event[HEADER:]
        flags = body[12]
        self._gtid = (
            int.from_bytes(body[8:12], "little"),
            int.from_bytes(event[5:9], "little"),
            int.from_bytes(body[:8], "little"),
        )
        self.committed_at = int.from_bytes(event[:4], "little") * 1_000_000
        at = 21 if flags & _GROUP_COMMIT else 13
        if flags & (_PREPARED | _COMPLETED):
            gtrid, bqual = body[at + 4], body[at + 5]
            data = body[at + 6 : at + 6 + gtrid + bqual]
            if flags & _PREPARED:
                self._begin((int.from_bytes(body[at : at + 4], "little"), data[:gtrid], data[gtrid:]))
            return
        if not flags & _GROUP_COMMIT and len(body) > 13:
            self._alter = body[13]
        elif flags & _GROUP_COMMIT and len(body) > 21:
            self._alter = body[21]
        if not flags & _STANDALONE:
            self._begin(None)

    def _begin(self, xid: Xid | None) -> None:
        self._mode = _PASS if self._passing and xid is None else _OPEN
        self._first = True
        if xid is not None:
            self._xid = xid
            self._spool = Spool(self._part_bytes)

    # Rows

    def _new_table(self, key: bytes) -> _Table:
        body = key[8:]
        try:
            name = tablemap.names(body)
        except IndexError:
            raise BinlogError("a table map is cut short") from None
        keys: list[KeyDefinition] | None = None
        known_from: tuple[float, int] | None = None
        try:
            if name[0] not in NEVER and self._replicated(*name):
                keys, there = known_keys(tablemap.parse(body), self._source)
                file, offset = self._source.binlog_end()
                known_from = (file_number(file), offset) if there else (inf, 0)
            table = self._by_map[key] = _Table(name, body, keys, known_from)
        except tablemap.TableMapError as error:
            raise BinlogError(str(error)) from None
        return table

    def _take_rows(
        self, event: bytes, kind: RowKind, extra: bool, compressed: bool
    ) -> tuple[_Table, RowKind, bytes, bytes, Slicer] | None:
        """Takes over the rows of one event, unless they are so many that they must leave in several parts."""
        table = self._tables.get(event[HEADER : HEADER + 6])
        if table is None:
            raise BinlogError("rows of a table without a table map before them")
        if self._first:
            self._first = False
            if table.name == PROGRESS:
                self._applied = _read_applied(table, event, kind, extra, compressed)
                self._mode = _PASS
                return None
        if table.keys is None:
            return None
        start = HEADER + 8 + (event[HEADER + 8] | event[HEADER + 9] << 8 if extra else 0)
        middle = start + table.layout_bytes[kind == 1]
        layout = event[start:middle]
        images = event[middle:]
        if compressed:
            images = unpack(images)
        slicer = table.slicers[kind].get(layout) or self._new_slicer(table, kind, layout)
        if len(images) > 2 * self._part_bytes:
            return table, kind, layout, images, slicer
        self._add(table, kind, layout, images, slicer)
        return None

    def _new_slicer(self, table: _Table, kind: RowKind, layout: bytes) -> Slicer:
        assert table.keys is not None
        try:
            slicer = compile_slicer(table.parsed, kind, layout, table.keys, self._source)
        except RowsError as error:
            raise BinlogError(str(error)) from None
        table.slicers[kind][layout] = slicer
        return slicer

    def _add(self, table: _Table, kind: RowKind, layout: bytes, images: bytes, slicer: Slicer) -> None:
        size = len(images)
        try:
            count = slicer(images, 0, size, self._keys.append)
        except IndexError:
            raise BinlogError(f"{'.'.join(table.name)}: row images are cut short or garbled") from None
        groups = self._groups
        if groups and (last := groups[-1]).table is table.body and last.kind is kind and last.layout == layout:
            last.count += count
            last.images.append(images)
        else:
            groups.append(RowGroup(table.body, kind, layout, count, [images]))
            if table.known_from is not None:
                self._unsure[table.body] = table
        self._size += size
        self.counters.rows += count

    def _take_large(self, table: _Table, kind: RowKind, layout: bytes, images: bytes, slicer: Slicer) -> Iterator[Rows]:
        for piece in self._pieces(table, kind, layout, images):
            self._add(table, kind, layout, piece, slicer)
            if self._size >= self._part_bytes and (part := self._take(last=False)) is not None:
                yield part

    def _pieces(self, table: _Table, kind: RowKind, layout: bytes, images: bytes) -> Iterator[bytes]:
        """The images of a large event, cut between rows into pieces of about a part."""
        start = at = 0
        try:
            for before, after in split(table.parsed, kind, layout, images):
                at += len(before or b"") + len(after or b"")
                if at - start >= self._part_bytes:
                    yield images[start:at]
                    start = at
        except RowsError as error:
            raise BinlogError(str(error)) from None
        if at > start:
            yield images[start:at]

    def _take(self, *, last: bool, event: bytes = b"") -> Rows | None:
        """What is held of the open transaction; None if it was put by, because XA COMMIT has yet to come.

        ``event``: the one that ends it, with the last.
        """
        found = self._keys
        keys = found[0].to_bytes(8, "little") if len(found) == 1 else array("Q", dict.fromkeys(found)).tobytes()
        groups, size = self._groups, self._size
        self._groups, self._keys, self._size = [], [], 0
        if self._spool is not None:
            packed = [(g.table, g.kind, g.layout, g.count, b"".join(g.images)) for g in groups]
            self._spool.write((keys, packed, size, self._wild(self._at) if self._unsure else []))
            return None
        part = self._parts
        self._parts += 1
        wild = self._wild((self._file, self._outer_end or self._end(event))) if last and self._unsure else []
        return Rows(self.base, self.committed_at, keys, groups, size, part, last, wild)

    def _wild(self, end: tuple[str, int]) -> list[bytes]:
        """The tables of the open transaction whose keys were asked for when more than `end` was in the binlog."""
        reached = (file_number(end[0]), end[1])
        found = []
        for table in self._unsure.values():
            if table.known_from is not None and table.known_from > reached:
                found.append(table.body)
            else:
                table.known_from = None
        return found

    # Groups end

    def _commit(self, event: bytes) -> Iterator[Rows]:
        rows = None
        if self._mode == _OPEN:
            if self._groups or self._parts:
                self.counters.transactions += 1
                rows = self._take(last=True, event=event)
            else:
                self.counters.passed += 1
        elif self._applied is not None:
            self.counters.applied += 1
            if not self._passing:
                self.base = self._applied
        self._end_group(event)
        if rows is not None:
            yield rows

    def _end_group(self, event: bytes) -> None:
        end = self._outer_end or self._end(event)
        if self._gtid:
            self._gtids.add(*self._gtid)
            self._has_gtids = True
        self._at = (self._file, end)
        self._reset()

    def _end(self, event: bytes) -> int:
        """Where the event ends in its file. The header counts to 4 GiB only; files may be larger."""
        low = int.from_bytes(event[13:17], "little")
        if low < self._low and self._low - low > 1 << 31:
            self._high += 1 << 32
            self._low = low
        elif low > self._low:
            self._low = low
        return self._high + low

    def _payload(self, header: bytes, chunks: Iterator[bytes]) -> Iterator[Item]:
        """A compressed transaction: all of it, from BEGIN to XID, in one event."""
        self._outer_end = self._end(header)
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
        if self._parts:
            raise BinlogError(
                "a transaction of more than one part was rolled back in the binlog, after its first parts left: "
                "do not mix tables that cannot be rolled back into large transactions"
            )
        if self._mode == _OPEN and self._groups:
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
        if self._groups:
            self._take(last=False)
        self._spool = None
        if not body[0]:
            self._prepared[xid] = _Prepared(self._here(self._done), spool)
            self._end_group(event)
        elif self._passing:
            spool.close()
            self._end_group(event)
        else:
            yield from self._release(event, spool)

    def _finish_prepared(self, event: bytes, statement: bytes) -> Iterator[Rows]:
        """XA COMMIT or XA ROLLBACK of what was prepared."""
        xid = _xid(statement)
        prepared = self._prepared.get(xid)
        if prepared is None:
            if not self._passing:
                raise BinlogError(
                    f"{statement.decode('latin-1')}: it was prepared before capture began at this site, so its rows "
                    "are unknown. This site must be loaded anew"
                )
            self._end_group(event)
        elif self._passing or not statement.startswith(b"XA COMMIT"):
            del self._prepared[xid]
            prepared.spool.close()
            self._end_group(event)
        else:
            yield from self._release(event, prepared.spool, xid)

    def _release(self, event: bytes, spool: Spool, xid: Xid | None = None) -> Iterator[Rows]:
        base, committed_at = self.base, self.committed_at
        unsure: set[bytes] = set()
        for part, (keys, packed, size, tables) in enumerate(spool.read()):
            groups = [RowGroup(table, RowKind(kind), layout, n, [images]) for table, kind, layout, n, images in packed]
            last = part == spool.records - 1
            unsure.update(tables)
            if last:
                self.counters.transactions += 1
                self._prepared.pop(xid, None) if xid is not None else None
                self._end_group(event)
            yield Rows(base, committed_at, keys, groups, size, part, last, sorted(unsure) if last else [])
        if not spool.records:
            self._prepared.pop(xid, None) if xid is not None else None
            self._end_group(event)
        spool.close()

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
            if not self._inner(text) and self._mode == _OPEN:
                yield from self._statement(event, found, text, inside=True)
        elif text.startswith(b"XA START "):
            self._begin(_xid(text))
        elif text.startswith((b"XA COMMIT ", b"XA ROLLBACK ")):
            yield from self._finish_prepared(event, text)
        else:
            yield from self._statement(event, found, text, inside=False)

    def _inner(self, text: bytes) -> bool:
        """Handles the statements that shape a transaction from inside; False: it is none of them."""
        if text.startswith(b"XA END "):
            return True
        if text.startswith(b"SAVEPOINT "):
            self._savepoints.append(
                _Savepoint(
                    text[10:],
                    self._parts,
                    len(self._groups),
                    self._groups[-1].count if self._groups else 0,
                    len(self._groups[-1].images) if self._groups else 0,
                    len(self._keys),
                )
            )
            return True
        if text.startswith(b"ROLLBACK TO "):
            self._rollback_to(text[12:].removeprefix(b"SAVEPOINT "))
            return True
        return text.startswith(b"RELEASE SAVEPOINT ")

    def _rollback_to(self, name: bytes) -> None:
        """The server writes this only where it could not just leave the rows out."""
        if self._mode != _OPEN:
            return
        while self._savepoints and self._savepoints[-1].name != name:
            self._savepoints.pop()
        if not self._savepoints or self._savepoints[-1].parts != self._parts:
            raise BinlogError(f"ROLLBACK TO {name.decode('latin-1')} in the binlog, after rows that have already left")
        point = self._savepoints[-1]
        del self._groups[point.groups :]
        if self._groups:
            self._groups[-1].count = point.count
            del self._groups[-1].images[point.images :]
        del self._keys[point.keys :]
        self._size = sum(len(image) for group in self._groups for image in group.images)

    def _statement(self, event: bytes, found: Query, text: bytes, *, inside: bool) -> Iterator[Item]:
        statement = text.decode("utf-8", "surrogateescape")
        what = classify(statement, found.schema)
        if what.kind is StatementKind.SCHEMA:
            self._by_map.clear()
        change = None
        started = (file_number(self._file), self._start()) < (file_number(self._done[0]), self._done[1])
        if found.thread_id != APPLY_THREAD_ID and not started and not self._alter & (_START_ALTER | _ROLLBACK_ALTER):
            change = self._change(event, found, statement, what, inside)
        if inside:
            if change is not None:
                yield None
                self._done = (self._file, self._start() + 1)
                yield change
            return
        if change is not None:
            yield None
        self._end_group(event)
        if change is not None:
            self.counters.statements += 1
            yield change

    def _change(self, event: bytes, found: Query, statement: str, what: Statement, inside: bool) -> SchemaChange | None:
        context, touched = session_context(found.status, int.from_bytes(event[:4], "little"))
        if what.kind is StatementKind.ROWS:
            named = touched or [schema for schema, _ in what.objects]
            schemas = [schema for schema in named if self._may_replicate(schema, None)]
            if schemas:
                raise BinlogError(
                    f"a statement that changes rows of {schemas[0]} was logged as a statement "
                    f"(SET GLOBAL binlog_format = ROW, in every session): {statement[:200]}"
                )
            return None
        objects = [(schema, table) for schema, table in what.objects if self._may_replicate(schema, table)]
        if what.verb.endswith(" TRIGGER") and len(objects) < len(what.objects):
            objects = []  # of a table that is not replicated
        if what.kind is StatementKind.OTHER or not objects:
            if what.kind is StatementKind.OTHER:
                self._note(f"not replicated: {what.verb} (it changes no replicated schema or table)")
            return None
        if what.source is not None and not self._may_replicate(*what.source):
            raise _across(statement, what.source)
        tables = dict.fromkeys(what.tables)
        named_schemas = {schema for schema, _ in tables}
        # Schemas that only the server knows of: anything in them.
        tables |= {(name, None): None for name in touched if name not in NEVER and name not in named_schemas}
        if len(objects) < len(what.objects):
            statement = _replicated_only(statement, what, objects)
        for schema, table in objects:
            all_of = getattr(self._replicated, "all_of", None)
            if table is None and what.verb in ("DROP DATABASE", "DROP SCHEMA") and all_of and not all_of(schema):
                raise BinlogError(
                    f"{statement[:200]}: a pattern excludes tables of {schema} from replication, which the other sites "
                    "would lose with it. Change `replicate` so that it names all of the schema or nothing of it, alike "
                    "at every site, and restart"
                )
        if inside:
            statement = _START_TRANSACTION.sub("", statement)
        return SchemaChange(list(tables), statement, found.schema, context, self.committed_at, inside)

    def _may_replicate(self, schema: str, table: str | None) -> bool:
        return bool(schema) and schema not in NEVER and self._replicated(schema, table)

    # Files

    def _rotate(self, event: bytes) -> None:
        file, offset = rotate(event)
        self._file = file
        self._low, self._high = offset & 0xFFFFFFFF, offset >> 32 << 32

    def _format(self, event: bytes) -> None:
        self._identity = (self._file, identity(event))
        if not int.from_bytes(event[13:17], "little"):
            return  # repeated by the server at the start of a dump
        if self.inside:
            # The server crashed while it wrote the transaction; it never committed.
            if self._parts:
                raise BinlogError("the server crashed inside a transaction of which the first parts had left")
            self._note("a transaction that the server never finished, because it crashed, was dropped")
            if self._spool is not None:
                self._spool.close()
            self._reset()
        if file_number(self._file) > file_number(self._at[0]):
            self._at = (self._file, 4)


def _name(text: str) -> str:
    return "`" + text.replace("`", "``") + "`"


def _replicated_only(statement: str, what: Statement, objects: list[tuple[str, str | None]]) -> str:
    """A statement that names objects outside the filter, without them.

    Raises:
        BinlogError: nothing would be left that means the same.
    """
    if what.verb in ("DROP TABLE", "DROP TABLES", "DROP VIEW", "DROP SEQUENCE") and len(what.objects) <= _LONGEST_LIST:
        exists = "IF EXISTS " if _IF_EXISTS.match(statement) else ""
        names = ", ".join(f"{_name(schema)}.{_name(table or '')}" for schema, table in objects)
        return f"{what.verb} {exists}{names}"
    raise _across(statement, next(pair for pair in what.objects if pair not in objects))


def _across(statement: str, outside: tuple[str, str | None]) -> BinlogError:
    return BinlogError(
        f"{statement[:200]}: it names {'.'.join(filter(None, outside))}, which is not replicated, beside tables that "
        "are. Change `replicate` so that it has both or none, alike at every site, and restart"
    )


def _xid(statement: bytes) -> Xid:
    match = _XID_TEXT.match(statement)
    if match is None:
        raise BinlogError(f"an XA statement that cannot be read: {statement[:200]!r}")
    return int(match[3]), bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode())


def _read_applied(table: _Table, event: bytes, kind: RowKind, extra: bool, compressed: bool) -> int:
    """The new value of the second column of `PROGRESS`."""
    start = HEADER + 8 + (int.from_bytes(event[HEADER + 8 : HEADER + 10], "little") if extra else 0)
    middle = start + table.layout_bytes[kind == RowKind.UPDATE]
    layout, images = event[start:middle], event[middle:]
    try:
        if compressed:
            images = unpack(images)
        _, columns = columns_of(table.parsed, kind, layout)
        _, after = next(split(table.parsed, kind, layout, images))
        if columns is not None and after is not None:
            for column, value in zip(columns, fields(columns, after), strict=True):
                if column.index == 1 and value is not None:
                    return int.from_bytes(value, "little")
    except (RowsError, StopIteration) as error:
        raise BinlogError(f"the progress row cannot be read: {error}") from None
    raise BinlogError("an applied transaction does not set the progress row's second column")
