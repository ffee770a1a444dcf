"""Are the replicated tables of all sites identical?

Two ways, and both compare every table of every schema but the system's, and the conflict history:

*checksum*  `CHECKSUM TABLE` at each site: the server's own sum over every byte of every row. Only when sums differ
            are rows read, to say which ones.
*columns*   every column of every row, in the form in which the server prints it. Slower; independent of the
            servers' kind and version, and of how they store a row.

The tables' definitions are compared as well (`SHOW CREATE TABLE`, but for the next auto_increment value, which each
site has of its own).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import pymysql
from pymysql.cursors import SSCursor

from mysqlraft.sandbox.workload import Connect

Mode = Literal["checksum", "columns"]
Table = tuple[str, str]
Row = tuple[bytes | None, ...]

_SYSTEM = ("mysql", "information_schema", "performance_schema", "sys", "mysqlraft")
_HISTORY: Table = ("mysqlraft", "conflicts")

# How many differing rows of one table are printed.
_SHOWN = 5


@dataclass(slots=True)
class TableResult:
    """One table at every site."""

    schema: str
    name: str
    rows: int
    # What is printed about a difference: none when the sites agree.
    differences: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(slots=True)
class Comparison:
    """The verdict on all tables."""

    sites: int
    tables: list[TableResult]

    @property
    def identical(self) -> bool:
        return not any(table.differences for table in self.tables)

    def lines(self) -> Iterator[str]:
        """The verdict for people."""
        width = max((len(table.title) for table in self.tables), default=0)
        for table in self.tables:
            verdict = "DIFFERENT" if table.differences else "identical"
            yield f"{table.title:{width}}  {table.rows:>9,} rows  {verdict}"
            for line in table.differences:
                yield f"    {line}"


def compare(sites: dict[int, Connect], mode: Mode = "checksum") -> Comparison:
    """Compares all replicated tables of all sites; nobody may be writing."""
    with ThreadPoolExecutor(len(sites)) as pool:
        numbers = list(sites)
        connections = dict(zip(numbers, pool.map(lambda site: sites[site](), numbers), strict=True))
        try:
            for connection in connections.values():
                connection.autocommit(True)
            found = dict(zip(numbers, pool.map(lambda site: _tables(connections[site]), numbers), strict=True))
            everything = sorted(set().union(*found.values()))
            results = [_compare_table(table, connections, found, mode, pool) for table in everything]
        finally:
            for connection in connections.values():
                connection.close()
    return Comparison(len(sites), results)


def _compare_table(
    table: Table,
    connections: dict[int, pymysql.Connection[pymysql.cursors.Cursor]],
    found: dict[int, set[Table]],
    mode: Mode,
    pool: ThreadPoolExecutor,
) -> TableResult:
    result = TableResult(*table, rows=0)
    absent = [site for site, tables in found.items() if table not in tables]
    if absent:
        result.differences.append(f"does not exist at site {', '.join(map(str, absent))}")
        return result
    numbers = list(connections)
    definitions = dict(zip(numbers, pool.map(lambda site: _definition(connections[site], table), numbers), strict=True))
    for site in numbers[1:]:
        if definitions[site] != definitions[numbers[0]]:
            result.differences.append(f"site {numbers[0]} defines it as {definitions[numbers[0]]}")
            result.differences.append(f"site {site} defines it as {definitions[site]}")
            return result
    if mode == "checksum":
        sums = dict(zip(numbers, pool.map(lambda site: _checksum(connections[site], table), numbers), strict=True))
        result.rows = sums[numbers[0]][1]
        if len(set(sums.values())) == 1:
            return result
        result.differences.append(", ".join(f"site {s}: {n} rows, sum {c}" for s, (c, n) in sums.items()))
    first = numbers[0]
    for site in numbers[1:]:
        rows, lines = _differing_rows(connections[first], connections[site], table, first, site)
        result.rows = result.rows or rows
        result.differences.extend(lines)
    return result


def _tables(connection: pymysql.Connection[pymysql.cursors.Cursor]) -> set[Table]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN %s",
            (_SYSTEM,),
        )
        tables = {(_text(schema), _text(name)) for schema, name in cursor.fetchall()}
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = %s AND table_name = %s", _HISTORY
        )
        row = cursor.fetchone()
    if row and row[0]:
        tables.add(_HISTORY)
    return tables


def _definition(connection: pymysql.Connection[pymysql.cursors.Cursor], table: Table) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW CREATE TABLE {_quoted(table)}")
        row = cursor.fetchone()
    assert row is not None
    return re.sub(r" AUTO_INCREMENT=\d+", "", _text(row[1]))


def _checksum(connection: pymysql.Connection[pymysql.cursors.Cursor], table: Table) -> tuple[int, int]:
    with connection.cursor() as cursor:
        cursor.execute(f"CHECKSUM TABLE {_quoted(table)} EXTENDED")
        total = cursor.fetchone()
        cursor.execute(f"SELECT COUNT(*) FROM {_quoted(table)}")
        count = cursor.fetchone()
    assert total is not None
    assert count is not None
    return int(total[1]), int(count[0])


def _differing_rows(
    one: pymysql.Connection[pymysql.cursors.Cursor],
    other: pymysql.Connection[pymysql.cursors.Cursor],
    table: Table,
    one_site: int,
    other_site: int,
) -> tuple[int, list[str]]:
    """Walks both tables in the order of their primary keys; the number of rows at `one`, and what differs."""
    names, keys = _columns(one, table)
    left, right = _rows(one, table, names, keys), _rows(other, table, names, keys)
    width = len(keys)
    rows = 0
    lines: list[str] = []
    differing = 0
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        only_a = b is None or (a is not None and _order(a[:width]) < _order(b[:width]))
        only_b = a is None or (b is not None and _order(b[:width]) < _order(a[:width]))
        if only_a or only_b or a != b:
            differing += 1
            if differing <= _SHOWN:
                lines.extend(
                    _describe(names, width, None if only_b else a, None if only_a else b, one_site, other_site)
                )
        rows += not only_b
        if not only_b:
            a = next(left, None)
        if not only_a:
            b = next(right, None)
    if differing > _SHOWN:
        lines.append(f"... {differing} rows differ between site {one_site} and site {other_site}")
    return rows, lines


def _columns(connection: pymysql.Connection[pymysql.cursors.Cursor], table: Table) -> tuple[list[str], list[str]]:
    """All columns, those of the primary key doubled in front; and these alone."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            table,
        )
        names = [_text(row[0]) for row in cursor.fetchall()]
        cursor.execute(
            "SELECT column_name FROM information_schema.statistics WHERE table_schema = %s AND table_name = %s"
            " AND index_name = 'PRIMARY' ORDER BY seq_in_index",
            table,
        )
        keys = [_text(row[0]) for row in cursor.fetchall()] or names
    return names, keys


