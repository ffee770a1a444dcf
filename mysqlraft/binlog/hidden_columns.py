"""Columns that MariaDB adds to a table for its own use, and that no other site can write.

A unique key on a whole TEXT, or one too long for an index, is kept by the hash of its values in a hidden column behind
the others, ``DB_ROW_HASH_1`` and so on. It is in the table maps and in the row images, but not in the table that
anybody sees. Every server computes it from the row, so it is left out of both; the key itself is on the columns that it
names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mysqlraft.binlog.rows import Image, columns_of, layout_of, split
from mysqlraft.binlog.tablemap import NUMERIC, Column, ColumnType, TableMap, lenenc, parse

_NAME = re.compile(r"DB_ROW_HASH_\d+")
_SIGNEDNESS, _NAMES = 1, 4
"""Optional metadata that has something to say of a hidden column."""


def hidden_columns(table: TableMap, visible: Callable[[], Sequence[str] | None]) -> int:
    """How many columns at the end of a table map are hidden.

    ``visible``: asks for the names of the table's columns, None if it is gone; only where one may be hidden.
    """
    count = 0
    for column in reversed(table.columns):
        if column.type is not ColumnType.LONGLONG or not column.nullable or not _NAME.fullmatch(column.name):
            break
        count += 1
    if not count:
        return 0
    names = visible() or ()
    return sum(column.name not in names for column in table.columns[-count:])


def without_columns(body: bytes, count: int) -> bytes:
    """A TABLE_MAP's body (see `tablemap.parse`) without its last columns, of which all are BIGINTs that may be NULL."""
    at = 1 + body[0] + 1
    at += 1 + body[at] + 1
    columns, start = lenenc(body, at)
    kept = columns - count
    meta_length, after = lenenc(body, start + columns)
    nulls_at = after + meta_length
    nulls = int.from_bytes(body[nulls_at : nulls_at + (columns + 7) // 8], "little") & ((1 << kept) - 1)
    shorter = [
        body[:at],
        _lenenc(kept),
        body[start : start + kept],
        body[start + columns : nulls_at],  # a BIGINT has no metadata
        nulls.to_bytes((kept + 7) // 8, "little"),
    ]
    at = nulls_at + (columns + 7) // 8
    while at < len(body):
        kind = body[at]
        length, start = lenenc(body, at + 1)
        value = body[start : start + length]
        at = start + length
        if kind == _SIGNEDNESS:
            value = _fewer_bits(value, parse(body), count)
        elif kind == _NAMES:
            end = 0
            for _ in range(kept):
                size, end = lenenc(value, end)
                end += size
            value = value[:end]
        shorter += [bytes((kind,)), _lenenc(len(value)), value]
    return b"".join(shorter)


def _fewer_bits(bits: bytes, table: TableMap, count: int) -> bytes:
    numeric = sum(column.type in NUMERIC for column in table.columns[:-count])
    value = int.from_bytes(bits, "big") >> 8 * len(bits) - numeric if numeric else 0
    size = (numeric + 7) // 8
    return (value << 8 * size - numeric).to_bytes(size, "big")


def _lenenc(value: int) -> bytes:
    if value < 251:
        return bytes((value,))
    return b"\xfc" + value.to_bytes(2, "little") if value < 1 << 16 else b"\xfd" + value.to_bytes(3, "little")


class RowCutter:
    """Takes the hidden columns out of rows of one table map. ``whole``: with them; ``table``: without."""

    def __init__(self, whole: TableMap, table: TableMap) -> None:
        self._whole, self._table = whole, table

    def cut(self, kind: int, layout: bytes, images: bytes) -> tuple[bytes, bytes]:
        """The layout and the images of the same rows without them.

        Raises:
            RowsError: the images do not fit the table map.
        """
        kept = len(self._table.columns)
        sides = columns_of(self._whole, kind, layout)
        before, after = ([column for column in side or () if column.index < kept] for side in sides)
        shorter = [
            _cut(image, side, kept)
            for row in split(self._whole, kind, layout, images)
            for image, side in zip(row, sides, strict=True)
            if image is not None and side is not None
        ]
        return layout_of(self._table, kind, before, after), b"".join(shorter)


def _cut(image: Image, columns: Sequence[Column], kept: int) -> Image:
    wide = (len(columns) + 7) // 8
    nulls = int.from_bytes(image[:wide], "little")
    remaining = len(columns)
    end = len(image)
    while remaining and columns[remaining - 1].index >= kept:
        remaining -= 1
        if not nulls >> remaining & 1:
            end -= columns[remaining].size
    narrow = (remaining + 7) // 8
    # The server sets the bits beyond the last column.
    nulls |= (1 << 8 * narrow) - (1 << remaining)
    return (nulls & ((1 << 8 * narrow) - 1)).to_bytes(narrow, "little") + image[wide:end]
