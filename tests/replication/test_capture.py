"""Capture on real servers: what becomes a unit, and what does not."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pymysql
import pytest

from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import APPLY_THREAD_ID
from mysqlraft.binlog.tablemap import names
from mysqlraft.mysql.preflight import any_case
from mysqlraft.replication.capture import CaptureState, position_now
from mysqlraft.replication.entry import PayloadKind
from mysqlraft.replication.filters import TableFilter
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import ServerFactory
from tests.replication.capture_rig import PROGRESS, capturing, run

_TABLES = (
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(50) UNIQUE)",
    "CREATE TABLE d.u LIKE d.t",
)


@pytest.fixture(params=["auto", "file"])
def position(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


def test_transactions(server: Server, position: str) -> None:
    """Autocommit, explicit, several tables, savepoints, rollbacks, LOAD DATA."""
    run(server, *_TABLES)
    data = server.directory / "load.txt"
    data.write_text("31\tx31\n32\tx32\n")
    with capturing(server, position=position) as rig:
        run(
            server,
            "INSERT INTO d.t VALUES (1, 'a'), (2, NULL)",
            "UPDATE d.t SET id = 3 WHERE id = 2",
            "DELETE FROM d.t WHERE id = 3",
            "BEGIN", "INSERT INTO d.t VALUES (4, 'd')", "INSERT INTO d.u VALUES (4, 'd')",
            "DELETE FROM d.t WHERE id = 4", "COMMIT",
            "BEGIN", "INSERT INTO d.t VALUES (5, 'e')", "ROLLBACK",
            "BEGIN", "INSERT INTO d.t VALUES (6, 'f')", "SAVEPOINT s", "INSERT INTO d.t VALUES (7, 'g')",
            "ROLLBACK TO s", "INSERT INTO d.t VALUES (8, 'h')", "COMMIT",
            "INSERT INTO d.u VALUES (6, 'z')",
            "UPDATE d.t, d.u SET t.v = 'm', u.v = 'm' WHERE t.id = 6 AND u.id = 6",
            f"LOAD DATA INFILE '{data}' INTO TABLE d.t",
        )  # fmt: skip
        rig.sync()
        t, u = "d.t", "d.u"
        assert rig.log() == [
            [(t, "WRITE", None, 1), (t, "WRITE", None, 2)],
            [(t, "UPDATE", 2, 3)],
            [(t, "DELETE", 3, None)],
            [(t, "WRITE", None, 4), (u, "WRITE", None, 4), (t, "DELETE", 4, None)],
            [(t, "WRITE", None, 6), (t, "WRITE", None, 8)],
            [(u, "WRITE", None, 6)],
            [(t, "UPDATE", 6, 6), (u, "UPDATE", 6, 6)],
            [(t, "WRITE", None, 31), (t, "WRITE", None, 32)],
        ]
        units = [unit for payload in rig.payloads for unit in payload.units]
        assert [len(unit.keys) // 8 for unit in units] == [3, 2, 1, 4, 4, 2, 6, 4]
        assert all(abs(unit.committed_at / 1e6 - time.time()) < 60 for unit in units)


def test_base(server: Server) -> None:
    """Applied transactions are no units, and move the base of what comes after them, under any row image."""
    run(server, *_TABLES, *PROGRESS)
    with capturing(server) as rig:
        run(
            server,
            "INSERT INTO d.t VALUES (1, 'a')",
            "BEGIN", "UPDATE mysqlraft.progress SET applied = 41", "INSERT INTO d.t VALUES (2, 'b')", "COMMIT",
            "INSERT INTO d.t VALUES (3, 'c')",
            "SET SESSION binlog_row_image = MINIMAL",
            "BEGIN", "UPDATE mysqlraft.progress SET applied = 42, state = REPEAT('s', 100)",
            "DELETE FROM d.t WHERE id = 2", "COMMIT",
            "SET SESSION binlog_row_image = FULL",
            "INSERT INTO d.t VALUES (4, 'd')",
            # Not first: an application's transaction, however odd.
            "BEGIN", "INSERT INTO d.t VALUES (5, 'e')", "UPDATE mysqlraft.progress SET applied = 99", "COMMIT",
            "INSERT INTO d.t VALUES (6, 'f')",
        )  # fmt: skip
        rig.sync()
        units = [unit for payload in rig.payloads for unit in payload.units]
        assert [unit.base for unit in units] == [0, 41, 42, 42, 42]
        assert [rows[0][3] for rows in rig.log()] == [1, 3, 4, 5, 6]
        assert rig.payloads[-1].base == 42
        assert rig.capture.status()["applied_seen"] == 2


def test_mark(server: Server) -> None:
    """An idle site whose base moved says so once, and then is silent."""
    run(server, *_TABLES, *PROGRESS)
    with capturing(server, mark_seconds=0.2) as rig:
        run(server, "BEGIN", "UPDATE mysqlraft.progress SET applied = 7", "INSERT INTO d.t VALUES (2, 'b')", "COMMIT")
        rig.wait(lambda: rig.log() == ["MARK"])
        assert rig.payloads[0].base == 7
        # Progress alone, as an applied MARK of another site writes it: nothing to tell.
        run(server, "UPDATE mysqlraft.progress SET applied = 8", "UPDATE mysqlraft.progress SET applied = 9")
        rig.wait(lambda: rig.capture.status()["applied_seen"] == 3)
        run(server, "INSERT INTO d.t VALUES (3, 'c')")
        rig.wait(lambda: len(rig.payloads) == 2)
        assert rig.payloads[1].units[0].base == 9


def test_a_table_that_is_opened_again_and_again(server: Server) -> None:
    """A server with more tables than it keeps open gives them new numbers all the time: only the last is kept."""
    run(server, *_TABLES)
    with capturing(server) as rig:
        for n in range(20):
            run(
                server, f"INSERT INTO d.t VALUES ({n}, {n})", f"INSERT INTO d.u VALUES ({n}, {n})", "FLUSH LOCAL TABLES"
            )
        rig.wait(lambda: rig.capture.status()["transactions"] == 40)
        stream = rig.capture._stream
        assert stream is not None
        assert sorted(table.name for table in stream._tables.by_map.values()) == [("d", "t"), ("d", "u")]
        assert len(stream._numbered) == 1
        assert [row for rows in rig.log() for row in rows] == [
            (f"d.{table}", "WRITE", None, n) for n in range(20) for table in "tu"
        ]


def test_large_transaction(server: Server) -> None:
    """In parts while it is read; merged rows; a row in pieces; position moves with the last part."""
    run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, b LONGBLOB)")
    with capturing(server, part_bytes=1 << 16) as rig:
        before = rig.capture.status()["position"]["offset"]
        with server.connect(autocommit=False) as connection, connection.cursor() as cursor:
            for n in range(300):
                cursor.execute("INSERT INTO d.t VALUES (%s, REPEAT('x', %s))", (n, 1000 if n != 150 else 300_000))
            connection.commit()
        run(server, "INSERT INTO d.t VALUES (1000, 'after')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 2)
        parts = [payload for payload in rig.payloads if payload.kind is PayloadKind.PART]
        assert [part.part for part in parts] == list(range(len(parts)))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.done[1] == before for part in parts[:-1])
        assert parts[-1].done[1] > before
        log = rig.log()
        assert [row[3] for row in log[0]] == list(range(300))
        assert log[1] == [("d.t", "WRITE", None, 1000)]
        assert len(parts) < 17
        assert max(len(change.images) for part in parts for unit in part.units for change in unit.changes) < 1 << 17
        assert all(len(unit.changes) == 1 for part in parts for unit in part.units)


def test_event_larger_than_parts(server_factory: ServerFactory) -> None:
    """One rows event of many rows is cut between rows."""
    server = server_factory(options={"binlog_row_event_max_size": "1M"})
    run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, b VARCHAR(100))")
    with capturing(server, part_bytes=1 << 15) as rig:
        run(server, "INSERT INTO d.t VALUES " + ",".join(f"({n}, REPEAT('y', 90))" for n in range(5000)))
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        assert len(rig.payloads) > 10
        assert [row[3] for row in rig.log()[0]] == list(range(5000))


def test_compressed(server_factory: ServerFactory, engine: str) -> None:
    """MySQL's compressed transactions, MariaDB's compressed events; applied transactions and parts among them."""
    options = (
        {"binlog_transaction_compression": "ON"}
        if engine == "mysql"
        else {"log_bin_compress": "ON", "log_bin_compress_min_len": "10"}
    )
    server = server_factory(options=options)
    run(server, *_TABLES, *PROGRESS, "CREATE TABLE d.b (id INT PRIMARY KEY, b LONGBLOB)")
    with capturing(server, part_bytes=1 << 17) as rig:
        run(
            server,
            "INSERT INTO d.t VALUES (1, REPEAT('a', 50)), (2, NULL)",
            "BEGIN", "UPDATE mysqlraft.progress SET applied = 41",
            "INSERT INTO d.t VALUES (3, REPEAT('b', 50))", "COMMIT",
            "UPDATE d.t SET id = 4 WHERE id = 2",
            "INSERT INTO d.b VALUES " + ",".join(f"({n}, REPEAT('z', 30000))" for n in range(20)),
            "INSERT INTO d.b VALUES (100, REPEAT('z', 20000000))",
            "CREATE TABLE d.c (id INT PRIMARY KEY) COMMENT 'a comment long enough to be compressed'",
            "DELETE FROM d.t",
        )  # fmt: skip
        rig.sync()
        log = rig.log()
        assert log[0] == [("d.t", "WRITE", None, 1), ("d.t", "WRITE", None, 2)]
        assert log[1] == [("d.t", "UPDATE", 2, 4)]
        assert [row[3] for row in log[2]] == list(range(20))
        assert log[3] == [("d.b", "WRITE", None, 100)]
        assert log[4].startswith("CREATE TABLE d.c")
        assert [row[2] for row in log[5]] == [1, 3, 4]
        assert [unit.base for payload in rig.payloads for unit in payload.units][:2] == [0, 41]


def test_xa(server: Server, position: str) -> None:
    """Rows of an XA transaction leave at its XA COMMIT, in its place; a restart while it is open loses nothing."""
    run(server, *_TABLES, *PROGRESS)
    with capturing(server, position=position, part_bytes=4096) as rig:
        run(
            server,
            "XA START 'one'", "INSERT INTO d.t VALUES (1, 'a')", "XA END 'one'", "XA COMMIT 'one' ONE PHASE",
            "XA START 'two', 'b', 9",
            "INSERT INTO d.u VALUES " + ",".join(f"({n}, CONCAT(REPEAT('x', 30), {n}))" for n in range(400)),
            "XA END 'two', 'b', 9", "XA PREPARE 'two', 'b', 9",
        )  # fmt: skip
        run(server, "XA START 'three'", "INSERT INTO d.t VALUES (3, 'c')", "XA END 'three'", "XA PREPARE 'three'")
        run(server, "BEGIN", "UPDATE mysqlraft.progress SET applied = 5", "COMMIT", "INSERT INTO d.t VALUES (2, 'b')")
        rig.sync()
        assert rig.log() == [[("d.t", "WRITE", None, 1)], [("d.t", "WRITE", None, 2)]]
        state = rig.state()
        assert state.resume.offset < state.done[1]
    with capturing(server, state, position=position, part_bytes=4096) as rig:
        run(server, "XA ROLLBACK 'three'", "XA COMMIT 'two', 'b', 9", "INSERT INTO d.t VALUES (9, 'z')")
        rig.sync()
        log = rig.log()
        assert [row[3] for row in log[0]] == list(range(400))
        assert log[1:] == [[("d.t", "WRITE", None, 9)]]
        assert {unit.base for payload in rig.payloads for unit in payload.units} == {5}
        assert rig.state().resume.offset == rig.state().done[1]


def test_statements(server: Server) -> None:
    """Schema changes in order with the rows around them; the daemon's own, and what is no schema change, left out."""
    with capturing(server) as rig:
        run(
            server,
            *_TABLES,
            "INSERT INTO d.t VALUES (1, 'a')",
            "SET time_zone = '+03:00', sql_mode = 'ANSI_QUOTES', foreign_key_checks = 0",
            'ALTER TABLE d.t ADD COLUMN "n" INT DEFAULT 5',
            "SET time_zone = '+00:00', sql_mode = '', foreign_key_checks = 1",
            "INSERT INTO d.t VALUES (2, 'b', 3)",
            "CREATE TABLE d.s (PRIMARY KEY (id)) AS SELECT id, v FROM d.t",
            "CREATE UNIQUE INDEX i ON d.s (v)",
            "INSERT INTO d.s VALUES (7, 'q')",
        )
        rig.sync()
        run(
            server,
            "CREATE VIEW d.w AS SELECT 1",
            "CREATE TRIGGER d.g BEFORE INSERT ON d.u FOR EACH ROW SET NEW.v = 'g'",
            "CREATE USER somebody", "GRANT SELECT ON d.* TO somebody",
            "ANALYZE TABLE d.t", "FLUSH TABLES", "DROP USER somebody",
            "CREATE TEMPORARY TABLE d.tmp (id INT)", "INSERT INTO d.tmp VALUES (1)", "DROP TEMPORARY TABLE d.tmp",
            "CREATE DATABASE mysqlraft", "CREATE TABLE mysqlraft.x (id INT)", "INSERT INTO mysqlraft.x VALUES (1)",
            "RENAME TABLE d.u TO d.u2",
            "TRUNCATE d.t",
            "DROP TABLE d.t, d.s",
            f"SET SESSION pseudo_thread_id = {APPLY_THREAD_ID}",
            "CREATE TABLE d.mine (id INT PRIMARY KEY)", "DROP TABLE d.mine", "CREATE DATABASE e", "DROP DATABASE e",
            "SET SESSION pseudo_thread_id = 1",
            "DROP DATABASE d",
        )  # fmt: skip
        rig.sync()
        log = rig.log()
        words = [entry if isinstance(entry, list) else " ".join(entry.replace("`", "").split()[:3]) for entry in log]
        assert words == [
            "CREATE DATABASE d", "CREATE TABLE d.t", "CREATE TABLE d.u",
            [("d.t", "WRITE", None, 1)],
            "ALTER TABLE d.t",
            [("d.t", "WRITE", None, 2)],
            "CREATE TABLE d.s",
            [("d.s", "WRITE", None, 1), ("d.s", "WRITE", None, 2)],
            "CREATE UNIQUE INDEX",
            [("d.s", "WRITE", None, 7)],
            "CREATE ALGORITHM=UNDEFINED DEFINER=root@localhost",
            "CREATE DEFINER=root@localhost TRIGGER",
            "RENAME TABLE d.u", "TRUNCATE d.t", "DROP TABLE d.t,d.s",
            "DROP DATABASE d",
        ]  # fmt: skip
        alter = next(p.ddl for p in rig.payloads if p.ddl is not None and p.ddl.statement.startswith(b"ALTER"))
        assert {schema for schema, _ in alter.tables} == {"d"}
        assert alter.context["foreign_key_checks"] == 0
        assert alter.context["sql_mode"] & 4
        keys = [len(unit.keys) // 8 for payload in rig.payloads for unit in payload.units]
        assert keys[-1] == 2  # the unique index made just before counts
        notes = rig.capture.status()["notes"]
        assert any("GRANT" in note for note in notes)


def test_create_select_restart(server: Server) -> None:
    """A restart between the statement and the rows of CREATE TABLE ... SELECT goes on with the rows."""
    run(server, *_TABLES, "INSERT INTO d.t VALUES (1, 'a')")
    with capturing(server) as rig:
        run(server, "CREATE TABLE d.s (PRIMARY KEY (id)) AS SELECT id, v FROM d.t")
        rig.wait(lambda: len(rig.payloads) == 2)
        statement, _ = rig.payloads
        assert statement.kind is PayloadKind.DDL
        whole = rig.log()
        rig.payloads = [statement]
        state = rig.state()
    with capturing(server, state) as again:
        again.sync()
        assert again.log() == whole[1:] == [[("d.s", "WRITE", None, 1)]]


def test_filters(server: Server) -> None:
    """Include and exclude, by schema and table, exclude winning; statements follow their tables."""
    replicated = TableFilter(["shop.*", "*.keep", "t?.x*"], ["*.audit_log", "shop.tmp_*"])
    with capturing(server, replicated=replicated) as rig:
        run(server, "CREATE DATABASE shop", "CREATE DATABASE other", "CREATE DATABASE t1")
        for name in ("shop.a", "shop.audit_log", "shop.tmp_x", "other.a", "other.keep", "t1.x9", "t1.y"):
            run(server, f"CREATE TABLE {name} (id INT PRIMARY KEY)", f"INSERT INTO {name} VALUES (1)")
        with server.connect(autocommit=False) as connection, connection.cursor() as cursor:
            for name in ("other.a", "shop.a", "shop.audit_log"):
                cursor.execute(f"INSERT INTO {name} VALUES (2)")
            connection.commit()
        run(server, "INSERT INTO shop.a VALUES (3)")
        rig.wait(lambda: rig.capture.status()["transactions"] == 5)
        log: list[Any] = rig.log()
        assert [rows for rows in log if isinstance(rows, list)] == [
            [(name, "WRITE", None, 1)] for name in ("shop.a", "other.keep", "t1.x9")
        ] + [[("shop.a", "WRITE", None, 2)], [("shop.a", "WRITE", None, 3)]]
        assert [entry for entry in log if isinstance(entry, str) and "TABLE" in entry] == [
            f"CREATE TABLE {name} (id INT PRIMARY KEY)" for name in ("shop.a", "other.keep", "t1.x9")
        ]


def test_a_statement_across_the_filter(server: Server) -> None:
    """What is not replicated stays out of a list; where it cannot, capture stops."""
    replicated = TableFilter(["app.*"], ["app.tmp_*"])
    crossing = ("RENAME TABLE app.b TO private.b", "CREATE TABLE app.c LIKE private.model", "DROP DATABASE app")
    run(server, "CREATE DATABASE app", "CREATE DATABASE private", "CREATE TABLE private.model (id INT PRIMARY KEY)")
    for statement in crossing:
        for name in ("app.a", "app.`b``c`", "app.b", "app.tmp_x", "private.u"):
            run(server, f"CREATE TABLE {name} (id INT PRIMARY KEY)")
        with capturing(server, replicated=replicated) as rig:
            run(server, "DROP TABLE private.u, app.a, app.tmp_x", "DROP TABLE IF EXISTS app.tmp_x, `app`.`b``c`, no.no")
            rig.wait(lambda: len(rig.payloads) == 2)
            run(server, "CREATE TABLE app.tmp_y LIKE app.b", "DROP TRIGGER IF EXISTS private.none")
            run(
                server,
                "CREATE TRIGGER app.r BEFORE INSERT ON app.tmp_y FOR EACH ROW SET @x = 1",
                "DROP TABLE app.tmp_y",
            )
            assert rig.log() == ["DROP TABLE `app`.`a`", "DROP TABLE IF EXISTS `app`.`b``c`"]
            run(server, statement)
            rig.wait(lambda: rig.error is not None)
            assert isinstance(rig.error, BinlogError)
            assert "Change `replicate`" in str(rig.error)
            assert len(rig.payloads) == 2
        run(server, "DROP TABLE IF EXISTS private.b, app.b, app.c")


def test_a_server_that_does_not_tell_names_apart_by_case(server_factory: ServerFactory) -> None:
    """Statements are in the binlog as they were written, tables in lower case; patterns as somebody meant them."""
    server = server_factory(options={"lower_case_table_names": "1"})
    with closing(server.connect()) as connection:
        assert any_case(connection)
    replicated = TableFilter(["Shop.*"], ["*.Private"], any_case=True)
    assert not replicated("MySQL", "user")
    with capturing(server, replicated=replicated) as rig:
        run(
            server,
            *("CREATE DATABASE SHOP", "CREATE TABLE Shop.T (id INT PRIMARY KEY)", "INSERT INTO sHoP.t VALUES (1)"),
            *("CREATE TABLE shop.PRIVATE (id INT PRIMARY KEY)", "INSERT INTO Shop.Private VALUES (1)"),
            *("CREATE DATABASE Other", "RENAME TABLE SHOP.t TO shop.U", "INSERT INTO shop.u VALUES (2)"),
        )
        rig.wait(lambda: rig.capture.status()["transactions"] == 2)
        assert rig.log() == [
            "CREATE DATABASE SHOP",
            "CREATE TABLE Shop.T (id INT PRIMARY KEY)",
            [("shop.t", "WRITE", None, 1)],
            "RENAME TABLE SHOP.t TO shop.U",
            [("shop.u", "WRITE", None, 2)],
        ]


def test_a_function_that_changes_rows(server: Server) -> None:
    """Called by SELECT, and logged as that in a session that logs statements."""
    run(
        server,
        *_TABLES,
        "SET GLOBAL log_bin_trust_function_creators = 1",
        "CREATE FUNCTION d.f() RETURNS INT MODIFIES SQL DATA BEGIN INSERT INTO d.t VALUES (77, 'f'); RETURN 1; END",
    )
    with capturing(server) as rig:
        run(server, "SET SESSION binlog_format = STATEMENT", "SELECT d.f()")
        rig.wait(lambda: rig.error is not None)
        assert "binlog_format = ROW" in str(rig.error)


@pytest.mark.parametrize(
    "session, statement, complaint",
    [
        ("SET SESSION binlog_format = STATEMENT", "INSERT INTO d.t VALUES (1, 'a')", "binlog_format = ROW"),
        ("SET SESSION binlog_row_image = MINIMAL", "UPDATE d.t SET v = 'b' WHERE id = 9", "binlog_row_image"),
    ],
)
def test_what_cannot_be_carried(server: Server, session: str, statement: str, complaint: str) -> None:
    """Sessions that change how they log end capture with a clear error."""
    run(server, *_TABLES, "INSERT INTO d.t VALUES (9, 'i')")
    with capturing(server) as rig:
        run(server, session, statement)
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, BinlogError)
        assert complaint in str(rig.error)


