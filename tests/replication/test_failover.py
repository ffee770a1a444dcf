"""Another server takes the place of the site's: a replica of it, with files and places of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.place import TransactionStops
from mysqlraft.binlog.position import StreamPosition
from mysqlraft.binlog.read_on import read_on
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.ipc import SkipLists
from mysqlraft.mysql import opening
from mysqlraft.replication import ddl
from mysqlraft.replication.apply_session import open_session
from mysqlraft.replication.binlog_statements import own_additions, own_statements
from mysqlraft.replication.capture import Capture
from mysqlraft.replication.entry import Ddl, PayloadKind
from mysqlraft.replication.replica import _ahead
from mysqlraft.replication.state import ReplicationState
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers, ServerFactory
from tests.replication.capture_rig import capturing, run
from tests.replication.harness import TIMEOUT, SharedLog, SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere

_TABLE = ("CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(100))")


@pytest.fixture
def other(server: Server, server_factory: ServerFactory) -> Server:
    """A server that has not replicated anything yet, see `follow`."""
    return server_factory(server_id=77)


def _gtids(server: Server) -> str:
    variable = "gtid_executed" if server.engine == "mysql" else "gtid_binlog_pos"
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT @@global.{variable}")
        return str((cursor.fetchone() or ("",))[0])


def _account(server: Server) -> dict[str, Any]:
    return {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}


def follow(server: Server, other: Server) -> None:
    """Lets ``other`` replicate all that the server has, as a replica does, and then no more."""
    host, port = server.address
    if server.engine == "mysql":
        source = f"SOURCE_HOST = '{host}', SOURCE_PORT = {port}, SOURCE_USER = '{server.user}'"
        run(
            other,
            f"CHANGE REPLICATION SOURCE TO {source}, SOURCE_PASSWORD = '{server.password}', SOURCE_AUTO_POSITION = 1,"
            " GET_SOURCE_PUBLIC_KEY = 1",
            "START REPLICA",
        )
        wait = f"SELECT WAIT_FOR_EXECUTED_GTID_SET('{_gtids(server)}', 30)"
    else:
        source = f"MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = '{server.user}'"
        run(
            other,
            f"CHANGE MASTER TO {source}, MASTER_PASSWORD = '{server.password}', MASTER_USE_GTID = slave_pos",
            "START SLAVE",
        )
        wait = f"SELECT MASTER_GTID_WAIT('{_gtids(server)}', 30)"
    with other.connect() as connection, connection.cursor() as cursor:
        cursor.execute(wait)
        found = cursor.fetchall()
        if found != ((0,),):
            cursor.execute("SHOW REPLICA STATUS")
            raise AssertionError((found, cursor.fetchall()))
        cursor.execute("STOP REPLICA")


def _files(server: Server, count: int) -> None:
    """Lets the server's places be later than those of one that has not done so."""
    run(server, *["FLUSH BINARY LOGS"] * count)


@pytest.mark.parametrize("later_files", [True, False], ids=["from later files", "to later files"])
def test_with_a_prepared_transaction_open(server: Server, other: Server, later_files: bool) -> None:
    """All that the other server has is captured once: the rows that were held, and those beside them."""
    _files(server if later_files else other, 5)
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        run(server, "XA START 'one'", "INSERT INTO d.t VALUES (2, 'b')", "XA END 'one'", "XA PREPARE 'one'")
        run(server, "INSERT INTO d.t VALUES (3, 'c')")
        rig.wait(lambda: len(rig.log()) == 2)
        assert rig.log() == [[("d.t", "WRITE", None, 1)], [("d.t", "WRITE", None, 3)]]
        state = rig.state()
        assert state.done != (state.resume.file, state.resume.offset)
    run(server, "INSERT INTO d.t VALUES (4, 'd')")
    follow(server, other)
    run(other, "INSERT INTO d.t VALUES (5, 'e')")
    with capturing(other, state) as rig:
        rig.wait(lambda: len([row for rows in rig.log() for row in rows]) == 2)
        assert rig.log() == [[("d.t", "WRITE", None, 4)], [("d.t", "WRITE", None, 5)]]
        state = rig.state()
    # And once more, on the same server.
    run(other, "INSERT INTO d.t VALUES (6, 'f')", "XA COMMIT 'one'", "INSERT INTO d.t VALUES (7, 'g')")
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.log() and rig.log()[-1] == [("d.t", "WRITE", None, 7)])
        assert [row[3] for rows in rig.log() for row in rows] == [6, 2, 7]
        last = rig.state()
        assert last.done == (last.resume.file, last.resume.offset)
        assert last.resume.identity.startswith("77-")
        assert not last.resume.passed


