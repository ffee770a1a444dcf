"""A store in memory for tests and the simulator. It forgets at a crash what was not synced, as a disk does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from xxhash import xxh3_64_intdigest

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.entry import Entry, EntryKind, total_size
from mysqlraft.raft.snapshot import Snapshot, SnapshotWork, WorkKind
from mysqlraft.raft.store import Base, HardState, StoreError, Write


class MemoryStore:
    """`write` makes durable at once. `begin` only queues, as a write whose sync is still running; `sync` completes
    the oldest queued ones and `crash` drops all that are queued."""

    def __init__(self) -> None:
        self._base = Base()
        self._base_configuration: tuple[int, Configuration] | None = None
        """The last one up to the base, or that of a recovery."""
        self._entries: list[Entry] = []
        """Those after the base."""
        self._configurations: list[tuple[int, Configuration]] = []
        """Those in the entries, as far as they count."""
        self._hard_state = HardState()
        self._commit = 0
        self._bootstrapped: Configuration | None = None
        self._recovered = 0
        self._queued: list[Sequence[Write]] = []
        self.failure: Exception | None = None
        """Raised by the next writes: a full or broken disk."""

    @property
    def base(self) -> Base:
        return self._base

    @property
    def last_index(self) -> int:
        return self._base.index + len(self._entries)

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
        base = self._base.index
        if not base < first <= last <= self.last_index:
            raise StoreError(f"entries {first}..{last} are not in the log ({base + 1}..{self.last_index})")
        if first == last:
            return [self._entries[first - base - 1]]
        found: list[Entry] = []
        size = 0
        for entry in self._entries[first - base - 1 : last - base]:
            size += entry.size
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def configurations(self) -> list[tuple[int, Configuration]]:
        at_base = [] if self._base_configuration is None else [self._base_configuration]
        return at_base + self._configurations

    def write(self, writes: Sequence[Write]) -> None:
        self.begin(writes)
        while self._queued:
            self.sync()

    def prepare(self, writes: Sequence[Write]) -> Callable[[], None]:
        return lambda: self.write(writes)

    def begin(self, writes: Sequence[Write]) -> None:
        if self.failure is not None:
            raise StoreError(str(self.failure)) from self.failure
        self._queued.append(writes)

    @property
    def unsynced(self) -> int:
        """How many queued writes wait for their sync."""
        return len(self._queued)

    def sync(self) -> None:
        for write in self._queued.pop(0):
            if write.hard_state is not None:
                self._hard_state = write.hard_state
            if write.rebase is not None:
                base, self._base_configuration, keep = write.rebase
                self._entries = [entry for entry in self._entries if keep and entry.index > base.index]
                self._configurations = [each for each in self._configurations if keep and each[0] > base.index]
                self._base = base
                if not keep:
                    self._recovered = base.index if base.index <= self._recovered else 0
            if write.entries:
                first = write.entries[0].index
                if not self._base.index < first <= self.last_index + 1:
                    raise StoreError(f"entry {first} would leave a gap after {self.last_index}")
                self._entries[first - self._base.index - 1 :] = write.entries
                self._recovered = min(self._recovered, first - 1)
                self._configurations = [each for each in self._configurations if each[0] < first] + [
                    (entry.index, Configuration.decode(entry.payload))
                    for entry in write.entries
                    if entry.kind is EntryKind.CONFIGURATION
                ]
            if write.bootstrap is not None:
                self._bootstrapped = write.bootstrap
            if write.recovery is not None:
                self._base_configuration = (max(1, self._base.index), write.recovery)
                self._configurations.clear()
                self._recovered = self.last_index
            if write.commit:
                self._commit = write.commit

    def crash(self, survivors: int = 0, torn: int = 0) -> None:
        """Lose what was not synced, but for the oldest `survivors` of the queued writes, which had just made it, and
        of the next one its first `torn` parts (hard state, base, then each entry): a batch that was not atomic."""
        for _ in range(min(survivors, len(self._queued))):
            self.sync()
        if self._queued and torn:
            write = self._queued[0][0]
            base = write.rebase if torn > 1 else None
            self._queued[0] = [Write(write.hard_state, write.entries[: max(0, torn - 2)], rebase=base)]
            self.sync()
        self._queued.clear()

    def sweep(self, count: int) -> bool:
        return False

    def size(self) -> int:
        return total_size(self._entries)

    def close(self) -> None:
        pass


class MemorySnapshotStore:
    """Snapshots in memory. What is saved or finished is durable at once; what arrives may lose its end at a crash."""

    def __init__(self) -> None:
        self.saved: dict[Snapshot, bytes] = {}
        self.incoming: tuple[Snapshot, bytearray] | None = None

    def latest(self) -> Snapshot | None:
        return max(self.saved, key=lambda snapshot: snapshot.base, default=None)

    def save(
        self, base: Base, configuration_index: int, configuration: Configuration, data: Iterable[bytes]
    ) -> Snapshot:
        whole = b"".join(data)
        snapshot = Snapshot(base, configuration_index, configuration, len(whole), xxh3_64_intdigest(whole))
        self.saved[snapshot] = whole
        return snapshot

    def read(self, snapshot: Snapshot, offset: int, length: int) -> bytes:
        if snapshot not in self.saved:
            raise StoreError(f"there is no snapshot up to {snapshot.last_index}")
        return self.saved[snapshot][offset : offset + length]

    def data(self, snapshot: Snapshot) -> Iterator[bytes]:
        yield self.read(snapshot, 0, snapshot.size)

    def perform(self, work: SnapshotWork) -> int:
        if work.kind is WorkKind.OPEN:
            if self.incoming is None or self.incoming[0].name != work.snapshot.name:
                self.incoming = (work.snapshot, bytearray())
            return len(self.incoming[1])
        if self.incoming is None or self.incoming[0].name != work.snapshot.name:
            return 0
        data = self.incoming[1]
        if work.kind is WorkKind.WRITE:
            if work.offset == len(data):
                data += work.data
            return len(data)
        self.incoming = None
        if work.kind is WorkKind.DROP or xxh3_64_intdigest(data) != work.snapshot.checksum:
            return 0
        self.saved[work.snapshot] = bytes(data)
        return 1

    def reap(self, in_use: Collection[Snapshot]) -> None:
        for snapshot in sorted(self.saved, key=lambda snapshot: snapshot.base)[:-2]:
            if snapshot not in in_use:
                del self.saved[snapshot]

    def crash(self, kept: int, damaged: bool) -> None:
        """Of what arrives only the first `kept` bytes are there, perhaps `damaged` in the last of them."""
        if self.incoming is not None:
            data = self.incoming[1]
            del data[kept:]
            if damaged and data:
                data[-1] ^= 1

    def close(self) -> None:
        pass
