"""The tables whose rows a binlog holds: their table maps, and how the keys of their rows are found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf

from mysqlraft.binlog import tablemap
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.hidden_columns import RowCutter, hidden_columns, without_columns
from mysqlraft.binlog.key_memo import KeyMemo, Since
from mysqlraft.binlog.keys import KeyDefinition, KeySource, Slicer, compile_slicer, known_keys
from mysqlraft.binlog.own_schema import NEVER
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.rows import RowKind, RowsError, columns_of
from mysqlraft.binlog.statement_scan import ANYTHING, StatementScan, changed_tables
from mysqlraft.binlog.tablemap import ColumnType


class MappedTable:
    """A table map as long as its number is valid; ``keys`` None: not replicated.

    ``keyless``: it would be replicated, but has no primary key; then ``keys`` is None, too.

    ``hidden``: takes the columns that only this server can write out of rows; ``body`` and ``parsed`` are without them.

    ``known_from``: for rows of transactions that end before this place the keys may have been others: a statement on
    the table ends there, which lay ahead of the stream when the keys were asked for. None: there is none. ``since``:
    from there on the keys are sure.
    """

    __slots__ = (
        "body",
        "hidden",
        "keyless",
        "keys",
        "known_from",
        "layout_bytes",
        "name",
        "parsed",
        "since",
        "slicers",
    )

    def __init__(
        self,
        name: tuple[str, str],
        body: bytes,
        keys: list[KeyDefinition] | None,
        known_from: Since | None,
        since: Since,
        hidden: int,
    ) -> None:
        self.known_from, self.since = known_from, known_from or since
        self.keyless = False
        self.name = name
        whole = tablemap.parse(body)
        self.body = without_columns(body, hidden) if hidden else body
        self.keys = keys
        self.parsed = tablemap.parse(self.body)
        self.hidden = RowCutter(whole, self.parsed) if hidden else None
        count = len(whole.columns)
        bitmap = (count + 7) // 8
        self.layout_bytes = (1 if count < 251 else 3) + bitmap, (1 if count < 251 else 3) + 2 * bitmap
        self.slicers: tuple[dict[bytes, Slicer], ...] = ({}, {}, {})


def _is_among(name: tuple[str, str], changed: Collection[tuple[str, str | None]]) -> bool:
    schema, table = (word.lower() for word in name)
    return (schema, table) in changed or (schema, None) in changed


def _missing(table: tablemap.TableMap, columns: Sequence[tablemap.Column] | None) -> set[str]:
    """The names of the table's columns that an image lacks; none if there is no image."""
    if columns is None or len(columns) == len(table.columns):
        return set()
    present = {column.index for column in columns}
    return {column.name for column in table.columns if column.index not in present}


def _leaves_out_generated(
    table: tablemap.TableMap, before: Sequence[tablemap.Column] | None, after: Sequence[tablemap.Column] | None
) -> bool:
    """Whether the rows can lack nothing but generated columns. The images decide, as the table may be gone by now.

    Both images have the same columns, more than the primary key, and all of the BLOB family. Only the
    `binlog_row_image` FULL writes such rows: MINIMAL writes the primary key alone, or images that differ; FULL_NODUP
    writes images that differ; NOBLOB leaves out only columns of the BLOB family.
    """
    if before is None or (after is not None and after != before):
        return False
    key = {index for index, _ in table.primary_key}
    present = {column.index for column in before}
    return not present <= key and all(
        column.index in present or column.type not in tablemap.BLOBS for column in table.columns
    )


def _is_keyless(table: tablemap.TableMap) -> bool:
    return table.named and not table.primary_key


