"""What a stream makes of the binlog: local transactions, and statements that change the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """A statement to be run everywhere. ``inside``: rows of the same transaction follow."""

    tables: list[tuple[str, str | None]]
    statement: str
    schema: str
    context: dict[str, Any]
    committed_at: int
    inside: bool


Item = Rows | SchemaChange | None
"""What a stream yields. None: `TransactionStream.position` is that after all before it, and about to move."""
