"""Messages as bytes: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mysqlraft.raft import wire
from mysqlraft.raft.entry import payload_checksum
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
from tests.raft.cluster import chained, configuration

BIG = (1 << 64) - 1
EXAMPLES: list[Message] = [
    VoteRequest(1, 2, BIG, True, 4, 5, False),
    VoteResponse(1, 2, 3, False, True),
    AppendRequest(1, 2, 3, 4, 0, 0, 7, tuple(chained(1, 1, 2))),
    AppendRequest(1, 2, 3, 4, 9, 9, 7, ()),
    AppendResponse(1, 2, 3, 4, 5, True, 6, 7),
    CommitNotice(1, 2, 3, 4),
    Heartbeat(1, 2, 3, 4, 5, 6),
    HeartbeatResponse(1, 2, 3, 4, 5),
    TimeoutNow(1, 2, 3),
    ReadIndexRequest(1, 2, 3, 4),
    ReadIndexResponse(1, 2, 3, 4, 5),
    Forward(1, 2, 3, 4, 5, True, (payload_checksum(b"x"), payload_checksum(b"")), (b"x", b"")),
    ForwardStatus(1, 2, 3, 4, 5, 6),
    InstallSnapshot(1, 2, 3, 4, 5, 6, 7, 5, configuration(3).encode(), 9, BIG),
    SnapshotChunkRequest(1, 2, 3, 4, 5, 6, BIG, 8, 9),
    SnapshotChunk(1, 2, 3, 4, 5, 6, 7, b"data"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    again = wire.decode(wire.unpack(wire.encode(message)))
    assert again == message
    assert type(again) is type(message)


def test_every_message_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES} == set(wire._TYPES.values())


def changed(message: Message, position: int, value: object) -> list[object]:
    fields = wire.unpack(wire.encode(message))
    fields[position] = value
    return fields


ENTRY = chained(1)[0].record


@pytest.mark.parametrize(
    "fields, reason",
    [
        ([99, 1, 2, 3], "unknown message type 99"),
        ([8, 1, 2], "TimeoutNow with 2 fields"),
        (changed(EXAMPLES[8], 1, -1), "not an unsigned number"),
        (changed(EXAMPLES[8], 1, "1"), "not an unsigned number"),
        (changed(EXAMPLES[8], 1, True), "not an unsigned number"),
        (changed(EXAMPLES[8], 1, None), "not an unsigned number"),
        (changed(EXAMPLES[1], 4, 1), "not true or false"),
        (changed(EXAMPLES[2], 8, 7), "not a list"),
        (changed(EXAMPLES[2], 8, [b"short"]), "not an entry"),
        (changed(EXAMPLES[2], 8, ["text"]), "not an entry"),
        (changed(EXAMPLES[2], 8, [None]), "not an entry"),
        (changed(EXAMPLES[2], 8, [ENTRY[:-1] + b"?"]), "payload checksum"),
        (changed(EXAMPLES[2], 8, [ENTRY, ENTRY]), "entry 1 where 2 belongs"),
        (changed(EXAMPLES[2], 5, 7), "entry 1 after 7"),
        (changed(EXAMPLES[11], 8, [b"y", b""]), "origin's checksum"),
        (changed(EXAMPLES[11], 8, [b"x"]), "1 payloads and 2 checksums"),
        (changed(EXAMPLES[11], 8, [b"x", "y"]), "not bytes"),
        (changed(EXAMPLES[13], 9, b"\xc1"), "not an encoded configuration"),
        (changed(EXAMPLES[13], 8, 6), "a snapshot up to 5 with a configuration of 6"),
        (changed(EXAMPLES[15], 8, "data"), "not bytes"),
    ],
)
def test_what_is_not_exactly_a_message_is_refused(fields: list[object], reason: str) -> None:
    with pytest.raises(wire.ProtocolError, match=reason):
        wire.decode(fields)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_a_message(data: bytes) -> None:
    with contextlib.suppress(wire.ProtocolError):
        wire.decode(wire.unpack(data))


numbers = st.integers(-(1 << 63), (1 << 64) - 1)
plain = st.none() | st.booleans() | numbers | st.binary(max_size=70) | st.text(max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 13), st.lists(plain | st.lists(plain, max_size=3), max_size=9))
def test_random_fields_are_refused_or_a_message(number: int, fields: list[object]) -> None:
    body = msgpack.packb([number, *fields])
    with contextlib.suppress(wire.ProtocolError):
        wire.decode(wire.unpack(body))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(wire.ProtocolError):
        wire.unpack(b"\x91" * 100_000)
