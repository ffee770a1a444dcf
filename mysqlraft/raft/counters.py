"""What a node counts of its work, for metrics: at most a few additions for each batch, none for each entry."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Any

from mysqlraft.raft.configuration import NOBODY
from mysqlraft.raft.roles import Role, Transition


class Histogram:
    """How often something took how long, as Prometheus counts it."""

    BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    """Seconds; the last bucket has no bound."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(self.BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self.BOUNDS, seconds)] += 1
        self._sum += seconds

    def to_dict(self) -> dict[str, Any]:
        """`buckets`: (bound, how many took at most that long), without the last; `sum` of seconds, `count` of all."""
        buckets, total = [], 0
        for bound, count in zip(self.BOUNDS, self._counts, strict=False):
            total += count
            buckets.append((bound, total))
        return {"buckets": buckets, "sum": round(self._sum, 6), "count": total + self._counts[-1]}


class Counters:
    """Since the node was made."""

    def __init__(self) -> None:
        self.writes = Histogram()
        """From handing a batch to the disk until it is durable."""
        self.commits = Histogram()
        """While leader: from taking a batch of proposals until it is committed, and on the own disk."""
        self.roles = dict.fromkeys(Role, 0)
        """How often each role was entered."""
        self.leaders = 0
        """How often another leader became known."""
        self._role = Role.FOLLOWER
        self._leader = NOBODY
        self._uncommitted: deque[tuple[int, float]] = deque()

    def transition(self, transition: Transition) -> None:
        if transition.role is not self._role:
            self._role = transition.role
            self.roles[transition.role] += 1
            self._uncommitted.clear()
        if transition.leader not in (self._leader, NOBODY):
            self._leader = transition.leader
            self.leaders += 1

    def appended(self, last_index: int, now: float) -> None:
        """This site's log was extended up to there. Only what a leader appends is a commit to wait for."""
        if self._role is Role.LEADER:
            self._uncommitted.append((last_index, now))

    def committed(self, index: int, now: float) -> None:
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self.commits.observe(now - uncommitted.popleft()[1])

    def to_dict(self) -> dict[str, Any]:
        return {
            "write_seconds": self.writes.to_dict(),
            "commit_seconds": self.commits.to_dict(),
            "roles": {role.value: count for role, count in self.roles.items()},
            "leaders": self.leaders,
        }
