"""Compaction on disk and the snapshot store, and crashes in the middle of either."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plyvel
import pytest

from mysqlraft.raft import (
    Entry,
    EntryKind,
    FileSnapshotStore,
    HardState,
    LevelDBStore,
    MemorySnapshotStore,
    MemoryStore,
    StoreError,
    Write,
)
from mysqlraft.raft.snapshot import Snapshot, SnapshotWork, WorkKind
from mysqlraft.raft.store import Base, Rebase
from tests.raft.cluster import chained, configuration

THREE, FIVE = configuration(3), configuration(5)
SNAPSHOTS = MemorySnapshotStore | FileSnapshotStore


def base_at(entries: list[Entry], index: int) -> Base:
    entry = entries[index - 1]
    return Base(index, entry.term, entry.chain)


def keys(directory: Path, prefix: bytes = b"r") -> list[int]:
    """The indices that LevelDB still holds. The store has to be closed."""
    database = plyvel.DB(str(directory / "log"))
    found = [int.from_bytes(key[1:], "big") for key in database.iterator(prefix=prefix, include_value=False)]
    database.close()
    return found


@pytest.fixture(params=["memory", "leveldb"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | LevelDBStore]:
    store = MemoryStore() if request.param == "memory" else LevelDBStore(tmp_path / "raft", "test", 1)
    yield store
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LevelDBStore]:
    made = LevelDBStore(tmp_path / "raft", "test", 1)
    yield made
    made.close()


def reopened(store: Any) -> Any:
    if isinstance(store, MemoryStore):
        return store
    store.close()
    return LevelDBStore(store.directory, "test", 1)


# ---- the log -----------------------------------------------------------------------------------------------------


def test_compaction_keeps_what_follows(any_store: MemoryStore | LevelDBStore) -> None:
    entries = chained(1, 1, 2, 2, 3, configured=THREE)
    any_store.write([Write(HardState(3), entries)])
    any_store.write([Write(rebase=Rebase(base_at(entries, 3), (1, THREE), True))])
    again = reopened(any_store)
    assert (again.base, again.last_index) == (base_at(entries, 3), 5)
    assert again.entries(4, 5, 1 << 20) == entries[3:]
    assert again.configurations() == [(1, THREE)]
    with pytest.raises(StoreError):
        again.write([Write(entries=entries[2:3])])
    again = reopened(again) if isinstance(again, LevelDBStore) else again
    again.write([Write(entries=chained(1, 1, 2, 2, 3, 3, configured=THREE)[5:])])
    assert again.last_index == 6
    again.close()


def test_everything_can_be_compacted(any_store: MemoryStore | LevelDBStore) -> None:
    entries = chained(1, 1, 2, configured=THREE)
    any_store.write([Write(HardState(3), entries)])
    any_store.write([Write(rebase=Rebase(base_at(entries, 3), (1, THREE), True))])
    again = reopened(any_store)
    assert (again.base.index, again.last_index) == (3, 3)
    while again.sweep(1):
        pass
    again = reopened(again)
    assert (again.base.index, again.last_index) == (3, 3)
    again.write([Write(entries=chained(1, 1, 2, 3, configured=THREE)[3:])])
    assert again.last_index == 4
    again.close()


def test_a_snapshot_of_another_log_takes_its_place(any_store: MemoryStore | LevelDBStore) -> None:
    any_store.write([Write(HardState(2), chained(1, 1, 2, 2, 2, configured=THREE))])
    after = Entry(5, 7, EntryKind.DATA, payload=b"x", previous_chain=99)
    any_store.write([Write(HardState(7), [after], rebase=Rebase(Base(4, 6, 99), (3, FIVE), False))])
    again = reopened(any_store)
    assert (again.base, again.last_index, again.hard_state) == (Base(4, 6, 99), 5, HardState(7))
    assert again.entries(5, 5, 1) == [after]
    assert again.configurations() == [(3, FIVE)]
    again.close()


def test_a_snapshot_beyond_the_log(any_store: MemoryStore | LevelDBStore) -> None:
    any_store.write([Write(HardState(2), chained(1, 1, configured=THREE))])
    any_store.write([Write(HardState(6), rebase=Rebase(Base(1000, 6, 99), (900, FIVE), False))])
    while any_store.sweep(10):
        pass
    again = reopened(any_store)
    assert (again.base.index, again.last_index) == (1000, 1000)
    assert again.configurations() == [(900, FIVE)]
    again.close()


def test_configurations_of_one_batch(any_store: MemoryStore | LevelDBStore) -> None:
    """Appended, compacted over and replaced in the same batch."""
    first = chained(1, 1, configured=THREE)
    second = Entry(3, 1, EntryKind.CONFIGURATION, payload=FIVE.encode(), previous_chain=first[-1].chain)
    third = Entry(4, 1, EntryKind.CONFIGURATION, payload=THREE.encode(), previous_chain=second.chain)
    any_store.write(
        [
            Write(HardState(1), [*first, second, third]),
            Write(rebase=Rebase(Base(3, 1, second.chain), (3, FIVE), True)),
        ]
    )
    again = reopened(any_store)
    assert again.configurations() == [(3, FIVE), (4, THREE)]
    again.close()


def test_compaction_writes_little_and_sweeps_in_slices(store: LevelDBStore) -> None:
    entries = chained(*[1] * 100, configured=THREE)
    store.write([Write(HardState(1), entries)])
    store.write([Write(rebase=Rebase(base_at(entries, 70), (1, THREE), True))])
    store.close()
    assert keys(store.directory) == list(range(1, 101))
    again = LevelDBStore(store.directory, "test", 1)
    assert again.sweep(30)
    again.close()
    assert keys(store.directory) == list(range(31, 101))
    again = LevelDBStore(store.directory, "test", 1)
    rounds = 1
    while again.sweep(30):
        rounds += 1
    assert rounds == 2
    assert again.entries(71, 100, 1 << 20) == entries[70:]
    again.close()
    assert keys(store.directory) == list(range(71, 101))
    assert keys(store.directory, b"c") == [1]


@pytest.mark.parametrize("swept", [0, 30, 70])
def test_a_crash_in_the_middle_of_compaction_leaves_the_whole_log_after_the_base(
    store: LevelDBStore, swept: int
) -> None:
    """The base is durable before the first entry goes; what is left of the others is not the log's any more."""
    entries = chained(*[1] * 100, configured=THREE)
    store.write([Write(HardState(1), entries)])
    store.write([Write(rebase=Rebase(base_at(entries, 70), (1, THREE), True))])
    if swept:
        store.sweep(swept)
    copy = store.directory.with_name("copy")
    shutil.copytree(store.directory, copy)
    (copy / "log" / "LOCK").unlink()
    again = LevelDBStore(copy, "test", 1)
    assert (again.base.index, again.last_index) == (70, 100)
    assert again.entries(71, 100, 1 << 20) == entries[70:]
    while again.sweep(50):
        pass
    again.close()
    assert keys(copy) == list(range(71, 101))


