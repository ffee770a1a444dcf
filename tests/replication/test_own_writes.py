"""An application never sees its own site take back what it committed, on real servers.

The site's units come back one by one while younger ones are still to come: the situation of an application that goes on
writing. What makes them be written again is what does in earnest: rows of another site whose unique keys are not sure,
and a conflict.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pymysql
import pytest

from mysqlraft.binlog.errors import ConnectionLost
from mysqlraft.mysql.connection import StatementError
from mysqlraft.replication import look_ahead
from mysqlraft.replication.careful_lane import CarefulLane
from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, Position, decode
from mysqlraft.replication.look_ahead import LookAhead
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers
from tests.replication.harness import SiteUnderTest, run, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere

pytestmark = pytest.mark.timeout(120)

COUNTERS = "CREATE TABLE s.c (site VARCHAR(64) PRIMARY KEY, n BIGINT, m INT NOT NULL DEFAULT 0)"


def wild_write(two: SiteUnderTest, statement: str) -> None:
    """A write of another site that counts as one of its whole tables."""
    before = len(two.log.entries)
    two.link.hold()
    two.execute(statement)
    wait_for(lambda: two.link.units_kept == 1, 30, two)
    for number, (session, sequence, data) in enumerate(two.link.kept):
        payload = decode(data)
        for unit in payload.units:
            unit.wild = sorted({change.table for change in unit.changes})
        two.link.kept[number] = (session, sequence, payload.encode())
    two.link.release()
    assert len(two.log.entries) > before


def unit_indices(site: SiteUnderTest) -> list[int]:
    """Log indices that hold units of the site."""
    return [
        entry.index
        for entry in site.log.entries
        if entry.origin == site.number and decode(entry.payload).kind in (PayloadKind.UNITS, PayloadKind.PART)
    ]


@contextmanager
def held_back(
    servers: Sequence[Server], *tables: str, capture: dict[str, object] | None = None
) -> Iterator[tuple[SiteUnderTest, SiteUnderTest]]:
    """Two sites, settled; what the first one captures waits until it is let go."""
    with cluster(servers, *tables, capture={"mark_seconds": 60.0, **(capture or {})}) as (one, two):
        yield one, two


def hold(one: SiteUnderTest) -> None:
    settle_two = len(one.log.entries)
    one.wait_applied(settle_two)
    one.link.hold()


def begin(one: SiteUnderTest, two: SiteUnderTest) -> None:
    """A counter of each site's, everywhere; from now on the first site's units wait."""
    one.execute("INSERT INTO s.c VALUES ('one', 0, 0), ('two', 0, 0)")
    settle([one, two])
    hold(one)


def count(one: SiteUnderTest, times: int) -> None:
    """Increments the first site's counter; each transaction is captured by itself, and waits."""
    waiting = one.link.units_kept
    for n in range(waiting + 1, waiting + times + 1):
        one.execute("UPDATE s.c SET n = n + 1 WHERE site = 'one'")
        wait_for(lambda n=n: one.link.units_kept == n, 30, one)  # type: ignore[misc]


def come_back_one_by_one(one: SiteUnderTest, *, check: object = None) -> Iterator[int]:
    """Lets the site's held units into the log, and apply over them one entry at a time; yields after each."""
    one.link.limit = len(one.log.entries)
    one.link.release()
    for index in [index for index in unit_indices(one) if index > one.link.limit]:
        one.link.limit = index
        one.wait_applied(index)
        yield index
    one.link.limit = None


def test_a_counter_never_goes_back(servers: LendServers) -> None:
    """Many increments before the first comes back, all flagged: the row shows the last one all the time."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        count(one, 5)
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        seen: list[int] = []
        for _ in come_back_one_by_one(one):
            seen += one.execute("SELECT n FROM s.c WHERE site = 'one'")[0]
            # The application goes on: it reads, adds, and writes.
            if len(seen) == 3:
                one.execute("UPDATE s.c SET n = n + 1 WHERE site = 'one'")
        assert seen == [5, 5, 5, 6, 6]
        assert one.applier.status.careful, "the units were flagged"
        assert one.applier.status.left_out == 5
        assert not one.applier.status.in_full
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT n FROM s.c ORDER BY site") == [(6,), (1,)]


def test_a_statement_that_commutes_flags_nothing(servers: LendServers) -> None:
    """Another site adds a column: nothing of this site's own has to be written again."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        count(one, 3)
        two.execute("ALTER TABLE s.c ADD COLUMN x INT DEFAULT 1")
        wait_for(lambda: bool(two.log.of_kind(PayloadKind.DDL)), 30, two)
        one.wait_applied()
        one.execute("UPDATE s.c SET n = n + 1 WHERE site = 'one'")
        for _ in come_back_one_by_one(one):
            assert one.execute("SELECT n FROM s.c WHERE site = 'one'") == [(4,)]
        assert one.applier.status.careful == 0
        settle([one, two])
        same_everywhere([one, two], "s.c")


