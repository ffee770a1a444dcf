"""The core's only output: what it wants sent, written and told. See core.py for the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mysqlraft.raft.entry import Entry
from mysqlraft.raft.messages import Message, SnapshotChunkRequest
from mysqlraft.raft.roles import Transition
from mysqlraft.raft.snapshot import SnapshotWork
from mysqlraft.raft.store import HardState, Write


class ReadState(NamedTuple):
    """A linearizable read that was asked for with `context` may be served once `index` is applied."""

    context: Any
    index: int  # type: ignore[assignment]  # shadows tuple.index


@dataclass(slots=True)
class Ready:
    """What the core wants done; see core.py for the rules."""

    number: int
    """Counts up by one; `advance` must be called in this order."""
    messages: list[Message] = field(default_factory=list)
    promises: list[Message] = field(default_factory=list)
    write: Write | None = None
    read_states: list[ReadState] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    commit_index: int = 0
    truncations: int = 0
    """How often the log had been truncated when this Ready was given out."""
    chunk_requests: list[SnapshotChunkRequest] = field(default_factory=list)
    """Followers that want parts of this leader's snapshot; see snapshot.SnapshotSender."""
    snapshot_work: list[SnapshotWork] = field(default_factory=list)
    """For the disk that a snapshot arrives on, beside `write`; see snapshot.SnapshotReceiver."""

    @property
    def hard_state(self) -> HardState | None:
        return self.write.hard_state if self.write else None

    @property
    def entries_to_append(self) -> Sequence[Entry]:
        return self.write.entries if self.write else ()
