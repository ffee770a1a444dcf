"""The temporary tables that sessions have made by statements in the binlog.

A session that logs rows writes nothing of its temporary tables. One that logs statements writes all of it, and ALTER,
TRUNCATE and indexes in the same words as of any table. Their events have a flag, but that says less than it seems: in
a procedure it stays on after anything was done to a temporary table, and then is on events about other tables, too. So
such a statement is about a temporary table only if the same session made one of that name before.
"""

from __future__ import annotations

from mysqlraft.binlog.statements import Statement

_Name = tuple[str, str | None]


class TemporaryTables:
    """Those of all sessions, by the server's numbers of these."""

    def __init__(self) -> None:
        self._made: dict[int, set[_Name]] = {}

    def __contains__(self, table: tuple[int, _Name]) -> bool:
        session, name = table
        return _lower(name) in self._made.get(session, ())

    def clear(self) -> None:
        """The server has started: all sessions and their tables have ended."""
        self._made.clear()

    def read(self, session: int, what: Statement) -> None:
        """A statement in the binlog, in its place."""
        names = [_lower(name) for name in what.objects]
        if what.temporary and what.verb == "CREATE TABLE":
            self._made.setdefault(session, set()).update(names)
        elif (made := self._made.get(session)) is None:
            return
        elif what.temporary and what.verb.startswith("DROP TABLE"):
            made.difference_update(names)
            if not made:
                del self._made[session]
        elif what.verb == "RENAME TABLE" or (what.verb == "ALTER TABLE" and len(names) == 2):
            for old, new in zip(names[::2], names[1::2], strict=False):
                if old in made:
                    made.remove(old)
                    made.add(new)


def _lower(name: _Name) -> _Name:
    schema, table = name
    return schema.lower(), None if table is None else table.lower()
