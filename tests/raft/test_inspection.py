"""Reading a log that may be in use, or damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import plyvel
import pytest

from mysqlraft.raft import Entry, EntryKind, HardState, LevelDBStore, StoreError, Write
from mysqlraft.raft.inspection import Copy, Finding
from mysqlraft.raft.leveldb_store import FORMAT_VERSION, _configuration_key, _entry_key
from mysqlraft.raft.store import Base, Rebase
from tests.raft.cluster import chained, configuration

THREE = configuration(3)
ENTRIES = chained(1, 1, 2, 2, 3, 3, configured=THREE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LevelDBStore]:
    made = LevelDBStore(tmp_path / "site", "test", 1)
    made.write([Write(HardState(3), ENTRIES, commit=5)])
    yield made
    made.close()


def findings(directory: Path, first: int = 1, last: int | None = None) -> list[Finding]:
    with Copy(directory) as copy:
        found = list(copy.verify(first, copy.bounds()[1] if last is None else last))
    assert list(directory.glob(".reading-*")) == [], "the copy is gone"
    return [finding for finding in found if finding is not None]


def damaged(store: LevelDBStore, key: bytes, value: bytes | None) -> Path:
    store.close()
    database = plyvel.DB(str(store.directory / "log"))
    if value is None:
        database.delete(key)
    else:
        database.put(key, value)
    database.close()
    return store.directory


def flipped(entry: Entry, position: int) -> bytes:
    record = bytearray(entry.record)
    record[position] ^= 1
    return bytes(record)


def in_tables(store: LevelDBStore) -> Path:
    """All of a closed store in LevelDB's tables, none of it in its log; the one with the entries."""
    store.close()
    database = plyvel.DB(str(store.directory / "log"), compression=None)
    database.compact_range()
    database.close()
    return max(store.directory.glob("log/*.ldb"), key=lambda table: table.stat().st_size)


def test_a_damaged_key_hides_no_sound_entry(tmp_path: Path) -> None:
    store = LevelDBStore(tmp_path, "test", 1)
    chain, entries = 0, []
    for index in range(1, 10):
        entries.append(Entry(index, 1, EntryKind.DATA, payload=bytes(5000), previous_chain=chain))
        chain = entries[-1].chain
    store.write([Write(HardState(1), entries)])
    table = in_tables(store)
    with table.open("r+b") as file:
        file.seek(table.read_bytes().index(_entry_key(4)) + 5)
        file.write(b"\1")  # entry 65540, before entry 5: LevelDB looks for none of the others behind it
    assert findings(tmp_path, 1, 9) == [Finding(4, "is missing")]


def test_a_copy_is_gone_whatever_ends_the_reading(store: LevelDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Copy, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt), Copy(store.directory):
            pass
    assert list(store.directory.glob(".reading-*")) == []


def test_copies_of_who_was_killed_are_removed_by_the_next(store: LevelDBStore) -> None:
    left, young = store.directory / ".reading-left", store.directory / ".reading-young"
    with Copy(store.directory) as copy:
        (in_use,) = store.directory.glob(".reading-*")
        left.mkdir()
        (left / "000003.log").write_bytes(b"x")
        young.mkdir()
        for old in (left, in_use):
            os.utime(old, (1, 1))
        with Copy(store.directory):
            assert not left.exists()
            assert in_use.exists()
            assert young.exists()
        assert copy.bounds() == (1, 6)


def test_a_running_sites_log_is_read(store: LevelDBStore) -> None:
    with Copy(store.directory) as copy:
        assert copy.owner() == (FORMAT_VERSION, "test", 1)
        assert copy.bounds() == (1, 6)
        assert list(copy.entries(2, 3)) == [(2, ENTRIES[1]), (3, ENTRIES[2])]
        assert list(copy.verify(1, 6)) == [None] * 6
    store.write([Write(entries=[Entry(7, 3, payload=b"x", kind=ENTRIES[1].kind, previous_chain=ENTRIES[5].chain)])])
    assert findings(store.directory) == []
    assert findings(store.directory, 4, 7) == []


