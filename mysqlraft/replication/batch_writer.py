"""One batch into the server: a transaction that begins with the progress row.

The fast lane goes out in as few packets as possible, the next batch being made while the server works. A statement that
the fast lane fails on is undone by the server and leaves the transaction open: it is halved until the change is found
that the careful lane has to write, and the transaction goes on.

A local statement may have added a column since a table was looked at, and the server says nothing of rows that lack
one. So a transaction checks, before its COMMIT, that the tables that it wrote to have the columns that it knew.

Of transactions in a deadlock the server ends the one that has changed the fewest rows. An application that locks rows
in another order, again and again, would so keep a small batch out for ever. A batch that has lost too often makes
itself heavy: it inserts and deletes rows of a table of the daemon's own, before it locks any other row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

from mysqlraft.mysql.connection import Session, SessionLost, StatementError
from mysqlraft.replication.apply_session import row_error
from mysqlraft.replication.batch import Batch
from mysqlraft.replication.careful_lane import CarefulLane
from mysqlraft.replication.conflicts import inserts
from mysqlraft.replication.row_events import Item, Statement, statements

PACKET = 8 << 20
"""Bytes of statements sent together, if the server's max_allowed_packet is as large."""
_OTHER_COLUMNS = (1241, 1222)
WEIGHT_AFTER = 3
"""Deadlocks in a row that a batch may lose as light as it is."""
_WEIGHT_ROWS, _MOST_WEIGHT_ROWS = 1000, 64_000
"""Rows that the batch then begins with: the first number after the first such deadlock, twice as many after each
further one, never more than the second number. Each row is inserted and deleted, so it counts twice. The most of them
take half a megabyte in the binlog."""
_AFTER_A_FAILURE = 32
"""Statements sent together once one of their packet has failed."""


class TablesChanged(Exception):
    """A table has got other columns since it was looked at: the batch is to be made anew."""


class BatchOutdated(TablesChanged):
    """Tables were forgotten after the batch was made."""


class _Check(bytes):
    """`LocalTable.check`."""


_Piece = bytes | Statement


def progress(index: int, state: bytes, packet: int = PACKET) -> list[bytes]:
    """The statements that an applied transaction begins with, of about ``packet`` bytes at most each."""
    first, *more = _cut(state, packet)
    return [
        b"UPDATE mysqlraft.progress SET applied = %d, state = %b WHERE id = 1" % (index, first),
        *(b"UPDATE mysqlraft.progress SET state = CONCAT(state, %b) WHERE id = 1" % piece for piece in more),
    ]


def certification(tables: bytes, packet: int = PACKET) -> list[bytes]:
    """The statements that keep what certification knows of tables, of about ``packet`` bytes at most each."""
    first, *more = _cut(tables, packet)
    return [
        b"REPLACE INTO mysqlraft.certification VALUES (1, %b)" % first,
        *(b"UPDATE mysqlraft.certification SET state = CONCAT(state, %b) WHERE id = 1" % piece for piece in more),
    ]


