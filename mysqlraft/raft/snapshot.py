"""Snapshots on their way: what one is, and the two ends of a transfer. Pure, as the core is.

A follower whose next entry the leader has compacted away is told of the leader's snapshot (`InstallSnapshot`). From
there on the follower drives: it asks for what comes after the bytes that it has (`SnapshotChunkRequest`), never for
more than a window beyond those on its disk. It asks anew when a chunk is damaged, and when it is told of the snapshot
once more: the leader does that after a broken connection, and when it hears no request for an election timeout. So
the leader keeps nothing but a position for each follower, and a transfer goes on where it was, whatever was lost:
messages, connections, or the follower's process.

A snapshot is named by its last index and term, its size and its checksum. Two with the same name have equal bytes;
one with another name is another transfer, which begins at its first byte.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.messages import InstallSnapshot, SnapshotChunk, SnapshotChunkRequest
from mysqlraft.raft.store import Base


def chunk_checksum(data: bytes) -> int:
    return xxh3_64_intdigest(data)


class Snapshot(NamedTuple):
    """What an FSM held after the entry `base.index`, and what Raft needs to go on from there."""

    base: Base
    configuration_index: int
    configuration: Configuration
    """In force at the base."""
    size: int
    """Bytes of the FSM's data."""
    checksum: int
    """xxh3-64 of the FSM's data."""

    @property
    def last_index(self) -> int:
        """The last entry that it covers."""
        return self.base.index

    @property
    def name(self) -> tuple[int, int, int, int]:
        return self.base.index, self.base.term, self.size, self.checksum

    @classmethod
    def offered(cls, m: InstallSnapshot) -> Snapshot:
        return cls(
            Base(m.last_index, m.last_term, m.last_chain),
            m.configuration_index,
            Configuration.decode(m.configuration),
            m.size,
            m.checksum,
        )


class WorkKind(Enum):
    OPEN = "open"
    """Find what there is of the snapshot from before, and drop what there is of others. Outcome: the bytes kept."""
    WRITE = "write"
    """Put `data` at `offset`, where the file ends. Outcome: where it ends now."""
    FINISH = "finish"
    """Verify the whole, make it durable and one of the site's snapshots. Outcome: 1, or 0 if it is damaged and gone."""
    DROP = "drop"
    """It is not needed any more: remove what there is of it."""


class SnapshotWork(NamedTuple):
    """Something for the driver's disk to do for a snapshot that arrives: one after the other, in their order."""

    kind: WorkKind
    snapshot: Snapshot
    offset: int = 0
    data: bytes = b""


class SnapshotReceiver:
    """The follower's end of a transfer.

    Invariant: written <= expected <= limit <= written + window: no more than a window is on the way or in memory.
    """

    def __init__(self, site: int, window_bytes: int, attempt: int) -> None:
        """`attempt`: a number to begin with that no earlier life of this site has used."""
        self._site = site
        self._window_bytes = window_bytes
        self._attempt = attempt
        self.offer: InstallSnapshot | None = None
        """What the transfer under way was begun, or last confirmed, with."""
        self.snapshot: Snapshot | None = None
        self.refused = 0
        """Damaged chunks, and damaged snapshots, since the start."""
        self._opened = False
        self._finishing = False
        self._expected = 0
        self._limit = 0
        self.written = 0
        """Bytes on disk."""
        self._ask = False
        self._work: list[SnapshotWork] = []

    def offered(self, m: InstallSnapshot) -> None:
        """The leader has told of a snapshot that this site needs."""
        offered = Snapshot.offered(m)
        self.offer = m
        if self.snapshot is not None and self.snapshot.name == offered.name:
            self._again()
            return
        self.snapshot = offered
        self._opened = self._finishing = self._ask = False
        self._expected = self._limit = self.written = 0
        self._work.append(SnapshotWork(WorkKind.OPEN, offered))

    def chunk(self, m: SnapshotChunk) -> None:
        """Take a chunk if it is the next one; anything else is old, or will be asked for again."""
        snapshot = self.snapshot
        if snapshot is None or not self._opened or self._finishing:
            return
        if (m.last_index, m.snapshot_checksum) != (snapshot.last_index, snapshot.checksum):
            return
        if m.offset != self._expected:
            return
        end = m.offset + len(m.data)
        if not m.data or end > self._limit or chunk_checksum(m.data) != m.checksum:
            self.refused += 1
            self._again()
            return
        self._expected = end
        self._work.append(SnapshotWork(WorkKind.WRITE, snapshot, m.offset, m.data))

    def done(self, work: SnapshotWork, outcome: int) -> Snapshot | None:
        """The driver has done `work`. Returns the snapshot if it is complete now."""
        snapshot = self.snapshot
        if snapshot is None or work.snapshot.name != snapshot.name:
            return None
        if work.kind is WorkKind.FINISH:
            self._finishing = False
            if outcome:
                self.snapshot = None
                return snapshot
            self.refused += 1
            self._opened = False
            self._work.append(SnapshotWork(WorkKind.OPEN, snapshot))
            return None
        self.written = outcome
        if work.kind is WorkKind.OPEN:
            self._opened = True
            self._expected = outcome
            self._again()
        if self.written == snapshot.size:
            self._finishing = True
            self._work.append(SnapshotWork(WorkKind.FINISH, snapshot))
        else:
            self._ask = True  # also tells the leader how far it is
        return None

    def drop(self) -> None:
        """The log has gone beyond the snapshot by other means: the rest is not needed."""
        if self.snapshot is not None:
            self._work = [SnapshotWork(WorkKind.DROP, self.snapshot)]
            self.snapshot = None

    def _again(self) -> None:
        """Whatever was asked for before is not coming, as far as it has not come."""
        if self._opened:
            self._attempt += 1
            self._ask = True

    def take_request(self, term: int, leader: int) -> SnapshotChunkRequest | None:
        """What to ask the leader for now, if it is the one that has told of the snapshot."""
        snapshot, offer = self.snapshot, self.offer
        if snapshot is None or offer is None or not self._ask or (offer.term, offer.sender) != (term, leader):
            return None
        self._ask = False
        self._limit = min(snapshot.size, self.written + self._window_bytes)
        return SnapshotChunkRequest(
            leader, self._site, term, offer.progress, snapshot.last_index, snapshot.checksum,
            self._attempt, self._expected, self._limit,
        )  # fmt: skip

    def take_work(self) -> list[SnapshotWork]:
        work, self._work = self._work, []
        return work


class SnapshotSender:
    """The leader's end: which bytes a follower is to get next."""

    def __init__(self) -> None:
        self.name = (0, 0)
        """(last index, checksum) of the snapshot that was asked for last."""
        self._attempt = 0
        self._position = 0
        self._limit = 0

    def request(self, m: SnapshotChunkRequest) -> None:
        """Within an attempt the bytes asked for only grow; a new attempt begins where it says."""
        name = (m.last_index, m.snapshot_checksum)
        if (name, m.attempt) != (self.name, self._attempt):
            self.name, self._attempt = name, m.attempt
            self._position = m.offset
        self._limit = max(m.limit, self._position)

    def next(self, chunk_bytes: int) -> tuple[int, int] | None:
        """(offset, length) of the chunk that is to be sent now, None if nothing is."""
        length = min(chunk_bytes, self._limit - self._position)
        if length <= 0:
            return None
        offset = self._position
        self._position += length
        return offset, length
