"""Capture when things break: restarts, lost connections, rotation, purge, garbage."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest

from mysqlraft.binlog.changes import Rows
from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.position import StreamPosition
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.replication.capture import CaptureState, UnitBroken, position_now
from mysqlraft.replication.entry import Payload, PayloadKind
from mysqlraft.sandbox.servers import Engine, Server
from tests.binlog.tap import events, settings
from tests.harness.pool import ServerFactory
from tests.replication.capture_rig import PROGRESS, capturing, run

_APPLIED = "UPDATE mysqlraft.progress SET applied = {}"
_MODES = {
    last: [f"SET GLOBAL gtid_mode = {mode}" for mode in (*way, last)]
    for last, way in (("OFF", ("ON_PERMISSIVE", "OFF_PERMISSIVE")), ("ON", ("OFF_PERMISSIVE", "ON_PERMISSIVE")))
}
_TABLE = ("CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, v LONGTEXT)")


@contextmanager
def _writing(server: Server) -> Iterator[list[int]]:
    """Inserts counting numbers as fast as it goes, across restarts; what surely committed is in the list."""
    done: list[int] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        connection = None
        while not stop.is_set():
            try:
                connection = connection or server.connect()
                with connection.cursor() as cursor:
                    number += 1
                    cursor.execute("INSERT INTO d.t VALUES (%s, 'x')", (number,))
                done.append(number)
            except (pymysql.err.MySQLError, OSError):
                connection = None
                stop.wait(0.02)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.parametrize("position", ["auto", "file"])
@pytest.mark.parametrize("how", ["kill", "restart", "rotate", "disconnect", "disconnect TLS"])
def test_goes_on_by_itself(server: Server, position: str, how: str) -> None:
    """Every committed row once and in order, whatever happens to server and connection meanwhile."""
    run(server, *_TABLE)
    with capturing(server, position=position, tls="TLS" in how) as rig:
        with _writing(server) as done:
            # MySQL 9.7 takes ten seconds to stop while anybody, a replica or capture, reads its binlog.
            for round_ in range(1, 2 if how == "restart" else 4):
                seen = rig.capture.status()["transactions"]
                rig.wait(lambda wanted=seen + 20: rig.capture.status()["transactions"] >= wanted)  # type: ignore[misc]
                if how == "kill":
                    server.kill()
                    server.start()
                elif how == "restart":
                    server.restart()
                elif how == "rotate":
                    run(server, "FLUSH BINARY LOGS")
                else:
                    dump = rig.capture._dump
                    assert dump is not None
                    dump.abort()
                    rig.wait(lambda wanted=round_: rig.capture.status()["reconnects"] >= wanted)  # type: ignore[misc]
        rig.sync()
        found = [row[3] for rows in rig.log() for row in rows if isinstance(rows, list)]
        assert found == sorted(set(found))
        assert set(done) <= set(found)
        # What is in the table is what was captured.
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM d.t ORDER BY id")
            assert [row[0] for row in cursor.fetchall()] == found


def test_a_server_without_room_for_its_own_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again until it has some."""
    full = [
        pymysql.err.InternalError(3, "Error writing file '/tmp/MLfd=40' (OS errno 28 - No space left on device)")
    ] * 4
    query = ServerKeySource.query

    def ask(source: ServerKeySource, statement: str) -> Sequence[Sequence[Any]]:
        if full:
            raise full.pop()
        return query(source, statement)

    run(server, *_TABLE)
    monkeypatch.setattr(ServerKeySource, "query", ask)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: len(rig.log()) == 1)
        assert rig.capture.status()["reconnects"] == 4


