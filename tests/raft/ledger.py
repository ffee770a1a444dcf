"""A small FSM: which proposals counted, a running checksum of them all, and the last few themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgpack
from xxhash import xxh3_64_intdigest

from mysqlraft.raft import Entry, EntryKind, SessionTable


class Ledger:
    """Two ledgers that have applied the same log have the same digest."""

    def __init__(self, keep: int = 8) -> None:
        self.index = 0
        self.count = 0
        """Of the proposals that counted."""
        self.digest = 0
        self.sessions = SessionTable()
        self.kept: deque[bytes] = deque(maxlen=keep)

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.index + 1, f"entry {entry.index} after {self.index}"
        self.index = entry.index
        if entry.kind is not EntryKind.DATA or not self.sessions.accept(entry.origin, entry.session, entry.sequence):
            return
        payload = entry.payload
        self.count += 1
        self.digest = xxh3_64_intdigest(payload, self.digest)
        self.kept.append(payload)

    def snapshot(self) -> Iterable[bytes]:
        sessions = sorted(self.sessions.to_dict().items())
        head = msgpack.packb((self.index, self.count, self.digest, sessions))
        return [head, *[msgpack.packb(payload) for payload in self.kept]]

    def restore(self, data: Iterable[bytes]) -> None:
        unpacker = msgpack.Unpacker()
        for part in data:
            unpacker.feed(part)
        self.index, self.count, self.digest, sessions = next(unpacker)
        self.sessions = SessionTable.from_dict({origin: tuple(last) for origin, last in sessions})
        self.kept = deque(unpacker, maxlen=self.kept.maxlen)
