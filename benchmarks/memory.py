"""How much memory do the daemon's two processes take? `python -m benchmarks.memory [--json]`

Three sites. First nobody writes; then one transaction of a gigabyte is committed at the first site. Memory is what a
process has of its own plus its share of what it shares (Pss): two Python processes of one program share some pages. The
peer, for comparison, is the site's own server.

Under the large transaction, memory (anonymous pages) and mapped files are told apart: LevelDB maps the log's files, and
what it has read of them counts as resident for as long as nobody else needs the memory.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.report import Figure, arguments, chosen, publish
from benchmarks.waiting import table_missing
from mysqlraft.sandbox.cluster import Cluster, ClusterSite

MEGABYTE = 1 << 20
TABLE = "CREATE TABLE bench.blobs (id INT NOT NULL PRIMARY KEY, data LONGBLOB NOT NULL)"

# How long nobody writes.
_IDLE = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    arguments(parser)
    parser.add_argument("--size", type=int, default=1024, metavar="MB", help="of the large transaction (1024)")
    args = parser.parse_args()
    installation = chosen(args)
    with (
        tempfile.TemporaryDirectory(prefix="mysqlraft-memory-") as directory,
        Cluster.create(installation, Path(directory), sites=3, links=False, tls=False) as cluster,
    ):
        time.sleep(_IDLE)
        idle = [sum(_daemon(site)) for site in cluster]
        servers = [site.server.memory() for site in cluster]
        peaks = _Peaks(cluster)
        peaks.start()
        took = _commit_large(cluster, args.size)
        cluster.wait_everywhere(table_missing("blobs", args.size), 600)
        peaks.stop()
    publish(
        args,
        f"two processes of a daemon; idle for {_IDLE:g} s, then one transaction of {args.size} MB"
        f" (committed in {took:.0f} s), {installation.engine} {installation.version_text}",
        {
            "memory_idle": Figure(max(idle) / MEGABYTE, max(servers) / MEGABYTE, "MB"),
            "memory_large_origin": Figure(peaks.memory[1] / MEGABYTE, None, "MB"),
            "memory_large_others": Figure(max(peaks.memory[2], peaks.memory[3]) / MEGABYTE, None, "MB"),
            "memory_large_mapped_files": Figure(max(peaks.mapped.values()) / MEGABYTE, None, "MB"),
        },
    )


def _commit_large(cluster: Cluster, megabytes: int) -> float:
    """Commits so many rows of one megabyte in one transaction; the seconds it took."""
    begun = time.monotonic()
    with cluster[1].server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE bench")
        cursor.execute(TABLE)
        cursor.execute("BEGIN")
        # Made by the server: nothing that large travels from here.
        cursor.execute("INSERT INTO bench.blobs VALUES (0, RANDOM_BYTES(1024))")
        cursor.execute("UPDATE bench.blobs SET data = REPEAT(data, 1024)")
        for number in range(1, megabytes):
            cursor.execute("INSERT INTO bench.blobs SELECT %s, data FROM bench.blobs WHERE id = 0", (number,))
        cursor.execute("COMMIT")
    return time.monotonic() - begun


class _Peaks(threading.Thread):
    """The most that each site's daemon had at any time."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._end = threading.Event()
        self.memory = {site.number: 0 for site in cluster}
        self.mapped = {site.number: 0 for site in cluster}

    def run(self) -> None:
        while not self._end.wait(0.2):
            for site in self._cluster:
                memory, mapped = _daemon(site)
                self.memory[site.number] = max(self.memory[site.number], memory)
                self.mapped[site.number] = max(self.mapped[site.number], mapped)

    def stop(self) -> None:
        self._end.set()
        self.join()


def _daemon(site: ClusterSite) -> tuple[int, int]:
    """Bytes of both processes: anonymous memory, and mapped files."""
    both = [_pss(pid) for pid in (site.daemon.pid, site.daemon.replica_pid) if pid is not None]
    return sum(memory for memory, _ in both), sum(mapped for _, mapped in both)


def _pss(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return sizes["Pss_Anon"], sizes["Pss"] - sizes["Pss_Anon"]


if __name__ == "__main__":
    main()
