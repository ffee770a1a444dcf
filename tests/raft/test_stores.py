"""The stores: the same promises in memory and on disk, and what a disk can do to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import plyvel
import pytest

from mysqlraft.raft import (
    ConfigurationError,
    CorruptRecord,
    Entry,
    EntryKind,
    HardState,
    LevelDBStore,
    MemoryStore,
    StoreError,
    Write,
    WrongDirectory,
    bootstrap,
)
from mysqlraft.raft.entry import HEADER_SIZE
from mysqlraft.raft.inspection import Copy
from mysqlraft.raft.leveldb_store import FORMAT_VERSION, WRITE_BUFFER_BYTES, _entry_key, _sealed
from tests.raft.cluster import chained, configuration

THREE = configuration(3)


def reopened(store: LevelDBStore) -> LevelDBStore:
    store.close()
    return LevelDBStore(store.directory, "test", 1)


def damage(directory: Path, key: bytes, change: bytes | None) -> None:
    database = plyvel.DB(str(directory / "log"))
    if change is None:
        database.delete(key, sync=True)
    else:
        database.put(key, change, sync=True)
    database.close()


@pytest.fixture(params=["memory", "leveldb"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | LevelDBStore]:
    store = MemoryStore() if request.param == "memory" else LevelDBStore(tmp_path / "raft", "test", 1)
    yield store
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LevelDBStore]:
    made = LevelDBStore(tmp_path / "raft", "test", 1)
    made.write([Write(HardState(3, 2), chained(1, 1, 3, configured=THREE))])
    yield made
    made.close()


def test_a_new_store_is_empty(any_store: MemoryStore | LevelDBStore) -> None:
    assert (any_store.last_index, any_store.base.index, any_store.commit) == (0, 0, 0)
    assert any_store.hard_state == HardState(0, 0)
    assert any_store.configurations() == []
    with pytest.raises(StoreError):
        any_store.entries(1, 1, 10)


def test_entries_are_read_back_by_bytes(any_store: MemoryStore | LevelDBStore) -> None:
    entries = chained(*[1] * 20)
    any_store.write([Write(entries=entries)])
    assert any_store.entries(1, 20, 1 << 20) == entries
    assert any_store.entries(3, 20, 1) == entries[2:3]
    assert any_store.entries(3, 20, 2 * entries[2].size) == entries[2:4]


def test_an_append_replaces_what_follows(any_store: MemoryStore | LevelDBStore) -> None:
    any_store.write([Write(entries=chained(1, 1, 1, 1, 1))])
    new = chained(1, 1, 2)
    any_store.write([Write(entries=new[2:])])
    assert any_store.last_index == 3
    assert any_store.entries(1, 3, 1 << 20) == new


def test_several_writes_in_one_batch_apply_in_order(any_store: MemoryStore | LevelDBStore) -> None:
    old, new = chained(1, 1, 1, 1), chained(1, 2)
    any_store.write([Write(HardState(1), old), Write(HardState(2, 3), new[1:]), Write(commit=1)])
    assert any_store.entries(1, 2, 1 << 20) == new
    assert (any_store.last_index, any_store.hard_state, any_store.commit) == (2, HardState(2, 3), 1)


def test_a_gap_is_refused(any_store: MemoryStore | LevelDBStore) -> None:
    with pytest.raises(StoreError, match="gap"):
        any_store.write([Write(entries=chained(1, 1, 1)[2:])])


def test_configurations_are_found_and_truncated_with_their_entries(any_store: MemoryStore | LevelDBStore) -> None:
    first = chained(1, 1, 1, configured=THREE)
    second = Entry(4, 1, EntryKind.CONFIGURATION, payload=configuration(5).encode(), previous_chain=first[-1].chain)
    any_store.write([Write(entries=[*first, second])])
    assert any_store.configurations() == [(1, THREE), (4, configuration(5))]
    any_store.write([Write(entries=chained(1, 1, 2, configured=THREE)[2:])])
    assert any_store.configurations() == [(1, THREE)]


def test_bootstrap_once_and_only_the_same_again(any_store: MemoryStore | LevelDBStore) -> None:
    assert bootstrap(any_store, THREE)
    assert not bootstrap(any_store, THREE)
    assert (any_store.last_index, any_store.hard_state) == (1, HardState(1, 0))
    with pytest.raises(ConfigurationError) as error:
        bootstrap(any_store, configuration(5))
    assert str(THREE) in str(error.value)
    assert str(configuration(5)) in str(error.value)


def test_a_site_that_joined_cannot_be_bootstrapped(any_store: MemoryStore | LevelDBStore) -> None:
    any_store.write([Write(HardState(4, 0), chained(1, 1))])
    with pytest.raises(ConfigurationError, match="received from a cluster"):
        bootstrap(any_store, THREE)


def test_memory_loses_what_was_not_synced() -> None:
    store = MemoryStore()
    store.begin([Write(HardState(1), chained(1))])
    store.begin([Write(HardState(2), chained(1, 2)[1:])])
    store.crash(survivors=1)
    assert (store.hard_state, store.last_index) == (HardState(1), 1)


# ---- the disk ----------------------------------------------------------------------------------------------------


def test_everything_is_there_after_reopening(store: LevelDBStore) -> None:
    store.write([Write(commit=2)])
    again = reopened(store)
    try:
        assert (again.last_index, again.hard_state, again.commit) == (3, HardState(3, 2), 2)
        assert again.entries(1, 3, 1 << 20) == chained(1, 1, 3, configured=THREE)
        assert again.configurations() == [(1, THREE)]
    finally:
        again.close()


def test_a_killed_process_loses_nothing_synced(tmp_path: Path) -> None:
    """The batch is written and the process gone without any goodbye."""
    program = (
        "import os, sys\n"
        "from mysqlraft.raft import LevelDBStore, HardState, Write\n"
        "from tests.raft.cluster import chained\n"
        "store = LevelDBStore(sys.argv[1], 'test', 1)\n"
        "store.write([Write(HardState(7, 1), chained(*[1] * 500))])\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    store = LevelDBStore(tmp_path, "test", 1)
    assert (store.last_index, store.hard_state) == (500, HardState(7, 1))
    store.close()


@pytest.mark.parametrize("cluster, site, text", [("other", 1, "cluster 'test'"), ("test", 2, "site 1 of cluster")])
def test_a_directory_of_another_cluster_or_site_is_refused(
    store: LevelDBStore, cluster: str, site: int, text: str
) -> None:
    store.close()
    with pytest.raises(WrongDirectory, match=text):
        LevelDBStore(store.directory, cluster, site)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_another_format_is_refused(tmp_path: Path, version: int) -> None:
    import msgpack

    LevelDBStore(tmp_path, "test", 1).close()
    damage(tmp_path, b"mformat", _sealed(msgpack.packb([version, "test", 1])))
    with pytest.raises(WrongDirectory, match=f"format version {version}; .*: run the one that wrote it, or "):
        LevelDBStore(tmp_path, "test", 1)


def test_a_foreign_leveldb_is_refused(tmp_path: Path) -> None:
    database = plyvel.DB(str(tmp_path / "log"), create_if_missing=True)
    database.put(b"a", b"b")
    database.close()
    with pytest.raises(WrongDirectory, match="not one of mysqlraft's"):
        LevelDBStore(tmp_path, "test", 1)


def test_two_daemons_cannot_share_a_directory(store: LevelDBStore) -> None:
    with pytest.raises(WrongDirectory, match=r"in use by another daemon \(process \d+\)"):
        LevelDBStore(store.directory, "test", 1)


def test_a_flipped_bit_is_found_on_read(store: LevelDBStore) -> None:
    entry = chained(1, 1, 3, configured=THREE)[1]
    flipped = bytearray(entry.record)
    flipped[-1] ^= 1
    store.close()
    damage(store.directory, _entry_key(2), bytes(flipped))
    again = LevelDBStore(store.directory, "test", 1)
    with pytest.raises(StoreError, match="entry 2 is corrupt: entry 2: payload checksum"):
        again.entries(1, 3, 1 << 20)
    again.close()


def test_a_flipped_bit_in_the_last_entry_is_found_at_start(store: LevelDBStore) -> None:
    record = bytearray(chained(1, 1, 3, configured=THREE)[2].record)
    record[30] ^= 1
    store.close()
    damage(store.directory, _entry_key(3), bytes(record))
    with pytest.raises(StoreError, match="entry 3 is corrupt: header checksum"):
        LevelDBStore(store.directory, "test", 1)


def test_a_missing_entry_is_found(store: LevelDBStore) -> None:
    store.close()
    damage(store.directory, _entry_key(2), None)
    again = LevelDBStore(store.directory, "test", 1)
    with pytest.raises(StoreError, match="entry 2 is missing"):
        again.entries(1, 3, 1 << 20)
    again.close()


def test_an_entry_in_the_wrong_place_is_found(store: LevelDBStore) -> None:
    store.close()
    damage(store.directory, _entry_key(2), chained(1, 1, 3, configured=THREE)[2].record)
    again = LevelDBStore(store.directory, "test", 1)
    with pytest.raises(StoreError, match="entry 2 is missing"):
        again.entries(2, 3, 1 << 20)
    again.close()


def test_a_damaged_vote_is_found_at_start(store: LevelDBStore) -> None:
    store.close()
    damage(store.directory, b"mhard", b"12345678" + bytes(16))
    with pytest.raises(StoreError, match="record mhard is corrupt"):
        LevelDBStore(store.directory, "test", 1)


def test_a_damaged_leveldb_is_an_error(store: LevelDBStore) -> None:
    store.close()
    log = max((store.directory / "log").glob("*.log"), key=lambda path: path.stat().st_size)
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data + bytes(100))
    with pytest.raises(StoreError, match="cannot be opened"):
        LevelDBStore(store.directory, "test", 1)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's directory with tables, a log, and a manifest that has seen several of each."""
    directory = tmp_path_factory.mktemp("grown")
    store = LevelDBStore(directory, "test", 1)
    chain = 0
    for index in range(1, 5):
        entry = Entry(index, 1, EntryKind.DATA, payload=bytes(WRITE_BUFFER_BYTES), previous_chain=chain)
        chain = entry.chain
        store.write([Write(HardState(1), [entry])])
        if index == 2:
            store = reopened(store)
    store.close()
    assert len(list((directory / "log").glob("*.ldb"))) >= 3
    return directory