def test_rows_of_before_a_column_was_added(servers: LendServers) -> None:
    """Flagged units whose rows lack a column that another site has added: they do not take the row back either."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        one.execute("INSERT INTO s.c VALUES ('new', 0, 0)", "UPDATE s.c SET n = 9 WHERE site = 'new'")
        wait_for(lambda: one.link.units_kept == 2, 30, one)
        count(one, 3)
        two.execute("ALTER TABLE s.c ADD COLUMN x INT NOT NULL DEFAULT 7")
        wait_for(lambda: bool(two.log.of_kind(PayloadKind.DDL)), 30, two)
        wild_write(two, "UPDATE s.c SET n = n + 1, x = 8 WHERE site = 'two'")
        one.wait_applied()
        for _ in come_back_one_by_one(one):
            assert one.execute("SELECT n, x FROM s.c WHERE site <> 'two' ORDER BY site") == [(9, 7), (3, 7)]
        assert one.applier.status.careful == 5
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT n, x FROM s.c ORDER BY site") == [(9, 7), (3, 7), (1, 8)]


def test_a_deletion_while_a_column_is_added(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a later unit moves is not to take along what the row had before it was deleted."""
    # The other site's row comes before capture has seen that it will be overwritten.
    monkeypatch.setattr(PendingRows, "meets", lambda self, keys: False)
    with held_back(servers(2), COUNTERS) as (one, two):
        one.execute("INSERT INTO s.c VALUES ('a', 0, 0)")
        settle([one, two])
        hold(one)

        def comes(statement: str) -> None:
            before = len(two.log.entries)
            two.execute(statement)
            wait_for(lambda: len(two.log.entries) > before, 30, two)
            one.wait_applied()

        one.execute("DELETE FROM s.c WHERE site = 'a'")
        wait_for(lambda: one.link.units_kept == 1, 30, one)
        comes("UPDATE s.c SET n = 1 WHERE site = 'a'")
        one.execute("UPDATE s.c SET site = 'b' WHERE site = 'a'", "INSERT INTO s.c VALUES ('a', 2, 2)")
        wait_for(lambda: one.link.units_kept == 3, 30, one)
        comes("ALTER TABLE s.c ADD COLUMN x INT DEFAULT 7")
        comes("UPDATE s.c SET x = 8 WHERE site = 'a'")
        one.link.release()
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT site, x FROM s.c ORDER BY site") == [("a", 7), ("b", 7)]