def _rows(
    connection: pymysql.Connection[pymysql.cursors.Cursor], table: Table, names: Sequence[str], keys: Sequence[str]
) -> Iterator[Row]:
    """The rows as the server prints them, as bytes, in the byte order of their keys.

    The keys come first, as HEX(): a collation's order is not that of the bytes, and this order must be ours too.
    """
    hexed = ", ".join(f"HEX(CAST({_quote(name)} AS BINARY))" for name in keys)
    plain = ", ".join(_quote(name) for name in names)
    order = ", ".join(str(n + 1) for n in range(len(keys)))
    with connection.cursor() as setup:
        setup.execute("SET SESSION time_zone = '+00:00'")
        # No conversion between character sets on the way out: the stored bytes are what is compared.
        setup.execute("SET SESSION character_set_results = binary")
    decoders, connection.decoders = connection.decoders, {}
    try:
        with connection.cursor(SSCursor) as cursor:
            cursor.execute(f"SELECT {hexed}, {plain} FROM {_quoted(table)} ORDER BY {order}")
            while rows := cursor.fetchmany(1000):
                for row in rows:
                    yield tuple(value if value is None else _bytes(value) for value in row)
    finally:
        connection.decoders = decoders


def _describe(
    names: Sequence[str], width: int, a: Row | None, b: Row | None, one_site: int, other_site: int
) -> Iterator[str]:
    """One differing row; only the columns that differ, if both sites have it."""

    def show(row: Row | None, columns: Sequence[int]) -> str:
        if row is None:
            return "no such row"
        return ", ".join(f"{names[n]}={_show(row[width + n])}" for n in columns)

    everything = range(len(names))
    if a is None or b is None:
        columns: Sequence[int] = everything
        yield "row at one site only:"
    else:
        columns = [n for n in everything if a[width + n] != b[width + n]]
        yield f"row with key {', '.join(_unhex(value) for value in a[:width])} differs:"
    yield f"    site {one_site}: {show(a, columns)}"
    yield f"    site {other_site}: {show(b, columns)}"


def _order(keys: Sequence[bytes | None]) -> list[tuple[bool, bytes]]:
    return [(value is not None, value or b"") for value in keys]


def _unhex(value: bytes | None) -> str:
    return "NULL" if value is None else _show(bytes.fromhex(value.decode("ascii")))


def _show(value: bytes | None) -> str:
    if value is None:
        return "NULL"
    text = repr(value.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 80 else f"{text[:76]}...'"


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _quoted(table: Table) -> str:
    return ".".join(map(_quote, table))
