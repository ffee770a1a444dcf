"""Units that came too late for a statement which took their rows to another name.

Such a unit was written before its site knew the statement, and is behind it in the log. At its origin the statement has
taken its rows along; at the other sites they come to whatever has the table's name now. What is to become of them
cannot be told, so every site stops there.

Pure, and a function of the log alone, as `additions` is: nothing of this is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mysqlraft.binlog.moved_tables import moved
from mysqlraft.replication.certify import TableName
from mysqlraft.replication.entry import Ddl


@dataclass(frozen=True, slots=True)
class Move:
    """A statement that took rows of ``tables`` to another name: its log index and its site."""

    index: int
    origin: int
    ddl: Ddl
    tables: frozenset[TableName]

    def meets(self, table: TableName) -> bool:
        return table in self.tables or (table[0], None) in self.tables


class Moves:
    """Those above the floor, in the order of the log."""

    def __init__(self) -> None:
        self._moves: list[Move] = []

    def enter(self, index: int, origin: int, ddl: Ddl) -> None:
        """Takes the next statement."""
        tables = moved(ddl.text, ddl.schema)
        if tables:
            self._moves.append(Move(index, origin, ddl, tables))

    def missed(self, origin: int, base: int, tables: Iterable[TableName]) -> Move | None:
        """The last one that a unit of these tables did not know, of another site."""
        if not self._moves:
            return None
        tables = tuple(tables)
        for move in reversed(self._moves):
            if move.index <= base:
                return None
            if move.origin != origin and any(map(move.meets, tables)):
                return move
        return None

    def forget(self, floor: int) -> None:
        """No unit to come has a base below ``floor``."""
        self._moves = [move for move in self._moves if move.index > floor]