@pytest.mark.parametrize("position", ["auto", "file"])
def test_resume_anywhere(server: Server, position: str) -> None:
    """A new session from the state after any payload reads exactly what is left."""
    run(server, *_TABLE)
    with capturing(server, position=position, part_bytes=8192) as rig:
        for number in range(0, 30, 3):
            run(
                server,
                f"INSERT INTO d.t VALUES ({number}, 'x')",
                f"INSERT INTO d.t VALUES ({number + 1}, REPEAT('y', 9000)), ({number + 2}, REPEAT('z', 9000))",
            )
            if number == 15:
                run(server, "FLUSH BINARY LOGS")
        rig.sync()
        payloads = list(rig.payloads)
        whole = rig.log()
    # The same units, whichever payloads they shared.
    for cut in random.Random(5).sample(range(1, len(payloads) - 1), 6):
        rig.payloads = payloads[:cut]
        state = rig.state()
        complete = [p for p in rig.payloads if p.kind is not PayloadKind.PART or p.last]
        before = sum(len(p.units) for p in complete if p.kind is not PayloadKind.PART)
        before += sum(p.kind is PayloadKind.PART for p in complete)
        with capturing(server, state, position=position, part_bytes=8192) as again:
            again.sync()
            assert again.log() == whole[before:]


def test_connection_lost_inside_a_large_transaction(server: Server) -> None:
    """The session ends, and another one reads the whole unit again."""
    run(server, *_TABLE)
    with server.connect() as connection:
        now = position_now(connection)
    state = CaptureState(now, (now.file, now.offset), 0)
    with capturing(server, state, part_bytes=1 << 16) as rig:

        def cut(payload: Payload) -> None:
            if payload.kind is PayloadKind.PART and payload.part == 3 and rig.capture._dump is not None:
                rig.capture._dump.abort()

        rig.gate = cut
        with server.connect(autocommit=False) as connection, connection.cursor() as cursor:
            for number in range(1000):
                cursor.execute("INSERT INTO d.t VALUES (%s, REPEAT('x', 2000))", (number,))
            connection.commit()
        run(server, "INSERT INTO d.t VALUES (5000, 'after')")
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, UnitBroken)
    with capturing(server, state, part_bytes=1 << 16) as rig:
        rig.wait(lambda: rig.capture.status()["transactions"] == 2)
        parts = [payload for payload in rig.payloads if payload.kind is PayloadKind.PART]
        assert [part.part for part in parts] == list(range(len(parts)))
        log = rig.log()
        assert [row[3] for row in log[0]] == list(range(1000))
        assert log[1] == [("d.t", "WRITE", None, 5000)]


@pytest.mark.parametrize("position", ["auto", "file"])
def test_purged(server: Server, position: str) -> None:
    """The binlog from the position on is gone: an error that says what was lost and what to do, and no jump."""
    run(server, *_TABLE)
    with capturing(server, position=position) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    run(server, "INSERT INTO d.t VALUES (2, 'lost')", "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (3, 'c')")
    with server.connect() as connection:
        last = position_now(connection).file
    run(server, f"PURGE BINARY LOGS TO '{last}'")
    with capturing(server, state, position=position) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, PositionLost)
        assert "load this site anew" in str(rig.error)
        assert state.resume.file in str(rig.error)
        assert rig.payloads == []


def test_a_gap_in_the_binlog(server: Server) -> None:
    """The server was run without its binlog, or with another one: what it wrote meanwhile is not passed over in
    silence."""
    run(server, *_TABLE, *PROGRESS)
    with capturing(server) as rig:
        run(server, _APPLIED.format(5), "INSERT INTO d.t VALUES (1, 'a')", _APPLIED.format(7))
        run(server, "INSERT INTO d.t VALUES (2, 'b')")
        rig.wait(lambda: [unit.base for payload in rig.payloads for unit in payload.units] == [5, 7])
        run(server, "SET SESSION sql_log_bin = 0", "INSERT INTO d.t VALUES (3, 'lost')", _APPLIED.format(8))
        run(server, _APPLIED.format(9), "INSERT INTO d.t VALUES (4, 'd')")
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, PositionLost)
        assert "goes on with log index 9, where 7 was the last" in str(rig.error)
        assert [unit.base for payload in rig.payloads for unit in payload.units] == [5, 7]


