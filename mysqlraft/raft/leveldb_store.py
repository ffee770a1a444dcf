"""The log and the hard state of one site in one LevelDB.

Keys and values (numbers big endian; a *sealed* value is its xxh3-64 followed by the value)::

    c<index u64>    the payload of that entry, if it is a configuration: found at start without reading the log.
                    The last one up to the base stays when its entry is compacted away
    mformat         sealed msgpack [version, cluster id, site id]
    mhard           sealed term u64, vote u64
    mbase           sealed index u64, term u64, chain u64 of the entry before the first one
    mcommit         sealed index u64
    mbootstrap      sealed encoded configuration
    mrecovered      sealed index u64: the last one when members were forced on this site (recovery.py)
    r<index u64>    the entry's record (entry.py)

Entries come last, and while they are written hardly anything else is: most of LevelDB's tables then begin where the
one before has ended, and are moved from level to level as they are. A key behind the entries, in every table, would
have them merged and written again and again (docs/benchmarks.md).

One `write` is one synced LevelDB batch, so a truncation and the append that follows it are on disk both or neither.

Compaction only moves `mbase`: from then on the entries up to it do not exist, whatever LevelDB still holds. `sweep`
deletes them later, a slice at a time and in another thread, for a large batch of deletes would stop everything
behind it (raft-boltdb; leveldb #170). It goes on where it was: it never walks over what it has deleted itself.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import plyvel
from xxhash import xxh3_64_intdigest

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.entry import CorruptRecord, Entry, EntryKind
from mysqlraft.raft.leveldb_files import missing_file
from mysqlraft.raft.store import Base, HardState, Rebase, StoreError, Write, WrongDirectory

FORMAT_VERSION = 2
WRITE_BUFFER_BYTES = 8 * 1024 * 1024
_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_TRIPLE = struct.Struct(">QQQ")
_AFTER_ENTRIES = b"s"


def _entry_key(index: int) -> bytes:
    return b"r" + _U64.pack(index)


def _configuration_key(index: int) -> bytes:
    return b"c" + _U64.pack(index)


def _sealed(value: bytes) -> bytes:
    return _U64.pack(xxh3_64_intdigest(value)) + value


class LevelDBStore:
    """The store of one site. Writes may come from one other thread than reads."""

    def __init__(self, directory: str | os.PathLike[str], cluster: str, site: int) -> None:
        """Open, or create. Raises WrongDirectory if it is somebody else's, StoreError if it cannot be relied on."""
        self.directory = Path(directory)
        self._db: Any = None
        self._lock = self._take_lock()
        try:
            with self._errors("cannot be opened"):
                if (missing := missing_file(self.directory / "log")) is not None:
                    raise self._damaged(f"LevelDB's file log/{missing} is missing")
                # paranoid: a damaged LevelDB log is an error, not an invitation to forget what it held.
                self._db = plyvel.DB(
                    str(self.directory / "log"),
                    create_if_missing=True,
                    paranoid_checks=True,
                    compression=None,
                    write_buffer_size=WRITE_BUFFER_BYTES,
                )
            self._check_format(cluster, site)
            self._hard_state = HardState(*self._numbers(b"mhard", _PAIR, (0, 0)))
            self._base = Base(*self._numbers(b"mbase", _TRIPLE, (0, 0, 0)))
            self._commit = self._numbers(b"mcommit", _U64, (0,))[0]
            self._last_index = self._find_last_index()
            self._recovered = self._numbers(b"mrecovered", _U64, (0,))[0]
            self._swept = 0
            """No entry up to here is left in the database."""
            bootstrapped = self._sealed_value(b"mbootstrap")
            self._bootstrapped = None if bootstrapped is None else Configuration.decode(bootstrapped)
            self._check_end()
        except BaseException:
            self.close()
            raise

    @property
    def base(self) -> Base:
        return self._base

    @property
    def last_index(self) -> int:
        return self._last_index

    @property
    def hard_state(self) -> HardState:
        return self._hard_state

    @property
    def commit(self) -> int:
        return self._commit

    @property
    def bootstrapped(self) -> Configuration | None:
        return self._bootstrapped

    @property
    def recovered(self) -> int:
        return self._recovered

    def entries(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        expected = first
        with self._errors("cannot be read"):
            records = self._db.iterator(
                start=_entry_key(first), stop=_entry_key(last), include_stop=True, include_key=False
            )
            for record in records:
                size += len(record)
                if found and size > max_bytes:
                    break
                try:
                    entry = Entry.from_record(record)
                except CorruptRecord as error:
                    raise self._damaged(f"entry {expected} is corrupt: {error}") from error
                if entry.index != expected:
                    raise self._damaged(f"entry {expected} is missing (found {entry.index} in its place)")
                found.append(entry)
                expected += 1
        if not found:
            raise self._damaged(f"entry {first} is missing (the log is {self._base.index + 1}..{self._last_index})")
        return found

    def configurations(self) -> list[tuple[int, Configuration]]:
        found: list[tuple[int, Configuration]] = []
        # Not a plain iterator: at a block that it cannot read it just ends, as if there were no more.
        with self._errors("cannot be read"), self._db.raw_iterator(verify_checksums=True) as raw:
            raw.seek(b"c")
            while raw.valid() and (key := raw.key()).startswith(b"c"):
                found.append((_U64.unpack(key[1:])[0], Configuration.decode(raw.value())))
                raw.next()
        return found

    def write(self, writes: Sequence[Write]) -> None:
        self._batched(writes)()

    def prepare(self, writes: Sequence[Write]) -> Callable[[], None]:
        # Here and not in the writing thread: the database gives up the interpreter's lock for every single record that
        # is put into a batch, and would have to wait for it as often while the event loop is busy.
        if any(write.rebase is not None or write.recovery is not None for write in writes):
            return lambda: self._batched(writes)()  # it reads the disk
        return self._batched(writes)

    def _batched(self, writes: Sequence[Write]) -> Callable[[], None]:
        """Put together what is to be written; the call of what it returns writes it."""
        base, last_index = self._base, self._last_index
        configured: list[int] = []
        hard_state, commit, bootstrapped = self._hard_state, self._commit, self._bootstrapped
        recovered = self._recovered
        with self._errors("cannot be written"):
            batch = self._db.write_batch(sync=any(write.must_sync for write in writes))
            put = batch.put
            for write in writes:
                if write.rebase is not None:
                    self._rebase(batch, write.rebase, configured, last_index)
                    base = write.rebase.base
                    last_index = max(last_index, base.index) if write.rebase.keep else base.index
                    if recovered and not write.rebase.keep:
                        recovered = base.index if base.index <= recovered else 0
                        put(b"mrecovered", _sealed(_U64.pack(recovered)))
                if write.entries:
                    first = write.entries[0].index
                    if not base.index < first <= last_index + 1:
                        raise StoreError(f"entry {first} would leave a gap after {last_index}")
                    for entry in write.entries:
                        put(_entry_key(entry.index), entry.record)
                        if entry.kind is EntryKind.CONFIGURATION:
                            put(_configuration_key(entry.index), entry.payload)
                            configured.append(entry.index)
                    if first <= last_index:
                        self._truncate(batch, write.entries, last_index)
                    if first <= recovered:
                        recovered = first - 1
                        put(b"mrecovered", _sealed(_U64.pack(recovered)))
                    last_index = write.entries[-1].index
                if write.hard_state is not None:
                    hard_state = write.hard_state
                    put(b"mhard", _sealed(_PAIR.pack(*hard_state)))
                if write.bootstrap is not None:
                    bootstrapped = write.bootstrap
                    put(b"mbootstrap", _sealed(bootstrapped.encode()))
                if write.recovery is not None:
                    self._recover(batch, write.recovery)
                    recovered = last_index
                if write.commit:
                    commit = write.commit
            if commit != self._commit:
                put(b"mcommit", _sealed(_U64.pack(commit)))

        def written() -> None:
            with self._errors("cannot be written"):
                batch.write()
            self._base, self._last_index, self._recovered = base, last_index, recovered
            self._hard_state, self._commit, self._bootstrapped = hard_state, commit, bootstrapped

        return written

    def sweep(self, count: int) -> bool:
        first, last = self._swept + 1, self._base.index
        if first > last:
            return False
        with self._errors("cannot be written"):
            keys = self._db.iterator(
                start=_entry_key(first), stop=_entry_key(last), include_stop=True, include_value=False
            )
            slice_ = list(islice(keys, count))
            keys.close()
            with self._db.write_batch() as batch:
                for key in slice_:
                    batch.delete(key)
            if len(slice_) == count:
                self._swept = _U64.unpack(slice_[-1][1:])[0]
                return True
            self._swept = last
            # LevelDB frees the space of deleted entries only when it rewrites their files, which it has no other
            # reason to do: nothing is ever put there again.
            self._db.compact_range(start=_entry_key(0), stop=_entry_key(last))
        return False

    def size(self) -> int:
        with self._errors("cannot be read"):
            size: int = self._db.approximate_size(b"r", _AFTER_ENTRIES)
        return size

    def close(self) -> None:
        """Release the directory. Closing again changes nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _recover(self, batch: Any, members: Configuration) -> None:
        """They take the place of every configuration up to now, at an index that is never truncated."""
        for key in self._db.iterator(prefix=b"c", include_value=False):
            batch.delete(key)
        batch.put(_configuration_key(max(1, self._base.index)), members.encode())
        batch.put(b"mrecovered", _sealed(_U64.pack(self._last_index)))

    def _rebase(self, batch: Any, rebase: Rebase, configured: Sequence[int], last_index: int) -> None:
        """Of the configurations up to the base the last one stays; of the entries after it all or none do. The entries
        up to the base are left to `sweep`. `configured` are the configurations that this batch has put."""
        base, configuration, keep = rebase
        batch.put(b"mbase", _sealed(_TRIPLE.pack(*base)))
        stored = [_U64.unpack(key[1:])[0] for key in self._db.iterator(prefix=b"c", include_value=False)]
        for index in {*stored, *configured}:
            if index <= base.index or not keep:
                batch.delete(_configuration_key(index))
        if configuration is not None:
            batch.put(_configuration_key(configuration[0]), configuration[1].encode())
        if not keep:
            for index in range(base.index + 1, last_index + 1):
                batch.delete(_entry_key(index))

    @staticmethod
    def _truncate(batch: Any, entries: Sequence[Entry], last_index: int) -> None:
        """Delete what `entries` replace and do not overwrite."""
        kept = {entry.index for entry in entries if entry.kind is EntryKind.CONFIGURATION}
        for index in range(entries[0].index, last_index + 1):
            if index > entries[-1].index:
                batch.delete(_entry_key(index))
            if index not in kept:
                batch.delete(_configuration_key(index))

    def _take_lock(self) -> int:
        """Two daemons on one directory would each overwrite the other's votes."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{self.directory}: {error.strerror}{_remedy(str(error.strerror))}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise WrongDirectory(f"{self.directory} is in use by another daemon (process {holder})") from error
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock

    def _check_format(self, cluster: str, site: int) -> None:
        """The directory has to be this cluster's and site's, and in a format that this version writes."""
        sealed = self._sealed_value(b"mformat")
        if sealed is None:
            with self._errors("cannot be written"):
                if next(iter(self._db.iterator(include_value=False)), None) is not None:
                    raise WrongDirectory(f"{self.directory}/log is a LevelDB, but not one of mysqlraft's")
                self._db.put(b"mformat", _sealed(msgpack.packb([FORMAT_VERSION, cluster, site])), sync=True)
            return
        version, *owner = msgpack.unpackb(sealed)
        if version != FORMAT_VERSION:
            raise WrongDirectory(wrong_format(self.directory, version))
        if owner != [cluster, site]:
            raise WrongDirectory(
                f"{self.directory} belongs to site {owner[1]} of cluster {owner[0]!r}, "
                f"this is site {site} of cluster {cluster!r}"
            )

    def _check_end(self) -> None:
        """A log that ends too early, or a hard state that was forgotten, is not what this site has promised. An end
        that was not synced LevelDB has cut, and nobody knew of it; of this one somebody does."""
        last = self._last_index
        if self._commit > last:
            raise self._damaged(f"the log ends at {last}, but everything up to {self._commit} was committed")
        term = self.entries(last, last, 1)[0].term if last > self._base.index else self._base.term
        if term > self._hard_state.term:
            raise self._damaged(f"entry {last} is of term {term}, but record mhard of {self._hard_state.term}")

    def _find_last_index(self) -> int:
        with self._errors("cannot be read"), self._db.raw_iterator(verify_checksums=True) as raw:
            raw.seek_to_last()  # mformat at the latest
            last = raw.key() if raw.valid() else b""
        if not last.startswith(b"r"):
            return self._base.index
        index: int = _U64.unpack(last[1:])[0]
        if index <= self._base.index:
            return self._base.index  # compacted away, and not yet swept
        for needed in (self._base.index + 1, index):
            self.entries(needed, needed, 1)
        return index

    def _sealed_value(self, key: bytes) -> bytes | None:
        with self._errors("cannot be read"):
            sealed: bytes | None = self._db.get(key)
        if sealed is None:
            return None
        if len(sealed) < 8 or _U64.pack(xxh3_64_intdigest(sealed[8:])) != sealed[:8]:
            raise self._damaged(f"record {key.decode()} is corrupt")
        return sealed[8:]

    def _numbers(self, key: bytes, layout: struct.Struct, absent: tuple[int, ...]) -> tuple[int, ...]:
        value = self._sealed_value(key)
        if value is None:
            return absent
        if len(value) != layout.size:
            raise self._damaged(f"record {key.decode()} has {len(value)} bytes, not {layout.size}")
        return layout.unpack(value)

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.directory}: {what}. What this site acknowledged may be lost: do not restart it with a cut log; "
            "empty the directory and let it rejoin as a new member"
        )

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except plyvel.CorruptionError as error:
            raise self._damaged(f"LevelDB {what}: {error_text(error)}") from error
        except (plyvel.Error, OSError) as error:
            text = error_text(error)
            raise StoreError(f"{self.directory} {what}: {text}{_remedy(text)}") from error


def wrong_format(directory: Path, version: int) -> str:
    """What is to be said of another format, and done about it."""
    return (
        f"{directory} has format version {version}; this mysqlraft knows {FORMAT_VERSION}: run the one that wrote it, "
        "or remove the site from the cluster, empty the directory and let it rejoin as a new member"
    )


def error_text(error: Exception) -> str:
    """What LevelDB or the operating system says."""
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(error)


_REMEDIES = {
    ("No space left on device", "Disk quota exceeded", "File too large"): "make room there",
    ("Read-only file system",): "mount it for writing, once it is known why it is not",
    ("Permission denied", "Operation not permitted"): "let the daemon's account read and write all of it",
    ("Too many open files",): "raise the daemon's limit of open files (LimitNOFILE)",
    ("Input/output error",): "the disk fails: look at the kernel's log, and replace it",
}


def _remedy(text: str) -> str:
    """What to do about an error of the operating system."""
    for errors, remedy in _REMEDIES.items():
        if any(error in text for error in errors):
            return f"; {remedy}. Nothing that was acknowledged is lost: starting again goes on from what is on disk"
    return ""
