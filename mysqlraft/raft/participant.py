"""One site's whole pure part: the Raft core, the forwarding of this site's proposals, the leader's intake, and the
receiving end of snapshots.

This is what a driver drives: node.py with sockets, disks and a clock, tests/simulation with none of them.
"""

from __future__ import annotations

from random import Random

from mysqlraft.raft.core import RaftCore
from mysqlraft.raft.forward import Forwarder, Intake
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.messages import Forward, ForwardStatus, Message, SnapshotChunk
from mysqlraft.raft.ready import Ready
from mysqlraft.raft.roles import Role
from mysqlraft.raft.snapshot import Snapshot, SnapshotReceiver, SnapshotWork
from mysqlraft.raft.store import Store

OBSERVE_BYTES = 1024 * 1024
"""How much of the log is looked at in one go for proposals of ours that have committed: after a restart, all that the
recorded commit index is behind is there at once, and reading it takes longer than heartbeats may wait."""


class Participant:
    """RaftCore, Forwarder, Intake and SnapshotReceiver, joined. The same rules as for the core hold: one owner, inputs,
    `ready`."""

    def __init__(
        self, site: int, store: Store, random: Random, limits: Limits | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.site = site
        self.core = RaftCore(site, store, random, limits, snapshot)
        limits = self.core.limits
        self.forwarder = Forwarder(site, limits.window_bytes, limits.append_bytes, 4 * limits.election_ticks)
        self._intake = Intake(site, 0)
        self.receiver = SnapshotReceiver(site, limits.snapshot_window_bytes, random.getrandbits(62))
        self._observed = self.core.log.commit
        """Up to here the committed entries have been looked at for our own proposals."""

    def tick(self) -> None:
        self.core.tick()
        self.forwarder.tick()

    @property
    def quiet_ticks(self) -> int:
        """See RaftCore.quiet_ticks."""
        return 0 if self.forwarder.waiting_for_answer else self.core.quiet_ticks

    def step(self, message: Message) -> None:
        if isinstance(message, Forward):
            if message.to == self.site:
                self._admit(message)
        elif isinstance(message, ForwardStatus):
            if message.to == self.site:
                self._observe()
                self.forwarder.on_status(message, self.core.log.commit)
        elif isinstance(message, SnapshotChunk):
            if message.to == self.site:
                self.receiver.chunk(message)
        else:
            self.core.step(message)
            if (offer := self.core.offer) is not None and offer is message:
                self.receiver.offered(offer)

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """A proposal of this site, wherever the leader is. See Forwarder.propose."""
        self.forwarder.propose(session, sequence, payload)

    def connection_lost(self, site: int) -> None:
        """What was sent to `site` may not have arrived."""
        self.core.unreachable(site)
        if site == self.core.leader:
            self.forwarder.restart()

    def compact(self, index: int) -> int:
        """See RaftCore.compact."""
        self._observe()
        return self.core.compact(index)

    def snapshot_work_done(self, work: SnapshotWork, outcome: int) -> bool:
        """The driver has done a piece of `Ready.snapshot_work`. True if with it a snapshot was installed."""
        complete = self.receiver.done(work, outcome)
        if complete is None or not self.core.install(complete):
            return False
        # What became of our proposals in the entries that the snapshot stands for is not known: they are sent again,
        # and those that did count are told from the others by the rule of sessions.SessionTable.
        self.forwarder.restart()
        return True

    @property
    def observing(self) -> bool:
        """Whether not all that is committed has been looked at: `ready` is to be called again, though nothing comes
        in."""
        return self._observed < self.core.log.commit

    def ready(self) -> Ready | None:
        core, receiver = self.core, self.receiver
        if receiver.snapshot is not None:
            if receiver.snapshot.last_index <= core.log.commit:
                receiver.drop()
            elif (request := receiver.take_request(core.term, core.leader)) is not None:
                core.post(request)
        if self.observing:
            self._observe_slice()
        self.forwarder.follow(core.leader, core.term)
        for forward in self.forwarder.take():
            if forward.to == self.site:
                self._admit(forward)
            else:
                core.post(forward)
        if core.accepts_proposals:
            for status in self._intake.refused():
                self._answer(status)
        ready = core.ready()
        if work := receiver.take_work():
            ready = ready or Ready(0)
            ready.snapshot_work = work
        return ready

    def advance(self, ready: Ready) -> None:
        self.core.advance(ready)

    def _admit(self, forward: Forward) -> None:
        core = self.core
        if core.role is not Role.LEADER or forward.term != core.term:
            return  # its sender learns who leads, and starts again there
        if core.configuration is None or forward.sender not in core.configuration:
            return  # of a removed site: what it proposes now is no part of the history any more
        if self._intake.term != core.term:
            self._intake = Intake(self.site, core.term)
        if not core.accepts_proposals:
            self._intake.refuse(forward)
            return
        proposals, status = self._intake.admit(forward)
        if proposals:
            self._intake.taken(proposals, core.propose(proposals))
        if status is not None:
            self._answer(status)

    def _answer(self, status: ForwardStatus) -> None:
        if status.to == self.site:
            self.forwarder.on_status(status, self.core.log.commit)
        else:
            self.core.post(status)

    def _observe(self) -> None:
        while self.observing:
            self._observe_slice()

    def _observe_slice(self) -> None:
        log = self.core.log
        self._observed = max(self._observed, log.base.index)
        if not self.observing:
            return
        entries = log.slice(self._observed + 1, log.commit, OBSERVE_BYTES)
        for entry in entries:
            if entry.origin == self.site:
                self.forwarder.committed(entry.session, entry.sequence)
        self._observed = entries[-1].index
