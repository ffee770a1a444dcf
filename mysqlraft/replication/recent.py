"""The entries that were looked at last, kept decoded.

A conflict is with something recent, and its history shows what that entry wrote: reading each of them from the log
again would cost apply a round trip to the consensus process.
"""

from __future__ import annotations

from collections import deque

from mysqlraft.replication.entry import Payload

RECENT_BYTES = 4 << 20
"""Bytes of encoded payloads; decoded they take a few times as many."""


class RecentEntries:
    """Payloads by log index. Invariant: the oldest go first, and those kept were at most RECENT_BYTES encoded."""

    def __init__(self, limit: int = RECENT_BYTES) -> None:
        self._limit = limit
        self._payloads: dict[int, Payload] = {}
        self._order: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def add(self, index: int, payload: Payload, size: int) -> None:
        """``size``: bytes of the encoded payload."""
        if size > self._limit or index in self._payloads:
            return
        self._payloads[index] = payload
        self._order.append((index, size))
        self._bytes += size
        while self._bytes > self._limit:
            oldest, bytes_ = self._order.popleft()
            del self._payloads[oldest]
            self._bytes -= bytes_

    def get(self, index: int) -> Payload | None:
        return self._payloads.get(index)
