"""Rows that were written while their table had no primary key. They cannot be replicated, and are at this site only.

The table `mysqlraft.left_out` says how many there are of each table, until somebody has made the table equal at all
sites and deletes its line. It is written before the log holds a position behind the rows. Those that are read again
after a crash are not counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mysqlraft.binlog.position import file_number
from mysqlraft.mysql.schema import quoted

Query = Callable[[str], Sequence[Sequence[Any]]]
_Name = tuple[str, str]


class LeftOutRows:
    """What is left out at one site. For one thread, except `totals`."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        """Table -> rows; replaced, never changed."""
        self._new: dict[_Name, tuple[int, str, int]] = {}
        self._read: dict[_Name, tuple[int, int]] = {}

    def load(self, query: Query) -> None:
        """Reads what was left out before. Raises pymysql.err.MySQLError."""
        totals = {}
        self._new.clear()
        for schema, table, count, file, offset in query(
            "SELECT schema_name, table_name, row_count, file, position FROM mysqlraft.left_out"
        ):
            totals[f"{schema}.{table}"] = int(count)
            self._read[schema, table] = file_number(file), int(offset)
        self.totals = totals

    def add(self, name: _Name, count: int, file: str, offset: int) -> None:
        """So many rows of an event that ends there."""
        if (file_number(file), offset) > self._read.get(name, (0, 0)):
            self._new[name] = self._new.get(name, (0, "", 0))[0] + count, file, offset

    def write(self, query: Query) -> None:
        """Keeps what was added since. Raises pymysql.err.MySQLError."""
        for (schema, table), (count, file, offset) in list(self._new.items()):
            query(
                "INSERT INTO mysqlraft.left_out (schema_name, table_name, row_count, file, position) VALUES"
                f" ({quoted(schema)}, {quoted(table)}, {count}, {quoted(file)}, {offset})"
                f" ON DUPLICATE KEY UPDATE row_count = row_count + {count}, file = {quoted(file)}, position = {offset}"
            )
            del self._new[schema, table]
            self._read[schema, table] = file_number(file), offset
            full = f"{schema}.{table}"
            self.totals = {**self.totals, full: self.totals.get(full, 0) + count}
