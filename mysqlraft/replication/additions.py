"""Which columns the statements of the log have added, as long as rows that lack them may still come.

Pure, and a function of the log alone: every statement is entered at its index, and forgotten once the floor has passed
it, since a unit with a base at or above a statement was written under it. The statements above the floor are stepped
again at a start, so nothing of this is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from mysqlraft.binlog.added_columns import AddedColumn, column_change
from mysqlraft.replication.entry import Ddl


@dataclass(frozen=True, slots=True)
class Addition:
    """A column that the statement at ``index`` added; ``column`` None: a statement that did more to a table's columns
    than adding some."""

    index: int
    ddl: Ddl
    column: AddedColumn | None


class Additions:
    """By table, in the order of the log."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str | None], list[Addition]] = {}

    def enter(self, index: int, ddl: Ddl) -> None:
        """Takes the next statement."""
        explicit = ddl.context.get("explicit_defaults_for_timestamp") == 1
        change = column_change(ddl.text, ddl.schema, explicit)
        tables = [(schema.lower(), None if table is None else table.lower()) for schema, table in ddl.tables]
        columns: list[AddedColumn | None] = [] if change.whole else [None]
        if len(tables) == 1 and tables[0][1] is not None:
            columns += change.added
        elif change.added:
            columns = [None]  # Of which of the tables cannot be told.
        for table in tables:
            for column in columns:
                if column is not None and column.unless_there and self._named(table, column.name):
                    continue
                self._of.setdefault(table, []).append(Addition(index, ddl, column))

    def _named(self, table: tuple[str, str | None], name: str) -> bool:
        return self.find(table[0], table[1] or "", name) is not None

    def find(self, schema: str, table: str, column: str) -> Addition | None:
        """What added the column last. One whose ``column`` is None: later, more was done to the table than can be told.
        None: no statement above the floor has to do with it."""
        schema, table, column = schema.lower(), table.lower(), column.casefold()
        found: Addition | None = None
        for name in ((schema, None), (schema, table)):
            for addition in self._of.get(name, ()):
                if addition.column is not None and addition.column.name.casefold() != column:
                    continue
                # A statement's own additions are entered after the rest of it.
                if found is None or addition.index >= found.index:
                    found = addition
        return found

    def forget(self, floor: int) -> None:
        """No unit to come has a base below ``floor``."""
        if not self._of:
            return
        kept = {table: [one for one in found if one.index > floor] for table, found in self._of.items()}
        self._of = {table: found for table, found in kept.items() if found}
