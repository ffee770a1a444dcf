"""Does the daemon slow down the application's COMMIT? `python -m benchmarks.commit [--json]`

Two servers with the same settings: one alone, one in a cluster of three sites whose daemons run. Short rounds of
single-row transactions at a steady rate, in turn at the one and at the other, and what is timed is COMMIT alone. Each
round begins when the cluster has applied the round before, so neither pays for the other's work; but in each round
of ours capture, consensus and two more servers work on the same cores, as they would at a real site's rate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pymysql

from benchmarks.report import Figure, arguments, chosen, publish
from benchmarks.waiting import table_missing
from mysqlraft.sandbox.cluster import Cluster
from mysqlraft.sandbox.servers import Server

TABLE = "CREATE TABLE bench.commits (id BIGINT NOT NULL PRIMARY KEY, payload VARCHAR(200) NOT NULL)"
PAYLOAD = "x" * 100

# Rounds at each server.
ROUNDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commit", description=__doc__)
    arguments(parser)
    parser.add_argument("--rate", type=float, default=25, help="transactions a second (25)")
    parser.add_argument("--count", type=int, default=40, help="transactions a round (40)")
    args = parser.parse_args()
    installation = chosen(args)
    with tempfile.TemporaryDirectory(prefix="mysqlraft-commit-") as directory:
        bare = Server.create(installation, Path(directory) / "bare", server_id=100)
        cluster = Cluster.create(installation, Path(directory), sites=3, links=False, tls=False)
        with bare, cluster:
            ours, peer = _measure(cluster, bare, args.rate, args.count)
    publish(
        args,
        f"COMMIT of one-row transactions at {args.rate:g}/s, {ROUNDS} rounds of {args.count} in turn,"
        f" {installation.engine} {installation.version_text}",
        {
            "commit_median": Figure(statistics.median(ours), statistics.median(peer), "ms"),
            "commit_p99": Figure(_p99(ours), _p99(peer), "ms"),
        },
    )


def _measure(cluster: Cluster, bare: Server, rate: float, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each COMMIT in the cluster, and at the bare server."""
    ours: list[float] = []
    peer: list[float] = []
    with cluster[1].server.connect(autocommit=False) as in_cluster, bare.connect(autocommit=False) as alone:
        for connection in (in_cluster, alone):
            with connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE bench")
                cursor.execute(TABLE)
        sides = [(in_cluster, ours), (alone, peer)]
        # The first round of each warms up and is thrown away.
        for number in range(ROUNDS + 1):
            for connection, times in sides if number % 2 else reversed(sides):
                measured = _round(connection, number * count, rate, count)
                if connection is in_cluster:
                    cluster.wait_everywhere(table_missing("commits", (number + 1) * count), 60)
                times.extend(measured if number else ())
    return ours, peer


def _round(connection: pymysql.Connection[pymysql.cursors.Cursor], first: int, rate: float, count: int) -> list[float]:
    times = []
    commit: Callable[[], None] = connection.commit
    begun = time.perf_counter()
    with connection.cursor() as cursor:
        for number in range(count):
            time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            cursor.execute("INSERT INTO bench.commits VALUES (%s, %s)", (first + number, PAYLOAD))
            sent = time.perf_counter()
            commit()
            times.append(1000 * (time.perf_counter() - sent))
    return times


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


if __name__ == "__main__":
    main()