def test_own_rows_beside_a_conflict_while_a_column_is_added(servers: LendServers) -> None:
    """Units that lack a column, each in conflict on a row that another site writes, column included. Own rows with
    further unique keys stay as they are: they are added to, move, go and come back, and hand on unique values."""
    table = "CREATE TABLE s.u (id INT PRIMARY KEY, u INT UNIQUE, w VARCHAR(20) UNIQUE, v INT)"
    own = "SELECT * FROM s.u WHERE id < 9 ORDER BY id"
    with held_back(servers(2), table) as (one, two):
        one.execute("INSERT INTO s.u VALUES (1, 1, 'a', 0), (2, 2, 'b', 0), (3, 3, 'c', 0), (9, 9, 'z', 0)")
        settle([one, two])
        hold(one)
        for n, statement in enumerate(
            (
                "UPDATE s.u SET u = 10, v = 1 WHERE id = 1",
                "UPDATE s.u SET u = 1, v = 1 WHERE id = 2",
                "DELETE FROM s.u WHERE id = 3",
                "UPDATE s.u SET v = 2 WHERE id IN (1, 2)",
                "INSERT INTO s.u VALUES (3, 2, 'c', 1)",
                "UPDATE s.u SET id = 4, v = 3 WHERE id = 2",
                "INSERT INTO s.u VALUES (2, 20, 'd', 1)",
                "UPDATE s.u SET v = v + 1 WHERE id IN (1, 3)",
                "DELETE FROM s.u WHERE id = 2",
            ),
            1,
        ):
            one.execute("BEGIN", statement, "UPDATE s.u SET v = v + 1 WHERE id = 9", "COMMIT")
            wait_for(lambda n=n: one.link.units_kept == n, 30, one)  # type: ignore[misc]
        shown = [(*row, 5) for row in one.execute(own)]
        before = len(two.log.entries)
        two.execute("ALTER TABLE s.u ADD COLUMN x INT NOT NULL DEFAULT 5", "UPDATE s.u SET v = 7, x = 8 WHERE id = 9")
        wait_for(lambda: len(two.log.entries) == before + 2, 30, two)
        one.wait_applied()
        for _ in come_back_one_by_one(one):
            assert one.execute(own) == shown
        assert one.applier.status.in_full, "the row of both sites, for its column"
        settle([one, two])
        same_everywhere([one, two], "s.u")
        assert one.execute("SELECT * FROM s.u ORDER BY id") == [*shown, (9, 9, "z", 9, 8)]


