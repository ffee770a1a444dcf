"""Transactions of the site's own that cannot be carried: where capture stops, and how it goes on without one."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.place import Place, TransactionStops
from mysqlraft.mysql import schema
from mysqlraft.replication.capture import CaptureState, position_now
from mysqlraft.replication.entry import PayloadKind
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.left_out import LeftOutRows
from mysqlraft.replication.look_ahead import LookAhead
from mysqlraft.replication.tables import LocalTables
from mysqlraft.sandbox.servers import Engine, Server
from tests.binlog.tap import logs_generated_columns, settings
from tests.harness.pool import ServerFactory
from tests.replication.capture_rig import Rig, capturing, run

TABLE = (
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY, v INT, b LONGTEXT)",
    "INSERT INTO d.t VALUES (1, 1, 'a')",
)

UNCARRIED = {
    "statement": ("SET SESSION binlog_format = STATEMENT", "INSERT INTO d.t VALUES (2, 2, 'b')"),
    "statements": (
        "SET SESSION binlog_format = STATEMENT",
        "BEGIN",
        "INSERT INTO d.t VALUES (2, 2, 'b')",
        "UPDATE d.t SET v = 3",
        "COMMIT",
    ),
    "minimal": ("SET SESSION binlog_row_image = MINIMAL", "UPDATE d.t SET v = 3"),
    "no blobs": ("SET SESSION binlog_row_image = NOBLOB", "UPDATE d.t SET v = 3"),
    "minimal insert": ("SET SESSION binlog_row_image = MINIMAL", "INSERT INTO d.t (id) VALUES (2)"),
    "prepared": (
        "SET SESSION binlog_row_image = MINIMAL",
        "XA START 'x'",
        "UPDATE d.t SET v = 3",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
    ),
}


def stopped(rig: Rig) -> Place:
    rig.wait(lambda: rig.error is not None)
    assert isinstance(rig.error, TransactionStops)
    print(f"{rig.error.place}: {rig.error}")
    return rig.error.place


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("way", UNCARRIED)
def test_capture_goes_on_without_a_transaction(server: Server, engine: Engine, way: str, tmp_path: Path) -> None:
    run(server, *TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (10, 1, 'before')")
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 10)]])
        run(server, *UNCARRIED[way])
        place = stopped(rig)
        state = rig.state()
    assert place.is_named(str(place))
    assert place.is_named(f" {place.file}:{place.offset}")
    assert not place.is_named("")
    with capturing(server, state) as rig:
        assert stopped(rig) == place, "it does not pass by itself"
    path = tmp_path / "skipped" / "it.jsonl"
    with capturing(server, state, skip={place: path}) as rig:
        # Nothing else is written: that it was left out is in the log at once.
        rig.wait(lambda: rig.log() == ["MARK"])
        assert rig.capture.status()["skipped"] == [str(path)]
        state = rig.state()
        assert state.done > (place.file, place.offset)
        run(server, "INSERT INTO d.t VALUES (11, 1, 'after')")
        rig.wait(lambda: rig.log()[-1] == [("d.t", "WRITE", None, 11)])
    with capturing(server, state) as rig:
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 11)]])

    assert path.stat().st_mode & 0o077 == 0
    found = lines(path)
    assert found[0]["transaction"] == str(place)
    assert all(bytes.fromhex(line["raw"]) for line in found if "raw" in line)
    if "statement" in way:
        assert any("INSERT INTO d.t VALUES (2, 2, 'b')" in line.get("statement", "") for line in found)
    else:
        rows = [line for line in found if line.get("table") == "d.t"]
        assert rows
        assert rows[0]["after"][{"minimal insert": "id"}.get(way, "v")] in (2, 3)


def test_a_decision_is_about_one_transaction(server: Server, tmp_path: Path) -> None:
    """The next one of its kind stops capture as well; units read before it are not lost."""
    run(server, *TABLE)
    with capturing(server) as rig:
        run(server, *UNCARRIED["statement"], "INSERT INTO d.t VALUES (3, 3, 'c')")
        first = stopped(rig)
        state = rig.state() if rig.payloads else rig.start_state
    with capturing(server, state, skip={first: tmp_path / "one"}) as rig:
        second = stopped(rig)
        assert second.offset > first.offset
        state = rig.state() if rig.payloads else state
    run(server, "INSERT INTO d.t VALUES (4, 4, 'd')")
    with capturing(server, state, skip={first: tmp_path / "one", second: tmp_path / "two"}) as rig:
        rig.wait(lambda: [("d.t", "WRITE", None, 4)] in rig.log())


def test_a_file_that_cannot_be_written_holds_capture(server: Server, tmp_path: Path) -> None:
    """Nothing is left out before it is kept; that is tried again."""
    run(server, *TABLE)
    with capturing(server) as rig:
        run(server, *UNCARRIED["statement"])
        place = stopped(rig)
        state = rig.start_state
    (tmp_path / "skipped").write_text("in the way")
    path = tmp_path / "skipped" / "it.jsonl"
    with capturing(server, state, skip={place: path}) as rig:
        rig.wait(lambda: "File exists" in rig.capture.status()["last_error"])
        assert rig.payloads == []
        (tmp_path / "skipped").unlink()
        rig.wait(lambda: rig.log() == ["MARK"])
    assert path.exists()


def test_a_compressed_transaction(server_factory: ServerFactory, engine: Engine, tmp_path: Path) -> None:
    server = server_factory(
        options={"binlog_transaction_compression": "ON"}
        if engine == "mysql"
        else {"log_bin_compress": "ON", "log_bin_compress_min_len": "10"}
    )
    run(server, *TABLE)
    with capturing(server) as rig:
        run(server, "SET SESSION binlog_row_image = MINIMAL", "UPDATE d.t SET v = 3, b = REPEAT('x', 20000)")
        place = stopped(rig)
        state = rig.start_state
    path = tmp_path / "it.jsonl"
    with capturing(server, state, skip={place: path}) as rig:
        rig.wait(lambda: rig.log() == ["MARK"])
        assert rig.payloads[0].kind is PayloadKind.MARK
    assert [line["after"]["v"] for line in lines(path) if "after" in line] == [3]


def test_columns_that_the_server_fills_are_in_whole_rows(server: Server) -> None:
    """Generated and invisible columns are there in a full image, and nothing is refused for the lack of them."""
    run(
        server,
        "CREATE DATABASE d",
        "CREATE TABLE d.t (id INT PRIMARY KEY, a INT, p INT GENERATED ALWAYS AS (a + 1) STORED,"
        " q INT GENERATED ALWAYS AS (a + 2) VIRTUAL INVISIBLE, r INT DEFAULT 5 INVISIBLE, u INT AS (a + 3) VIRTUAL)",
    )
    if logs_generated_columns(server):
        run(server, "ALTER TABLE d.t ADD UNIQUE (u)")
    with capturing(server) as rig:
        run(
            server,
            "INSERT INTO d.t (id, a) VALUES (1, 1), (2, 2)",
            "UPDATE d.t SET a = 9 WHERE id = 1",
            "DELETE FROM d.t WHERE id = 2",
        )
        rig.wait(lambda: len(rig.log()) == 3)


HARMLESS = [
    "REPLACE INTO tool.checksums SELECT 3, COALESCE(LOWER(CONV(BIT_XOR(CAST(v AS UNSIGNED)), 10, 16)), 0) FROM d.t",
    "INSERT IGNORE INTO tool.checksums (id, v) SELECT COUNT(*), 1 FROM d.t",
    "UPDATE tool.checksums SET v = 7 WHERE id IN (SELECT id FROM d.t)",
    "DELETE FROM tool.checksums WHERE id = 7",
]
HARMFUL = [
    "UPDATE tool.checksums, d.t SET d.t.v = 9 WHERE checksums.id = t.id",
    "REPLACE INTO tool.checksums VALUES (5, tool.f())",
    "INSERT INTO tool.watched VALUES (71, 1)",
    "INSERT INTO tool.seen VALUES (72, 1, NULL)",
    "DELETE d.t FROM tool.checksums, d.t WHERE checksums.id = t.id",
    "SELECT tool.f()",
    "UPDATE d.t SET v = 9",
]


@pytest.fixture
def tool(server: Server) -> Server:
    """A schema that is not replicated, with whatever may write to one that is."""
    run(
        server,
        "SET GLOBAL log_bin_trust_function_creators = 1",
        *TABLE,
        "CREATE DATABASE tool",
        "CREATE TABLE tool.checksums (id INT PRIMARY KEY, v VARCHAR(40))",
        "CREATE TABLE tool.watched (id INT PRIMARY KEY, v INT)",
        "CREATE VIEW tool.seen AS SELECT * FROM d.t",
        "CREATE TRIGGER tool.tr AFTER INSERT ON tool.watched FOR EACH ROW UPDATE d.t SET v = v + 1",
        "CREATE FUNCTION tool.f() RETURNS INT MODIFIES SQL DATA BEGIN UPDATE d.t SET v = v + 1; RETURN 1; END",
        "INSERT INTO tool.checksums VALUES (1, 1)",
    )
    return server


def test_a_tool_that_reads_replicated_tables(tool: Server) -> None:
    """What a statement writes counts, whatever it reads and whatever schema its session is in."""
    with capturing(tool, replicated=TableFilter(exclude=["tool.*"])) as rig:
        run(tool, "SET SESSION binlog_format = STATEMENT", *HARMLESS, "USE d", *HARMLESS)
        run(tool, "INSERT INTO d.t VALUES (9, 9, 'z')")
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 9)]])


@pytest.mark.parametrize("statement", HARMFUL)
def test_a_tool_that_may_write_replicated_tables(tool: Server, statement: str) -> None:
    with capturing(tool, replicated=TableFilter(exclude=["tool.*"])) as rig:
        run(tool, "SET SESSION binlog_format = STATEMENT", "USE tool", statement)
        stopped(rig)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_file_that_is_loaded_by_a_statement(tool: Server, tmp_path: Path, *, compressed: bool) -> None:
    """Into a table that is not replicated it goes by; into another one it stops."""
    file = tmp_path / "rows"
    file.write_text("".join(f"{number}\t{'x' * 30}\n" for number in range(100, 200)))
    run(tool, "SET GLOBAL local_infile = 1")
    switch = "log_bin_compress" if tool.engine == "mariadb" else "binlog_transaction_compression"
    load = f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE"
    with (
        capturing(tool, replicated=TableFilter(exclude=["tool.*"])) as rig,
        closing(tool.connect(local_infile=True)) as client,
        client.cursor() as cursor,
    ):
        cursor.execute(f"SET {'GLOBAL' if tool.engine == 'mariadb' else 'SESSION'} {switch} = {int(compressed)}")
        cursor.execute("SET SESSION binlog_format = STATEMENT")
        cursor.execute(f"{load} tool.checksums")
        cursor.execute("USE tool")
        cursor.execute("DELETE FROM tool.checksums")
        cursor.execute(f"{load} `checksums` (id, @v) SET v = LOWER(@v)")
        run(tool, "INSERT INTO d.t VALUES (9, 9, 'z')")
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 9)]])
        cursor.execute(f"{load} d.t (id, v)")
        stopped(rig)
        assert "LOAD DATA" in str(rig.error)


def test_rows_without_a_primary_key(server: Server) -> None:
    """They are counted, once each, also over restarts; the rest of their transaction is replicated."""
    run(server, *TABLE, "CREATE DATABASE mysqlraft", schema._TABLES["left_out"], "CREATE TABLE d.n (a INT, b INT)")
    with server.connect() as connection:
        now = position_now(connection)
    run(
        server,
        *("BEGIN", "INSERT INTO d.n VALUES (1, 1), (2, 2)", "INSERT INTO d.t VALUES (5, 5, 'e')"),
        *("UPDATE d.n SET b = 3", "COMMIT", "DELETE FROM d.n WHERE a = 1", "INSERT INTO d.t VALUES (6, 6, 'f')"),
        *("BEGIN", "INSERT INTO d.n VALUES (9, 9)", "ROLLBACK"),
    )
    start = end = CaptureState(now, (now.file, now.offset), 0)
    written = [[("d.t", "WRITE", None, 5)], [("d.t", "WRITE", None, 6)]]
    for _ in range(2):  # as after a crash before the log had any of it
        with capturing(server, start, left_out=LeftOutRows()) as rig:
            rig.wait(lambda: rig.log() == written)
            rig.wait(lambda: rig.capture.status()["left_out"] == {"d.n": 5})
            assert "rows of d.n, which had no primary key, were left out" in rig.capture.status()["notes"]
            end = rig.state()
    run(server, "ALTER TABLE d.n ADD PRIMARY KEY (a)", "INSERT INTO d.n VALUES (3, 3)")
    with capturing(server, end, left_out=LeftOutRows()) as rig:
        rig.wait(lambda: rig.log()[-1:] == [[("d.n", "WRITE", None, 3)]])
        assert rig.capture.status()["left_out"] == {"d.n": 5}, "until somebody has made the table equal"


def test_the_look_ahead_goes_on_behind_it(server: Server, engine: Engine) -> None:
    """Apply reads the binlog as well, and must not stay at what capture has been told to leave out."""
    run(server, *TABLE)
    connect = settings(server)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (10, 1, 'before')")
        rig.wait(lambda: rig.payloads)
        run(server, *UNCARRIED["statement"])
        place = stopped(rig)
        (payload,) = rig.payloads
    run(server, "UPDATE d.t SET v = 2 WHERE id = 10")
    with closing(ServerKeySource(lambda: pymysql.connect(**connect))) as source:
        left_out: list[Place] = []
        ahead = LookAhead(
            lambda: DumpConnection(connect, 900_006),
            lambda: int(source.query("SELECT @@global.server_id")[0][0]),
            LocalTables(source),
            TableFilter(),
            lambda: left_out,
        )
        with closing(ahead):
            assert not ahead.later_than(7, payload, 0).reach(*source.binlog_end())
            assert "logged as a statement" in ahead.problem
            left_out.append(place)
            assert ahead.later_than(7, payload, 0).reach(*source.binlog_end()), ahead.problem
            assert len(ahead.writes) == 1
            assert ahead.problem == ""
