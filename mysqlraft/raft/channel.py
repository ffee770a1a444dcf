"""The three connections from each site to each other one: what goes by which, and how long and how full each may be.

- CONTROL: everything small: heartbeats, votes, acknowledgements, commit notices, gossip.
- BULK: log entries and forwarded proposals.
- SNAPSHOT: the chunks of snapshots, which would keep the log's entries waiting.

So bulk data never delays a heartbeat.
"""

from __future__ import annotations

from enum import IntEnum

from mysqlraft.raft.messages import AppendRequest, Forward, Message, SnapshotChunk


class Channel(IntEnum):
    CONTROL = 0
    BULK = 1
    SNAPSHOT = 2


OF_MESSAGE: dict[type[Message], Channel] = {
    AppendRequest: Channel.BULK,
    Forward: Channel.BULK,
    SnapshotChunk: Channel.SNAPSHOT,
}
"""Of the messages that do not go by control."""

PING_SECONDS = {Channel.CONTROL: 2.0, Channel.BULK: 5.0, Channel.SNAPSHOT: 10.0}
"""By channel. The control channel's pings also measure the round trip."""
SILENCE_SECONDS = {Channel.CONTROL: 5.0, Channel.BULK: 30.0, Channel.SNAPSHOT: 30.0}
"""A connection without any answer for this long is dead, whatever TCP thinks. (After a cut, TCP itself may wait for
minutes before it tries again.) On the others pings queue behind the data, which on a slow line may take longer than
that: there, as long as any is under way, data that the peer's system takes is an answer, too."""
BUFFER_BYTES = {Channel.CONTROL: 1024 * 1024, Channel.BULK: 96 * 1024 * 1024, Channel.SNAPSHOT: 32 * 1024 * 1024}
"""More than this unsent, and the connection is given up. Raft's windows keep the bulk below it, even when each of
them is overshot by one entry of the greatest size (forward.MAX_PAYLOAD_BYTES)."""
