"""The daemon's own schema, and definitions read back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mysqlraft.mysql.connection import Session, SessionLost, StatementError
from mysqlraft.mysql.definitions import definition_of
from mysqlraft.mysql.schema import VERSION, SchemaError, describe, ensure_schema
from mysqlraft.sandbox.servers import Engine, Server


def test_the_schema_is_made_once_and_completed(server: Server) -> None:
    session = Session(server.connect)
    ensure_schema(session.query)
    assert list(session.query("SELECT * FROM mysqlraft.progress")) == [(1, 0, b"", None)]
    session.query("UPDATE mysqlraft.progress SET applied = 7, state = 'x'")
    before = session.query("SHOW BINARY LOGS")[-1]
    ensure_schema(session.query)
    assert session.query("SHOW BINARY LOGS")[-1] == before, "nothing was to be done"
    # What a crash in the middle of the first time leaves behind.
    session.query("DROP TABLE mysqlraft.conflicts")
    session.query("DELETE FROM mysqlraft.version")
    ensure_schema(session.query)
    assert list(session.query("SELECT COUNT(*) FROM mysqlraft.conflicts")) == [(0,)]
    assert session.query("SELECT applied FROM mysqlraft.progress")[0][0] == 7
    newer = VERSION + 1
    session.query(f"UPDATE mysqlraft.version SET version = {newer}")
    with pytest.raises(SchemaError, match=f"has version {newer}; this mysqlraft knows {VERSION}: upgrade it"):
        ensure_schema(session.query)
    session.close()


def test_a_table_is_described_as_it_is(server: Server) -> None:
    session = Session(server.connect)
    session.query("CREATE DATABASE s")
    session.query(
        "CREATE TABLE s.`a``b` (x INT UNSIGNED, y VARCHAR(7) CHARACTER SET latin1 COLLATE latin1_bin,"
        " e ENUM('it''s', 'b,c'), d DECIMAL(9,4), t TIME(3), PRIMARY KEY (y, x))"
    )
    found = describe(session.query, "s", "a`b")
    assert found is not None
    assert found.name == "`s`.`a``b`"
    assert found.primary_key == ("y", "x")
    x, y, e, d, t = found.columns
    assert x.unsigned
    assert not d.unsigned
    assert (y.octets, y.collation) == (7, 47)
    assert e.labels == ("it's", "b,c")
    assert (d.precision, d.scale, t.fraction) == (9, 4, 3)
    assert describe(session.query, "s", "none") is None
    session.close()


def test_a_table_is_there_while_it_is_altered(server: Server, engine: Engine) -> None:
    """Whoever asks waits for the end of the change, and is not shown a part of the table, or none."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE s")
        cursor.execute("CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(30) UNIQUE)")
    done = threading.Event()

    def alter() -> None:
        with server.connect() as connection, connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute("ALTER TABLE s.t FORCE, ALGORITHM = COPY")

    with ThreadPoolExecutor(1) as application, server.connect() as connection, connection.cursor() as cursor:

        def query(statement: str) -> Sequence[Sequence[Any]]:
            cursor.execute(statement)
            return cursor.fetchall()

        altering = application.submit(alter)
        try:
            found = {
                (describe(query, "s", "t"), definition_of(query, "s", "t", mariadb=engine == "mariadb"))
                for _ in range(60)
            }
        finally:
            done.set()
            altering.result()
    ((table, definition),) = found
    assert table is not None
    assert [column.name for column in table.columns] == ["id", "v"]
    assert definition
    assert "PRIMARY" in definition


def test_statements_in_one_packet(server: Server) -> None:
    """Those before the one that fails have run, those after it have not, and the session goes on."""
    session = Session(server.connect)
    session.run([b"CREATE DATABASE s", b"CREATE TABLE s.t (id INT PRIMARY KEY)"])
    with pytest.raises(StatementError) as caught:
        session.run([b"INSERT INTO s.t VALUES (1)", b"INSERT INTO s.t VALUES (1)", b"INSERT INTO s.t VALUES (2)"])
    assert (caught.value.position, caught.value.code) == (1, 1062)
    assert list(session.query("SELECT * FROM s.t")) == [(1,)]
    assert [list(rows) for rows in session.queries(["SELECT 1", "SELECT 2 WHERE FALSE", "SELECT 3"])] == [
        [(1,)],
        [],
        [(3,)],
    ]
    with server.connect() as client, client.cursor() as cursor:
        cursor.execute(f"KILL {session.id}")
    with pytest.raises(SessionLost):
        session.run([b"INSERT INTO s.t VALUES (3)"])
    session.close()
    server.stop()
    with pytest.raises(SessionLost):
        Session(server.connect)
