"""One entry of the replicated log, and the bytes it is stored and sent as.

An entry is encoded once, by the leader that appends it. The same bytes, its *record*, are written to every site's
log store, sent in every AppendRequest and kept in every cache; nothing re-encodes them on the way. The payload's
checksum is older still: the site that proposed the payload computed it, so it covers the payload's whole way.

A record is a header of HEADER_SIZE bytes, big endian, followed by the payload::

    offset  size  field
    0       8     checksum: xxh3-64 of the bytes 8..63
    8       8     chain: xxh3-64 of the bytes 16..63, seeded with the chain of the entry before
    16      8     payload checksum: xxh3-64 of the payload
    24      8     index
    32      8     term
    40      8     session
    48      8     sequence
    56      4     payload length
    60      1     kind
    61      1     origin
    62      2     flags, zero

The chain is a running checksum of the whole log up to and with this entry. Raft's log matching property says that
two logs with the same (index, term) at one place are equal up to there; the chain lets a follower verify that claim
instead of believing it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

HEADER = struct.Struct(">QQQQQQQIBBH")
HEADER_SIZE = HEADER.size
_CHAINED = struct.Struct(">QQQQQIBBH")
_U64 = struct.Struct(">Q")


class EntryKind(IntEnum):
    """What an entry is for."""

    NOOP = 0
    """A new leader's first entry; carries nothing."""
    DATA = 1
    """A proposal of some site; the payload belongs to the FSM and is never looked into here."""
    CONFIGURATION = 2
    """The cluster's members from this entry on; the payload is an encoded Configuration."""


_KINDS = tuple(EntryKind)


class CorruptRecord(Exception):
    """The bytes are not the record of an entry, or not of the entry they should be."""


def payload_checksum(payload: bytes) -> int:
    """The checksum that a payload keeps from its origin to the last site that stores it."""
    return xxh3_64_intdigest(payload)


class _Fields(NamedTuple):
    index: int  # type: ignore[assignment]  # shadows tuple.index
    term: int
    kind: EntryKind
    origin: int
    session: int
    sequence: int
    chain: int
    record: bytes


class Entry(_Fields):
    """One immutable log entry.

    `origin`, `session` and `sequence` identify a forwarded proposal (see sessions.py); they are 0 in entries that
    Raft itself appends. `chain` is the running checksum of the log, `record` the stored and sent bytes.
    """

    __slots__ = ()

    def __new__(
        cls,
        index: int,
        term: int,
        kind: EntryKind,
        origin: int = 0,
        session: int = 0,
        sequence: int = 0,
        payload: bytes = b"",
        previous_chain: int = 0,
        checksum_of_payload: int | None = None,
    ) -> Entry:
        """Encode an entry that follows one whose chain is `previous_chain`."""
        if checksum_of_payload is None:
            checksum_of_payload = xxh3_64_intdigest(payload)
        chained = _CHAINED.pack(checksum_of_payload, index, term, session, sequence, len(payload), kind, origin, 0)
        chain = xxh3_64_intdigest(chained, previous_chain)
        body = _U64.pack(chain) + chained
        record = b"%b%b%b" % (_U64.pack(xxh3_64_intdigest(body)), body, payload)
        return tuple.__new__(cls, (index, term, kind, origin, session, sequence, chain, record))

    @classmethod
    def from_record(cls, record: bytes) -> Entry:
        """Decode and verify a record. Raises CorruptRecord."""
        if len(record) < HEADER_SIZE:
            raise CorruptRecord(f"record of {len(record)} bytes is shorter than its header")
        checksum, chain, payload_sum, index, term, session, sequence, length, kind, origin, flags = HEADER.unpack_from(
            record
        )
        view = memoryview(record)
        if checksum != xxh3_64_intdigest(view[8:HEADER_SIZE]):
            raise CorruptRecord("header checksum mismatch")
        if length != len(record) - HEADER_SIZE:
            raise CorruptRecord(f"entry {index}: payload of {len(record) - HEADER_SIZE} bytes, header says {length}")
        if payload_sum != xxh3_64_intdigest(view[HEADER_SIZE:]):
            raise CorruptRecord(f"entry {index}: payload checksum mismatch")
        if kind >= len(_KINDS) or flags:
            raise CorruptRecord(f"entry {index}: kind {kind} with flags {flags:#x} is of a newer format")
        return tuple.__new__(cls, (index, term, _KINDS[kind], origin, session, sequence, chain, record))

    @property
    def payload(self) -> bytes:
        return self.record[HEADER_SIZE:]

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return len(self.record)

    def follows(self, previous_chain: int) -> bool:
        """Whether this entry was appended to a log whose running checksum was `previous_chain`."""
        return self.chain == xxh3_64_intdigest(memoryview(self.record)[16:HEADER_SIZE], previous_chain)

    def __repr__(self) -> str:
        who = f" {self.origin}/{self.session}/{self.sequence}" if self.origin else ""
        return f"<{self.index}@{self.term} {self.kind.name}{who} {self.size - HEADER_SIZE}B>"


def total_size(entries: Iterable[Entry]) -> int:
    """Bytes of all records together."""
    return sum([len(entry.record) for entry in entries])
