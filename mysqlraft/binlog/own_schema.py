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
    start = HEADER + 8 + (int.from_bytes(event[HEADER + 8 : HEADER + 10], "little") if extra else 0)
    middle = start + layout_bytes
    layout, images = event[start:middle], event[middle:]
    try:
        if compressed:
            images = unpack(images)
        sides = zip(columns_of(table, kind, layout), next(split(table, kind, layout, images)), strict=True)
        before, after = (_applied(columns, image) for columns, image in sides)
    except (RowsError, StopIteration) as error:
        raise BinlogError(f"the progress row cannot be read: {error}") from None
    if after is None:
        raise BinlogError("an applied transaction does not set the progress row's second column")
    return before, after


def _applied(columns: tuple[Column, ...] | None, image: Image | None) -> int | None:
    if columns is not None and image is not None:
        for column, value in zip(columns, fields(columns, image), strict=True):
            if column.index == 1 and value is not None:
                return int.from_bytes(value, "little")
    return None
