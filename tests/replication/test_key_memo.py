"""A stopped capture leaves the row keys that it knows, and the next one does not look for statements ahead."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mysqlraft.binlog import key_memo
from mysqlraft.binlog.key_memo import KeyMemo
from mysqlraft.binlog.keys import KeyDefinition, KeyPart
from mysqlraft.binlog.place import TransactionStops
from mysqlraft.binlog.position import StreamPosition
from mysqlraft.binlog.statement_scan import StatementScan
from mysqlraft.binlog.tablemap import names
from mysqlraft.replication.capture import CaptureState, position_now
from mysqlraft.replication.entry import Payload
from mysqlraft.sandbox.servers import Server
from tests.replication.capture_rig import PROGRESS, Rig, capturing, run

_TABLES = (
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY, u INT, v INT, UNIQUE u (u))",
    "CREATE TABLE d.rare (id INT PRIMARY KEY, u INT, UNIQUE u (u))",
)


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / key_memo.FILE


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How statements ahead were looked for, but for those that `Rig.sync` makes."""
    found: list[str] = []
    for name in ("head_start", "last_on"):
        original = getattr(StatementScan, name)

        def noted(scan: StatementScan, *args: Any, name: str = name, original: Any = original) -> Any:
            if args[0] == "d" or name == "head_start":
                found.append(name)
            return original(scan, *args)

        monkeypatch.setattr(StatementScan, name, noted)
    return found


def first(server: Server, memo: Path) -> CaptureState:
    """A capture that has met the tables and is stopped; where the next one begins."""
    run(server, *_TABLES, *PROGRESS)
    with server.connect() as connection:
        begin = position_now(connection)
    with capturing(server, CaptureState(begin, (begin.file, begin.offset), 0), memo=memo) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 1, 1)", "INSERT INTO d.rare VALUES (1, 1)")
        rig.sync()
    return rig.state()


