"""What fields mean: key values to and from SQL, and any value for people to read.

For keys the way is exact in both directions, for every type that may stand in a primary or unique key:

    field --literal()--> SQL to compare the column with
    selected() --the server's answer--> encode() --> field

The session must have ``time_zone = '+00:00'`` and ``sql_mode = ''``: timestamps are compared and read as text, and zero
dates are values like any other.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from datetime import date
from typing import Any, Final, Protocol

from mysqlraft.binlog.tablemap import BINARY_COLLATION, DIGIT_BYTES, Column, ColumnType

_T = ColumnType

_INTEGERS = frozenset((_T.TINY, _T.SHORT, _T.INT24, _T.LONG, _T.LONGLONG))
_STRINGS = frozenset((_T.VARCHAR, _T.VAR_STRING, _T.STRING, _T.BLOB))
_TEMPORAL = frozenset((_T.DATE, _T.NEWDATE, _T.TIME, _T.TIME2, _T.DATETIME, _T.DATETIME2, _T.TIMESTAMP, _T.TIMESTAMP2))

_LARGE: Final = 16 << 10
"""Bytes of a value that is larger than any that an index serves."""


class Names(Protocol):
    """The names that this server gives to the numbers of collations."""

    def charset(self, collation: int) -> str:
        """The character set of a collation."""

    def name(self, collation: int) -> str:
        """The collation."""


class ValueFormError(ValueError):
    """A value that its column's type cannot hold, or a type that cannot be part of a key."""


def value_of(column: Column, field: bytes) -> bytes:
    """The value of a field, without its length bytes."""
    return field[column.prefix :]


def field_of(column: Column, value: bytes) -> bytes:
    """The field that holds a value."""
    return len(value).to_bytes(column.prefix, "little") + value if column.prefix else value


def string(value: bytes, charset: str) -> str:
    """SQL for a string. A large one takes no more room than a row with it does in a BINLOG statement."""
    if len(value) < _LARGE:
        return f"_{charset} 0x{value.hex()}" if value else f"_{charset} ''"
    return f"CONVERT(FROM_BASE64('{b2a_base64(value, newline=False).decode()}') USING {charset})"


def literal(column: Column, field: bytes, names: Names) -> str:
    """SQL that equals, compared with this column, just what the field equals. Pure ASCII.

    Raises:
        ValueFormError: the type cannot be part of a key.
    """
    value = value_of(column, field)
    if column.type in _STRINGS:
        if column.collation is None or column.collation == BINARY_COLLATION:
            if column.type is _T.STRING:
                value = value.ljust(column.size, b"\0")
            return string(value, "binary")
        text = string(value, names.charset(column.collation))
        # A large one, which is converted, has a collation that counts as much as the column's.
        return text if len(value) < _LARGE else f"{text} COLLATE {names.name(column.collation)}"
    if column.type in (_T.FLOAT, _T.DOUBLE):
        shown = repr(_floating(column, value))
        return shown if "e" in shown else shown + "e0"
    number = scalar(column, value)
    if column.type is _T.SET and int(number) >> 63 and column.collation is not None:
        # As a number it would be compared with the sign bit.
        chosen = (label for n, label in enumerate(column.labels) if int(number) >> n & 1)
        return string(b",".join(chosen), names.charset(column.collation))
    return f"'{number}'" if column.type in _TEMPORAL else str(number)


def selected(column: Column, name: str) -> str:
    """The SQL expression to select for the column called `name` (already quoted), so that `encode` understands it."""
    if column.type in _STRINGS:
        return f"HEX({name})"
    if column.type in (_T.FLOAT, _T.DOUBLE):
        return f"{name}+0e0"
    if column.type in (_T.ENUM, _T.SET, _T.BIT, _T.YEAR):
        return f"CAST({name} AS UNSIGNED)"
    if column.type in _INTEGERS:
        return name
    return f"CAST({name} AS CHAR)"


def encode(column: Column, answer: Any) -> bytes | None:
    """The field for what the server answered to `selected`; None for NULL.

    Raises:
        ValueFormError: no such value fits the column.
    """
    if answer is None:
        return None
    if isinstance(answer, bytes | bytearray):
        answer = answer.decode("ascii")
    try:
        return field_of(column, _encode(column, answer))
    except (OverflowError, struct.error, ValueError, IndexError) as error:
        if isinstance(error, ValueFormError):
            raise
        raise ValueFormError(f"{answer!r} is no value for column {column.name} ({column.type.name}): {error}") from None


