"""The rules of docs/consensus.md for compaction and snapshots, one test each, named after the rule."""

from __future__ import annotations

from random import Random

import pytest
from xxhash import xxh3_64_intdigest

from mysqlraft.raft import (
    Change,
    HardState,
    Limits,
    MemorySnapshotStore,
    MemoryStore,
    Participant,
    RaftCore,
    Role,
    Server,
    Write,
)
from mysqlraft.raft.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    SnapshotChunk,
    SnapshotChunkRequest,
    VoteRequest,
    VoteResponse,
)
from mysqlraft.raft.progress import ProgressState
from mysqlraft.raft.snapshot import Snapshot, SnapshotReceiver, SnapshotSender, SnapshotWork, WorkKind, chunk_checksum
from mysqlraft.raft.store import Base, Compacted
from tests.raft.cluster import LIMITS, Cluster, Driven, chained, configuration, proposal, store

THREE = configuration(3)
DATA = b"state"


def snapshot_of(terms: list[int], index: int, data: bytes = DATA) -> Snapshot:
    """Of a log with these terms, after `index`."""
    entry = chained(*terms, configured=THREE)[index - 1]
    return Snapshot(Base(index, entry.term, entry.chain), 1, THREE, len(data), xxh3_64_intdigest(data))


def offer(snapshot: Snapshot, to: int = 2, sender: int = 1, term: int = 5, progress: int = 77) -> InstallSnapshot:
    base, configuration_index, members, size, checksum = snapshot
    return InstallSnapshot(to, sender, term, progress, *base, configuration_index, members.encode(), size, checksum)


def follower(terms: list[int], commit: int, term: int = 5) -> Driven:
    disk = store(terms, THREE, term)
    disk.write([Write(commit=commit)])
    return Driven(2, disk)


def compacted_leader(entries: int = 20) -> tuple[Cluster, RaftCore]:
    """Site 1 leads, 2 follows, and 3 has missed what was committed, snapshot and compacted meanwhile."""
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    cluster.down.add(3)
    for number in range(entries):
        cluster.propose(1, b"%d" % number)
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), len(DATA), xxh3_64_intdigest(DATA)))
    leader.compact(leader.commit_index)
    cluster.settle()
    return cluster, leader


def reachable(cluster: Cluster, site: int) -> None:
    """Again, after its connections broke and were made."""
    cluster.down.discard(site)
    cluster.sites[1].core.unreachable(site)
    cluster.tick(2 * LIMITS.election_ticks)


# ---- compaction --------------------------------------------------------------------------------------------------


def test_only_what_is_committed_and_on_disk_is_compacted() -> None:
    driven = Driven(1, store([1, 1, 1], configuration(1)))
    driven.tick(2 * LIMITS.election_ticks)
    core = driven.core
    assert core.role is Role.LEADER
    committed = core.commit_index
    core.propose([proposal(b"x")])
    assert core.compact(core.log.last_index) == committed
    driven.run()
    assert driven.disk.base.index == committed
    with pytest.raises(Compacted, match=f"entry {committed} is not in the log any more"):
        core.log.slice(committed, committed, 1000)


def test_the_log_still_matches_at_the_compaction_point() -> None:
    driven = follower([1, 2, 2, 5], commit=3)
    assert driven.core.compact(3) == 3
    driven.run()
    log = driven.core.log
    assert (log.first_index, log.term(3), log.chain(3)) == (4, 2, chained(1, 2, 2, configured=THREE)[2].chain)
    assert log.matches(3, 2)
    assert log.term(2) is None
    (entry,) = chained(1, 2, 2, 5, 5, configured=THREE)[4:]
    answers = driven.step(AppendRequest(2, 1, 5, 7, 3, 2, 3, (*chained(1, 2, 2, 5, configured=THREE)[3:], entry)))
    assert answers == [AppendResponse(1, 2, 5, 7, 5, False, 0, 0)]


def test_compaction_survives_a_restart() -> None:
    driven = follower([1, 2, 2, 5], commit=3)
    driven.core.compact(3)
    driven.run()
    again = Driven(2, driven.disk).core
    assert (again.log.base, again.log.last_index, again.commit_index) == (driven.core.log.base, 4, 3)
    assert (again.configuration, again.configuration_index) == (THREE, 1)


def test_a_crash_before_compaction_is_written_leaves_the_whole_log() -> None:
    driven = follower([1, 2, 2, 5], commit=3)
    driven.core.compact(3)
    driven.ready()
    driven.disk.crash()
    assert (driven.disk.base, driven.disk.last_index) == (Base(), 4)


