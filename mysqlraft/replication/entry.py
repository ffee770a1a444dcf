"""The payload of a Raft entry: what the origin encodes once and every site decodes.

A payload is one msgpack array. Row images travel as the raw bytes of the origin's binlog, so every column type
survives exactly; only row keys were ever looked at. The format carries a version, and a payload of another version
is refused, never guessed at.

    [version, kind, flavour, base, resume, done, body]

``body`` by kind:

    OPEN   None             a session starts: capture will read from `resume` (ignored if the state holds a position)
    UNITS  [tables, units]  whole units, one per local transaction
    PART   [tables, units, number, last]   one part of a single unit too large for one entry
    DDL    [tables, statement, schema, context, committed_at]
    MARK   None             an empty unit: moves base and position of an idle site

    table  = bytes          a TABLE_MAP event's body from after its flags: the schema name's length byte onwards
    unit   = [base, committed_at, keys, changes, wild]
    change = [table number, kind, layout, count, images]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack

VERSION = 2


class PayloadError(ValueError):
    """A payload that this version cannot read: another version, or not a payload at all."""


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


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two transactions of one server's binlog.

    ``file``/``offset`` always name it; ``gtids`` is the set executed up to there (MySQL: gtid_executed form,
    MariaDB: gtid_binlog_pos form), empty when the server has no GTIDs. ``identity`` tells the file of `Payload.done`
    from another one of the same name, "" if it is not known (`mysqlraft.binlog.dump.file_identity`).
    """

    file: str
    offset: int
    gtids: str = ""
    identity: str = ""


@dataclass(slots=True)
class Change:
    """Row images of one kind for one table, adjacent in the transaction.

    ``layout`` is the rows event's column count (length-encoded integer) and column bitmaps (two for an update),
    ``images`` the row images after it, ``count`` how many rows they hold (an update's two images are one row).
    """

    table: int
    kind: ChangeKind
    layout: bytes
    count: int
    images: bytes


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
class Ddl:
    """A statement that changes the schema.

    ``tables``: (schema, table) of all it may touch, table None for anything in the schema. ``schema``: the session's
    default schema ("" for none). ``context``: the session variables under which it ran, name -> value, as the binlog's
    status variables say.
    """

    tables: list[tuple[str, str | None]]
    statement: str
    schema: str
    context: dict[str, Any]
    committed_at: int


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
                    [(c.table, c.kind, c.layout, c.count, c.images) for c in unit.changes],
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
            body = (ddl.tables, ddl.statement, ddl.schema, ddl.context, ddl.committed_at)
        resume = self.resume
        packed: bytes = msgpack.packb(
            (
                VERSION,
                self.kind,
                self.flavour,
                self.base,
                (resume.file, resume.offset, resume.gtids, resume.identity),
                self.done,
                body,
            )
        )
        return packed


def kind_of(data: bytes) -> PayloadKind:
    """The kind of a payload, without decoding the rest.

    Raises:
        PayloadError: the bytes are no payload, or one of another version.
    """
    if data[:2] != _BEGINNING:
        return decode(data).kind
    try:
        return PayloadKind(data[2])
    except (IndexError, ValueError) as error:
        raise PayloadError(f"not a payload: {error}") from None


_BEGINNING = msgpack.packb((VERSION, *[None] * 6))[:2]
"""An array of seven, and the version."""


def decode(data: bytes) -> Payload:
    """The inverse of `Payload.encode`.

    Raises:
        PayloadError: the bytes are no payload, or one of another version.
    """
    try:
        version, *rest = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise PayloadError(f"not a payload: {error}") from None
    if version != VERSION:
        raise PayloadError(f"payload version {version!r}; this mysqlraft reads version {VERSION}: upgrade it")
    try:
        kind, flavour, base, resume, done, body = rest
        payload = Payload(PayloadKind(kind), Flavour(flavour), base, Position(*resume), (done[0], done[1]))
        if payload.kind in (PayloadKind.UNITS, PayloadKind.PART):
            payload.tables = body[0]
            payload.units = [
                Unit(
                    base, at, keys, [Change(t, ChangeKind(k), lay, n, images) for t, k, lay, n, images in changes], wild
                )
                for base, at, keys, changes, wild in body[1]
            ]
            if payload.kind is PayloadKind.PART:
                payload.part, payload.last = body[2], body[3]
        elif payload.kind is PayloadKind.DDL:
            tables, *rest = body
            payload.ddl = Ddl([(schema, table) for schema, table in tables], *rest)
    except (ValueError, TypeError, IndexError) as error:
        raise PayloadError(f"not a payload: {error}") from None
    return payload
