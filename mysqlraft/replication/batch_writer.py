"""One batch into the server: a transaction that begins with the progress row.

The fast lane goes out in as few packets as possible, the next batch being made while the server works. A statement that
the fast lane fails on is undone by the server and leaves the transaction open: it is halved until the change is found
that the careful lane has to write, and the transaction goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import cast

from mysqlraft.mysql.connection import Session, StatementError
from mysqlraft.replication.apply_session import row_error
from mysqlraft.replication.batch import Batch
from mysqlraft.replication.careful_lane import CarefulLane
from mysqlraft.replication.conflicts import Conflict, insert
from mysqlraft.replication.row_events import Item, Statement, statements

PACKET = 8 << 20
"""Bytes of statements sent together, if the server's max_allowed_packet is as large."""
_BESIDES = 64 << 10
"""What a packet holds besides rows, at most: the progress row's state, BEGIN and COMMIT."""
_CONFLICTS_TOGETHER = 50
_AFTER_A_FAILURE = 32
"""Statements sent together once one of their packet has failed."""

_Piece = bytes | Statement


def progress(index: int, state: bytes) -> bytes:
    """The statement that an applied transaction begins with."""
    return b"UPDATE mysqlraft.progress SET applied = %d, state = 0x%b WHERE id = 1" % (index, state.hex().encode())


class BatchWriter:
    """Writes through one session. ``fallbacks`` counts changes that the fast lane failed on.

    Invariant: at most one packet is on its way to the server, `_sent`.
    """

    def __init__(self, session: Session, careful: CarefulLane) -> None:
        self._session = session
        self._careful = careful
        self._sent: list[_Piece] = []
        self._packet = min(PACKET, session.max_packet - _BESIDES)
        self.fallbacks = 0

    def forget(self) -> None:
        """A statement may have changed a table."""
        self._careful.forget()

    def begin(self, batch: Batch) -> None:
        """Sends the whole transaction; its last packet, with the COMMIT, may still be on its way: `finish` waits.

        Raises:
            StatementError: the server refused what no lane can help; the transaction is still open.
            SessionLost: the connection broke; whether it was committed is unknown.
            TableMismatch: as of the careful lane.
        """
        packet: list[_Piece] = [b"BEGIN", progress(batch.index, batch.state)]
        size = 0
        for kind, pieces in groupby(batch.work, type):
            if kind is Item:
                self._submit(packet)
                self.finish()
                packet, size = [], 0
                # What it returns leaves together with what comes next.
                pieces = iter(self._careful.apply(cast(Iterable[Item], pieces)))
            for piece in cast(Iterable[Statement], pieces):
                if size + len(piece.sql) > self._packet and size:
                    self._submit(packet)
                    packet, size = [], 0
                packet.append(piece)
                size += len(piece.sql)
        self._submit([*packet, *_ending(batch.conflicts)])

    def finish(self) -> None:
        """Waits for what is on its way. Raises as `begin` does."""
        sent, self._sent = self._sent, []
        if sent:
            try:
                self._session.receive(len(sent))
            except StatementError as error:
                self._repair(sent, error)

    def _submit(self, pieces: list[_Piece]) -> None:
        self.finish()
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
        if not isinstance(failed, Statement) or not row_error(error):
            raise error
        items = failed.items
        if len(items) == 1:
            self.fallbacks += 1
            made = self._careful.apply(items)
            if made:
                self._session.run([statement.sql for statement in made])
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            self._run(statements(self._session.mariadb, half))


def _ending(conflicts: Iterable[Conflict]) -> list[_Piece]:
    listed = list(conflicts)
    pieces: list[_Piece] = [
        insert(listed[at : at + _CONFLICTS_TOGETHER]) for at in range(0, len(listed), _CONFLICTS_TOGETHER)
    ]
    return [*pieces, b"COMMIT"]


def _sql(piece: _Piece) -> bytes:
    return piece.sql if isinstance(piece, Statement) else piece
