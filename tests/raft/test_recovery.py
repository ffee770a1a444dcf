"""A cluster that lost its majority, and goes on with members that were forced on what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mysqlraft.raft import (
    Change,
    Configuration,
    ConfigurationError,
    EntryKind,
    HardState,
    LevelDBStore,
    MemoryStore,
    RaftCore,
    Role,
    Server,
    Snapshot,
    Write,
)
from mysqlraft.raft.messages import VoteResponse
from mysqlraft.raft.recovery import read_peers, recover
from mysqlraft.raft.store import Base, Rebase
from tests.raft.cluster import LIMITS, Cluster, Driven, chained, configuration

FIVE = configuration(5)
TWO = Configuration(server for server in FIVE.servers.values() if server.site in (1, 2))


def lost(cluster: Cluster) -> None:
    """Sites 3, 4 and 5 burn down; 1 and 2 are stopped."""
    for site in (3, 4, 5):
        del cluster.sites[site]


def restarted(cluster: Cluster, members: Configuration = TWO) -> None:
    """Sites 1 and 2 are recovered, and started again."""
    for site in (1, 2):
        disk = cluster.sites[site].disk
        disk.crash()
        recover(disk, site, members)
        cluster.sites[site] = Driven(site, disk, LIMITS)


def test_without_a_majority_nothing_commits_and_after_recovery_it_does() -> None:
    cluster = Cluster(FIVE)
    cluster.elect(1)
    cluster.propose(1, b"before")
    lost(cluster)
    cluster.propose(1, b"unacknowledged")
    assert b"unacknowledged" not in cluster.payloads(1)
    restarted(cluster)
    leader = cluster.elect(1)
    cluster.propose(1, b"after")
    assert cluster.payloads(1) == cluster.payloads(2) == [b"before", b"unacknowledged", b"after"]
    for driven in cluster.sites.values():
        assert driven.core.configuration == TWO
        entry = driven.core.log.entry(driven.core.configuration_index)
        assert (entry.kind, entry.payload) == (EntryKind.CONFIGURATION, TWO.encode()), "it is in the log now"
        assert driven.core.configuration_index <= driven.core.log.commit
    before = leader.log.last_index
    for site in (1, 2):
        cluster.sites[site] = Driven(site, cluster.sites[site].disk, LIMITS)
    assert cluster.elect(1).log.last_index == before + 1, "the next leader has nothing to add but its no-op"


def test_the_most_complete_log_that_is_left_leads() -> None:
    """Whatever tail the other one has: the forced members are not in it, so they survive its end."""
    logs = {1: [1, 1, 1, 1, 1, 1], 2: [1, 1, 2], 3: [1], 4: [1], 5: [1]}
    cluster = Cluster(FIVE, logs=logs)
    lost(cluster)
    restarted(cluster)
    cluster.campaign(1)
    assert cluster.sites[1].core.role is not Role.LEADER
    cluster.elect(2)
    cluster.propose(2, b"x")
    assert cluster.payloads(1) == cluster.payloads(2) == [b"2@1", b"3@2", b"x"]
    for site in (1, 2):
        cluster.sites[site] = Driven(site, cluster.sites[site].disk, LIMITS)
        assert cluster.sites[site].core.configuration == TWO


def test_until_the_forced_members_are_in_a_log_a_leader_needs_them_all() -> None:
    """Site 1 alone of the three that are left has what was committed: the other two must not lead without it."""
    three = Configuration(server for server in FIVE.servers.values() if server.site <= 3)
    logs = {1: [1, 1, 1, 1], 2: [1], 3: [1], 4: [1, 1, 1, 1], 5: [1, 1, 1, 1]}
    cluster = Cluster(FIVE, logs=logs)
    for site in (1, 2, 3):
        recover(cluster.sites[site].disk, site, three)
        cluster.sites[site] = Driven(site, cluster.sites[site].disk, LIMITS)
    for site in (4, 5):
        del cluster.sites[site]
    assert cluster.campaign(2).role is not Role.LEADER
    cluster.down.add(1)
    assert cluster.campaign(3).role is not Role.LEADER, "2 and 3 are a majority, and lack what 1 has"
    cluster.down.clear()
    cluster.elect(1)
    assert cluster.payloads(2) == cluster.payloads(3) == [b"2@1", b"3@1", b"4@1"]
    cluster.down.add(1)
    cluster.tick(2 * LIMITS.election_ticks)
    assert Role.LEADER in {cluster.sites[site].core.role for site in (2, 3)}, "now a majority is enough"


def test_a_snapshot_from_before_does_not_bring_the_old_members_back() -> None:
    """The site crashed after it took the snapshot and before its log began there."""
    disk = MemoryStore()
    disk.write([Write(HardState(1), chained(1, 1, 1, configured=FIVE))])
    recover(disk, 1, TWO)
    base = Base(2, 1, disk.entries(2, 2, 1)[0].chain)
    core = RaftCore(1, disk, Random(1), LIMITS, Snapshot(base, 1, FIVE, 0, 0))
    assert (core.log.base, core.configuration) == (base, TWO)
    ready = core.ready()
    assert ready is not None
    assert ready.write is not None
    disk.write([ready.write])
    assert RaftCore(1, disk, Random(1), LIMITS).configuration == TWO


def test_a_snapshot_from_before_does_not_make_a_majority_enough() -> None:
    """Site 3 had a tail of its own, and the only one that has all that was committed sends it what was before that."""
    three = Configuration(server for server in FIVE.servers.values() if server.site <= 3)
    disk = MemoryStore()
    disk.write([Write(HardState(5), chained(1, 2, 2, 2, 2, configured=FIVE))])
    recover(disk, 3, three)
    before = chained(1, 5, 5, configured=FIVE)[2]
    site = Driven(3, disk)
    assert site.core.install(Snapshot(Base(3, 5, before.chain), 1, FIVE, 0, 0))
    site.run()
    for driven in (site, Driven(3, disk)):
        assert driven.core.configuration == three
        while driven.core.role is Role.FOLLOWER:
            driven.tick()
        driven.step(VoteResponse(3, 2, driven.core.term + 1, True, True))
        assert driven.core.role is Role.PRE_CANDIDATE, "2 and 3 are a majority, and lack what 1 has"


def test_members_can_be_changed_again_after_recovery() -> None:
    cluster = Cluster(FIVE)
    cluster.elect(1)
    lost(cluster)
    restarted(cluster)
    leader = cluster.elect(1)
    leader.propose_change(Change.ADD_NONVOTER, Server(6, "site6", "host6:1000"), leader.configuration_index)
    cluster.sites[6] = Driven(6, MemoryStore(), LIMITS)
    cluster.settle()
    assert cluster.payloads(6) == cluster.payloads(1)
    for site in (1, 2, 6):
        again = Driven(site, cluster.sites[site].disk, LIMITS).core.configuration
        assert again is not None
        assert set(again.servers) == {1, 2, 6}


def test_the_site_left_out_is_not_listened_to() -> None:
    cluster = Cluster(FIVE)
    cluster.elect(1)
    back = cluster.sites[3]
    lost(cluster)
    restarted(cluster)
    leader = cluster.elect(1)
    cluster.sites[3] = back
    for _ in range(60):
        cluster.tick()
    assert (leader.role, leader.term) == (Role.LEADER, cluster.sites[2].core.term)
    assert back.core.role is not Role.LEADER


@pytest.fixture(params=["memory", "leveldb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | LevelDBStore]:
    made = MemoryStore() if request.param == "memory" else LevelDBStore(tmp_path / "raft", "test", 1)
    made.write([Write(HardState(2), chained(1, 1, 2, configured=FIVE))])
    yield made
    made.close()


def test_stores_keep_forced_members_until_there_are_others(store: MemoryStore | LevelDBStore) -> None:
    recover(store, 1, TWO)
    recover(store, 1, TWO)
    assert (store.configurations(), store.recovered, store.last_index) == ([(1, TWO)], 3, 3)
    if isinstance(store, LevelDBStore):
        store.close()
        again = LevelDBStore(store.directory, "test", 1)
        assert (again.configurations(), again.recovered) == ([(1, TWO)], 3)
        again.close()


def test_forced_members_outlive_a_truncation(store: MemoryStore | LevelDBStore) -> None:
    recover(store, 1, TWO)
    store.write([Write(HardState(5), chained(1, 5, configured=FIVE)[1:])])
    assert store.configurations() == [(1, TWO)]
    assert (store.last_index, store.recovered) == (2, 1), "what was replaced is not from before the recovery"
    store.write([Write(HardState(6), rebase=Rebase(Base(9, 6, 1), (8, FIVE), keep=False))])
    assert (store.configurations(), store.recovered) == ([(8, FIVE)], 0)


def test_forced_members_outlive_a_snapshot_from_before(store: MemoryStore | LevelDBStore) -> None:
    recover(store, 1, TWO)
    store.write([Write(HardState(5), rebase=Rebase(Base(2, 5, 1), (1, TWO), keep=False))])
    assert (store.configurations(), store.recovered, store.last_index) == ([(1, TWO)], 2, 2)


def test_who_is_not_a_member_or_has_no_log_is_not_recovered(store: MemoryStore | LevelDBStore) -> None:
    with pytest.raises(ConfigurationError, match="site 3 is not among the members"):
        recover(store, 3, TWO)
    with pytest.raises(ConfigurationError, match="no log here"):
        recover(MemoryStore(), 1, TWO)


def test_what_a_peers_file_does_not_say_stays(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    before = Configuration(
        [Server(1, "tokyo", "a:1", True, False, 7), Server(2, "oslo", "b:2"), Server(3, "lima", "c:3")]
    )
    path.write_text(
        '[{"id": 1, "address": "n:1"}, {"id": 2, "address": "b:2", "non_voter": true},'
        ' {"id": 4, "name": "rome", "address": "d:4", "witness": true}]'
    )
    assert read_peers(path, before) == Configuration(
        [
            Server(1, "tokyo", "n:1", True, False, 7),
            Server(2, "oslo", "b:2", False),
            Server(4, "rome", "d:4", True, True),
        ]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("[" * 60_000, "is not JSON"),
        ("[" * 100_000, "is not JSON: larger than 65,536 characters"),
        ("[" + "9" * 5000 + "]", "is not JSON"),
        ("{}", "is not a list of members"),
        ("[1]", "is not a list of members"),
        ("[]", "at least one voter"),
        ('[{"id": 1}]', "has no address"),
        ('[{"id": 1, "address": "a:1", "id": 2}]', "{'id': 2, 'address': 'a:1'} has a key twice"),
        ('[{"address": "a:1"}]', "has no id"),
        ('[{"id": 9, "address": "a:1"}]', "has no name"),
        ('[{"id": "1", "address": "a:1"}]', "id of {'id': '1', 'address': 'a:1'} has to be of type int"),
        ('[{"id": true, "address": "a:1"}]', "has to be of type int"),
        ('[{"id": 1, "address": "a:1", "voter": true}]', "unknown key 'voter'; known are id, name, address, non_voter"),
        ('[{"id": 1, "address": "a"}]', "is not host:port"),
        ('[{"id": 1, "address": "a:1", "non_voter": true}]', "at least one voter"),
        ('[{"id": 1, "address": "a:1"}, {"id": 2, "address": "a:1"}]', "the same address"),
    ],
)
def test_a_peers_file_that_is_wrong(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"peers\.json") as error:
        read_peers(path, FIVE)
    assert problem in str(error.value)
