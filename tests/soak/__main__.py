"""Six sites, applications that check what they read, and failures: python -m tests.soak --engine mysql --minutes 10

Daemons, replica processes, the leader and servers are killed, sites are cut off, columns are added. Prints a line every
ten seconds, and at the end what was lost or went back; the exit status is 0 only if nothing was, and all sites are
identical.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pymysql

from mysqlraft.sandbox.cluster import Cluster, ClusterError
from mysqlraft.sandbox.compare import compare
from mysqlraft.sandbox.installation import ENGINES
from mysqlraft.sandbox.servers import find_servers
from tests.soak.applications import Application, applications, create

FAULT_SECONDS = 6.0
CUT_SECONDS = 8.0
ALTER_EVERY = 4
"""Of so many faults one is a statement."""
SETTLE = 600.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="mysql")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--rate", type=float, default=12.0, help="transactions a second at each site, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true", help="only applications and statements")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mysqlraft-soak-") as directory:
        cluster = Cluster.create(find_servers()[options.engine], Path(directory), sites=options.sites)
        with cluster:
            return run(cluster, options)


def run(cluster: Cluster, options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)
    with cluster[1].server.connect() as connection:
        create(connection)
    cluster.wait_everywhere(lambda connection: _missing(connection, "own.shared"), 60)
    sites = applications(cluster.connects, options.rate, options.seed)
    begun = time.monotonic()
    for site in sites:
        site.start()
    columns = itertools.count(1)
    shown = next_fault = begun
    try:
        for number in itertools.count():
            while time.monotonic() < next_fault:
                time.sleep(0.1)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    _show(cluster, sites, shown - begun)
            if time.monotonic() - begun > 60 * options.minutes:
                break
            next_fault = time.monotonic() + FAULT_SECONDS
            if number % ALTER_EVERY == 1:
                _alter(cluster, rng, next(columns))
            elif not options.no_faults:
                _fault(cluster, rng, number)
            cluster.check()
    finally:
        for site in sites:
            site.stop()
    print(f"writing has stopped after {time.monotonic() - begun:.0f} s", flush=True)
    return _verify(cluster, sites)


def _fault(cluster: Cluster, rng: random.Random, number: int) -> None:
    site = rng.choice(list(cluster))
    kind = rng.choice(("daemon", "replica", "leader", "server", "cut"))
    if kind == "leader":
        site = cluster[cluster.wait_leader()]
    print(f"  {kind} of {site.name}", flush=True)
    if kind == "cut":
        cluster.cut(site.number)
        time.sleep(CUT_SECONDS)
        cluster.heal(site.number)
    elif kind == "server":
        site.server.kill()
        site.server.start()
    elif kind == "replica":
        site.daemon.kill_replica()
    else:
        site.daemon.kill()
        site.daemon.start()


def _alter(cluster: Cluster, rng: random.Random, number: int) -> None:
    """A column more, at any site; the next one only when all have this one, as two at once would stop every site."""
    site = rng.choice(list(cluster))
    table = rng.choice(("counter", "register", "pair", "item", "shared"))
    print(f"  a column for {table} at {site.name}", flush=True)
    with suppress(pymysql.err.OperationalError), site.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE own.{table} ADD COLUMN x{number} INT DEFAULT {number}")
    cluster.wait_everywhere(lambda connection: _lacks(connection, table, f"x{number}"), SETTLE)


def _lacks(connection: pymysql.Connection[pymysql.cursors.Cursor], table: str, column: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW COLUMNS FROM own.{table}")
        return [] if any(row[0] == column for row in cursor.fetchall()) else [f"{table} lacks {column}"]


def _missing(connection: pymysql.Connection[pymysql.cursors.Cursor], table: str) -> list[str]:
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT COUNT(*) FROM {table}")
        except pymysql.err.MySQLError:
            return [f"no {table}"]
        row = cursor.fetchone()
        return [] if row and row[0] else [f"{table} is empty"]


def _show(cluster: Cluster, sites: list[Application], seconds: float) -> None:
    applied = []
    left_out = in_full = 0
    for number, status in cluster.statuses().items():
        row = next((row for row in (status or {}).get("sites", []) if row["name"] == cluster[number].name), None)
        applied.append(str(row["applied"]) if row else "-")
        units = (row or {}).get("units") or {}
        left_out += units.get("rows_left_out", 0)
        in_full += units.get("rows_in_full", 0)
    done = sum(site.done["transactions"] for site in sites)
    bad = sum(len(site.violations) for site in sites)
    print(
        f"[{seconds:5.0f} s] {done} transactions, {sum(site.done['reads'] for site in sites)} reads, applied"
        f" {' '.join(applied)}, left out {left_out}, in full {in_full}, violations {bad}",
        flush=True,
    )


def _verify(cluster: Cluster, sites: list[Application]) -> int:
    for site in sites:
        with cluster[site.site].server.connect() as connection:
            site.check(connection, "at the end")
    expected = {site.site: site.counted() for site in sites}

    def missing(connection: pymysql.Connection[pymysql.cursors.Cursor]) -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT site, n FROM own.counter")
            found = {str(name): int(n) for name, n in cursor.fetchall()}
        return [
            f"counter of site {s}: {found.get(f'site{s}')}, not {n}"
            for s, n in expected.items()
            if n != found.get(f"site{s}", 0)
        ]

    failed = False
    try:
        cluster.wait_everywhere(missing, SETTLE)
    except ClusterError as error:
        print(error)
        failed = True
    for site in sites:
        for other in cluster:
            with other.server.connect() as connection:
                site.check(connection, f"at site {other.number}, settled")
    comparison = compare(cluster.connects)
    print("\n".join(comparison.lines()))
    violations = [violation for site in sites for violation in site.violations]
    for violation in violations[:50]:
        print("VIOLATION", violation)
    done = sum(site.done["transactions"] for site in sites)
    failed = failed or bool(violations) or not comparison.identical
    print(
        f"{'FAILED' if failed else 'PASSED'}: {done} transactions, {sum(site.done['reads'] for site in sites)} reads,"
        f" {len(violations)} violations, {'identical' if comparison.identical else 'DIFFERENT'},"
        f" {cluster.conflicts(1)} conflicts"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
