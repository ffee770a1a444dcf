"""The rules of docs/consensus.md, one test each, named after the rule."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TypeVar

import pytest

from mysqlraft.raft import (
    NOBODY,
    Change,
    Configuration,
    ConfigurationError,
    HardState,
    Limits,
    MemoryStore,
    NotLeader,
    Participant,
    RaftCore,
    Role,
    Server,
    Write,
)
from mysqlraft.raft.core import WITNESS_PATIENCE
from mysqlraft.raft.entry import payload_checksum
from mysqlraft.raft.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from mysqlraft.raft.outbox import RECORD_TICKS
from mysqlraft.raft.progress import ProgressState
from tests.raft.cluster import LIMITS, Cluster, Driven, chained, configuration, proposal, ranked, store

THREE = configuration(3)
T = TypeVar("T")


def is_leader(core: RaftCore) -> bool:
    return core.role is Role.LEADER


def of_type(messages: list[Message], kind: type[T]) -> list[T]:
    return [message for message in messages if isinstance(message, kind)]


# ---- elections ---------------------------------------------------------------------------------------------------


def test_a_leader_is_elected_and_appends_a_noop_of_its_term() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(2)
    assert leader.term == 2
    assert [driven.core.leader for driven in cluster.sites.values()] == [2, 2, 2]
    assert leader.log.term(2) == 2
    assert {driven.core.commit_index for driven in cluster.sites.values()} == {2}


def test_a_lone_voter_elects_itself_and_commits() -> None:
    cluster = Cluster(configuration(1))
    cluster.elect(1)
    cluster.propose(1, b"x")
    assert cluster.payloads(1) == [b"x"]


def test_vote_and_term_are_one_record_synced_before_the_reply_leaves() -> None:
    voter = Driven(1, store([1], THREE))
    voter.core.step(VoteRequest(1, 2, 5, False, 9, 4, False))
    assert voter.ready() == []
    assert voter.disk.hard_state == HardState(1, 0)
    assert voter.sync() == [VoteResponse(2, 1, 5, False, True)]
    assert voter.disk.hard_state == HardState(5, 2)


def test_a_vote_survives_a_restart() -> None:
    voter = Driven(1, store([1], THREE))
    voter.step(VoteRequest(1, 2, 5, False, 9, 4, False))
    again = Driven(1, voter.disk)
    assert again.step(VoteRequest(1, 3, 5, False, 9, 4, False)) == [VoteResponse(3, 1, 5, False, False)]


def test_a_request_for_votes_leaves_only_when_the_own_vote_is_on_disk() -> None:
    site = Driven(1, store([1], THREE))
    while site.core.role is Role.FOLLOWER:
        site.core.tick()
    site.run()
    site.core.step(VoteResponse(1, 2, 2, True, True))
    assert site.core.role is Role.CANDIDATE
    assert site.ready() == []
    assert site.disk.hard_state.term == 1
    assert {type(message) for message in site.sync()} == {VoteRequest}
    assert site.disk.hard_state == HardState(2, 1)


def test_the_own_vote_counts_only_when_it_is_on_disk() -> None:
    site = Driven(1, store([1], configuration(1)))
    while site.core.role is Role.FOLLOWER:
        site.core.tick()
    site.ready()
    assert not is_leader(site.core)
    site.sync()
    assert is_leader(site.core)


def test_a_log_that_is_behind_gets_no_vote() -> None:
    voter = Driven(1, store([1, 2, 3], THREE))
    refused = [VoteRequest(1, 2, 5, False, 2, 3, False), VoteRequest(1, 3, 6, False, 9, 2, False)]
    for request in refused:
        assert not of_type(voter.step(request), VoteResponse)[0].granted
    assert of_type(voter.step(VoteRequest(1, 3, 7, False, 3, 3, False)), VoteResponse)[0].granted


def test_pre_vote_raises_no_term() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    cluster.cut(3)
    cluster.tick(100)
    assert cluster.sites[3].core.term == 2
    cluster.heal()
    cluster.tick(5)
    assert cluster.sites[1].core.role is Role.LEADER
    assert cluster.sites[3].core.leader == 1


def test_leader_stickiness_a_greater_term_is_ignored_while_the_leader_lives() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    follower = cluster.sites[2]
    assert follower.step(VoteRequest(2, 3, 9, False, 99, 9, False)) == []
    assert cluster.sites[1].step(VoteRequest(1, 3, 9, False, 99, 9, False)) == []
    assert follower.core.term == 2
    follower.core.step(VoteRequest(2, 3, 9, False, 99, 9, True))
    assert follower.core.term == 9


def test_check_quorum_a_leader_without_majority_steps_down() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.cut(1)
    cluster.tick(2 * LIMITS.election_ticks)
    assert leader.role is not Role.LEADER
    assert {cluster.sites[2].core.role, cluster.sites[3].core.role} >= {Role.LEADER} or leader.leader == 0


def test_check_quorum_nonvoters_do_not_count() -> None:
    cluster = Cluster(configuration(3, 2))
    leader = cluster.elect(1)
    cluster.cut(1, 4, 5)
    cluster.tick(2 * LIMITS.election_ticks)
    assert leader.role is not Role.LEADER


def test_a_nonvoter_never_campaigns() -> None:
    cluster = Cluster(configuration(1, 1))
    cluster.down.add(1)
    cluster.tick(200)
    assert cluster.sites[2].core.role is Role.FOLLOWER
    assert cluster.sites[2].core.term == 1


def test_a_removed_site_with_a_greater_term_cannot_disrupt() -> None:
    cluster = Cluster(configuration(4))
    leader = cluster.elect(1)
    cluster.down.add(4)
    leader.propose_change(Change.REMOVE, Server(4, "", ""), leader.configuration_index)
    cluster.settle()
    assert 4 not in leader.followers.progress
    for message in (
        VoteRequest(1, 4, 50, False, 99, 50, False),
        VoteRequest(1, 4, 50, True, 99, 50, False),
        AppendResponse(1, 4, 50, 0, 0, True, 0, 0),
        HeartbeatResponse(1, 4, 50, 0, 0),
    ):
        assert cluster.sites[1].step(message) == []
    assert is_leader(leader)
    assert leader.term == 2


def test_a_nonvoter_with_a_greater_term_does_not_depose_the_leader() -> None:
    """But the leader leads on in a term beyond it, since the nonvoter cannot follow a smaller one."""
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    ahead = cluster.sites[4]
    cluster.sites[4] = Driven(4, store([1], configuration(3, 1), term=7))
    ahead.disk.write([Write(HardState(7, 4))])
    cluster.tick(3)
    assert (leader.role, leader.term) == (Role.LEADER, 8)
    cluster.propose(1, b"b")
    assert cluster.payloads(4) == [b"a", b"b"]


def test_a_site_whose_demotion_has_not_committed_may_still_campaign() -> None:
    """Found by the simulator (seed 267): the log of the old leader was the only one complete enough to lead."""
    cluster = Cluster(configuration(2))
    leader = cluster.elect(1)
    cluster.cut(1)
    leader.propose_change(Change.DEMOTE, Server(1, "", ""), leader.configuration_index)
    cluster.tick(3 * LIMITS.election_ticks)
    cluster.heal()
    cluster.tick(12 * LIMITS.election_ticks)
    assert cluster.sites[2].core.role is Role.LEADER
    assert cluster.sites[1].core.configuration == cluster.sites[2].core.configuration
    assert not cluster.sites[1].core.members.is_voter


# ---- the disk ----------------------------------------------------------------------------------------------------


def test_a_leader_sends_entries_while_its_own_disk_still_writes() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose([proposal(b"x")])
    sent = of_type(cluster.sites[1].ready(), AppendRequest)
    assert {message.to for message in sent} == {2, 3}
    assert cluster.sites[1].disk.last_index == 2


def test_a_leader_counts_its_own_log_only_as_far_as_it_is_on_disk() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.down.add(3)
    leader.propose([proposal(b"x")])
    (append,) = [m for m in of_type(cluster.sites[1].ready(), AppendRequest) if m.to == 2]
    for message in cluster.sites[2].step(append):
        leader.step(message)
    assert leader.commit_index == 2
    cluster.sites[1].sync()
    assert leader.commit_index == 3


def test_others_can_commit_what_the_leader_has_not_written_yet() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose([proposal(b"x")])
    for append in of_type(cluster.sites[1].ready(), AppendRequest):
        for message in cluster.sites[append.to].step(append):
            leader.step(message)
    assert (leader.commit_index, leader.log.stable) == (3, 2)


def test_an_append_is_acknowledged_only_when_it_is_on_disk() -> None:
    follower = Driven(2, store([1], THREE))
    entry = chained(1, 1, configured=THREE)[1]
    request = AppendRequest(2, 1, 1, 0, 1, 1, 0, (entry,))
    follower.core.step(request)
    assert of_type(follower.ready(), AppendResponse) == []
    follower.core.step(request)  # the same again, before the disk is done: no shortcut
    assert of_type(follower.ready(), AppendResponse) == []
    assert [answer.index for answer in of_type(follower.sync(), AppendResponse)] == [2, 2]


def test_several_appends_become_one_write() -> None:
    follower = Driven(2, store([1], THREE))
    entries = chained(1, 1, 1, 1, configured=THREE)
    for entry in entries[1:]:
        follower.core.step(AppendRequest(2, 1, 1, 0, entry.index - 1, 1, 0, (entry,)))
    ready = follower.core.ready()
    assert ready is not None
    assert ready.entries_to_append == entries[1:]
    assert [message.index for message in of_type(ready.promises, AppendResponse)] == [2, 3, 4]


def test_truncate_and_append_is_one_write() -> None:
    follower = Driven(2, store([1, 2, 2, 2], THREE))
    entries = chained(1, 2, 3, configured=THREE)
    follower.core.step(AppendRequest(2, 1, 3, 0, 2, 2, 0, (entries[2],)))
    follower.ready()
    assert (follower.disk.last_index, follower.disk.unsynced) == (4, 1)
    follower.disk.sync()
    assert follower.disk.entries(1, 3, 10000) == entries
    assert follower.disk.last_index == 3


def test_an_older_write_says_nothing_about_what_replaced_it() -> None:
    """An entry is written, truncated, and comes back: three writes under way. The first one's end proves nothing."""
    follower = Driven(2, store([1], THREE))
    first = chained(1, 1, 2, configured=THREE)
    other = chained(1, 1, 3, configured=THREE)
    follower.core.step(AppendRequest(2, 1, 2, 0, 1, 1, 0, tuple(first[1:])))
    follower.ready()
    follower.core.step(AppendRequest(2, 3, 3, 0, 2, 1, 0, (other[2],)))
    follower.ready()
    follower.core.step(AppendRequest(2, 1, 4, 0, 2, 1, 0, (first[2],)))
    follower.ready()
    oldest = follower.unsynced.pop(0)
    follower.disk.sync()
    follower.core.advance(oldest)
    assert follower.core.log.stable < 3


