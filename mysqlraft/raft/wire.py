"""Messages as bytes.

A frame is its body's length (u32, big endian) and the body: a msgpack array of the message's type number and its
fields in the order of their declaration. Entries travel as their records. Everything is checked on arrival: a body
that is not exactly a message is a ProtocolError and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, get_type_hints

import msgpack

from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.entry import CorruptRecord, Entry, payload_checksum
from mysqlraft.raft.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Forward,
    ForwardStatus,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    SnapshotChunk,
    SnapshotChunkRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)

PROTOCOL_VERSION = 2
LENGTH = struct.Struct(">I")

_TYPES: dict[int, type[Message]] = {
    1: VoteRequest,
    2: VoteResponse,
    3: AppendRequest,
    4: AppendResponse,
    5: CommitNotice,
    6: Heartbeat,
    7: HeartbeatResponse,
    8: TimeoutNow,
    9: ReadIndexRequest,
    10: ReadIndexResponse,
    11: Forward,
    12: ForwardStatus,
    13: InstallSnapshot,
    14: SnapshotChunkRequest,
    15: SnapshotChunk,
}
_NUMBERS = {kind: number for number, kind in _TYPES.items()}


class ProtocolError(Exception):
    """What arrived is not what a peer says."""


def _entries(value: list[Any]) -> tuple[Entry, ...]:
    try:
        entries = tuple([Entry.from_record(record) for record in value])
    except (CorruptRecord, TypeError) as error:
        raise ProtocolError(f"not an entry: {error}") from error
    for position, entry in enumerate(entries, entries[0].index if entries else 0):
        if entry.index != position:
            raise ProtocolError(f"entry {entry.index} where {position} belongs")
    return entries


def _numbers(value: list[Any]) -> tuple[int, ...]:
    if not all(type(each) is int and each >= 0 for each in value):
        raise ProtocolError(f"{value!r:.40} are not unsigned numbers")
    return tuple(value)


def _payloads(value: list[Any]) -> tuple[bytes, ...]:
    if not all(type(each) is bytes for each in value):
        raise ProtocolError(f"{value!r:.40} are not bytes")
    return tuple(value)


_NAMES = {int: "an unsigned number", bool: "true or false", bytes: "bytes", list: "a list"}
_LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    tuple[Entry, ...]: _entries,
    tuple[int, ...]: _numbers,
    tuple[bytes, ...]: _payloads,
}
"""How a field that travels as a list is made of it."""


class _Layout:
    """What a frame of one type of message holds. Most are checked by a few calls, not by some for each field."""

    def __init__(self, kind: type[Message]) -> None:
        hints = list(get_type_hints(kind).values())
        self.name = kind.__name__
        self.make: Callable[[list[Any]], Message] = kind._make
        self.types = [int, *[list if hint in _LISTS else hint for hint in hints]]
        """Of the fields, after the message's type; a number that does not fit into 64 bits msgpack cannot hold."""
        numbers = [position for position, each in enumerate(self.types) if each is int]
        self.numbers: Callable[[list[Any]], tuple[int, ...]] = itemgetter(*numbers)
        self.lists = [(position, _LISTS[hint]) for position, hint in enumerate(hints, 1) if hint in _LISTS]

    def error(self, fields: list[Any]) -> ProtocolError:
        """What is wrong with fields that are not these."""
        if len(fields) != len(self.types):
            return ProtocolError(f"{self.name} with {len(fields) - 1} fields instead of {len(self.types) - 1}")
        for value, wanted in zip(fields, self.types, strict=True):
            if type(value) is not wanted or (wanted is int and value not in range(1 << 64)):
                return ProtocolError(f"{value!r:.40} is not {_NAMES[wanted]}")
        raise AssertionError(f"{fields!r:.80} is a {self.name}")


_LAYOUTS = {number: _Layout(kind) for number, kind in _TYPES.items()}


class Packed(NamedTuple):
    """Entries as they travel: packed once for all who get the same."""

    entries: tuple[Entry, ...]
    packed: bytes


def pack_entries(entries: tuple[Entry, ...]) -> Packed:
    return Packed(entries, msgpack.packb([entry.record for entry in entries]))


def encode(message: Message) -> bytes:
    """The body of a frame."""
    if type(message) is AppendRequest:
        return encode_append(message, pack_entries(message.entries))
    packed: bytes = msgpack.packb((_NUMBERS[type(message)], *message))
    return packed


def encode_append(message: AppendRequest, packed: Packed) -> bytes:
    """The same for an AppendRequest whose entries are packed."""
    head: bytes = msgpack.packb((_NUMBERS[AppendRequest], *message[:-1], None))
    return head[:-1] + packed.packed  # None is one byte


def frame(body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a frame, to be written one after the other."""
    return LENGTH.pack(len(body)), body


def unpack(body: bytes | memoryview) -> list[Any]:
    """Any frame's fields: a non-empty list that begins with a number. Raises ProtocolError."""
    try:
        fields = msgpack.unpackb(body, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not msgpack: {error}") from error
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError(f"{fields!r:.40} is not a frame")
    return fields


def decode(fields: list[Any]) -> Message:
    """The message with these fields. Raises ProtocolError."""
    layout = _LAYOUTS.get(fields[0])
    if layout is None:
        raise ProtocolError(f"unknown message type {fields[0]}")
    if [*map(type, fields)] != layout.types or min(layout.numbers(fields)) < 0:
        raise layout.error(fields)
    for position, made in layout.lists:
        fields[position] = made(fields[position])
    message = layout.make(fields[1:])
    if type(message) is AppendRequest:
        if message.entries and message.entries[0].index != message.previous_index + 1:
            raise ProtocolError(f"entry {message.entries[0].index} after {message.previous_index}")
    elif type(message) is Forward:
        _check_forward(message)
    elif type(message) is InstallSnapshot:
        _check_snapshot(message)
    return message


def _check_snapshot(offer: InstallSnapshot) -> None:
    try:
        Configuration.decode(offer.configuration)
    except ConfigurationError as error:
        raise ProtocolError(str(error)) from error
    if not 0 < offer.configuration_index <= offer.last_index:
        raise ProtocolError(f"a snapshot up to {offer.last_index} with a configuration of {offer.configuration_index}")


def _check_forward(forward: Forward) -> None:
    if len(forward.checksums) != len(forward.payloads) or not forward.payloads:
        raise ProtocolError(f"Forward with {len(forward.payloads)} payloads and {len(forward.checksums)} checksums")
    for checksum, payload in zip(forward.checksums, forward.payloads, strict=True):
        if checksum != payload_checksum(payload):
            raise ProtocolError("a forwarded payload does not have its origin's checksum")
