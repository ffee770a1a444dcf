"""What leaves the core, and when: messages, and the writes that their promises wait for.

`RaftCore` only adds to it; a `Ready` takes out all that is there. What is known here of the disk is what has been given
out to be written, and what of that is durable.
"""

from __future__ import annotations

from mysqlraft.raft.log import NO_LIMIT, RaftLog
from mysqlraft.raft.messages import AppendResponse, Message, SnapshotChunkRequest
from mysqlraft.raft.ready import ReadState, Ready
from mysqlraft.raft.roles import Transition
from mysqlraft.raft.store import HardState, Rebase, Write

RECORD_TICKS = 100
"""So long a site that never rests does without recording its commit index: with every batch of entries it would cost
the store more than it is worth (see leveldb_store.py), as it is but a hint for the next start."""


class Outbox:
    """Of one core. `messages` promise nothing that is not on disk yet; `promises` wait for it."""

    def __init__(self, log: RaftLog, hard_state: HardState, commit: int) -> None:
        """`hard_state` and `commit`: those on disk."""
        self.messages: list[Message] = []
        self.promises: list[Message] = []
        self.read_states: list[ReadState] = []
        self.transitions: list[Transition] = []
        self.chunk_requests: list[SnapshotChunkRequest] = []
        self._log = log
        self._hard_state_given = hard_state
        """The hard state in the last Ready that had one."""
        self._hard_state_durable = hard_state
        self._commit_given = commit
        self._commit_age = 0
        """Ticks since a Write carried it."""
        self._commit_reported = log.commit
        self._given = log.last_index
        """Entries up to here are on disk or in an outstanding Ready."""
        self._rebase: Rebase | None = None
        """The log's new base, not yet in any Ready."""
        self._truncations = 0
        self._number = 0
        self._outstanding: list[Ready] = []
        self.stalled_ticks = 0
        """For which the oldest outstanding Ready has not been advanced."""

    @property
    def outstanding(self) -> bool:
        """Whether a Ready was given out and is not advanced."""
        return bool(self._outstanding)

    def tick(self) -> None:
        self._commit_age += 1
        if self._outstanding:
            self.stalled_ticks += 1

    # ---- what the log is to be on disk ----------------------------------------------------------------------------

    def rebased(self, rebase: Rebase) -> None:
        """The log has a new base."""
        if self._rebase is not None and not self._rebase.keep:
            rebase = rebase._replace(keep=False)  # what is on disk is still to go
        self._rebase = rebase

    def restored(self, rebase: Rebase) -> None:
        """The log has a new base: a snapshot's last entry, which needs no write of its own."""
        base = rebase.base.index
        if rebase.keep:
            self._given = max(self._given, base)
        else:
            self.truncated(base)
            self._given = base
        if self._log.last_index == base:
            # Nothing follows it. The disk may hold more: what the snapshot's entries replaced a moment ago, in a write
            # that was not given out and now never will be.
            rebase = rebase._replace(keep=False)
        self.rebased(rebase)

    def truncated(self, last: int) -> None:
        """The entries after `last` are gone. They may have been acknowledged to the leader before, in a message that
        has not left, as they were not on disk; now they will not get there, and so it never leaves. See `advance`,
        too."""
        self._given = min(self._given, last)
        self._truncations += 1
        self.promises = [message for message in self.promises if not isinstance(message, AppendResponse)]

    # ---- Readys ---------------------------------------------------------------------------------------------------

    def ready(self, term: int, vote: int) -> Ready | None:
        """What is to be done since the last call, in a term with a vote; None if nothing is."""
        log = self._log
        write = None
        given = self._hard_state_given
        changed = HardState(term, vote) if given.term != term or given.vote != vote else None
        if changed is not None or self._given < log.last_index or self._rebase is not None:
            entries = log.slice(self._given + 1, log.last_index, NO_LIMIT)
            commit = self._give_commit() if self._commit_age >= RECORD_TICKS else 0
            write = Write(changed, entries, commit, rebase=self._rebase)
            self._rebase = None
            self._hard_state_given = changed or given
            self._given = log.last_index
        moved = self._commit_reported < log.commit
        if not (
            write
            or moved
            or self.messages
            or self.promises
            or self.read_states
            or self.transitions
            or self.chunk_requests
        ):
            return None
        self._commit_reported = log.commit
        self._number += 1
        ready = Ready(
            self._number,
            self.messages,
            self.promises,
            write,
            self.read_states,
            self.transitions,
            log.commit,
            self._truncations,
            self.chunk_requests,
        )
        if self._hard_state_given != self._hard_state_durable:
            # Nothing may be said in a term that a crash could make us forget.
            ready.promises = ready.messages + ready.promises
            ready.messages = []
        if ready.promises and write is None and not self._outstanding:
            ready.messages += ready.promises
            ready.promises = []
        self.messages, self.promises, self.read_states, self.transitions = [], [], [], []
        self.chunk_requests = []
        if ready.write or ready.promises:
            self._outstanding.append(ready)
        return ready

    def advance(self, ready: Ready) -> None:
        """The write of `ready`, and of every Ready before it, is on disk. Takes out of it the promises that have become
        untrue meanwhile."""
        if not self._outstanding or self._outstanding[0] is not ready:
            raise AssertionError(f"Ready {ready.number} advanced out of order")
        self._outstanding.pop(0)
        self.stalled_ticks = 0
        if ready.truncations != self._truncations:
            ready.promises = [message for message in ready.promises if not isinstance(message, AppendResponse)]
        write = ready.write
        if write is None:
            return
        if write.hard_state is not None:
            self._hard_state_durable = write.hard_state
        if ready.truncations == self._truncations:
            # Else what this write put there is being replaced by a later one, which will say so itself.
            if write.rebase is not None:
                self._log.stabilized(write.rebase.base.index)
            if write.entries:
                self._log.stabilized(write.entries[-1].index)

    def commit_to_record(self) -> Write | None:
        """A commit index that no Write has carried yet: worth writing down, unsynced, when there is nothing to do."""
        log = self._log
        if self._commit_given == log.commit or self._outstanding or log.commit > log.stable:
            return None
        return Write(commit=self._give_commit())

    def _give_commit(self) -> int:
        """The commit index, for a Write to carry."""
        self._commit_given, self._commit_age = self._log.commit, 0
        return self._commit_given