def test_an_acknowledgement_of_what_is_replaced_before_it_is_on_disk_never_leaves() -> None:
    """Two leaders are heard before the next Ready: of the first one's entry there is nothing left to promise."""
    follower = Driven(2, store([1], THREE))
    old = AppendRequest(2, 1, 2, 0, 1, 1, 0, tuple(chained(1, 2, 2, configured=THREE)[1:]))
    new = AppendRequest(2, 3, 3, 0, 1, 1, 0, tuple(chained(1, 3, configured=THREE)[1:]))
    follower.core.step(old)
    messages = follower.step(new)
    assert [(m.to, m.index) for m in messages if isinstance(m, AppendResponse)] == [(3, 2)]


def test_an_acknowledgement_never_leaves_once_its_entries_are_replaced() -> None:
    """The same, with the first one's write under way."""
    follower = Driven(2, store([1], THREE))
    follower.core.step(AppendRequest(2, 1, 2, 0, 1, 1, 0, tuple(chained(1, 2, 2, configured=THREE)[1:])))
    follower.ready()
    follower.core.step(AppendRequest(2, 3, 3, 0, 1, 1, 0, tuple(chained(1, 3, configured=THREE)[1:])))
    assert [(m.to, m.index) for m in follower.run() if isinstance(m, AppendResponse)] == [(3, 2)]


