"""Where to read on in the server's binlog: in the file that was read, or by GTID if another server, with files of its
own, has taken the place of the one that was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.dump import MAX_OFFSET, DumpConnection, file_identity
from mysqlraft.binlog.errors import BinlogError, PositionLost
from mysqlraft.binlog.gtid import DomainPositions
from mysqlraft.binlog.position import Cursor, StreamPosition, file_number

Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs a statement that only reads; its rows."""


@dataclass(frozen=True, slots=True)
class ReadOn:
    """How to go on reading after a position. ``elsewhere``: as `Cursor` has it."""

    position: StreamPosition
    by_file: bool = True
    elsewhere: tuple[str, int] | None = None

    def start(self, dump: DumpConnection) -> None:
        """Asks for the binlog from there on. Raises as `DumpConnection.start_at` does."""
        if self.by_file:
            dump.start_at(self.position.file, self.position.offset)
        else:
            dump.start_after(self.position.gtids)

    def cursor(self, *, mariadb: bool) -> Cursor:
        """The place of who reads so."""
        return Cursor(self.position, mariadb=mariadb, elsewhere=self.elsewhere)


def in_file(file: str, offset: int) -> ReadOn:
    """From a place of this server on."""
    return ReadOn(StreamPosition(file, offset, "", (file, offset)))


def read_on(
    position: StreamPosition,
    query: Query,
    binlog_end: Callable[[], tuple[str, int]],
    open_dump: Callable[[], DumpConnection],
    *,
    mariadb: bool,
    by: str = "auto",
) -> ReadOn:
    """How the server can be read after a position that may be another server's. ``by``: "gtid", "file" or "auto": by
    file, or by GTID where the server has another one. ``query``, ``binlog_end``: ask the server.

    Raises:
        PositionLost: its binlog does not hold what comes after the position.
        BinlogError: it cannot be told, or the server does not do as ``by`` wants.
        ConnectionLost: the dump connection broke; and as ``query`` and ``open_dump`` do.
    """
    in_its_file = _in_its_file(position, query, open_dump, by_gtid=_by_gtid(position, query, by, mariadb=mariadb))
    by_file = in_its_file and by != "gtid"
    if not by_file:
        _verify_gtids(position, query, mariadb=mariadb)
    return ReadOn(position, by_file, None if in_its_file else binlog_end())


def _by_gtid(position: StreamPosition, query: Query, by: str, *, mariadb: bool) -> bool:
    if by == "file" or not position.gtids:
        if by == "gtid":
            raise BinlogError("capture.position is gtid, but the position to start from has no GTIDs")
        return False
    if mariadb:
        return True
    on = str(query("SELECT @@global.gtid_mode")[0][0]) == "ON"
    if by == "gtid" and not on:
        raise BinlogError("capture.position is gtid, but the server has gtid_mode OFF")
    return on


def _verify_gtids(position: StreamPosition, query: Query, *, mariadb: bool) -> None:
    """The server must have everything that was read. If it went back, it gives the GTIDs out again, and what has them
    now would be passed over.
    """
    file, offset = position.file, position.offset
    if position.done != (file, offset) and not (position.passed or position.begun):
        raise BinlogError(
            f"at {file}:{offset} of the server that was read before ({position.identity}), a prepared XA transaction "
            "was open, or the rows of a CREATE TABLE ... SELECT had not been read; from there to "
            f"{position.done[0]}:{position.done[1]} the binlog was read, and by which GTIDs was not noted by that "
            "version of mysqlraft. Let this site's daemon use that server again until the transaction is finished (XA "
            "RECOVER lists it), else load this site anew from another one"
        )
    gtids = position.passed or position.gtids
    if not mariadb:
        if not query(f"SELECT GTID_SUBSET('{gtids}', @@global.gtid_executed)")[0][0]:
            raise PositionLost("transactions that were captured are not in its gtid_executed: it has gone back")
        return
    held = DomainPositions(str(query("SELECT @@global.gtid_binlog_pos")[0][0])).last
    for domain, (_, number) in DomainPositions(gtids).last.items():
        if domain not in held or held[domain][1] < number:
            raise PositionLost(
                f"captured up to {number} in GTID domain {domain}, which is after its gtid_binlog_pos: it has gone back"
            )


def _in_its_file(
    position: StreamPosition, query: Query, open_dump: Callable[[], DumpConnection], *, by_gtid: bool
) -> bool:
    """Whether the position's file is here, and is the one that was read: then it is read on, whatever anybody has
    declared about GTIDs meanwhile. Otherwise the GTIDs decide, if there are any (``by_gtid``): another server, with
    files of its own, may have taken the place of this one, or the file was purged after its end had been read.

    Raises:
        PositionLost: it is another file, which now has its name and its GTIDs; or there are no GTIDs to decide.
    """
    (file, offset), expected = position.done, position.identity
    if not expected:
        return not by_gtid
    own = expected.startswith(f"{query('SELECT @@global.server_id')[0][0]}-")
    if by_gtid and not own:
        return False
    sizes = {str(row[0]): int(row[1]) for row in query("SHOW BINARY LOGS")}
    if file not in sizes:
        if by_gtid and all(file_number(name) > file_number(file) for name in sizes):
            return False
        raise PositionLost(f"it has no {file}, but earlier files" if by_gtid else f"it has no {file}")
    if sizes[file] < offset:
        raise PositionLost(f"its {file} ends at {sizes[file]}, before that place")
    if file_identity(open_dump, file) != expected:
        raise PositionLost(f"its {file} is another file than the one that was read: its binlog was made anew")
    # No server can be asked for a place that far by its file.
    return not by_gtid or (position.file in sizes and position.offset <= MAX_OFFSET)
