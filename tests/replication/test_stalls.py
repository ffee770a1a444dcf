"""What keeps apply and capture waiting: the application's locks, ways that lose what is sent, servers that hang."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import pymysql
import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.mysql import opening
from mysqlraft.replication import apply_session, server_watch, table_dam
from mysqlraft.replication.apply import ApplyState
from mysqlraft.replication.apply_session import open_session
from mysqlraft.replication.batch_writer import WEIGHT_AFTER
from mysqlraft.replication.server_watch import TELL_AFTER, ServerWatch
from mysqlraft.sandbox.relay import Relay
from mysqlraft.sandbox.servers import Engine, Server
from tests.harness.pool import LendServers, ServerFactory
from tests.replication.harness import SiteUnderTest, run, settle, wait_for
from tests.replication.recorder import connection
from tests.replication.test_apply import TABLE, cluster, same_everywhere

pytestmark = pytest.mark.timeout(180)

SEES_LOCKS = {"performance_schema": "ON"}
"""Without it nobody can tell who holds a lock on MySQL; MariaDB needs no such thing."""


@pytest.fixture
def watched(engine: Engine, servers: LendServers, server_factory: ServerFactory) -> list[Server]:
    """Two servers; the second one tells who holds its locks."""
    if engine == "mariadb":
        return servers(2)
    return [*servers(1), server_factory(options=SEES_LOCKS)]


@contextmanager
def sessions(target: Callable[[threading.Event, int], None], count: int) -> Iterator[None]:
    """So many sessions of the application, each a thread: they are given what says that they are to end, and which they
    are."""
    stop = threading.Event()
    threads = [threading.Thread(target=target, args=(stop, number)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def holding(server: Server, row: int, seconds: float, count: int) -> Iterator[list[int]]:
    """Sessions of the application that hold a row of s.t one after the other, each for so long; counts them."""
    held: list[int] = []

    def hold(stop: threading.Event, number: int) -> None:
        with closing(server.connect(autocommit=False)) as client, client.cursor() as cursor:
            while not stop.is_set():
                run(cursor, f"SELECT * FROM s.t WHERE id = {row} FOR UPDATE")
                held.append(row)
                stop.wait(seconds)
                client.rollback()

    with sessions(hold, count):
        yield held


def thread_of(client: pymysql.Connection[Any]) -> int:
    """The number by which its server knows a connection."""
    return int(client.thread_id())  # type: ignore[no-untyped-call]


def test_a_hot_row_that_is_held_by_one_session_after_the_other(servers: LendServers) -> None:
    """Nobody holds it for long, but it is never free: apply gets its turn."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        with holding(two.server, 1, 0.4, 8) as held:
            wait_for(lambda: len(held) >= 8, 30, held)
            one.execute("UPDATE s.t SET v = 'new' WHERE id = 1")
            wait_for(lambda: two.execute("SELECT v FROM s.t WHERE id = 1") == [("new",)], 10, two)
        assert two.applier.status.retries == 0
        settle(sites)
        same_everywhere(sites, "s.t")


@contextmanager
def heavy_transactions(server: Server, count: int) -> Iterator[list[int]]:
    """Sessions of the application that change many rows of their own, lock row 2 of s.t, and then row 1."""
    done: list[int] = []

    def lock(stop: threading.Event, number: int) -> None:
        with closing(server.connect(autocommit=False)) as client, client.cursor() as cursor:
            while not stop.is_set():
                with suppress(pymysql.err.OperationalError):  # a deadlock that this one has lost
                    run(cursor, "INSERT INTO heavy.t (n) VALUES " + ",".join(["(1)"] * 200))
                    run(cursor, "SELECT * FROM s.t WHERE id = 2 FOR UPDATE")
                    stop.wait(0.03)
                    run(cursor, "SELECT * FROM s.t WHERE id = 1 FOR UPDATE")
                    done.append(1)
                client.rollback()

    with sessions(lock, count):
        yield done


