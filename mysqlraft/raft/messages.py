"""What sites say to each other.

Every message names its receiver, its sender and the sender's term. They are tuples: immutable, and what goes on the
wire is the tuple itself (wire.py). `progress` is the id of the leader's replication session with that follower: a
follower echoes it, and the leader ignores an answer from before the follower was removed and added again
(raft-rs #571).
"""

from __future__ import annotations

from typing import NamedTuple

from mysqlraft.raft.entry import Entry, EntryKind

__all__ = [
    "AppendRequest",
    "AppendResponse",
    "CommitNotice",
    "Entry",
    "EntryKind",
    "Forward",
    "ForwardStatus",
    "Heartbeat",
    "HeartbeatResponse",
    "InstallSnapshot",
    "Message",
    "Proposal",
    "ReadIndexRequest",
    "ReadIndexResponse",
    "SnapshotChunk",
    "SnapshotChunkRequest",
    "TimeoutNow",
    "VoteRequest",
    "VoteResponse",
]


class VoteRequest(NamedTuple):
    """A (pre-)candidate asks for a vote."""

    to: int
    sender: int
    term: int
    """The term of the election; a pre-candidate's own term is still one less."""
    pre: bool
    """Would you vote for me? Changes nothing at the receiver (Ongaro's thesis, 9.6)."""
    last_index: int
    last_term: int
    transfer: bool
    """The old leader asked for this election, so having heard from it is no reason to refuse."""


class VoteResponse(NamedTuple):
    to: int
    sender: int
    term: int
    """The term of the election if granted, else the sender's own."""
    pre: bool
    granted: bool


class AppendRequest(NamedTuple):
    """Entries that follow the one at (previous_index, previous_term)."""

    to: int
    sender: int
    term: int
    progress: int
    previous_index: int
    previous_term: int
    commit: int
    entries: tuple[Entry, ...]


class AppendResponse(NamedTuple):
    """The sender's log equals the leader's up to `index` and is on disk up to there; or, if `rejected`, it does not
    hold (previous_index, previous_term) of the request whose previous_index was `index`."""

    to: int
    sender: int
    term: int
    progress: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    rejected: bool
    hint_index: int
    """If rejected: the sender's log can agree with the leader's at most up to here ..."""
    hint_term: int
    """... where its entry is of this term."""


class CommitNotice(NamedTuple):
    """The leader's commit index has moved and no entries travel that would say so. Needs no answer."""

    to: int
    sender: int
    term: int
    commit: int


class Heartbeat(NamedTuple):
    """The leader lives. It travels beside the log entries, never behind them (cockroach #91947)."""

    to: int
    sender: int
    term: int
    progress: int
    commit: int
    round: int
    """Counts the rounds of heartbeats of this leader; answers to a round confirm the reads asked for before it."""


class HeartbeatResponse(NamedTuple):
    to: int
    sender: int
    term: int
    progress: int
    round: int


class TimeoutNow(NamedTuple):
    """The leader hands over: the receiver shall start an election at once."""

    to: int
    sender: int
    term: int


class ReadIndexRequest(NamedTuple):
    """A follower asks for an index up to which to have applied before a linearizable read."""

    to: int
    sender: int
    term: int
    attempt: int
    """Fresh for each attempt, also across restarts, so that no answer is taken for another's (etcd #20418)."""


class ReadIndexResponse(NamedTuple):
    to: int
    sender: int
    term: int
    attempt: int
    index: int  # type: ignore[assignment]  # shadows tuple.index


class Proposal(NamedTuple):
    """What a site wants in the log: the origin's bytes and the checksum that it gave them."""

    origin: int
    session: int
    sequence: int
    payload: bytes
    checksum: int


class Forward(NamedTuple):
    """Proposals of the sender's, consecutive from `first_sequence` on, for the leader of `term`."""

    to: int
    sender: int
    term: int
    session: int
    first_sequence: int
    start: bool
    """Everything before `first_sequence` is committed: the leader may take this as the first from its sender."""
    checksums: tuple[int, ...]
    payloads: tuple[bytes, ...]


class ForwardStatus(NamedTuple):
    """What the leader of `term` has of the receiver's proposals: it misses some, or had all of a Forward before."""

    to: int
    sender: int
    term: int
    session: int
    expected: int
    """The sequence that it takes next; 0: start again with the first that is not committed."""
    index: int  # type: ignore[assignment]  # shadows tuple.index
    """Where in the log the one before is, 0 if that is not known."""


class InstallSnapshot(NamedTuple):
    """The entries that the receiver needs next are gone here; this snapshot stands for them. Its bytes are asked for
    with SnapshotChunkRequests; what says that it is installed is an AppendResponse for `last_index`."""

    to: int
    sender: int
    term: int
    progress: int
    last_index: int
    """The last entry that it covers ..."""
    last_term: int
    """... its term ..."""
    last_chain: int
    """... and the running checksum of the log up to it."""
    configuration_index: int
    configuration: bytes
    """In force at `last_index`, encoded; its entry was at `configuration_index`."""
    size: int
    """Bytes of the FSM's data."""
    checksum: int
    """xxh3-64 of the FSM's data."""


class SnapshotChunkRequest(NamedTuple):
    """The sender has the snapshot's first bytes and takes those from `offset` up to `limit`."""

    to: int
    sender: int
    term: int
    progress: int
    last_index: int
    snapshot_checksum: int
    attempt: int
    """Another than before: what was asked for before and has not come is asked for again, from `offset` on."""
    offset: int
    limit: int


class SnapshotChunk(NamedTuple):
    """A part of the FSM's data, in a connection of its own."""

    to: int
    sender: int
    term: int
    """That of the request."""
    last_index: int
    snapshot_checksum: int
    offset: int
    checksum: int
    """xxh3-64 of `data`."""
    data: bytes


Message = (
    VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | CommitNotice
    | Heartbeat
    | HeartbeatResponse
    | TimeoutNow
    | ReadIndexRequest
    | ReadIndexResponse
    | Forward
    | ForwardStatus
    | InstallSnapshot
    | SnapshotChunkRequest
    | SnapshotChunk
)
