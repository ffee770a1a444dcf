"""Statements that give each row a value of its own: their own site's values win everywhere."""

from __future__ import annotations

import threading
from contextlib import closing

import pymysql
import pytest

from mysqlraft.binlog.added_columns import gives_each_row_its_own
from mysqlraft.replication.entry import PayloadKind
from tests.harness.pool import LendServers
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, wait_capturing

pytestmark = pytest.mark.timeout(300)

TABLE = "CREATE TABLE s.t (a VARCHAR(20), b INT, v INT, j JSON, g INT AS (v + 1) STORED, PRIMARY KEY (a, b))"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ADD u CHAR(36) DEFAULT (UUID())",
        "ALTER TABLE t ADD u UUID NOT NULL DEFAULT UUID()",
        "ALTER TABLE t ADD (a INT, u CHAR(36) DEFAULT (UUID()))",
        "ALTER TABLE t ADD k INT AUTO_INCREMENT, ADD KEY (k)",
        "ALTER TABLE t ADD k SERIAL",
        "ALTER TABLE t MODIFY k INT AUTO_INCREMENT",
        "ALTER TABLE t ADD c INT DEFAULT (v + 1)",
        "ALTER TABLE t ADD c DECIMAL(20, 10) DEFAULT (1 / 3)",
    ],
)
def test_each_row_gets_its_own(statement: str) -> None:
    assert gives_each_row_its_own(statement, "s")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ADD c INT DEFAULT 5, AUTO_INCREMENT = 7",
        "ALTER TABLE t ADD c TEXT DEFAULT ('x'), ADD e INT DEFAULT (-2 * 3.5), ADD d DATETIME DEFAULT NOW()",
        "ALTER TABLE t ADD ts TIMESTAMP, ADD g INT AS (v + 1)",
        "ALTER TABLE t ALTER u SET DEFAULT (UUID())",
        "ALTER TABLE t MODIFY u CHAR(36) DEFAULT (UUID())",
        "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)",
    ],
)
def test_all_rows_get_the_same(statement: str) -> None:
    assert not gives_each_row_its_own(statement, "s")


def fill(site: SiteUnderTest, rows: int) -> None:
    values = ",".join(f"('{n % 7} \u00e9', {n}, {n}, '[{n}]')" for n in range(rows))
    site.execute(f"INSERT INTO s.t (a, b, v, j) VALUES {values}")


def row(n: int) -> str:
    """The condition for one of them, by its primary key."""
    return f"a = '{n % 7} \u00e9' AND b = {n}"


def numbers(site: SiteUnderTest) -> list[tuple[int, int]]:
    return [(int(b), int(k)) for b, k in site.execute("SELECT b, k FROM s.t ORDER BY a, b")]


NUMBERED = "ALTER TABLE s.t ADD k INT AUTO_INCREMENT, ADD UNIQUE (k)"


def test_numbers(servers: LendServers) -> None:
    """Site 2 has deleted a row meanwhile: it would number the ones behind it otherwise."""
    with cluster(servers(3), TABLE) as sites:
        one, two, _ = sites
        fill(one, 2500)
        settle(sites)
        two.link.hold()
        two.execute("DELETE FROM s.t WHERE b = 14")
        wait_for(lambda: two.link.units_kept == 1, 30, sites)
        one.execute("SET auto_increment_increment = 6, auto_increment_offset = 2", NUMBERED)
        expected = [pair for pair in numbers(one) if pair[0] != 14]
        wait_for(lambda: bool(one.log.of_kind(PayloadKind.DDL)), 30, sites)
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        for site in sites:
            assert numbers(site) == expected
            assert site.execute("SHOW TABLES FROM mysqlraft LIKE 'carried'") == []


def test_the_application_goes_on_writing(servers: LendServers) -> None:
    added = {"mariadb": "ADD u UUID NOT NULL DEFAULT (UUID())", "mysql": "ADD u BIGINT AUTO_INCREMENT, ADD KEY (u)"}
    with cluster(servers(2), TABLE) as sites:
        one = sites[0]
        fill(one, 3000)
        settle(sites)
        stop = threading.Event()

        def write() -> None:
            with closing(one.server.connect()) as client, client.cursor() as cursor:
                n = 0
                while not stop.is_set():
                    n += 1
                    cursor.execute("UPDATE s.t SET v = v + 1 WHERE b = %s", (n * 37 % 3000,))
                    cursor.execute("DELETE FROM s.t WHERE b = %s", (n * 41 % 3000,))
                    cursor.execute("INSERT IGNORE INTO s.t (a, b, v) VALUES ('new', %s, 1)", (n * 43 % 3000,))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            one.execute(f"ALTER TABLE s.t {added[one.server.engine]}")
            wait_for(lambda: bool(one.log.of_kind(PayloadKind.DDL)), 30, one)
        finally:
            stop.set()
            writer.join()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_quotient_has_the_digits_that_its_session_gave_it(servers: LendServers) -> None:
    with cluster(servers(2), TABLE) as sites:
        one = sites[0]
        fill(one, 5)
        settle(sites)
        one.execute("SET div_precision_increment = 12", "ALTER TABLE s.t ADD k DECIMAL(30, 20) DEFAULT (1 / 3)")
        settle(sites)
        same_everywhere(sites, "s.t")


