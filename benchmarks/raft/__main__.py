"""Is the Raft log as fast as others'? `python -m benchmarks.raft [--only PATTERN...] [--json]`

Three, five and six nodes, each a process of its own on loopback with its log on a real disk, and clients that keep 256
proposals on the way, spread over all nodes (at hashicorp/raft, which has no forwarding, all of them at the leader,
which spares it the hop). Every round starts each contender's cluster anew, one after the other; figures are medians of
the rounds. A figure's name holds peer, nodes and payload:

    PEER-3-1KB           commits in a second
    PEER-3-1KB-cpu       processor seconds that all servers together take for 100,000 commits
    PEER-3-1KB-latency   one proposal at a time, at the leader: the median, in ms
    PEER-3-1KB-idle      how much of a processor a server takes while nothing is proposed, in %

"ours" is everywhere this project's log as the daemon runs it, without TLS unless it says so. The peers:

    hashicorp   hashicorp/raft with BoltDB, synced
    etcd        puts by gRPC; synced
    pysyncobj   PySyncObj with its journal, which it never syncs
    fsync       one synced LevelDB write of one entry, by this process (latency)
    plain       ours without TLS, and ours is with
    near        ours with 1 ms round trips and 32,768 proposals on the way, and ours has 200 ms; both have up to 32 MiB
                on the way to each other node

What a peer needs is said if it is missing; `--install` has apt-get and pip install it.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import plyvel

from benchmarks.raft.contenders import Contender, Etcd, Hashicorp, Missing, Ours, PySyncObj
from benchmarks.raft.processes import PeerError
from benchmarks.report import Figure, publish

OUTSTANDING = 256
FAR_OUTSTANDING = 32_768
FAR_WINDOW = 32 * 1024 * 1024
SIZES = {"100B": 100, "1KB": 1024, "64KB": 64 * 1024}
WARM_UP_SECONDS = 1.0
FAR_WARM_UP_SECONDS = 3.0
LATENCIES = 200
SYNCS = 200
IDLE_SECONDS = 4.0

OURS, TLS = Ours(), Ours("tls", tls=True)
HASHICORP, ETCD, PYSYNCOBJ = Hashicorp(), Etcd(), PySyncObj()
# An election timeout of ten times the round trip, on both sides alike.
FAR, NEAR = [
    Ours(name, round_trip=seconds, tick=0.2, window=FAR_WINDOW) for name, seconds in (("far", 0.2), ("near", 0.001))
]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured in every round."""

    contender: Contender
    nodes: int
    payload: str
    outstanding: int = OUTSTANDING
    warm_up: float = WARM_UP_SECONDS


@dataclass(frozen=True, slots=True)
class Measured:
    rate: float
    processor: float
    latency: float
    idle: float


