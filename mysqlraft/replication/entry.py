"""The payload of a Raft entry: what the origin encodes once and every site decodes.

A payload is one msgpack array. Row images travel as the raw bytes of the origin's binlog, so every column type
survives exactly; only row keys were ever looked at. The format carries a version: this module writes `VERSION`, reads
`OLDEST`, too, and refuses any other one. Within a version new fields are appended to arrays: a reader gives a field
that is absent its default, and refuses one that it does not know.

    [version, kind, flavour, base, resume, done, body]

``body`` by kind:

    OPEN   None             a session starts: capture will read from `resume` (ignored if the state holds a position)
    UNITS  [tables, units]  whole units, one per local transaction
    PART   [tables, units, number, last]   one part of a single unit too large for one entry
    DDL    [tables, statement, schema, context, committed_at, reading, parts, made]
    MARK   None             an empty unit: moves base and position of an idle site

    made   = [version, [[schema, name, definition], ...]], or None
    statement = bytes       as in the binlog; version 2 held them as text
    table  = bytes          a TABLE_MAP event's body from after its flags: the schema name's length byte onwards
    unit   = [base, committed_at, keys, changes, wild]
    change = [table number, kind, layout, count, images, piece, pieces]   the last two only of a row in pieces
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

import msgpack

from mysqlraft.binlog.position import StreamPosition

VERSION = 3
OLDEST = 2
"""The log may still hold payloads of this version, which the mysqlraft before wrote."""
_TEXT = "surrogateescape"
"""How msgpack carries text that is no UTF-8: as the bytes that it is."""


class PayloadError(ValueError):
    """What is no payload."""


class OtherVersion(PayloadError):
    """A payload of a version that this mysqlraft does not read."""


class PayloadKind(IntEnum):
    OPEN = 0
    UNITS = 1
    PART = 2
    DDL = 3
    MARK = 4


class Flavour(IntEnum):
    """Whose row events the images are: the two servers do not accept each other's."""

    MYSQL = 0
    MARIADB = 1


class ChangeKind(IntEnum):
    WRITE = 0
    UPDATE = 1
    DELETE = 2


_KINDS = {kind: kind for kind in ChangeKind}
"""To be looked up: a third of the time that a call of the class takes."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two transactions of one server's binlog.

    ``file``/``offset`` always name it; ``gtids`` is the set executed up to there (MySQL: gtid_executed form,
    MariaDB: gtid_binlog_pos form), empty when the server has no GTIDs. ``identity`` tells the file of `Payload.done`
    from another one of the same name, "" if it is not known (`mysqlraft.binlog.dump.file_identity`). ``passed``,
    ``begun``: as in `mysqlraft.binlog.position.StreamPosition`.
    """

    file: str
    offset: int
    gtids: str = ""
    identity: str = ""
    passed: str = ""
    begun: str = ""

    @property
    def fields(self) -> tuple[object, ...]:
        """As they are in a payload and in the replicated state."""
        whole = (self.file, self.offset, self.gtids, self.identity)
        return (*whole, self.passed, self.begun) if self.passed or self.begun else whole

    def read_to(self, done: tuple[str, int]) -> StreamPosition:
        """The same for who has read up to ``done``, see `Payload`."""
        return StreamPosition(self.file, self.offset, self.gtids, done, self.identity, self.passed, self.begun)


@dataclass(slots=True)
class Change:
    """Row images of one kind for one table, adjacent in the transaction.

    ``layout`` is the rows event's column count (length-encoded integer) and column bitmaps (two for an update),
    ``images`` the row images after it, ``count`` how many rows they hold (an update's two images are one row).
    ``piece``, ``pieces``: of one row in pieces, which of how many this is (`mysqlraft.replication.pieces`).
    """

    table: int
    kind: ChangeKind
    layout: bytes
    count: int
    images: bytes
    piece: int = 0
    pieces: int = 1

    @property
    def fields(self) -> tuple[object, ...]:
        """As they are in a payload."""
        whole = (self.table, self.kind, self.layout, self.count, self.images)
        return whole if self.pieces == 1 else (*whole, self.piece, self.pieces)


