"""Rows of a transaction put by until it is known how it ends: in memory while few, then in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import msgpack


class Spool:
    """Records, written in order, the last of them maybe taken back; then all read once."""

    def __init__(self, memory: int) -> None:
        """``memory``: bytes that may stay in memory."""
        self._file = tempfile.SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
        self._starts: list[int] = []

    @property
    def records(self) -> int:
        return len(self._starts)

    def write(self, record: Any) -> None:
        self._starts.append(self._file.tell())
        packed = msgpack.packb(record)
        self._file.write(len(packed).to_bytes(4, "little"))
        self._file.write(packed)

    def read(self) -> Iterator[Any]:
        """All records, from the first."""
        self._file.seek(0)
        for _ in range(self.records):
            size = int.from_bytes(self._file.read(4), "little")
            yield msgpack.unpackb(self._file.read(size))

    def take_back(self, number: int) -> Any:
        """Takes out the record of this number, which is returned, and all after it."""
        at = self._starts[number]
        self._file.seek(at)
        size = int.from_bytes(self._file.read(4), "little")
        record = msgpack.unpackb(self._file.read(size))
        self._file.seek(at)
        self._file.truncate()
        del self._starts[number:]
        return record

    def close(self) -> None:
        self._file.close()