def test_configurations_that_are_compacted_away_stay_in_force() -> None:
    cluster = Cluster(THREE)
    leader = cluster.elect(1)
    leader.propose_change(Change.ADD_NONVOTER, Server(4, "site4", "host4:1000"), leader.configuration_index)
    cluster.settle()
    index = leader.configuration_index
    cluster.propose(1, b"x")
    assert leader.compact(leader.commit_index) > index
    cluster.settle()
    assert (leader.configuration_index, leader.configuration) == (
        index,
        Driven(1, cluster.sites[1].disk).core.configuration,
    )
    assert 4 in (leader.configuration or ())
    assert [each[0] for each in leader.log.configurations] == [index]
    leader.propose_change(Change.REMOVE, Server(4, "site4", "host4:1000"), index)


def test_own_proposals_are_seen_to_be_committed_before_they_are_compacted() -> None:
    alone = configuration(1)
    participant = Participant(1, store([1], alone), Random(1), LIMITS)

    def turn() -> None:
        while (ready := participant.ready()) is not None:
            if ready.write is not None:
                participant.core._store.write([ready.write])
            participant.advance(ready)

    for _ in range(2 * LIMITS.election_ticks):
        participant.tick()
        turn()
    participant.propose(1, 1, b"x")
    turn()
    while participant.core.commit_index < participant.core.log.last_index:
        turn()
    participant.compact(participant.core.commit_index)
    turn()
    assert len(participant.forwarder) == 0


# ---- the InstallSnapshot rule ------------------------------------------------------------------------------------


def test_install_snapshot_drops_a_log_with_another_term_at_its_index() -> None:
    driven = follower([1, 2, 2, 2, 2], commit=2)
    snapshot = snapshot_of([1, 2, 5, 5], 4)
    assert driven.core.install(snapshot)
    driven.run()
    log = driven.core.log
    assert (log.base, log.last_index, log.last_term, log.last_chain, log.commit) == (
        snapshot.base,
        4,
        5,
        log.base.chain,
        4,
    )
    assert (driven.disk.base, driven.disk.last_index) == (snapshot.base, 4)


def test_install_snapshot_keeps_a_suffix_that_follows_it() -> None:
    """hashicorp #697: the entries after it were acknowledged."""
    driven = follower([1, 2, 2, 2, 2], commit=2)
    assert driven.core.install(snapshot_of([1, 2, 2, 2, 2], 3))
    driven.run()
    assert (driven.core.log.first_index, driven.core.log.last_index, driven.core.commit_index) == (4, 5, 3)
    assert (driven.disk.base.index, driven.disk.last_index) == (3, 5)


def test_install_snapshot_never_goes_back_behind_commit() -> None:
    driven = follower([1, 2, 2, 2, 2], commit=4)
    assert not driven.core.install(snapshot_of([1, 2, 2, 2, 2], 3))
    assert driven.ready() == []
    assert (driven.core.commit_index, driven.core.log.first_index) == (4, 1)
    answers = driven.step(offer(snapshot_of([1, 2, 2, 2, 2], 3)))
    assert answers == [AppendResponse(1, 2, 5, 77, 4, False, 0, 0)]
    assert driven.core.offer is None


def test_a_log_that_holds_the_snapshots_last_entry_needs_no_transfer() -> None:
    driven = follower([1, 2, 2, 2, 2], commit=2)
    answers = driven.step(offer(snapshot_of([1, 2, 2, 2, 2], 4)))
    assert answers == [AppendResponse(1, 2, 5, 77, 4, False, 0, 0)]
    assert driven.core.commit_index == 4
    assert driven.core.offer is None


def test_install_snapshot_carries_the_configuration() -> None:
    """Of a site that has none, and of one that has an older one."""
    five = configuration(5)
    for disk in (MemoryStore(), store([1, 1], THREE, 5)):
        core = RaftCore(2, disk, Random(1), LIMITS)
        assert core.install(Snapshot(Base(40, 5, 123), 17, five, 0, 0))
        assert (core.configuration, core.configuration_index) == (five, 17)
        ready = core.ready()
        assert ready is not None
        assert ready.write is not None
        disk.write([ready.write])
        assert RaftCore(2, disk, Random(1), LIMITS).configuration == five


