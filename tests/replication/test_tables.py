"""Rows against the table at this site: each difference that matters is named."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace

import pytest

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.rows import layout_of
from mysqlraft.binlog.tablemap import parse, widened
from mysqlraft.mysql.schema import Query, TableDefinition, describe
from mysqlraft.replication import tables as local_tables
from mysqlraft.replication.entry import Change, ChangeKind
from mysqlraft.replication.tables import LocalTables, TableMismatch, added_column
from mysqlraft.sandbox.servers import Server
from tests.replication.harness import run
from tests.replication.recorder import connection, here, record

SAME = "id INT PRIMARY KEY, {}"
DIFFERENCES = (
    ("v INT", "v INT UNSIGNED", "one is unsigned"),
    ("v INT", "v BIGINT", "the type differs"),
    ("v INT", "w INT", "the name differs"),
    ("v VARCHAR(10)", "v VARCHAR(11)", "the size differs"),
    ("v CHAR(10)", "v VARCHAR(10)", "the type differs"),
    ("v VARCHAR(10) CHARACTER SET latin1", "v VARCHAR(10) CHARACTER SET latin2", "character set or collation"),
    ("v VARCHAR(10) COLLATE utf8mb4_bin", "v VARCHAR(10) COLLATE utf8mb4_general_ci", "character set or collation"),
    ("v DECIMAL(10,2)", "v DECIMAL(10,3)", "the size differs"),
    ("v DATETIME(3)", "v DATETIME", "the size differs"),
    ("v ENUM('a','b')", "v ENUM('b','a')", "the labels differ"),
    ("v SET('a','b')", "v SET('a','b','c')", "the labels differ"),
    ("v BIT(8)", "v BIT(9)", "the size differs"),
    ("v BLOB", "v MEDIUMBLOB", "the size differs"),
    ("v TEXT", "v BLOB", "character set or collation"),
    ("v INT, w INT", "v INT", "column 3, w"),
)


def test_every_difference_is_named(server: Server) -> None:
    with server.connect() as client, client.cursor() as cursor:
        run(cursor, "CREATE DATABASE s CHARACTER SET utf8mb4")
        for there, at_home, reason in DIFFERENCES:
            run(cursor, f"CREATE TABLE s.t ({SAME.format(there)})")
            begin = here(server)
            run(cursor, "INSERT INTO s.t (id) VALUES (1)")
            (body,) = record(server, begin)[0].tables
            with closing(ServerKeySource(lambda: connection(server))) as source:
                LocalTables(source).find(body)  # it fits itself
                run(cursor, "DROP TABLE s.t", f"CREATE TABLE s.t ({SAME.format(at_home)})")
                with pytest.raises(TableMismatch) as caught:
                    LocalTables(source).find(body)
                assert "s.t" in str(caught.value)
                assert reason in str(caught.value)
                run(cursor, "DROP TABLE s.t")
                with pytest.raises(TableMismatch, match="does not exist at this site"):
                    LocalTables(source).find(body)
        print(f"{server.engine}: {len(DIFFERENCES)} differences named")


def test_rows_without_generated_columns(server: Server) -> None:
    """MariaDB before 11.8 would leave old values in the table, and rows out of its indexes."""
    with server.connect() as client, client.cursor() as cursor:
        run(cursor, "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, a INT, g INT AS (a + 1) STORED)")
        begin = here(server)
        run(cursor, "INSERT INTO s.t (id) VALUES (1)")
        (body,) = record(server, begin)[0].tables
    with closing(ServerKeySource(lambda: connection(server))) as source:
        local = LocalTables(source).find(body)
        columns = local.map.columns
        for kind in (ChangeKind.WRITE, ChangeKind.UPDATE, ChangeKind.DELETE):
            whole = Change(0, kind, layout_of(local.map, kind, columns, columns), 0, b"")
            assert list(local.fitting(whole)) == [(None, whole)]
            short = Change(0, kind, layout_of(local.map, kind, columns[:2], columns[:2]), 0, b"")
            if kind is ChangeKind.DELETE or server.engine == "mysql" or server.installation.version >= (11, 8, 0):
                assert list(local.fitting(short)) == [(None, short)]
            else:
                with pytest.raises(TableMismatch, match="without the generated column g"):
                    local.fitting(short)


def test_another_primary_key_is_a_difference(server: Server) -> None:
    with server.connect() as client, client.cursor() as cursor:
        run(cursor, "CREATE DATABASE s", "CREATE TABLE s.t (a INT, b INT, PRIMARY KEY (a, b))")
        begin = here(server)
        run(cursor, "INSERT INTO s.t VALUES (1, 1)")
        (body,) = record(server, begin)[0].tables
        run(cursor, "ALTER TABLE s.t DROP PRIMARY KEY, ADD PRIMARY KEY (b)")
        with closing(ServerKeySource(lambda: connection(server))) as source:
            with pytest.raises(TableMismatch, match=r"primary key is \(a, b\) in the rows, and \(b\)"):
                LocalTables(source).find(body)
            run(cursor, "ALTER TABLE s.t DROP PRIMARY KEY, ADD PRIMARY KEY (a, b), ADD COLUMN c INT DEFAULT 1")
            tables = LocalTables(source)
            tables.forget()
            tables.find(body)


def test_a_statement_has_its_own_tables_looked_up_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others: a server may have thousands, and a statement on each of them."""
    looked_up: list[tuple[str, str]] = []

    def counted(query: Query, schema: str, table: str) -> TableDefinition | None:
        looked_up.append((schema, table))
        return describe(query, schema, table)

    monkeypatch.setattr(local_tables, "describe", counted)
    names = [("s", "t"), ("s", "u"), ("other", "t")]
    with (
        server.connect() as client,
        client.cursor() as cursor,
        closing(ServerKeySource(lambda: connection(server))) as source,
    ):
        run(cursor, "CREATE DATABASE s", "CREATE DATABASE other")
        run(cursor, *(f"CREATE TABLE {schema}.{table} (a INT PRIMARY KEY)" for schema, table in names))
        begin = here(server)
        run(cursor, *(f"INSERT INTO {schema}.{table} VALUES (1)" for schema, table in names))
        bodies = [body for unit in record(server, begin) for body in unit.tables]
        tables = LocalTables(source)
        cases: list[tuple[list[tuple[str, str | None]], list[tuple[str, str]]]] = [
            ([], names),
            ([("S", "T")], [("s", "t")]),
            ([("s", None)], names[:2]),
            ([("other", "u"), ("other", "t")], names[2:]),
            ([("elsewhere", None)], []),
        ]
        for about, expected in cases:
            tables.forget(about)
            looked_up.clear()
            for body in (*bodies, *bodies):
                tables.find(body)
            assert looked_up == expected