def _encode(column: Column, answer: Any) -> bytes:
    kind, size = column.type, column.size
    if kind in _INTEGERS:
        return int(answer).to_bytes(size, "little", signed=not column.unsigned)
    if kind in _STRINGS:
        value = bytes.fromhex(answer)
        if kind is _T.STRING:
            value = value.rstrip(b"\0" if column.collation in (None, BINARY_COLLATION) else b" ")
        return value
    if kind in (_T.FLOAT, _T.DOUBLE):
        return struct.pack("<f" if kind is _T.FLOAT else "<d", float(answer))
    if kind is _T.BIT:
        return int(answer).to_bytes(size, "big")
    if kind in (_T.ENUM, _T.SET):
        return int(answer).to_bytes(size, "little")
    if kind is _T.YEAR:
        return bytes((max(int(answer) - 1900, 0),))
    if kind is _T.NEWDECIMAL:
        return _pack_decimal(str(answer), column.precision, column.scale)
    if kind in _TEMPORAL:
        return _pack_temporal(column, str(answer))
    raise ValueFormError(f"column {column.name}: a {kind.name} cannot be part of a key")


def _floating(column: Column, value: bytes) -> float:
    number: float = struct.unpack("<f" if column.type is _T.FLOAT else "<d", value)[0]
    return number


def scalar(column: Column, value: bytes) -> int | str:
    """Integers as such, everything else as the text that the server prints."""
    kind = column.type
    if kind in _INTEGERS:
        return int.from_bytes(value, "little", signed=not column.unsigned)
    if kind is _T.BIT:
        return int.from_bytes(value, "big")
    if kind in (_T.ENUM, _T.SET):
        return int.from_bytes(value, "little")
    if kind is _T.YEAR:
        return value[0] + 1900 if value[0] else 0
    if kind is _T.NEWDECIMAL:
        return unpack_decimal(value, column.precision, column.scale)
    if kind in _TEMPORAL:
        return unpack_temporal(column, value)
    raise ValueFormError(f"column {column.name}: a {kind.name} cannot be part of a key")


# DECIMAL: groups of nine digits in four bytes, big-endian; a shorter group before and after; the first bit inverted;
# all bits inverted if the number is negative.


def unpack_decimal(value: bytes, precision: int, scale: int) -> str:
    """The number as the server prints it, with all digits of its scale."""
    negative = not value[0] & 0x80
    raw = bytearray(value)
    raw[0] ^= 0x80
    if negative:
        raw = bytearray(byte ^ 0xFF for byte in raw)
    whole = precision - scale
    at, text = 0, ""
    for digits in [whole % 9] + [9] * (whole // 9) + [0] + [9] * (scale // 9) + [scale % 9]:
        width = DIGIT_BYTES[digits]
        if width:
            text += str(int.from_bytes(raw[at : at + width], "big")).zfill(digits)
            at += width
    before = text[:whole].lstrip("0") or "0"
    return ("-" if negative else "") + before + ("." + text[whole:] if scale else "")


def _pack_decimal(text: str, precision: int, scale: int) -> bytes:
    negative = text.startswith("-")
    before, _, after = text.lstrip("-").partition(".")
    whole = precision - scale
    digits = before.lstrip("0").zfill(whole) + after.ljust(scale, "0")
    if len(digits) != precision or not digits.isdecimal():
        raise ValueFormError(f"{text} does not fit DECIMAL({precision},{scale})")
    at, raw = 0, bytearray()
    for count in [whole % 9] + [9] * (whole // 9) + [9] * (scale // 9) + [scale % 9]:
        raw += int(digits[at : at + count] or "0").to_bytes(DIGIT_BYTES[count], "big")
        at += count
    if negative:
        raw = bytearray(byte ^ 0xFF for byte in raw)
    raw[0] ^= 0x80
    return bytes(raw)


# Dates and times. The types ending in 2 are big-endian, with a fraction of (scale + 1) // 2 bytes after them.


def unpack_temporal(column: Column, value: bytes) -> str:
    """The value as the server prints it; a TIMESTAMP in UTC."""
    kind = column.type
    if kind in (_T.DATE, _T.NEWDATE):
        return _date(int.from_bytes(value, "little"))
    if kind is _T.TIME:
        number = int.from_bytes(value, "little", signed=True)
        return f"{'-' if number < 0 else ''}{_clock(abs(number) // 10000, abs(number) // 100 % 100, abs(number) % 100)}"
    if kind is _T.DATETIME:
        digits = str(int.from_bytes(value, "little")).zfill(14)
        return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]}:{digits[12:]}"
    if kind is _T.TIMESTAMP:
        return _utc(int.from_bytes(value, "little"))
    extra = (column.scale + 1) // 2
    if kind is _T.TIMESTAMP2:
        return _utc(int.from_bytes(value[:4], "big")) + _fraction(int.from_bytes(value[4:], "big"), column.scale)
    packed = int.from_bytes(value, "big") - (1 << 8 * len(value) - 1)
    sign, packed = "-" if packed < 0 else "", abs(packed)
    fraction = _fraction(packed & (1 << 8 * extra) - 1, column.scale)
    packed >>= 8 * extra
    clock = _clock(packed >> 12 & 0x3FF if kind is _T.TIME2 else packed >> 12 & 0x1F, packed >> 6 & 0x3F, packed & 0x3F)
    if kind is _T.TIME2:
        return sign + clock + fraction
    months, day = packed >> 22, packed >> 17 & 0x1F
    return f"{sign}{months // 13:04}-{months % 13:02}-{day:02} {clock}{fraction}"


