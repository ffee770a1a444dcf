"""What a stream makes of the binlog: local transactions, and statements that change the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.place import Place
from mysqlraft.binlog.rows import RowKind


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
    """A statement to be run everywhere, as in the binlog; ``text``: what it says. ``inside``: rows of the same
    transaction follow. ``place``: of its transaction. ``timestamps``: the columns, in lower case, that were of type
    TIMESTAMP in the table that it alters; None: not known."""

    tables: list[tuple[str, str | None]]
    statement: bytes
    text: str
    schema: str
    context: dict[str, Any]
    committed_at: int
    inside: bool
    place: Place | None = None
    timestamps: frozenset[str] | None = None


Item = Rows | SchemaChange | None
"""What a stream yields. None: `TransactionStream.position` is that after all before it, and about to move."""