def test_what_was_committed_under_another_gtid_mode(server: Server, engine: Engine) -> None:
    """The server does not send it: capture says what to do, and goes on once that is done."""
    if engine == "mariadb":
        return
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    run(server, *_MODES["OFF"])
    with capturing(server, state) as rig:
        # All that has a GTID was read.
        run(server, "INSERT INTO d.t VALUES (2, 'b')")
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 2)]])
        state = rig.state()
    for number, mode in ((3, "ON"), (4, "OFF")):
        run(server, f"INSERT INTO d.t VALUES ({number}, 'x')", *_MODES[mode])
        permissive = f"SET GLOBAL gtid_mode = {mode}_PERMISSIVE"
        with capturing(server, state) as rig:
            rig.wait(lambda rig=rig, hint=permissive: hint in rig.capture.status()["last_error"])  # type: ignore[misc]
            run(server, permissive)
            rig.wait(lambda rig=rig, row=number: rig.log() == [[("d.t", "WRITE", None, row)]])  # type: ignore[misc]
            state = rig.state()
        run(server, f"SET GLOBAL gtid_mode = {mode}")


def test_reset(server: Server) -> None:
    """A server whose binlog was reset, or that lost its end: the same error."""
    run(server, *_TABLE, "INSERT INTO d.t VALUES (1, REPEAT('a', 100000))")
    with server.connect() as connection:
        now = position_now(connection)
    run(server, "RESET BINARY LOGS AND GTIDS" if server.engine == "mysql" else "RESET MASTER")
    dump = DumpConnection(settings(server), 900_003)
    dump.start_at(now.file, now.offset)
    with pytest.raises(PositionLost):
        _read_on(dump)
    dump.close()


def _read_on(dump: DumpConnection) -> None:
    while True:
        dump.batch()


def _garbled(server: Server, found: list[bytes]) -> None:
    source = ServerKeySource(lambda: pymysql.connect(**settings(server)))
    stream = TransactionStream(
        source,
        lambda schema, table: True,
        mariadb=server.engine == "mariadb",
        position=StreamPosition("binlog.000001", 4, "", ("binlog.000001", 4)),
    )
    try:
        items = list(stream.read(found))
        assert all(item is None or isinstance(item, Rows) or item.statement is not None for item in items)
    except BinlogError:
        pass
    finally:
        stream.close()
        source.close()


def test_garbage(server: Server) -> None:
    """Events cut short or overwritten anywhere (past the checksum) give BinlogError or something else valid."""
    found = events(
        server,
        *_TABLE,
        "INSERT INTO d.t VALUES (1, 'abc'), (2, NULL)",
        "UPDATE d.t SET v = 'new' WHERE id = 2",
        "XA START 'x'",
        "DELETE FROM d.t",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
    )
    source = random.Random(3)
    _garbled(server, found)
    for number, event in enumerate(found):
        for _ in range(12):
            cut = source.randrange(19, len(event))
            _garbled(server, [*found[:number], event[:cut], *found[number + 1 :]])
            spoilt = bytearray(event)
            for _ in range(source.randint(1, 4)):
                spoilt[source.randrange(19, len(event))] = source.randrange(256)
            _garbled(server, [*found[:number], bytes(spoilt), *found[number + 1 :]])


def test_unknown_events(server: Server) -> None:
    """An unknown type is an error; one marked ignorable is noted."""
    notes: list[str] = []
    stream = TransactionStream(
        ServerKeySource(lambda: pymysql.connect(**settings(server))),
        lambda schema, table: True,
        mariadb=False,
        position=StreamPosition("binlog.000001", 4, "", ("binlog.000001", 4)),
        note=notes.append,
    )
    header = bytearray(19)
    header[4] = 99
    header[17] = 0x80
    assert list(stream.read([bytes(header)])) == []
    assert "type 99" in notes[0]
    header[17] = 0
    with pytest.raises(BinlogError, match="type 99"):
        list(stream.read([bytes(header)]))


