"""Messages as bytes.

A frame is its body's length (u32, big endian) and the body: a msgpack array of the message's type number and its
fields in the order of their declaration. Entries travel as their records. Everything is checked on arrival: a body
that is not exactly a message is a ProtocolError and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, get_type_hints

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


def _number(value: object) -> int:
    if type(value) is int and 0 <= value < 1 << 64:
        return value
    raise ProtocolError(f"{value!r:.40} is not an unsigned number")


def _flag(value: object) -> bool:
    if value is True or value is False:
        return value
    raise ProtocolError(f"{value!r:.40} is not true or false")


def _bytes(value: object) -> bytes:
    if type(value) is bytes:
        return value
    raise ProtocolError(f"{value!r:.40} is not bytes")


def _list(value: object) -> list[Any]:
    if type(value) is list:
        return value
    raise ProtocolError(f"{value!r:.40} is not a list")


def _entries(value: object) -> tuple[Entry, ...]:
    try:
        entries = tuple([Entry.from_record(record) for record in _list(value)])
    except (CorruptRecord, TypeError) as error:
        raise ProtocolError(f"not an entry: {error}") from error
    for position, entry in enumerate(entries, entries[0].index if entries else 0):
        if entry.index != position:
            raise ProtocolError(f"entry {entry.index} where {position} belongs")
    return entries


def _numbers(value: object) -> tuple[int, ...]:
    return tuple([_number(each) for each in _list(value)])


def _payloads(value: object) -> tuple[bytes, ...]:
    return tuple([_bytes(payload) for payload in _list(value)])


_CHECKS: dict[Any, Callable[[object], Any]] = {
    int: _number,
    bool: _flag,
    bytes: _bytes,
    tuple[Entry, ...]: _entries,
    tuple[int, ...]: _numbers,
    tuple[bytes, ...]: _payloads,
}
_FIELDS = {kind: tuple(_CHECKS[hint] for hint in get_type_hints(kind).values()) for kind in _TYPES.values()}


def encode(message: Message) -> bytes:
    """The body of a frame."""
    if type(message) is AppendRequest:
        *head, entries = message
        body = (_NUMBERS[AppendRequest], *head, [entry.record for entry in entries])
    else:
        body = (_NUMBERS[type(message)], *message)
    packed: bytes = msgpack.packb(body)
    return packed


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
    kind = _TYPES.get(fields[0])
    if kind is None:
        raise ProtocolError(f"unknown message type {fields[0]}")
    checks = _FIELDS[kind]
    if len(fields) != len(checks) + 1:
        raise ProtocolError(f"{kind.__name__} with {len(fields) - 1} fields instead of {len(checks)}")
    values: list[Any] = [check(value) for check, value in zip(checks, fields[1:], strict=True)]
    message: Message = kind(*values)
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