def test_a_site_knows_a_leader_that_only_an_uncommitted_configuration_leaves_out() -> None:
    """Else it would refuse to talk to the one that can tell it that this configuration is void."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.cut(1)
    others = [cluster.sites[site].core for site in (2, 3)]
    while not (elected := [core for core in others if core.role is Role.LEADER]):
        for core in others:
            core.tick()
        cluster.settle()
    next_leader = elected[0]
    leader.propose_change(Change.REMOVE, THREE.servers[next_leader.site], leader.configuration_index)
    assert leader.configuration is not None
    assert next_leader.site not in leader.configuration
    assert next_leader.members.introduction < leader.configuration_index
    assert leader.members.knows(next_leader.site, next_leader.members.introduction)
    assert next_leader.members.knows(1, leader.members.introduction)
    assert set(leader.members.acquaintances) == {1, 2, 3}
    cluster.heal()
    cluster.tick(LIMITS.election_ticks)
    assert leader.configuration == THREE


def test_a_site_that_a_committed_configuration_leaves_out_is_a_stranger() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose_change(Change.REMOVE, THREE.servers[2], leader.configuration_index)
    cluster.settle()
    assert not leader.members.knows(2, 1)
    assert leader.members.knows(2, leader.configuration_index + 1), "it was added again, and this site was away"
    assert set(leader.members.acquaintances) == {1, 3}


def test_nothing_is_said_in_a_term_that_is_not_on_disk() -> None:
    follower = Driven(2, store([1], THREE))
    follower.core.step(Heartbeat(2, 1, 9, 0, 0, 1))
    assert follower.ready() == []
    assert [message.term for message in follower.sync()] == [9]


def test_a_hung_disk_loses_leadership() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose([proposal(b"x")])
    for _ in range(LIMITS.election_ticks + 1):
        cluster.sites[1].core.tick()
        for message in cluster.sites[1].ready():  # its messages leave, its writes do not return
            for answer in cluster.sites[message.to].step(message):
                leader.step(answer)
    assert not is_leader(leader)
    for _ in range(5 * LIMITS.election_ticks):
        leader.tick()
    assert leader.term == 2  # and it does not campaign before the disk is back
    cluster.sites[1].sync()
    for _ in range(5 * LIMITS.election_ticks):
        leader.tick()
    assert leader.role is Role.PRE_CANDIDATE


# ---- replication and commitment ------------------------------------------------------------------------------------


def test_entries_reach_every_site_and_commit() -> None:
    cluster = Cluster(configuration(3, 1))
    cluster.elect(3)
    cluster.propose(3, *[b"%d" % number for number in range(100)])
    for site in cluster.sites:
        assert cluster.payloads(site) == [b"%d" % number for number in range(100)]


def test_commit_is_announced_at_once_and_not_with_the_next_heartbeat() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    cluster.propose(1, b"x")  # no tick
    assert [driven.core.commit_index for driven in cluster.sites.values()] == [3, 3, 3]


def test_follower_commits_only_what_this_leader_has_verified() -> None:
    """scylla #9965: entries of an older leader beyond what the append covered must not be committed."""
    follower = Driven(2, store([1, 2, 2, 2], THREE))
    follower.step(AppendRequest(2, 1, 3, 0, 2, 2, 4, ()))
    assert follower.core.commit_index == 2
    follower.step(CommitNotice(2, 1, 3, 4))
    follower.step(Heartbeat(2, 1, 3, 0, 4, 1))
    assert follower.core.commit_index == 2
    follower.step(AppendRequest(2, 1, 3, 0, 2, 2, 4, (chained(1, 2, 3, configured=THREE)[2],)))
    assert follower.core.commit_index == 3


