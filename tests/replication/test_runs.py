"""Sorted runs in files: the map that they are, whatever is merged, forgotten, refused by the disk or damaged."""

from __future__ import annotations

import errno
import os
import random
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mysqlraft.raft.configuration import Configuration, Server
from mysqlraft.replication import certify, runs
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit, decode
from mysqlraft.replication.runs import FANOUT, Memo, Runs
from mysqlraft.replication.state import ReplicationState
from tests.replication.harness import LoggedEntry


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SMALLEST", 1000)
    monkeypatch.setattr(runs, "CHUNK", 100)


def add(held: Runs, plain: dict[int, int], keys: Iterable[int], index: int) -> None:
    found = sorted(set(keys))
    held.add(array("Q", found), array("Q", [index + key % 3 for key in found]), index)
    plain.update({key: index + key % 3 for key in found})


def look(held: Runs, key: int) -> int:
    return max((run.get(key) for run in held.above(0)), default=0)


@pytest.mark.usefixtures("small")
def test_merged_runs_are_one_map(tmp_path: Path) -> None:
    rng = random.Random(1)
    held, plain = Runs(tmp_path / "runs"), dict[int, int]()
    most = 0
    for number in range(1, 200):
        few = rng.random() < 0.2
        add(held, plain, (rng.randrange(1 << 64 if few else 100_000) for _ in range(1000)), number * 10)
        held.remember(Memo(number * 10, 0, b""))
        held.tend(1000, 0)
        most = max(most, held.count)
    print(f"{len(held)} keys in {held.count} runs, {most} at most")
    assert most < 5 * FANOUT
    for key in [*rng.sample(sorted(plain), 5000), *range(1000), *(rng.randrange(1 << 64) for _ in range(1000))]:
        assert look(held, key) == plain.get(key, 0)
    # What is on disk is what the last two memos name, and what is about to become a run.
    assert len(list((tmp_path / "runs").iterdir())) <= 2 * most + 3
    again = Runs(tmp_path / "runs")
    assert next(iter(again.memos(10_000))).index == 1990
    again.settle()
    assert len(again) == len(held)
    assert all(look(again, key) == plain[key] for key in rng.sample(sorted(plain), 5000))
    again.discard()
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_merging_leaves_out_what_nobody_needs(tmp_path: Path) -> None:
    held, plain = Runs(tmp_path), dict[int, int]()
    for number in range(FANOUT):
        add(held, plain, range(number * 1000, number * 1000 + 1000), 100 + number)
    assert held.write()
    held.tend(10_000, 102)
    assert (held.count, len(held)) == (1, sum(writer >= 102 for writer in plain.values()))
    assert (look(held, 0), look(held, 3999)) == (0, plain[3999])


def test_a_directory_that_cannot_be_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs").write_text("a file")
    held, plain = Runs(tmp_path / "runs"), dict[int, int]()
    assert list(held.memos(10)) == []
    held.discard()
    add(held, plain, range(1000), 5)
    held.remember(Memo(5, 0, b""))
    assert all(look(held, key) == writer for key, writer in plain.items())
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("refuse", ["write", "fsync", "rename"])
def test_a_disk_that_is_full_costs_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refuse: str
) -> None:
    held, plain = Runs(tmp_path), dict[int, int]()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if refuse == "write":
        monkeypatch.setattr(runs._FileWriter, "add", full)
    else:
        monkeypatch.setattr(os if refuse == "fsync" else Path, refuse, full)
    for number in range(1, 10):
        add(held, plain, range(number * 1000, number * 1000 + 1000), number)
        held.remember(Memo(number, 0, b""))
        held.tend(1000, 0)
    assert all(look(held, key) == writer for key, writer in plain.items())
    assert caplog.text.count("No space left") == 1, "it is said once"
    monkeypatch.undo()
    add(held, plain, range(500), 10)
    held.remember(Memo(10, 0, b""))
    held.tend(100_000, 0)
    assert all(look(held, key) == writer for key, writer in plain.items())
    assert [memo.index for memo in Runs(tmp_path).memos(10)] == [10]


# The state with a member that is away.

TABLES = [b"\x01s\x00\x05t%04d\x00" % number for number in range(5000)]
HERE = Position("binlog.000001", 4), ("binlog.000001", 4)


