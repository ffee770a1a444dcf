"""The session that a statement ran in, as far as the binlog tells.

A QUERY event carries flags and status variables: a code, then a value whose length the code tells. Each of them is
either carried to the other sites or known not to matter to a statement that changes a schema; any other one is an error
that names it, as what it means there is not known. Codes up to 12 mean the same on both kinds of server; MySQL goes on
with 13, MariaDB with 128.

Sources of facts: MySQL's documentation of Query_event, MariaDB's knowledge base, and real servers
(``tests/binlog/test_session_context.py``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from mysqlraft.binlog.errors import BinlogError

Context = dict[str, Any]
"""Session variable -> value. Character sets and collations are the server's numbers of collations, and
``character_set_collations`` is a list of pairs of them: `mysqlraft.replication.statement_session` knows the names."""


@dataclass(slots=True)
class SessionContext:
    """What a statement's event says of its session.

    ``schemas``: those that the server says the statement touches. ``invoker``: user and host of the account that ran
    it, where the statement depends on it. ``without_effect``: the server gave the statement no number as something that
    changed definitions. Some that do change them have none: see `mysqlraft.binlog.repeating`.
    """

    variables: Context = field(default_factory=dict)
    schemas: list[str] = field(default_factory=list)
    invoker: tuple[str, str] | None = None
    without_effect: bool = True


_FIXED: dict[int, tuple[str, tuple[str, ...]]] = {
    0: ("<I", ("flags",)),
    1: ("<Q", ("sql_mode",)),
    3: ("<HH", ("auto_increment_increment", "auto_increment_offset")),
    4: ("<HHH", ("character_set_client", "collation_connection", "collation_server")),
    7: ("<H", ("lc_time_names",)),
    8: ("<H", ("collation_database",)),
    9: ("<Q", ("",)),  # the tables that an UPDATE of several tables changes
    10: ("<I", ("",)),  # the event's size at the first server of a chain
    13: ("<3s", ("microseconds",)),
    16: ("<B", ("explicit_defaults_for_timestamp",)),
    17: ("<Q", ("",)),  # the number of the transaction that changed MySQL's data dictionary
    18: ("<H", ("default_collation_for_utf8mb4",)),
    19: ("<B", ("sql_require_primary_key",)),
    20: ("<B", ("default_table_encryption",)),
    21: ("<B", ("",)),  # MySQL >= 9.6, with statements that change rows
    128: ("<3s", ("microseconds",)),
    129: ("<Q", ("",)),  # the number by which MariaDB finds the statement in its own log of statements
}
_CHANGED_DEFINITIONS = (17, 129)
_ALTER_PARTS = 4 | 8
"""Of MariaDB's code 130: the second of the two events of one ALTER, which carries the number of the first."""

# Bit of the flags -> (variable, its value if the bit is set, its value if it is not).
_FLAGS: dict[int, tuple[str, int, int]] = {
    14: ("sql_auto_is_null", 1, 0),
    26: ("foreign_key_checks", 0, 1),
    27: ("unique_checks", 0, 1),
}
_MARIADB_FLAGS = _FLAGS | {
    15: ("check_constraint_checks", 0, 1),
    24: ("explicit_defaults_for_timestamp", 1, 0),
    28: ("sql_if_exists", 1, 0),
}
_OF_ROWS_ONLY = 1 << 19 | 1 << 30
"""Flags of a session that no statement about a schema depends on: not autocommit; MariaDB: history may be inserted."""


def session_context(status: bytes, timestamp: int, *, mariadb: bool) -> SessionContext:
    """Reads an event's status variables. ``timestamp``: the event's, in seconds.

    Raises:
        BinlogError: a status variable or a flag that this mysqlraft does not know.
    """
    found = SessionContext()
    try:
        _read(status, found)
    except (IndexError, ValueError, struct.error):
        raise BinlogError("the status variables of a statement are cut short") from None
    variables = found.variables
    flags = variables.pop("flags", 0)
    known = _MARIADB_FLAGS if mariadb else _FLAGS
    unknown = flags & ~_OF_ROWS_ONLY & ~sum(1 << bit for bit in known)
    if unknown:
        raise BinlogError(
            f"a statement in the binlog ran under session flags {unknown:#x}, unknown to this mysqlraft: what it does "
            "at the other sites cannot be told"
        )
    for bit, (name, if_set, if_not) in known.items():
        variables[name] = if_set if flags >> bit & 1 else if_not
    fraction = int.from_bytes(variables.pop("microseconds", b""), "little")
    variables["timestamp"] = f"{timestamp}.{fraction:06}"
    return found


def _read(status: bytes, found: SessionContext) -> None:
    variables = found.variables
    at = 0
    while at < len(status):
        code = status[at]
        at += 1
        if code in _FIXED:
            form, names = _FIXED[code]
            values = struct.unpack_from(form, status, at)
            at += struct.calcsize(form)
            variables.update((name, value) for name, value in zip(names, values, strict=True) if name)
            if code in _CHANGED_DEFINITIONS:
                found.without_effect = False
        elif code == 2:  # catalog, with a terminating zero
            at += status[at] + 2
        elif code == 5:
            zone, at = _text(status, at)
            if zone:
                variables["time_zone"] = zone
        elif code == 6:  # catalog
            _, at = _text(status, at)
        elif code == 11:
            user, at = _text(status, at)
            host, at = _text(status, at)
            found.invoker = user, host
        elif code == 12:
            count = status[at]
            at += 1
            for _ in range(count if count != 254 else 0):
                end = status.index(b"\0", at)
                found.schemas.append(status[at:end].decode("utf-8", "surrogateescape"))
                at = end + 1
        elif code == 130:
            at += 9 if status[at] & _ALTER_PARTS else 1
        elif code == 131:
            pairs = list(struct.iter_unpack("<HH", _bytes(status, at + 1, 4 * status[at])))
            at += 1 + 4 * status[at]
            variables["character_set_collations"] = pairs
        else:
            raise BinlogError(f"a statement in the binlog carries status variable {code}, unknown to this mysqlraft")
    if at > len(status):
        raise IndexError


def _bytes(status: bytes, at: int, size: int) -> bytes:
    if at + size > len(status):
        raise IndexError
    return status[at : at + size]


def _text(status: bytes, at: int) -> tuple[str, int]:
    """A text with its length in one byte before it, and the offset after it."""
    size = status[at]
    return _bytes(status, at + 1, size).decode("utf-8", "surrogateescape"), at + 1 + size