def test_beside_prepared_transactions(servers: LendServers) -> None:
    """The statement waits for those of its table. Of those that come behind it, and before its rows are read, these
    hold nothing: it comes with XA COMMIT, and is behind them in the log."""
    with cluster(servers(2), TABLE, "CREATE TABLE s.other (id INT PRIMARY KEY)") as sites:
        one, two = sites
        fill(one, 50)
        settle(sites)
        prepare(one, "first", f"UPDATE s.t SET v = 77 WHERE {row(30)}")
        with pytest.raises(pymysql.err.OperationalError, match="Lock wait timeout"):
            one.execute("SET lock_wait_timeout = 1, innodb_lock_wait_timeout = 1", NUMBERED)
        one.execute("XA COMMIT 'first'")
        settle(sites)
        one.stop()
        prepare(one, "other", "INSERT INTO s.other VALUES (1)")
        one.execute(NUMBERED)
        for n, name in enumerate(("committed", "rolled back")):
            changes = (f"DELETE FROM s.t WHERE {row(n)}", f"UPDATE s.t SET v = 99 WHERE {row(10 + n)}")
            prepare(one, name, *changes, f"INSERT INTO s.t (a, b) VALUES ('new', {n})")
        one.start()
        wait_for(lambda: bool(one.log.of_kind(PayloadKind.DDL)), 30, sites)
        two.wait_applied()
        assert numbers(two) == numbers(one)
        assert two.execute("SELECT v FROM s.t WHERE b < 20 ORDER BY b") == [(n,) for n in range(20)]
        one.stop()
        one.execute("XA COMMIT 'other'", "XA COMMIT 'committed'")
        one.start()
        wait_capturing(one)
        one.execute("XA ROLLBACK 'rolled back'")
        settle(sites)
        same_everywhere(sites, "s.t", "s.other")
        assert two.execute("SELECT b, v FROM s.t WHERE v = 99 OR a = 'new' ORDER BY b") == [(0, None), (10, 99)]


def prepare(site: SiteUnderTest, name: str, *statements: str) -> None:
    site.execute(f"XA START '{name}'", *statements, f"XA END '{name}'", f"XA PREPARE '{name}'")


def test_a_crash_before_the_statement_is_in_the_log(servers: LendServers) -> None:
    """Its rows have left in part: the next session reads them again."""
    with cluster(servers(2), TABLE, capture={"part_bytes": 4096}) as sites:
        one, two = sites
        fill(one, 1500)
        settle(sites)
        one.link.hold()
        one.execute(NUMBERED)
        wait_for(lambda: one.link.statements_kept == 1, 30, sites)
        kept = one.link.kept[:]
        assert len(kept) > 3
        del one.link.kept[2:]
        one.link.release()
        one.stop()
        one.execute("UPDATE s.t SET v = 77 WHERE b = 700")
        one.start()
        wait_capturing(one)
        settle(sites)
        same_everywhere(sites, "s.t")
        two.stop()
        two.start()
        settle(sites)


def test_a_table_that_was_changed_again_stops_its_site_before_anything_is_in_the_log(servers: LendServers) -> None:
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        fill(one, 10)
        settle(sites)
        one.stop()
        one.execute(NUMBERED, "ALTER TABLE s.t ADD w INT")
        one.start()
        wait_for(lambda: bool(one.crashed), 30, sites)
        assert "the table was changed again, by ALTER TABLE s.t ADD w INT" in str(one.crashed[0])
        assert NUMBERED in str(one.crashed[0])
        one.crashed.clear()
        two.execute("INSERT INTO s.t (a, b) VALUES ('x', 1)")


def test_a_row_that_the_others_would_not_take_stops_its_site_only(servers: LendServers) -> None:
    """It is older than replication. Its site says which one it is, and carries it once the servers take it."""
    small, large = "SET GLOBAL max_allowed_packet = 1048576", "SET GLOBAL max_allowed_packet = 4194304"
    tables = "CREATE TABLE s.t (id INT PRIMARY KEY, v LONGTEXT)", "CREATE TABLE s.u (id INT PRIMARY KEY)"
    with cluster(servers(2), *tables) as sites:
        one, two = sites
        for site in sites:
            site.execute("SET sql_log_bin = 0", "INSERT INTO s.t SELECT 7, REPEAT('x', 900000)")
            site.stop()
            site.execute(small)
            site.start()
        one.execute(NUMBERED)
        wait_for(lambda: bool(one.crashed), 30, sites)
        print(one.crashed[0])
        assert 's.t: the row with primary key {"id": 7}' in str(one.crashed[0])
        assert "SET GLOBAL max_allowed_packet" in str(one.crashed[0])
        one.crashed.clear()
        two.execute("INSERT INTO s.u VALUES (8)")
        wait_for(lambda: one.execute("SELECT * FROM s.u") == [(8,)], 30, sites)
        for site in sites:
            site.stop()
            site.execute(large)
            site.start()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_create_table_select_brings_its_rows(servers: LendServers) -> None:
    with cluster(servers(2), TABLE) as sites:
        fill(sites[0], 50)
        sites[0].execute("CREATE TABLE s.copy (PRIMARY KEY (b)) AS SELECT b, UUID() AS u, RAND() AS r FROM s.t")
        settle(sites)
        same_everywhere(sites, "s.copy")
