"""Reading a site's log without its daemon: what is in it, and whether all of it is sound.

LevelDB lets one process have a database open, and opening it writes. So nothing here ever opens a site's own: `Copy`
makes a copy beside it, whether the daemon runs or not and whether the directory is sound or not. What the daemon
writes meanwhile is at most missing from the end.

Hard links in place of the table files' copies would cost no time and space, and destroy logs: a database that is opened
takes the next file number that its manifest knows, and the running one may already be writing a file of that number.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgpack
import plyvel
from xxhash import xxh3_64_intdigest

from mysqlraft.raft.entry import CorruptRecord, Entry, EntryKind
from mysqlraft.raft.leveldb_files import missing_file
from mysqlraft.raft.leveldb_store import error_text
from mysqlraft.raft.store import StoreError

_U64 = struct.Struct(">Q")
_ATTEMPTS = 50
_PAUSE_SECONDS = 0.02
_COPY = ".reading-"
_SETTLED_SECONDS = 60.0
"""A copy that is younger may have been made, and not locked yet."""
SPARE_BYTES = 256 << 20
"""The daemon's disk is never filled up to less than this."""
REMEDY = "remove the site from the cluster, empty the directory and let it rejoin as a new member; never cut its log"


class Finding(NamedTuple):
    """Something that is not as it was written."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    """Of the entry; 0 for what is beside the log."""
    problem: str


class Damaged(StoreError):
    """So much that nothing of it can be read."""


class Copy:
    """A log as it is now, to be read; a context manager. Raises StoreError."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the site's `data_dir`."""
        self._source = directory / "log"
        if not self._source.is_dir():
            raise StoreError(f"{directory} holds no log")
        _remove_left_over(directory)
        self._home = _beside(directory)
        self._lock = os.open(self._home, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # while somebody reads it: see _remove_left_over
        self._database: Any = None
        self._damage: str | None = None

    def __enter__(self) -> Self:
        try:
            self._take()
            # In these cases the daemon would not start. Here, what can still be read is to be read.
            if (missing := missing_file(self._home)) is not None:
                self._damage = f"LevelDB's file log/{missing} is missing, and entries with it"
            try:
                self._database = plyvel.DB(str(self._home), create_if_missing=False, paranoid_checks=True)
            except plyvel.CorruptionError as error:
                said = self._said(error)
                self._damage = f"LevelDB finds its files damaged, and entries may be missing: {said}"
                for old in self._home.iterdir():
                    old.unlink()
                self._take()
                self._database = plyvel.DB(str(self._home), create_if_missing=False)
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, (OSError, plyvel.Error)):
                raise
            if self._damage is not None:
                raise Damaged(f"{self._source} cannot be read: {self._damage}; {REMEDY}") from None
            raise StoreError(f"{self._source} cannot be read: {self._said(error)}") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._database is not None:
            self._database.close()
        os.close(self._lock)
        shutil.rmtree(self._home, ignore_errors=True)

    def _said(self, error: Exception) -> str:
        return error_text(error).replace(str(self._home), str(self._source))

    def _take(self) -> None:
        """Copy again and again what has changed, until nothing was made or removed meanwhile: then what the manifest
        names is here. Tables never change, so that each time there is less to do."""
        have: dict[str, tuple[int, int]] = {}
        for _ in range(_ATTEMPTS):
            before = self._listing()
            try:
                for name in before:
                    state = (self._source / name).stat()
                    seen = (state.st_size, state.st_mtime_ns)
                    if have.get(name) != seen:
                        self._copy(name, state.st_size)
                        have[name] = seen
            except FileNotFoundError:
                continue  # LevelDB has just done away with it
            if self._listing() == before:
                for gone in have.keys() - set(before):
                    (self._home / gone).unlink()
                return
            time.sleep(_PAUSE_SECONDS)
        raise OSError(f"it changed {_ATTEMPTS} times while it was copied; try again when less is written")

    def _listing(self) -> list[str]:
        """The manifest first: tables and logs that are written after it are no harm, and what it names must be
        there."""
        names = [name for name in os.listdir(self._source) if name != "LOCK" and not name.startswith("LOG")]
        return sorted(names, key=lambda name: (not name.startswith(("CURRENT", "MANIFEST")), name))

    def _copy(self, name: str, size: int) -> None:
        if shutil.disk_usage(self._home).free < size + SPARE_BYTES:
            whole = sum(file.stat().st_size for file in self._source.iterdir())
            raise OSError(
                f"there is no room in {self._home.parent} for a copy: it takes {(whole >> 20) + 1} MiB, and "
                f"{SPARE_BYTES >> 20} MiB stay free for the daemon"
            )
        shutil.copyfile(self._source / name, self._home / name)

    def bounds(self) -> tuple[int, int]:
        """The first and the last index; the last is the smaller one if the log is empty."""
        base = self.base()[0]
        with self._database.iterator(start=b"r", stop=b"s", include_value=False, reverse=True) as keys:
            last = next(keys, None)
        return base + 1, base if last is None else max(base, _U64.unpack(last[1:])[0])

    def base(self) -> tuple[int, int, int]:
        """Index, term and chain of the entry before the first one; zeros if there is none, or it cannot be read."""
        value = self._value(b"mbase")
        return struct.unpack(">QQQ", value[8:]) if value is not None and len(value) == 32 else (0, 0, 0)

    def entries(self, first: int, last: int) -> Iterator[tuple[int, Entry | str]]:
        """Index, and the entry or why there is none, for every index from `first` to `last`."""
        expected = first
        # Without LevelDB's checksums, which are those of whole blocks: each record's own tells which one it is.
        with self._database.raw_iterator() as raw:
            try:
                raw.seek(b"r" + _U64.pack(first))
                while raw.valid() and (key := raw.key()) <= b"r" + _U64.pack(last):
                    index = _U64.unpack(key[1:])[0]
                    yield from self._passed_over(range(expected, index))
                    yield index, _decoded(index, raw.value())
                    expected = index + 1
                    raw.next()
            except plyvel.Error as error:
                yield expected, f"cannot be read, nor what follows: {error}"
                return
        yield from self._passed_over(range(expected, last + 1))

    def _passed_over(self, absent: range) -> Iterator[tuple[int, Entry | str]]:
        """What an iterator has not come by: a single damaged key, which it takes for a later one, can hide many."""
        for index in absent:
            record = self._value(b"r" + _U64.pack(index))
            yield index, "is missing" if record is None else _decoded(index, record)

    def verify(self, first: int, last: int) -> Iterator[Finding | None]:
        """A finding for everything in the log from `first` to `last` that is not sound, None for every entry that is.

        Looked at are: each record's and payload's checksum, that no index is missing, that each entry continues the one
        before it (its chain and its term), the configurations that are kept beside the log and, in any case, what
        else is kept there.
        """
        yield from (Finding(0, problem) for problem in self._beside_the_log())
        before = self._before(first)
        recovered = self._number(b"mrecovered")
        for index, entry in self.entries(first, last):
            if isinstance(entry, str):
                yield Finding(index, entry)
                before = None
                continue
            if before is not None and not entry.follows(before[1]):
                yield Finding(index, f"does not continue entry {index - 1}: the running checksum differs")
            elif before is not None and entry.term < before[0]:
                yield Finding(index, f"is of term {entry.term}, after one of term {before[0]}")
            elif (
                entry.kind is EntryKind.CONFIGURATION
                and index > recovered
                and self._value(b"c" + _U64.pack(index)) != entry.payload
            ):
                yield Finding(index, "is a configuration, and the copy of it that is read at start differs")
            else:
                yield None
            before = (entry.term, entry.chain)

    def _before(self, index: int) -> tuple[int, int] | None:
        """Term and chain of the entry before `index`, None if it cannot be read."""
        base_index, base_term, base_chain = self.base()
        if index == base_index + 1:
            return base_term, base_chain
        for _, entry in self.entries(index - 1, index - 1):
            if isinstance(entry, Entry):
                return entry.term, entry.chain
        return None

    def _beside_the_log(self) -> Iterator[str]:
        if self._damage is not None:
            yield self._damage
        sealed: dict[str, bytes] = {}
        # Not a plain iterator: at a block that it cannot read it just ends, as if there were no more.
        with self._database.raw_iterator() as raw:
            try:
                raw.seek(b"m")
                while raw.valid() and (key := raw.key()).startswith(b"m"):
                    name, value = key.decode(errors="replace"), raw.value()
                    if len(value) < 8 or _U64.pack(xxh3_64_intdigest(value[8:])) != value[:8]:
                        yield f"record {name} is corrupt"
                    else:
                        sealed[name] = value[8:]
                    raw.next()
            except plyvel.Error as error:
                yield f"what is kept beside the log cannot be read: {error}"
                return
        if "mformat" not in sealed:
            yield "record mformat is missing: this is no log of mysqlraft's"
        last = self.bounds()[1]
        if (commit := self._number(b"mcommit")) > last:
            yield f"everything up to {commit} was committed, and the log ends at {last}"

    def _value(self, key: bytes) -> bytes | None:
        """None if there is none, or it cannot be read."""
        try:
            value: bytes | None = self._database.get(key)
        except plyvel.Error:
            return None
        return value

    def _number(self, key: bytes) -> int:
        value = self._value(key)
        return _U64.unpack(value[8:])[0] if value is not None and len(value) == 16 else 0

    def owner(self) -> tuple[int, str, int]:
        """Format version, cluster and site. Raises StoreError."""
        value = self._value(b"mformat")
        try:
            version, cluster, site = msgpack.unpackb((value or b"")[8:])
        except (ValueError, msgpack.UnpackException):
            text = f"{self._source} is no log of mysqlraft's, or its record mformat is lost"
            raise Damaged(f"{text}: {self._damage}; {REMEDY}" if self._damage is not None else text) from None
        return version, cluster, site


def _decoded(index: int, record: bytes) -> Entry | str:
    try:
        entry = Entry.from_record(record)
    except CorruptRecord as error:
        return f"is corrupt: {error}"
    return entry if entry.index == index else f"is missing: entry {entry.index} is in its place"


def _remove_left_over(directory: Path) -> None:
    """The copies of those who were killed while they read: each takes as much room as the log."""
    for copy in directory.glob(f"{_COPY}*"):
        try:
            lock = os.open(copy, os.O_RDONLY)
        except OSError:
            continue  # somebody else's, or gone already
        try:
            if time.time() - copy.stat().st_mtime > _SETTLED_SECONDS:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(copy, ignore_errors=True)
        except OSError:
            pass  # it is being read
        finally:
            os.close(lock)


def _beside(directory: Path) -> Path:
    """A directory for the copy: where there is most likely to be room for it, if that can be written to."""
    try:
        return Path(tempfile.mkdtemp(prefix=_COPY, dir=directory))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mysqlraft-reading-"))