def test_a_prepared_transaction_after_all_that_was_captured(server: Server, other: Server) -> None:
    """The first that the other server has to say."""
    _files(other, 5)
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    run(server, "XA START 'one'", "INSERT INTO d.t VALUES (2, 'b')", "XA END 'one'", "XA PREPARE 'one'")
    run(server, "INSERT INTO d.t VALUES (3, 'c')")
    follow(server, other)
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    run(other, "XA COMMIT 'one'")
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.payloads)
        assert rig.log() == [[("d.t", "WRITE", None, 2)]]


@pytest.mark.parametrize("where", ["before", "after"])
def test_between_a_statement_and_its_rows(server: Server, other: Server, where: str) -> None:
    """CREATE TABLE ... SELECT: the server is replaced after the statement, or replaced and then capture is."""
    run(server, *_TABLE, "INSERT INTO d.t VALUES (1, 'a')")
    _files(server, 5)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (2, 'b')")
        rig.wait(lambda: rig.payloads)
        before = rig.state()
        run(server, "CREATE TABLE d.s (PRIMARY KEY (id)) AS SELECT id, v FROM d.t", "INSERT INTO d.t VALUES (3, 'c')")
        rig.wait(lambda: len(rig.log()) == 4)
        rig.payloads = rig.payloads[:2]
        assert rig.payloads[-1].kind is PayloadKind.DDL
        state = rig.state()
    follow(server, other)
    rows: list[Any] = [[("d.s", "WRITE", None, 1), ("d.s", "WRITE", None, 2)], [("d.t", "WRITE", None, 3)]]
    if where == "after":
        with capturing(other, before) as rig:
            rig.wait(lambda: len(rig.log()) == 3)
            assert rig.log()[1:] == rows
            rig.payloads = rig.payloads[:1]
            assert rig.payloads[-1].kind is PayloadKind.DDL
            state = rig.state()
    with capturing(other, state) as rig:
        rig.wait(lambda: len(rig.log()) >= 2)
        run(other, "INSERT INTO d.t VALUES (4, 'd')")
        rig.wait(lambda: rig.log()[-1] == [("d.t", "WRITE", None, 4)])
        assert rig.log()[:-1] == rows