def weight(deadlocks: int, packet: int = PACKET) -> list[bytes]:
    """The statements that make a transaction heavy that has lost so many deadlocks in a row; none for a few."""
    if deadlocks < WEIGHT_AFTER:
        return []
    rows = min(_MOST_WEIGHT_ROWS, _WEIGHT_ROWS << min(deadlocks - WEIGHT_AFTER, 10))
    each = min(rows, packet // 16)
    return [
        *(
            b"INSERT INTO mysqlraft.weight VALUES " + b",".join(b"(%d)" % n for n in range(at, min(at + each, rows)))
            for at in range(0, rows, each)
        ),
        # With a key's condition, which sql_safe_updates asks for.
        b"DELETE FROM mysqlraft.weight WHERE id >= 0",
    ]


def _cut(content: bytes, packet: int) -> list[bytes]:
    """As hexadecimal literals, at least one."""
    length = packet // 4
    return [b"0x" + content[at : at + length].hex().encode() for at in range(0, max(1, len(content)), length)]


class BatchWriter:
    """Writes through one session. ``fallbacks`` counts changes that the fast lane failed on. ``deadlocks``: how many in
    a row the next batch has lost, set by apply.

    Invariants: at most one packet is on its way to the server, `_sent`; no packet is larger than the server takes, but
    for one statement that is so by itself.
    """

    def __init__(self, session: Session, careful: CarefulLane) -> None:
        self._session = session
        self._careful = careful
        self._sent: list[_Piece] = []
        self._tables: dict[bytes, None] = {}
        self._waiting: list[_Piece] = []
        self._waiting_bytes = 0
        self._packet = min(PACKET, session.max_packet)
        self.fallbacks = 0
        self.deadlocks = 0

    def forget(self) -> None:
        """A statement may have changed a table."""
        self._careful.forget()

    def begin(self, batch: Batch) -> None:
        """Sends the whole transaction; its last packet, with the COMMIT, may still be on its way: `finish` waits.

        Raises:
            StatementError: the server refused what no lane can help; the transaction is still open.
            SessionLost: the connection broke; whether it was committed is unknown.
            TableMismatch: as of the careful lane.
            TablesChanged: the transaction may still be open.
            BatchOutdated: it has not been begun.
        """
        try:
            self._begin(batch)
        except StatementError as error:
            self._careful.exact = row_error(error)
            raise
        self._careful.exact = False

    def _begin(self, batch: Batch) -> None:
        if batch.units and batch.generation != self._careful.generation:
            raise BatchOutdated("a table may have changed since the batch was made")
        tables = self._tables = {}
        self._waiting, self._waiting_bytes = [], 0
        self._put([b"BEGIN", *progress(batch.index, batch.state, self._packet)])
        self._put(weight(self.deadlocks, self._packet))
        if batch.tables is not None:
            self._put(certification(batch.tables, self._packet))
        for kind, pieces in groupby(batch.work, type):
            if kind is Item:
                self._submit()
                self.finish()
                # What it returns leaves together with what comes next.
                pieces = iter(self._careful.apply(_noted(cast(Iterable[Item], pieces), tables)))
            for piece in cast(Iterable[Statement], pieces):
                tables.update(dict.fromkeys(piece.tables))
                self._put([piece])
        self._put(map(_Check, self._careful.checks(tables)))
        self._put(inserts(batch.conflicts))
        self._put([b"COMMIT"])
        self._submit()

    def finish(self) -> None:
        """Waits for what is on its way. Raises as `begin` does."""
        sent, self._sent = self._sent, []
        if sent:
            try:
                self._session.receive(len(sent))
            except StatementError as error:
                self._repair(sent, error)

    def tables_changed(self) -> bool:
        """Whether a table that the open transaction wrote to has got other columns since it was looked at: that may be
        why it failed."""
        try:
            self._session.run(self._careful.checks(self._tables))
        except StatementError as error:
            return error.code in _OTHER_COLUMNS
        except SessionLost:
            pass
        return False

    def _put(self, pieces: Iterable[_Piece]) -> None:
        """Adds to the packet, which leaves when no more would fit."""
        for piece in pieces:
            size = len(_sql(piece)) + 1
            if self._waiting and self._waiting_bytes + size >= self._packet:
                self._submit()
            self._waiting.append(piece)
            self._waiting_bytes += size

    def _submit(self) -> None:
        """Sends the packet once the one before is in."""
        self.finish()
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if pieces:
            self._session.send([_sql(piece) for piece in pieces])
            self._sent = pieces

    def _run(self, pieces: Sequence[_Piece]) -> None:
        if not pieces:
            return
        try:
            self._session.run([_sql(piece) for piece in pieces])
        except StatementError as error:
            self._repair(pieces, error)

    def _repair(self, pieces: Sequence[_Piece], error: StatementError) -> None:
        """Goes on after the statement that failed, once its rows are written otherwise."""
        at = error.position
        self._rewrite(pieces[at], error)
        at += 1
        while at < len(pieces):
            # Where one fails others do: what comes after a failure is sent again, so little goes out at a time.
            together = pieces[at : at + _AFTER_A_FAILURE]
            try:
                self._session.run([_sql(piece) for piece in together])
                at += len(together)
            except StatementError as failure:
                at += failure.position
                self._rewrite(pieces[at], failure)
                at += 1

    def _rewrite(self, failed: _Piece, error: StatementError) -> None:
        """Writes the rows of the statement that failed otherwise."""
        if isinstance(failed, _Check) and error.code in _OTHER_COLUMNS:
            raise TablesChanged(str(error)) from error
        if not isinstance(failed, Statement) or not row_error(error):
            raise error
        items = failed.items
        if len(items) == 1:
            self.fallbacks += 1
            try:
                self._write_carefully(items)
            except StatementError as failure:
                if self._careful.exact or not row_error(failure):
                    raise
                self._careful.exact = True
                self._write_carefully(items)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            self._run(statements(self._session.mariadb, half))

    def _write_carefully(self, items: Sequence[Item]) -> None:
        if made := self._careful.apply(items):
            self._session.run([statement.sql for statement in made])


def _noted(items: Iterable[Item], tables: dict[bytes, None]) -> Iterator[Item]:
    for item in items:
        tables[item.table] = None
        yield item


def _sql(piece: _Piece) -> bytes:
    return piece.sql if isinstance(piece, Statement) else piece