@pytest.mark.parametrize("lost", ["CURRENT", "MANIFEST-*", "*.log", "*.ldb"])
def test_no_file_can_go_unnoticed(lost: str, grown: Path, tmp_path: Path) -> None:
    """LevelDB itself begins anew without CURRENT, does not miss a log, and removes what is left."""
    directory = tmp_path / "raft"
    shutil.copytree(grown, directory)
    next((directory / "log").glob(lost)).unlink()
    before = sorted(path.name for path in (directory / "log").iterdir() if not path.name.startswith("LO"))
    with pytest.raises(StoreError, match="let it rejoin as a new member"):
        LevelDBStore(directory, "test", 1)
    assert [path.name for path in sorted((directory / "log").iterdir()) if not path.name.startswith("LO")] == before
    if lost != "*.log":
        return
    with Copy(directory) as copy:
        problem = next(copy.verify(*copy.bounds()))
    assert problem is not None
    assert "is missing" in problem.problem


def test_a_manifest_that_was_cut_is_no_reason_to_go_on_with_less(grown: Path, tmp_path: Path) -> None:
    manifest = next((grown / "log").glob("MANIFEST-*"))
    whole = manifest.read_bytes()
    refused = opened = 0
    for size in (*range(0, len(whole), 3), len(whole)):
        directory = tmp_path / str(size)
        shutil.copytree(grown, directory, copy_function=os.link)
        (directory / "log" / manifest.name).unlink()
        (directory / "log" / manifest.name).write_bytes(whole[:size])
        for one in (directory / "log").glob("*.log"):  # LevelDB appends to none, but may remove it
            one.unlink()
            shutil.copy(grown / "log" / one.name, one)
        try:
            store = LevelDBStore(directory, "test", 1)
        except StoreError:
            refused += 1
        else:
            assert store.last_index == 4
            opened = size
            store.close()
        shutil.rmtree(directory)
    print(f"cut at {len(whole) // 3 + 1} places: refused {refused} times, else the log was whole")
    assert opened == len(whole)
    assert refused > 10


