"""What the benchmark of the log makes of its measurements; and that it runs, with one node of ours alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.raft.__main__ import HASHICORP, OURS, Case, Measured, cases, compare, comparisons, prepare
from benchmarks.raft.contenders import Contender, Missing
from benchmarks.raft.processes import Cluster


def measured(rate: float) -> Measured:
    return Measured(rate, 10.0, 0.001, 0.005)


def test_names_are_unique_and_hold_peer_nodes_and_payload() -> None:
    names = [each.name for each in comparisons()]
    assert len(set(names)) == len(names)
    assert {"hashicorp-3-1KB", "hashicorp-6-1KB", "etcd-3-1KB", "etcd-6-1KB"} < set(names)
    assert {"pysyncobj-3-1KB", "pysyncobj-6-1KB", "plain-3-1KB", "near-3-1KB", "fsync-3-1KB-latency"} < set(names)
    for nodes in (3, 5, 6):
        assert {f"hashicorp-{nodes}-{payload}" for payload in ("100B", "1KB", "64KB")} < set(names)


def test_what_is_compared_is_measured_once_and_side_by_side() -> None:
    found = cases(comparisons())
    assert len(set(found)) == len(found)
    assert found[:2] == [Case(OURS, 3, "100B"), Case(HASHICORP, 3, "100B")]


def test_figures_are_medians_and_ratios() -> None:
    comparison = next(each for each in comparisons() if each.name == "hashicorp-3-1KB")
    assert comparison.peer is not None
    rounds: dict[Case | None, list[Measured]] = {
        comparison.ours: [measured(300), measured(1000), measured(200)],
        comparison.peer: [measured(100), measured(150), measured(150)],
    }
    figure = compare(comparison, rounds)
    assert figure is not None
    assert (figure.ours, figure.peer, figure.ratio, figure.unit) == (300, 150, 2.0, "commits/s")
    assert compare(comparison, {comparison.ours: [measured(1)]}) is None


class Absent:
    name = "absent"
    packages: tuple[str, ...] = ("some-package",)

    def prepare(self) -> None:
        raise Missing("there is none on the PATH")

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        raise AssertionError


def test_a_missing_peer_is_named_with_what_to_do() -> None:
    absent: Contender = Absent()
    assert prepare([OURS, absent], install=False) == {
        "absent": "there is none on the PATH; `apt-get install some-package`, or --install"
    }


def test_a_cluster_of_ours_commits(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(OURS.start(2, tmp_path, stack))
        cluster.wait_for_leader()
        rate, processor = cluster.rate(outstanding=8, size=100, warm_up=0.0, seconds=0.3)
        assert rate > 0
        assert processor > 0
        assert len(cluster.latency(3, 100)) == 3
        assert cluster.idle(0.1) >= 0