def test_deadlocks_that_the_server_decides_for_the_application(servers: LendServers) -> None:
    """It locks the rows in the other order, one session after the other, and has changed more rows than apply."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        two.execute("CREATE DATABASE heavy", "CREATE TABLE heavy.t (id INT AUTO_INCREMENT PRIMARY KEY, n INT)")
        settle(sites)
        with heavy_transactions(two.server, 6) as done:
            wait_for(lambda: len(done) >= 6, 30, done)
            one.execute("UPDATE s.t SET v = 'new' ORDER BY id")
            wait_for(lambda: two.execute("SELECT v FROM s.t WHERE id = 2") == [("new",)], 20, two)
            assert two.applier.status.retries >= WEIGHT_AFTER
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT * FROM mysqlraft.weight") == []


def test_a_large_unit_keeps_what_it_has_written_while_it_waits(servers: LendServers) -> None:
    """A row in its middle is held by one session after the other, for longer than its rows take."""
    with cluster(servers(2), capture={"part_bytes": 65536}) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES " + ",".join(f"({n}, {n}, 'old')" for n in range(20_000)))
        settle(sites)
        with holding(two.server, 15_000, 1.5, 3) as held:
            wait_for(lambda: bool(held), 30, held)
            one.execute("UPDATE s.t SET v = 'new'")
            wait_for(lambda: two.execute("SELECT v FROM s.t WHERE id = 1") == [("new",)], 30, two)
        assert two.applier.status.retries == 0
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_statement_whose_table_is_never_free(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions that use it one after the other, each for longer than the statement waits at first."""
    monkeypatch.setattr(apply_session, "METADATA_LOCK_WAIT", 1)
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        with holding(two.server, 1, 2, 1) as held, holding(two.server, 2, 3, 1):
            wait_for(lambda: bool(held), 30, held)
            one.execute("ALTER TABLE s.t ADD COLUMN w INT")
            wait_for(lambda: two.applier.status.retries > 0, 30, two)
            two.wait_applied(timeout=30)
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_statement_whose_table_is_in_use_says_so(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that has read the table is never ended for that: somebody has to see what waits for it."""
    monkeypatch.setattr(apply_session, "METADATA_LOCK_WAIT", 1)
    with cluster(servers(2)) as sites:
        one, two = sites
        with closing(two.server.connect(autocommit=False)) as reader:
            run(reader.cursor(), "SELECT * FROM s.t")
            one.execute("ALTER TABLE s.t ADD COLUMN w INT")
            wait_for(lambda: two.applier.status.state is ApplyState.RETRYING, 30, two)
            assert (
                "from site 1: ALTER TABLE s.t ADD COLUMN w INT: it waits for a transaction" in two.applier.status.reason
            )
        settle(sites)
        same_everywhere(sites, "s.t")


@contextmanager
def read_locks(server: Server, seconds: float) -> Iterator[list[int]]:
    """Two sessions of the application that have s.t locked, as dumps do, so that it is never free."""
    taken: list[int] = []

    def lock(stop: threading.Event, number: int) -> None:
        with closing(server.connect()) as client, client.cursor() as cursor:
            stop.wait(number * seconds / 2)
            while not stop.is_set():
                run(cursor, "LOCK TABLES s.t READ")
                taken.append(number)
                stop.wait(seconds)
                run(cursor, "UNLOCK TABLES")

    with sessions(lock, 2):
        yield taken


def test_rows_of_a_table_that_is_always_locked(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOCK TABLES, one after the other, each for longer than apply waits at first."""
    monkeypatch.setattr(apply_session, "METADATA_LOCK_WAIT", 1)
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with read_locks(two.server, 5) as taken:
            wait_for(lambda: len(taken) >= 2, 30, taken)
            one.execute("UPDATE s.t SET v = 'new'")
            wait_for(lambda: two.execute("SELECT v FROM s.t") == [("new",)], 60, two)
        settle(sites)
        same_everywhere(sites, "s.t")


def test_the_application_yields(watched: list[Server]) -> None:
    """The connection that keeps apply waiting is ended, and no other one."""
    with cluster(watched, yield_after=3) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        with (
            closing(two.server.connect(autocommit=False)) as holder,
            closing(two.server.connect(autocommit=False)) as bystander,
            closing(two.server.connect(autocommit=False)) as waiter,
        ):
            run(holder.cursor(), "UPDATE s.t SET v = 'mine' WHERE id = 1")
            run(bystander.cursor(), "UPDATE s.t SET v = 'local' WHERE id = 2")
            queued = threading.Thread(target=lambda: run(waiter.cursor(), "SELECT * FROM s.t WHERE id = 1 FOR UPDATE"))
            queued.start()
            began = time.monotonic()
            one.execute("UPDATE s.t SET v = 'new' WHERE id = 1")
            queued.join()  # it is in front of apply, and holds the row once the other is gone
            taken = time.monotonic() - began
            assert 2 < taken < 20, taken
            waiter.rollback()
            wait_for(lambda: two.execute("SELECT v FROM s.t WHERE id = 1") == [("new",)], 30, two)
            assert ended(two) == 1
            with pytest.raises(pymysql.err.MySQLError):
                run(holder.cursor(), "SELECT 1")
            bystander.commit()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_long_queue_ends_nobody(watched: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in front of apply hold the row for a moment each, and together for longer than one may."""
    monkeypatch.setattr(server_watch, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.2)
    with cluster(watched, yield_after=2) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with holding(two.server, 1, 0.4, 12) as held:
            wait_for(lambda: len(held) >= 4, 30, held)
            one.execute("UPDATE s.t SET v = 'new'")
            wait_for(lambda: two.execute("SELECT v FROM s.t") == [("new",)], 30, two)
        assert two.applier.watch.yielded == 0
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_locked_table_ends_nobody_who_holds_a_row(watched: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply waits for a table for longer than the application may hold a row, and then for a row that nobody holds for
    long."""
    monkeypatch.setattr(apply_session, "METADATA_LOCK_WAIT", 1)
    monkeypatch.setattr(server_watch, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.2)
    with cluster(watched, TABLE, "CREATE TABLE s.locked (id INT PRIMARY KEY)", yield_after=4) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with holding(two.server, 1, 0.4, 4) as held, closing(two.server.connect()) as other:
            run(other.cursor(), "LOCK TABLES s.locked READ")
            with closing(one.server.connect(autocommit=False)) as client:
                run(client.cursor(), "UPDATE s.t SET v = 'new'", "INSERT INTO s.locked VALUES (1)")
                client.commit()
            began = time.monotonic()
            wait_for(lambda: two.applier.status.retries > 1 and time.monotonic() - began > 5, 30, two)
            run(other.cursor(), "UNLOCK TABLES")
            wait_for(lambda: two.execute("SELECT v FROM s.t") == [("new",)], 30, two)
            many = len(held)
            wait_for(lambda: len(held) >= many + 8, 30, held)
        assert two.applier.watch.yielded == 0
        settle(sites)
        same_everywhere(sites, "s.t", "s.locked")


def test_a_connection_that_takes_long_to_roll_back_is_ended_once(
    watched: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_watch, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.2)
    with cluster(watched, yield_after=1) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        two.execute("CREATE DATABASE large", "CREATE TABLE large.t (id INT AUTO_INCREMENT PRIMARY KEY, n INT)")
        settle(sites)
        with closing(two.server.connect(autocommit=False)) as holder, holder.cursor() as cursor:
            for _ in range(10):
                run(cursor, "INSERT INTO large.t (n) VALUES " + ",".join(["(1)"] * 5000))
            run(cursor, "SELECT * FROM s.t FOR UPDATE")
            one.execute("UPDATE s.t SET v = 'new'")
            wait_for(lambda: two.execute("SELECT v FROM s.t") == [("new",)], 60, two)
        assert ended(two) == 1
        settle(sites)
        same_everywhere(sites, "s.t")


def ended(site: SiteUnderTest) -> int:
    """How many connections the site has ended, at least one; each is counted a moment after it is gone."""
    wait_for(lambda: site.applier.watch.yielded > 0, 30, site)
    return site.applier.watch.yielded


def test_only_who_may_hold_the_row_is_ended(watched: list[Server]) -> None:
    """MariaDB has one number for all transactions that only read."""
    with cluster(watched, yield_after=2.5) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        with (
            closing(two.server.connect(autocommit=False)) as holder,
            closing(two.server.connect(autocommit=False)) as reader,
            closing(two.server.connect(autocommit=False)) as bystander,
        ):
            run(holder.cursor(), "SELECT * FROM s.t WHERE id = 1 LOCK IN SHARE MODE")
            time.sleep(1.1)  # the server counts seconds
            run(reader.cursor(), "SELECT * FROM s.t")
            run(bystander.cursor(), "SELECT * FROM s.t WHERE id = 2 LOCK IN SHARE MODE")
            one.execute("UPDATE s.t SET v = 'new' WHERE id = 1")
            wait_for(lambda: two.execute("SELECT v FROM s.t WHERE id = 1") == [("new",)], 30, two)
            assert ended(two) == 1
            assert run(reader.cursor(), "SELECT v FROM s.t WHERE id = 1") == [("old",)]
            run(bystander.cursor(), "SELECT 1")


@contextmanager
def holding_gaps(server: Server, rows: str, seconds: float, count: int) -> Iterator[list[int]]:
    """Sessions of the application that hold these rows of s.t and the gaps between by turns, each for so long; counts
    them."""
    held: list[int] = []

    def hold(stop: threading.Event, number: int) -> None:
        stop.wait(seconds * number / count)
        while not stop.is_set():
            with suppress(pymysql.err.MySQLError), closing(server.connect(autocommit=False)) as client:
                while not stop.is_set():
                    run(client.cursor(), f"SELECT * FROM s.t WHERE {rows} LOCK IN SHARE MODE")
                    held.append(number)
                    stop.wait(seconds + 0.03 * number)
                    client.rollback()

    with sessions(hold, count):
        yield held


@pytest.mark.parametrize("rows", ["k BETWEEN 400 AND 600", "id > 2"], ids=["between", "at the end"])
def test_a_gap_that_is_never_free(watched: list[Server], monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    """Locks on it do not queue: sessions hold it by turns, each for a moment, and are not ended for that."""
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.5)
    monkeypatch.setattr(server_watch, "TELL_AFTER", 1)
    with cluster(watched, "CREATE TABLE s.t (id INT PRIMARY KEY, k INT, KEY (k))") as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1), (2, 1000)")
        settle(sites)
        with holding_gaps(two.server, rows, 0.2, 8) as held:
            wait_for(lambda: len(held) >= 16, 30, held)
            one.execute("INSERT INTO s.t VALUES (3, 500)")
            wait_for(lambda: two.execute("SELECT k FROM s.t WHERE id = 3") == [(500,)], 20, two)
            many = len(held)
            wait_for(lambda: len(held) >= many + 16, 30, held)  # nothing keeps them any more
        assert two.applier.watch.yielded == 0
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_gap_that_is_held_for_longer_than_the_dam_stands(
    watched: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds it for less than the application may, and it is never free."""
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.5)
    monkeypatch.setattr(server_watch, "TELL_AFTER", 1)
    monkeypatch.setattr(server_watch, "LOCK_WAIT", 3)
    monkeypatch.setattr(table_dam, "SECONDS", 1)
    with cluster(watched, "CREATE TABLE s.t (id INT PRIMARY KEY, k INT, KEY (k))") as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1), (2, 1000)")
        settle(sites)
        with holding_gaps(two.server, "id > 2", 5, 4) as held:
            wait_for(lambda: len(held) >= 4, 30, held)
            one.execute("INSERT INTO s.t VALUES (3, 500)")
            wait_for(lambda: two.execute("SELECT k FROM s.t WHERE id = 3") == [(500,)], 40, two)
        assert two.applier.watch.yielded > 0
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_row_after_a_gap_has_its_own_time(watched: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are waited for with one answer."""
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.5)
    monkeypatch.setattr(server_watch, "TELL_AFTER", 1)
    monkeypatch.setattr(table_dam, "SECONDS", 1)
    tables = ("CREATE TABLE s.t (id INT PRIMARY KEY, k INT, KEY (k))", "CREATE TABLE s.u (id INT PRIMARY KEY, k INT)")
    with cluster(watched, *tables) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1), (2, 1000)", "INSERT INTO s.u VALUES (1, 1)")
        settle(sites)
        watch = two.applier.watch
        with closing(two.server.connect(autocommit=False)) as row, row.cursor() as of_row:
            run(of_row, "SELECT * FROM s.u WHERE id = 1 FOR UPDATE")
            with closing(two.server.connect(autocommit=False)) as gap, gap.cursor() as of_gap:
                run(of_gap, "SELECT * FROM s.t WHERE k BETWEEN 400 AND 600 FOR UPDATE")
                one.execute("BEGIN", "INSERT INTO s.t VALUES (3, 500)", "UPDATE s.u SET k = 2", "COMMIT")
                wait_for(lambda: watch._gap_since is not None, 20, two)
            wait_for(lambda: watch._gap_since is None and str(thread_of(row)) in watch.waits_for, 20, two)
            assert watch.yielded == 0
        settle(sites)
        same_everywhere(sites, "s.t", "s.u")


