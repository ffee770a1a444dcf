"""Sets of GTIDs: what a server has executed, in the order of its binlog.

MySQL: ``uuid:1-5:7,uuid:tag:1-3``. MariaDB: the last of each domain, ``0-1-42,1-2-7``.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right


class GtidSet:
    """A MySQL set that grows one transaction at a time. Intervals are half-open, sorted and apart."""

    def __init__(self, text: str = "") -> None:
        """Reads the server's form.

        Raises:
            ValueError: not a GTID set.
        """
        self.intervals: dict[tuple[bytes, str], list[list[int]]] = {}
        self._texts: dict[tuple[bytes, str], str] = {}
        # The source of the last transaction and its last interval: nearly always the next one extends it.
        self._next: tuple[tuple[bytes, str], list[int]] = ((b"", ""), [0, 0])
        for part in text.replace("\n", "").replace(" ", "").split(","):
            if not part:
                continue
            source, *rest = part.split(":")
            sid, tag = uuid.UUID(source).bytes, ""
            for piece in rest:
                if not piece[0].isdigit():
                    tag = piece.lower()
                    continue
                first, _, last = piece.partition("-")
                self._add_range(sid, tag, int(first), int(last or first) + 1)

    def _add_range(self, sid: bytes, tag: str, start: int, end: int) -> None:
        ranges = self.intervals.get((sid, tag), [])
        merged: list[list[int]] = []
        for low, high in sorted([*ranges, [start, end]]):
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        self.intervals[sid, tag] = merged

    def add(self, sid: bytes, tag: str, number: int) -> None:
        """Adds one transaction; cheap when it is the next of its source."""
        key = (sid, tag)
        if key == self._next[0] and number == self._next[1][1]:
            self._next[1][1] = number + 1
            return
        self._settle()
        self._texts.pop(key, None)
        ranges = self.intervals.get(key)
        if ranges is None:
            ranges = self.intervals[key] = [[number, number + 1]]
        elif ranges[-1][1] == number:
            ranges[-1][1] = number + 1
        if ranges[-1][1] == number + 1:
            self._next = (key, ranges[-1])
            return
        at = bisect_right(ranges, [number, 1 << 64])
        if at and number < ranges[at - 1][1]:
            return
        self._add_range(sid, tag, number, number + 1)

    def holds(self, sid: bytes, tag: str, number: int) -> bool:
        """Whether this transaction is in the set."""
        ranges = self.intervals.get((sid, tag), [])
        at = bisect_right(ranges, [number, 1 << 64])
        return bool(at) and number < ranges[at - 1][1]

    def _settle(self) -> None:
        """The text of the source that grew by itself is made anew when asked for."""
        self._texts.pop(self._next[0], None)

    def __str__(self) -> str:
        self._settle()
        texts = self._texts
        for key, ranges in self.intervals.items():
            if key not in texts:
                sid, tag = key
                spans = ":".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges)
                texts[key] = f"{uuid.UUID(bytes=sid)}:{tag + ':' if tag else ''}{spans}"
        return ",".join(texts[key] for key in sorted(texts))


class DomainPositions:
    """A MariaDB position: the last GTID of each domain."""

    def __init__(self, text: str = "") -> None:
        """Reads the server's form.

        Raises:
            ValueError: not a list of GTIDs.
        """
        self.last: dict[int, tuple[int, int]] = {}
        for part in text.replace(" ", "").split(","):
            if part:
                domain, server, number = part.split("-")
                self.last[int(domain)] = (int(server), int(number))

    def add(self, domain: int, server: int, number: int) -> None:
        """Makes this GTID the last of its domain."""
        self.last[domain] = (server, number)

    def holds(self, domain: int, server: int, number: int) -> bool:
        """Whether this GTID is at or before the last of its domain."""
        return number <= self.last.get(domain, (0, -1))[1]

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{number}" for domain, (server, number) in sorted(self.last.items()))


def encode_gtid_set(text: str) -> bytes:
    """The form in which COM_BINLOG_DUMP_GTID carries a set: plain, or (MySQL >= 8.3) with tags if it has any."""
    found = GtidSet(text).intervals
    tagged = any(tag for _, tag in found)
    count = len(found)
    parts = [(1 << 56 | count << 8 | 1 if tagged else count).to_bytes(8, "little")]
    for (sid, tag), ranges in sorted(found.items()):
        parts.append(sid)
        if tagged:
            parts.append(bytes((len(tag) << 1,)) + tag.encode())
        parts.append(len(ranges).to_bytes(8, "little"))
        parts += [a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in ranges]
    return b"".join(parts)
