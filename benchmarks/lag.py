"""How long until a commit at one site is visible at all others? `python -m benchmarks.lag [--json]`

Ours: six sites, writes at one. Peer: native asynchronous replication, one source and five replicas. Twelve servers of
the same kind with the same settings (durable binlogs everywhere), the same probe, the same rates, in turn; while native
replication is measured our daemons are stopped. A commit's lag runs from the server's OK for COMMIT until the last of
the five others shows the row to a reader.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.probe import SCHEMA, TABLE, probe
from benchmarks.report import Figure, arguments, chosen, publish
from benchmarks.star import follow
from benchmarks.waiting import table_missing
from mysqlraft.sandbox.cluster import Cluster
from mysqlraft.sandbox.servers import Server, start_all

SITES = 6
RATES = (50, 100)


# Commits a second that are watched, whatever the rate.
_WATCHED = 10

# Commits before those that count, in each round: connections, caches and pipelines get going.
_WARM_UP = 30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lag", description=__doc__)
    arguments(parser)
    parser.add_argument("--seconds", type=float, default=12, help="of each round (12)")
    parser.add_argument("--rounds", type=int, default=2, help="at each rate and side (2)")
    args = parser.parse_args()
    installation = chosen(args)
    ours: dict[int, list[float]] = {rate: [] for rate in RATES}
    peer: dict[int, list[float]] = {rate: [] for rate in RATES}
    with tempfile.TemporaryDirectory(prefix="mysqlraft-lag-") as directory, ExitStack() as stack:
        cluster = Cluster.create(installation, Path(directory) / "ours", sites=SITES, links=False, tls=False)
        stack.callback(cluster.close)
        star = [Server.create(installation, Path(directory) / f"star-{n}", server_id=n) for n in range(1, SITES + 1)]
        for server in star:
            stack.callback(server.remove)
        start_all(star)
        follow(star[0], star[1:])
        cluster.start()
        sites = [site.server for site in cluster]
        for origin in (star[0], sites[0]):
            with origin.connect() as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {SCHEMA}")
                cursor.execute(TABLE)
        cluster.wait_everywhere(table_missing("events", 0), 60)
        first = 1
        for _ in range(args.rounds):
            for rate in RATES:
                count = int(rate * args.seconds) + _WARM_UP
                ours[rate] += _lags(sites, rate, count, first)
                cluster.stop_daemons()
                peer[rate] += _lags(star, rate, count, first)
                cluster.start_daemons()
                cluster.wait_ready()
                first += count
    figures = {}
    for rate in RATES:
        figures[f"lag_{rate}_median"] = Figure(statistics.median(ours[rate]), statistics.median(peer[rate]), "ms")
        figures[f"lag_{rate}_p99"] = Figure(_p99(ours[rate]), _p99(peer[rate]), "ms")
    publish(
        args,
        f"from COMMIT to visible at all {SITES - 1} others, {installation.engine} {installation.version_text}",
        figures,
    )


def _lags(servers: Sequence[Server], rate: float, count: int, first: int) -> list[float]:
    """Milliseconds of each commit at the first server until it is visible at all others."""
    with ExitStack() as stack:
        origin, *others = [stack.enter_context(server.connect()) for server in servers]
        commits = probe(origin, others, rate=rate, count=count, first=first, every=int(rate / _WATCHED))
    return [1000 * commit.everywhere for commit in commits if commit.id >= first + _WARM_UP]


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


if __name__ == "__main__":
    main()