def test_whom_apply_waits_for_is_told_and_left_alone(watched: list[Server]) -> None:
    with cluster(watched, yield_after=None) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with closing(two.server.connect(autocommit=False)) as holder, holder.cursor() as cursor:
            run(cursor, "SELECT * FROM s.t WHERE id = 1 FOR UPDATE")
            one.execute("UPDATE s.t SET v = 'new' WHERE id = 1")
            wait_for(lambda: f"connection {thread_of(holder)} (root@" in two.applier.watch.waits_for, 30, two)
            holder.rollback()
        settle(sites)
        wait_for(lambda: two.applier.watch.waits_for == "", 10, two)
        assert two.applier.watch.yielded == 0
        same_everywhere(sites, "s.t")


def test_an_account_that_may_not_end_connections(watched: list[Server]) -> None:
    server = watched[1]
    with closing(server.connect(autocommit=False)) as holder, holder.cursor() as cursor:
        run(
            cursor,
            "CREATE DATABASE s",
            "CREATE TABLE s.t (id INT PRIMARY KEY)",
            "CREATE USER limited@localhost IDENTIFIED BY 'secret'",
            "GRANT PROCESS, SELECT ON *.* TO limited@localhost",
            "INSERT INTO s.t VALUES (1)",
        )
        session = open_session(partial(connection, server))
        watch = ServerWatch(lambda: server.connect(user="limited", password="secret"), 1)
        watch.session = session
        watch.start()
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(session.run, [b"UPDATE s.t SET id = 2 WHERE id = 1"])
                wait_for(lambda: "may not end" in watch.waits_for, 30, watch)
                assert f"connection {thread_of(holder)} (root@" in watch.waits_for
                holder.rollback()
                waiting.result()
        finally:
            watch.stop()
            session.close()
        assert watch.yielded == 0