def test_part_of_a_json_value(server: Server) -> None:
    """Of a table that is not replicated nobody minds; of another one the reason says what to do about what is there."""
    if server.engine == "mariadb":
        return
    update = "UPDATE {} SET j = JSON_SET(j, '$.a', 2)"
    run(server, *(f"CREATE DATABASE {schema}" for schema in ("d", "other")))
    for table in ("d.j", "other.j"):
        run(server, f"CREATE TABLE {table} (id INT PRIMARY KEY, j JSON)")
        run(server, f"INSERT INTO {table} VALUES (1, JSON_OBJECT('a', 1, 'b', REPEAT('x', 100)))")
    with capturing(server, replicated=TableFilter(["*.*"], ["other.*"])) as rig:
        partial = "SET SESSION binlog_row_value_options = 'PARTIAL_JSON'"
        run(server, partial, update.format("other.j"), "INSERT INTO d.j VALUES (2, NULL)")
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        run(server, partial, update.format("d.j"))
        rig.wait(lambda: rig.error is not None)
        assert str(rig.error).startswith("d.j: an update carries part of a JSON value only. For updates to come, SET")
        assert "skip --captured" in str(rig.error)


def test_commits_are_proposed_at_once(server: Server) -> None:
    """No timer between COMMIT and proposal: many one by one take less than any timer would."""
    run(server, *_TABLES)
    with capturing(server) as rig, server.connect() as connection, connection.cursor() as cursor:
        for number in range(50):
            cursor.execute("INSERT INTO d.t VALUES (%s, NULL)", (number,))
            rig.wait(lambda wanted=number + 1: rig.capture.status()["transactions"] == wanted)  # type: ignore[misc]
        assert len(rig.payloads) == 50
        assert rig.capture.status()["lag_seconds"] < 5