def test_verification_is_forgotten_with_the_term() -> None:
    follower = Driven(2, store([1, 2, 2], THREE))
    follower.step(AppendRequest(2, 1, 2, 0, 3, 2, 1, ()))
    follower.step(CommitNotice(2, 3, 3, 3))
    assert follower.core.commit_index == 1


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Figure 8 of the Raft paper."""
    cluster = Cluster(THREE, logs={1: [1, 2], 2: [1, 2], 3: [1]})
    cluster.drop = lambda message: isinstance(message, AppendRequest) and any(e.term > 2 for e in message.entries)
    leader = cluster.elect(1)
    assert leader.followers.progress[2].match == 2
    assert leader.commit_index == 0
    cluster.heal()
    for site in (2, 3):
        leader.unreachable(site)  # as what was dropped went with a connection
    cluster.settle()
    assert leader.commit_index == 3


def test_commit_never_goes_back() -> None:
    follower = Driven(2, store([1, 1, 1], THREE))
    follower.step(AppendRequest(2, 1, 1, 0, 3, 1, 3, ()))
    follower.step(AppendRequest(2, 1, 1, 0, 1, 1, 1, ()), CommitNotice(2, 1, 1, 2), Heartbeat(2, 1, 1, 0, 0, 1))
    assert follower.core.commit_index == 3


def test_the_commit_index_survives_a_restart() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    cluster.propose(1, b"x")
    driven = cluster.sites[2]
    hint = driven.core.commit_to_record()
    assert hint is not None
    assert not hint.must_sync
    driven.disk.write([hint])
    assert Driven(2, driven.disk).core.commit_index == 3


def test_the_commit_index_is_recorded_though_a_site_never_rests() -> None:
    """But seldom: every other write of entries leaves it alone."""
    cluster = Cluster(THREE)
    cluster.elect(1)
    recorded = [cluster.sites[1].disk.commit]
    for number in range(2 * RECORD_TICKS):
        before = cluster.sites[1].core.commit_index
        cluster.propose(1, b"%d" % number)
        cluster.tick()
        if (commit := cluster.sites[1].disk.commit) != recorded[-1]:
            assert commit == before
            recorded.append(commit)
    print(f"commit indexes recorded during {2 * RECORD_TICKS} ticks: {recorded[1:]}")
    assert len(recorded) == 3


def test_conflict_hints_skip_whole_terms() -> None:
    cluster = Cluster(THREE, logs={1: [1, 4, 4, 5, 5, 5], 2: [1, 2, 2, 2, 2, 2, 2, 3, 3, 3], 3: [1]})
    rejected = 0

    def count(message: Message) -> bool:
        nonlocal rejected
        rejected += isinstance(message, AppendResponse) and message.rejected and message.sender == 2
        return False

    cluster.drop = count
    cluster.elect(1)
    cluster.tick(3)
    ours, theirs = cluster.sites[1].core.log, cluster.sites[2].core.log
    assert (theirs.last_index, theirs.last_chain) == (ours.last_index, ours.last_chain)
    assert rejected <= 2


def test_replication_is_pipelined_by_bytes() -> None:
    limits = Limits(append_bytes=1000, window_bytes=3000)
    cluster = Cluster(configuration(2), limits)
    leader = cluster.elect(1)
    leader.propose([proposal(b"x" * 900) for _ in range(10)])
    sent = of_type(cluster.sites[1].ready(), AppendRequest)
    assert [len(message.entries) for message in sent] == [1, 1, 1, 1]  # the one that crosses the limit still goes
    assert leader.followers.progress[2].inflights.full
    (answer,) = of_type(cluster.sites[2].step(sent[0]), AppendResponse)
    leader.step(answer)
    assert len(of_type(cluster.sites[1].ready(), AppendRequest)) == 1


def test_a_probe_carries_no_entries() -> None:
    """Asked again and again while a long entry is on a slow line, it must not send that one each time."""
    cluster = Cluster(configuration(2), LIMITS)
    leader = cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendResponse)
    cluster.propose(1, b"x" * 100_000)
    leader.unreachable(2)
    sent: list[AppendRequest] = []

    def record(message: Message) -> bool:
        if isinstance(message, AppendRequest):
            sent.append(message)
        return isinstance(message, AppendResponse)

    cluster.drop = record
    cluster.tick(3 * LIMITS.watchdog_ticks)
    assert len(sent) > 3
    assert not any(message.entries for message in sent)


def test_a_lost_append_is_repaired_by_the_next() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendRequest) and message.to == 2
    cluster.propose(1, b"lost")
    cluster.heal()
    cluster.propose(1, b"next")
    assert cluster.payloads(2) == [b"lost", b"next"]


def test_heartbeats_are_spared_for_those_who_have_just_acknowledged() -> None:
    cluster = Cluster(THREE)
    cluster.elect(1)
    driven = cluster.sites[1]

    def beats() -> list[int]:
        return sorted(beat.to for beat in of_type(driven.tick(LIMITS.heartbeat_ticks), Heartbeat))

    beats()
    assert beats() == [2, 3]
    cluster.drop = lambda message: message.to == 3
    cluster.propose(1, b"x")
    cluster.settle()
    assert beats() == [3]
    cluster.propose(1, b"y")
    cluster.settle()
    assert beats() == [2, 3], "never twice in a row"
    cluster.propose(1, b"z")
    cluster.settle()
    driven.core.read_index("a")
    assert beats() == [2, 3], "a read needs every answer"


def test_a_watchdog_resets_a_stalled_pipeline() -> None:
    """hashicorp #612: the last append was lost, nothing follows it, and heartbeats are answered."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendRequest) and message.to == 2
    cluster.propose(1, b"lost")
    cluster.heal()
    cluster.tick(LIMITS.watchdog_ticks + 5)
    assert cluster.payloads(2) == [b"lost"]
    assert leader.followers.progress[2].state is ProgressState.REPLICATE


