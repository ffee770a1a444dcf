"""Bugs to plant, one at a time, to see whether the simulator finds them. Each is one that somebody once had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mysqlraft.raft import Configuration, Entry, HardState, RaftCore, Ready, Role
from mysqlraft.raft.configuration import NOBODY
from mysqlraft.raft.followers import Followers
from mysqlraft.raft.forward import Forwarder, Intake
from mysqlraft.raft.leadership_transfer import LeadershipTransfer
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.members import Members
from mysqlraft.raft.messages import (
    AppendRequest,
    AppendResponse,
    Forward,
    ForwardStatus,
    HeartbeatResponse,
    VoteRequest,
    VoteResponse,
)
from mysqlraft.raft.outbox import Outbox
from mysqlraft.raft.quorum import agreed
from mysqlraft.raft.reads import Reads
from mysqlraft.raft.sessions import SessionTable
from mysqlraft.raft.snapshot import Snapshot
from mysqlraft.raft.store import Base, Rebase

Plant = Callable[[Callable[[Any, str, Any], None]], None]

BUGS: dict[str, Plant] = {}
RARE = {
    "votes go to the longer log and not to the later term",
    "a snapshot keeps a conflicting suffix",
    "a snapshot drops what follows it",
    "what was replaced is still acknowledged",
    "the end of a write proves what has replaced it",
    "forced members elect by majority",
    "a leader is refused by whom only an uncommitted change has removed it",
    "answers from before a removal count",
    "a transfer has no end",
}
"""Those that it takes hundreds of seeds or more to find."""


def bug(plant: Plant) -> Plant:
    BUGS[plant.__name__.replace("_", " ")] = plant
    return plant


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code has this bug for a while."""
    undo: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    BUGS[name](patch)
    try:
        yield
    finally:
        for owner, attribute, value in undo:
            setattr(owner, attribute, value)


@bug
def the_vote_is_forgotten(patch: Any) -> None:
    """The record on disk has the term and not the vote."""
    ready = RaftCore.ready

    def forgetful(self: RaftCore) -> Ready | None:
        made = ready(self)
        if made is not None and made.write is not None and made.write.hard_state is not None:
            made.write = made.write._replace(hard_state=HardState(made.write.hard_state.term, NOBODY))
        return made

    patch(RaftCore, "ready", forgetful)


@bug
def messages_are_not_withheld(patch: Any) -> None:
    ready = RaftCore.ready

    def hasty(self: RaftCore) -> Ready | None:
        made = ready(self)
        if made is not None:
            made.messages += made.promises
            made.promises.clear()
            if made.write is None and made in self._outbox._outstanding:
                self._outbox._outstanding.remove(made)
        return made

    patch(RaftCore, "ready", hasty)


@bug
def acknowledged_before_it_is_on_disk(patch: Any) -> None:
    def acknowledge(self: RaftCore, m: AppendRequest, index: int) -> None:
        self._send(AppendResponse(m.sender, self.site, self.term, m.progress, index, False, 0, 0))

    patch(RaftCore, "_acknowledge", acknowledge)


@bug
def the_leader_counts_what_it_has_not_written(patch: Any) -> None:
    def on_disk(self: RaftCore, site: int) -> int:
        return self.log.last_index if site == self.site else self.followers.progress[site].match

    patch(RaftCore, "_on_disk", on_disk)