@dataclass(slots=True)
class Unit:
    """One local transaction, or the share of one that a PART carries.

    ``base`` is the highest log index its origin had applied when it committed there; ``committed_at`` the origin's
    clock in microseconds since 1970 (for display only); ``keys`` the distinct row keys as packed little-endian u64.
    ``wild``: numbers of the tables whose unique keys may have been others when the rows were written, so that ``keys``
    may lack some; of a unit in parts the last part says it for all.
    """

    base: int
    committed_at: int
    keys: bytes
    changes: list[Change]
    wild: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Made:
    """What a statement's objects were after it at its origin, whose server says that it is of this version: schema,
    name and `mysqlraft.mysql.definitions.definition_of` of each."""

    version: str
    definitions: list[tuple[str, str, str]]


@dataclass(slots=True)
class Ddl:
    """A statement that changes the schema.

    ``tables``: (schema, table) of all it may touch, table None for anything in the schema. ``schema``: the session's
    default schema ("" for none). ``context``: the session variables under which it ran, name -> value, as the binlog's
    status variables say. ``statement``: the bytes of the binlog, in the character set that ``context`` names.
    ``reading``: what they say to the origin's server, "" if they are UTF-8. ``parts``: how many PARTs before it hold
    the rows of the table as the statement has left them, to be written after it. ``made``: what it made, if that is
    known.
    """

    tables: list[tuple[str, str | None]]
    statement: bytes
    schema: str
    context: dict[str, Any]
    committed_at: int
    reading: str = ""
    parts: int = 0
    made: Made | None = None

    @property
    def text(self) -> str:
        """The statement, to be parsed: bytes that are no text are surrogates."""
        return self.reading or self.statement.decode("utf-8", "surrogateescape")

    @property
    def shown(self) -> str:
        """The statement, for people."""
        return self.reading or self.statement.decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Payload:
    """A decoded payload. ``base`` is the base of its last unit; positions are those after it.

    ``resume`` is where a restarting capture reads from; ``done`` the end (file, offset) of the last transaction that
    the log holds. They differ only while prepared XA transactions are open: those are read again, and everything
    else up to ``done`` is passed over.
    """

    kind: PayloadKind
    flavour: Flavour
    base: int
    resume: Position
    done: tuple[str, int]
    tables: list[bytes] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    part: int = 0
    last: bool = True
    ddl: Ddl | None = None

    def encode(self) -> bytes:
        """The bytes that are proposed, stored, sent and applied."""
        body: Any = None
        if self.kind in (PayloadKind.UNITS, PayloadKind.PART):
            units = [
                (
                    unit.base,
                    unit.committed_at,
                    unit.keys,
                    [change.fields for change in unit.changes],
                    unit.wild,
                )
                for unit in self.units
            ]
            body = (self.tables, units)
            if self.kind is PayloadKind.PART:
                body += (self.part, self.last)
        elif self.kind is PayloadKind.DDL:
            assert self.ddl is not None
            ddl = self.ddl
            made = None if ddl.made is None else (ddl.made.version, ddl.made.definitions)
            body = (
                *(ddl.tables, ddl.statement, ddl.schema, ddl.context, ddl.committed_at, ddl.reading, ddl.parts),
                made,
            )
        packed: bytes = msgpack.packb(
            (
                VERSION,
                self.kind,
                self.flavour,
                self.base,
                self.resume.fields,
                self.done,
                body,
            ),
            unicode_errors=_TEXT,
        )
        return packed


def kind_of(data: bytes) -> PayloadKind | None:
    """The kind of a payload, without decoding the rest; None for what may be none that this version can read."""
    if len(data) < 3 or data[0] & 0xF0 != _SHORT_ARRAY or data[2] > max(PayloadKind):
        return None
    return PayloadKind(data[2])


_SHORT_ARRAY = 0x90
"""msgpack's mark of an array of up to 15 fields, of which each small number is one byte."""


def decode(data: bytes) -> Payload:
    """The inverse of `Payload.encode`. Whatever it returns has the types and ranges that it should have.

    Raises:
        OtherVersion: a payload of another version.
        PayloadError: the bytes are no payload.
    """
    try:
        version, *fields = msgpack.unpackb(data, unicode_errors=_TEXT)
        if type(version) is int and version not in (OLDEST, VERSION) and 0 < version < 128:
            raise OtherVersion(
                f"payload version {version}; this mysqlraft reads versions {OLDEST} to {VERSION}: upgrade it"
            )
        return _payload(version, *fields)
    except OtherVersion:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, msgpack.UnpackException) as error:
        raise PayloadError(f"not a payload: {error}") from None