def test_a_widened_table_map_is_what_the_server_writes(server: Server) -> None:
    """But for labels, of which nothing is made."""
    more = (
        *("a TINYINT UNSIGNED NOT NULL", "b BIGINT", "c DECIMAL(20,4)", "d FLOAT", "e DOUBLE UNSIGNED", "f BIT(11)"),
        *("g CHAR(200)", "h VARCHAR(9) CHARACTER SET latin1 NOT NULL", "i VARCHAR(500)", "j VARBINARY(300)"),
        *("k BINARY(7)", "l TEXT CHARACTER SET ascii", "m MEDIUMBLOB", "n ENUM('x','y') CHARACTER SET latin1"),
        *("o SET('p','q')", "p DATE", "q TIME(3)", "r DATETIME(6)", "s TIMESTAMP NULL", "t YEAR", "w JSON", "x POINT"),
    )
    with server.connect() as client, client.cursor() as cursor:
        run(cursor, "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, u VARCHAR(10) NOT NULL)")
        begin = here(server)
        run(cursor, "INSERT INTO s.t VALUES (1, '')")
        (short,) = record(server, begin)[0].tables
        run(cursor, "SET sql_mode = ''", f"ALTER TABLE s.t {', '.join(f'ADD {column}' for column in more)}")
        begin = here(server)
        run(cursor, "INSERT INTO s.t (id) VALUES (2)")
        (whole,) = record(server, begin)[0].tables
    with closing(ServerKeySource(lambda: connection(server))) as source:
        definition = describe(source.query, "s", "t")
    assert definition is not None
    made = parse(widened(short, [added_column(column) for column in definition.columns[2:]]))
    assert made.primary_key == parse(whole).primary_key
    for ours, theirs in zip(made.columns, parse(whole).columns, strict=True):
        assert asdict(replace(ours, labels=())) == asdict(replace(theirs, labels=()))
