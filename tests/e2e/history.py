"""What the log itself says: which of the writers' transactions entered the history, and how often.

Tables cannot tell a transaction that was applied twice from one that was applied once, as units are full images. The
log can: every transaction of the workload inserts one row into `shop.writes`, and that row is in its unit.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mysqlraft.binlog.tablemap import names
from mysqlraft.raft.entry import Entry
from mysqlraft.raft.leveldb_store import LevelDBStore
from mysqlraft.raft.sessions import SessionTable
from mysqlraft.replication.entry import Change, ChangeKind, Payload, PayloadKind, decode

_SLICE = 8 << 20

# An image of shop.writes: no NULLs (one byte of bitmap), site, writer and seq as INT, a text of one length byte.
_IMAGE = struct.Struct("<xiiiB")


def transactions(log: Path, cluster: str, site: int, above: int) -> Counter[tuple[int, int, int]]:
    """(site, writer, sequence) -> how often it is in the history above index `above`. The daemon must be stopped."""
    found: Counter[tuple[int, int, int]] = Counter()
    sessions = SessionTable()
    store = LevelDBStore(log, cluster, site)
    try:
        for entry in _entries(store):
            # The rule by which every site drops what was proposed twice.
            if not entry.origin or not sessions.accept(entry.origin, entry.session, entry.sequence):
                continue
            if entry.index > above:
                found.update(_writes(decode(entry.payload)))
    finally:
        store.close()
    return found


def wrong_history(history: Counter[tuple[int, int, int]], expected: dict[tuple[int, int], int]) -> list[str]:
    """What is not exactly once: empty when all is well."""
    wanted = {(site, writer, n) for (site, writer), last in expected.items() for n in range(1, last + 1)}
    wrong = [f"{which} is in the history {times} times" for which, times in history.items() if times != 1]
    wrong.extend(f"{which} is not in the history" for which in sorted(wanted - history.keys()))
    wrong.extend(f"{which} is in the history and was never committed" for which in sorted(history.keys() - wanted))
    return wrong


def _entries(store: LevelDBStore) -> Iterator[Entry]:
    index = store.base.index + 1
    while index <= store.last_index:
        for entry in store.entries(index, store.last_index, _SLICE):
            yield entry
            index = entry.index + 1


def _writes(payload: Payload) -> Iterator[tuple[int, int, int]]:
    if payload.kind not in (PayloadKind.UNITS, PayloadKind.PART):
        return
    counted = {number for number, table in enumerate(payload.tables) if names(table) == ("shop", "writes")}
    for unit in payload.units:
        for change in unit.changes:
            if change.table in counted:
                yield from _rows(change)


def _rows(change: Change) -> Iterator[tuple[int, int, int]]:
    assert change.kind is ChangeKind.WRITE, "the workload only inserts into shop.writes"
    at = 0
    for _ in range(change.count):
        site, writer, sequence, length = _IMAGE.unpack_from(change.images, at)
        yield site, writer, sequence
        at += _IMAGE.size + length
    assert at == len(change.images)