def test_a_full_disk_is_an_error_and_no_part_of_the_batch_is_there(tmp_path: Path) -> None:
    """The file size limit of the process stands for the disk's end."""
    program = (
        "import resource, signal, sys\n"
        "from mysqlraft.raft import LevelDBStore, HardState, StoreError, Write\n"
        "from tests.raft.cluster import chained\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = LevelDBStore(sys.argv[1], 'test', 1)\n"
        "entries = chained(*[1] * 3000)\n"
        "store.write([Write(HardState(1, 1), entries[:100])])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "try:\n"
        "    store.write([Write(HardState(2, 1), entries[100:])])\n"
        "except StoreError as error:\n"
        "    print(error)\n"
        "    assert store.last_index == 100\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "cannot be written" in done.stdout
    again = LevelDBStore(tmp_path, "test", 1)
    assert (again.last_index, again.hard_state) == (100, HardState(1, 1))
    again.close()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        LevelDBStore(tmp_path / "file" / "raft", "test", 1)


# ---- records -------------------------------------------------------------------------------------------------------


def test_a_record_is_the_entry() -> None:
    entry = Entry(5, 3, EntryKind.DATA, 2, 7, 9, b"payload", 1234)
    again = Entry.from_record(entry.record)
    assert again == entry
    assert (again.index, again.term, again.kind) == (5, 3, EntryKind.DATA)
    assert (again.origin, again.session, again.sequence, again.payload) == (2, 7, 9, b"payload")
    assert again.size == HEADER_SIZE + 7
    assert again.follows(1234)
    assert not again.follows(1235)
    with pytest.raises(AttributeError):
        entry.term = 9  # type: ignore[misc]


def test_the_layout_of_a_record_does_not_change() -> None:
    """These bytes are on disks."""
    record = Entry(5, 3, EntryKind.DATA, 2, 7, 9, b"payload", 1234).record
    assert record.hex() == RECORD


RECORD = (
    "150bd34d7e185208121eb8b753f4165532fe61f05b2d8d7b0000000000000005"
    "0000000000000003000000000000000700000000000000090000000701020000"
    "7061796c6f6164"
)


@pytest.mark.parametrize("position", range(HEADER_SIZE + 7))
def test_every_flipped_byte_of_a_record_is_found(position: int) -> None:
    record = bytearray(Entry(5, 3, EntryKind.DATA, 2, 7, 9, b"payload").record)
    record[position] ^= 0x10
    with pytest.raises(CorruptRecord):
        Entry.from_record(bytes(record))


def test_a_torn_record_is_found() -> None:
    record = Entry(5, 3, EntryKind.DATA, 2, 7, 9, b"payload").record
    for length in range(len(record)):
        with pytest.raises(CorruptRecord):
            Entry.from_record(record[:length])
