"""The rows of the transaction that is being read, until they leave: at its end, or in parts while it still comes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from mysqlraft.binlog.changes import RowGroup, Rows
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import Slicer
from mysqlraft.binlog.large_row import CutRows
from mysqlraft.binlog.mapped_tables import MappedTable
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.rows import RowKind
from mysqlraft.binlog.spool import Spool

GROUP_BYTES = 256 << 10
"""A group of more rows than this is not made: it would have to be cut where it is written."""


@dataclass(slots=True)
class _Savepoint:
    """``records``: of the spool, then. ``groups`` and ``keys``: how many were held beside them; ``count``, ``size``:
    rows and bytes of the last group.
    """

    name: bytes
    parts: int
    records: int
    groups: int
    count: int
    size: int
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
        self._group_bytes = 0
        self._keys: list[int] = []
        self._unsure: dict[bytes, MappedTable] = {}
        """TABLE_MAP's body -> table, of all its parts, whose keys may have been others then."""
        self._savepoints: list[_Savepoint] = []

    @property
    def held(self) -> int:
        """Bytes of all that has come since the last part left, keys included."""
        return self.size + 8 * len(self._keys)

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
        try:
            count = slicer(images, 0, len(images), self._keys.append)
        except IndexError:
            raise BinlogError(f"{'.'.join(table.name)}: row images are cut short or garbled") from None
        self._keep(table, kind, layout, images, count)
        return count

    def add_cut(self, table: MappedTable, kind: RowKind, rows: CutRows, images: bytes, slicer: Slicer) -> int:
        """Rows of a large event, whose ``images`` tell their keys. How many they are.

        Raises:
            BinlogError: they do not fit the table.
        """
        try:
            count = slicer(images, rows.start, rows.end, self._keys.append)
        except IndexError:
            raise BinlogError(f"{'.'.join(table.name)}: row images are cut short or garbled") from None
        self._keep(table, kind, rows.layout, rows.images, count)
        return count

    def _keep(self, table: MappedTable, kind: RowKind, layout: bytes, images: bytes, count: int) -> None:
        groups, size = self.groups, len(images)
        if (
            groups
            and (last := groups[-1]).table is table.body
            and last.kind is kind
            and last.layout == layout
            and self._group_bytes + size <= GROUP_BYTES
        ):
            last.count += count
            last.images.append(images)
            self._group_bytes += size
        else:
            groups.append(RowGroup(table.body, kind, layout, count, [images]))
            self._group_bytes = size
            if table.known_from is not None:
                self._unsure[table.body] = table
        self.size += size

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

    @property
    def may_go_back(self) -> bool:
        """Whether rows that come now may be taken back by ROLLBACK TO, so that they must not leave yet."""
        return bool(self._savepoints)

    def save(self, name: bytes, spool: Spool | None) -> None:
        """SAVEPOINT. ``spool``: where some of the transaction's rows are put by, if there are any."""
        last = self.groups[-1] if self.groups else None
        self._savepoints.append(
            _Savepoint(
                name,
                self.parts,
                spool.records if spool is not None else 0,
                len(self.groups),
                last.count if last is not None else 0,
                sum(map(len, last.images)) if last is not None else 0,
                len(self._keys),
            )
        )

    def rollback_to(self, name: bytes, spool: Spool | None, fold: Callable[[bytes], bytes]) -> None:
        """ROLLBACK TO. The server writes this only where it could not just leave the rows out. Keys of rows that were
        put by stay: one too many costs a conflict that is none. ``fold``: of names, to tell which the server takes for
        the same.

        Raises:
            BinlogError: they have left.
        """
        wanted = fold(name)
        while self._savepoints and fold(self._savepoints[-1].name) != wanted:
            self._savepoints.pop()
        if not self._savepoints or self._savepoints[-1].parts != self.parts:
            raise BinlogError(f"ROLLBACK TO {name.decode('latin-1')} in the binlog, after rows that have already left")
        point = self._savepoints[-1]
        if spool is not None and spool.records > point.records:
            keys, packed, _, _ = spool.take_back(point.records)
            self.groups = [
                RowGroup(table, RowKind(kind), layout, n, [images]) for table, kind, layout, n, images in packed
            ]
            self._keys = list(array("Q", keys))
        else:
            del self._keys[point.keys :]
        del self.groups[point.groups :]
        if self.groups:
            last = self.groups[-1]
            last.count, last.images = point.count, [b"".join(last.images)[: point.size]]
        self.size = sum(len(image) for group in self.groups for image in group.images)


def _distinct(keys: list[int]) -> bytes:
    return array("Q", dict.fromkeys(keys)).tobytes()
