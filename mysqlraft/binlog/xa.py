"""XA transactions after a crash of the server, which may have forgotten what its binlog says of them.

MariaDB, and MySQL before 8.0.30, write XA PREPARE, XA COMMIT and XA ROLLBACK into the binlog before they carry them
out. A server that is killed in between comes back without the transaction that the binlog calls prepared, or still has
as prepared what the binlog calls finished; the application then finishes it a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.errors import BinlogError, ConnectionLost
from mysqlraft.binlog.events import HEADER, EventType, query, rotate
from mysqlraft.binlog.position import file_number

Xid = tuple[int, bytes, bytes]
"""Format, global and branch part."""
Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs a statement that only reads; raises as PyMySQL does."""
COMMIT, ROLLBACK = b"XA COMMIT", b"XA ROLLBACK"
_TEXT = re.compile(rb"XA (?:START|COMMIT|ROLLBACK) X'([0-9A-Fa-f]*)',X'([0-9A-Fa-f]*)',(\d+)")


def xid_of(statement: bytes) -> Xid:
    """Of an XA statement as the server logs it.

    Raises:
        BinlogError: it is none.
    """
    match = _TEXT.match(statement)
    if match is None:
        raise BinlogError(f"an XA statement that cannot be read: {statement[:200]!r}")
    return int(match[3]), bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode())


def is_commit(statement: bytes) -> bool:
    return statement.startswith(COMMIT)


def prepared(ask: Query, *, mariadb: bool) -> set[Xid]:
    """Those that the server holds prepared now."""
    found: set[Xid] = set()
    # Their bytes are text in no character set. MariaDB's answer says so, MySQL's does not.
    for number, size, _, data in ask("XA RECOVER" if mariadb else "XA RECOVER CONVERT XID"):
        plain = bytes(data) if mariadb else bytes.fromhex(str(data).removeprefix("0x"))
        found.add((int(number), plain[: int(size)], plain[int(size) :]))
    return found


class FinishedBefore:
    """How a transaction was finished in an earlier file of the binlog."""

    def __init__(self, open_dump: Callable[[], DumpConnection], ask: Query, stopping: Callable[[], bool]) -> None:
        """``open_dump``: opens a dump connection that no other reader of this server ends. ``stopping``: whether the
        owner wants to end."""
        self._open_dump = open_dump
        self._ask = ask
        self._stopping = stopping

    def __call__(self, xid: Xid, file: str) -> bytes:
        """`COMMIT` or `ROLLBACK`, whichever finished the transaction last before ``file``; nothing if neither did.

        Raises:
            ConnectionLost, BinlogError: as `DumpConnection.batch` does.
            pymysql.err.MySQLError, OSError: as PyMySQL does.
        """
        files = [str(row[0]) for row in self._ask("SHOW BINARY LOGS")]
        for earlier in sorted(files, key=file_number, reverse=True):
            # A server that comes back begins a new file.
            if file_number(earlier) < file_number(file) and (found := self._last(earlier, xid)):
                return found
        return b""

    def _last(self, file: str, xid: Xid) -> bytes:
        found = b""
        dump = self._open_dump()
        try:
            dump.start_at(file, 4)
            while not self._stopping():
                for event in dump.skim():
                    if isinstance(event, LargeEvent):
                        for _ in event.chunks():
                            pass
                    elif event[4] == EventType.ROTATE and rotate(event)[0] != file:
                        return found
                    else:
                        found = _finishes(event, xid) or found
            raise ConnectionLost("capture ends")
        finally:
            dump.close()


def _finishes(event: bytes, xid: Xid) -> bytes:
    """`COMMIT` or `ROLLBACK` if the event does that to the transaction."""
    if event[4] not in (EventType.QUERY, EventType.MARIADB_QUERY_COMPRESSED):
        return b""
    text = query(event[HEADER:]).statement
    if event[4] == EventType.MARIADB_QUERY_COMPRESSED:
        text = unpack(text)
    verb = next((verb for verb in (COMMIT, ROLLBACK) if text.startswith(verb + b" ")), b"")
    return verb if verb and xid_of(text) == xid else b""
