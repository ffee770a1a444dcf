"""Units that missed a statement which took their rows to another name.

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

    def decided(self, index: int, skipped: Iterable[int]) -> bool:
        """Whether somebody has seen to the rows since: at the entry at log index ``index``, at one before it that
        missed the statement, too, or at the statement."""
        return any(self.index <= each <= index for each in skipped)

    def stops(self, index: int, origin: int) -> str:
        """Why every site stops at the entry at log index ``index``, of site ``origin``, and what to do."""
        tables = ", ".join(sorted(schema if name is None else f"{schema}.{name}" for schema, name in self.tables))
        return (
            f"log index {index}, from site {origin}: it wrote rows before {self.ddl.shown!r} ran there (log index "
            f"{self.index}, from site {self.origin}), which took them along to another name. Every site stops here. "
            f"Stop the writers, make the rows of {tables}, and of the tables that they went to, equal at all sites by "
            f"hand (SET sql_log_bin = 0), then `mysqlraft skip --index {index}` at each: what site {origin} wrote is "
            "then written to the tables that have these names now, so make those that are missing"
        )


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
