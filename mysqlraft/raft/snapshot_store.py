"""Where a site keeps its snapshots.

On disk each is a directory of two files::

    snapshots/<index, 20 digits>-<term>-<checksum, hex>/meta    sealed msgpack: what Snapshot has
                                                       /data    the FSM's bytes
    snapshots/making/      one that is being written here
    snapshots/incoming/    one that arrives; it survives a restart, to go on from there
    snapshots/removing/    one that is being removed

A snapshot appears under its name, and vanishes from it, by one rename, when both files are synced: a crash leaves the
old ones or the new one too, never a part. What a crash leaves in `making` and `removing` is removed at start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import msgpack
from xxhash import xxh3_64, xxh3_64_intdigest

from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.snapshot import Snapshot, SnapshotWork, WorkKind
from mysqlraft.raft.store import Base, StoreError

KEEP = 2
"""Snapshots that stay when a newer one is there: the newest, and one to fall back on."""
READ_BYTES = 1024 * 1024
SYNC_BYTES = 8 * 1024 * 1024
"""An arriving snapshot is synced each time that so much has come: a crash costs no more than that."""


class SnapshotStore(Protocol):
    """All of it may block, and is called from one thread at a time but for `read`. Raises StoreError."""

    def latest(self) -> Snapshot | None: ...

    def save(
        self, base: Base, configuration_index: int, configuration: Configuration, data: Iterable[bytes]
    ) -> Snapshot:
        """Keep a snapshot of this site's own FSM. When this returns it is durable."""
        ...

    def read(self, snapshot: Snapshot, offset: int, length: int) -> bytes:
        """A part of its data. May be called from any thread."""
        ...

    def data(self, snapshot: Snapshot) -> Iterator[bytes]:
        """All of its data; verified as a whole at the end, by a StoreError before the last part is given out."""
        ...

    def perform(self, work: SnapshotWork) -> int:
        """Do what a SnapshotReceiver wants done. Returns the outcome."""
        ...

    def reap(self, in_use: Collection[Snapshot]) -> None:
        """Remove all but the newest few and those in use."""
        ...


