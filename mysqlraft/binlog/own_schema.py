"""The daemon's own schema as it shows in the binlog: by its rows an applied transaction is told from a local one."""

from __future__ import annotations

from mysqlraft.binlog.compression import unpack
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import HEADER
from mysqlraft.binlog.rows import Image, RowKind, RowsError, columns_of, fields, split
from mysqlraft.binlog.tablemap import Column, TableMap

OWN_SCHEMA = "mysqlraft"
PROGRESS = (OWN_SCHEMA, "progress")
"""The table whose second column, ``applied``, an applied transaction sets before anything else."""

NEVER = frozenset((OWN_SCHEMA, "mysql", "sys", "information_schema", "performance_schema"))
"""Schemas that are never replicated."""


def read_applied(
    table: TableMap, layout_bytes: int, event: bytes, kind: RowKind, extra: bool, compressed: bool
) -> tuple[int | None, int]:
    """The second column of `PROGRESS` before and after a rows event; None: the images lack it. ``layout_bytes``: the
    size of the event's layout.

    Raises:
        BinlogError: the rows do not tell the new value.
    """
    before, after = _both(table, layout_bytes, event, kind, extra, compressed)
    if after is None:
        raise BinlogError("an applied transaction does not set the progress row's second column")
    return before and before[0], after[0]


def read_intent(
    table: TableMap, layout_bytes: int, event: bytes, kind: RowKind, extra: bool, compressed: bool
) -> bytes:
    """The intent that a rows event of `PROGRESS` stores; nothing if it moves what is applied. Raises as `read_applied`
    does."""
    before, after = _both(table, layout_bytes, event, kind, extra, compressed)
    return after[1] if before is not None and after is not None and before[0] == after[0] else b""


def _both(
    table: TableMap, layout_bytes: int, event: bytes, kind: RowKind, extra: bool, compressed: bool
) -> tuple[tuple[int, bytes] | None, tuple[int, bytes] | None]:
    """``applied`` and the intent, before and after a rows event of `PROGRESS`."""
    start = HEADER + 8 + (int.from_bytes(event[HEADER + 8 : HEADER + 10], "little") if extra else 0)
    middle = start + layout_bytes
    layout, images = event[start:middle], event[middle:]
    try:
        if compressed:
            images = unpack(images)
        sides = zip(columns_of(table, kind, layout), next(split(table, kind, layout, images)), strict=True)
        before, after = (_columns(columns, image) for columns, image in sides)
    except (RowsError, StopIteration) as error:
        raise BinlogError(f"the progress row cannot be read: {error}") from None
    return before, after


def _columns(columns: tuple[Column, ...] | None, image: Image | None) -> tuple[int, bytes] | None:
    applied, intent = None, b""
    if columns is not None and image is not None:
        for column, value in zip(columns, fields(columns, image), strict=True):
            if column.index == 1 and value is not None:
                applied = int.from_bytes(value, "little")
            elif column.index == 3 and value is not None:
                intent = value[column.prefix :]
    return None if applied is None else (applied, intent)
