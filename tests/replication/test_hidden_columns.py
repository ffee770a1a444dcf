"""MariaDB's unique keys on whole TEXTs and long VARCHARs: kept by a column that only the server sees."""

from __future__ import annotations

from collections.abc import Sequence

import pymysql
import pytest

from mysqlraft.binlog.hidden_columns import hidden_columns, without_columns
from mysqlraft.binlog.tablemap import parse
from mysqlraft.sandbox.servers import Engine
from tests.binlog.tap import events, rows_events
from tests.harness.pool import LendServers
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster

pytestmark = pytest.mark.timeout(300)

TABLES = (
    "CREATE TABLE s.whole (id INT UNSIGNED PRIMARY KEY, a TEXT, UNIQUE (a))",
    "CREATE TABLE s.long (id INT PRIMARY KEY, a VARCHAR(2000), b INT UNSIGNED DEFAULT 4000000000,"
    " UNIQUE u (a, b), UNIQUE w (b, a))",
    # Eight columns and one: the bitmap of NULLs is a byte shorter without it.
    "CREATE TABLE s.wide (id INT PRIMARY KEY, a BLOB UNIQUE, b INT, c INT,"
    " d DOUBLE UNSIGNED, e INT, f CHAR(3), y YEAR)",
    "CREATE TABLE s.named (id INT PRIMARY KEY, a TEXT UNIQUE, DB_ROW_HASH_1 BIGINT, v INT AS (id + 1) VIRTUAL)",
    "CREATE TABLE s.last (id INT PRIMARY KEY, a TEXT UNIQUE, DB_ROW_HASH_1 BIGINT)",
    "CREATE TABLE s.prefix (id INT PRIMARY KEY, a TEXT, UNIQUE (a(3000)))",
)
NAMES = ("s.whole", "s.long", "s.wide", "s.named", "s.last", "s.prefix")


def same_rows(sites: Sequence[SiteUnderTest]) -> None:
    """Not by CHECKSUM TABLE: of a table with two such columns it says now this and now that, at one and the same
    server."""
    for table in (*NAMES, "mysqlraft.conflicts"):
        found = [sorted(site.execute(f"SELECT * FROM {table}"), key=repr) for site in sites]
        assert found[0] == found[1], table


def test_rows_of_such_tables(servers: LendServers, engine: Engine) -> None:
    if engine == "mysql":
        return
    with cluster(servers(2), *TABLES, capture={"part_bytes": 4096}) as sites:
        one, two = sites
        for table in NAMES:
            one.execute(
                f"INSERT INTO {table} (id, a) VALUES (1, 'x'), (2, NULL), (3, REPEAT('é', 1900))",
                f"UPDATE {table} SET a = 'y' WHERE id = 1",
                f"UPDATE {table} SET id = 20, a = 'z' WHERE id = 2",
                f"INSERT INTO {table} (id, a) SELECT seq, REPEAT(seq, 20) FROM seq_100_to_400",
                f"DELETE FROM {table} WHERE id IN (3, 110)",
                database="s",
            )
        one.execute("UPDATE s.last SET DB_ROW_HASH_1 = id * 10", "UPDATE s.wide SET b = 1, d = 2.5, y = 2024")
        settle(sites)
        same_rows(sites)
        assert two.execute("SELECT DB_ROW_HASH_1 FROM s.last WHERE id = 20") == [(200,)]
        for table in NAMES:
            assert two.execute(f"CHECK TABLE {table} EXTENDED")[-1][-1] == "OK"
            for site in sites:
                with pytest.raises(pymysql.err.IntegrityError, match="Duplicate"):
                    site.execute(f"INSERT INTO {table} (id, a) VALUES (9, 'y')")


def test_conflicts_on_such_keys(servers: LendServers, engine: Engine) -> None:
    if engine == "mysql":
        return
    with cluster(servers(2), *TABLES) as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
        one.execute("INSERT INTO s.whole VALUES (1, REPEAT('same', 900)), (5, 'Case')")
        two.execute("INSERT INTO s.whole VALUES (2, REPEAT('same', 900)), (6, 'case')")
        one.execute("INSERT INTO s.long VALUES (1, REPEAT('s', 1900), 7)")
        two.execute("INSERT INTO s.long VALUES (2, REPEAT('s', 1900), 7)")
        wait_for(lambda: one.link.units_kept == two.link.units_kept == 2, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_rows(sites)
        assert one.execute("SELECT id FROM s.whole ORDER BY id") == [(2,), (6,)]
        assert one.execute("SELECT id FROM s.long") == [(2,)]
        assert one.execute("SELECT COUNT(*) FROM mysqlraft.conflicts")[0][0] >= 3


def test_what_is_left_of_a_table_map(servers: LendServers, engine: Engine) -> None:
    if engine == "mysql":
        return
    (server,) = servers(1)
    found = events(server, "CREATE DATABASE s", *TABLES, "INSERT INTO s.wide (id, a) VALUES (1, 'x')")
    (rows,) = rows_events(found)
    body = next(event for event in found if event[4] == 19)[27:]
    assert hidden_columns(rows.table, lambda: ["id"]) == hidden_columns(rows.table, lambda: None) == 1
    assert hidden_columns(rows.table, lambda: ["DB_ROW_HASH_1"]) == 0
    shorter = parse(without_columns(body, 1))
    assert repr(shorter.columns) == repr(rows.table.columns[:-1])
    assert shorter.primary_key == rows.table.primary_key
