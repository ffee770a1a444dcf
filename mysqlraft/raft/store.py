"""What the consensus core needs of a disk: the log store and the stable store of hashicorp/raft, as protocols.

Reading is synchronous and may be done by the owner of the core while another thread writes. All writing goes through
`write`: the writes of one call become durable together or not at all, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.entry import Entry


class StoreError(Exception):
    """The store cannot keep its promises (disk full, I/O error, corruption). Fatal to the daemon, never ignored."""


class Compacted(StoreError):
    """The entries are not in the log any more: a snapshot stands for them."""


class WrongDirectory(StoreError):
    """The directory belongs to another cluster, another site, a newer version or a running daemon."""


class HardState(NamedTuple):
    """What a site must never forget: one record, durable before any reply that relies on it (hashicorp #661)."""

    term: int = 0
    vote: int = 0
    """Whom it voted for in `term`, 0 for nobody."""


class Base(NamedTuple):
    """The entry before the first one stored: (0, 0, 0), or what a snapshot covers up to."""

    index: int = 0  # type: ignore[assignment]  # shadows tuple.index
    term: int = 0
    chain: int = 0


class Rebase(NamedTuple):
    """The log begins anew after `base`: compacted up to there, or replaced by a snapshot."""

    base: Base
    configuration: tuple[int, Configuration] | None
    """The configuration in force at the base and the index of its entry, which may be gone."""
    keep: bool
    """The entries after the base stay. Else the whole log goes: it is not the one that the snapshot continues."""


class Write(NamedTuple):
    """Changes that become durable together: first the rebase, then the entries."""

    hard_state: HardState | None = None
    entries: Sequence[Entry] = ()
    """Consecutive. They replace whatever the log holds from the first one's index on: truncate and append in one."""
    commit: int = 0
    """The commit index, if not 0: a hint that makes a restart quick. Losing it harms nothing."""

    bootstrap: Configuration | None = None
    """The configuration that the cluster began with, if this is where it begins."""
    rebase: Rebase | None = None

    recovery: Configuration | None = None
    """The members from now on, instead of those in the log: see recovery.py. In a write of its own."""

    @property
    def must_sync(self) -> bool:
        must = self.hard_state is not None or bool(self.entries)
        return must or self.rebase is not None or self.recovery is not None


class LogStore(Protocol):
    """The entries after the base, without a gap."""

    @property
    def base(self) -> Base: ...

    @property
    def last_index(self) -> int:
        """Of the last entry stored, or the base's."""
        ...

    def entries(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """The entries from `first` to `last`, both included: at least one, and no more than fit into `max_bytes`.
        Raises StoreError if one is missing or corrupt."""
        ...

    def configurations(self) -> list[tuple[int, Configuration]]:
        """The configuration at the base and every one after it, with the index of its entry, oldest first. After a
        recovery, its members take the place of all that the log held then, and of the first of their indices."""
        ...


class StableStore(Protocol):
    """The few values beside the log."""

    @property
    def hard_state(self) -> HardState: ...

    @property
    def commit(self) -> int:
        """The last commit index recorded; the true one is at least this."""
        ...

    @property
    def bootstrapped(self) -> Configuration | None:
        """What this site was bootstrapped with, None if it was not (yet)."""
        ...

    @property
    def recovered(self) -> int:
        """The last index that the log had when members were last forced on this site, or what of it has not been
        replaced since; 0: never. Up to it, what the log itself says about members is void."""
        ...


class Store(LogStore, StableStore, Protocol):
    """Both, in one place, so that they can change in one batch."""

    def write(self, writes: Sequence[Write]) -> None:
        """Make them durable, if any of them must be. Raises StoreError."""
        ...

    def prepare(self, writes: Sequence[Write]) -> Callable[[], None]:
        """The same in two steps: this one never waits for the disk, and the call of what it returns, in whatever
        thread, does the rest. One such pair at a time. Both raise StoreError."""
        ...

    def sweep(self, count: int) -> bool:
        """Free the space of up to `count` entries that are not in the log any more. True if there may be more of them.

        Needs no order with `write` and may run in a thread of its own, one at a time. Raises StoreError.
        """
        ...

    def size(self) -> int:
        """About how many bytes the entries take on disk; the newest few MiB may be missing."""
        ...

    def close(self) -> None: ...