Pick = Callable[[Measured], float]
PICKS: dict[str, tuple[Pick, str]] = {
    "": (lambda measured: measured.rate, "commits/s"),
    "-cpu": (lambda measured: measured.processor, "CPU s/100,000"),
    "-latency": (lambda measured: measured.latency * 1000, "ms"),
    "-idle": (lambda measured: measured.idle * 100, "% of a CPU"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure to be."""

    name: str
    ours: Case
    peer: Case | None
    """None: the disk alone."""
    what: str


def comparisons() -> list[Comparison]:
    found = []
    for nodes in (3, 5, 6):
        for payload in SIZES:
            peers: list[tuple[Contender, Sequence[str]]] = [
                (contender, tuple(PICKS) if payload == "1KB" else ("",)) for contender in (HASHICORP, ETCD)
            ]
            if payload == "1KB" and nodes != 5:
                peers.append((PYSYNCOBJ, ("", "-cpu", "-idle")))
            ours = Case(OURS, nodes, payload)
            for contender, whats in peers:
                peer = Case(contender, nodes, payload)
                found += [Comparison(f"{contender.name}-{nodes}-{payload}{what}", ours, peer, what) for what in whats]
            if payload == "1KB":
                found.append(Comparison(f"fsync-{nodes}-1KB-latency", ours, None, "-latency"))
    plain = Case(OURS, 3, "1KB")
    found += [Comparison(f"plain-3-1KB{what}", Case(TLS, 3, "1KB"), plain, what) for what in ("", "-cpu", "-latency")]
    far, near = [Case(each, 3, "1KB", FAR_OUTSTANDING, FAR_WARM_UP_SECONDS) for each in (FAR, NEAR)]
    found.append(Comparison("near-3-1KB", far, near, ""))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.raft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="only figures whose names match (hashicorp-3-*)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken (3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each measurement of a rate takes (4)")
    parser.add_argument(
        "--directory", help="where the nodes keep their logs: on the disk that is meant (that for /tmp)"
    )
    parser.add_argument("--install", action="store_true", help="install what the peers need (apt-get, as root)")
    args = parser.parse_args()
    wanted = [each for each in comparisons() if any(fnmatch.fnmatchcase(each.name, one) for one in args.only)]
    if not wanted:
        parser.error("--only: no figure has such a name; those that there are:\n  " + "\n  ".join(
            each.name for each in comparisons()
        ))  # fmt: skip
    missing = prepare({case.contender.name: case.contender for case in cases(wanted)}.values(), args.install)
    measured: dict[Case | None, list[Measured]] = {}
    for number in range(1, args.rounds + 1):
        for case in cases(wanted):
            if case.contender.name not in missing:
                note(f"round {number} of {args.rounds}: {case.contender.name}, {case.nodes} nodes, {case.payload}")
                measured.setdefault(case, []).append(measure(case, args.seconds, args.directory))
        measured.setdefault(None, []).append(disk(args.directory))
    publish(
        args,
        f"{args.rounds} rounds, {OUTSTANDING} proposals on the way",
        {each.name: figure for each in wanted if (figure := compare(each, measured)) is not None},
    )
    for name, reason in missing.items():
        note(f"MISSING: {name}: {reason}")
    return 1 if missing else 0


def cases(wanted: Iterable[Comparison]) -> list[Case]:
    """In an order in which those that are compared come one after the other."""
    return list(dict.fromkeys(case for each in wanted for case in (each.ours, each.peer) if case is not None))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(contenders: Iterable[Contender], install: bool) -> dict[str, str]:
    """Makes them ready; name -> why it cannot be had, of those that cannot."""
    missing = {}
    for contender in contenders:
        if install and contender.packages:
            for command in (
                ["update", "-qq"],
                ["install", "-y", "-qq", "--no-install-recommends", *contender.packages],
            ):
                subprocess.run(["apt-get", *command], stdout=sys.stderr, check=True)
        try:
            contender.prepare()
        except Missing as error:
            remedy = f"; `apt-get install {' '.join(contender.packages)}`, or --install" if contender.packages else ""
            missing[contender.name] = f"{error}{remedy}"
    return missing


def measure(case: Case, seconds: float, directory: str | None) -> Measured:
    with tempfile.TemporaryDirectory(prefix="mysqlraft-raft-", dir=directory) as place, ExitStack() as stack:
        cluster = stack.enter_context(case.contender.start(case.nodes, Path(place), stack))
        cluster.wait_for_leader()
        size = SIZES[case.payload]
        try:
            # The rate last: the stores go on tidying up after it for a while.
            latency = statistics.median(cluster.latency(LATENCIES, size))
            idle = cluster.idle(IDLE_SECONDS)
            rate, processor = cluster.rate(case.outstanding, size, case.warm_up, seconds)
            return Measured(rate, processor, latency, idle)
        except PeerError as error:
            raise PeerError(f"{case.contender.name}, {case.nodes} nodes, {case.payload}: {error}") from None


def disk(directory: str | None) -> Measured:
    """What one synced write costs that does nothing else."""
    with tempfile.TemporaryDirectory(prefix="mysqlraft-raft-", dir=directory) as place:
        database = plyvel.DB(place, create_if_missing=True)
        took = []
        for number in range(SYNCS):
            began = time.perf_counter()
            database.put(b"%d" % number, bytes(SIZES["1KB"]), sync=True)
            took.append(time.perf_counter() - began)
        database.close()
    return Measured(0.0, 0.0, statistics.median(took), 0.0)


def compare(comparison: Comparison, measured: dict[Case | None, list[Measured]]) -> Figure | None:
    """None if one of the two is missing."""
    pick, unit = PICKS[comparison.what]
    sides = [measured.get(case) for case in (comparison.ours, comparison.peer)]
    if not all(sides):
        return None
    ours, peer = [statistics.median(map(pick, side)) for side in sides if side]
    return Figure(ours, peer, unit)


if __name__ == "__main__":
    sys.exit(main())
