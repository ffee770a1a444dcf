"""Rows that lack columns of their table: written by a site before it ran a statement that added them.

They get what that statement gave to all rows there were (`additions`), not what the table's default is by now, so that
what is stored is a function of the log alone:

- a row that is inserted, that gets another primary key, or that is updated while it is not there, is completed with
  these values;
- a row that is updated where it is keeps its own values of the columns that the update does not know.

A row that moves cannot keep its own: they may be those of a local transaction that is behind the update in the log,
whose unit will find the row gone, and so not put them right. Where a row stays, that unit writes it again.

Some of the columns may come from a statement of this site's own that is not in the log yet: then it is in the binlog,
after what the log holds of it (`AddedValues`). A column that no statement in the log or in the binlog added was made by
hand, at this site or at all; the server fills it with its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from mysqlraft.binlog.rows import Field, columns_of, fields, image_of, layout_of, pick, primary_key, split
from mysqlraft.binlog.tablemap import Column, TableMap
from mysqlraft.binlog.values import ValueFormError, encode, selected
from mysqlraft.mysql.connection import Connect, Session, StatementError
from mysqlraft.mysql.finding import identifier
from mysqlraft.replication.additions import Addition, Additions
from mysqlraft.replication.apply_session import retryable, setup
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.statement_session import prepare

_UTF8 = 45
"""A collation of utf8mb4."""
_UNREADABLE = "\ufffd"
_SCRATCH = "mysqlraft.added_value"


class UnknownValue(Exception):
    """Rows lack columns, and nothing tells the values; the text says why. ``columns``: their names; (): any of them."""

    def __init__(self, why: str, columns: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.columns = tuple(columns)


@dataclass(frozen=True, slots=True)
class Completion:
    """How rows of a table map that is too short become rows of the local table. ``values``: of the columns that
    statements added, by column of `map`."""

    map: TableMap
    body: bytes
    values: tuple[tuple[Column, Field | None], ...]

    def changes(self, short: TableMap, change: Change) -> Iterator[tuple[bytes | None, Change]]:
        """A change in pieces that can be written, with this table map's body if they are of completed rows."""
        if change.kind is ChangeKind.DELETE:
            yield None, change
            return
        before, after = columns_of(short, change.kind, change.layout)
        assert after is not None
        if change.kind is ChangeKind.WRITE:
            yield self.body, self._inserts(after, [row for _, row in _rows(short, change)])
            return
        assert before is not None
        key = primary_key(short)
        for moves, rows in groupby(
            _rows(short, change), lambda row: pick(before, key, row[0]) != pick(after, key, row[1])
        ):
            images = list(rows)
            if not moves:
                joined = b"".join(image for pair in images for image in pair)
                yield None, Change(change.table, change.kind, change.layout, len(images), joined)
                continue
            # One by one: a row may move to where another one was.
            for old, new in images:
                deletes = layout_of(short, ChangeKind.DELETE, before=before)
                yield None, Change(change.table, ChangeKind.DELETE, deletes, 1, old)
                yield self.body, self._inserts(after, [new])

    def _inserts(self, columns: Sequence[Column], rows: Sequence[bytes]) -> Change:
        images = [self.image(columns, row) for row in rows]
        return Change(0, ChangeKind.WRITE, self.layout(columns), len(images), b"".join(images))

    def layout(self, columns: Sequence[Column]) -> bytes:
        """Of a completed row that had just these columns."""
        return layout_of(self.map, ChangeKind.WRITE, after=(*columns, *(column for column, _ in self.values)))

    def image(self, columns: Sequence[Column], image: bytes) -> bytes:
        return image_of([*fields(columns, image), *(value for _, value in self.values)])


def _rows(table: TableMap, change: Change) -> Iterator[tuple[bytes, bytes]]:
    """The images of each row; an insert's first one is empty."""
    for before, after in split(table, change.kind, change.layout, change.images):
        assert after is not None
        yield before or b"", after


