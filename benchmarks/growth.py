"""Does anything grow with the log? `python -m benchmarks.growth [--entries N | --away KEYS] [--json]`

One site's core on its real store, synced: entries of 100 bytes are proposed, committed, and compacted but for the last
100,000, in a process of its own, as in the daemon. Compared are the first and the last tenth of the run: entries in a
second, processor time, memory, and how long a start takes with the log of then. "ours" is the end, "peer" the
beginning.

``--away``: what a member that is silent costs its peers. One site's replicated state follows a log in which two others
write so many row keys, 100 a unit, to 5,000 tables; then the member that was away sends 100 older units.
Compared are the end and the first tenth again: keys judged in a second, memory, files, the bytes that every applied
transaction writes, keys of the backlog judged in a second, and a start; seconds of processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.report import Figure, publish
from mysqlraft.raft import Configuration, LevelDBStore, RaftCore, Role, Server, bootstrap
from mysqlraft.raft.entry import payload_checksum
from mysqlraft.raft.messages import Proposal
from mysqlraft.replication.entry import Change, ChangeKind, Flavour, Payload, PayloadKind, Position, Unit, decode
from mysqlraft.replication.state import ReplicationState

TABLES = 5000
UNIT_KEYS = 100
TAIL = 10_000
"""Entries of the log that a start may read at most."""
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
    parser.add_argument("--away", type=int, metavar="KEYS", help="row keys that are written while a member is away")
    args = parser.parse_args()
    if args.away:
        with tempfile.TemporaryDirectory(prefix="mysqlraft-growth-") as directory:
            away = _Away(Path(directory))
            away.write(args.away // 10)
            then = away.measure()
            away.write(args.away - args.away // 10)
            now = away.measure()
        publish(
            args,
            f"a member is away for {args.away:,} row keys in {TABLES:,} tables; then and after the first tenth",
            {name: Figure(value, then[name][0], unit) for name, (value, unit) in now.items()},
        )
        return
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


class _Away:
    """Site 1, which follows; 1 and 2 write, 3 is away."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._random = Random(1)
        self._index = self._number = 0
        self._tail: list[_Logged] = []
        self._state = ReplicationState(1, self._fetch, directory=directory)
        servers = [Server(site, f"site{site}", f"127.0.0.1:{7450 + site}") for site in (1, 2, 3)]
        self._step(0, 0, Configuration(servers).encode())
        for site in (1, 2, 3):
            self._step(site, 1, _payload(PayloadKind.OPEN, 0))
        self._rate = 0.0

    def _fetch(self, first: int, last: int) -> Iterator[_Logged]:
        return iter([entry for entry in self._tail if first <= entry.index <= last])

    def _step(self, site: int, sequence: int, payload: bytes) -> None:
        self._index += 1
        entry = _Logged(self._index, site, 1, sequence, payload)
        self._tail.append(entry)
        if len(self._tail) > 2 * TAIL:
            del self._tail[:TAIL]
        self._state.step(entry)

    def _unit(self, base: int) -> bytes:
        unit = Unit(base, 0, self._random.randbytes(8 * UNIT_KEYS), [Change(0, ChangeKind.UPDATE, b"", 1, b"")])
        table = b"\x01s\x00\x05t%04d\x00" % (self._number // 2 % TABLES)
        return _payload(PayloadKind.UNITS, base, tables=[table], units=[unit])

    def write(self, keys: int) -> None:
        judging = 0.0
        for _ in range(keys // UNIT_KEYS):
            payload = self._unit(max(0, self._index - 2))
            began = time.process_time()
            self._step(1 + self._number % 2, 2 + self._number // 2, payload)
            judging += time.process_time() - began
            self._number += 1
        self._rate = keys / judging

    def measure(self) -> dict[str, tuple[float, str]]:
        memory, state = _memory(), self._state.dump()
        tables = self._state.dump_tables()
        assert tables is None, "the checkpoint has not moved"
        units = [decode(self._unit(4)).units[0] for _ in range(100)]
        began = time.process_time()
        for unit in units:
            self._state.certifier.judge(3, 4, unit.keys, [("s", "t0000")])
        backlog = 100 * UNIT_KEYS / (time.process_time() - began)
        disk = _disk(str(self._directory))
        began = time.process_time()
        again = ReplicationState.load(state, 1, self._fetch, directory=self._directory)
        start = (time.process_time() - began) * 1000
        assert again.digest == self._state.digest
        self._state = again
        return {
            "away_judged": (self._rate, "keys/s"),
            "away_memory": (memory, "MB"),
            "away_disk": (disk, "MB"),
            "away_state": (len(state), "bytes"),
            "away_backlog": (backlog, "keys/s"),
            "away_start": (start, "ms"),
        }


class _Logged(NamedTuple):
    index: int  # type: ignore[assignment]  # shadows tuple.index
    origin: int
    session: int
    sequence: int
    payload: bytes


def _payload(kind: PayloadKind, base: int, **fields: Any) -> bytes:
    here = Position("binlog.000001", 4), ("binlog.000001", 4)
    return Payload(kind, Flavour.MYSQL, base, *here, **fields).encode()


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
