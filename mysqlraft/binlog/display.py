"""Rows for people to read, as JSON: exact or hexadecimal, the same text at every site, and never an exception.

Needs no server: what a value means is in the table map alone.
"""

from __future__ import annotations

import codecs
import json
import struct
from collections.abc import Sequence
from typing import Any

from mysqlraft.binlog.encodings import encoding_of
from mysqlraft.binlog.rows import RowsError, fields
from mysqlraft.binlog.tablemap import BINARY_COLLATION, Column, ColumnType
from mysqlraft.binlog.values import ValueFormError, scalar, value_of

_T = ColumnType
_WIDEST = 4
"""Bytes that a character, which is one at least in UTF-8, takes at most in any character set."""


def row_json(columns: Sequence[Column], image: bytes, limit: int | None = None) -> str:
    """One JSON object: column name -> value, in the table's order. ``limit``: at least the first so many bytes of it
    are right, which is all that is wanted: no more is read of a large value than that takes.

    NULL is null; integers and finite floating-point numbers are numbers; decimals, dates and times the server's text
    (a TIMESTAMP in UTC); an ENUM its label, a SET its labels; strings text if they are valid in their character set;
    a VECTOR a list; everything else, and whatever cannot be read, is "0x" and hexadecimal digits.
    """
    try:
        found = {
            column.name or f"@{column.index + 1}": None if field is None else _shown(column, field, limit)
            for column, field in zip(columns, fields(columns, image), strict=True)
        }
    except RowsError:
        return json.dumps({"unreadable": _hex(image[:limit])})
    return json.dumps(found, ensure_ascii=False)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _shown(column: Column, field: bytes, limit: int | None) -> Any:
    whole = limit is None or len(field) <= column.prefix + _WIDEST * limit
    value = value_of(column, field if limit is None or whole else field[: column.prefix + _WIDEST * limit])
    try:
        return _readable(column, value, whole=whole)
    except (ValueFormError, ValueError, LookupError, OverflowError, struct.error):
        return _hex(value)


def _readable(column: Column, value: bytes, *, whole: bool) -> Any:
    kind = column.type
    if kind in (_T.FLOAT, _T.DOUBLE):
        (number,) = struct.unpack("<f" if kind is _T.FLOAT else "<d", value)
        return number
    if kind is _T.ENUM:
        number = int.from_bytes(value, "little")
        return _text(column.labels[number - 1], column.collation) if number else ""
    if kind is _T.SET:
        bits = int.from_bytes(value, "little")
        return [_text(label, column.collation) for n, label in enumerate(column.labels) if bits >> n & 1]
    if kind is _T.VECTOR:
        return list(struct.unpack(f"<{len(value) // 4}f", value))
    if kind in (_T.VARCHAR, _T.VAR_STRING, _T.STRING, _T.BLOB):
        return _text(value, column.collation, whole=whole)
    return scalar(column, value)


def _text(value: bytes, collation: int | None, *, whole: bool = True) -> str:
    if collation is None or collation == BINARY_COLLATION:
        return _hex(value)
    try:
        encoding = encoding_of(collation)
    except LookupError:
        encoding = "utf-8"
    return codecs.getincrementaldecoder(encoding)().decode(value, final=whole)