class AddedValues:
    """What statements have added to the tables at this site, and the values that they gave to the rows there.

    ``log``: what the log says, up to where apply is. ``pending``: what this site's own statements say that are in its
    binlog and not in the log yet.
    """

    def __init__(self, connect: Connect, log: Callable[[], Additions], pending: Callable[[], Additions]) -> None:
        self._connect = connect
        self._log = log
        self._pending = pending

    def additions(self, schema: str, table: str, columns: Iterable[str]) -> dict[str, Addition]:
        """What added each of the columns; those that are left out the server may fill, as they were made by hand.

        Raises:
            UnknownValue: more was done to the table than can be told.
        """
        pending = lru_cache(maxsize=1)(self._pending)  # The binlog is read once for all of them, if it is at all.
        found = {column: self._addition(schema, table, column, pending) for column in columns}
        return {column: addition for column, addition in found.items() if addition is not None}

    def _addition(self, schema: str, table: str, column: str, own: Callable[[], Additions]) -> Addition | None:
        found = self._log().find(schema, table, column)
        if found is None or found.column is None:
            pending = own().find(schema, table, column)
            if pending is not None:
                # Rows have passed it. If its value is not known it does not commute, and every site will stop at it.
                return pending if pending.column is not None and pending.column.value is not None else None
        if found is not None and found.column is None:
            raise UnknownValue(f"they were written before {found.ddl.shown!r} ran there, which changed the table")
        return found

    def passed(self, schema: str, table: str, column: str) -> bool:
        """Whether a statement of the log has added the column, and rows that lack it may still come."""
        return self._log().find(schema, table, column) is not None

    def value(self, addition: Addition, schema: str, table: str, column: Column) -> Field | None:
        """The field that the statement gave to every row; None: NULL.

        Raises:
            UnknownValue: it is not the same for every row, or of a type that cannot be put into rows.
            StatementError, SessionLost: ask again later.
        """
        assert addition.column is not None
        value, statement = addition.column.value, addition.ddl.shown
        if value == "NULL":
            return None
        if value is None or _UNREADABLE in value:
            raise UnknownValue(
                f"they were written before {statement!r} ran there, and what that puts into column {column.name} is "
                "not the same for every row"
            )
        session = Session(self._connect)
        try:
            return _evaluate(session, addition, value, identifier(schema, table), column)
        except StatementError as error:
            if retryable(error):
                raise
            raise UnknownValue(f"the value that {statement!r} puts into column {column.name}: {error}") from None
        except ValueFormError as error:
            raise UnknownValue(f"the value that {statement!r} puts into column {column.name}: {error}") from None
        finally:
            session.close()


def _evaluate(session: Session, addition: Addition, value: str, table: str, column: Column) -> Field | None:
    """Has the server convert the statement's own text, in a session like the statement's, to the column's type."""
    name = identifier(column.name)
    setup(session)
    session.run(
        [
            b"SET SESSION sql_log_bin = 0",
            f"DROP TABLE IF EXISTS {_SCRATCH}".encode(),
            # The column as it is, but for its default; a key, since the server may insist on one.
            f"CREATE TABLE {_SCRATCH} (n INT PRIMARY KEY) ENGINE = InnoDB AS SELECT {name} AS v FROM {table}"
            " WHERE FALSE".encode(),
        ]
    )
    if value:
        ddl = addition.ddl
        prepare(session, "", ddl.context | ({"character_set_client": _UTF8} if ddl.reading else {}))
        insert = f"INSERT INTO {_SCRATCH} (n, v) VALUES (1, {value})"
        session.run_foreign(insert.encode("utf-8", "surrogateescape"))
        setup(session)
    else:
        session.run(
            [f"ALTER TABLE {_SCRATCH} ALTER v DROP DEFAULT".encode(), f"INSERT INTO {_SCRATCH} (n) VALUES (1)".encode()]
        )
    ((answer,),) = session.query(f"SELECT {selected(column, 'v')} FROM {_SCRATCH}")
    session.run([f"DROP TABLE {_SCRATCH}".encode()])
    return encode(column, answer)