def test_the_watchdog_waits_for_a_line_that_delivers() -> None:
    """What is only late must not be sent again: the copies would queue up behind it."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendResponse) and message.sender == 2
    cluster.propose(1, b"x" * 100_000)
    for _ in range(3 * LIMITS.watchdog_ticks):
        cluster.tick()
        for site in leader.followers.overdue():
            leader.followers.delayed(site)
    progress = leader.followers.progress[2]
    assert progress.inflights.bytes > 100_000
    cluster.tick(LIMITS.watchdog_ticks + 5)
    assert not progress.inflights.bytes


def test_a_broken_connection_resets_the_pipeline_at_once() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendRequest) and message.to == 2
    cluster.propose(1, b"lost")
    cluster.heal()
    leader.unreachable(2)
    cluster.settle()
    assert cluster.sites[2].core.log.last_index == 3


def test_progress_carries_a_session_so_acks_from_before_a_removal_are_ignored() -> None:
    """raft-rs #571: an acknowledgement of the removed member is not one of the member that took its place."""
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.propose(1, b"x")
    stale = AppendResponse(1, 4, leader.term, leader.followers.progress[4].session, 3, False, 0, 0)
    leader.propose_change(Change.REMOVE, Server(4, "", ""), leader.configuration_index)
    cluster.settle()
    cluster.down.add(4)
    leader.propose_change(Change.ADD_NONVOTER, Server(4, "new", "host9:1000"), leader.configuration_index)
    cluster.settle()
    cluster.sites[1].step(stale)
    assert leader.followers.progress[4].match == 0


def test_a_member_that_lost_its_disk_is_sent_everything_again() -> None:
    """And is not asked for ever, as fast as the line carries it, for what it had acknowledged once."""
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.propose(1, b"x")
    assert leader.followers.progress[4].match == 3
    cluster.sites[4] = Driven(4, MemoryStore(), LIMITS)
    leader.unreachable(4)
    asked: list[AppendRequest] = []

    def count(message: Message) -> bool:
        if isinstance(message, AppendRequest):
            asked.append(message)
        return len(asked) > 10

    cluster.drop = count
    cluster.settle()
    assert len(asked) <= 4
    assert cluster.payloads(4) == [b"x"]
    assert leader.followers.progress[4].match == 3


def test_a_log_that_differs_where_raft_says_it_cannot_is_found() -> None:
    """Two founders with different first configurations: same index and term, different logs."""
    from mysqlraft.raft.log import LogDivergence

    follower = Driven(2, store([1], configuration(3)))
    entry = chained(1, 1, configured=configuration(5))[1]
    with pytest.raises(LogDivergence, match=r"bootstrapped with different cluster\.sites.*rejoin as a new member"):
        follower.core.step(AppendRequest(2, 1, 1, 0, 1, 1, 0, (entry,)))


def test_garbage_from_strangers_changes_nothing() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    before = (leader.term, leader.role, leader.commit_index)
    cluster.sites[1].step(AppendResponse(1, 9, 2, 0, 1 << 40, False, 0, 0), VoteResponse(1, 2, 2, False, True))
    cluster.sites[1].step(AppendResponse(1, 2, 2, leader.followers.progress[2].session, 1 << 40, False, 0, 0))
    assert (leader.term, leader.role, leader.commit_index) == before


# ---- membership ----------------------------------------------------------------------------------------------------


def test_membership_one_change_at_a_time() -> None:
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.down |= {2, 3}
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    with pytest.raises(ConfigurationError, match="has not committed yet"):
        leader.propose_change(Change.DEMOTE, Server(3, "", ""), leader.configuration_index)


def test_membership_compare_and_set_on_the_configuration_index() -> None:
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    cluster.settle()
    with pytest.raises(ConfigurationError, match="the configuration changed"):
        leader.propose_change(Change.REMOVE, Server(4, "", ""), 1)


def test_membership_only_after_the_leaders_own_noop_has_committed() -> None:
    """Ongaro's correction of 2015."""
    cluster = Cluster(configuration(3, 1))
    cluster.drop = lambda message: isinstance(message, AppendRequest)
    leader = cluster.elect(1)
    with pytest.raises(ConfigurationError, match="own term"):
        leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    cluster.heal()
    cluster.tick(2)
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)