def test_a_snapshot_is_acknowledged_when_the_log_on_disk_begins_there() -> None:
    driven = follower([1, 2], commit=2)
    snapshot = snapshot_of([1, 2, 5, 5], 4)
    driven.core.step(offer(snapshot))
    driven.core.install(snapshot)
    driven.core.step(AppendRequest(2, 1, 5, 77, 4, 5, 4, ()))
    assert [message for message in driven.ready() if isinstance(message, AppendResponse)] == []
    assert AppendResponse(1, 2, 5, 77, 4, False, 0, 0) in driven.sync()


def test_an_older_write_does_not_make_a_snapshot_stable() -> None:
    driven = follower([1, 2], commit=2)
    driven.core.step(AppendRequest(2, 1, 5, 77, 2, 2, 2, tuple(chained(1, 2, 3, 3, 3, configured=THREE)[2:])))
    driven.ready()
    driven.core.install(snapshot_of([1, 2, 5, 5], 4))
    old = driven.unsynced.pop(0)
    driven.disk.sync()
    driven.core.advance(old)
    assert driven.core.log.stable == 2
    driven.run()
    assert driven.core.log.stable == 4


def test_a_crash_between_snapshot_and_log_is_made_up_for_at_start() -> None:
    """The snapshot is durable before the log begins after it."""
    disk = store([1, 2, 2, 2], THREE, 2)
    snapshot = snapshot_of([1, 2, 5, 5], 4)
    core = RaftCore(2, disk, Random(1), LIMITS, snapshot)
    assert (core.log.base, core.commit_index, core.term) == (snapshot.base, 4, 5)
    ready = core.ready()
    assert ready is not None
    assert ready.write is not None
    disk.write([ready.write])
    assert (disk.base, disk.last_index, disk.hard_state) == (snapshot.base, 4, HardState(5))


def test_entries_after_a_snapshot_that_is_not_yet_written() -> None:
    """They and two snapshots in one write; of the old log nothing stays."""
    driven = follower([1, 2, 2, 2, 2, 2, 2, 2], commit=2)
    terms = [1, 2, 5, 5, 5, 5]
    driven.core.install(snapshot_of(terms, 4))
    driven.core.step(AppendRequest(2, 1, 5, 7, 4, 5, 4, tuple(chained(*terms, configured=THREE)[4:])))
    driven.core.install(snapshot_of(terms, 5))
    driven.run()
    assert (driven.disk.base.index, driven.disk.last_index) == (5, 6)
    assert driven.disk.entries(6, 6, 1) == chained(*terms, configured=THREE)[5:]


def test_of_what_a_snapshot_has_overtaken_nothing_stays_on_disk() -> None:
    """Entries are replaced, and the snapshot is there before what replaces them was given out to be written. If the
    old ones stayed, a restarted site would take an older term's entry for its last, and elect who lacks this one."""
    driven = follower([1, 2, 2, 2, 2, 2], commit=2)
    terms = [1, 2, 5, 5]
    driven.core.step(AppendRequest(2, 1, 5, 77, 2, 2, 2, tuple(chained(*terms, configured=THREE)[2:])))
    assert driven.core.install(snapshot_of(terms, 4))
    assert AppendResponse(1, 2, 5, 77, 4, False, 0, 0) in driven.run()
    assert (driven.disk.base, driven.disk.last_index) == (snapshot_of(terms, 4).base, 4)
    again = Driven(2, driven.disk)
    assert again.step(VoteRequest(2, 3, 9, False, 6, 2, False)) == [VoteResponse(3, 2, 9, False, False)]


# ---- the leader's part -------------------------------------------------------------------------------------------


def test_a_follower_whose_next_entry_is_gone_gets_a_snapshot() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    assert leader.followers.progress[3].state.value == "snapshot"
    site = cluster.sites[3].core
    assert site.offer is not None
    site.install(Snapshot.offered(site.offer))
    cluster.propose(1, b"after")
    assert leader.followers.progress[3].state.value == "replicate"
    assert (site.commit_index, site.log.last_chain) == (leader.commit_index, leader.log.last_chain)
    assert leader.followers.progress[3].pinned is None


def test_without_a_snapshot_there_is_nothing_to_offer_until_there_is_one() -> None:
    cluster, leader = compacted_leader()
    made, leader.snapshot = leader.snapshot, None
    reachable(cluster, 3)
    assert leader.followers.progress[3].state is ProgressState.SNAPSHOT
    assert cluster.sites[3].core.offer is None
    leader.snapshot = made
    cluster.tick(2 * LIMITS.election_ticks)
    assert cluster.sites[3].core.offer is not None


