"""What a node counts for its metrics."""

from __future__ import annotations

from mysqlraft.raft.counters import Counters, Histogram
from mysqlraft.raft.roles import Role, Transition


def test_a_histogram_counts_cumulatively() -> None:
    histogram = Histogram()
    for seconds in (0.0005, 0.0006, 0.3, 99.0):
        histogram.observe(seconds)
    found = histogram.to_dict()
    buckets = dict(found["buckets"])
    assert (buckets[0.0005], buckets[0.001], buckets[0.25], buckets[0.5], buckets[5.0]) == (1, 2, 2, 3, 3)
    assert (found["count"], found["sum"]) == (4, 99.3011)


def test_commits_are_timed_while_leading_only() -> None:
    counters = Counters()
    counters.appended(1, 0.0)
    counters.committed(1, 1.0)
    assert counters.commits.to_dict()["count"] == 0, "a follower"
    counters.transition(Transition(Role.LEADER, 2, 1, "elected"))
    counters.appended(5, 10.0)
    counters.appended(9, 10.5)
    counters.committed(7, 11.0)
    assert counters.commits.to_dict()["sum"] == 1.0
    counters.transition(Transition(Role.FOLLOWER, 3, 2, "deposed"))
    counters.committed(9, 20.0)
    assert counters.commits.to_dict()["count"] == 1, "what another leader commits is not timed here"


def test_roles_and_leaders_are_counted_when_they_change() -> None:
    counters = Counters()
    for role, leader in (
        (Role.FOLLOWER, 2),
        (Role.PRE_CANDIDATE, 0),
        (Role.CANDIDATE, 0),
        (Role.LEADER, 1),
        (Role.LEADER, 1),
        (Role.FOLLOWER, 0),
        (Role.FOLLOWER, 1),
        (Role.FOLLOWER, 2),
    ):
        counters.transition(Transition(role, 1, leader, "why"))
    found = counters.to_dict()
    assert found["roles"] == {"follower": 1, "pre-candidate": 1, "candidate": 1, "leader": 1}
    assert found["leaders"] == 3, "2, then 1, then 2 again"