def test_rows_read_under_later_definitions_are_wild(server: Server) -> None:
    """The server tells today's unique keys. Rows of before a statement on their table may have had others; all others,
    however long ago they were written, had these."""
    run(
        server,
        "CREATE DATABASE d",
        "CREATE TABLE d.t (id INT PRIMARY KEY, u INT, UNIQUE (u))",
        "CREATE TABLE d.untouched (id INT PRIMARY KEY, u INT, UNIQUE (u))",
        *PROGRESS,
    )
    with server.connect() as connection:
        before = position_now(connection)
    run(
        server,
        "INSERT INTO d.untouched VALUES (1, 1)",
        "INSERT INTO d.t VALUES (1, 1)",
        "ALTER TABLE d.t DROP INDEX u",
        "INSERT INTO d.t VALUES (2, 2)",
        "CREATE TABLE d.gone (id INT PRIMARY KEY)",
        "INSERT INTO d.gone VALUES (1)",
        "DROP TABLE d.gone",
        "FLUSH BINARY LOGS",
        "INSERT INTO d.untouched VALUES (2, 2)",
        "ALTER TABLE d.t ADD COLUMN x INT",
        "CREATE TABLE d.other (id INT PRIMARY KEY)",
        "INSERT INTO d.t VALUES (3, 3, 3)",
        "INSERT INTO d.untouched VALUES (3, 3)",
    )
    with capturing(server, CaptureState(before, (before.file, before.offset), 0)) as rig:
        rig.sync()
        run(server, "CREATE TABLE d.later (id INT PRIMARY KEY)", "INSERT INTO d.later VALUES (1)")
        rig.sync()
        units = [(payload, unit) for payload in rig.payloads for unit in payload.units]
        tables = [names(payload.tables[unit.changes[0].table])[1] for payload, unit in units]
        wild = [bool(unit.wild) for _, unit in units]
        assert list(zip(tables, wild, strict=True)) == [
            ("untouched", False),
            ("t", True),
            ("t", True),  # the next statement on it lies ahead
            ("gone", True),
            ("untouched", False),
            ("t", False),
            ("untouched", False),
            ("later", False),
        ]