def test_a_log_that_is_being_written_and_compacted_is_read_whole(store: LevelDBStore) -> None:
    """Tables come, are merged and go under the reader's hands, all the time, and the writer's stay whole."""
    stop = threading.Event()
    written = 6

    def write() -> None:
        nonlocal written
        chain = ENTRIES[-1].chain
        while not stop.is_set():
            batch = []
            for index in range(written + 1, written + 11):
                entry = Entry(index, 3, ENTRIES[1].kind, payload=bytes(30_000), previous_chain=chain)
                chain = entry.chain
                batch.append(entry)
            store.write([Write(entries=batch)])
            written += 10
            stop.wait(0.02)  # a copy is given up when the files change while it is made, fifty times in a row

    writer = threading.Thread(target=write)
    writer.start()
    try:
        tables = store.directory / "log"
        copies = 0
        while copies < 10 or len(list(tables.glob("*.ldb"))) < 3:
            copies += 1
            before = written
            with Copy(store.directory) as copy:
                last = copy.bounds()[1]
                assert last >= before
                assert list(copy.verify(max(1, last - 300), last)).count(None) == last - max(1, last - 300) + 1
    finally:
        stop.set()
        writer.join()
    assert findings(store.directory) == []


def test_a_flipped_payload(store: LevelDBStore) -> None:
    assert findings(damaged(store, _entry_key(3), flipped(ENTRIES[2], -1))) == [
        Finding(3, "is corrupt: entry 3: payload checksum mismatch")
    ]


def test_a_flipped_header(store: LevelDBStore) -> None:
    assert findings(damaged(store, _entry_key(3), flipped(ENTRIES[2], 30))) == [
        Finding(3, "is corrupt: header checksum mismatch")
    ]


def test_a_torn_record(store: LevelDBStore) -> None:
    (finding,) = findings(damaged(store, _entry_key(6), ENTRIES[5].record[:40]))
    assert finding.index == 6
    assert "is shorter than its header" in finding.problem


def test_a_missing_entry(store: LevelDBStore) -> None:
    assert findings(damaged(store, _entry_key(4), None)) == [Finding(4, "is missing")]


def test_a_missing_beginning(store: LevelDBStore) -> None:
    directory = damaged(store, _entry_key(1), None)
    with Copy(directory) as copy:
        assert copy.bounds() == (1, 6)
    assert findings(directory)[0] == Finding(1, "is missing")


@pytest.mark.parametrize("swept", [False, True])
def test_a_log_of_which_all_is_compacted_is_sound(store: LevelDBStore, swept: bool) -> None:
    base = Base(6, 3, ENTRIES[5].chain)
    store.write([Write(rebase=Rebase(base, (1, THREE), True)), Write(commit=6)])
    while swept and store.sweep(2):
        pass
    with Copy(store.directory) as copy:
        assert copy.bounds() == (7, 6)
        assert list(copy.verify(*copy.bounds())) == []


def test_a_log_that_a_snapshot_has_replaced_is_sound(store: LevelDBStore) -> None:
    store.write([Write(rebase=Rebase(Base(9, 3, 1), (1, THREE), False)), Write(commit=9)])
    with Copy(store.directory) as copy:
        assert copy.bounds() == (10, 9)
        assert list(copy.verify(*copy.bounds())) == []


def test_an_entry_of_another_log(store: LevelDBStore) -> None:
    """Sound in itself, and not the one that was written there."""
    other = Entry(4, 2, ENTRIES[3].kind, payload=b"other", previous_chain=ENTRIES[2].chain)
    found = findings(damaged(store, _entry_key(4), other.record))
    assert found == [Finding(5, "does not continue entry 4: the running checksum differs")]
    assert findings(store.directory, 5) == found, "the entry before the first one is looked at, too"
    assert findings(store.directory, 6) == []