@bug
def a_minority_is_enough_to_commit(patch: Any) -> None:
    def maybe_commit(self: RaftCore) -> None:
        index = sorted([self._on_disk(site) for site in self.members.voters])[len(self.members.voters) // 2 :][-1]
        if index > self.log.commit and self.log.matches(index, self.term):
            self._commit(index)

    patch(RaftCore, "_maybe_commit", maybe_commit)


@bug
def entries_of_older_terms_are_committed_by_counting(patch: Any) -> None:
    def maybe_commit(self: RaftCore) -> None:
        if self.members.voters:
            self._commit(agreed(self.members.voters, self._on_disk))

    patch(RaftCore, "_maybe_commit", maybe_commit)


@bug
def followers_commit_what_is_not_verified(patch: Any) -> None:
    def learn(self: RaftCore, commit: int) -> None:
        self._commit(min(commit, self.log.last_index))

    patch(RaftCore, "_learn_commit", learn)


@bug
def verification_outlives_the_term(patch: Any) -> None:
    become_follower = RaftCore._become_follower

    def become(self: RaftCore, term: int, leader: int, reason: str) -> None:
        verified = self._verified
        become_follower(self, term, leader, reason)
        self._verified = verified

    patch(RaftCore, "_become_follower", become)


@bug
def votes_go_to_logs_that_are_behind(patch: Any) -> None:
    patch(RaftLog, "up_to_date", lambda self, last_index, last_term: True)


@bug
def votes_go_to_the_longer_log_and_not_to_the_later_term(patch: Any) -> None:
    patch(RaftLog, "up_to_date", lambda self, last_index, last_term: last_index >= self.last_index)


@bug
def two_votes_in_one_term(patch: Any) -> None:
    def on_vote_request(self: RaftCore, m: VoteRequest) -> None:
        if self.log.up_to_date(m.last_index, m.last_term):
            if not m.pre:
                self.vote = m.sender
            self._promise(VoteResponse(m.sender, self.site, m.term, m.pre, True))

    patch(RaftCore, "_on_vote_request", on_vote_request)
    from mysqlraft.raft import core

    handlers = core._HANDLERS
    changed = {**handlers, VoteRequest: on_vote_request}
    patch(core, "_HANDLERS", changed)


@bug
def a_previous_entry_of_another_term_will_do(patch: Any) -> None:
    patch(RaftLog, "matches", lambda self, index, term: self.term(index) is not None)


@bug
def conflicting_entries_stay(patch: Any) -> None:
    def merge(self: RaftLog, previous_index: int, entries: Sequence[Entry]) -> Sequence[Entry]:
        new = [entry for entry in entries if entry.index > self.last_index]
        self.append(new)
        return new

    patch(RaftLog, "merge", merge)


@bug
def every_append_truncates(patch: Any) -> None:
    """A delayed, older append cuts off what came after it and was acknowledged."""

    def merge(self: RaftLog, previous_index: int, entries: Sequence[Entry]) -> Sequence[Entry]:
        if entries and entries[0].index <= self.last_index:
            self.truncate(entries[0].index)
        self.append(entries)
        return entries

    patch(RaftLog, "merge", merge)


@bug
def changes_before_the_leaders_first_commit(patch: Any) -> None:
    """Two changes at a time, without regard to what is committed."""

    def propose_change(self: RaftCore, change: Any, server: Any, expected_index: int, force: bool = False) -> int:
        if not self.accepts_proposals or self.configuration is None:
            return 0
        from mysqlraft.raft import EntryKind

        self._append(EntryKind.CONFIGURATION, self.configuration.changed(change, server).encode())
        self._adopt_configuration()
        return self.log.last_index

    patch(RaftCore, "propose_change", propose_change)


@bug
def reads_without_asking_anybody(patch: Any) -> None:
    patch(Reads, "_round_answered", lambda self, site: self.round + 1)


@bug
def reads_before_the_leaders_first_commit(patch: Any) -> None:
    def read(self: RaftCore, asker: int, context: Any) -> None:
        self._heartbeat_due = True
        self._reads.confirm(asker, context, self.log.commit)

    patch(RaftCore, "_read", read)


@bug
def a_new_leader_does_not_make_it_start_again(patch: Any) -> None:
    def follow(self: Forwarder, leader: int, term: int) -> None:
        self._leader, self._term = leader, term

    patch(Forwarder, "follow", follow)
    patch(Forwarder, "tick", lambda self: None)


@bug
def the_intake_takes_what_leaves_a_gap(patch: Any) -> None:
    admit = Intake.admit

    def greedy(self: Intake, forward: Forward) -> tuple[list[Any], ForwardStatus | None]:
        return admit(self, forward._replace(start=True))

    patch(Intake, "admit", greedy)


@bug
def what_is_forwarded_twice_counts_twice(patch: Any) -> None:
    def accept(self: SessionTable, origin: int, session: int, sequence: int) -> bool:
        current, last = self._last.get(origin, (0, 0))
        self._last[origin] = (session, sequence)
        return (session, sequence) >= (current, last)

    patch(SessionTable, "accept", accept)


@bug
def a_rejected_append_is_not_sent_again(patch: Any) -> None:
    from mysqlraft.raft.progress import Progress

    patch(Progress, "rejected", lambda self, index, agree: False)


@bug
def nobody_steps_down_without_a_majority(patch: Any) -> None:
    """Harmless to safety; but a site whose leader is cut off from all others would wait for it for ever."""

    def tick_leader(self: RaftCore) -> None:
        self._heartbeat_due = True
        self._transfer.target = NOBODY if self._transfer._elapsed > 5 else self._transfer.target

    patch(RaftCore, "_tick_leader", tick_leader)
    patch(RaftCore, "_hears_leader", lambda self: self.role is Role.LEADER)


@bug
def a_witness_keeps_the_leadership(patch: Any) -> None:
    preferred = LeadershipTransfer.preferred
    patch(LeadershipTransfer, "preferred", lambda self: None if self._members.is_witness else preferred(self))


@bug
def priorities_make_no_difference(patch: Any) -> None:
    preferred = LeadershipTransfer.preferred
    patch(LeadershipTransfer, "preferred", lambda self: preferred(self) if self._members.is_witness else None)


@bug
def equals_take_the_leadership_from_each_other(patch: Any) -> None:
    def preferred(self: LeadershipTransfer) -> tuple[int, str] | None:
        others = [server for server in self._other_voters() if self._followers.caught_up(server.site)]
        chosen = max(others, key=self._followers.fitness, default=None)
        self._preference.tick([] if chosen is None else [chosen.site])
        return (chosen.site, "why not") if chosen is not None and self._preference.due(chosen.site) else None

    patch(LeadershipTransfer, "preferred", preferred)


@bug
def whoever_lags_is_promoted(patch: Any) -> None:
    patch(Followers, "caught_up", lambda self, site: site in self.progress)


@bug
def the_configuration_index_is_not_compared(patch: Any) -> None:
    propose_change = RaftCore.propose_change

    def careless(self: RaftCore, change: Any, server: Any, expected_index: int, force: bool = False) -> int:
        return propose_change(self, change, server, self.configuration_index, force)

    patch(RaftCore, "propose_change", careless)


@bug
def a_snapshot_keeps_a_conflicting_suffix(patch: Any) -> None:
    """hashicorp #697."""
    restore = RaftLog.restore

    def keeping(self: RaftLog, base: Base, configuration: tuple[int, Configuration]) -> Rebase:
        if base.index >= self.last_index:
            return restore(self, base, configuration)
        self._forget(max(0, min(base.index, self.stable) + 1 - self._cached_from))
        rebase = self._begin_at(base, configuration, True)
        self.commit = base.index
        return rebase

    patch(RaftLog, "restore", keeping)


@bug
def a_snapshot_drops_what_follows_it(patch: Any) -> None:
    """Also what was acknowledged: the other side of hashicorp #697."""
    restore = RaftLog.restore

    def dropping(self: RaftLog, base: Base, configuration: tuple[int, Configuration]) -> Rebase:
        matches = self.matches
        self.matches = lambda index, term: False  # type: ignore[method-assign]
        try:
            return restore(self, base, configuration)
        finally:
            self.matches = matches  # type: ignore[method-assign]

    patch(RaftLog, "restore", dropping)


@bug
def a_snapshot_goes_back_behind_commit(patch: Any) -> None:
    def install(self: RaftCore, snapshot: Snapshot) -> bool:
        self.snapshot = snapshot
        if self.role is Role.LEADER or snapshot.last_index <= self.log.base.index:
            return False
        self._outbox.rebased(self.log.restore(snapshot.base, (snapshot.configuration_index, snapshot.configuration)))
        self._outbox._given = snapshot.last_index
        self._outbox._truncations += 1
        return True

    from mysqlraft.raft.snapshot import SnapshotReceiver

    patch(RaftCore, "install", install)
    patch(SnapshotReceiver, "drop", lambda self: None)


@bug
def a_snapshot_forgets_the_configuration(patch: Any) -> None:
    restore = RaftLog.restore

    def forgetful(self: RaftLog, base: Base, configuration: tuple[int, Configuration]) -> Rebase:
        first = self.configurations[0] if self.configurations else configuration
        return restore(self, base, first)

    patch(RaftLog, "restore", forgetful)


@bug
def compaction_forgets_the_configuration(patch: Any) -> None:
    patch(RaftLog, "configuration_at", lambda self, index: self.configurations[0])


@bug
def compaction_forgets_the_checksum(patch: Any) -> None:
    compact = RaftLog.compact

    def forgetful(self: RaftLog, index: int) -> Rebase:
        rebase = compact(self, index)
        self.base = self.base._replace(chain=0)
        return rebase._replace(base=self.base)

    patch(RaftLog, "compact", forgetful)


@bug
def what_a_transfer_needs_is_not_pinned(patch: Any) -> None:
    patch(Followers, "pins", lambda self: [])


@bug
def a_snapshot_is_acknowledged_before_the_log_begins_there(patch: Any) -> None:
    acknowledge = RaftCore._acknowledge

    def hasty(self: RaftCore, m: Any, index: int) -> None:
        stable, self.log.stable = self.log.stable, max(self.log.stable, self.log.base.index)
        acknowledge(self, m, index)
        self.log.stable = stable

    patch(RaftCore, "_acknowledge", hasty)


@bug
def damaged_chunks_are_taken(patch: Any) -> None:
    from mysqlraft.raft import memory_store, snapshot

    patch(snapshot, "chunk_checksum", lambda data: 0)
    patch(memory_store, "xxh3_64_intdigest", lambda data: 0)
    chunk = snapshot.SnapshotReceiver.chunk
    patch(snapshot.SnapshotReceiver, "chunk", lambda self, m: chunk(self, m._replace(checksum=0)))


@bug
def a_snapshot_goes_on_in_the_file_of_another(patch: Any) -> None:
    from mysqlraft.raft import memory_store

    perform = memory_store.MemorySnapshotStore.perform

    def mixing(self: Any, work: Any) -> int:
        if self.incoming is not None:
            self.incoming = (work.snapshot, self.incoming[1])
        outcome = perform(self, work)
        if work.kind.value == "finish" and not outcome:
            raise AssertionError("a snapshot that arrived without a fault is damaged")
        return outcome

    patch(memory_store.MemorySnapshotStore, "perform", mixing)


@bug
def a_snapshot_is_offered_once(patch: Any) -> None:
    offer = RaftCore._offer_snapshot

    def once(self: RaftCore, site: int, progress: Any) -> None:
        if progress.snapshot is None:
            offer(self, site, progress)

    patch(RaftCore, "_offer_snapshot", once)


@bug
def lost_chunks_are_not_asked_for_again(patch: Any) -> None:
    from mysqlraft.raft.snapshot import SnapshotReceiver

    again = SnapshotReceiver._again
    patch(SnapshotReceiver, "_again", lambda self: None if self.written else again(self))


@bug
def a_snapshot_that_the_log_does_not_reach_is_forgotten(patch: Any) -> None:
    """A crash between the snapshot and the log's new base."""
    init = RaftCore.__init__

    def forgetful(self: RaftCore, site: int, store: Any, random: Any, limits: Any = None, snapshot: Any = None) -> None:
        init(self, site, store, random, limits, None)

    patch(RaftCore, "__init__", forgetful)


@bug
def forced_members_elect_by_majority(patch: Any) -> None:
    """After a disaster, though one of them alone may have what was committed."""
    from mysqlraft.raft import core
    from mysqlraft.raft.quorum import tally

    patch(core, "tally", lambda voters, votes, unanimous=False: tally(voters, votes))


@bug
def a_leader_is_refused_by_whom_only_an_uncommitted_change_has_removed_it(patch: Any) -> None:
    def knows(self: Members, site: int, introduction: int) -> bool:
        member = self.configuration is not None and site in self.configuration
        return member or introduction > self.index

    patch(Members, "knows", knows)


@bug
def what_was_replaced_is_still_acknowledged(patch: Any) -> None:
    advance = RaftCore.advance

    def truncated(self: Outbox, last: int) -> None:
        self._given = min(self._given, last)
        self._truncations += 1

    def talkative(self: RaftCore, ready: Ready) -> None:
        promises = ready.promises
        advance(self, ready)
        ready.promises = promises

    patch(Outbox, "truncated", truncated)
    patch(RaftCore, "advance", talkative)


@bug
def the_end_of_a_write_proves_what_has_replaced_it(patch: Any) -> None:
    advance = RaftCore.advance

    def credulous(self: RaftCore, ready: Ready) -> None:
        ready.truncations = self._outbox._truncations
        advance(self, ready)

    patch(RaftCore, "advance", credulous)


@bug
def a_follower_reads_at_its_own_commit(patch: Any) -> None:
    from mysqlraft.raft.ready import ReadState

    read_index = RaftCore.read_index

    def read(self: RaftCore, context: Any) -> None:
        if self.role is Role.LEADER:
            read_index(self, context)
        else:
            self._outbox.read_states.append(ReadState(context, self.log.commit))

    patch(RaftCore, "read_index", read)


@bug
def all_attempts_to_read_have_the_same_id(patch: Any) -> None:
    """etcd #20418."""
    read_index = RaftCore.read_index

    def read(self: RaftCore, context: Any) -> None:
        self._reads._attempt = 0
        read_index(self, context)

    patch(RaftCore, "read_index", read)


@bug
def answers_from_before_a_removal_count(patch: Any) -> None:
    """raft-rs #571."""

    def heard(self: Followers, m: Any) -> Any:
        progress = self.progress.get(m.sender)
        if progress is not None:
            progress.active = True
        return progress

    patch(Followers, "heard", heard)


@bug
def a_transfer_has_no_end(patch: Any) -> None:
    """hashicorp #487: proposals are refused for ever."""
    tick_leader = RaftCore._tick_leader

    def patient(self: RaftCore) -> None:
        self._transfer._elapsed = 0
        tick_leader(self)

    patch(RaftCore, "_tick_leader", patient)


@bug
def a_stalled_pipeline_stays_stalled(patch: Any) -> None:
    """hashicorp #612."""
    on_heartbeat_response = RaftCore._on_heartbeat_response
    from mysqlraft.raft import core

    def trusting(self: RaftCore, m: Any) -> None:
        progress = self.followers.progress.get(m.sender)
        if progress is not None:
            progress.silent_ticks = min(progress.silent_ticks, self.limits.watchdog_ticks - 1)
        on_heartbeat_response(self, m)

    patch(core, "_HANDLERS", {**core._HANDLERS, HeartbeatResponse: trusting})


@bug
def commit_goes_where_the_leader_says(patch: Any) -> None:
    def commit_to(self: RaftLog, index: int) -> bool:
        moved = index != self.commit
        self.commit = min(index, self.last_index)
        return moved

    def learn(self: RaftCore, commit: int) -> None:
        self._commit(min(commit, self._verified))

    patch(RaftLog, "commit_to", commit_to)
    patch(RaftCore, "_learn_commit", learn)


@bug
def what_was_sent_is_not_sent_again(patch: Any) -> None:
    """To the next leader only what comes now, as if all before it had committed."""

    def restart(self: Forwarder) -> None:
        self._start = True
        self._silent_ticks = 0

    patch(Forwarder, "restart", restart)


@bug
def a_new_term_is_not_recorded(patch: Any) -> None:
    """Only votes are."""
    ready = RaftCore.ready

    def forgetful(self: RaftCore) -> Ready | None:
        made = ready(self)
        state = made.write.hard_state if made is not None and made.write is not None else None
        if made is not None and made.write is not None and state is not None and state.vote == NOBODY:
            self._outbox._hard_state_durable = state
            made.write = made.write._replace(hard_state=None)
        return made

    patch(RaftCore, "ready", forgetful)


@bug
def a_few_votes_are_enough(patch: Any) -> None:
    from mysqlraft.raft import core, followers
    from mysqlraft.raft.quorum import Vote

    def tally(voters: Sequence[int], votes: Any, unanimous: bool = False) -> Vote:
        return Vote.WON if any(votes.values()) else Vote.PENDING

    patch(core, "tally", tally)
    patch(followers, "tally", tally)


@bug
def a_lost_election_takes_its_term_back(patch: Any) -> None:
    become_follower = RaftCore._become_follower

    def become(self: RaftCore, term: int, leader: int, reason: str) -> None:
        if reason == "a majority refused its vote" and self.role is Role.CANDIDATE:
            term = self.term = self.term - 1
        become_follower(self, term, leader, reason)

    patch(RaftCore, "_become_follower", become)


@bug
def a_new_leader_goes_on_with_the_old_term(patch: Any) -> None:
    """Its first entry has the term of the last one in its log, as another one's at that place may have."""
    from mysqlraft.raft import EntryKind

    def append(self: RaftCore, kind: EntryKind, payload: bytes) -> None:
        log = self.log
        log.append([Entry(log.last_index + 1, log.last_term, kind, payload=payload, previous_chain=log.last_chain)])

    patch(RaftCore, "_append", append)


@bug
def a_snapshot_leaves_out_what_was_proposed_last(patch: Any) -> None:
    """Whatever the FSM had in memory only."""
    from tests.raft.ledger import Ledger

    restore = Ledger.restore

    def forgetful(self: Ledger, data: Any) -> None:
        restore(self, data)
        self.digest = 0

    patch(Ledger, "restore", forgetful)