def test_a_checksum_that_does_not_match(server: Server) -> None:
    """A bit that fell over on the way is not replicated; what came before it is."""
    run(server, *_TABLE)
    with server.connect() as connection:
        now = position_now(connection)
    run(server, "INSERT INTO d.t VALUES (1, 'abc')")
    dump = DumpConnection(settings(server), 900_004)
    dump.start_at(now.file, now.offset)
    dump.wait(5)
    while b"abc" not in dump._buffer:
        dump._fill()
        if b"abc" in dump._buffer:
            dump._buffer = dump._buffer.replace(b"abc", b"abd")
            break
        dump._cut([])
    assert dump.batch()
    with pytest.raises(BinlogError, match="checksum"):
        dump.batch()
    dump.close()


def test_silence(server: Server) -> None:
    """A server that sends nothing, not even heartbeats, counts as gone."""
    dump = DumpConnection(settings(server), 900_005, heartbeat=0.2)
    with server.connect() as connection:
        now = position_now(connection)
    dump.start_at(now.file, now.offset)
    for _ in range(4):
        dump.batch()  # heartbeats among them
    dump._heartbeat = 0.001
    with pytest.raises(ConnectionLost, match="not even a heartbeat"):
        _read_on(dump)
    dump.close()


@pytest.mark.parametrize("position", ["auto", "file"])
@pytest.mark.parametrize("how", ["reset", "restored"])
def test_a_binlog_that_went_back_and_grew_again(
    server: Server, engine: Engine, position: str, how: str, tmp_path: Path
) -> None:
    """The place and its GTIDs exist again, with other transactions before them: an error, and nothing passed over."""
    run(server, *_TABLE)
    if how == "restored":
        server.stop()
        shutil.copytree(server.directory / "data", tmp_path / "copy")
        server.start()
    with capturing(server, position=position) as rig:
        for number in range(5):
            run(server, f"INSERT INTO d.t VALUES ({number}, 'x')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 5)
        state = rig.state()
    # Nothing has changed: it goes on.
    with capturing(server, state, position=position) as again:
        again.wait(lambda: again.capture.status()["connected"])
    time.sleep(1.1)  # the time a file was made at counts seconds
    if how == "restored":
        server.kill()
        shutil.rmtree(server.directory / "data")
        shutil.copytree(tmp_path / "copy", server.directory / "data")
        server.start()
    else:
        run(
            server, "DROP DATABASE d", "RESET MASTER" if engine == "mariadb" else "RESET BINARY LOGS AND GTIDS", *_TABLE
        )
    # The same statements: files, offsets and GTIDs come out alike.
    for number in range(10):
        run(server, f"INSERT INTO d.t VALUES ({number}, 'y')")
    with capturing(server, state, position=position) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, PositionLost)
        assert "load this site anew" in str(rig.error)
        assert rig.log() == []


def test_what_a_crash_makes_the_server_forget_of_xa(server: Server, tmp_path: Path) -> None:
    """It has forgotten an XA COMMIT and an XA PREPARE that its binlog holds, as MariaDB does when it is killed between
    the two; the application commits again what is still prepared there."""
    run(server, *_TABLE)
    with capturing(server, mark_seconds=0.1) as rig:
        run(server, "XA START 'one'", "INSERT INTO d.t VALUES (1, 'a')", "XA END 'one'", "XA PREPARE 'one'")
        server.kill()
        before, now = tmp_path / "before", server.directory / "data"
        shutil.copytree(now, before)
        server.start()
        run(server, "XA COMMIT 'one'")
        run(server, "XA START 'two'", "INSERT INTO d.t VALUES (2, 'b')", "XA END 'two'", "XA PREPARE 'two'")
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 1)]])
        server.kill()
        for file in now.glob("binlog.*"):
            shutil.copy(file, before)
        shutil.rmtree(now)
        before.rename(now)
        server.start()
        with server.connect() as connection, connection.cursor() as cursor:
            for _ in range(cursor.execute("XA RECOVER")):
                run(server, "XA COMMIT 'one'")
        run(server, "INSERT INTO d.t VALUES (3, 'c')")
        rig.wait(lambda: len(rig.log()) == 2 or rig.error is not None)
        assert rig.error is None
        assert rig.log()[1] == [("d.t", "WRITE", None, 3)]

        def let_go() -> bool:
            state = rig.state()
            return state.done == (state.resume.file, state.resume.offset)

        rig.wait(let_go)