class Away(list[LoggedEntry]):
    """A log in which sites 1 and 2 write to all tables at once and site 3 has been silent since its OPEN."""

    def __init__(self, entries: int, keys: int = 50) -> None:
        super().__init__()
        self.fetches = 0
        rng = random.Random(1)
        servers = [Server(site, f"site{site}", f"127.0.0.1:{7450 + site}") for site in (1, 2, 3)]
        self.append(LoggedEntry(1, 0, 0, 0, Configuration(servers).encode()))
        for site in (1, 2, 3):
            self.append(LoggedEntry(len(self) + 1, site, 1, 1, self._payload(PayloadKind.OPEN, 0)))
        for number in range(entries):
            index, site = len(self) + 1, 1 + number % 2
            packed = struct.pack(f"<{keys}Q", *(rng.randrange(1 << 64) for _ in range(keys)))
            unit = Unit(index - 3, 0, packed, [Change(0, ChangeKind.UPDATE, b"", 1, b"")])
            payload = self._payload(PayloadKind.UNITS, index - 3, tables=[TABLES[number // 2 % 5000]], units=[unit])
            self.append(LoggedEntry(index, site, 1, 2 + number // 2, payload))

    @staticmethod
    def _payload(kind: PayloadKind, base: int, **fields: Any) -> bytes:
        return Payload(kind, Flavour.MYSQL, base, *HERE, **fields).encode()

    def fetch(self, first: int, last: int) -> Iterable[LoggedEntry]:
        self.fetched = (first, last)
        self.fetches += 1
        return iter(self[first - 1 : last])


@pytest.fixture(scope="module")
def away() -> Away:
    return Away(12_000)


def test_what_every_transaction_writes_does_not_grow_with_the_tables(away: Away) -> None:
    state = ReplicationState(1, away.fetch)
    for entry in away[:100]:
        state.step(entry)
    before = len(state.dump())
    for entry in away[100:]:
        state.step(entry)
    assert sum(1 for table in state.certifier.tables if table[2]) == 5000, "each was crossed"
    print(f"{len(state.dump())} bytes with {len(state.certifier.tables)} tables that were crossed, {before} at first")
    assert len(state.dump()) < before + 50
    assert state.dump_tables() is None
    assert len(state._checkpoints) <= 64
    # The member that was away is back.
    unit = Unit(len(away), 0, b"", [])
    payload = away._payload(PayloadKind.UNITS, len(away), tables=[TABLES[0]], units=[unit])
    state.step(LoggedEntry(state.index + 1, 3, 1, 2, payload))
    tables = state.dump_tables()
    assert tables is not None
    assert state.dump_tables() is None, "once"


def test_a_start_reads_on_from_the_last_memo(away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "GENERATION", 20_000)
    monkeypatch.setattr(runs, "SMALLEST", 20_000)
    state = ReplicationState(1, away.fetch, directory=tmp_path / "certification")
    for entry in away:
        state.step(entry)
    assert len(state.certifier) == 600_000
    again = ReplicationState.load(state.dump(), 1, away.fetch, directory=tmp_path / "certification")
    first, last = away.fetched
    print(f"{last + 1 - first} of {len(away)} entries were read, {again.certifier.runs.count} runs")
    assert last + 1 - first <= 2 * 20_000 // 50 + 1
    assert again.dump() == state.dump()
    assert again.certifier.tables == state.certifier.tables
    # Without its memos the log is read from the checkpoint, a little at a time in memory, and only once.
    for path in (tmp_path / "certification").glob("memo-*"):
        path.unlink()
    rebuilt = ReplicationState.load(state.dump(), 1, away.fetch, directory=tmp_path / "certification")
    assert away.fetched[0] == 1
    fetches = away.fetches
    assert len(rebuilt.certifier._recent) + len(rebuilt.certifier._older) == 0
    assert all(isinstance(run, runs.FileRun) for run in rebuilt.certifier.runs.above(0))
    again = ReplicationState.load(state.dump(), 1, away.fetch, directory=tmp_path / "certification")
    assert again.dump() == state.dump()
    assert away.fetches == fetches, "there was nothing to be read"
    # And judges the backlog of the one that was away alike.
    keys = b"".join(payload_keys(entry) for entry in away[3000:12_000:100])
    assert again.certifier.conflicting(3, 4, keys) == state.certifier.conflicting(3, 4, keys) != []


def test_a_start_reads_nothing_that_may_have_left_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither statements that the floor has passed since the memo, nor the log from a memo before the checkpoint."""
    monkeypatch.setattr(certify, "GENERATION", 500)
    monkeypatch.setattr(runs, "SMALLEST", 500)
    log = Away(0)
    read: list[int] = []

    def fetch(first: int, last: int) -> Iterable[LoggedEntry]:
        read.append(first)
        return log.fetch(first, last)

    def restarted(before: ReplicationState) -> ReplicationState:
        directory = tmp_path / "certification"
        return ReplicationState.load(before.dump(), 1, fetch, checkpoint_every=64, directory=directory)

    state = restarted(ReplicationState(1, fetch))
    for entry in log:
        state.step(entry)
    statement = Ddl([("s", "t0001")], b"ALTER TABLE s.t0001 ADD COLUMN c INT", "", {}, 0)
    rng = random.Random(1)
    sequences = {1: 1, 2: 1, 3: 1}
    from_memos = with_statements = 0
    for number in range(1, 8000):
        site, kind, fields = 1 + number % 2, PayloadKind.UNITS, dict[str, Any]()
        if number % 50 == 0:
            kind, fields = PayloadKind.DDL, {"ddl": statement}
        else:
            site = 3 if number % 700 == 699 else site
            packed = struct.pack("<10Q", *(rng.randrange(1 << 64) for _ in range(10)))
            unit = Unit(len(log), 0, packed, [Change(0, ChangeKind.UPDATE, b"", 1, b"")])
            fields = {"tables": [TABLES[0]], "units": [unit]}
        sequences[site] += 1
        payload = Away._payload(kind, len(log), **fields)
        log.append(LoggedEntry(len(log) + 1, site, 1, sequences[site], payload))
        state.step(log[-1])
        if number % 37 == 0:
            read.clear()
            again = restarted(state)
            assert min(read, default=state.needed_from) >= state.needed_from
            assert again.dump() == state.dump()
            assert again.additions._of == state.additions._of
            with_statements += bool(state.additions._of)
            from_memos += bool(again.certifier.runs.count) and state.rebuild_from + 1 not in read
            state = again
    print(f"{from_memos} starts from memos, {with_statements} with statements above the floor")
    assert from_memos > 10
    assert with_statements > 10


def payload_keys(entry: LoggedEntry) -> bytes:
    return b"".join(unit.keys for unit in decode(entry.payload).units)