def test_a_server_that_takes_no_connection(servers: LendServers) -> None:
    """The account has as many as it may have when a statement of another site loses its own."""
    lent = servers(2)
    for server in lent:
        with closing(server.connect()) as root:
            run(root.cursor(), "CREATE USER m@localhost IDENTIFIED BY 'secret'", "GRANT ALL ON *.* TO m@localhost")
    with cluster(lent, account=("m", "secret")) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with closing(two.server.connect(autocommit=False)) as reader, closing(two.server.connect()) as root:
            run(reader.cursor(), "SELECT * FROM s.t")
            one.execute("ALTER TABLE s.t ADD COLUMN w INT")
            session = two.applier._session
            assert session is not None
            wait_for(lambda: session.waiting_since is not None, 30, two)
            limit = "ALTER USER m@localhost WITH MAX_USER_CONNECTIONS"
            with closing(two.server.connect(user="m", password="secret")) as only:
                run(root.cursor(), f"{limit} 1")
                ((mine,),) = run(only.cursor(), "SELECT CONNECTION_ID()")
                others = f"SELECT id FROM information_schema.processlist WHERE user = 'm' AND id <> {mine}"
                for (thread,) in run(root.cursor(), others):
                    with suppress(pymysql.err.OperationalError):  # one that has ended with another one
                        run(root.cursor(), f"KILL {thread}")
                wait_for(lambda: "max_user_connections" in two.applier.status.reason, 30, two)
                reader.rollback()
                wait_for(lambda: two.applier.status.retries >= 5, 30, two)
                assert two.applier.status.state is ApplyState.RETRYING
            run(root.cursor(), f"{limit} 0")
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_server_without_room_for_another_connection(watched: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """The application has all that are left: what the daemon has it keeps, and whoever holds a row yields."""
    for server in watched:
        with closing(server.connect()) as root:
            run(root.cursor(), "CREATE USER m@localhost IDENTIFIED BY 'secret'", "GRANT ALL ON *.* TO m@localhost")
    with cluster(watched, account=("m", "secret"), yield_after=2) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        source = ServerKeySource(partial(two.server.connect, user="m", password="secret"))
        ((thread,),) = source.query("SELECT CONNECTION_ID()")
        wait_for(lambda: two.applier.watch.server != "", 30, two)
        two.execute("ALTER USER m@localhost WITH MAX_USER_CONNECTIONS 1")
        monkeypatch.setattr(opening, "RENEW_SECONDS", 0)
        with closing(two.server.connect(autocommit=False)) as holder:
            run(holder.cursor(), "UPDATE s.t SET v = 'mine' WHERE id = 1")
            one.execute("UPDATE s.t SET v = 'new' WHERE id = 1")
            wait_for(lambda: two.execute("SELECT v FROM s.t") == [("new",)], 30, two)
        assert ended(two) == 1
        assert source.query("SELECT CONNECTION_ID()") == [(thread,)]
        two.execute("ALTER USER m@localhost WITH MAX_USER_CONNECTIONS 0")
        assert source.query("SELECT CONNECTION_ID()") != [(thread,)]
        source.close()
        settle(sites)
        same_everywhere(sites, "s.t")


class Way:
    """A way over TCP to a server, which can lose what is sent, in an event loop of its own."""

    def __init__(self, server: Server) -> None:
        self._loop = asyncio.new_event_loop()
        self._relay = Relay(server.address)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._relay.start(), self._loop).result(10)
        self.address = self._relay.address

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._relay.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lose(self) -> None:
        """From now on everything is lost, and nobody is told."""
        self._do(partial(self._relay.cut, "blackhole"))

    def open(self) -> None:
        """New connections get through; those from before stay lost."""
        self._do(partial(self._relay.heal, reset=False))

    def _do(self, what: Callable[[], None]) -> None:
        async def call() -> None:
            what()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)


