"""The tables whose rows a binlog holds: their table maps, and how the keys of their rows are found."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from mysqlraft.binlog import tablemap
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import KeyDefinition, KeySource, Slicer, compile_slicer, known_keys
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.rows import RowKind, RowsError


class MappedTable:
    """A table map as long as its number is valid; ``keys`` None: not replicated.

    ``known_from``: for rows of transactions that end before this place the keys may have been others: it is where the
    binlog ended when they had been asked for, and a statement that the stream has not come to may lie before it. None:
    the stream is past that place.
    """

    __slots__ = ("body", "keys", "known_from", "layout_bytes", "name", "parsed", "slicers")

    def __init__(
        self, name: tuple[str, str], body: bytes, keys: list[KeyDefinition] | None, known_from: tuple[float, int] | None
    ) -> None:
        self.known_from = known_from
        self.name = name
        self.body = body
        self.keys = keys
        self.parsed = tablemap.parse(body)
        count = len(self.parsed.columns)
        bitmap = (count + 7) // 8
        self.layout_bytes = (1 if count < 251 else 3) + bitmap, (1 if count < 251 else 3) + 2 * bitmap
        self.slicers: tuple[dict[bytes, Slicer], ...] = ({}, {}, {})


class MappedTables:
    """Those that a stream has met, as long as no statement may have changed them."""

    def __init__(self, source: KeySource, replicated: Callable[[str, str | None], bool]) -> None:
        self.by_map: dict[bytes, MappedTable] = {}
        """By the TABLE_MAP's event without its header."""
        self._source = source
        self._replicated = replicated

    def add(self, key: bytes) -> MappedTable:
        """A table map that is met for the first time.

        Raises:
            BinlogError: it is garbled, or the table has a key that rows do not tell.
        """
        body = key[8:]
        try:
            name = tablemap.names(body)
        except IndexError:
            raise BinlogError("a table map is cut short") from None
        keys: list[KeyDefinition] | None = None
        known_from: tuple[float, int] | None = None
        try:
            if name[0] not in NEVER and self._replicated(*name):
                keys, there = known_keys(tablemap.parse(body), self._source)
                file, offset = self._source.binlog_end()
                known_from = (file_number(file), offset) if there else (inf, 0)
            table = self.by_map[key] = MappedTable(name, body, keys, known_from)
        except tablemap.TableMapError as error:
            raise BinlogError(str(error)) from None
        return table

    def slicer(self, table: MappedTable, kind: RowKind, layout: bytes) -> Slicer:
        """Of rows of a layout that is met for the first time.

        Raises:
            BinlogError: the layout is not this table's, or lacks a key's column.
        """
        assert table.keys is not None
        try:
            slicer = compile_slicer(table.parsed, kind, layout, table.keys, self._source)
        except RowsError as error:
            raise BinlogError(str(error)) from None
        table.slicers[kind][layout] = slicer
        return slicer
