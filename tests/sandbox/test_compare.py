"""Does the comparison see every kind of difference, and none where there is none?"""

from __future__ import annotations

import pytest

from mysqlraft.sandbox.compare import Comparison, Mode, compare
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers

TABLE = """
    CREATE TABLE app.t (
        region VARCHAR(10) CHARACTER SET latin1 NOT NULL, id INT NOT NULL, note TEXT NULL, raw VARBINARY(8) NULL,
        PRIMARY KEY (region, id)
    )
"""
ROWS = "INSERT INTO app.t VALUES ('é', 1, NULL, 0x00ff), ('b', 2, 'zwei', 0x6100), ('a', 3, '', NULL)"

# What the second site does on its own, and what must be said about it.
DIFFERENCES = [
    ("UPDATE app.t SET note = 'two' WHERE id = 2", "note='two'"),
    ("UPDATE app.t SET note = '' WHERE id = 1", "note=NULL"),
    ("UPDATE app.t SET raw = 0x61 WHERE id = 2", "raw='a'"),
    ("DELETE FROM app.t WHERE id = 3", "no such row"),
    ("INSERT INTO app.t VALUES ('z', 9, 'only here', NULL)", "note='only here'"),
    ("ALTER TABLE app.t ADD COLUMN extra INT", "defines it as"),
    ("CREATE TABLE app.more (id INT PRIMARY KEY)", "does not exist at site 1"),
    ("DROP TABLE app.t", "does not exist at site 2"),
]


def execute(server: Server, *statements: str) -> None:
    with server.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def compare_two(servers: list[Server], mode: Mode) -> Comparison:
    return compare({number: server.connect for number, server in enumerate(servers, 1)}, mode)


@pytest.mark.parametrize("mode", ["checksum", "columns"])
def test_comparison(servers: LendServers, mode: Mode) -> None:
    pair = servers(2)
    for server in pair:
        execute(server, "CREATE DATABASE app", TABLE, ROWS)
    same = compare_two(pair, mode)
    assert same.identical, "\n".join(same.lines())
    assert [(table.title, table.rows) for table in same.tables] == [("app.t", 3)]
    for statement, said in DIFFERENCES:
        execute(pair[1], statement)
        different = compare_two(pair, mode)
        assert not different.identical, statement
        assert said in "\n".join(different.lines()), statement
        execute(pair[1], "DROP DATABASE app", "CREATE DATABASE app", TABLE, ROWS)
        assert compare_two(pair, mode).identical
    print(f"{len(DIFFERENCES)} kinds of difference seen by {mode}")


def test_order_of_rows_and_next_auto_increment_do_not_matter(servers: LendServers) -> None:
    pair = servers(2)
    for server, order in zip(pair, ("(1), (2), (5)", "(5), (2), (1)"), strict=True):
        execute(server, "CREATE DATABASE app", "CREATE TABLE app.a (id INT AUTO_INCREMENT PRIMARY KEY)")
        execute(server, f"INSERT INTO app.a VALUES {order}")
    execute(pair[1], "INSERT INTO app.a VALUES (90)", "DELETE FROM app.a WHERE id = 90")
    assert compare_two(pair, "checksum").identical
    assert compare_two(pair, "columns").identical


def test_the_system_schemas_are_not_compared(servers: LendServers) -> None:
    pair = servers(2)
    execute(pair[0], "CREATE DATABASE mysqlraft", "CREATE TABLE mysqlraft.progress (id INT PRIMARY KEY)")
    assert compare_two(pair, "checksum").tables == []