_YEAR_9999 = 253_370_764_800_000_000
"""Microseconds since 1970. Later moments can be stored nowhere."""


def _payload(
    version: int, kind: int, flavour: int, base: int, resume: list[Any], done: list[Any], body: Any
) -> Payload:
    file, offset = done
    payload = Payload(PayloadKind(kind), Flavour(flavour), base, Position(*resume), (file, offset))
    at = payload.resume
    texts = (at.file, at.gtids, at.identity, at.passed, at.begun, file)
    _check(_all(str, *texts) and _counts(version, base, at.offset, offset), "positions")
    if payload.kind in (PayloadKind.UNITS, PayloadKind.PART):
        tables, units, *part = body
        payload.tables = tables
        _check(type(tables) is list and _all(bytes, *tables), "tables")
        payload.units = [
            Unit(base, at, keys, [Change(table, _KINDS[kind], *rest) for table, kind, *rest in changes], *more)
            for base, at, keys, changes, *more in units
        ]
        # A piece is no last part.
        piece = part[1:] == [False] and _is_piece(payload.units)
        for unit in payload.units:
            _check_unit(unit, len(tables), piece=piece)
        if payload.kind is PayloadKind.PART:
            payload.part, payload.last = part
            _check(_counts(payload.part) and payload.last in (False, True) and len(payload.units) == 1, "part")
        else:
            _check(not part, "units")
    elif payload.kind is PayloadKind.DDL:
        tables, statement, *more = body
        if version < 3:
            statement = statement.encode("utf-8", _TEXT)
        ddl = payload.ddl = Ddl([(schema, table) for schema, table in tables], statement, *more)
        _check(
            _all(bytes, ddl.statement)
            and type(ddl.context) is dict
            and all(type(value) in (int, str, list) for value in ddl.context.values())
            and _all(str, ddl.schema, ddl.reading, *(schema for schema, _ in ddl.tables), *ddl.context)
            and _all(str, *(table for _, table in ddl.tables if table is not None))
            and _is_time(ddl.committed_at)
            and _counts(ddl.parts),
            "statement",
        )
        if ddl.made is not None:
            made_by, definitions = cast(Any, ddl.made)
            ddl.made = Made(made_by, [(schema, name, definition) for schema, name, definition in definitions])
            _check(_all(str, made_by, *(text for row in ddl.made.definitions for text in row)), "definitions")
    return payload


def _check_unit(unit: Unit, tables: int, *, piece: bool) -> None:
    # For every unit of the log: comparisons in place, a third of the time that calls take.
    if not (
        type(unit.base) is int
        and unit.base >= 0
        and type(unit.committed_at) is int
        and 0 <= unit.committed_at < _YEAR_9999
        and type(unit.keys) is bytes
        and not len(unit.keys) & 7
    ):
        raise ValueError("its unit cannot be")
    for change in unit.changes:
        if not (
            type(change.table) is int
            and 0 <= change.table < tables
            and type(change.layout) is bytes
            and type(change.count) is int
            and change.count >= 0
            and type(change.images) is bytes
            and (piece or change.pieces == 1)
        ):
            raise ValueError("its change cannot be")
    if unit.wild:
        _check(_counts(*unit.wild) and max(unit.wild) < tables, "unit")


def _is_piece(units: list[Unit]) -> bool:
    """Whether it is a piece of a row, and one that can be."""
    if len(units) != 1 or len(units[0].changes) != 1:
        return False
    change = units[0].changes[0]
    return _counts(change.piece, change.pieces) and change.piece < change.pieces and change.count == 1


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"its {what} cannot be")


def _all(kind: type, *values: object) -> bool:
    return all(type(value) is kind for value in values)


def _counts(*values: object) -> bool:
    """Whether they are whole numbers from 0 on."""
    return all(type(value) is int and value >= 0 for value in values)


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < _YEAR_9999