def test_a_damaged_base_is_found_at_start(store: LevelDBStore) -> None:
    entries = chained(1, 1, configured=THREE)
    store.write([Write(HardState(1), entries, rebase=None)])
    store.write([Write(rebase=Rebase(base_at(entries, 1), (1, THREE), True))])
    store.close()
    database = plyvel.DB(str(store.directory / "log"))
    value = bytearray(database.get(b"mbase"))
    value[-1] ^= 1
    database.put(b"mbase", bytes(value))
    database.close()
    with pytest.raises(StoreError, match="record mbase is corrupt"):
        LevelDBStore(store.directory, "test", 1)


# ---- snapshots ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "files"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SNAPSHOTS]:
    made: SNAPSHOTS = MemorySnapshotStore() if request.param == "memory" else FileSnapshotStore(tmp_path / "snapshots")
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileSnapshotStore]:
    made = FileSnapshotStore(tmp_path / "snapshots")
    yield made
    made.close()


def restarted(store: SNAPSHOTS) -> SNAPSHOTS:
    if isinstance(store, MemorySnapshotStore):
        return store
    store.close()
    return FileSnapshotStore(store.directory)


def save(store: SNAPSHOTS, index: int, data: bytes) -> Snapshot:
    return store.save(Base(index, 2, 3), 1, THREE, [data[:3], data[3:]])