def test_another_server_by_gtid(server: Server, engine: Engine, server_factory: ServerFactory) -> None:
    """A server with all that was captured, under names of files of its own, may take the place of the site's."""
    other = server_factory()
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'x')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        state = rig.state()
    gtids = state.resume.gtids
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, PositionLost)
    if engine == "mysql":
        run(other, "RESET BINARY LOGS AND GTIDS", f"SET GLOBAL gtid_purged = '{gtids}'", *_TABLE)
    else:
        run(other, "RESET MASTER", f"SET GLOBAL gtid_binlog_state = '{gtids}'", *_TABLE)
    with capturing(other, state) as rig:
        run(other, "INSERT INTO d.t VALUES (2, 'x')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        assert rig.log()[-1] == [("d.t", "WRITE", None, 2)]


@pytest.mark.parametrize("while_it_runs", [True, False], ids=["running", "between two starts"])
def test_gtids_that_somebody_declares_read(server: Server, engine: Engine, while_it_runs: bool) -> None:
    """A dump that is loaded says of other servers' GTIDs that they are here. The binlog is the same: it is read on."""
    other = "11111111-2222-3333-4444-555555555555:1-5"
    declared = (
        [f"SET GLOBAL gtid_purged = '+{other}'"]
        if engine == "mysql"
        else ["SET GLOBAL gtid_slave_pos = '7-99-1000'", "SET SESSION gtid_domain_id = 5", "CREATE DATABASE e"]
    )
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        if while_it_runs:
            run(server, *declared, "INSERT INTO d.t VALUES (2, 'b')")
            rig.wait(lambda: rig.capture.status()["transactions"] == 2)
        state = rig.state()
    if not while_it_runs:
        run(server, *declared)
    run(server, "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (3, 'c')")
    with capturing(server, state) as again:
        again.wait(lambda: again.log() and again.log()[-1] == [("d.t", "WRITE", None, 3)])
        state = again.state()
    # What has been read may be purged, whatever was declared.
    run(server, "FLUSH BINARY LOGS")
    with capturing(server, state) as again:
        run(server, "INSERT INTO d.t VALUES (4, 'd')")
        again.wait(lambda: again.log() and again.log()[-1] == [("d.t", "WRITE", None, 4)])
        state = again.state()
    run(server, f"PURGE BINARY LOGS TO '{state.resume.file}'")
    with capturing(server, state) as again:
        run(server, "INSERT INTO d.t VALUES (5, 'e')")
        again.wait(lambda: again.log() == [[("d.t", "WRITE", None, 5)]])


@pytest.mark.parametrize("position", ["auto", "file"])
def test_a_file_that_was_read_to_its_end_may_be_purged(server: Server, position: str) -> None:
    """An idle site's place moves on with the files, so that it is not one that the server has no more need of."""
    run(server, *_TABLE)
    with capturing(server, position=position, mark_seconds=0.1) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        run(server, "FLUSH BINARY LOGS")
        with server.connect() as connection:
            last = position_now(connection).file
        rig.wait(lambda: rig.payloads and rig.state().resume.file == last)
        state = rig.state()
    run(server, f"PURGE BINARY LOGS TO '{last}'")
    with capturing(server, state, position=position) as again:
        run(server, "INSERT INTO d.t VALUES (2, 'b')")
        again.wait(lambda: again.log() == [[("d.t", "WRITE", None, 2)]])
