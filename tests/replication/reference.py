"""The semantics of a unit, in the plainest form: what both apply lanes must do (DESIGN 7)."""

from __future__ import annotations

from collections.abc import Iterable

Row = tuple[int, int, int]
"""Primary key, unique secondary key, value."""
RowChange = tuple[Row | None, Row | None]
"""Before and after image; None for an insert's before and a delete's after."""


class Table(dict[int, tuple[int, int]]):
    """Primary key -> (secondary key, value). ``unique``: whether the secondary key is unique, as it is at first."""

    unique = True

    def write(self, row: Row) -> None:
        """Puts the row in the place of every row that holds one of its keys."""
        key, unique, value = row
        if self.unique:
            for other in [k for k, (u, _) in self.items() if u == unique and k != key]:
                del self[other]
        self[key] = (unique, value)

    def apply(self, changes: Iterable[RowChange]) -> None:
        """insert = write(after); update = delete(before's key), write(after); delete = delete(key)."""
        for before, after in changes:
            if before:
                self.pop(before[0], None)
            if after:
                self.write(after)
