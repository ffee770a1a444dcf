"""Events: the header, the types of both servers, and the bodies that capture reads.

Sources of facts: MySQL's documentation of the binlog event classes, MariaDB's knowledge base ("Replication protocol").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mysqlraft.binlog.errors import BinlogError

HEADER = 19
"""Bytes before an event's body: timestamp u32, type u8, server id u32, size u32, end position u32, flags u16."""

IGNORABLE = 0x80
"""Header flag: a reader that does not know the type may pass over the event."""

THREAD_SPECIFIC = 4
"""Header flag of a statement about something that only its session has: a temporary table. And of every DROP TABLE."""

APPLY_THREAD_ID = 0xFFFF_FFF1
"""``pseudo_thread_id`` of the daemon's own sessions: statements that carry it are not the applications'. No server
lives to count its connections up to it.
"""
RECOVERY_THREAD_ID = 0
"""The thread of statements that a MariaDB server writes into its binlog when it comes back from a crash."""


class EventType(IntEnum):
    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    RAND = 13
    USER_VAR = 14
    FORMAT_DESCRIPTION = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    EXECUTE_LOAD_QUERY = 18
    TABLE_MAP = 19
    WRITE_ROWS_V1 = 23
    UPDATE_ROWS_V1 = 24
    DELETE_ROWS_V1 = 25
    INCIDENT = 26
    HEARTBEAT = 27
    IGNORABLE = 28
    ROWS_QUERY = 29
    WRITE_ROWS = 30
    UPDATE_ROWS = 31
    DELETE_ROWS = 32
    GTID = 33
    ANONYMOUS_GTID = 34
    PREVIOUS_GTIDS = 35
    TRANSACTION_CONTEXT = 36
    VIEW_CHANGE = 37
    XA_PREPARE = 38
    PARTIAL_UPDATE_ROWS = 39
    TRANSACTION_PAYLOAD = 40
    HEARTBEAT_V2 = 41
    GTID_TAGGED = 42
    MARIADB_ANNOTATE_ROWS = 160
    MARIADB_BINLOG_CHECKPOINT = 161
    MARIADB_GTID = 162
    MARIADB_GTID_LIST = 163
    MARIADB_START_ENCRYPTION = 164
    MARIADB_QUERY_COMPRESSED = 165
    MARIADB_WRITE_ROWS_COMPRESSED_V1 = 166
    MARIADB_UPDATE_ROWS_COMPRESSED_V1 = 167
    MARIADB_DELETE_ROWS_COMPRESSED_V1 = 168
    MARIADB_WRITE_ROWS_COMPRESSED = 169
    MARIADB_UPDATE_ROWS_COMPRESSED = 170
    MARIADB_DELETE_ROWS_COMPRESSED = 171


def rotate(event: bytes) -> tuple[str, int]:
    """File and offset where the stream goes on."""
    return event[HEADER + 8 :].decode(), int.from_bytes(event[HEADER : HEADER + 8], "little")


@dataclass(frozen=True, slots=True)
class Query:
    """A statement in the binlog. ``status`` holds the session's variables, still packed."""

    thread_id: int
    error: int
    schema: str
    status: bytes
    statement: bytes


_QUERY = struct.Struct("<IIBHH")


def query(body: bytes) -> Query:
    """Reads the body of a QUERY event.

    Raises:
        BinlogError: it is cut short.
    """
    try:
        thread_id, _, schema_length, error, status_length = _QUERY.unpack_from(body)
    except struct.error:
        raise BinlogError("a QUERY event is cut short") from None
    at = _QUERY.size + status_length
    if at + schema_length + 1 > len(body):
        raise BinlogError("a QUERY event is cut short")
    return Query(
        thread_id,
        error,
        body[at : at + schema_length].decode("utf-8", "surrogateescape"),
        body[_QUERY.size : at],
        body[at + schema_length + 1 :],
    )


_FILE = 13
"""Bytes of an EXECUTE_LOAD_QUERY event about the file, between the sizes and the status variables."""


def load_query(body: bytes) -> Query:
    """Reads the body of an EXECUTE_LOAD_QUERY event: LOAD DATA.

    Raises:
        BinlogError: it is cut short.
    """
    return query(body[: _QUERY.size] + body[_QUERY.size + _FILE :])


_BEGIN = b"\0BEGIN"
_BEGIN_SIZE = HEADER + _QUERY.size + len(_BEGIN)
"""Bytes of a BEGIN event besides its schema (length at offset 27) and status variables (length at 30)."""


def is_begin(event: bytes) -> bool:
    """Whether a QUERY event, without its checksum, is a plain BEGIN: no other statement that ends in this word."""
    size = len(event)
    return (
        size >= _BEGIN_SIZE
        and event.endswith(_BEGIN)
        and size == _BEGIN_SIZE + event[27] + event[30] + (event[31] << 8)
    )


MARIADB_GTID_FIELDS = struct.Struct("<IxI10xQIB")
"""Of MARIADB_GTID: the header's seconds and server id; sequence number, domain, flags."""


# Plain integers, as in stream.py: nearly every event is none of them.
_GTID = int(EventType.GTID)
_BEGIN_GROUPS = frozenset(
    map(int, (EventType.GTID, EventType.ANONYMOUS_GTID, EventType.GTID_TAGGED, EventType.MARIADB_GTID))
)


def gtid_of(event: bytes) -> tuple[Any, ...] | None:
    """The GTID with which an event begins a group, as `place.gtid_text` has it; () if the group has none; None: the
    event begins none.

    Raises:
        BinlogError: as `tagged_gtid` does.
    """
    kind = event[4]
    if kind not in _BEGIN_GROUPS:
        return None
    if kind == _GTID:
        return event[20:36], "", int.from_bytes(event[36:44], "little")
    if kind == EventType.MARIADB_GTID:
        _, server_id, number, domain, _ = MARIADB_GTID_FIELDS.unpack_from(event)
        return domain, server_id, number
    if kind == EventType.GTID_TAGGED:
        source, tag, number, _ = tagged_gtid(event[HEADER:])
        return (source, tag, number) if number else ()
    return ()


def tagged_gtid(body: bytes) -> tuple[bytes, str, int, int]:
    """(source, tag, number, commit time in microseconds) of a GTID_TAGGED event (MySQL >= 8.3).

    Its body is a message of numbered fields; integers are of variable length: as many bytes as the first has low bits
    set, plus one.

    Raises:
        BinlogError: it is cut short, or of a form that this mysqlraft does not know.
    """
    try:
        _, at = _variable(body, 0)  # version
        size, at = _variable(body, at)
        _, at = _variable(body, at)  # the last field that must be understood
        found: dict[int, int] = {}
        source, tag = bytearray(), ""
        while at < min(size, len(body)):
            number, at = _variable(body, at)
            if number == 1:
                for _ in range(16):
                    value, at = _variable(body, at)
                    source.append(value)
            elif number == 3:
                length, at = _variable(body, at)
                tag = body[at : at + length].decode("ascii")
                at += length
            else:
                found[number], at = _variable(body, at)
        return bytes(source), tag, found.get(2, 0) >> 1, found.get(7, 0) or found.get(6, 0)
    except (IndexError, ValueError):
        raise BinlogError("a tagged GTID event is cut short or of an unknown form") from None


def _variable(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    width = 1
    while first & 1 << width - 1 and width < 9:
        width += 1
    if at + width > len(data):
        raise IndexError
    value = int.from_bytes(data[at : at + width], "little")
    return (value >> width if width < 9 else value >> 8), at + width
