"""Rows that are too large to be carried like others.

A large row travels by itself. Its after image travels whole, but of what it was before only what finds it again, the
primary key, and what is small: the two images of an UPDATE together may be twice as large as any statement that writes
the row. A row whose after image no statement could hold does not travel at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from mysqlraft.binlog.display import row_json
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.mapped_tables import MappedTable
from mysqlraft.binlog.rows import (
    Image,
    RowKind,
    RowsError,
    bounds,
    columns_of,
    fields,
    image_of,
    layout_of,
    pick,
    primary_key,
)
from mysqlraft.binlog.tablemap import Column

SMALL = 1 << 10
"""Bytes of a value that travels with what a large row was before."""
BESIDES = 64 << 10
"""Bytes of a statement that writes a row besides the row, at most."""
_SHOWN = 200


def largest_row(max_allowed_packet: int) -> int:
    """Bytes of the largest row that a server with this setting takes: it gets it in base64."""
    return max(0, max_allowed_packet - BESIDES) // 4 * 3


@dataclass(frozen=True, slots=True)
class CutRows:
    """Rows next to each other in an event. ``layout`` and ``images`` are what travels; ``start`` and ``end`` where they
    are, with all their columns, in the event's images. ``large``: it is one row, and travels by itself.
    """

    layout: bytes
    images: bytes
    start: int
    end: int
    large: bool


class LargeRowCutter:
    """Cuts the images of events that may hold large rows."""

    def __init__(self, part_bytes: int, row_bytes: int) -> None:
        """``part_bytes``: a row is large from there on, and other rows leave in pieces of about so many bytes.
        ``row_bytes``: of a row that travels, at most."""
        self._part_bytes = part_bytes
        self._row_bytes = row_bytes
        self._large = min(part_bytes, row_bytes)

    def cut(self, table: MappedTable, kind: RowKind, layout: bytes, images: bytes, start: int) -> Iterator[CutRows]:
        """All rows of an event, in their order. ``start``: where the first begins.

        Raises:
            BinlogError: they do not fit the table, or one of them is too large to travel.
        """
        at = start
        try:
            for begin, middle, end in bounds(table.parsed, kind, layout, images, start):
                if end - begin > self._large:
                    if at > start:
                        yield CutRows(layout, images[start:at], start, at, large=False)
                    yield self._large_row(table, kind, layout, images, begin, middle, end)
                    start = end
                elif end - start >= self._part_bytes:
                    yield CutRows(layout, images[start:end], start, end, large=False)
                    start = end
                at = end
        except RowsError as error:
            raise BinlogError(str(error)) from None
        if at > start:
            yield CutRows(layout, images[start:at], start, at, large=False)

    def _large_row(
        self, table: MappedTable, kind: RowKind, layout: bytes, images: bytes, begin: int, middle: int, end: int
    ) -> CutRows:
        before, after = columns_of(table.parsed, kind, layout)
        kept: tuple[Column, ...] = ()
        travels = b""
        if before is not None:
            primary = primary_key(table.parsed)
            # Nothing of it is copied that does not travel.
            image = cast(Image, memoryview(images)[begin:middle])
            known = [
                (column, field)
                for column, field in zip(before, fields(before, image), strict=True)
                if field is None or column in primary or len(field) <= SMALL
            ]
            kept = tuple(column for column, _ in known)
            travels = image_of([field for _, field in known])
        travels = b"".join((travels, memoryview(images)[middle:end]))
        if len(travels) > self._row_bytes:
            self._refuse(
                table, before or after or (), images[begin : middle if before is not None else end], len(travels)
            )
        layout = layout_of(table.parsed, kind, kept, after or ())
        return CutRows(layout, travels, begin, end, large=len(travels) > self._part_bytes)

    def _refuse(self, table: MappedTable, columns: tuple[Column, ...], image: Image, size: int) -> None:
        primary = primary_key(table.parsed)
        key = row_json(primary, image_of(pick(columns, primary, image)), _SHOWN)[:_SHOWN]
        raise BinlogError(
            f"{'.'.join(table.name)}: the row with primary key {key} has {size} bytes, and the server's "
            f"max_allowed_packet lets no more than {self._row_bytes} through: at every site, SET GLOBAL "
            f"max_allowed_packet = {1 << (size * 4 // 3 + BESIDES).bit_length()}, and reload"
        )