def test_entries_needed_by_a_running_transfer_are_pinned() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    offered = leader.followers.progress[3].snapshot
    assert offered is not None
    cluster.propose(1, b"more", b"and more")
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), 0, 0))
    assert leader.compact(leader.commit_index) == offered.last_index
    site = cluster.sites[3].core
    site.install(offered)
    cluster.propose(1, b"more")
    assert site.commit_index == leader.commit_index
    assert leader.compact(leader.commit_index) == leader.commit_index


def test_a_follower_that_is_not_heard_of_pins_nothing() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    assert leader.followers.progress[3].pinned is not None
    cluster.down.add(3)
    cluster.propose(1, b"more")
    cluster.tick(2 * LIMITS.election_ticks)
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), 0, 0))
    assert leader.compact(leader.commit_index) == leader.commit_index
    reachable(cluster, 3)
    assert leader.followers.progress[3].snapshot == leader.snapshot


def test_a_watchdog_lets_go_of_a_transfer_in_which_nothing_is_asked_for() -> None:
    """The follower lives, and answers heartbeats."""
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    cluster.propose(1, b"more")
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), 0, 0))
    first = leader.followers.progress[3].snapshot
    cluster.tick(LIMITS.watchdog_ticks + LIMITS.election_ticks + 2)
    assert leader.followers.progress[3].snapshot == leader.snapshot != first


def test_a_snapshot_is_offered_again_when_nothing_is_asked_for() -> None:
    cluster, _ = compacted_leader()
    cluster.drop = lambda message: isinstance(message, InstallSnapshot)
    reachable(cluster, 3)
    assert cluster.sites[3].core.offer is None
    cluster.heal()
    cluster.tick(2 * LIMITS.election_ticks)
    assert cluster.sites[3].core.offer is not None


def test_acknowledgements_from_before_a_snapshot_do_not_put_off_its_next_offer() -> None:
    cluster, leader = compacted_leader()
    cluster.drop = lambda message: isinstance(message, InstallSnapshot)
    reachable(cluster, 3)
    progress = leader.followers.progress[3]
    cluster.heal()
    for _ in range(2 * LIMITS.election_ticks):
        cluster.sites[1].step(AppendResponse(1, 3, leader.term, progress.session, progress.match, False, 0, 0))
        cluster.tick(1)
    assert cluster.sites[3].core.offer is not None


def test_who_needs_no_snapshot_any_more_is_not_silent() -> None:
    """By an acknowledgement from before it. The silence before would make the pipeline begin anew at once."""
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    progress = leader.followers.progress[3]
    cluster.propose(1, b"more")
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), 0, 0))
    progress.give_up()
    progress.offer(leader.snapshot, leader.log.base.index)
    assert progress.snapshot is not None
    assert progress.snapshot.last_index > leader.log.base.index
    progress.silent_ticks = LIMITS.watchdog_ticks
    early = leader.log.base.index
    cluster.sites[1].step(AppendResponse(1, 3, leader.term, progress.session, early, False, 0, 0))
    assert (progress.match, progress.state) == (early, ProgressState.REPLICATE)
    assert progress.silent_ticks == 0


def test_who_acknowledges_a_snapshot_late_is_offered_another_as_soon_as_anybody() -> None:
    """The silence before it, in which the log after that snapshot was given up, is not waited for once more."""
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    progress = leader.followers.progress[3]
    progress.silent_ticks = progress.offered_at = LIMITS.watchdog_ticks
    progress.give_up()
    cluster.propose(1, b"more")
    leader.install(Snapshot(*leader.log.snapshot_point(leader.commit_index), 0, 0))
    cluster.sites[1].run()
    leader.compact(leader.commit_index)
    assert progress.snapshot is not None
    late = progress.snapshot.last_index
    cluster.sites[1].step(AppendResponse(1, 3, leader.term, progress.session, late, False, 0, 0))
    assert (progress.match, progress.state) == (late, ProgressState.SNAPSHOT)
    cluster.tick(LIMITS.election_ticks + LIMITS.heartbeat_ticks + 1)
    assert progress.snapshot == leader.snapshot
    assert progress.snapshot.last_index > late


def test_a_broken_connection_makes_the_leader_offer_again_at_once() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    leader.unreachable(3)
    assert [type(message) for message in cluster.sites[1].run()] == [InstallSnapshot]