def units(rig: Rig) -> list[tuple[str, int, bool]]:
    """Of each unit: its table, how many keys, and whether some may be missing."""
    return [
        (names(payload.tables[unit.changes[0].table])[1], len(unit.keys) // 8, bool(unit.wild))
        for payload in rig.payloads
        for unit in payload.units
    ]


def test_nothing_is_looked_for(server: Server, memo: Path, looked: list[str]) -> None:
    """Also after a capture that did not meet the table, and in another file."""
    state = first(server, memo)
    for number in (2, 3):
        looked.clear()
        run(server, "FLUSH BINARY LOGS", f"INSERT INTO d.t VALUES ({number}, {number}, 0)", "FLUSH BINARY LOGS")
        if number == 3:
            run(server, "INSERT INTO d.rare VALUES (3, 3)")
        with capturing(server, state, memo=memo) as rig:
            rig.sync()
        state = rig.state()
        assert units(rig) == [("t", 2, False), ("rare", 2, False)][: number - 1]
        assert not looked


def test_statements_ahead(server: Server, memo: Path, looked: list[str]) -> None:
    """Rows before the first have the keys that are known, whatever comes; also if it ends as it began."""
    state = first(server, memo)
    run(
        server,
        "INSERT INTO d.t VALUES (2, 2, 2)",
        "INSERT INTO d.rare VALUES (2, 2)",
        "ALTER TABLE d.t DROP INDEX u",
        "INSERT INTO d.t VALUES (3, 2, 3)",
        "UPDATE d.t SET u = id",
        "ALTER TABLE d.t ADD UNIQUE u (u)",
        "INSERT INTO d.t VALUES (4, 4, 4)",
        "ALTER TABLE d.rare DROP INDEX u",
        "INSERT INTO d.rare VALUES (3, 2)",
    )
    with capturing(server, state, memo=memo) as rig:
        rig.sync()
    found = units(rig)
    assert found[0] == ("t", 2, False)
    assert found[1] == ("rare", 1, True)  # today it has no such key
    assert [(table, wild) for table, _, wild in found[2:]] == [
        ("t", True),
        ("t", True),
        ("t", False),
        ("rare", False),
    ]
    assert "head_start" not in looked


def test_keys_that_are_made_without_the_binlog(server: Server, memo: Path, looked: list[str]) -> None:
    """Those of today are taken."""
    state = first(server, memo)
    run(server, "SET SESSION sql_log_bin = 0", "ALTER TABLE d.t ADD UNIQUE (v)")
    run(server, "INSERT INTO d.t VALUES (2, 2, 2)")
    with capturing(server, state, memo=memo) as rig:
        rig.sync()
    assert units(rig) == [("t", 3, False)]
    assert looked


def test_it_knows_nothing_of_what_came_after_it(server: Server, memo: Path, looked: list[str]) -> None:
    """A capture that was killed left none: the one that begins where it ended looks for itself."""
    state = first(server, memo)
    before = memo.read_bytes()
    with capturing(server, state, memo=memo) as rig:
        run(server, "ALTER TABLE d.t DROP INDEX u")
        rig.sync()
        state = rig.state()
    memo.write_bytes(before)
    looked.clear()
    run(server, "ALTER TABLE d.t ADD UNIQUE u (u)")
    run(server, "INSERT INTO d.t VALUES (2, 2, 2)")
    with capturing(server, state, memo=memo) as rig:
        rig.sync()
    assert looked


def test_another_binlog(server: Server, memo: Path, looked: list[str]) -> None:
    """Its places mean something else there."""
    first(server, memo)
    reset = "RESET BINARY LOGS AND GTIDS" if server.engine == "mysql" else "RESET MASTER"
    run(server, reset, "ALTER TABLE d.t DROP INDEX u")
    with server.connect() as connection:
        begin = position_now(connection)
    looked.clear()
    run(server, "INSERT INTO d.t VALUES (2, 2, 2)", "ALTER TABLE d.t ADD UNIQUE u (u)")
    with capturing(server, CaptureState(begin, (begin.file, begin.offset), 0), memo=memo) as rig:
        rig.sync()
    assert units(rig) == [("t", 2, True)]
    assert looked


_REPLACED = "CREATE OR REPLACE TABLE d.t (id INT PRIMARY KEY, u INT, v INT DEFAULT 0, UNIQUE u (u)) SELECT 5 id, 5 u"
"""On MariaDB one transaction, with the rows."""


def _without_unique_key(server: Server, memo: Path) -> CaptureState:
    """As `first`, of a table that has a primary key only."""
    run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, u INT, v INT)", *PROGRESS)
    with server.connect() as connection:
        begin = position_now(connection)
    with capturing(server, CaptureState(begin, (begin.file, begin.offset), 0), memo=memo) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 1, 1)")
        rig.wait(lambda: rig.payloads)
    return rig.state()


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)  # MySQL's drops the table first
def test_a_table_is_replaced_in_a_transaction_that_is_left_out(server: Server, memo: Path, tmp_path: Path) -> None:
    """Its rows are not read, but the table has other keys from then on."""
    state = _without_unique_key(server, memo)
    run(server, "SET SESSION binlog_row_image = MINIMAL", _REPLACED)
    with capturing(server, state, memo=memo) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, TransactionStops)
    state = rig.state()
    run(server, "INSERT INTO d.t VALUES (6, 6, 6)", "ALTER TABLE d.t DROP INDEX u")
    with capturing(server, state, memo=memo, skip={rig.error.place: tmp_path / "left out"}) as rig:
        rig.sync()
    assert units(rig) == [("t", 1, True)]


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)  # MySQL's drops the table first
def test_a_table_is_replaced_in_a_transaction_that_is_read_again(server: Server, memo: Path) -> None:
    """Because an earlier one was prepared then; the capture that read it first was killed."""
    run(server, "CREATE DATABASE x", "CREATE TABLE x.x (id INT PRIMARY KEY)")
    with server.connect() as holder, holder.cursor() as cursor:
        run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, u INT, v INT)", *PROGRESS)
        with server.connect() as connection:
            begin = position_now(connection)
        with capturing(server, CaptureState(begin, (begin.file, begin.offset), 0), memo=memo) as rig:
            for statement in ("XA START 'x'", "INSERT INTO x.x VALUES (1)", "XA END 'x'", "XA PREPARE 'x'"):
                cursor.execute(statement)
            run(server, "INSERT INTO d.t VALUES (1, 1, 1)")
            rig.wait(lambda: rig.payloads)
        before = memo.read_bytes()
        run(server, _REPLACED)
        with capturing(server, rig.state(), memo=memo) as rig:
            rig.sync()
        memo.write_bytes(before)
        run(server, "INSERT INTO d.t VALUES (6, 6, 6)", "ALTER TABLE d.t DROP INDEX u")
        with capturing(server, rig.state(), memo=memo) as rig:
            rig.sync()
        assert units(rig) == [("t", 1, True)]
        cursor.execute("XA ROLLBACK 'x'")


