"""Does anything grow with the log? `python -m benchmarks.growth [--entries N] [--json]`

One site's core on its real store, synced: entries of 100 bytes are proposed, committed, and compacted but for the last
100,000, in a process of its own, as in the daemon. Compared are the first and the last tenth of the run: entries in a
second, processor time, memory, and how long a start takes with the log of then. "ours" is the end, "peer" the
beginning.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from benchmarks.report import Figure, publish
from mysqlraft.raft import Configuration, LevelDBStore, RaftCore, Role, Server, bootstrap
from mysqlraft.raft.entry import payload_checksum
from mysqlraft.raft.messages import Proposal

BATCH = 512
KEEP = 100_000
COMPACT_EVERY = 50_000
SWEEP_ENTRIES = 2000
PAYLOAD = bytes(100)
ALONE = Configuration([Server(1, "site1", "127.0.0.1:7450")])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--entries", type=int, default=10_000_000, help="how many to append (10,000,000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mysqlraft-growth-") as directory:
        store = LevelDBStore(directory, "growth", 1)
        bootstrap(store, ALONE)
        core = _leader(store)
        tenth = args.entries // 10
        first, cpu_first = _run(core, store, tenth)
        rss_first, disk_first, (core, store, start_first) = _memory(), _disk(directory), _restart(store, directory)
        for _ in range(8):
            _run(core, store, tenth)
        last, cpu_last = _run(core, store, tenth)
        rss_last, disk_last, (core, store, start_last) = _memory(), _disk(directory), _restart(store, directory)
        store.close()
    publish(
        args,
        f"{args.entries:,} entries of {len(PAYLOAD)} bytes, compacted but for {KEEP:,}; last and first tenth",
        {
            "growth_append": Figure(last, first, "entries/s"),
            "growth_cpu": Figure(cpu_last, cpu_first, "us/entry"),
            "growth_memory": Figure(rss_last, rss_first, "MB"),
            "growth_disk": Figure(disk_last, disk_first, "MB"),
            "growth_start": Figure(start_last, start_first, "ms"),
        },
    )


def _leader(store: LevelDBStore) -> RaftCore:
    core = RaftCore(1, store, Random(1))
    while core.role is not Role.LEADER:
        core.tick()
        _write(core, store)
    return core


def _write(core: RaftCore, store: LevelDBStore) -> None:
    while (ready := core.ready()) is not None:
        if ready.write is not None:
            store.write([ready.write])
        core.advance(ready)


def _run(core: RaftCore, store: LevelDBStore, count: int) -> tuple[float, float]:
    """Append so many; how many in a second, and what each took of a processor, LevelDB's threads included, in µs."""
    checksum = payload_checksum(PAYLOAD)
    batch = [Proposal(1, 1, 1, PAYLOAD, checksum)] * BATCH
    sweeper: threading.Thread | None = None
    began, cpu, end = time.monotonic(), time.process_time(), core.log.last_index + count
    while core.log.last_index < end:
        core.propose(batch)
        _write(core, store)
        if core.log.last_index - KEEP - core.log.base.index >= COMPACT_EVERY:
            core.compact(core.log.last_index - KEEP)
            _write(core, store)
            if sweeper is None or not sweeper.is_alive():
                sweeper = threading.Thread(target=_sweep, args=[store])
                sweeper.start()
    rate, cpu = count / (time.monotonic() - began), (time.process_time() - cpu) / count * 1e6
    if sweeper is not None:
        sweeper.join()
    return rate, cpu


def _sweep(store: LevelDBStore) -> None:
    while store.sweep(SWEEP_ENTRIES):
        time.sleep(0.005)


def _restart(store: LevelDBStore, directory: str) -> tuple[RaftCore, LevelDBStore, float]:
    """Close, and start again: how many milliseconds until the core stands."""
    store.close()
    began = time.monotonic()
    store = LevelDBStore(directory, "growth", 1)
    RaftCore(1, store, Random(1))
    took = (time.monotonic() - began) * 1000
    return _leader(store), store, took


def _memory() -> float:
    """Of this process, without the database's mapped files, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def _disk(directory: str) -> float:
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
