"""Row images: where rows begin and end, the fields of one, and images built anew.

A rows event's *layout* is its column count and column bitmaps (an update has two), its *images* the rows after it. An
image is a bitmap of NULLs among the columns present, then the *fields* of the others. A field is a value as the binlog
holds it, length bytes included, so fields can be put together into a new image without knowing what they mean;
`mysqlraft.binlog.values` knows that.

Boundaries are found by generated code, one function a (table, columns present); `mysqlraft.binlog.slicer` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache

from mysqlraft.binlog.slicer import compile_walker
from mysqlraft.binlog.tablemap import Column, TableMap, lenenc


class RowsError(ValueError):
    """Images that do not fit their table map: truncated, garbled, or of another table."""


class RowKind(IntEnum):
    """What a rows event does; the same numbers as an entry's changes."""

    WRITE = 0
    UPDATE = 1
    DELETE = 2


Image = bytes
Field = bytes


@lru_cache(maxsize=4096)
def columns_of(
    table: TableMap, kind: int, layout: bytes
) -> tuple[tuple[Column, ...] | None, tuple[Column, ...] | None]:
    """The columns present in before and after images; None for an image that the kind does not have.

    Raises:
        RowsError: the layout is not one of this table.
    """
    try:
        count, at = lenenc(layout, 0)
    except (IndexError, ValueError) as error:
        raise RowsError(f"no rows layout: {error}") from None
    width = (count + 7) // 8
    bitmaps = 2 if kind == RowKind.UPDATE else 1
    if count != len(table.columns) or len(layout) != at + width * bitmaps:
        raise RowsError(
            f"{table.schema}.{table.table}: rows of {count} columns under a table map of {len(table.columns)}"
        )
    sides = []
    for start in range(at, len(layout), width):
        bits = int.from_bytes(layout[start : start + width], "little")
        sides.append(tuple(column for column in table.columns if bits >> column.index & 1))
    if kind == RowKind.UPDATE:
        return sides[0], sides[1]
    return (None, sides[0]) if kind == RowKind.WRITE else (sides[0], None)


def layout_of(table: TableMap, kind: int, before: Iterable[Column] = (), after: Iterable[Column] = ()) -> bytes:
    """The layout of rows that have just these columns; the inverse of `columns_of`."""
    count = len(table.columns)
    layout = bytes((count,)) if count < 251 else b"\xfc" + count.to_bytes(2, "little")
    sides = {RowKind.WRITE: (after,), RowKind.UPDATE: (before, after), RowKind.DELETE: (before,)}[RowKind(kind)]
    for side in sides:
        layout += sum(1 << column.index for column in side).to_bytes((count + 7) // 8, "little")
    return layout


def split(table: TableMap, kind: int, layout: bytes, images: bytes) -> Iterator[tuple[Image | None, Image | None]]:
    """(before, after) of each row; None for the image that the kind does not have.

    Raises:
        RowsError: the images do not end where their last row does.
    """
    before, after = columns_of(table, kind, layout)
    first = compile_walker(before) if before is not None else None
    second = compile_walker(after) if after is not None else None
    at, end = 0, len(images)
    try:
        while at < end:
            start = at
            if first is not None:
                at = first(images, at)
            middle = at
            if second is not None:
                at = second(images, at)
            if at > end:
                break
            yield (
                images[start:middle] if first is not None else None,
                images[middle:at] if second is not None else None,
            )
    except IndexError:
        at = end + 1
    if at != end:
        raise RowsError(f"{table.schema}.{table.table}: row images are cut short")


def bounds(table: TableMap, kind: int, layout: bytes, data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Of each row in images that begin at ``start``: where it begins, where its after image does (the end of a row
    without one), and where it ends.

    Raises:
        RowsError: the images do not end where their last row does.
    """
    before, after = columns_of(table, kind, layout)
    first = compile_walker(before) if before is not None else None
    second = compile_walker(after) if after is not None else None
    at, end = start, len(data)
    try:
        while at < end:
            start = at
            if first is not None:
                at = first(data, at)
            middle = at
            if second is not None:
                at = second(data, at)
            if at > end:
                break
            yield start, middle, at
    except IndexError:
        at = end + 1
    if at != end:
        raise RowsError(f"{table.schema}.{table.table}: row images are cut short")


def fields(columns: Sequence[Column], image: Image) -> list[Field | None]:
    """The field of each column present, in order; None: NULL.

    Raises:
        RowsError: the image is not one of these columns.
    """
    at = (len(columns) + 7) // 8
    nulls = int.from_bytes(image[:at], "little")
    found: list[Field | None] = []
    for number, column in enumerate(columns):
        if nulls >> number & 1:
            found.append(None)
            continue
        end = at + column.size
        if column.prefix:
            end = at + column.prefix + int.from_bytes(image[at : at + column.prefix], "little")
        found.append(image[at:end])
        at = end
    if at != len(image):
        raise RowsError(f"an image of {len(image)} bytes, where its fields take {at}")
    return found


def image_of(values: Sequence[Field | None]) -> Image:
    """The image made of these fields; the inverse of `fields`."""
    nulls = sum(1 << number for number, value in enumerate(values) if value is None)
    return nulls.to_bytes((len(values) + 7) // 8, "little") + b"".join(v for v in values if v is not None)


def primary_key(table: TableMap) -> tuple[Column, ...]:
    """The primary key's columns, in the order of the table (the order that images have them in).

    Raises:
        RowsError: there is no primary key, or the table map does not tell (binlog_row_metadata is not FULL).
    """
    if not table.primary_key:
        raise RowsError(f"{table.schema}.{table.table} has no primary key in the binlog's metadata")
    return tuple(table.columns[index] for index in sorted(index for index, _ in table.primary_key))


def pick(columns: Sequence[Column], wanted: Sequence[Column], image: Image) -> list[Field | None]:
    """The fields of just the wanted columns, in their order.

    Raises:
        RowsError: one of them is not in the image.
    """
    by_index = dict(zip((column.index for column in columns), fields(columns, image), strict=True))
    try:
        return [by_index[column.index] for column in wanted]
    except KeyError as missing:
        raise RowsError(f"column {missing.args[0] + 1} is not in the image: binlog_row_image must be FULL") from None
