"""The log as the core sees it: the store's entries, and after them those that are not yet on disk.

::

    base ........ cached_from ........ stable ........ last
                  '------ kept in memory ------------'
    '-------- in the store -----------'

Invariants: base <= commit <= last; stable <= last; everything after both `base` and `stable` is in memory. `commit`
may be greater than `stable`: a majority of *other* sites can have an entry on disk before this one does. `stable` is
smaller than `base` only while a snapshot's base is being written.

The base is what compaction, or a snapshot from the leader, has put in the place of all entries up to it: their last
index, term and running checksum. So logs can still be compared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.entry import Entry, EntryKind
from mysqlraft.raft.store import Base, Compacted, LogStore, Rebase

ENTRY_OVERHEAD = 400
"""Bytes that a cached entry takes beside its record: a tuple, its integers, a bytes header."""

NO_LIMIT = 1 << 62


class LogDivergence(Exception):
    """An entry does not continue the log that it claims to: two logs differ where Raft says that they cannot."""

    def __init__(self, what: str) -> None:
        remedy = "keep data_dir to find out why, and let the site rejoin as a new member with an empty one"
        super().__init__(f"this site's log and the leader's differ: {what}; {remedy}")


class RaftLog:
    """Entries base.index+1 .. last_index."""

    def __init__(self, store: LogStore, cache_bytes: int) -> None:
        self._store = store
        self.base = store.base
        """The entry before the first one there is."""
        self._cache_bytes = cache_bytes
        """How much of the stable tail to keep in memory for followers and consumers that are nearly up to date."""
        self._entries: list[Entry] = []
        """The last entries, without a gap."""
        self.last_index = store.last_index
        """Of the last entry there is, or the base's."""
        self._cached_from = store.last_index + 1
        """The index of the first of the entries in memory. Invariant: the last of them is that of `last_index`."""
        self._bytes = 0
        self.stable = store.last_index
        """Up to here the log is on disk."""
        self._last_term, self._last_chain = self._tail(store)
        self.commit = self.base.index
        """Up to here a majority has the entries. Never goes back."""
        self._configurations = store.configurations()

    @staticmethod
    def _tail(store: LogStore) -> tuple[int, int]:
        last = store.last_index
        if last == store.base.index:
            return store.base.term, store.base.chain
        (entry,) = store.entries(last, last, NO_LIMIT)
        return entry.term, entry.chain

    @property
    def first_index(self) -> int:
        """The first entry there is, or would be."""
        return self.base.index + 1

    @property
    def last_term(self) -> int:
        return self._last_term

    @property
    def last_chain(self) -> int:
        """The running checksum of the whole log."""
        return self._last_chain

    def entry(self, index: int) -> Entry:
        """Invariant of the caller: first_index <= index <= last_index."""
        if index >= self._cached_from:
            return self._entries[index - self._cached_from]
        return self._store.entries(index, index, NO_LIMIT)[0]

    def term(self, index: int) -> int | None:
        """The term of the entry at `index`, None if the log does not reach there or no longer holds it."""
        if index == self.last_index:
            return self._last_term
        base = self.base
        if base.index < index < self.last_index:
            return self.entry(index).term
        return base.term if index == base.index else None

    def matches(self, index: int, term: int) -> bool:
        return self.term(index) == term

    def chain(self, index: int) -> int | None:
        """The running checksum up to `index`, None where `term` is."""
        if index == self.last_index:
            return self._last_chain
        base = self.base
        if base.index < index < self.last_index:
            return self.entry(index).chain
        return base.chain if index == base.index else None

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as complete as this one (Raft paper, 5.4.1)."""
        return (last_term, last_index) >= (self._last_term, self.last_index)

    def slice(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        """The entries `first`..`last`, at least one if there is any, no more than fit into `max_bytes`."""
        if first > last:
            return []
        if first <= self.base.index:
            raise Compacted(f"entry {first} is not in the log any more, it begins at {self.first_index}")
        if first < self._cached_from:
            return self._store.entries(first, min(last, self._cached_from - 1), max_bytes)
        start, stop = first - self._cached_from, last + 1 - self._cached_from
        entries, size = self._entries, 0
        for position in range(start, stop):  # islice would walk through all that comes before
            size += len(entries[position].record)
            if size > max_bytes and position > start:
                return entries[start:position]
        return entries[start:stop]

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end. Invariant of the caller: they continue the log."""
        if not entries:
            return
        self._entries.extend(entries)
        self._bytes += sum([len(entry.record) for entry in entries]) + ENTRY_OVERHEAD * len(entries)
        last = entries[-1]
        self.last_index, self._last_term, self._last_chain = last.index, last.term, last.chain
        for entry in entries:
            if entry.kind is EntryKind.CONFIGURATION:
                self._configurations.append((entry.index, Configuration.decode(entry.payload)))

    def truncate(self, first: int) -> None:
        """Drop the entries from `first` on. Only entries that were never committed may go."""
        if first <= self.commit:
            raise LogDivergence(f"entry {first} is to be replaced, but everything up to {self.commit} is committed")
        if first < self._cached_from:
            self._entries.clear()
            self._cached_from = first
            self._bytes = 0
        else:
            dropped = self._entries[first - self._cached_from :]
            del self._entries[first - self._cached_from :]
            self._bytes -= sum([len(entry.record) for entry in dropped]) + ENTRY_OVERHEAD * len(dropped)
        self.stable = min(self.stable, first - 1)
        while self._configurations and self._configurations[-1][0] >= first:
            self._configurations.pop()
        self.last_index = previous = first - 1
        base = self.base
        if previous == base.index:
            self._last_term, self._last_chain = base.term, base.chain
        else:
            entry = self.entry(previous)
            self._last_term, self._last_chain = entry.term, entry.chain

    def merge(self, previous_index: int, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Take in a leader's entries that follow `previous_index`, which matches. Entries that are here already stay;
        from the first that differs in term on, the log is replaced. Returns the entries that were put in."""
        new = entries
        if previous_index < self.last_index:
            for position, entry in enumerate(entries):
                if entry.index > self.last_index:
                    new = entries[position:]
                    break
                if self.term(entry.index) != entry.term:
                    self.truncate(entry.index)
                    new = entries[position:]
                    break
            else:
                return ()
        chain = self._last_chain
        for entry in new:
            if not entry.follows(chain):
                raise LogDivergence(
                    f"entry {entry.index} of term {entry.term} does not follow from this site's log: "
                    f"the running checksum before it is {chain:016x} here"
                    + (" (were the sites bootstrapped with different cluster.sites?)" if entry.index == 2 else "")
                )
            chain = entry.chain
        self.append(new)
        return new

    def conflict(self, index: int, term: int) -> tuple[int, int]:
        """The greatest index <= `index` whose term here is <= `term`, and that term: the furthest place at which this
        log can agree with one that has `term` at `index`. Skips whole terms in one step (Raft paper, 5.3). Before the
        base there is no telling: it can be `index` itself."""
        if index < self.base.index:
            return index, term
        index = min(index, self.last_index)
        while index >= self.first_index:
            here = self.term(index)
            if here is not None and here <= term:
                return index, here
            index -= 1
        return self.base.index, self.base.term

    def compact(self, index: int) -> Rebase:
        """Let go of the entries up to `index`. Invariant of the caller: base < index <= commit and stable."""
        entry = self.entry(index)
        self._forget(max(0, index + 1 - self._cached_from))
        return self._begin_at(Base(index, entry.term, entry.chain), self.configuration_at(index), True)

    def restore(self, base: Base, configuration: tuple[int, Configuration]) -> Rebase:
        """A snapshot that covers the committed entries up to `base` takes their place. If the log here has the same
        term there, what follows stays; else the whole log goes (hashicorp #697). Invariant of the caller: the base is
        after the commit index, so nothing that is committed goes."""
        keep = self.matches(base.index, base.term)
        if keep:
            self._forget(max(0, min(base.index, self.stable) + 1 - self._cached_from))
        else:
            self.stable = min(self.stable, self.commit)
            self._entries.clear()
            self._bytes = 0
            self._cached_from = base.index + 1
            self.last_index, self._last_term, self._last_chain = base
        rebase = self._begin_at(base, configuration, keep)
        self.commit = base.index
        return rebase

    def _begin_at(self, base: Base, configuration: tuple[int, Configuration] | None, keep: bool) -> Rebase:
        self.base = base
        at_base = [] if configuration is None else [configuration]
        self._configurations = at_base + [each for each in self._configurations if keep and each[0] > base.index]
        return Rebase(base, configuration, keep)

    def configuration_at(self, index: int) -> tuple[int, Configuration] | None:
        """The configuration in force at `index`, which the log must hold, and the index of its entry."""
        return next((each for each in reversed(self._configurations) if each[0] <= index), None)

    def snapshot_point(self, index: int) -> tuple[Base, int, Configuration]:
        """What a snapshot of the FSM after the committed entry `index` has to carry: the base, and the configuration
        at it with the index of its entry. Raises Compacted if the log does not hold that any more."""
        term, chain = self.term(index), self.chain(index)
        configuration = self.configuration_at(index)
        if term is None or chain is None or configuration is None:
            raise Compacted(f"entry {index} is not in the log any more, it begins at {self.first_index}")
        return Base(index, term, chain), *configuration

    def commit_to(self, index: int) -> bool:
        """Advance the commit index; it never goes back. True if it moved."""
        if index <= self.commit:
            return False
        self.commit = min(index, self.last_index)
        return True

    def stabilized(self, index: int) -> None:
        """The entries up to `index` are on disk. Invariant of the caller: none of them was truncated since they were
        given to be written."""
        if index > self.stable:
            self.stable = index
            self.trim()

    def trim(self) -> None:
        """Let go of what exceeds the cache, oldest first, never of what is not on disk."""
        if self._bytes <= self._cache_bytes:
            return
        goal = self._bytes - self._cache_bytes * 3 // 4
        count = freed = 0
        for entry in islice(self._entries, max(0, self.stable + 1 - self._cached_from)):
            if freed >= goal:
                break
            freed += len(entry.record) + ENTRY_OVERHEAD
            count += 1
        self._forget(count)

    def _forget(self, count: int) -> None:
        """Drop the oldest `count` entries from the cache."""
        self._bytes -= sum([len(entry.record) for entry in self._entries[:count]]) + ENTRY_OVERHEAD * count
        del self._entries[:count]
        self._cached_from += count

    @property
    def configurations(self) -> Sequence[tuple[int, Configuration]]:
        """(index, configuration) of the one in force at the base and of every one after it, oldest first."""
        return self._configurations