class MappedTables:
    """Those that a stream has met, as long as no statement may have changed them."""

    def __init__(
        self,
        source: KeySource,
        replicated: Callable[[str, str | None], bool],
        scan: StatementScan | None,
        never: Collection[str] = NEVER,
        memo: KeyMemo | None = None,
    ) -> None:
        """``scan``: of the statements ahead; without, the keys are taken to be those of today. ``never``: schemas that
        are not replicated whatever ``replicated`` says. ``memo``: one that serves where the stream begins."""
        self.by_map: dict[bytes, MappedTable] = {}
        """By the TABLE_MAP's event without its header: number, flags, body."""
        self._maps: dict[tuple[str, str], list[bytes]] = {}
        """The keys of `by_map` by the table's name. All of a name have one number, the table's latest: a server gives
        another one to a table that it opens again, and with more tables than it keeps open it does so all the time."""
        self._source = source
        self._replicated = replicated
        self._scan = scan
        self._never = never
        self._before = {} if memo is None else dict(memo.tables)
        """The memo's tables on which the stream has met no statement."""

    def forget(self, tables: Iterable[tuple[str, str | None]]) -> None:
        """A statement on these tables may have changed their keys; table None: anything in the schema."""
        changed = set(changed_tables(tables))
        if ANYTHING in changed:
            self.by_map.clear()
            self._maps.clear()
            self._before.clear()
            return
        for key, table in list(self.by_map.items()):
            if _is_among(table.name, changed):
                del self.by_map[key]
                self._maps.pop(table.name, None)
        for name in [name for name in self._before if _is_among(name, changed)]:
            del self._before[name]

    def known(self, end: Since) -> dict[tuple[str, str], tuple[Since, Sequence[KeyDefinition]]]:
        """As `KeyMemo` has it, of a stream that has read up to ``end``."""
        met = {table.name: (table.since, table.keys) for table in self.by_map.values() if table.keys is not None}
        return {name: known for name, known in (self._before | met).items() if known[0] <= end}

    def timestamps(self, tables: Iterable[tuple[str, str | None]]) -> frozenset[str] | None:
        """The columns of type TIMESTAMP, in lower case, of the only one of these tables; None if rows of it have not
        been met since a statement on it."""
        wanted = [(schema.lower(), (table or "").lower()) for schema, table in tables]
        for found in self.by_map.values():
            if [(found.name[0].lower(), found.name[1].lower())] == wanted:
                types = (ColumnType.TIMESTAMP, ColumnType.TIMESTAMP2)
                return frozenset(column.name.lower() for column in found.parsed.columns if column.type in types)
        return None

    def add(self, key: bytes, at: tuple[str, int]) -> MappedTable:
        """A table map that is met for the first time, in a transaction that begins at this file and offset.

        Raises:
            BinlogError: it is garbled, or the table has a key that rows do not tell.
        """
        body = key[8:]
        try:
            name = tablemap.names(body)
        except IndexError:
            raise BinlogError("a table map is cut short") from None
        keys: list[KeyDefinition] | None = None
        known_from: Since | None = None
        since: Since = file_number(at[0]), at[1]
        hidden = 0
        try:
            wanted = name[0] not in self._never and self._replicated(*name)
            keyless = wanted and _is_keyless(tablemap.parse(body))
            if wanted and not keyless:
                hidden = hidden_columns(tablemap.parse(body), lambda: self._source.columns(*name))
                keys, there = known_keys(tablemap.parse(body), self._source)
                before = self._before.get(name)
                if before is not None and before[1] == keys and before[0] <= since:
                    since = before[0]
                else:
                    known_from = self._known_from(name, at) if there else (inf, 0)
            table = self.by_map[key] = MappedTable(name, body, keys, known_from, since, hidden)
            table.keyless = keyless
            maps = self._maps.setdefault(name, [])
            if maps and maps[0][:6] != key[:6]:
                for former in maps:
                    del self.by_map[former]
                maps.clear()
            maps.append(key)
        except tablemap.TableMapError as error:
            raise BinlogError(str(error)) from None
        return table

    def _known_from(self, name: tuple[str, str], at: tuple[str, int]) -> Since | None:
        """Where the last statement on the table ends that lies between `at` and the binlog's end now."""
        if self._scan is None:
            return None
        last = self._scan.last_on(*name, at, self._source.binlog_end())
        return None if last is None else (file_number(last[0]), last[1])

    def slicer(self, table: MappedTable, kind: RowKind, layout: bytes) -> Slicer:
        """Of rows of a layout that is met for the first time.

        Raises:
            BinlogError: the layout is not this table's, or lacks columns. A row that is in conflict is written whole,
                but for generated columns, which each server computes: MariaDB 11.8 logs those of new rows only.
        """
        assert table.keys is not None
        try:
            before, after = columns_of(table.parsed, kind, layout)
            missing = _missing(table.parsed, before) | _missing(table.parsed, after)
            if missing and not _leaves_out_generated(table.parsed, before, after):
                missing -= self._source.generated_columns(*table.name)
                if missing:
                    raise BinlogError(
                        f"{'.'.join(table.name)}: rows were written while binlog_row_image was not FULL, so the "
                        f"binlog lacks column {min(missing)}: SET GLOBAL binlog_row_image = 'FULL', and in every "
                        "session"
                    )
            slicer = compile_slicer(table.parsed, kind, layout, table.keys, self._source)
        except RowsError as error:
            raise BinlogError(str(error)) from None
        table.slicers[kind][layout] = slicer
        return slicer
