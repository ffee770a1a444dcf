"""Rows of a transaction put by until it is known how it ends: in memory while few, then in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import msgpack


class Spool:
    """Records, written once and then read once, in order."""

    def __init__(self, memory: int) -> None:
        """``memory``: bytes that may stay in memory."""
        self._file = tempfile.SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
        self.records = 0

    def write(self, record: Any) -> None:
        packed = msgpack.packb(record)
        self._file.write(len(packed).to_bytes(4, "little"))
        self._file.write(packed)
        self.records += 1

    def read(self) -> Iterator[Any]:
        """All records, from the first."""
        self._file.seek(0)
        for _ in range(self.records):
            size = int.from_bytes(self._file.read(4), "little")
            yield msgpack.unpackb(self._file.read(size))

    def close(self) -> None:
        self._file.close()