def test_nothing_is_read_twice_after_it(server: Server, other: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other server's file holds what was captured, too, and capture begins again before anything new has come."""
    idle: list[str] = []
    """The identity of the file that is read, each time when capture has done all that it does before more comes."""

    idle_before = Capture._idle

    def idling(capture: Capture, dump: DumpConnection, stream: TransactionStream) -> bool:
        go_on = idle_before(capture, dump, stream)
        idle.append(stream._cursor.identity_of(stream._cursor.file))
        return go_on

    monkeypatch.setattr(Capture, "_idle", idling)
    run(server, *_TABLE)
    _files(other, 5)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    follow(server, other)
    with capturing(other, state, mark_seconds=0) as rig:
        rig.wait(lambda: any(identity.startswith("77-") for identity in idle))
        state = rig.capture._state
    with capturing(other, state) as rig:
        run(other, "INSERT INTO d.t VALUES (2, 'b')")
        rig.wait(lambda: rig.log() and rig.log()[-1] == [("d.t", "WRITE", None, 2)])
        assert rig.log() == [[("d.t", "WRITE", None, 2)]]


@pytest.mark.parametrize("later_files", [True, False], ids=["from later files", "to later files"])
def test_the_address_moves_while_the_old_server_is_read(
    server: Server, other: Server, later_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capture asks no other server than the one that it reads."""
    monkeypatch.setattr(opening, "RENEW_SECONDS", 0.0)
    run(server, *_TABLE)
    _files(server if later_files else other, 5)
    go_on = threading.Event()
    with capturing(server) as rig:
        rig.gate = lambda payload: setattr(rig, "passed", go_on.wait(TIMEOUT))
        run(server, "INSERT INTO d.t VALUES (1, 'a')", "ALTER TABLE d.t ADD COLUMN w INT")
        run(server, "INSERT INTO d.t VALUES (2, 'b', 5)", "ALTER TABLE d.t DROP COLUMN w")
        follow(server, other)
        rig.capture._connect["unix_socket"] = str(other.socket)
        go_on.set()
        rig.wait(lambda: rig.log() and str(rig.log()[-1]).endswith("DROP COLUMN w"))
        assert [each for each in rig.log() if each != "MARK"] == [
            [("d.t", "WRITE", None, 1)],
            "ALTER TABLE d.t ADD COLUMN w INT",
            [("d.t", "WRITE", None, 2)],
            "ALTER TABLE d.t DROP COLUMN w",
        ]
        # The first one's table is not to be seen any more, as it was.
        assert [each.ddl.made is None for each in rig.payloads if each.ddl is not None] == [True, False]


def test_what_an_older_log_does_not_say(server: Server, other: Server) -> None:
    """A place between which and its end transactions were read, by no GTIDs that are known: a reason, and no guess."""
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "XA START 'one'", "INSERT INTO d.t VALUES (1, 'a')", "XA END 'one'", "XA PREPARE 'one'")
        run(server, "INSERT INTO d.t VALUES (2, 'b')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    follow(server, other)
    state = replace(state, resume=replace(state.resume, passed=""))
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, BinlogError)
        assert "a prepared XA transaction was open" in str(rig.error)
        assert "load this site anew" in str(rig.error)
        assert rig.payloads == []
    run(other, "XA ROLLBACK 'one'")
    run(server, "XA COMMIT 'one'")
    with capturing(server, state) as rig:
        rig.wait(lambda: rig.log() == [[("d.t", "WRITE", None, 1)]])


def test_what_is_left_out_at_the_other_server(server: Server, other: Server, tmp_path: Path) -> None:
    """The decision holds before the log has any place of that server; one about the server before means nothing."""
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
    follow(server, other)
    run(other, "SET SESSION binlog_format = STATEMENT", "INSERT INTO d.t VALUES (2, 'b')")
    run(other, "INSERT INTO d.t VALUES (3, 'c')")
    with capturing(other, state) as rig:
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, TransactionStops)
        place = rig.error.place
    before = replace(place, identity=state.resume.identity, offset=1 << 20)
    skips = SkipLists(
        [],
        [
            [each.file, each.offset, each.identity, each.gtid, str(tmp_path / "left out" / each.identity)]
            for each in (place, before)
        ],
    )
    with capturing(other, state, skip=_ahead(skips, state.resume)) as rig:
        rig.wait(lambda: rig.log() and rig.log()[-1] == [("d.t", "WRITE", None, 3)])
    assert [path.name for path in (tmp_path / "left out").iterdir()] == [place.identity]


@pytest.mark.parametrize("later_files", [True, False], ids=["from later files", "to later files"])
def test_own_statements_that_are_not_in_the_log(server: Server, other: Server, later_files: bool) -> None:
    """They are found at the other server, and none is found that the log holds."""
    _files(server if later_files else other, 5)
    run(server, *_TABLE)
    with capturing(server) as rig:
        run(server, "INSERT INTO d.t VALUES (1, 'a')", "CREATE TABLE d.held (id INT PRIMARY KEY)")
        run(server, "XA START 'one'", "INSERT INTO d.held VALUES (1)", "XA END 'one'", "XA PREPARE 'one'")
        run(server, "ALTER TABLE d.t ADD COLUMN known INT")
        _files(server, 1)
        run(server, "CREATE TABLE d.s (PRIMARY KEY (id)) AS SELECT id, v FROM d.t")
        rig.wait(lambda: len(rig.log()) == 5)
        rig.payloads.pop()
        assert rig.payloads[-1].kind is PayloadKind.DDL
        state = rig.state()
        assert state.resume.passed
        assert state.resume.begun
    _files(server, 1)
    run(server, "ALTER TABLE d.t ADD COLUMN w INT DEFAULT 5")
    follow(server, other)
    for each in (server, other):
        assert _own(each, state.resume.read_to(state.done)) == ({("d", "t")}, [True, False])
    # Nothing that the dump could send is left: it says so, too.
    all_read = StreamPosition("binlog.000001", 4, _gtids(other), ("binlog.000001", 4), "78-1")
    assert _own(other, all_read) == (set(), [False, False])
    for each in (server, other):
        run(each, "XA ROLLBACK 'one'")


def _own(server: Server, position: StreamPosition) -> tuple[set[tuple[str, str | None]], list[bool]]:
    """What the statements after a position are about, and which of these columns they have added."""
    source = ServerKeySource(server.connect)
    open_dump = partial(DumpConnection, _account(server), 77_001, heartbeat=1.0)
    mariadb = server.engine == "mariadb"
    start, end = read_on(position, source.query, source.binlog_end, open_dump, mariadb=mariadb), source.binlog_end()
    tables = own_statements(open_dump, start, end, source.collations, mariadb=mariadb)
    additions = own_additions(open_dump, start, end, source.collations, mariadb=mariadb)
    source.close()
    return tables, [additions.find("d", "t", name) is not None for name in ("w", "known")]


@pytest.mark.parametrize("later_files", [True, False], ids=["from later files", "to later files"])
def test_a_row_that_lacks_what_only_the_binlog_says(
    server: Server, other: Server, servers: LendServers, later_files: bool
) -> None:
    """Apply writes it at the other server, before capture reads there."""
    _files(server if later_files else other, 5)
    with cluster([server, *servers(1)], "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(9))") as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 'old')")
        settle(sites)
        one.link.hold()
        one.execute(
            "ALTER TABLE s.t ADD COLUMN c INT DEFAULT 5 NOT NULL", "ALTER TABLE s.t ALTER COLUMN c DROP DEFAULT"
        )
        wait_for(lambda: one.link.statements_kept == 2, 30, sites)
        one.stop()
        one.link.kept.clear()
        follow(server, other)
        two.execute("INSERT INTO s.t VALUES (2, 'new')")
        wait_for(lambda: one.log.entries[-1].origin == 2, 30, sites)
        one.server = other
        one.start()
        wait_for(lambda: len(one.execute("SELECT c FROM s.t")) == 2, 30, sites)
        assert one.execute("SELECT c FROM s.t") == [(5,), (5,)]
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")


@pytest.mark.parametrize("later_files", [True, False], ids=["from later files", "to later files"])
def test_whether_a_statement_has_run(server: Server, other: Server, later_files: bool) -> None:
    """Apply ran it, and the server was replaced, or began another file, before the progress row said so."""
    _files(server if later_files else other, 5)
    another, made, *more = [Ddl([], b"CREATE DATABASE d%d" % number, "", {}, 0) for number in range(9)]
    dumps = {each: partial(DumpConnection, _account(each), 77_001, heartbeat=1.0) for each in (server, other)}
    session = open_session(server.connect)
    for each in (another, *more):  # so that the place is later than any in the next file
        ddl.run(session, each)
    intent = ddl.intent_at(session, 7, made, dumps[server])
    _files(server, 1)
    ddl.run(session, made)
    session.close()
    follow(server, other)
    for now in (server, other):
        session = open_session(now.connect)
        assert ddl.has_run(session, made, intent, dumps[now])
        assert not ddl.has_run(session, another, intent, dumps[now])
        session.close()


class _MovingSite(SiteUnderTest):
    """A site whose server's address leads wherever `lead_to` says."""

    address: Path

    def lead_to(self, server: Server) -> None:
        new = self.address.with_suffix(".new")
        new.symlink_to(server.socket)
        new.replace(self.address)
        self.server = server

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"unix_socket": str(self.address)}


@pytest.fixture
def moving(
    servers: LendServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SiteUnderTest, _MovingSite]]:
    """Two sites with a table; the address of the second one's server may be moved."""
    monkeypatch.setattr(opening, "RENEW_SECONDS", 0.2)
    (one, two), log = servers(2), SharedLog(2)
    first = SiteUnderTest(1, one, log, capture={"mark_seconds": 3600.0})
    site = _MovingSite(2, two, log, capture={"mark_seconds": 3600.0}, batch_rows=1)
    site.address = tmp_path / "address"
    site.lead_to(two)
    with first, site:
        wait_for(lambda: first.capturing and site.capturing, TIMEOUT, (first, site))
        first.execute(*_TABLE)
        wait_for(lambda: len(log.of_kind(PayloadKind.DDL)) == 2, TIMEOUT, first)
        site.wait_applied()
        yield first, site
        assert not site.crashed


