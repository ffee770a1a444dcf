"""Consensus: one replicated log, agreed on by a majority of sites. Nothing in here knows what is in it.

What does I/O is loaded when it is first asked for: the pure part needs none of its packages, and runs on PyPy too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mysqlraft.raft.bootstrap import bootstrap
from mysqlraft.raft.configuration import NOBODY, Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.core import RaftCore
from mysqlraft.raft.entry import CorruptRecord, Entry, EntryKind
from mysqlraft.raft.forward import Forwarder
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.memory_store import MemorySnapshotStore, MemoryStore
from mysqlraft.raft.participant import Participant
from mysqlraft.raft.ready import Ready
from mysqlraft.raft.roles import NotLeader, Role
from mysqlraft.raft.sessions import SessionTable
from mysqlraft.raft.snapshot import Snapshot
from mysqlraft.raft.store import HardState, LogStore, StableStore, Store, StoreError, Write, WrongDirectory

if TYPE_CHECKING:
    from mysqlraft.raft.leveldb_store import LevelDBStore
    from mysqlraft.raft.node import Node
    from mysqlraft.raft.snapshot_store import FileSnapshotStore, SnapshotStore
else:
    _MODULES = {
        "FileSnapshotStore": "snapshot_store",
        "LevelDBStore": "leveldb_store",
        "Node": "node",
        "SnapshotStore": "snapshot_store",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "NOBODY",
    "Change",
    "Configuration",
    "ConfigurationError",
    "CorruptRecord",
    "Entry",
    "EntryKind",
    "FileSnapshotStore",
    "Forwarder",
    "HardState",
    "LevelDBStore",
    "Limits",
    "LogStore",
    "MemorySnapshotStore",
    "MemoryStore",
    "Node",
    "NotLeader",
    "Participant",
    "RaftCore",
    "Ready",
    "Role",
    "Server",
    "SessionTable",
    "Snapshot",
    "SnapshotStore",
    "StableStore",
    "Store",
    "StoreError",
    "Write",
    "WrongDirectory",
    "bootstrap",
]
