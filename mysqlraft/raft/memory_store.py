"""A store in memory for tests and the simulator. It forgets at a crash what was not synced, as a disk does."""

from __future__ import annotations

from collections.abc import Sequence

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.entry import Entry, EntryKind
from mysqlraft.raft.store import Base, HardState, StoreError, Write


class MemoryStore:
    """`write` makes durable at once. `begin` only queues, as a write whose sync is still running; `sync` completes
    the oldest queued ones and `crash` drops all that are queued."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._hard_state = HardState()
        self._commit = 0
        self._bootstrapped: Configuration | None = None
        self._recovery: Configuration | None = None
        self._recovered = 0
        self._void = 0
        """Configurations in the log up to here do not count."""
        self._queued: list[Sequence[Write]] = []
        self.failure: Exception | None = None
        """Raised by the next writes: a full or broken disk."""

    @property
    def base(self) -> Base:
        return Base()

    @property
    def last_index(self) -> int:
        return len(self._entries)

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
        if not 1 <= first <= last <= len(self._entries):
            raise StoreError(f"entries {first}..{last} are not in the log (1..{len(self._entries)})")
        found: list[Entry] = []
        size = 0
        for entry in self._entries[first - 1 : last]:
            size += entry.size
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def configurations(self) -> list[tuple[int, Configuration]]:
        forced = [] if self._recovery is None else [(1, self._recovery)]
        return forced + [
            (entry.index, Configuration.decode(entry.payload))
            for entry in self._entries[self._void :]
            if entry.kind is EntryKind.CONFIGURATION
        ]

    def write(self, writes: Sequence[Write]) -> None:
        self.begin(writes)
        while self._queued:
            self.sync()

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
            if write.entries:
                first = write.entries[0].index
                if not 1 <= first <= len(self._entries) + 1:
                    raise StoreError(f"entry {first} would leave a gap after {len(self._entries)}")
                self._entries[first - 1 :] = write.entries
                self._void = min(self._void, first - 1)
            if write.bootstrap is not None:
                self._bootstrapped = write.bootstrap
            if write.recovery is not None:
                self._recovery = write.recovery
                self._recovered = self._void = self.last_index
            if write.commit:
                self._commit = write.commit

    def crash(self, survivors: int = 0) -> None:
        """Lose what was not synced, but for the oldest `survivors` of the queued writes, which had just made it."""
        for _ in range(min(survivors, len(self._queued))):
            self.sync()
        self._queued.clear()

    def close(self) -> None:
        pass