def _ids(site: SiteUnderTest) -> list[int]:
    return [row[0] for row in site.execute("SELECT id FROM d.t ORDER BY id")]


def test_the_address_moves_while_the_old_server_lives(moving: tuple[SiteUnderTest, _MovingSite], other: Server) -> None:
    """Apply and capture leave it. What the other one lacks is applied there, also when nothing else comes."""
    first, site = moving
    follow(site.server, other)
    first.execute("INSERT INTO d.t VALUES (1, 'a')")
    wait_for(lambda: _ids(site) == [1], TIMEOUT, site)
    site.lead_to(other)
    wait_for(lambda: _ids(site) == [1], TIMEOUT, site)
    site.execute("INSERT INTO d.t VALUES (2, 'b')")
    wait_for(lambda: _ids(first) == [1, 2], TIMEOUT, (first, site))


def test_the_address_moves_before_a_statement(moving: tuple[SiteUnderTest, _MovingSite], other: Server) -> None:
    """What the other server lacks comes before the statement there."""
    first, site = moving
    follow(site.server, other)
    first.execute("INSERT INTO d.t VALUES (1, 'a')")
    wait_for(lambda: _ids(site) == [1], TIMEOUT, site)
    go_on = threading.Event()

    def wait(state: ReplicationState) -> None:
        go_on.wait(TIMEOUT)

    site.applier.ask(wait)
    session = site.applier.watch.session
    assert session is not None
    site.lead_to(other)
    wait_for(session.answered, TIMEOUT, site)
    first.execute("ALTER TABLE d.t ADD COLUMN w INT DEFAULT 5")
    wait_for(lambda: len(site.log.of_kind(PayloadKind.DDL)) == 3, TIMEOUT, site)
    go_on.set()
    site.wait_applied()
    assert site.execute("SELECT * FROM d.t") == [(1, "a", 5)]


def test_the_address_moves_forth_and_back(moving: tuple[SiteUnderTest, _MovingSite], other: Server) -> None:
    """Before the other server has all that the first one has."""
    first, site = moving
    two = site.server
    follow(two, other)
    for number in range(1, 5):
        first.execute(f"INSERT INTO d.t VALUES ({number}, 'a')")
        wait_for(partial(lambda number: number in _ids(site), number), TIMEOUT, site)
    with other.connect() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO d.t VALUES (1, 'kept')")
        behind = site.applier.status.index
        site.lead_to(other)
        wait_for(lambda: site.applier.status.index < behind, TIMEOUT, site)
        site.lead_to(two)
        wait_for(lambda: site.applier.status.index >= behind, TIMEOUT, site)
        cursor.execute("ROLLBACK")
    first.execute("INSERT INTO d.t VALUES (5, 'b')")
    wait_for(lambda: _ids(site) == [1, 2, 3, 4, 5], TIMEOUT, site)