def test_chunk_requests_of_another_session_or_snapshot_are_not_served() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    progress = leader.followers.progress[3]
    assert progress.snapshot is not None
    last, checksum = progress.snapshot.last_index, progress.snapshot.checksum
    good = SnapshotChunkRequest(1, 3, leader.term, progress.session, last, checksum, 1, 0, 5)
    leader.step(good._replace(progress=progress.session + 1))
    leader.step(good._replace(last_index=last + 1))
    leader.step(good._replace(sender=4))
    assert leader.ready() is None
    leader.step(good._replace(offset=3))
    ready = leader.ready()
    assert ready is not None
    assert ready.chunk_requests == [good._replace(offset=3)]
    assert progress.snapshot_offset == 3


def test_a_hint_from_before_the_compacted_log_leads_to_a_snapshot() -> None:
    _, leader = compacted_leader()
    assert leader.log.conflict(1, 1) == (1, 1)
    progress = leader.followers.progress[3]
    progress.become_probe()
    progress.next_index = leader.log.last_index + 1
    previous = progress.next_index - 1
    leader.step(AppendResponse(1, 3, leader.term, progress.session, previous, True, 1, 1))
    leader.ready()
    assert progress.state is ProgressState.SNAPSHOT


def test_heartbeats_go_on_during_a_transfer() -> None:
    cluster, leader = compacted_leader()
    reachable(cluster, 3)
    assert leader.followers.progress[3].state is ProgressState.SNAPSHOT
    messages = cluster.sites[1].tick(LIMITS.heartbeat_ticks)
    assert [message.to for message in messages if isinstance(message, Heartbeat)] == [2, 3]
    answer = HeartbeatResponse(1, 3, leader.term, leader.followers.progress[3].session, 1)
    leader.step(answer)
    assert leader.followers.progress[3].active


# ---- the transfer ------------------------------------------------------------------------------------------------


class Transfer:
    """Both ends, and a disk at the receiving one."""

    def __init__(self, data: bytes, window: int = 40, chunk: int = 10) -> None:
        self.source, self.disk = MemorySnapshotStore(), MemorySnapshotStore()
        self.snapshot = self.source.save(Base(9, 2, 3), 1, THREE, [data])
        self.chunk_bytes, self.window = chunk, window
        self.receiver = SnapshotReceiver(2, window, 1000)
        self.sender = SnapshotSender()
        self.complete: Snapshot | None = None
        self.sent: list[SnapshotChunk] = []
        self.requests: list[SnapshotChunkRequest] = []

    def offer(self, snapshot: Snapshot | None = None) -> None:
        self.receiver.offered(offer(snapshot or self.snapshot))

    def work(self) -> None:
        while work := self.receiver.take_work():
            for each in work:
                self.complete = self.receiver.done(each, self.disk.perform(each)) or self.complete

    def ask(self) -> None:
        request = self.receiver.take_request(5, 1)
        if request is not None:
            self.requests.append(request)
            self.sender.request(request)

    def chunks(self) -> list[SnapshotChunk]:
        """What the leader sends now."""
        self.ask()
        made = []
        while (chunk := self.sender.next(self.chunk_bytes)) is not None:
            data = self.source.read(self.snapshot, *chunk)
            name = self.snapshot.last_index, self.snapshot.checksum
            made.append(SnapshotChunk(2, 1, 5, *name, chunk[0], chunk_checksum(data), data))
        self.sent += made
        return made

    def run(self) -> None:
        while self.complete is None and (chunks := self.chunks()):
            for chunk in chunks:
                self.receiver.chunk(chunk)
            self.work()


def test_a_transfer_is_chunked_and_whole() -> None:
    data = bytes(range(256))
    transfer = Transfer(data)
    transfer.offer()
    transfer.work()
    transfer.run()
    assert transfer.complete == transfer.snapshot
    assert b"".join(transfer.disk.data(transfer.snapshot)) == data
    assert [len(chunk.data) for chunk in transfer.sent] == [10] * 25 + [6]


def test_an_empty_snapshot_needs_no_chunk() -> None:
    transfer = Transfer(b"")
    transfer.offer()
    transfer.work()
    assert transfer.complete == transfer.snapshot


def test_a_transfer_has_no_more_than_a_window_on_the_way() -> None:
    """However slow the receiver's disk is."""
    transfer = Transfer(bytes(200))
    transfer.offer()
    transfer.work()
    for chunk in transfer.chunks():
        transfer.receiver.chunk(chunk)
    transfer.offer()  # asks again
    assert transfer.chunks() == []
    assert transfer.requests[-1].limit == transfer.window
    transfer.work()
    assert [chunk.offset for chunk in transfer.chunks()] == [40, 50, 60, 70]


