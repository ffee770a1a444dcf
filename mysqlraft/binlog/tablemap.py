"""TABLE_MAP events: what the row images that follow look like.

Source of facts: the servers' documentation of Table_map_event (MySQL) and the TABLE_MAP page of MariaDB's knowledge
base, checked against real servers in ``tests/binlog/test_types.py``. The optional metadata is complete only with
``binlog_row_metadata=FULL``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache


class TableMapError(ValueError):
    """A TABLE_MAP that cannot be read: truncated, of an unknown column type, or without what FULL metadata gives."""


class ColumnType(IntEnum):
    """Column types as the binlog numbers them."""

    DECIMAL = 0
    TINY = 1
    SHORT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    NULL = 6
    TIMESTAMP = 7
    LONGLONG = 8
    INT24 = 9
    DATE = 10
    TIME = 11
    DATETIME = 12
    YEAR = 13
    NEWDATE = 14
    VARCHAR = 15
    BIT = 16
    TIMESTAMP2 = 17
    DATETIME2 = 18
    TIME2 = 19
    BLOB_COMPRESSED = 140  # MariaDB
    VARCHAR_COMPRESSED = 141  # MariaDB
    VECTOR = 242
    JSON = 245
    NEWDECIMAL = 246
    ENUM = 247
    SET = 248
    TINY_BLOB = 249
    MEDIUM_BLOB = 250
    LONG_BLOB = 251
    BLOB = 252
    VAR_STRING = 253
    STRING = 254
    GEOMETRY = 255


_T = ColumnType

_FIXED = {
    _T.TINY: 1,
    _T.SHORT: 2,
    _T.INT24: 3,
    _T.LONG: 4,
    _T.LONGLONG: 8,
    _T.FLOAT: 4,
    _T.DOUBLE: 8,
    _T.NULL: 0,
    _T.TIMESTAMP: 4,
    _T.DATE: 3,
    _T.NEWDATE: 3,
    _T.TIME: 3,
    _T.DATETIME: 8,
    _T.YEAR: 1,
}
_FRACTIONAL = {_T.TIMESTAMP2: 4, _T.DATETIME2: 5, _T.TIME2: 3}
BLOBS = frozenset((_T.BLOB, _T.BLOB_COMPRESSED, _T.JSON, _T.GEOMETRY, _T.VECTOR))
_META_BYTES = (
    dict.fromkeys((_T.FLOAT, _T.DOUBLE, *_FRACTIONAL, *BLOBS), 1)
    | dict.fromkeys((_T.VARCHAR, _T.VARCHAR_COMPRESSED, _T.VAR_STRING, _T.BIT, _T.NEWDECIMAL, _T.STRING), 2)
    | dict.fromkeys((_T.ENUM, _T.SET), 2)
)
# The types that have a bit in the signedness metadata, YEAR among them.
NUMERIC = frozenset((_T.TINY, _T.SHORT, _T.INT24, _T.LONG, _T.LONGLONG, _T.NEWDECIMAL, _T.FLOAT, _T.DOUBLE, _T.YEAR))
# MySQL's VECTOR is a blob to the server, so it takes a place in the list of collations.
_CHARACTER = frozenset(
    (_T.STRING, _T.VAR_STRING, _T.VARCHAR, _T.BLOB, _T.BLOB_COMPRESSED, _T.VARCHAR_COMPRESSED, _T.VECTOR)
)

DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)

BINARY_COLLATION = 63


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of a table map.

    ``prefix`` is the number of length bytes before a value; 0: every value has ``size`` bytes. ``size`` of a variable
    column is its greatest length in bytes (0: given by the prefix alone). ``collation`` is the server's number for it,
    None for types without characters; `BINARY_COLLATION` for binary strings. ``labels`` are an ENUM's or SET's, in the
    column's character set. ``name`` is "" without FULL metadata.
    """

    index: int
    name: str
    type: ColumnType
    size: int
    prefix: int
    nullable: bool
    unsigned: bool = False
    collation: int | None = None
    labels: tuple[bytes, ...] = ()
    precision: int = 0
    scale: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TableMap:
    """A table as the binlog describes it. ``primary_key``: (column index, prefix length in characters or 0)."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    primary_key: tuple[tuple[int, int], ...]

    @property
    def named(self) -> bool:
        """Whether the names of columns are known: ``binlog_row_metadata=FULL``."""
        return all(column.name for column in self.columns)

    def column(self, name: str) -> Column | None:
        """The column of that name, compared as the servers do: without case."""
        folded = name.casefold()
        return next((c for c in self.columns if c.name.casefold() == folded), None)


def lenenc(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer at `at`: (value, offset after it).

    Raises:
        IndexError: the data ends inside it.
        ValueError: its first byte is no such integer's.
    """
    first = data[at]
    if first < 251:
        return first, at + 1
    width = {252: 2, 253: 3, 254: 8}.get(first)
    if width is None:
        raise ValueError(f"byte {first:#x} begins no length-encoded integer")
    if at + 1 + width > len(data):
        raise IndexError("length-encoded integer is cut short")
    return int.from_bytes(data[at + 1 : at + 1 + width], "little"), at + 1 + width


