"""Does the daemon slow down the application's COMMIT? `python -m benchmarks.commit [--json]`

Three servers with the same settings: one alone, one in a cluster of three sites whose daemons run, and one that a
native replica follows. Short rounds of single-row transactions at a steady rate, in turn at each, in every order
equally often, and what is timed is COMMIT alone. Each round begins when the one before has been applied, so nobody pays
for another's work; but in each round of ours capture, consensus and two more servers work on the same cores, as they
would at a real site's rate.

The native replica tells what belongs to the daemon from what any reader of the binlog costs: the server wakes the
thread that serves a reader before it says OK.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, permutations
from pathlib import Path

import pymysql

from benchmarks.report import Figure, arguments, chosen, publish
from benchmarks.star import follow
from benchmarks.waiting import table_missing
from mysqlraft.sandbox.cluster import Cluster
from mysqlraft.sandbox.servers import Server

TABLE = "CREATE TABLE bench.commits (id BIGINT NOT NULL PRIMARY KEY, payload VARCHAR(200) NOT NULL)"
PAYLOAD = "x" * 100

# Rounds at each server: a multiple of the orders of three. Short ones, as the disk's pace changes within minutes.
ROUNDS = 24


class _Side:
    """One of the servers: a connection that writes to it, and the milliseconds of each COMMIT."""

    def __init__(self, server: Server, settle: Callable[[int], None]) -> None:
        """``settle``: waits until so many rows are wherever they are replicated to."""
        self.connection = server.connect(autocommit=False)
        self.settle = settle
        self.times: list[float] = []
        with self.connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE bench")
            cursor.execute(TABLE)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def p99(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commit", description=__doc__)
    arguments(parser)
    parser.add_argument("--rate", type=float, default=25, help="transactions a second (25)")
    parser.add_argument("--count", type=int, default=20, help="transactions a round (20)")
    args = parser.parse_args()
    installation = chosen(args)
    with tempfile.TemporaryDirectory(prefix="mysqlraft-commit-") as directory:
        bare, source, replica = (
            Server.create(installation, Path(directory) / name, server_id=server_id)
            for server_id, name in enumerate(("bare", "source", "replica"), 100)
        )
        cluster = Cluster.create(installation, Path(directory), sites=3, links=False, tls=False)
        with bare, source, replica, cluster:
            follow(source, [replica])
            alone = _Side(bare, lambda rows: None)
            ours = _Side(cluster[1].server, lambda rows: cluster.wait_everywhere(table_missing("commits", rows), 60))
            native = _Side(source, lambda rows: _wait(replica, rows))
            _measure([alone, ours, native], args.rate, args.count)
    publish(
        args,
        f"COMMIT of one-row transactions at {args.rate:g}/s, {ROUNDS} rounds of {args.count} in turn,"
        f" {installation.engine} {installation.version_text}",
        {
            "commit_median": Figure(ours.median, alone.median, "ms"),
            "commit_p99": Figure(ours.p99, alone.p99, "ms"),
            "commit_median_native_replica": Figure(ours.median, native.median, "ms"),
            "commit_p99_native_replica": Figure(ours.p99, native.p99, "ms"),
        },
    )


def _measure(sides: Sequence[_Side], rate: float, count: int) -> None:
    # The first round of each warms up and is thrown away.
    for number, order in zip(range(ROUNDS + 1), cycle(permutations(sides)), strict=False):
        for side in order:
            measured = _round(side.connection, number * count, rate, count)
            side.settle((number + 1) * count)
            side.times.extend(measured if number else ())


def _wait(replica: Server, rows: int) -> None:
    """Waits until a native replica has so many rows."""
    missing = table_missing("commits", rows)
    deadline = time.monotonic() + 60
    with replica.connect() as connection:
        while lacking := missing(connection):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{replica}: {lacking[0]}")
            time.sleep(0.02)


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


if __name__ == "__main__":
    main()