def test_a_row_is_not_gone_where_an_update_keeps_its_column(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later local transaction has taken a row's unique value. The row is not left out for that before it is gone in
    the log: an update that lacks a column still comes, and keeps what the row has there."""
    monkeypatch.setattr(PendingRows, "meets", lambda self, keys: False)
    table = "CREATE TABLE s.u (id INT PRIMARY KEY, u INT UNIQUE, v INT)"
    with cluster(servers(3), table, capture={"mark_seconds": 60.0}) as sites:
        one, two, three = sites
        one.execute("INSERT INTO s.u VALUES (1, 1, 0)")
        settle(sites)
        three.link.hold()
        three.link.limit = len(three.log.entries)
        one.execute("ALTER TABLE s.u ADD COLUMN x INT NOT NULL DEFAULT 5")
        wait_for(lambda: bool(one.log.of_kind(PayloadKind.DDL)), 30, one)
        two.wait_applied()
        three.execute("UPDATE s.u SET u = 3 WHERE id = 1")
        wait_for(lambda: three.link.units_kept == 1, 30, three)
        hold(two)
        two.execute("UPDATE s.u SET u = 9, x = 7 WHERE id = 1")
        wait_for(lambda: two.link.units_kept == 1, 30, two)
        before = len(unit_indices(one))
        one.execute("UPDATE s.u SET u = 4, x = 8 WHERE id = 1")
        wait_for(lambda: len(unit_indices(one)) > before, 30, one)
        two.wait_applied()
        two.execute("INSERT INTO s.u VALUES (2, 9, 0, 5)")
        wait_for(lambda: two.link.units_kept == 2, 30, two)
        last = two.link.kept.pop()
        two.link.release()
        two.link.hold()
        two.link.kept.insert(0, last)
        two.wait_applied()
        three.link.release()
        two.wait_applied()
        two.link.release()
        three.link.limit = None
        settle(sites)
        same_everywhere(sites, "s.u")
        assert one.execute("SELECT * FROM s.u ORDER BY id") == [(1, 3, 0, 7), (2, 9, 0, 5)]


def test_units_of_one_payload_and_of_many_rows(servers: LendServers) -> None:
    """Later units may share the payload, and may come in parts; inserts and deletes as well as updates."""
    with held_back(servers(2), COUNTERS, capture={"part_bytes": 20_000}) as (one, two):
        one.execute("INSERT INTO s.c VALUES ('one', 0, 0), ('two', 0, 0), ('gone', 0, 0)")
        settle([one, two])
        hold(one)
        rows = ", ".join(f"('{'x' * 50}{n}', {n}, 0)" for n in range(1000))
        one.execute(
            "UPDATE s.c SET n = 1 WHERE site = 'one'",
            "INSERT INTO s.c VALUES ('new', 1, 0)",
            "DELETE FROM s.c WHERE site = 'gone'",
            f"INSERT INTO s.c VALUES {rows}",
            "UPDATE s.c SET n = 2 WHERE site IN ('one', 'new')",
            "INSERT INTO s.c VALUES ('gone', 2, 0)",
            "UPDATE s.c SET n = n + 5000",
            "DELETE FROM s.c WHERE site = 'new'",
        )
        shown = one.execute("SELECT * FROM s.c ORDER BY site")
        wait_for(lambda: one.link.units_kept == 8, 30, one)
        wild_write(two, "INSERT INTO s.c VALUES ('of two', 0, 0)")
        two.wait_applied()
        expected = sorted([*shown, ("of two", 0, 0)])
        for _ in come_back_one_by_one(one):
            assert sorted(one.execute("SELECT * FROM s.c")) == expected
        assert one.applier.status.left_out > 1000
        assert not one.applier.status.in_full
        settle([one, two])
        same_everywhere([one, two], "s.c")


def stays_while_each_comes_back(
    one: SiteUnderTest, two: SiteUnderTest, statements: Sequence[str], shown: str, wild: str
) -> None:
    """Local transactions of s.u wait, another site writes wild: the rows ``shown`` stay as each of them comes back."""
    settle([one, two])
    hold(one)
    query = f"SELECT * FROM s.u WHERE {shown} ORDER BY id"
    for n, statement in enumerate(statements, 1):
        one.execute(statement)
        wait_for(lambda n=n: one.link.units_kept == n, 30, one)  # type: ignore[misc]
    last = one.execute(query)
    wild_write(two, wild)
    for _ in come_back_one_by_one(one):
        assert one.execute(query) == last
    settle([one, two])
    same_everywhere([one, two], "s.u")


def test_unique_values_that_move_between_own_rows(servers: LendServers) -> None:
    """A value that a later local transaction gave to another row stays there."""
    table = "CREATE TABLE s.u (id INT PRIMARY KEY, u INT UNIQUE, w VARCHAR(20) UNIQUE, v INT)"
    with held_back(servers(2), table) as (one, two):
        one.execute("INSERT INTO s.u VALUES (1, 1, 'a', 0), (2, 2, 'b', 0), (3, 3, 'c', 0), (9, 9, 'z', 0)")
        statements = (
            "UPDATE s.u SET u = 10, v = 1 WHERE id = 1",
            "DELETE FROM s.u WHERE id = 1",
            "UPDATE s.u SET u = 10, w = 'a', v = 2 WHERE id = 2",
            "UPDATE s.u SET u = 2 WHERE id = 3",
            "UPDATE s.u SET id = 4 WHERE id = 2",
            "INSERT INTO s.u VALUES (2, 30, 'd', 3)",
        )
        stays_while_each_comes_back(one, two, statements, "id < 9", "UPDATE s.u SET v = 7 WHERE id = 9")


def test_unique_values_that_are_equal_to_the_server_only(servers: LendServers) -> None:
    """Own rows hand on values that differ in case, or behind the beginning that is the key: none goes for a moment."""
    text = "VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
    table = f"CREATE TABLE s.u (id {text} PRIMARY KEY, u {text} UNIQUE, p {text}, v INT, UNIQUE (p(3)))"
    long = "x" * 100
    with held_back(servers(2), table) as (one, two):
        one.execute(
            f"INSERT INTO s.u VALUES ('a', 'ua', 'aaa1{long}', 0), ('b', 'ub', 'bbb1', 0), ('z', 'uz', 'zz', 0)"
        )
        statements = (
            "UPDATE s.u SET v = 1 WHERE id = 'a'",
            "UPDATE s.u SET id = 'A', v = 2 WHERE id = 'a'",
            "UPDATE s.u SET u = 'x' WHERE id = 'a'",
            "UPDATE s.u SET u = 'UA', v = 3 WHERE id = 'b'",
            "UPDATE s.u SET p = NULL WHERE id = 'b'",
            f"UPDATE s.u SET p = 'bbb9{long}' WHERE id = 'A'",
            f"UPDATE s.u SET p = 'aaa7{long}', u = NULL WHERE id = 'b'",
            "DELETE FROM s.u WHERE id = 'a'",
            "INSERT INTO s.u VALUES ('a', 'ua', 'ccc', 9)",
        )
        stays_while_each_comes_back(one, two, statements, "id < 'z'", "UPDATE s.u SET v = 7 WHERE id = 'z'")


def test_a_row_that_one_transaction_writes_and_spells_anew(servers: LendServers) -> None:
    """One that the same transaction gives another spelling of its primary key, and a later one deletes, does not come
    back: neither one that was there before nor a new one."""
    text = "VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
    table = f"CREATE TABLE s.u (id {text} PRIMARY KEY, u {text} UNIQUE, v INT)"
    with held_back(servers(2), table) as (one, two):
        one.execute("INSERT INTO s.u VALUES ('a', 'ua', 0), ('b', 'ub', 0), ('z', 'uz', 0)")
        settle([one, two])
        hold(one)
        with closing(one.server.connect(autocommit=False)) as client, client.cursor() as cursor:
            for units, statements in enumerate(
                (
                    ("UPDATE s.u SET v = 1 WHERE id = 'a'", "UPDATE s.u SET id = 'A' WHERE id = 'a'"),
                    ("INSERT INTO s.u VALUES ('c', 'uc', 1)", "UPDATE s.u SET id = 'C', u = 'UC' WHERE id = 'c'"),
                    ("UPDATE s.u SET v = 1 WHERE id = 'b'", "UPDATE s.u SET id = 'B', u = NULL WHERE id = 'b'"),
                    ("DELETE FROM s.u WHERE id IN ('A', 'C')", "UPDATE s.u SET v = 2 WHERE id = 'B'"),
                ),
                1,
            ):
                run(cursor, *statements)
                client.commit()
                wait_for(lambda units=units: one.link.units_kept == units, 30, one)  # type: ignore[misc]
        wild_write(two, "UPDATE s.u SET v = 7 WHERE id = 'z'")
        for _ in come_back_one_by_one(one):
            assert one.execute("SELECT * FROM s.u WHERE id < 'z' ORDER BY id") == [("B", None, 2)]
        settle([one, two])
        same_everywhere([one, two], "s.u")
        assert one.execute("SELECT * FROM s.u ORDER BY id") == [("B", None, 2), ("z", "uz", 7)]


def test_what_another_site_overwrote_is_written_again(servers: LendServers) -> None:
    """Nothing later: the own unit, later in the log, takes its place."""
    with held_back(servers(2), COUNTERS) as (one, two):
        one.execute("INSERT INTO s.c VALUES ('one', 0, 0)")
        settle([one, two])
        hold(one)
        one.execute("UPDATE s.c SET n = 5, m = 5 WHERE site = 'one'")
        wait_for(lambda: one.link.units_kept == 1, 30, one)
        before = len(unit_indices(two))
        two.execute("UPDATE s.c SET n = 1 WHERE site = 'one'")
        wait_for(lambda: len(unit_indices(two)) > before, 30, two)
        two.wait_applied()
        one.link.release()
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT n, m FROM s.c") == [(5, 5)]


def test_only_the_rows_that_another_site_has_met_are_written_again(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large transaction one row is in conflict, by its primary key or a unique value; or a row that it has
    made on the way and given another key."""
    looked_up: list[int] = []
    look_up = CarefulLane._look_up

    def counted(lane: CarefulLane, rows: Sequence[Any]) -> Any:
        if lane._session is one.applier._session:
            looked_up.append(len(rows))
        return look_up(lane, rows)

    monkeypatch.setattr(CarefulLane, "_look_up", counted)
    table = "CREATE TABLE s.u (id INT PRIMARY KEY, u INT UNIQUE, v INT)"
    with held_back(servers(2), table, capture={"part_bytes": 20_000}) as (one, two):
        rows = ", ".join(f"({n}, {n}, 0)" for n in range(3000))
        one.execute(f"INSERT INTO s.u VALUES {rows}")
        settle([one, two])
        hold(one)
        own = ("UPDATE s.u SET v = v + 1", "DELETE FROM s.u WHERE id = 5", "INSERT INTO s.u VALUES (5000, 5, 9)")
        on_the_way = ("INSERT INTO s.u VALUES (6000, 6000, 0)", "UPDATE s.u SET id = 6001 WHERE id = 6000")
        one.execute("BEGIN", *own, *on_the_way, "DELETE FROM s.u WHERE id = 6001", "COMMIT")
        wait_for(lambda: one.link.units_kept == 1, 30, one)
        before = len(unit_indices(two))
        two.execute(
            "BEGIN",
            "UPDATE s.u SET v = 7 WHERE id = 1000",
            "UPDATE s.u SET u = NULL WHERE id = 5",
            "INSERT INTO s.u VALUES (5001, 5, 7), (6000, 7000, 7)",
            "COMMIT",
        )
        wait_for(lambda: len(unit_indices(two)) > before, 30, two)
        one.wait_applied(unit_indices(two)[-1])
        looked_up.clear()
        one.link.release()
        settle([one, two])
        same_everywhere([one, two], "s.u")
        assert one.execute("SELECT v FROM s.u WHERE id = 1000") == [(1,)]
        print(f"{sum(looked_up)} rows of 3005 were looked up")
        assert one.applier.status.careful
        assert 0 < sum(looked_up) < 20


def test_a_row_of_another_site_that_will_be_overwritten(servers: LendServers) -> None:
    """A conflict: the other site's write is earlier in the log. Its row is left out here, and the history says what was
    lost; what else its unit wrote is there."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        one.execute("UPDATE s.c SET n = 5 WHERE site = 'one'")
        wait_for(lambda: one.link.units_kept == 1, 30, one)
        before = len(unit_indices(two))
        two.execute("UPDATE s.c SET n = 7")
        wait_for(lambda: len(unit_indices(two)) > before, 30, two)
        one.wait_applied()
        assert one.execute("SELECT n FROM s.c ORDER BY site") == [(5,), (7,)]
        assert one.applier.status.left_out == 1
        for _ in come_back_one_by_one(one):
            assert one.execute("SELECT n FROM s.c ORDER BY site") == [(5,), (7,)]
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT n FROM s.c ORDER BY site") == [(5,), (7,)]
        assert one.execute("SELECT type, row_key, other_image FROM mysqlraft.conflicts") == [
            ("update_origin_change", '{"site": "one"}', '{"site": "one", "n": 7, "m": 0}')
        ]


def test_it_is_written_in_full_when_the_binlog_cannot_be_read(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all sites still end alike, and the status says so."""
    monkeypatch.setattr(look_ahead, "MOST_ROWS", -1)
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        count(one, 3)
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        for _ in come_back_one_by_one(one):
            pass
        assert one.applier.status.in_full == 3
        assert "not in the log yet" in one.applier.status.blind
        settle([one, two])
        same_everywhere([one, two], "s.c")
        assert one.execute("SELECT n FROM s.c ORDER BY site") == [(3,), (1,)]


def test_a_file_that_was_purged_is_no_end(servers: LendServers) -> None:
    """Units whose place is gone from the binlog are written in full, and those after them are not."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        count(one, 2)
        one.execute("FLUSH BINARY LOGS")
        count(one, 3)

        def purged() -> bool:
            files = one.execute("SHOW BINARY LOGS")
            one.execute(f"PURGE BINARY LOGS TO '{files[-1][0]}'")
            return len(files) == 1

        wait_for(purged, 30, one)
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        for _ in come_back_one_by_one(one):
            pass
        status = one.applier.status
        assert (status.in_full, status.left_out, status.blind) == (2, 2, "")
        settle([one, two])
        same_everywhere([one, two], "s.c")


@pytest.mark.parametrize("asked", ["which server it is", "its binlog"])
def test_a_server_that_cannot_be_reached_for_a_moment(servers: LendServers, asked: str) -> None:
    """Nothing is written in full for that: the batch is made again, or tried again."""
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        count(one, 3)
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        ahead = one.applier._look_ahead
        name = "_server_id" if asked == "which server it is" else "_open_dump"
        reached, refused = getattr(ahead, name), [0]

        def refuse() -> Any:
            refused[0] += 1
            if refused[0] <= 3:
                raise pymysql.err.OperationalError(1040, "Too many connections")
            return reached()

        setattr(ahead, name, refuse)
        for _ in come_back_one_by_one(one):
            assert one.execute("SELECT n FROM s.c WHERE site = 'one'") == [(3,)]
        assert refused[0] > 3
        assert one.applier.status.left_out == 2
        assert not one.applier.status.in_full
        settle([one, two])
        same_everywhere([one, two], "s.c")


def test_what_is_in_the_binlog_already_is_read_before_rows_are_locked(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applications wait for the locks that apply holds while it reads."""
    locked: list[bool] = [False]
    taken: list[bool] = []
    reach, take = LookAhead.reach, LookAhead._take

    def reaching(ahead: LookAhead, *arguments: Any) -> bool:
        locked[0] = True
        try:
            return reach(ahead, *arguments)
        finally:
            locked[0] = False

    def taking(ahead: LookAhead, rows: Any) -> None:
        taken.append(locked[0])
        take(ahead, rows)

    monkeypatch.setattr(LookAhead, "reach", reaching)
    monkeypatch.setattr(LookAhead, "_take", taking)
    monkeypatch.setattr(look_ahead, "SILENCE", 60.0)  # on a busy machine the server may send nothing for seconds
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        one.execute(*["UPDATE s.c SET n = n + 1 WHERE site = 'one'"] * 100)
        wait_for(lambda: one.link.units_kept == 100, 30, one)
        # Apply knows the units in the payload of the first one without reading the binlog.
        first = next(units for *_, payload in one.link.kept if (units := decode(payload).units))
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        one.link.release()
        settle([one, two])
        assert one.applier.status.left_out == 99
    assert taken == [False] * len(taken)
    assert len(taken) >= 100 - len(first)


def test_a_transaction_of_more_rows_than_are_remembered(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not remembered while it is read, either; what comes before it is written in full."""
    monkeypatch.setattr(look_ahead, "MOST_ROWS", 1000)
    with held_back(servers(2), COUNTERS) as (one, two):
        begin(one, two)
        rows = ", ".join(f"('{'x' * 55}{n}', {n}, 0)" for n in range(15_000))
        one.execute("UPDATE s.c SET n = 1 WHERE site = 'one'", f"INSERT INTO s.c VALUES {rows}")
        wait_for(lambda: one.link.units_kept == 2, 30, one)
        wild_write(two, "UPDATE s.c SET n = n + 1 WHERE site = 'two'")
        one.wait_applied()
        comes = come_back_one_by_one(one)
        next(comes)
        assert one.applier.status.in_full == 1
        assert "more than 1,000 rows" in one.applier.status.blind
        list(comes)
        assert one.applier.status.in_full == 1
        settle([one, two])
        same_everywhere([one, two], "s.c")


def test_another_server_has_taken_the_place_of_the_one_that_was_read() -> None:
    """A place in the binlog of the one is none in that of the other, whoever asks for it."""
    identities = iter((1, 2, 2))

    def open_dump() -> Any:
        raise AssertionError("the binlog of the other server is not to be read")

    ahead = LookAhead(open_dump, lambda: next(identities), cast(Any, None), lambda schema, table: True)
    position = Position("binlog.000001", 4, "", "1-1732793530")
    payload = Payload(PayloadKind.UNITS, Flavour.MYSQL, 0, position, ("binlog.000001", 4711))
    later = ahead.later_than(7, payload, 0)
    assert not later.reach("binlog.000001", 815)
    assert "another server" in ahead.problem


class Unreachable:
    """A dump connection that a server ends at once, over and over."""

    mariadb = False

    def __init__(self, asked: list[int]) -> None:
        self._asked = asked

    def start_at(self, file: str, offset: int) -> None:
        self._asked.append(offset)
        raise ConnectionLost("not under this gtid_mode")

    def close(self) -> None:
        pass


def test_a_server_that_does_not_send_its_binlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look ahead reads for the next unit from that unit's place on, and all units share one patience."""
    monkeypatch.setattr(look_ahead, "PATIENCE", 0.5)
    asked: list[int] = []
    tables = SimpleNamespace(source=SimpleNamespace(binlog_end=lambda: ("binlog.000001", 9000)))
    ahead = LookAhead(lambda: cast(Any, Unreachable(asked)), lambda: 1, cast(Any, tables), lambda schema, table: True)
    begun = time.monotonic()
    refused = 0
    for number in range(1, 60):
        position = Position("binlog.000001", 100 * number, "", "1-1732793530")
        payload = Payload(PayloadKind.UNITS, Flavour.MYSQL, 0, position, ("binlog.000001", 100 * number + 50))
        later = ahead.later_than(number, payload, 0)
        while True:
            try:
                assert not later.reach("binlog.000001", 9000)
                break
            except StatementError:
                refused += 1
                time.sleep(0.05)
        assert asked[-1] == 100 * number
    assert refused
    assert time.monotonic() - begun < 10
