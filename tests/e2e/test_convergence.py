"""Six real servers, applications that collide at all of them, and failures: identical at the end, exactly once.

Each test prints what it did.
"""

from __future__ import annotations

import random
import time

import pytest

from mysqlraft.replication.state import CHECKPOINT_EVERY
from mysqlraft.sandbox.cluster import CLUSTER, Cluster, ClusterSite
from mysqlraft.sandbox.compare import compare
from mysqlraft.sandbox.workload import Workload, wrong_counts
from tests.e2e.history import transactions, wrong_history

TRANSACTIONS = 20_000
KILLS = 12
KEYS = 2000
"""Of the keys that all sites share; a third of the traffic goes to a few of them."""
CUT_SECONDS = 20.0

# How long the whole load may take, and then the last transactions to get everywhere. The writers go as fast as the
# servers let them, and most of what they write collides: on two cores apply ends well behind.
PATIENCE = 600.0
SETTLE = 600.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1300)]


def test_colliding_writers_and_kills(cluster: Cluster) -> None:
    """Writers everywhere as fast as they can, on the same keys, while every kind of process is killed in its turn."""
    above = cluster.applied_anywhere()
    rng = random.Random(64)
    workload = Workload(cluster.connects, writers=2, seed=64, keys=KEYS)
    # Random moments, as numbers of committed transactions, spread over the whole load.
    moments = sorted(rng.sample(range(500, TRANSACTIONS), KILLS))
    begun = time.monotonic()
    workload.start()
    try:
        for number, moment in enumerate(moments):
            wait_for_commits(cluster, workload, moment)
            killed = kill_something(cluster, rng, number)
            print(f"after {workload.committed():6} transactions: {killed}")
        wait_for_checkpoint(cluster, workload)
        wait_for_commits(cluster, workload, TRANSACTIONS)
    finally:
        workload.stop()
    took = time.monotonic() - begun
    print(f"{workload.committed()} transactions at {len(cluster)} sites in {took:.1f} s: {workload.total()}")
    verify(cluster, workload, above)
    conflicts = cluster.conflicts(1)
    print(f"{len(moments)} kills, {conflicts} conflicts recorded")
    assert conflicts > TRANSACTIONS // 20, "the writers hardly met"


def test_a_site_is_cut_off(cluster: Cluster) -> None:
    above = cluster.applied_anywhere()
    leader = cluster.leader()
    isolated = next(site.number for site in cluster if site.number != leader)
    others = [site.number for site in cluster if site.number != isolated]
    workload = Workload(cluster.connects, writers=2, rate=20, seed=65)
    workload.start()
    try:
        wait_for_commits(cluster, workload, 200)
        cluster.cut(isolated)
        before = {site.number: workload.committed(site.number) for site in cluster}
        applied_before = {site: cluster.applied(site) for site in others}
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < CUT_SECONDS:
            workload.check()
            time.sleep(min(0.5, CUT_SECONDS - elapsed))
        rates = {site.number: (workload.committed(site.number) - before[site.number]) / elapsed for site in cluster}
        applied = {site: cluster.applied(site) for site in others}
        cluster.heal(isolated)
        healed = time.monotonic()
        print(f"cut off: site {isolated}, for {elapsed:.1f} s")
        print("transactions/s meanwhile: " + ", ".join(f"site {site}: {rate:.1f}" for site, rate in rates.items()))
        assert all(rate > 5 for rate in rates.values()), "a site did not go on by itself"
        assert all(applied[site] > applied_before[site] for site in others), "the majority did not go on together"
        cluster.wait_reached(isolated, max(applied.values()), SETTLE)
        print(f"site {isolated} has caught up {time.monotonic() - healed:.1f} s after it was healed")
    finally:
        workload.stop()
    verify(cluster, workload, above)


def kill_something(cluster: Cluster, rng: random.Random, number: int) -> str:
    """Kills one of the four kinds of process, each in its turn, at a random site, and starts it again."""
    kind = ("a consensus process", "a replica process", "the leader", "a server")[number % 4]
    site = rng.choice(list(cluster))
    if kind == "the leader":
        site = cluster[cluster.wait_leader()]
    if kind == "a server":
        site.server.kill()
        site.server.start()
    elif kind == "a replica process":
        wait_for_replica(site)
        assert site.daemon.kill_replica()
    else:
        site.daemon.kill()
        site.daemon.start()
    return f"kill -9 of {kind} at {site.name}"


def wait_for_replica(site: ClusterSite) -> None:
    deadline = time.monotonic() + 30
    while site.daemon.replica_pid is None:
        assert time.monotonic() < deadline, f"{site.name} has no replica process"
        time.sleep(0.01)


def wait_for_checkpoint(cluster: Cluster, workload: Workload) -> None:
    """Lets the writers go on until the log has passed a checkpoint: a replica process that was killed forgets those
    before, and an entry may hold many transactions, so their number says little of the log's length."""
    passed = cluster[cluster.wait_leader()].daemon.status()["commit_index"] // CHECKPOINT_EVERY
    deadline = time.monotonic() + PATIENCE
    while cluster[cluster.wait_leader()].daemon.status()["commit_index"] // CHECKPOINT_EVERY == passed:
        workload.check()
        cluster.check()
        assert time.monotonic() < deadline, f"no checkpoint in {PATIENCE:g} s"
        time.sleep(0.2)


def wait_for_commits(cluster: Cluster, workload: Workload, committed: int) -> None:
    deadline = time.monotonic() + PATIENCE
    looked = time.monotonic()
    while workload.committed() < committed:
        workload.check()
        if time.monotonic() - looked > 2:
            cluster.check()
            looked = time.monotonic()
        assert time.monotonic() < deadline, f"{workload.committed()} of {committed} transactions in {PATIENCE:g} s"
        time.sleep(0.02)


def verify(cluster: Cluster, workload: Workload, above: int) -> None:
    """Waits until every site has applied everything, and checks all that is promised."""
    begun = time.monotonic()
    expected = workload.expected()
    cluster.wait_everywhere(lambda connection: wrong_counts(connection, expected), SETTLE)
    print(f"every site has applied everything after {time.monotonic() - begun:.1f} s")
    comparison = compare(cluster.connects)
    print("\n".join(comparison.lines()))
    assert comparison.identical
    assert compare(cluster.connects, "columns").identical
    said: dict[int, list[str]] = {}
    for row in cluster[1].daemon.status()["sites"]:
        for index, value in row["checks"]:
            said.setdefault(index, []).append(value)
    assert [index for index, values in said.items() if len(set(values)) > 1] == [], said
    assert max(map(len, said.values())) > 1, said
    print(f"checkpoints that sites have judged alike: {[f'{n} by {len(said[n])}' for n in sorted(said)]}")
    stopped = cluster[len(cluster)]
    stopped.daemon.stop()
    history = transactions(stopped.daemon.data_dir, CLUSTER, stopped.number, above)
    stopped.daemon.start()
    wrong = wrong_history(history, workload.expected())
    assert wrong == [], "\n".join(wrong[:20])
    print(f"{history.total()} transactions in the history, each exactly once, and at all {len(cluster)} sites")
