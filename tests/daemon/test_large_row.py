"""The largest row that servers take, through whole daemons: how much memory it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from mysqlraft.sandbox.cluster import Cluster, ClusterSite
from tests.daemon.test_daemon import has_table, make, sql, state, until
from tests.daemon.test_members import settled

__all__ = ["make"]  # a fixture

pytestmark = pytest.mark.timeout(180)

MOST = 400 << 20
"""Bytes in both processes of a daemon, besides the row itself."""
LARGEST = (64 << 20) // 4 * 3 - (1 << 16)


class Peaks(threading.Thread):
    """The most memory that each site's daemon has had at any moment, in both processes together; without the files of
    the log that are mapped into it, which the kernel takes away as it needs."""

    def __init__(self, sites: Sequence[ClusterSite]) -> None:
        super().__init__(daemon=True)
        self._pids = [(site.daemon.pid, site.daemon.replica_pid) for site in sites]
        self._done = threading.Event()
        self.bytes = [0] * len(sites)

    def run(self) -> None:
        while not self._done.wait(0.01):
            now = [sum(map(anonymous, pids)) for pids in self._pids]
            self.bytes = list(map(max, self.bytes, now))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._done.set()
        self.join()


def anonymous(pid: int | None) -> int:
    """Bytes of a process that no file holds; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) << 10


def test_the_largest_row(make: Callable[[int], Cluster]) -> None:
    """A row is inserted, a small column of it is updated, by both sites at once, too; nothing starts anew."""
    cluster = make(2)
    cluster.start_daemons()
    one, two = cluster[1], cluster[2]
    state(one, "running")
    state(two, "running")
    replicas = [site.daemon.replica_pid for site in (one, two)]
    sql(one, "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v INT, w INT, b LONGBLOB)")
    until(lambda: has_table(two, "s", "t"), "the table at the other site")
    with Peaks((one, two)) as peaks:
        sql(one, f"INSERT INTO s.t VALUES (1, 0, 0, REPEAT('x', {LARGEST}))")
        until(lambda: sql(two, "SELECT LENGTH(b) FROM s.t") == ((LARGEST,),), "the row", 60)
        sql(one, "UPDATE s.t SET v = 1")
        until(lambda: sql(two, "SELECT v FROM s.t") == ((1,),), "the update", 60)
        sql(one, "UPDATE s.t SET v = 2")
        sql(two, "UPDATE s.t SET w = 2")
        for number, site in enumerate((one, two), 10):
            sql(site, f"INSERT INTO s.t (id) VALUES ({number})")
        until(lambda: all(len(sql(site, "SELECT id FROM s.t")) == 3 for site in (one, two)), "what came last", 60)
        settled(one, two)
    sums = [sql(site, "CHECKSUM TABLE s.t") for site in (one, two)]
    assert sums[0] == sums[1]
    print(f"{LARGEST >> 20} MiB in a row: {[each >> 20 for each in peaks.bytes]} MiB in both processes, at most")
    assert LARGEST < max(peaks.bytes) < LARGEST + MOST
    assert [site.daemon.replica_pid for site in (one, two)] == replicas
    for site in (one, two):
        state(site, "running")