def test_membership_a_configuration_is_in_force_when_appended_and_rolled_back_when_truncated() -> None:
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.cut(1)
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    cluster.settle()
    assert leader.configuration == configuration(4)
    cluster.tick(5 * LIMITS.election_ticks)
    cluster.heal()
    cluster.tick(2 * LIMITS.election_ticks)
    assert leader.configuration == configuration(3, 1)


def test_membership_a_leader_that_removes_itself_steps_down_when_that_commits() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose_change(Change.REMOVE, Server(1, "", ""), 1)
    cluster.settle()
    assert leader.role is Role.FOLLOWER
    cluster.tick(3 * LIMITS.election_ticks)
    assert {Role.LEADER} <= {cluster.sites[site].core.role for site in (2, 3)}


def test_membership_a_site_that_lags_is_not_promoted_unless_forced() -> None:
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    cluster.down.add(4)
    for _ in range(40):
        cluster.propose(1, b"x")
    cluster.tick(2 * LIMITS.election_ticks)
    with pytest.raises(ConfigurationError, match="up to 2 of 42, 40 entries behind, and is not heard from"):
        leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    cluster.down.clear()
    cluster.drop = lambda message: isinstance(message, AppendRequest) and message.to == 4
    cluster.tick(2 * LIMITS.election_ticks)
    with pytest.raises(ConfigurationError, match=r"40 entries behind$"):
        leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1, force=True)
    assert leader.members.is_voter
    assert leader.configuration == configuration(4)


def test_membership_a_site_that_has_caught_up_is_promoted_under_load() -> None:
    """What counts is what the leader's log held an election timeout ago, not its very last entry."""
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    for _ in range(3 * LIMITS.election_ticks):
        cluster.propose(1, b"x")
        cluster.tick()
    leader.propose([proposal(b"y")])
    assert leader.followers.progress[4].match < leader.log.last_index
    leader.propose_change(Change.PROMOTE, Server(4, "", ""), 1)


def test_membership_a_site_that_was_just_added_is_not_promoted() -> None:
    """Not even when all is quiet: its log is empty until it says otherwise."""
    cluster = Cluster(configuration(3, 1))
    leader = cluster.elect(1)
    leader.propose_change(Change.REMOVE, Server(4, "", ""), 1)
    cluster.settle()
    leader.propose_change(Change.ADD_NONVOTER, Server(4, "site4", "host4:1000"), leader.configuration_index)
    for driven in (cluster.sites[2], cluster.sites[3]):
        for append in of_type(cluster.sites[1].ready() + cluster.sites[1].sync(), AppendRequest):
            for answer in driven.step(append) if append.to == driven.core.site else []:
                leader.step(answer)
    assert leader.commit_index == leader.configuration_index
    with pytest.raises(ConfigurationError, match="site 4 has not caught up: it holds the log up to 0 of 4"):
        leader.propose_change(Change.PROMOTE, Server(4, "", ""), leader.configuration_index)


def test_membership_a_removed_sites_proposals_do_not_enter() -> None:
    store_1 = store([1], THREE)
    leader = Participant(1, store_1, Random(1), LIMITS)
    leader.core.role, leader.core.leader = Role.LEADER, 1
    stranger = Forward(1, 4, 1, 1, 1, True, (payload_checksum(b"x"),), (b"x",))
    leader.step(stranger)
    assert leader.core.log.last_index == 1
    leader.step(stranger._replace(sender=3))
    assert leader.core.log.last_index == 2


# ---- who should lead -----------------------------------------------------------------------------------------------

PREFERRED = ranked(("voter", 0), ("voter", 0), ("voter", 5))
STABLE = LIMITS.preference_ticks


def test_priority_the_preferred_voter_takes_over_once_it_has_been_fit_for_a_while() -> None:
    cluster = Cluster(PREFERRED)
    cluster.elect(1)
    cluster.tick(STABLE - 1)
    assert is_leader(cluster.sites[1].core)
    cluster.tick(2)
    assert is_leader(cluster.sites[3].core)
    cluster.tick(3 * STABLE)
    assert (cluster.sites[3].core.role, cluster.sites[3].core.term) == (Role.LEADER, 3)


def test_priority_among_equals_nobody_takes_over() -> None:
    cluster = Cluster(ranked(("voter", 5), ("voter", 5), ("voter", 0)))
    cluster.elect(2)
    cluster.tick(3 * STABLE)
    assert is_leader(cluster.sites[2].core)


def test_priority_a_nonvoter_does_not_take_over() -> None:
    members = Configuration([*configuration(2).servers.values(), Server(3, "c", "c:1", False, priority=9)])
    cluster = Cluster(members)
    cluster.elect(2)
    cluster.tick(3 * STABLE)
    assert is_leader(cluster.sites[2].core)


def test_priority_a_site_that_comes_and_goes_does_not_take_over() -> None:
    cluster = Cluster(PREFERRED)
    cluster.elect(1)
    for _ in range(5):
        cluster.cut(3)
        cluster.tick(3 * LIMITS.election_ticks)
        cluster.heal()
        cluster.tick(STABLE - 3 * LIMITS.election_ticks)
    assert (cluster.sites[1].core.role, cluster.sites[1].core.term) == (Role.LEADER, 2)


