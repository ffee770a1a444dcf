"""How much processor time does a daemon take when nobody writes? `python -m benchmarks.idle [--json]`

Six sites with TLS on one machine, and both processes of each daemon together: the leader, which the others have most to
say to, and the busiest of the others. The server's time is not counted. The peer is the goal: one per cent of a core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.report import Figure, arguments, chosen, publish
from mysqlraft.sandbox.cluster import Cluster, ClusterSite
from mysqlraft.sandbox.servers import Installation

GOAL = 1.0
SETTLE_SECONDS = 10.0
"""After the last site is up: what is left of its start is not what is asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    arguments(parser)
    parser.add_argument("--sites", type=int, default=6, help="of the cluster (6)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured (60)")
    args = parser.parse_args()
    installation = chosen(args)
    leader, *others = measure(installation, args.sites, args.seconds, SETTLE_SECONDS)
    publish(
        args,
        f"both processes of a daemon, {args.sites} sites with TLS, idle for {args.seconds:g} s,"
        f" {installation.engine} {installation.version_text}; the peer is the goal",
        {
            "cpu_idle_leader": Figure(leader, GOAL, "% of a core"),
            "cpu_idle_others": Figure(max(others), GOAL, "% of a core"),
        },
    )


def measure(installation: Installation, sites: int, seconds: float, settle: float) -> list[float]:
    """Per cent of a core that each site's daemon takes, the leader's first."""
    with (
        tempfile.TemporaryDirectory(prefix="mysqlraft-idle-") as directory,
        Cluster.create(installation, Path(directory), sites=sites, links=False, tls=True) as cluster,
    ):
        time.sleep(settle)
        leader = cluster.leader()
        begun, before = time.monotonic(), {site.number: _processor_seconds(site) for site in cluster}
        time.sleep(seconds)
        took = {site.number: _processor_seconds(site) - before[site.number] for site in cluster}
        elapsed = time.monotonic() - begun
        if cluster.leader() != leader:
            raise SystemExit("the leader has changed meanwhile: the machine is too busy to measure on")
    return [100 * took[number] / elapsed for number in sorted(took, key=lambda number: number != leader)]


def _processor_seconds(site: ClusterSite) -> float:
    """Of both processes."""
    return sum(time.clock_gettime(_processor_clock(pid)) for pid in (site.daemon.pid, site.daemon.replica_pid) if pid)


def _processor_clock(pid: int) -> int:
    """The clock of a process's processor time; of what Linux has, the one that counts nanoseconds. This is how
    clock_getcpuclockid(3), which Python has only for threads, makes its number."""
    return ~pid << 3 | 2


if __name__ == "__main__":
    main()