def test_a_broken_transfer_goes_on_where_it_was() -> None:
    transfer = Transfer(bytes(100))
    transfer.offer()
    transfer.work()
    for chunk in transfer.chunks()[:2]:
        transfer.receiver.chunk(chunk)
    transfer.work()
    transfer.chunks()  # lost
    transfer.offer()
    transfer.run()
    assert transfer.complete == transfer.snapshot
    assert [chunk.offset for chunk in transfer.sent][6:8] == [20, 30]


def test_a_restarted_receiver_goes_on_from_its_disk() -> None:
    transfer = Transfer(bytes(100))
    transfer.offer()
    transfer.work()
    for chunk in transfer.chunks():
        transfer.receiver.chunk(chunk)
    transfer.work()
    transfer.receiver = SnapshotReceiver(2, transfer.window, 2000)
    transfer.offer()
    transfer.work()
    assert [chunk.offset for chunk in transfer.chunks()] == [40, 50, 60, 70]


def test_a_damaged_chunk_is_refused_and_asked_for_again() -> None:
    transfer = Transfer(bytes(range(100)))
    transfer.offer()
    transfer.work()
    first, second, *_ = transfer.chunks()
    transfer.receiver.chunk(first)
    transfer.receiver.chunk(second._replace(data=b"0" + second.data[1:]))
    transfer.work()
    assert transfer.receiver.refused == 1
    assert transfer.chunks()[0] == second
    transfer.offer()
    transfer.run()
    assert b"".join(transfer.disk.data(transfer.snapshot)) == bytes(range(100))


def test_a_snapshot_damaged_as_a_whole_is_refused_and_begun_anew() -> None:
    """A crash can leave a file that is as long as it should be and holds something else."""
    transfer = Transfer(bytes(range(100)))
    transfer.disk.incoming = (transfer.snapshot, bytearray(60))
    transfer.offer()
    transfer.work()
    transfer.run()
    assert transfer.receiver.refused == 1
    assert b"".join(transfer.disk.data(transfer.snapshot)) == bytes(range(100))


def test_another_snapshot_begins_at_its_first_byte() -> None:
    transfer = Transfer(bytes(100))
    transfer.offer()
    transfer.work()
    for chunk in transfer.chunks():
        transfer.receiver.chunk(chunk)
    transfer.work()
    transfer.snapshot = transfer.source.save(Base(12, 2, 3), 1, THREE, [b"x" * 70])
    transfer.offer()
    transfer.work()
    assert transfer.chunks()[0].offset == 0
    transfer.offer()
    transfer.run()
    assert b"".join(transfer.disk.data(transfer.snapshot)) == b"x" * 70


def test_chunks_twice_out_of_order_or_of_others_change_nothing() -> None:
    transfer = Transfer(bytes(range(100)))
    transfer.offer()
    transfer.work()
    chunks = transfer.chunks()
    for chunk in (chunks[1], chunks[0]._replace(snapshot_checksum=1), chunks[0], chunks[0], chunks[3], chunks[1]):
        transfer.receiver.chunk(chunk)
    transfer.work()
    assert transfer.disk.incoming is not None
    assert transfer.disk.incoming[1] == bytes(range(20))


def test_only_the_leader_that_offered_is_asked() -> None:
    transfer = Transfer(bytes(100))
    transfer.offer()
    transfer.work()
    assert transfer.receiver.take_request(6, 1) is None
    assert transfer.receiver.take_request(5, 3) is None
    assert transfer.receiver.take_request(5, 1) is not None


def test_a_snapshot_that_the_log_has_passed_is_dropped() -> None:
    disk = store([1, 2], THREE, 5)
    participant = Participant(2, disk, Random(1), Limits())
    participant.step(offer(snapshot_of([1, 2, 5, 5], 4)))
    ready = participant.ready()
    assert ready is not None
    assert [work.kind for work in ready.snapshot_work] == [WorkKind.OPEN]
    participant.step(AppendRequest(2, 1, 5, 7, 2, 2, 4, tuple(chained(1, 2, 5, 5, configured=THREE)[2:])))
    ready = participant.ready()
    assert ready is not None
    assert [work.kind for work in ready.snapshot_work] == [WorkKind.DROP]
    assert not participant.snapshot_work_done(SnapshotWork(WorkKind.OPEN, snapshot_of([1, 2, 5, 5], 4)), 0)