def _date(packed: int) -> str:
    return f"{packed >> 9:04}-{packed >> 5 & 0xF:02}-{packed & 0x1F:02}"


def _clock(hours: int, minutes: int, seconds: int) -> str:
    return f"{hours:02}:{minutes:02}:{seconds:02}"


def _fraction(stored: int, scale: int) -> str:
    return "." + str(stored).zfill((scale + 1) // 2 * 2)[:scale] if scale else ""


_DAY = 86400


def _utc(seconds: int) -> str:
    if not seconds:
        return "0000-00-00 00:00:00"
    year, month, day = _civil(seconds // _DAY)
    rest = seconds % _DAY
    return f"{year:04}-{month:02}-{day:02} {_clock(rest // 3600, rest // 60 % 60, rest % 60)}"


def _civil(days: int) -> tuple[int, int, int]:
    """The Gregorian date so many days after 1970-01-01."""
    found = date.fromordinal(days + 719163)
    return found.year, found.month, found.day


def _pack_temporal(column: Column, text: str) -> bytes:
    kind, extra = column.type, (column.scale + 1) // 2
    negative = text.startswith("-")
    text, _, decimals = text.lstrip("-").partition(".")
    day_text, _, clock = text.rpartition(" ") if " " in text or ":" in text else (text, "", "0:0:0")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    year, month, day = (int(part) for part in day_text.split("-")) if day_text else (0, 0, 0)
    fraction = int(decimals.ljust(2 * extra, "0")[: 2 * extra] or "0")
    if kind in (_T.DATE, _T.NEWDATE):
        return (year << 9 | month << 5 | day).to_bytes(3, "little")
    if kind is _T.TIME:
        number = hours * 10000 + minutes * 100 + seconds
        return (-number if negative else number).to_bytes(3, "little", signed=True)
    if kind is _T.DATETIME:
        return int(f"{year:04}{month:02}{day:02}{hours:02}{minutes:02}{seconds:02}").to_bytes(8, "little")
    if kind in (_T.TIMESTAMP, _T.TIMESTAMP2):
        stamp = 0
        if year:
            stamp = (date(year, month, day).toordinal() - 719163) * _DAY + hours * 3600 + minutes * 60 + seconds
        if kind is _T.TIMESTAMP:
            return stamp.to_bytes(4, "little")
        return stamp.to_bytes(4, "big") + fraction.to_bytes(extra, "big")
    packed = hours << 12 | minutes << 6 | seconds
    if kind is _T.DATETIME2:
        packed |= (year * 13 + month) << 22 | day << 17
    packed = packed << 8 * extra | fraction
    width = (5 if kind is _T.DATETIME2 else 3) + extra
    return ((-packed if negative else packed) + (1 << 8 * width - 1)).to_bytes(width, "big")