def names(body: bytes) -> tuple[str, str]:
    """Schema and table of a TABLE_MAP body, without parsing the rest."""
    end = 1 + body[0]
    start = end + 2
    return body[1:end].decode("utf-8", "surrogateescape"), body[start : start + body[end + 1]].decode(
        "utf-8", "surrogateescape"
    )


def renamed(body: bytes, schema: str, table: str) -> bytes:
    """The TABLE_MAP body with another schema and table."""
    end = 1 + body[0] + 1
    end += 1 + body[end] + 1
    new = [name.encode("utf-8", "surrogateescape") for name in (schema, table)]
    return b"".join(bytes((len(name),)) + name + b"\0" for name in new) + body[end:]


@lru_cache(maxsize=4096)
def parse(body: bytes) -> TableMap:
    """Reads a TABLE_MAP event's body from after its flags (an entry's ``table``).

    Raises:
        TableMapError: truncated, or a column type this mysqlraft does not know.
    """
    try:
        return _parse(body)
    except (IndexError, ValueError) as error:
        if isinstance(error, TableMapError):
            raise
        raise TableMapError(f"table map of {body[:80]!r} is cut short or garbled: {error}") from None


def _parse(body: bytes) -> TableMap:
    schema, table = names(body)
    at = 1 + body[0] + 1
    at += 1 + body[at] + 1
    count, at = lenenc(body, at)
    types = body[at : at + count]
    at += count
    meta_length, at = lenenc(body, at)
    meta = body[at : at + meta_length]
    at += meta_length
    nulls = body[at : at + (count + 7) // 8]
    at += (count + 7) // 8
    if at > len(body):
        raise TableMapError(f"table map of {schema}.{table} is cut short")

    shapes = list(_shapes(schema, table, types, meta))
    extra = _Optional(body, at)
    numeric = [i for i, s in enumerate(shapes) if s[0] in NUMERIC]
    characters = [i for i, s in enumerate(shapes) if s[0] in _CHARACTER]
    choices = [i for i, s in enumerate(shapes) if s[0] in (_T.ENUM, _T.SET)]
    unsigned = {i for n, i in enumerate(numeric) if extra.bit(1, n)}
    collations = extra.collations(characters, 2, 3) | extra.collations(choices, 10, 11)
    column_names = extra.strings(4)
    labels = dict(zip((i for i in choices if shapes[i][0] == _T.SET), extra.lists(5), strict=False))
    labels |= dict(zip((i for i in choices if shapes[i][0] == _T.ENUM), extra.lists(6), strict=False))

    columns = tuple(
        Column(
            index=i,
            name=column_names[i].decode("utf-8", "surrogateescape") if i < len(column_names) else "",
            type=kind,
            size=size,
            prefix=prefix,
            nullable=bool(nulls[i >> 3] >> (i & 7) & 1),
            unsigned=i in unsigned,
            collation=collations.get(i),
            labels=labels.get(i, ()),
            precision=precision,
            scale=scale,
        )
        for i, (kind, size, prefix, precision, scale) in enumerate(shapes)
    )
    return TableMap(schema, table, columns, extra.primary_key())


@dataclass(frozen=True, slots=True)
class MoreColumn:
    """A column to be added to a table map: ``meta`` as the binlog has it for the type's code ``code``. ``dimensions``:
    of a VECTOR."""

    name: str
    code: int
    meta: bytes
    nullable: bool
    unsigned: bool
    collation: int | None
    dimensions: int = 0


def widened(body: bytes, more: Sequence[MoreColumn]) -> bytes:
    """A table map's body with more columns at its end, its metadata included.

    Raises:
        TableMapError: as of `parse`.
    """
    table = parse(body)
    at = 1 + body[0] + 1
    at += 1 + body[at] + 1
    count, types = lenenc(body, at)
    meta_length, meta = lenenc(body, types + count)
    nulls = meta + meta_length
    end = nulls + (count + 7) // 8
    nullable = int.from_bytes(body[nulls:end], "little")
    for number, column in enumerate(more, count):
        nullable |= column.nullable << number
    codes = body[types : types + count] + bytes(column.code for column in more)
    metas = body[meta:nulls] + b"".join(column.meta for column in more)
    plain = b"".join(
        (
            body[:at],
            lenenc_bytes(len(codes)),
            codes,
            lenenc_bytes(len(metas)),
            metas,
            nullable.to_bytes((len(codes) + 7) // 8, "little"),
        )
    )
    # The shapes of the new columns, which tell what of the metadata they have a place in.
    columns = (*table.columns, *parse(plain).columns[count:])
    unsigned = [column.unsigned for column in table.columns] + [column.unsigned for column in more]
    collations = [column.collation for column in table.columns] + [column.collation for column in more]
    names = [column.name for column in table.columns] + [column.name for column in more]
    bits = [unsigned[column.index] for column in columns if column.type in NUMERIC]
    signs = bytes(
        sum(0x80 >> number for number, bit in enumerate(bits[start : start + 8]) if bit)
        for start in range(0, len(bits), 8)
    )
    old = _Optional(body, end)
    fields = {kind: old.field(kind) for kind in (5, 6, 8, 9)}
    fields[1] = signs
    fields[3] = _collations(collations[column.index] for column in columns if column.type in _CHARACTER)
    fields[11] = _collations(collations[column.index] for column in columns if column.type in (_T.ENUM, _T.SET))
    # MySQL takes no row with a vector, NULL or not, under a map that does not say of how many numbers it is.
    fields[13] = old.field(13) + b"".join(lenenc_bytes(column.dimensions) for column in more if column.dimensions)
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    fields[4] = b"".join(lenenc_bytes(len(name)) + name for name in encoded)
    return plain + b"".join(
        bytes((kind,)) + lenenc_bytes(len(field)) + field for kind, field in sorted(fields.items()) if field
    )


def _collations(numbers: Iterable[int | None]) -> bytes:
    return b"".join(lenenc_bytes(BINARY_COLLATION if number is None else number) for number in numbers)


def lenenc_bytes(value: int) -> bytes:
    """The inverse of `lenenc`."""
    if value < 251:
        return bytes((value,))
    if value < 1 << 16:
        return b"\xfc" + value.to_bytes(2, "little")
    return b"\xfd" + value.to_bytes(3, "little") if value < 1 << 24 else b"\xfe" + value.to_bytes(8, "little")


def decimal_size(precision: int, scale: int) -> int:
    """Bytes of a DECIMAL(precision, scale)."""
    whole = precision - scale
    return whole // 9 * 4 + DIGIT_BYTES[whole % 9] + scale // 9 * 4 + DIGIT_BYTES[scale % 9]


def _shapes(schema: str, table: str, types: bytes, meta: bytes) -> Iterator[tuple[ColumnType, int, int, int, int]]:
    """(type, size, prefix, precision, scale) of each column."""
    at = 0
    for number, code in enumerate(types):
        try:
            kind = ColumnType(code)
        except ValueError:
            raise TableMapError(
                f"{schema}.{table}: column {number + 1} has type {code}, which this mysqlraft does not know: "
                "exclude the table or change the column's type"
            ) from None
        width = _META_BYTES.get(kind, 0)
        m = meta[at : at + width]
        if len(m) < width:
            raise TableMapError(f"table map of {schema}.{table} is cut short in its metadata")
        at += width
        size = prefix = precision = scale = 0
        if kind in _FIXED:
            size = _FIXED[kind]
        elif kind in _FRACTIONAL:
            scale = m[0]
            size = _FRACTIONAL[kind] + (scale + 1) // 2
        elif kind in BLOBS:
            prefix = m[0]
        elif kind in (_T.VARCHAR, _T.VARCHAR_COMPRESSED, _T.VAR_STRING):
            size = m[0] | m[1] << 8
            prefix = 1 if size < 256 else 2
        elif kind is _T.BIT:
            precision = m[1] * 8 + m[0]
            size = m[1] + (m[0] > 0)
        elif kind is _T.NEWDECIMAL:
            precision, scale = m
            size = decimal_size(precision, scale)
        elif kind in (_T.STRING, _T.ENUM, _T.SET):
            # The upper two bits of a CHAR's length hide, inverted, in bits 4 and 5 of the real type.
            real = m[0] | 0x30
            if real in (_T.ENUM, _T.SET):
                kind, size = ColumnType(real), m[1]
            else:
                kind, size = _T.STRING, m[1] | ((m[0] & 0x30) ^ 0x30) << 4
                prefix = 1 if size < 256 else 2
        else:
            raise TableMapError(f"{schema}.{table}: column {number + 1} has type {kind.name}, which no binlog carries")
        yield kind, size, prefix, precision, scale


class _Optional:
    """The optional metadata: type, length, value."""

    def __init__(self, body: bytes, at: int) -> None:
        self._fields: dict[int, bytes] = {}
        while at < len(body):
            kind = body[at]
            length, at = lenenc(body, at + 1)
            if at + length > len(body):
                raise TableMapError(f"optional metadata {kind} is cut short")
            self._fields[kind] = body[at : at + length]
            at += length

    def field(self, kind: int) -> bytes:
        return self._fields.get(kind, b"")

    def bit(self, kind: int, number: int) -> bool:
        field = self._fields.get(kind, b"")
        return number >> 3 < len(field) and bool(field[number >> 3] & 0x80 >> (number & 7))

    def integers(self, kind: int) -> list[int]:
        field, at, found = self._fields.get(kind, b""), 0, []
        while at < len(field):
            value, at = lenenc(field, at)
            found.append(value)
        return found

    def strings(self, kind: int) -> list[bytes]:
        field, at, found = self._fields.get(kind, b""), 0, []
        while at < len(field):
            length, at = lenenc(field, at)
            found.append(field[at : at + length])
            at += length
        return found

    def lists(self, kind: int) -> list[tuple[bytes, ...]]:
        field, at, found = self._fields.get(kind, b""), 0, []
        while at < len(field):
            count, at = lenenc(field, at)
            labels = []
            for _ in range(count):
                length, at = lenenc(field, at)
                labels.append(field[at : at + length])
                at += length
            found.append(tuple(labels))
        return found

    def collations(self, columns: list[int], default_kind: int, each_kind: int) -> dict[int, int]:
        """Collation of each of `columns`: either a default and exceptions by number, or one by one."""
        if each := self.integers(each_kind):
            return dict(zip(columns, each, strict=False))
        default = self.integers(default_kind)
        if not default:
            return {}
        found = dict.fromkeys(columns, default[0])
        for number, collation in zip(default[1::2], default[2::2], strict=False):
            found[columns[number]] = collation
        return found

    def primary_key(self) -> tuple[tuple[int, int], ...]:
        if simple := self.integers(8):
            return tuple((index, 0) for index in simple)
        pairs = self.integers(9)
        return tuple(zip(pairs[::2], pairs[1::2], strict=False))