def receive(store: SNAPSHOTS, snapshot: Snapshot, data: bytes, offset: int = 0) -> int:
    return store.perform(SnapshotWork(WorkKind.WRITE, snapshot, offset, data))


def test_a_saved_snapshot_is_there_after_a_restart(snapshots: SNAPSHOTS) -> None:
    assert snapshots.latest() is None
    save(snapshots, 5, b"older")
    made = save(snapshots, 9, b"the state")
    again = restarted(snapshots)
    assert again.latest() == made
    assert b"".join(again.data(made)) == b"the state"
    assert again.read(made, 4, 3) == b"sta"
    again.close()


def test_an_arriving_snapshot_goes_on_after_a_restart(snapshots: SNAPSHOTS) -> None:
    other = MemorySnapshotStore()
    made = save(other, 9, b"the state")
    assert snapshots.perform(SnapshotWork(WorkKind.OPEN, made)) == 0
    assert receive(snapshots, made, b"the ") == 4
    again = restarted(snapshots)
    assert again.latest() is None
    assert again.perform(SnapshotWork(WorkKind.OPEN, made)) == 4
    assert receive(again, made, b"state", 4) == 9
    assert again.perform(SnapshotWork(WorkKind.FINISH, made)) == 1
    again = restarted(again)
    assert again.latest() == made
    assert b"".join(again.data(made)) == b"the state"
    again.close()


def test_an_arriving_snapshot_that_is_damaged_is_gone(snapshots: SNAPSHOTS) -> None:
    made = save(MemorySnapshotStore(), 9, b"the state")
    snapshots.perform(SnapshotWork(WorkKind.OPEN, made))
    receive(snapshots, made, b"the stale")
    assert snapshots.perform(SnapshotWork(WorkKind.FINISH, made)) == 0
    assert snapshots.latest() is None
    assert snapshots.perform(SnapshotWork(WorkKind.OPEN, made)) == 0


def test_another_arriving_snapshot_begins_empty(snapshots: SNAPSHOTS) -> None:
    other = MemorySnapshotStore()
    first, second = save(other, 9, b"the state"), save(other, 12, b"a later state")
    snapshots.perform(SnapshotWork(WorkKind.OPEN, first))
    receive(snapshots, first, b"the ")
    assert snapshots.perform(SnapshotWork(WorkKind.OPEN, second)) == 0
    assert receive(snapshots, first, b"state", 4) == 0  # of the one before: too late
    assert receive(snapshots, second, b"a later state") == 13
    assert snapshots.perform(SnapshotWork(WorkKind.FINISH, second)) == 1
    assert snapshots.latest() == second


def test_a_dropped_snapshot_leaves_nothing(files: FileSnapshotStore) -> None:
    made = save(MemorySnapshotStore(), 9, b"the state")
    files.perform(SnapshotWork(WorkKind.OPEN, made))
    receive(files, made, b"the ")
    files.perform(SnapshotWork(WorkKind.DROP, made))
    assert list(files.directory.iterdir()) == []


def test_the_same_snapshot_made_and_received_is_one(files: FileSnapshotStore) -> None:
    made = save(files, 9, b"the state")
    files.perform(SnapshotWork(WorkKind.OPEN, made))
    receive(files, made, b"the state")
    assert files.perform(SnapshotWork(WorkKind.FINISH, made)) == 1
    assert save(files, 9, b"the state") == made
    assert len(list(files.directory.iterdir())) == 1