@pytest.mark.parametrize("seed", [0, 7, 16])
def test_random_histories(server: Server, memo: Path, looked: list[str], seed: int) -> None:
    """Captures that are stopped or killed while others write rows, and unique keys come and go: each unit has the keys
    that a capture found which is never stopped and always up to date, or is said to lack some."""
    rng = random.Random(seed)
    run(server, *_TABLES, *PROGRESS)
    with server.connect() as connection:
        begin = position_now(connection)
    state = CaptureState(begin, (begin.file, begin.offset), 0)
    found: list[Payload] = []
    keyed = {"t": True, "rare": True}
    written = 0
    with capturing(server, state, server_id=900_010) as live:
        for lap in range(25):
            for _ in range(rng.randrange(7)):
                written += 1
                table = rng.choice(["t", "t", "rare"])
                if rng.random() < 0.5:
                    run(server, f"INSERT INTO d.{table} (id, u) VALUES ({written}, {written})")
                else:
                    run(server, f"ALTER TABLE d.{table} {'DROP INDEX u' if keyed[table] else 'ADD UNIQUE u (u)'}")
                    keyed[table] = not keyed[table]
                _wait(live, written)
            before = memo.read_bytes() if memo.exists() else b""
            with capturing(server, state, memo=memo) as rig:
                ahead = written - len(_items(found))
                _wait(rig, ahead if lap == 24 else rng.randrange(ahead + 1))
            if rng.random() < 0.3:
                memo.write_bytes(before)
            if rng.random() < 0.3 and lap < 24:
                del rig.payloads[rng.randrange(len(rig.payloads) + 1) :]  # they do not get into the log
            if rig.payloads:
                state = rig.state()
                found += rig.payloads
    units, true = _items(found), _items(live.payloads)
    wild = sum(is_wild for _, is_wild in units)
    print(f"{len(true)} units and statements, {wild} of them wild, {len(looked)} times looked ahead")
    assert not any(is_wild for _, is_wild in true)
    assert len(units) == len(true)
    pairs = enumerate(zip(units, true, strict=True))
    assert [number for number, ((keys, is_wild), (known, _)) in pairs if keys != known and not is_wild] == []


def _wait(rig: Rig, items: int) -> None:
    rig.wait(lambda: rig.capture.status()["connected"] and len(_items(rig.payloads)) >= items)


def _items(payloads: list[Payload]) -> list[tuple[bytes, bool]]:
    """Keys of each unit and statement, and whether some may be missing."""
    found: list[tuple[bytes, bool]] = []
    for payload in payloads:
        found += [(b"", False)] if payload.ddl is not None else []
        found += [(unit.keys, bool(unit.wild)) for unit in payload.units]
    return found


_KNOWN = KeyMemo(
    "binlog.000002",
    500,
    "1-7",
    {
        ("d", "t\udcff"): (
            (1, 4),
            [KeyDefinition("PRIMARY", (KeyPart("id"), KeyPart("b", 3))), KeyDefinition("u", (), "x")],
        )
    },
)


def test_a_file_keeps_it(memo: Path) -> None:
    assert key_memo.read(memo) is None
    _KNOWN.write(memo)
    assert key_memo.read(memo) == _KNOWN
    assert [path.name for path in memo.parent.iterdir()] == [memo.name]


@pytest.mark.parametrize(
    "harm", [lambda data: b"", lambda data: data[:-1], lambda data: data[:9] + b"\xff" + data[10:]]
)
def test_a_damaged_file_is_none(memo: Path, harm: Any) -> None:
    _KNOWN.write(memo)
    memo.write_bytes(harm(memo.read_bytes()))
    assert key_memo.read(memo) is None


def test_another_version_is_none(memo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_memo, "VERSION", 2)
    _KNOWN.write(memo)
    monkeypatch.undo()
    assert key_memo.read(memo) is None


def test_a_disk_that_takes_no_file(tmp_path: Path) -> None:
    _KNOWN.write(tmp_path / "not there" / "memo")


@pytest.mark.parametrize(
    ("offset", "identity", "serves"), [(500, "1-7", True), (4, "1-7", True), (501, "1-7", False), (500, "1-8", False)]
)
def test_where_it_serves(offset: int, identity: str, serves: bool) -> None:
    """A stream that begins behind it may have missed a statement."""
    position = StreamPosition("binlog.000002", offset, "", ("binlog.000002", offset), identity)
    assert _KNOWN.serves(position, pytest.fail) is serves