def test_priority_a_site_that_lags_does_not_take_over() -> None:
    cluster = Cluster(PREFERRED)
    cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, AppendRequest) and message.to == 3
    cluster.propose(1, b"x")
    cluster.tick(3 * STABLE)
    assert is_leader(cluster.sites[1].core)
    cluster.heal()
    cluster.tick(2 * STABLE)
    assert is_leader(cluster.sites[3].core)


def test_priority_after_a_failed_transfer_the_next_one_waits_longer() -> None:
    cluster = Cluster(PREFERRED)
    leader = cluster.elect(1)
    cluster.drop = lambda message: isinstance(message, TimeoutNow)
    begun = []
    before = NOBODY
    for tick in range(60 * STABLE):
        cluster.tick()
        if leader.transferee == 3 != before:
            begun.append(tick)
        before = leader.transferee
    waits = [round((later - earlier) / STABLE) for earlier, later in pairwise(begun)]
    assert waits[:6] == [2, 4, 8, 8, 8, 8]
    assert is_leader(leader)
    assert leader.accepts_proposals


def test_priority_can_be_changed_at_run_time() -> None:
    cluster = Cluster(PREFERRED)
    leader = cluster.elect(1)
    leader.propose_change(Change.PRIORITIZE, Server(2, "", "", priority=6), 1)
    cluster.tick(2 * STABLE)
    assert is_leader(cluster.sites[2].core)


# ---- witness -------------------------------------------------------------------------------------------------------

WITNESSED = ranked(("voter", 0), ("voter", 0), ("witness", 0))


def test_witness_votes_and_counts_for_commits() -> None:
    cluster = Cluster(WITNESSED)
    cluster.down.add(2)
    cluster.elect(1)
    cluster.propose(1, b"x")
    assert cluster.payloads(3) == [b"x"]


def test_witness_does_not_campaign_while_another_can() -> None:
    for seed in range(30):
        cluster = Cluster(WITNESSED)
        for site in cluster.sites:
            cluster.sites[site] = Driven(site, store([1], WITNESSED), seed=100 * seed + site)
        cluster.tick(2 * LIMITS.election_ticks)  # its own and the others' times all start now
        cluster.down.add(1 + seed % 2)
        for _ in range(8 * LIMITS.election_ticks):
            cluster.tick()
            assert not is_leader(cluster.sites[3].core)
        assert is_leader(cluster.sites[2 - seed % 2].core)


def test_witness_leads_while_nobody_else_can_and_hands_over_as_soon_as_another_has_caught_up() -> None:
    """Site 1 is gone, and only the witness has all that was committed."""
    cluster = Cluster(WITNESSED, logs={1: [1, 2, 2], 2: [1], 3: [1, 2, 2]})
    cluster.down.add(1)
    led = False
    for _ in range(20 * LIMITS.election_ticks):
        cluster.tick()
        led = led or is_leader(cluster.sites[3].core)
        if is_leader(cluster.sites[2].core):
            break
    assert led
    assert is_leader(cluster.sites[2].core)
    assert cluster.sites[2].core.log.term(3) == 2


def witness_leads(cluster: Cluster) -> RaftCore:
    """Site 3 of WITNESSED is elected, which waits longer than others would."""
    for _ in range(WITNESS_PATIENCE):
        cluster.campaign(3)
    return cluster.elect(3)


def attempts(cluster: Cluster, leader: RaftCore, ticks: int) -> list[tuple[int, int]]:
    """When `leader` began to hand over, and to whom."""
    begun = []
    before = leader.transferee
    for tick in range(ticks):
        cluster.tick()
        if leader.transferee not in (before, NOBODY):
            begun.append((tick, leader.transferee))
        before = leader.transferee
    return begun


def test_witness_after_a_failed_transfer_the_next_one_waits() -> None:
    """Site 1 hears and acknowledges, and does not take over. A transfer stops the proposals for an election timeout."""
    cluster = Cluster(WITNESSED)
    cluster.down.add(2)
    cluster.drop = lambda message: isinstance(message, TimeoutNow)
    leader = witness_leads(cluster)
    begun = attempts(cluster, leader, 60 * STABLE)
    waits = [round((later - earlier) / STABLE) for (earlier, _), (later, _) in pairwise(begun)]
    assert waits[:5] == [2, 4, 8, 8, 8]
    assert is_leader(leader)
    assert leader.accepts_proposals


def test_witness_when_one_voter_cannot_take_over_another_does_at_once() -> None:
    """The one that fits better is tried first, whoever it is, and again only after the other."""
    for unable in (1, 2):
        cluster = Cluster(WITNESSED)
        cluster.drop = lambda message, unable=unable: isinstance(message, TimeoutNow) and message.to == unable  # type: ignore[misc]
        leader = witness_leads(cluster)
        begun = attempts(cluster, leader, 2 * LIMITS.election_ticks)
        assert is_leader(cluster.sites[3 - unable].core), begun


def test_priority_equals_that_acknowledge_by_turns_do_not_begin_anew_by_turns() -> None:
    """Each has been fit all the time, whichever of the two is ahead at the moment."""
    cluster = Cluster(ranked(("voter", 5), ("voter", 5), ("voter", 0)))
    leader = cluster.elect(3)
    for tick in range(2 * STABLE):
        if not is_leader(leader):
            break
        late = 1 + tick % 2
        cluster.drop = lambda message, late=late: isinstance(message, AppendResponse) and message.sender == late  # type: ignore[misc]
        cluster.propose(3, b"x")
        cluster.heal()
        cluster.tick()
    assert not is_leader(leader)


