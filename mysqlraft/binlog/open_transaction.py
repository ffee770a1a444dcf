"""The rows of the transaction that is being read, until they leave: at its end, or in parts while it still comes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from mysqlraft.binlog.changes import RowGroup, Rows
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import Slicer
from mysqlraft.binlog.mapped_tables import MappedTable
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.rows import RowKind, RowsError, split
from mysqlraft.binlog.spool import Spool


@dataclass(slots=True)
class _Savepoint:
    name: bytes
    parts: int
    groups: int
    count: int
    images: int
    keys: int


class OpenTransaction:
    """Between two transactions it is empty.

    ``groups``, ``size`` (of their images) and the keys are what has come since the last part left; ``parts`` counts
    those.
    """

    def __init__(self) -> None:
        self.groups: list[RowGroup] = []
        self.size = 0
        self.parts = 0
        self._keys: list[int] = []
        self._unsure: dict[bytes, MappedTable] = {}
        """TABLE_MAP's body -> table, of all its parts, whose keys may have been others then."""
        self._savepoints: list[_Savepoint] = []

    def clear(self) -> None:
        """Forget it."""
        if self.groups or self.parts or self._unsure or self._savepoints:
            self.groups, self._keys, self.size, self.parts = [], [], 0, 0
            self._unsure, self._savepoints = {}, []

    def add(self, table: MappedTable, kind: RowKind, layout: bytes, images: bytes, slicer: Slicer) -> int:
        """Rows of one event. How many they are.

        Raises:
            BinlogError: they do not fit the table.
        """
        size = len(images)
        try:
            count = slicer(images, 0, size, self._keys.append)
        except IndexError:
            raise BinlogError(f"{'.'.join(table.name)}: row images are cut short or garbled") from None
        groups = self.groups
        if groups and (last := groups[-1]).table is table.body and last.kind is kind and last.layout == layout:
            last.count += count
            last.images.append(images)
        else:
            groups.append(RowGroup(table.body, kind, layout, count, [images]))
            if table.known_from is not None:
                self._unsure[table.body] = table
        self.size += size
        return count

    def take(self, base: int, committed_at: int, end: tuple[str, int] | None = None) -> Rows:
        """What is held, as the next part; as the last one if the transaction's ``end`` is known. Then this is empty."""
        found, groups, size, part = self._keys, self.groups, self.size, self.parts
        keys = found[0].to_bytes(8, "little") if len(found) == 1 else _distinct(found)
        self.groups, self._keys, self.size = [], [], 0
        if end is None:
            self.parts = part + 1
            return Rows(base, committed_at, keys, groups, size, part, False, [])
        wild = self._wild(end) if self._unsure else []
        if part or self._unsure or self._savepoints:
            self.parts, self._unsure, self._savepoints = 0, {}, []
        return Rows(base, committed_at, keys, groups, size, part, True, wild)

    def put_by(self, spool: Spool, at: tuple[str, int]) -> None:
        """Move what is held there; ``at``: where the stream is."""
        packed = [(g.table, g.kind, g.layout, g.count, b"".join(g.images)) for g in self.groups]
        spool.write((_distinct(self._keys), packed, self.size, self._wild(at) if self._unsure else []))
        self.groups, self._keys, self.size = [], [], 0

    def _wild(self, end: tuple[str, int]) -> list[bytes]:
        """The tables whose keys were asked for when more than `end` was in the binlog."""
        reached = (file_number(end[0]), end[1])
        found = []
        for table in self._unsure.values():
            if table.known_from is not None and table.known_from > reached:
                found.append(table.body)
            else:
                table.known_from = None
        return found

    def save(self, name: bytes) -> None:
        """SAVEPOINT."""
        self._savepoints.append(
            _Savepoint(
                name,
                self.parts,
                len(self.groups),
                self.groups[-1].count if self.groups else 0,
                len(self.groups[-1].images) if self.groups else 0,
                len(self._keys),
            )
        )

    def rollback_to(self, name: bytes) -> None:
        """ROLLBACK TO. The server writes this only where it could not just leave the rows out.

        Raises:
            BinlogError: they have left.
        """
        while self._savepoints and self._savepoints[-1].name != name:
            self._savepoints.pop()
        if not self._savepoints or self._savepoints[-1].parts != self.parts:
            raise BinlogError(f"ROLLBACK TO {name.decode('latin-1')} in the binlog, after rows that have already left")
        point = self._savepoints[-1]
        del self.groups[point.groups :]
        if self.groups:
            self.groups[-1].count = point.count
            del self.groups[-1].images[point.images :]
        del self._keys[point.keys :]
        self.size = sum(len(image) for group in self.groups for image in group.images)


def _distinct(keys: list[int]) -> bytes:
    return array("Q", dict.fromkeys(keys)).tobytes()


def pieces(table: MappedTable, kind: RowKind, layout: bytes, images: bytes, piece_bytes: int) -> Iterator[bytes]:
    """The images of a large event, cut between rows into pieces of about so many bytes.

    Raises:
        BinlogError: they do not fit the table.
    """
    start = at = 0
    try:
        for before, after in split(table.parsed, kind, layout, images):
            at += len(before or b"") + len(after or b"")
            if at - start >= piece_bytes:
                yield images[start:at]
                start = at
    except RowsError as error:
        raise BinlogError(str(error)) from None
    if at > start:
        yield images[start:at]
