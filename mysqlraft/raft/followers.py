"""What a leader knows of all other members: how far each of them is, who is silent, and who could lead as well."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from mysqlraft.raft.configuration import Server
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.messages import AppendResponse, HeartbeatResponse, SnapshotChunkRequest
from mysqlraft.raft.progress import Progress, ProgressState
from mysqlraft.raft.quorum import Vote, tally


class Followers:
    """Empty while this site does not lead."""

    def __init__(self, site: int, log: RaftLog, limits: Limits, random: Random) -> None:
        self._site = site
        self._log = log
        self._limits = limits
        self._random = random
        self.progress: dict[int, Progress] = {}
        self.silent: frozenset[int] = frozenset()
        """Who was not heard from in the election timeout before the last CheckQuorum."""
        self._recent_last = (0, 0)
        """The log's last index at the CheckQuorum before the last one, and at the last one."""

    def clear(self) -> None:
        self.progress = {}

    def begin(self) -> None:
        """This site leads from now on, its first entries are in the log."""
        self._recent_last = (self._log.last_index, self._log.last_index)
        self.silent = frozenset()

    def adopt(self, members: Collection[int]) -> None:
        """These are the members from now on."""
        for site in [site for site in self.progress if site not in members]:
            del self.progress[site]
        for site in members:
            if site != self._site and site not in self.progress:
                session = self._random.getrandbits(32)
                progress = Progress(session, self._log.last_index + 1, self._limits.window_bytes)
                progress.active = True  # it gets an election timeout's time to be heard from
                self.progress[site] = progress

    def heard(self, m: AppendResponse | HeartbeatResponse | SnapshotChunkRequest) -> Progress | None:
        """Whose answer this is; None if it is one from before that does not count (raft-rs #571)."""
        progress = self.progress.get(m.sender)
        if progress is None or progress.session != m.progress:
            return None
        progress.active = True
        return progress

    def tick(self) -> None:
        for progress in self.progress.values():
            if progress.inflights.bytes or progress.state is ProgressState.SNAPSHOT:
                progress.silent_ticks += 1
            if progress.state is ProgressState.SNAPSHOT and progress.silent_ticks >= self._limits.watchdog_ticks:
                progress.give_up()

    @property
    def waiting_for_answer(self) -> bool:
        """Whether ticks count: somebody has something to acknowledge, or to ask for."""
        return any(p.inflights.bytes or p.state is ProgressState.SNAPSHOT for p in self.progress.values())

    def overdue(self) -> list[int]:
        """Who has appends on the way, and has acknowledged nothing for half of the watchdog's time."""
        patience = self._limits.watchdog_ticks // 2
        return [site for site, each in self.progress.items() if each.inflights.bytes and each.silent_ticks >= patience]

    def delayed(self, site: int) -> None:
        """What is on the way to it is late, but not lost: data is still getting there."""
        progress = self.progress.get(site)
        if progress is not None:
            progress.silent_ticks = 0

    def check_quorum(self, voters: Sequence[int]) -> bool:
        """Whether a majority was heard from in the election timeout that ends now. If so, the next one begins."""
        heard = {site: progress.active for site, progress in self.progress.items()}
        heard[self._site] = True
        if tally(voters, heard) is not Vote.WON:
            return False
        self.silent = frozenset(site for site, active in heard.items() if not active)
        self._recent_last = (self._recent_last[1], self._log.last_index)
        for progress in self.progress.values():
            if not progress.active:
                progress.give_up()
            progress.active = False
        return True

    def caught_up(self, site: int) -> bool:
        """Whether a member has on its disk what this leader's log held an election timeout ago or more, at least
        what it held when this leader was elected, needs no snapshot, and is still heard from."""
        progress = self.progress.get(site)
        if progress is None or site in self.silent:
            return False
        return progress.match >= max(self._recent_last[0], self._log.base.index)

    def lag(self, site: int) -> str:
        """How far a member is behind, for people."""
        progress = self.progress.get(site)
        match = progress.match if progress is not None else 0
        last = self._log.last_index
        behind = f"it holds the log up to {match} of {last}, {last - match} entries behind"
        return f"{behind}, and is not heard from" if site in self.silent else behind

    def fitness(self, server: Server) -> tuple[bool, bool, bool, int, int]:
        """How well another voter could take over: the greater, the better."""
        no_witness, priority = server.rank
        site = server.site
        return site not in self.silent, no_witness, self.caught_up(site), priority, self.progress[site].match

    def pins(self) -> list[int]:
        """After each of these indices, entries are kept for a follower."""
        return [pinned for progress in self.progress.values() if (pinned := progress.pinned) is not None]