def test_witness_is_not_handed_the_leadership() -> None:
    cluster = Cluster(WITNESSED)
    leader = cluster.elect(1)
    with pytest.raises(ConfigurationError, match="is a witness"):
        leader.transfer(3)
    assert leader.transfer() == 2


def test_witness_is_handed_the_leadership_only_when_nobody_else_lives() -> None:
    cluster = Cluster(WITNESSED)
    leader = cluster.elect(1)
    cluster.down.add(2)
    cluster.tick(3 * LIMITS.election_ticks)
    assert leader.transfer() == 3


# ---- leadership transfer -------------------------------------------------------------------------------------------


def test_transfer_goes_to_the_target_after_it_has_caught_up() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    assert leader.transfer(3) == 3
    cluster.settle()
    assert cluster.sites[3].core.role is Role.LEADER
    assert leader.leader == 3


def test_transfer_stops_proposals_first() -> None:
    """hashicorp #696."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.down.add(3)
    leader.transfer(3)
    with pytest.raises(NotLeader):
        leader.propose([proposal(b"x")])


def test_transfer_is_bounded() -> None:
    """hashicorp #487: a target that does not answer must not leave the cluster without proposals for long."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.down.add(3)
    leader.transfer(3)
    cluster.tick(LIMITS.election_ticks)
    assert leader.accepts_proposals


def test_transfer_flag_is_scoped_to_the_term() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.down.add(3)
    leader.transfer(3)
    leader.step(AppendRequest(1, 2, 5, 0, 0, 0, 0, ()))
    assert leader.transferee == 0
    cluster.down.clear()
    cluster.tick(100)
    new = next(driven.core for driven in cluster.sites.values() if driven.core.role is Role.LEADER)
    assert new.accepts_proposals


def test_transfer_not_to_a_nonvoter() -> None:
    cluster = Cluster(configuration(2, 1))
    leader = cluster.elect(1)
    with pytest.raises(ConfigurationError, match="not another voter"):
        leader.transfer(3)
    assert cluster.sites[3].step(TimeoutNow(3, 1, leader.term)) == []


# ---- linearizable reads --------------------------------------------------------------------------------------------


def read_states(driven: Driven) -> list[tuple[object, int]]:
    found: list[tuple[object, int]] = []
    while (ready := driven.core.ready()) is not None:
        found += [(state.context, state.index) for state in ready.read_states]
        if ready.write is not None:
            driven.disk.write([ready.write])
        driven.core.advance(ready)
    return found


def test_read_index_needs_a_majority_to_confirm_the_leader() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.read_index("a")
    beats = of_type(cluster.sites[1].ready(), Heartbeat)
    assert read_states(cluster.sites[1]) == []
    (answer,) = of_type(cluster.sites[2].step(beats[0]), HeartbeatResponse)
    leader.step(answer)
    assert read_states(cluster.sites[1]) == [("a", 2)]


def test_read_index_an_answer_to_an_older_round_confirms_nothing() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    old = of_type(cluster.sites[1].tick(2 * LIMITS.heartbeat_ticks), Heartbeat)[0]
    leader.read_index("a")
    cluster.sites[1].ready()
    for answer in of_type(cluster.sites[old.to].step(old), HeartbeatResponse):
        leader.step(answer)
    assert read_states(cluster.sites[1]) == []


def test_read_index_waits_for_the_leaders_first_commit() -> None:
    cluster = Cluster(THREE)
    cluster.drop = lambda message: isinstance(message, AppendRequest)
    leader = cluster.elect(1)
    leader.read_index("a")
    assert of_type(cluster.sites[1].run(), Heartbeat) == []
    cluster.heal()
    found: list[tuple[object, int]] = []
    for _ in range(6):
        leader.tick()
        while (ready := leader.ready()) is not None:
            found += [(state.context, state.index) for state in ready.read_states]
            if ready.write is not None:
                cluster.sites[1].disk.write([ready.write])
            leader.advance(ready)
            for message in ready.messages + ready.promises:
                for answer in cluster.sites[message.to].step(message):
                    leader.step(answer)
    assert found == [("a", 2)]


def test_read_index_of_a_follower_has_a_fresh_id_for_each_attempt() -> None:
    """etcd #20418: the answer to one attempt must not be taken for that to another."""
    cluster = Cluster(THREE)
    cluster.elect(1)
    follower = cluster.sites[2]
    follower.core.read_index("first")
    follower.core.read_index("second")
    attempts = [message.attempt for message in of_type(follower.ready(), ReadIndexRequest)]
    assert len(set(attempts)) == 2
    follower.core.step(ReadIndexResponse(2, 1, 2, attempts[1], 2))
    follower.core.step(ReadIndexResponse(2, 1, 2, attempts[1] + 1, 2))
    assert read_states(follower) == [("second", 2)]
    again = Driven(2, follower.disk, seed=99)
    again.step(Heartbeat(2, 1, 2, 0, 2, 1))
    again.core.read_index("third")
    (request,) = of_type(again.ready(), ReadIndexRequest)
    assert request.attempt not in attempts