def test_old_snapshots_go_but_for_those_in_use(snapshots: SNAPSHOTS) -> None:
    made = [save(snapshots, index, b"state %d" % index) for index in (3, 5, 7, 9)]
    snapshots.reap([made[0]])
    for index, snapshot in enumerate(made):
        if index == 1:
            with pytest.raises(StoreError):
                snapshots.read(snapshot, 0, 1)
        else:
            assert snapshots.read(snapshot, 0, 5) == b"state"


class _Crash(BaseException):
    pass


def crash_at(patch: pytest.MonkeyPatch, count: int) -> None:
    """The process ends at the `count`-th step that touches the disk's structure or waits for it."""
    left = [count]

    def crashing(real: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise _Crash
            return real(*arguments, **options)

        return step

    patch.setattr(os, "fsync", crashing(os.fsync))
    patch.setattr(Path, "rename", crashing(Path.rename))
    patch.setattr(Path, "mkdir", crashing(Path.mkdir))
    patch.setattr(shutil, "rmtree", crashing(shutil.rmtree))


@pytest.mark.parametrize("how", ["save", "receive", "reap"])
def test_a_crash_at_any_step_leaves_the_old_snapshot_or_the_new_one_too(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = set()
    for count in range(40):
        directory = tmp_path / str(count)
        files = FileSnapshotStore(directory)
        save(files, 3, b"oldest")
        old = save(files, 5, b"old state")
        new = save(MemorySnapshotStore(), 9, b"new state")
        with monkeypatch.context() as patch:
            crash_at(patch, count)
            try:
                if how == "save":
                    save(files, 9, b"new state")
                elif how == "receive":
                    files.perform(SnapshotWork(WorkKind.OPEN, new))
                    receive(files, new, b"new state")
                    files.perform(SnapshotWork(WorkKind.FINISH, new))
                else:
                    save(files, 9, b"new state")
                    files.reap([])
                finished = True
            except _Crash:
                finished = False
        files.close()
        again = FileSnapshotStore(directory)
        latest = again.latest()
        assert latest in (old, new)
        assert b"".join(again.data(latest)) == (b"old state" if latest == old else b"new state")
        assert {path.name for path in directory.iterdir()} <= {
            "incoming",
            *(path.name for path in again._known.values()),
        }
        assert latest == new or not finished
        if how == "receive" and latest == old:
            again.perform(SnapshotWork(WorkKind.OPEN, new))
            receive(again, new, b"new state")
            size = again.perform(SnapshotWork(WorkKind.OPEN, new))
            assert receive(again, new, b"new state"[size:], size) == 9
            assert again.perform(SnapshotWork(WorkKind.FINISH, new)) == 1
        again.close()
        outcomes.add((latest == new, finished))
        if finished:
            break
    assert outcomes >= {(False, False), (True, True)}


@pytest.mark.parametrize("part", ["meta", "data"])
def test_a_damaged_snapshot_is_an_error_that_names_it(files: FileSnapshotStore, part: str) -> None:
    made = save(files, 9, b"the state")
    (directory,) = files.directory.iterdir()
    content = bytearray((directory / part).read_bytes())
    content[-1] ^= 1
    (directory / part).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{directory} is damaged: .*Remove that directory"):
        list(FileSnapshotStore(files.directory).data(made))


def test_a_snapshot_with_a_torn_file_is_an_error(files: FileSnapshotStore) -> None:
    save(files, 9, b"the state")
    (directory,) = files.directory.iterdir()
    (directory / "data").write_bytes(b"the st")
    with pytest.raises(StoreError, match="is damaged"):
        FileSnapshotStore(files.directory)


def test_a_full_disk_is_an_error_and_the_old_snapshot_stays(
    files: FileSnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(files, 5, b"old state")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            save(files, 9, b"new state")
    assert FileSnapshotStore(files.directory).latest() == old
