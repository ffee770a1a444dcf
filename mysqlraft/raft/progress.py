"""The leader's view of one follower: what it has, what is on the way to it, and whether to send more."""

from __future__ import annotations

from collections import deque
from enum import Enum

from mysqlraft.raft.snapshot import Snapshot


class ProgressState(Enum):
    PROBE = "probe"
    """It is not known where the follower's log agrees with ours: appends without entries ask, one at a time, until one
    is accepted. They are asked again with every heartbeat, and a long entry on a slow line must not be sent again for
    that: its copies would queue up until the connection is given up, and with the next one it would all begin anew."""
    REPLICATE = "replicate"
    """The follower accepts appends: they are pipelined, as many bytes as the window holds."""
    SNAPSHOT = "snapshot"
    """The entries it needs are gone here: nothing to send until a snapshot has brought it forward."""


class Inflights:
    """Appends that were sent and not yet answered: a queue of (last index, bytes), and the sum of the bytes.

    Invariant: the indices strictly increase.
    """

    __slots__ = ("_queue", "bytes", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._queue: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """At least `capacity` bytes are on the way. One append may overshoot it, else a large entry never fits."""
        return self.bytes >= self.capacity

    def add(self, last_index: int, size: int) -> None:
        self._queue.append((last_index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Forget the appends that an answer for `index` covers."""
        queue = self._queue
        while queue and queue[0][0] <= index:
            self.bytes -= queue.popleft()[1]

    def clear(self) -> None:
        self._queue.clear()
        self.bytes = 0


class Progress:
    """Replication to one follower.

    Invariant: match < next_index. In REPLICATE every entry in match+1 .. next_index-1 is in `inflights`.
    """

    __slots__ = (
        "acknowledged",
        "active",
        "addressed",
        "announced_commit",
        "catching_up",
        "inflights",
        "match",
        "next_index",
        "offered_at",
        "probe_sent",
        "session",
        "silent_ticks",
        "snapshot",
        "snapshot_offset",
        "spared",
        "state",
    )

    def __init__(self, session: int, next_index: int, window: int) -> None:
        self.session = session
        """Which replication session this is; answers that carry another are from before and do not count."""
        self.match = 0
        """The greatest index up to which the follower's log on disk is known to equal ours."""
        self.next_index = next_index
        """The next entry to send."""
        self.state = ProgressState.PROBE
        self.probe_sent = False
        """In PROBE: an append is on the way, wait for its answer or the next heartbeat's."""
        self.inflights = Inflights(window)
        self.active = False
        """It was heard from since the last CheckQuorum."""
        self.addressed = self.acknowledged = self.spared = False
        """Entries were sent, an append was acknowledged since the last round of heartbeats; that had none for it."""
        self.announced_commit = 0
        """The commit index that the last message to it carried."""
        self.silent_ticks = 0
        """Ticks with appends on the way and none acknowledged, or in SNAPSHOT and no chunk asked for; the watchdog's
        measure (hashicorp #612)."""
        self.snapshot: Snapshot | None = None
        """In SNAPSHOT: the one that the follower was told of."""
        self.snapshot_offset = 0
        """In SNAPSHOT: so many of its bytes are there."""
        self.offered_at = 0
        """In SNAPSHOT: after how many silent ticks the follower was told last."""
        self.catching_up = False
        """It was told of a snapshot and has not yet caught up: the entries after that snapshot are kept for it."""

    def become_probe(self) -> None:
        """Nothing that is on the way can be relied on any more: start again behind what is known to be there."""
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.next_index = self.match + 1
        self.inflights.clear()
        self.silent_ticks = 0

    def become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.probe_sent = False
        self.next_index = self.match + 1
        self.inflights.clear()
        self.silent_ticks = 0
        self.snapshot = None

    def become_snapshot(self) -> None:
        self.state = ProgressState.SNAPSHOT
        self.probe_sent = False
        self.inflights.clear()
        self.silent_ticks = 0
        self.snapshot = None
        self.snapshot_offset = 0
        self.offered_at = 0
        self.catching_up = False

    def offer(self, latest: Snapshot | None, base_index: int) -> Snapshot | None:
        """In SNAPSHOT: what the follower is to be told of: the one that it is getting, as long as the log after that is
        kept for it, else the `latest`, if the log, which begins after `base_index`, continues it. None if there is
        none yet."""
        if not self.catching_up or self.snapshot is None:
            if latest is None or latest.last_index < base_index:
                return None
            if self.snapshot is None or self.snapshot.name != latest.name:
                self.snapshot = latest
                self.snapshot_offset = 0
            self.catching_up = True
            self.silent_ticks = 0
        self.offered_at = self.silent_ticks
        return self.snapshot

    def chunk_requested(self, offset: int) -> None:
        """The follower has the snapshot's bytes up to `offset` and wants more."""
        self.snapshot_offset = offset
        self.silent_ticks = self.offered_at = 0

    @property
    def pinned(self) -> int | None:
        """The entries after this index are kept for the follower, None if it has no such claim."""
        if not self.catching_up:
            return None
        return self.match if self.snapshot is None else max(self.match, self.snapshot.last_index)

    def give_up(self) -> None:
        """The follower is not heard of: nothing is kept for it any more."""
        self.catching_up = False

    @property
    def paused(self) -> bool:
        """No append may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return self.inflights.full
        return self.state is ProgressState.SNAPSHOT or self.probe_sent

    def sent(self, last_index: int, size: int) -> None:
        """An append of entries up to `last_index`, `size` bytes, leaves; in PROBE one of none."""
        self.addressed = True
        if self.state is ProgressState.REPLICATE:
            self.next_index = last_index + 1
            self.inflights.add(last_index, size)
        else:
            self.probe_sent = True

    def spare_heartbeat(self) -> bool:
        """Whether it needs no heartbeat in this round: entries have just gone there, and it is known to take them.

        Never twice in a row: what was sent may be long on its way, and an acknowledgement be of something older.
        """
        self.spared = self.addressed and self.acknowledged and not self.spared
        self.addressed = self.acknowledged = False
        return self.spared

    def accepted(self, index: int) -> bool:
        """An append up to `index` was acknowledged. True if that is news."""
        if self.state is not ProgressState.SNAPSHOT:
            self.silent_ticks = 0  # else it may be of before the snapshot, and no sign that it gets there
        news = index > self.match
        if news:
            self.match = index
            self.acknowledged = True
        self.next_index = max(self.next_index, index + 1)
        if self.state is ProgressState.REPLICATE:
            self.inflights.free_to(index)
        elif self.state is ProgressState.PROBE and index == self.match:
            self.become_replicate()
        return news

    def rejected(self, index: int, agree: int) -> bool:
        """The append after `index` was refused; the logs can agree at most up to `agree`. False if that is old news."""
        if self.state is ProgressState.SNAPSHOT:
            return False
        if self.state is ProgressState.REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if index != self.next_index - 1:
            return False
        # Up to `match` the logs agree, and both sides' hints never say less: unless the follower has lost its disk. (Or
        # this is a very old refusal. Connections keep the order, so it would have to be one that the network repeats.
        # What is there is then found again.)
        self.match = min(self.match, agree)
        self.next_index = min(index, agree + 1)
        self.probe_sent = False
        return True