def test_a_term_that_goes_back(store: LevelDBStore) -> None:
    other = Entry(4, 1, ENTRIES[3].kind, payload=b"4@2", previous_chain=ENTRIES[2].chain)
    assert Finding(4, "is of term 1, after one of term 2") in findings(damaged(store, _entry_key(4), other.record))


def test_an_entry_in_the_wrong_place(store: LevelDBStore) -> None:
    found = findings(damaged(store, _entry_key(4), ENTRIES[4].record))
    assert found == [Finding(4, "is missing: entry 5 is in its place")]


def test_a_configuration_kept_wrongly(store: LevelDBStore) -> None:
    found = findings(damaged(store, _configuration_key(1), configuration(2).encode()))
    assert found == [Finding(1, "is a configuration, and the copy of it that is read at start differs")]


def test_a_damaged_value_beside_the_log(store: LevelDBStore) -> None:
    assert findings(damaged(store, b"mhard", bytes(24))) == [Finding(0, "record mhard is corrupt")]


def test_a_log_that_ends_before_what_was_committed(store: LevelDBStore) -> None:
    assert findings(damaged(store, _entry_key(6), None)) == []
    assert findings(damaged(store, _entry_key(5), None)) == [
        Finding(0, "everything up to 5 was committed, and the log ends at 4")
    ]


def test_a_damaged_leveldb_log(store: LevelDBStore) -> None:
    store.close()
    path = max((store.directory / "log").glob("*.log"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data + bytes(100))
    first, *_ = findings(store.directory, 1, 6)
    assert first.problem.startswith("LevelDB finds its files damaged, and entries may be missing")


def damaged_table(store: LevelDBStore, wanted: bytes, offset: int) -> Path:
    """Flips bits in the table file, `offset` from where `wanted` is."""
    store._db.compact_range()
    store.close()
    (table,) = (store.directory / "log").glob("*.ldb")
    data = bytearray(table.read_bytes())
    data[data.index(wanted) + offset] ^= 0xFF
    table.write_bytes(data)
    return store.directory


def test_a_record_damaged_in_its_table(store: LevelDBStore) -> None:
    directory = damaged_table(store, ENTRIES[2].record[:30], 20)
    assert findings(directory) == [Finding(3, "is corrupt: header checksum mismatch")]


def test_a_table_whose_structure_is_damaged(store: LevelDBStore) -> None:
    directory = damaged_table(store, ENTRIES[2].record[:30], -2)
    found = findings(directory, 1, 6)
    assert found
    assert found[0].index == 3
    with pytest.raises(StoreError):
        LevelDBStore(directory, "test", 1)


def test_a_table_that_cannot_be_read_at_all(store: LevelDBStore) -> None:
    store._db.compact_range()
    store.close()
    (table,) = (store.directory / "log").glob("*.ldb")
    table.write_bytes(table.read_bytes()[:-8] + bytes(8))
    with Copy(store.directory) as copy:
        found = [finding.problem for finding in copy.verify(*copy.bounds()) if finding is not None]
        assert found[0].startswith("what is kept beside the log cannot be read")
        with pytest.raises(StoreError, match="mformat"):
            copy.owner()


def test_a_copy_does_not_fill_the_disk(store: LevelDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mysqlraft.raft.inspection.SPARE_BYTES", 1 << 60)
    with pytest.raises(StoreError, match="there is no room in"):
        findings(store.directory)
    assert list(store.directory.glob(".reading-*")) == []


def test_a_directory_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no log"), Copy(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_to_is_copied(store: LevelDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile
    from typing import Any

    made = tempfile.mkdtemp

    def refused(prefix: str, dir: Any = None) -> str:
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return made(prefix=prefix)

    monkeypatch.setattr("mysqlraft.raft.inspection.tempfile.mkdtemp", refused)
    assert findings(store.directory) == []
