"""What the log is for: a finite state machine that every site feeds the same entries (hashicorp/raft's `FSM`).

`Applier` feeds one from a `Node`, takes its snapshots, compacts the log behind them, and restores it when a snapshot
from the leader has taken the place of entries that this site never saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from mysqlraft.raft.entry import Entry
from mysqlraft.raft.node import Node
from mysqlraft.raft.store import Compacted

APPLY_BYTES = 1024 * 1024


class FSM(Protocol):
    """Deterministic: its state depends on the entries it was given, in their order, and on nothing else."""

    def apply(self, entry: Entry) -> None:
        """Take the next committed entry; they come without gaps, those of Raft itself included."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """Its state now, in parts that are read in another thread before the next entry is applied."""
        ...

    def restore(self, data: Iterable[bytes]) -> None:
        """Take this state in place of its own. Called in another thread, while nothing is applied."""
        ...


class Applier:
    """Keeps one FSM up to date with its site's log."""

    def __init__(self, node: Node, fsm: FSM, *, snapshot_entries: int, trailing_entries: int) -> None:
        """A snapshot is taken every `snapshot_entries`, and the log then compacted but for the last
        `trailing_entries`: a follower that is no further behind needs no snapshot."""
        self.node = node
        self.fsm = fsm
        self.applied = 0
        """The last entry that the FSM holds."""
        self.restored = 0
        """How often the FSM was restored from a snapshot."""
        self._snapshot_entries = snapshot_entries
        self._trailing_entries = trailing_entries

    async def run(self) -> None:
        """Until cancelled. Raises StoreError if the log or a snapshot cannot be read."""
        node = self.node
        if node.snapshot is not None:
            await self._restore()
        while True:
            await node.wait_committed(self.applied + 1)
            try:
                entries = node.committed_entries(self.applied + 1, APPLY_BYTES)
            except Compacted:
                await self._restore()
                continue
            for entry in entries:
                self.fsm.apply(entry)
            self.applied = entries[-1].index
            latest = node.snapshot
            if self.applied - (latest.last_index if latest is not None else 0) >= self._snapshot_entries:
                await self.snapshot()
            await asyncio.sleep(0)

    async def snapshot(self) -> None:
        """Take one now, and compact the log behind it."""
        made = await self.node.save_snapshot(self.applied, self.fsm.snapshot())
        self.node.compact(made.last_index - self._trailing_entries)

    async def _restore(self) -> None:
        snapshot = self.node.snapshot
        if snapshot is None or snapshot.last_index <= self.applied:
            raise Compacted(f"entry {self.applied + 1} is not in the log any more, and no snapshot holds it")
        await asyncio.to_thread(self.fsm.restore, self.node.snapshot_data(snapshot))
        self.applied = snapshot.last_index
        self.restored += 1