@pytest.mark.parametrize("how", ["MIXED", "STATEMENT"])
@pytest.mark.parametrize(
    "statement",
    [
        "ANALYZE UPDATE d.t SET v = 'b'",
        "ANALYZE FORMAT=JSON DELETE FROM d.t",
        "SET STATEMENT max_statement_time = 9 FOR ANALYZE INSERT INTO d.t VALUES (10, 'b')",
        "UPDATE d.t, d.u SET d.t.v = 'b'",
        "WITH x AS (SELECT 9 AS id) UPDATE d.t SET v = 'b' WHERE id IN (SELECT id FROM x)",
    ],
)
def test_rows_changed_by_other_verbs(server: Server, how: str, statement: str) -> None:
    """Logged as a statement they end capture with the reason, whatever they begin with."""
    run(server, *_TABLES, "INSERT INTO d.t VALUES (9, 'i')", "INSERT INTO d.u VALUES (9, 'i')")
    if ("ANALYZE" if server.engine == "mysql" else "WITH") in statement:
        with pytest.raises(pymysql.err.ProgrammingError):
            run(server, statement)
        return
    with capturing(server) as rig:
        run(server, f"SET SESSION binlog_format = {how}", statement)
        rig.wait(lambda: rig.error is not None)
        assert "changes rows of d" in str(rig.error)
        assert "binlog_format = ROW" in str(rig.error)
