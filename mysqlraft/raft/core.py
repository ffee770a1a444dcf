"""The Raft algorithm: pure, without I/O, clock or threads.

Theory of operation
-------------------

`RaftCore` is a state machine with one owner. Its inputs are `tick` (time passes), `step` (a message arrived),
`propose` and its kin (a wish of this site), and `advance` (what an earlier `Ready` asked to be written is on disk).
Its only output is `ready`: messages to send, and a `Write` to make durable. An input never sends anything by itself;
it changes state and leaves the rest to the next `ready`. So an owner that feeds many inputs before it asks gets
one message where there would have been many, and one disk write.

What a message promises must be on disk before the message leaves. So a `Ready` has two kinds of messages:

- `messages` promise nothing that is not on disk yet: they leave at once. A leader's appends are of this kind: they
  travel while its own disk still writes (Ongaro's thesis, 10.2.1).
- `promises` leave after this Ready's `write`, *and those of all Readys before it*, are durable: votes, requests for
  votes, acknowledged appends, and everything said in a term that is not on disk yet.

Several Readys may be outstanding; they are to be advanced in the order in which they were given out. The leader
counts its own log towards a majority only up to what `advance` has told it.

Role transitions (every one is reported in `Ready.transitions`, with its reason)::

    FOLLOWER --election timeout--> PRE_CANDIDATE --majority would vote--> CANDIDATE --majority voted--> LEADER
       ^  '----leader hands over: TimeoutNow-------------------------------^                             |
       '---- a greater term, a leader in this term, no quorum heard from, own disk stalled --------------'

Entries, votes and terms follow the Raft paper; pre-vote, CheckQuorum, leader stickiness, leadership transfer and
single-server membership changes follow Ongaro's thesis with the corrections listed in docs/consensus.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from mysqlraft.raft.configuration import NOBODY, Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.entry import Entry, EntryKind, total_size
from mysqlraft.raft.followers import Followers
from mysqlraft.raft.leadership_transfer import LeadershipTransfer
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.members import Members
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
    Proposal,
    ReadIndexRequest,
    ReadIndexResponse,
    SnapshotChunk,
    SnapshotChunkRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from mysqlraft.raft.outbox import Outbox
from mysqlraft.raft.progress import Progress, ProgressState
from mysqlraft.raft.quorum import Vote, agreed, tally
from mysqlraft.raft.reads import Reads
from mysqlraft.raft.ready import ReadState, Ready
from mysqlraft.raft.roles import NotLeader, Role, Transition
from mysqlraft.raft.snapshot import Snapshot
from mysqlraft.raft.store import Store, Write

_ANSWERS = (AppendResponse, HeartbeatResponse, SnapshotChunkRequest)
"""What a follower sends to its leader."""
_OF_LEADERS = (AppendRequest, Heartbeat, CommitNotice, InstallSnapshot)
"""What only a leader sends: whoever does, the voters of some configuration have elected it."""
_ON_TOP = (Forward, ForwardStatus, SnapshotChunk)
"""What the protocols built on top say."""

WITNESS_PATIENCE = 3
"""Election timeouts by which a witness waits longer than others before it campaigns: if they can lead, they do."""


class RaftCore:
    """One site's part in the algorithm.

    Invariants: `term` never decreases; `vote` changes only with `term` or from nobody; `log.commit` never decreases
    and only committed entries are below it; while `role` is LEADER, `leader` is this site.
    """

    def __init__(
        self, site: int, store: Store, random: Random, limits: Limits | None = None, snapshot: Snapshot | None = None
    ) -> None:
        """`snapshot` is the latest that this site holds. If the log does not reach it, a crash came between the two:
        it is installed now."""
        self.site = site
        self.limits = limits or Limits()
        self.log = RaftLog(store, self.limits.cache_bytes)
        self.log.commit_to(store.commit)
        self.term, self.vote = store.hard_state
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self._transition_term = self.term
        """The term that the last Transition reported."""
        self.members = Members(site, self.log, store)
        self.followers = Followers(site, self.log, self.limits, random)
        self._transfer = LeadershipTransfer(site, self.members, self.followers, self.limits.election_ticks)
        self._random = random
        self._store = store

        self._election_elapsed = 0
        """Follower: ticks since it heard from a leader or voted. Leader: since its last CheckQuorum."""
        self._heartbeat_elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes: dict[int, bool] = {}

        self._verified = 0
        """Follower: up to here the log is known to equal that of the leader of `term`."""
        self._leader_commit = 0
        """Follower: the greatest commit index that the leader of `term` announced."""

        self._heartbeat_due = False
        self._reads = Reads(site, random.getrandbits(62))

        self._sliced: tuple[int, tuple[Entry, ...], int] = (0, (), 0)
        """Leader: what the last append of this round holds, as (its first index, entries, size): the next follower
        mostly gets the same."""
        self._outbox = Outbox(self.log, store.hard_state, store.commit)

        self.snapshot: Snapshot | None = None
        """The latest that this site holds: what a leader has for followers whose next entry is gone."""
        self.offer: InstallSnapshot | None = None
        """Follower: the last snapshot that the leader told of and that this site needs."""
        if snapshot is not None:
            if snapshot.base.term > self.term:
                self.term, self.vote = snapshot.base.term, NOBODY  # the crash came before that was written
            self.install(snapshot)

    # ---- what there is to know ------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration | None:
        """The latest in the log, committed or not; None before this site has received one."""
        return self.members.configuration

    @property
    def configuration_index(self) -> int:
        """The index of its entry, 0 if there is none."""
        return self.members.index

    @property
    def transferee(self) -> int:
        """While leader: whom leadership is being handed to, else NOBODY."""
        return self._transfer.target

    @property
    def commit_index(self) -> int:
        return self.log.commit

    @property
    def accepts_proposals(self) -> bool:
        return self.role is Role.LEADER and self._transfer.target == NOBODY

    @property
    def storage_stalled(self) -> bool:
        """A write has been outstanding for an election timeout."""
        return self._outbox.stalled_ticks >= self.limits.election_ticks

    @property
    def ticks_since_leader(self) -> int:
        """How long ago this follower heard from its leader."""
        return 0 if self.role is Role.LEADER else self._election_elapsed

    @property
    def quiet_ticks(self) -> int:
        """So many ticks from now on do nothing but count, as long as there is no other input."""
        if self._outbox.outstanding:
            return 0
        if self.role is not Role.LEADER:
            return max(0, self._timeout - self._election_elapsed - 1)
        if self.followers.waiting_for_answer or self._transfer.ahead:
            return 0
        heartbeat = self.limits.heartbeat_ticks - self._heartbeat_elapsed
        check_quorum = self.limits.election_ticks - self._election_elapsed
        return max(0, min(heartbeat, check_quorum) - 1)

    # ---- inputs ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        self._outbox.tick()
        self._election_elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._election_elapsed >= self._timeout:
            self._election_elapsed = 0
            self._timeout = self._draw_timeout()
            reason = "nothing heard from any leader" if self.role is Role.FOLLOWER else "no outcome in time"
            if self.members.may_campaign and not self.storage_stalled:
                self._campaign(pre=True, reason=reason)
            elif self.leader != NOBODY or self.role is not Role.FOLLOWER:
                self._become_follower(self.term, NOBODY, reason)

    def step(self, message: Message) -> None:
        """A message arrived."""
        if message.to != self.site or message.sender == self.site:
            return
        if isinstance(message, _ANSWERS) and message.sender not in self.followers.progress:
            # Of a removed member (or not ours to receive): not even its term counts (hashicorp #524).
            return
        if isinstance(message, _ON_TOP):
            return  # of the protocols on top, which this is not: see participant.py
        if message.term > self.term:
            if isinstance(message, VoteRequest):
                if not message.transfer and self._hears_leader():
                    return  # stickiness: while the leader lives, nobody's greater term disturbs it (thesis, 4.2.3)
                if not message.pre:
                    self._become_follower(message.term, NOBODY, f"site {message.sender} campaigns")
            elif isinstance(message, VoteResponse) and message.pre and message.granted:
                pass  # carries the term that we would campaign in
            elif isinstance(message, (ReadIndexRequest, ReadIndexResponse)):
                return  # says nothing about who leads; its sender asks again
            elif isinstance(message, _OF_LEADERS):
                reason = f"site {message.sender} leads term {message.term}"
                self._become_follower(message.term, message.sender, reason)
            elif self.role is Role.LEADER and message.sender not in self.members.voters:
                # A nonvoter that once was a voter can be ahead. It must not depose the leader (hashicorp #606), but
                # it cannot follow a smaller term either: the leader leads on in one beyond it.
                self.term, self.vote = message.term, NOBODY
                self._campaign(pre=False, reason=f"nonvoter {message.sender} is in this term", by_transfer=True)
                return
            else:
                self._become_follower(message.term, NOBODY, f"site {message.sender} is in term {message.term}")
        elif message.term < self.term:
            if isinstance(message, (AppendRequest, Heartbeat, InstallSnapshot)):
                # A leader of an older term that cannot know better, or we are the ones who were away: this answer
                # makes it step down, so that one election later all are in one term (etcd: stuck candidates).
                self._send(AppendResponse(message.sender, self.site, self.term, message.progress, 0, True, 0, 0))
            elif isinstance(message, VoteRequest) and message.pre:
                self._send(VoteResponse(message.sender, self.site, self.term, True, False))
            return
        _HANDLERS[type(message)](self, message)

    def propose(self, proposals: Sequence[Proposal]) -> int:
        """Append proposals to the leader's log, in their order. Returns the index of the last. Raises NotLeader."""
        if not self.accepts_proposals:
            raise NotLeader
        index, chain, term = self.log.last_index, self.log.last_chain, self.term
        entries = []
        for origin, session, sequence, payload, checksum in proposals:
            index += 1
            entry = Entry(index, term, EntryKind.DATA, origin, session, sequence, payload, chain, checksum)
            chain = entry.chain
            entries.append(entry)
        self.log.append(entries)
        return index

    def propose_change(self, change: Change, server: Server, expected_index: int, force: bool = False) -> int:
        """Append a configuration that differs by one member. Returns its index. Raises NotLeader, ConfigurationError.

        `expected_index` is the index of the configuration that the caller knows: if it is not the latest, somebody
        else changed it meanwhile and the wish may no longer make sense. A site that has not `caught_up` is promoted
        only by `force`: a majority that needs it would wait for it with every commit.
        """
        if not self.accepts_proposals:
            raise NotLeader
        changed = self.members.changed(change, server, expected_index, self.term)
        if change is Change.PROMOTE and not force and not self.followers.caught_up(server.site):
            raise ConfigurationError(f"site {server.site} has not caught up: {self.followers.lag(server.site)}")
        self._append(EntryKind.CONFIGURATION, changed.encode())
        self._adopt_configuration()
        return self.log.last_index

    def transfer(self, target: int = NOBODY) -> int:
        """Hand leadership to `target`, or to the voter that is most fit to lead. Returns whom.

        Raises NotLeader, and ConfigurationError if there is no such voter. Stops proposals; bounded by an election
        timeout, after which this site goes on leading (hashicorp #487).
        """
        if not self.accepts_proposals or self.members.configuration is None:
            raise NotLeader
        target = self._transfer.choose(target)
        self._transfer_to(target, "as it was asked to")
        return target

    def read_index(self, context: Any) -> None:
        """Ask for an index that a linearizable read has to wait for; it comes back as a ReadState with `context`.

        It may never come (no leader, a lost message, a change of leader): the caller asks again, with a new context.
        """
        if self.role is Role.LEADER:
            self._read(self.site, context)
        elif self.leader != NOBODY:
            self._send(ReadIndexRequest(self.leader, self.site, self.term, self._reads.ask(context)))

    def unreachable(self, site: int) -> None:
        """The connection to `site` broke: what was on the way may be lost."""
        progress = self.followers.progress.get(site)
        if progress is None:
            return
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        elif progress.state is ProgressState.SNAPSHOT:
            self._offer_snapshot(site, progress)

    # ---- snapshots ------------------------------------------------------------------------------------------------

    def compact(self, index: int) -> int:
        """Let go of the log's entries up to `index`, as far as that may be: of committed ones that are on disk here,
        and of none that a follower still needs after the snapshot that it is getting. Returns the last one that is
        gone. The caller sees to it that something else, a snapshot or the FSM itself, holds what they did."""
        index = min([index, self.log.commit, self.log.stable, *self.followers.pins()])
        if index > self.log.base.index:
            self._outbox.rebased(self.log.compact(index))
        return self.log.base.index

    def install(self, snapshot: Snapshot) -> bool:
        """A snapshot is on this site's disk, complete and durable: of this site's own making, or received. It takes
        the place of the log up to its last index, but never goes back behind what is committed here. True if it did;
        then the FSM is to be restored from it."""
        if self.snapshot is None or snapshot.last_index > self.snapshot.last_index:
            self.snapshot = snapshot
        if snapshot.last_index <= self.log.commit or self.role is Role.LEADER:
            return False
        configuration = (snapshot.configuration_index, snapshot.configuration)
        if self.members.are_forced and snapshot.last_index <= self._store.recovered:
            configuration = self.log.configurations[-1]  # it is older than those
        self._outbox.restored(self.log.restore(snapshot.base, configuration))
        self._verified = max(self._verified, snapshot.last_index)
        if self.members.outdated:
            self._adopt_configuration()
        offer = self.offer
        if offer is not None and (offer.term, offer.last_index) == (self.term, snapshot.last_index):
            self._acknowledge(offer, snapshot.last_index)
        return True

    # ---- output ---------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """What is to be done since the last call; None if nothing is."""
        if self.role is Role.LEADER:
            self._send_due()
        return self._outbox.ready(self.term, self.vote)

    def advance(self, ready: Ready) -> None:
        """The write of `ready`, and of every Ready before it, is on disk. To be called before its promises leave: those
        that have become untrue meanwhile are taken out."""
        if not (ready.write or ready.promises):
            return
        self._outbox.advance(ready)
        write = ready.write
        if write is None:
            return
        if self.role is Role.CANDIDATE and write.hard_state == (self.term, self.site):
            self._count_vote(self.site, True)
        if self.role is Role.LEADER and (write.entries or write.rebase is not None):
            self._maybe_commit()

    def commit_to_record(self) -> Write | None:
        """See Outbox.commit_to_record."""
        return self._outbox.commit_to_record()

    # ---- time -----------------------------------------------------------------------------------------------------

    def _draw_timeout(self) -> int:
        timeout = self._random.randrange(self.limits.election_ticks, 2 * self.limits.election_ticks)
        return timeout + WITNESS_PATIENCE * self.limits.election_ticks if self.members.is_witness else timeout

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.limits.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._heartbeat_due = True
        if self.storage_stalled:
            # Its heartbeats would keep a leader in office that can acknowledge nothing (hashicorp #503).
            self._become_follower(self.term, NOBODY, "own log writes make no progress")
            return
        self.followers.tick()
        if self._transfer.target != NOBODY:
            if (late := self._transfer.tick()) != NOBODY:
                self._report(f"site {late} did not take over in time")
        elif (preferred := self._transfer.preferred()) is not None:
            self._transfer_to(*preferred)
        if self._election_elapsed >= self.limits.election_ticks:
            self._election_elapsed = 0
            if not self.followers.check_quorum(self.members.voters):
                self._become_follower(self.term, NOBODY, "heard from no majority for an election timeout")

    def _hears_leader(self) -> bool:
        return self.leader != NOBODY and self._election_elapsed < self.limits.election_ticks

    # ---- roles ----------------------------------------------------------------------------------------------------

    def _enter(self, role: Role, leader: int, reason: str) -> None:
        changed = (role, self.term, leader) != (self.role, self._transition_term, self.leader)
        self.role, self.leader = role, leader
        self._transition_term = self.term
        self._election_elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes.clear()
        self.followers.clear()
        self._transfer.clear()
        self._reads.clear()
        self._heartbeat_due = False
        if changed:
            self._report(reason)

    def _report(self, what: str) -> None:
        self._outbox.transitions.append(Transition(self.role, self.term, self.leader, what))

    def _become_follower(self, term: int, leader: int, reason: str) -> None:
        if term > self.term:
            self.term, self.vote = term, NOBODY
            self._verified = self._leader_commit = 0
        self._enter(Role.FOLLOWER, leader, reason)

    def _campaign(self, pre: bool, reason: str, by_transfer: bool = False) -> None:
        """Ask everybody for a vote, or first (`pre`) whether they would give it."""
        if pre:
            self._enter(Role.PRE_CANDIDATE, NOBODY, reason)
            self._count_vote(self.site, True)
        else:
            self.term += 1
            self.vote = self.site
            self._verified = self._leader_commit = 0
            self._enter(Role.CANDIDATE, NOBODY, reason)
            # Its own vote counts when it is on disk: see advance.
        if self.role not in (Role.PRE_CANDIDATE, Role.CANDIDATE) or (pre and self.role is Role.CANDIDATE):
            return  # the only voter: its own word was enough
        term = self.term + 1 if pre else self.term
        for site in self.members.voters:
            if site != self.site:
                request = VoteRequest(site, self.site, term, pre, self.log.last_index, self.log.last_term, by_transfer)
                self._send(request)

    def _count_vote(self, site: int, granted: bool) -> None:
        self._votes.setdefault(site, granted)
        outcome = tally(self.members.voters, self._votes, unanimous=self.members.are_forced)
        voters = [site for site, yes in sorted(self._votes.items()) if yes]
        if outcome is Vote.WON:
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False, reason=f"sites {voters} would vote for it")
            else:
                self._become_leader(f"elected by sites {voters}")
        elif outcome is Vote.LOST:
            self._become_follower(self.term, NOBODY, "a majority refused its vote")

    def _become_leader(self, reason: str) -> None:
        self._enter(Role.LEADER, self.site, reason)
        self._reads.begin()
        self._heartbeat_elapsed = 0
        self._heartbeat_due = True
        self._adopt_configuration()
        self._append(EntryKind.NOOP, b"")
        if self.members.configuration is not None and self.members.are_forced:
            self._append(EntryKind.CONFIGURATION, self.members.configuration.encode())
        self.followers.begin()
        self._transfer.lead(self.limits.preference_ticks)

    # ---- votes ----------------------------------------------------------------------------------------------------

    def _on_vote_request(self, m: VoteRequest) -> None:
        free = self.vote == NOBODY and self.leader == NOBODY
        possible = free or self.vote == m.sender or (m.pre and m.term > self.term)
        if possible and self.log.up_to_date(m.last_index, m.last_term):
            if not m.pre:
                self.vote = m.sender
                self._election_elapsed = 0
            self._promise(VoteResponse(m.sender, self.site, m.term, m.pre, True))
        else:
            self._send(VoteResponse(m.sender, self.site, self.term, m.pre, False))

    def _on_vote_response(self, m: VoteResponse) -> None:
        asked = Role.PRE_CANDIDATE if m.pre else Role.CANDIDATE
        if self.role is asked and m.term == self.term + (m.pre and m.granted):
            self._count_vote(m.sender, m.granted)

    def _on_timeout_now(self, m: TimeoutNow) -> None:
        if self.members.is_voter and self.role is Role.FOLLOWER and not self.storage_stalled:
            self._campaign(pre=False, reason=f"site {m.sender} hands over its leadership", by_transfer=True)

    # ---- following ------------------------------------------------------------------------------------------------

    def _follow(self, leader: int) -> None:
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self._become_follower(self.term, leader, f"site {leader} leads")
        self._election_elapsed = 0

    def _on_append_request(self, m: AppendRequest) -> None:
        if self.role is Role.LEADER:
            raise AssertionError(f"sites {self.site} and {m.sender} both lead term {self.term}")
        self._follow(m.sender)
        if m.previous_index < self.log.commit:
            # It is an old or repeated request, or the leader does not know yet what we have: all that is committed.
            self._verified = max(self._verified, self.log.commit)
            self._acknowledge(m, self.log.commit)
        elif self.log.matches(m.previous_index, m.previous_term):
            self._take_entries(m)
            verified = m.previous_index + len(m.entries)
            self._verified = max(self._verified, verified)
            self._acknowledge(m, verified)
        else:
            hint, hint_term = self.log.conflict(m.previous_index, m.previous_term)
            self._send(
                AppendResponse(m.sender, self.site, self.term, m.progress, m.previous_index, True, hint, hint_term)
            )
        self._learn_commit(m.commit)

    def _take_entries(self, m: AppendRequest) -> None:
        previous_last = self.log.last_index
        new = self.log.merge(m.previous_index, m.entries)
        if new:
            if new[0].index <= previous_last:
                self._outbox.truncated(new[0].index - 1)
            if self.members.outdated:
                self._adopt_configuration()

    def _on_install_snapshot(self, m: InstallSnapshot) -> None:
        self._follow(m.sender)
        if m.last_index <= self.log.commit:
            self._verified = max(self._verified, self.log.commit)
            self._acknowledge(m, self.log.commit)
        elif self.log.matches(m.last_index, m.last_term):
            # The log here reaches it, and says more: that all of this is committed is all there was to learn.
            self._verified = max(self._verified, m.last_index)
            self._learn_commit(m.last_index)
            self._acknowledge(m, m.last_index)
        else:
            self.offer = m

    def _acknowledge(self, m: AppendRequest | InstallSnapshot, index: int) -> None:
        response = AppendResponse(m.sender, self.site, self.term, m.progress, index, False, 0, 0)
        if index <= self.log.stable:
            self._send(response)
        else:
            self._promise(response)

    def _learn_commit(self, commit: int) -> None:
        """The leader has committed `commit`: so have we, as far as our log is known to equal the leader's. Beyond
        that it may hold entries of an older leader that will be replaced (scylla #9965)."""
        self._leader_commit = max(self._leader_commit, commit)
        self._commit(min(self._leader_commit, self._verified))

    def _on_commit_notice(self, m: CommitNotice) -> None:
        self._follow(m.sender)
        self._learn_commit(m.commit)

    def _on_heartbeat(self, m: Heartbeat) -> None:
        self._follow(m.sender)
        self._learn_commit(m.commit)
        self._send(HeartbeatResponse(m.sender, self.site, self.term, m.progress, m.round))

    # ---- leading --------------------------------------------------------------------------------------------------

    def _append(self, kind: EntryKind, payload: bytes) -> None:
        index = self.log.last_index + 1
        self.log.append([Entry(index, self.term, kind, payload=payload, previous_chain=self.log.last_chain)])

    def _adopt_configuration(self) -> None:
        """The latest configuration in the log is the one in force, committed or not."""
        self.members.adopt()
        if self.role is not Role.LEADER or self.members.configuration is None:
            return
        self.followers.adopt(self.members.configuration.servers)
        if self._transfer.target not in self.members.voters:
            self._transfer.clear()

    def _on_append_response(self, m: AppendResponse) -> None:
        progress = self.followers.heard(m)
        if progress is None:
            return
        if m.rejected:
            agree = self.log.conflict(m.hint_index, m.hint_term)[0]
            matched = progress.match
            progress.rejected(m.index, agree)
            if progress.match < matched:
                self._report(
                    f"site {m.sender} has lost entries that it had acknowledged: {agree} of {matched} are left"
                )
        elif m.index <= self.log.last_index:
            news = progress.accepted(m.index)
            if progress.state is ProgressState.SNAPSHOT and progress.match >= self.log.base.index:
                progress.become_replicate()
            if news:
                if progress.match > self.log.commit:
                    self._maybe_commit()
                self._hand_over_if_caught_up()
            if progress.match >= self.log.commit:
                progress.catching_up = False

    def _on_heartbeat_response(self, m: HeartbeatResponse) -> None:
        progress = self.followers.heard(m)
        if progress is None:
            return
        progress.probe_sent = False
        if progress.state is ProgressState.SNAPSHOT:
            if progress.silent_ticks - progress.offered_at >= self.limits.election_ticks:
                self._offer_snapshot(m.sender, progress)  # it lives, and asks for nothing: something was lost
        elif progress.silent_ticks >= self.limits.watchdog_ticks:
            progress.become_probe()
        self._reads.answered(m.sender, m.round)
        self._confirm_reads()

    def _maybe_commit(self) -> None:
        """Commit what a majority of voters has on disk, if it is of this leader's term: an older entry on a majority
        may still be replaced (Raft paper, 5.4.2)."""
        if not self.members.voters:
            return
        index = agreed(self.members.voters, self._on_disk)
        if index > self.log.commit and self.log.matches(index, self.term):
            self._commit(index)

    def _on_disk(self, site: int) -> int:
        if site == self.site:
            return self.log.stable
        return self.followers.progress[site].match

    def _commit(self, index: int) -> None:
        if not self.log.commit_to(index) or self.role is not Role.LEADER:
            return
        if self._reads.early and self.log.term(self.log.commit) == self.term:
            for asker, context in self._reads.release():
                self._read(asker, context)
        if not self.members.is_voter and self.configuration_index <= self.log.commit:
            self._become_follower(self.term, NOBODY, "the committed configuration does not have it as a voter")

    def _send_due(self) -> None:
        """Fill every follower's pipeline, and tell everyone the commit index."""
        last, commit = self.log.last_index, self.log.commit
        self._sliced = (0, (), 0)
        for site, progress in self.followers.progress.items():
            replicating = progress.state is ProgressState.REPLICATE
            if replicating and progress.next_index > last and progress.announced_commit >= commit:
                continue
            while not progress.paused and (progress.next_index <= last or progress.state is ProgressState.PROBE):
                self._send_append(site, progress)
            if progress.announced_commit < commit and progress.state is ProgressState.REPLICATE:
                progress.announced_commit = commit
                self._outbox.messages.append(CommitNotice(site, self.site, self.term, commit))
        if self._heartbeat_due:
            self._heartbeat_due = False
            self._reads.round += 1
            for site, progress in self.followers.progress.items():
                if progress.spare_heartbeat() and not self._reads.confirming:
                    continue
                beat = Heartbeat(site, self.site, self.term, progress.session, self.log.commit, self._reads.round)
                self._outbox.messages.append(beat)
            self._confirm_reads()

    def _send_append(self, site: int, progress: Progress) -> None:
        previous = progress.next_index - 1
        previous_term = self.log.term(previous)
        if previous_term is None:
            progress.become_snapshot()
            self._offer_snapshot(site, progress)
            return
        entries: tuple[Entry, ...] = ()
        size = 0
        if progress.state is ProgressState.REPLICATE:
            first, entries, size = self._sliced
            if first != progress.next_index:
                entries = tuple(self.log.slice(progress.next_index, self.log.last_index, self.limits.append_bytes))
                size = total_size(entries)
                self._sliced = (progress.next_index, entries, size)
        request = AppendRequest(
            site, self.site, self.term, progress.session, previous, previous_term, self.log.commit, entries
        )
        self._outbox.messages.append(request)
        progress.announced_commit = self.log.commit
        progress.sent(previous + len(entries), size)

    # ---- snapshots for followers ----------------------------------------------------------------------------------

    def _offer_snapshot(self, site: int, progress: Progress) -> None:
        """Tell a follower in SNAPSHOT what it needs; without any snapshot there is nothing to tell."""
        snapshot = progress.offer(self.snapshot, self.log.base.index)
        if snapshot is None:
            return
        base, configuration_index, configuration, size, checksum = snapshot
        self._send(
            InstallSnapshot(
                site, self.site, self.term, progress.session, *base,
                configuration_index, configuration.encode(), size, checksum,
            )
        )  # fmt: skip

    def _on_chunk_request(self, m: SnapshotChunkRequest) -> None:
        progress = self.followers.heard(m)
        if progress is None or progress.snapshot is None:
            return
        if not progress.catching_up:
            self._offer_snapshot(m.sender, progress)  # the log after that one may be gone: perhaps it takes another
        if (m.last_index, m.snapshot_checksum) != (progress.snapshot.last_index, progress.snapshot.checksum):
            return
        progress.chunk_requested(m.offset)
        self._outbox.chunk_requests.append(m)

    # ---- leadership transfer --------------------------------------------------------------------------------------

    def _transfer_to(self, target: int, why: str) -> None:
        self._transfer.begin(target)
        self._report(f"hands its leadership over to site {target}, {why}")
        self._hand_over_if_caught_up()

    def _hand_over_if_caught_up(self) -> None:
        target = self._transfer.target
        if target != NOBODY and self.followers.progress[target].match == self.log.last_index:
            self._send(TimeoutNow(target, self.site, self.term))

    # ---- linearizable reads ---------------------------------------------------------------------------------------

    def _read(self, asker: int, context: Any) -> None:
        if self.log.term(self.log.commit) != self.term:
            self._reads.hold(asker, context)  # what older leaders committed is not known yet (thesis, 6.4)
            return
        self._heartbeat_due = True
        self._reads.confirm(asker, context, self.log.commit)

    def _confirm_reads(self) -> None:
        if not self._reads.confirming:
            return
        for read in self._reads.confirmed(self.members.voters):
            if read.asker == self.site:
                self._outbox.read_states.append(ReadState(read.context, read.index))
            else:
                self._send(ReadIndexResponse(read.asker, self.site, self.term, read.context, read.index))

    def _on_read_index_request(self, m: ReadIndexRequest) -> None:
        if self.role is Role.LEADER:
            self._read(m.sender, m.attempt)

    def _on_read_index_response(self, m: ReadIndexResponse) -> None:
        if m.sender == self.leader and self._reads.asked(m.attempt):
            self._outbox.read_states.append(ReadState(self._reads.settle(m.attempt), m.index))

    # ---- messages -------------------------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Send a message of the protocols built on top, by the same rules as the core's own."""
        self._send(message)

    def _send(self, message: Message) -> None:
        self._outbox.messages.append(message)

    def _promise(self, message: Message) -> None:
        self._outbox.promises.append(message)


_HANDLERS = cast(
    "dict[type[Message], Callable[[RaftCore, Any], None]]",
    {
        VoteRequest: RaftCore._on_vote_request,
        VoteResponse: RaftCore._on_vote_response,
        AppendRequest: RaftCore._on_append_request,
        AppendResponse: RaftCore._on_append_response,
        CommitNotice: RaftCore._on_commit_notice,
        Heartbeat: RaftCore._on_heartbeat,
        HeartbeatResponse: RaftCore._on_heartbeat_response,
        TimeoutNow: RaftCore._on_timeout_now,
        ReadIndexRequest: RaftCore._on_read_index_request,
        ReadIndexResponse: RaftCore._on_read_index_response,
        InstallSnapshot: RaftCore._on_install_snapshot,
        SnapshotChunkRequest: RaftCore._on_chunk_request,
    },
)