class FileSnapshotStore:
    """Snapshots in `directory`. Opening removes what a crash has left half done."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._incoming = self.directory / "incoming"
        self._making = self.directory / "making"
        self._removing = self.directory / "removing"
        self._file: BinaryIO | None = None
        """The data of the one that arrives."""
        self._arriving: Snapshot | None = None
        self._hash = xxh3_64()
        self._unsynced = 0
        with self._errors("cannot be opened"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in (self._making, self._removing):
                shutil.rmtree(left, ignore_errors=True)
            self._known: dict[Snapshot, Path] = {}
            for path in self.directory.glob("*-*-*"):
                snapshot = _read_meta(path)
                if snapshot is None:
                    raise self._damaged(path)
                self._known[snapshot] = path

    def latest(self) -> Snapshot | None:
        return max(self._known, key=lambda snapshot: snapshot.base, default=None)

    def save(
        self, base: Base, configuration_index: int, configuration: Configuration, data: Iterable[bytes]
    ) -> Snapshot:
        digest, size = xxh3_64(), 0
        with self._errors("cannot be written"):
            shutil.rmtree(self._making, ignore_errors=True)
            self._making.mkdir(mode=0o700)
            with open(self._making / "data", "wb") as file:
                for part in data:
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                _sync(file)
            snapshot = Snapshot(base, configuration_index, configuration, size, digest.intdigest())
            _write_meta(self._making, snapshot)
            self._publish(self._making, snapshot)
        return snapshot

    def read(self, snapshot: Snapshot, offset: int, length: int) -> bytes:
        with self._errors("cannot be read"), open(self._path(snapshot) / "data", "rb") as file:
            part = os.pread(file.fileno(), length, offset)
        if len(part) != length:
            raise self._damaged(self._path(snapshot))
        return part

    def data(self, snapshot: Snapshot) -> Iterator[bytes]:
        digest = xxh3_64()
        left = snapshot.size
        with self._errors("cannot be read"), open(self._path(snapshot) / "data", "rb") as file:
            while True:
                part = file.read(READ_BYTES)
                digest.update(part)
                left -= len(part)
                if left <= 0 or not part:
                    if left or digest.intdigest() != snapshot.checksum:
                        raise self._damaged(self._path(snapshot))
                    yield part
                    return
                yield part

    def perform(self, work: SnapshotWork) -> int:
        with self._errors("cannot be written"):
            if work.kind is WorkKind.OPEN:
                return self._open(work.snapshot)
            if self._arriving is None or self._arriving.name != work.snapshot.name or self._file is None:
                return 0  # of a transfer that another one has replaced
            if work.kind is WorkKind.WRITE:
                return self._write(self._file, work)
            if work.kind is WorkKind.DROP:
                self._discard()
                return 0
            return self._finish(self._file, work.snapshot)

    def reap(self, in_use: Collection[Snapshot]) -> None:
        names = {snapshot.name for snapshot in in_use}
        oldest_first = sorted(self._known, key=lambda snapshot: snapshot.base)
        with self._errors("cannot be written"):
            for snapshot in oldest_first[:-KEEP]:
                if snapshot.name not in names:
                    self._known.pop(snapshot).rename(self._removing)
                    shutil.rmtree(self._removing)

    def close(self) -> None:
        """Let go of what arrives; it stays on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, snapshot: Snapshot) -> int:
        self.close()
        before = _read_meta(self._incoming, complete=False)
        if before is None or before.name != snapshot.name:
            self._discard()
            self._incoming.mkdir(mode=0o700)
            _write_meta(self._incoming, snapshot)
        file = self._file = open(self._incoming / "data", "a+b")  # noqa: SIM115 - it stays open
        self._arriving = snapshot
        self._hash = xxh3_64()
        file.seek(0)
        while part := file.read(READ_BYTES):
            self._hash.update(part)
        size = file.tell()
        if size > snapshot.size:
            self._discard()
            return self._open(snapshot)
        self._unsynced = 0
        return size

    def _write(self, file: BinaryIO, work: SnapshotWork) -> int:
        if work.offset == file.tell():
            file.write(work.data)
            self._hash.update(work.data)
            self._unsynced += len(work.data)
            if self._unsynced >= SYNC_BYTES:
                _sync(file)
                self._unsynced = 0
        return file.tell()

    def _finish(self, file: BinaryIO, snapshot: Snapshot) -> int:
        if file.tell() != snapshot.size or self._hash.intdigest() != snapshot.checksum:
            self._discard()
            return 0
        _sync(file)
        self.close()
        self._arriving = None
        self._publish(self._incoming, snapshot)
        return 1

    def _discard(self) -> None:
        self.close()
        self._arriving = None
        shutil.rmtree(self._incoming, ignore_errors=True)

    def _publish(self, made: Path, snapshot: Snapshot) -> None:
        path = self.directory / f"{snapshot.last_index:020d}-{snapshot.base.term}-{snapshot.checksum:016x}"
        if path.exists():  # the same name, so the same bytes
            shutil.rmtree(made)
            return
        _sync_directory(made)
        made.rename(path)
        _sync_directory(self.directory)
        self._known[snapshot] = path

    def _path(self, snapshot: Snapshot) -> Path:
        try:
            return self._known[snapshot]
        except KeyError:
            raise StoreError(f"{self.directory} holds no snapshot up to {snapshot.last_index}") from None

    @staticmethod
    def _damaged(path: Path) -> StoreError:
        return StoreError(
            f"{path} is damaged: its meta or its data do not have their checksum. Remove that directory: the site goes "
            "on from an older snapshot if its log reaches back so far; else empty data_dir and let it rejoin as a new "
            "member"
        )

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.directory} {what}: {error}") from error


def _write_meta(directory: Path, snapshot: Snapshot) -> None:
    base, configuration_index, configuration, size, checksum = snapshot
    body = msgpack.packb((*base, configuration_index, configuration.encode(), size, checksum))
    with open(directory / "meta", "wb") as file:
        file.write(xxh3_64_intdigest(body).to_bytes(8, "big") + body)
        _sync(file)
    _sync_directory(directory)


def _read_meta(directory: Path, complete: bool = True) -> Snapshot | None:
    """The snapshot in a directory, None if what is there is not one, or not the whole of one."""
    try:
        sealed = (directory / "meta").read_bytes()
        size = (directory / "data").stat().st_size if complete else 0
    except OSError:
        return None
    body = sealed[8:]
    if xxh3_64_intdigest(body).to_bytes(8, "big") != sealed[:8]:
        return None
    try:
        index, term, chain, configuration_index, configuration, length, checksum = msgpack.unpackb(body)
        snapshot = Snapshot(
            Base(index, term, chain), configuration_index, Configuration.decode(configuration), length, checksum
        )
    except (ValueError, TypeError, msgpack.UnpackException, ConfigurationError):
        return None
    return snapshot if not complete or size == length else None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