@contextmanager
def behind_a_way(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[SiteUnderTest], Way]]:
    """Two sites; the second one's server is reached over a `Way`. Everybody has less patience than elsewhere."""
    assert DumpConnection.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(DumpConnection.__init__.__kwdefaults__, "heartbeat", 1.0)
    monkeypatch.setattr(opening, "ANSWER_SECONDS", 2.0)
    way = Way(servers[1])
    host, port = way.address
    server = servers[1]
    reached = {"host": host, "port": port, "user": server.user, "password": server.password}
    monkeypatch.setattr(
        SiteUnderTest,
        "arguments",
        lambda site: {
            **(reached if site.number == 2 else {"unix_socket": str(site.server.socket)}),
            "user": site.server.user,
            "password": site.server.password,
            "connect_timeout": 3,
            "ssl_disabled": site.server.engine == "mariadb",
        },
    )
    try:
        with cluster(servers) as sites:
            sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
            settle(sites)
            yield sites, way
    finally:
        way.close()


def test_a_way_that_loses_everything(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a gateway that has forgotten its connections: no answer ever comes, and no end."""
    with behind_a_way(servers(2), monkeypatch) as (sites, way):
        one, two = sites
        way.lose()
        one.execute("UPDATE s.t SET v = 'one' WHERE id = 1")
        two.execute("UPDATE s.t SET v = 'two' WHERE id = 2")
        wait_for(lambda: two.applier.watch.silent > TELL_AFTER, 30, two)
        way.open()
        began = time.monotonic()
        settle(sites, timeout=30)
        print(f"{one.server.engine}: apply and capture are back after {time.monotonic() - began:.1f} s")
        assert two.applier.status.state is ApplyState.RUNNING
        assert two.applier.watch.silent < TELL_AFTER
        same_everywhere(sites, "s.t")


def test_an_address_that_moves_to_a_server_that_knows_no_such_connection(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard failover: nobody is left who could say that the old connections have ended."""
    with behind_a_way(servers(2), monkeypatch) as (sites, way):
        one, two = sites
        way.lose()
        one.execute("UPDATE s.t SET v = 'one' WHERE id = 1")
        two.server.kill()
        two.server.start()
        two.execute("UPDATE s.t SET v = 'two' WHERE id = 2")
        way.open()
        began = time.monotonic()
        settle(sites, timeout=30)
        print(f"{one.server.engine}: apply and capture are back after {time.monotonic() - began:.1f} s")
        same_everywhere(sites, "s.t")


def test_a_statement_that_waits_for_a_thread_of_a_pool(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says that the session is idle, as it says of one whose answer was lost."""
    monkeypatch.setattr(server_watch, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(server_watch, "LOOK_AFTER", 0.2)
    monkeypatch.setattr(server_watch, "_DEAD_AFTER", 0)
    looks: list[str] = []
    query = ServerWatch._query

    def pooled(self: ServerWatch, statement: str) -> Any:
        answer = query(self, statement)
        if "@@thread_handling" not in statement:
            return answer
        looks.append(statement)
        return [("Sleep", "pool-of-threads")]

    monkeypatch.setattr(ServerWatch, "_query", pooled)
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        with closing(two.server.connect(autocommit=False)) as client:
            run(client.cursor(), "SELECT * FROM s.t FOR UPDATE")
            looks.clear()
            one.execute("UPDATE s.t SET v = 'new'")
            wait_for(lambda: len(looks) >= 5, 30, looks)
        settle(sites)
        assert two.applier.status.retries == 0
        same_everywhere(sites, "s.t")


def test_a_slow_answer_is_no_lost_one(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement of another site that takes far longer than any timeout runs once, to its end."""
    with behind_a_way(servers(2), monkeypatch) as (sites, _):
        one, two = sites
        with closing(two.server.connect(autocommit=False)) as client, client.cursor() as cursor:
            run(cursor, "SELECT * FROM s.t WHERE id = 1 FOR UPDATE")
            one.execute("UPDATE s.t SET v = 'one' WHERE id = 1")
            began = time.monotonic()
            session = two.applier._session
            wait_for(lambda: time.monotonic() - began > 2.5 * opening.ANSWER_SECONDS, 30, two)
            assert two.applier._session is session
            client.rollback()
        settle(sites)
        assert two.applier.status.retries == 0
        same_everywhere(sites, "s.t")


def test_the_kernel_notices_a_host_that_is_gone(server: Server) -> None:
    with closing(opening.connect(**_over_tcp(server))) as client:
        sock = client._sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * opening.DEAD_SECONDS
        idle, pause, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + pause * count == opening.DEAD_SECONDS


def test_a_server_that_hangs_does_not_hold_whoever_logs_in(server: Server) -> None:
    """Its kernel takes the connection; nobody says a word on it."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        for way in (_over_tcp(server), {"unix_socket": str(server.socket), "user": server.user}):
            with pytest.raises(pymysql.err.OperationalError):
                opening.connect(**way, connect_timeout=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)


def _over_tcp(server: Server) -> dict[str, Any]:
    host, port = server.address
    return {"host": host, "port": port, "user": server.user, "password": server.password}
