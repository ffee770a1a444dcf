"""Rows written under a column's old definition, behind the statement that changed it in the log."""

from __future__ import annotations

import pytest

from mysqlraft.replication.entry import PayloadKind
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import LendServers
from tests.replication.harness import settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, wait_capturing

pytestmark = pytest.mark.timeout(300)

FITS = (
    ("INT DEFAULT 1", "MODIFY c INT DEFAULT 2", "NULL"),
    ("INT DEFAULT 1", "CHANGE c c INT COMMENT 'x'", "NULL"),
    ("INT NOT NULL", "MODIFY c INT NULL", "0"),
    ("INT NULL", "MODIFY c INT NOT NULL", "0"),
    ("VARCHAR(9)", "MODIFY c VARCHAR(9) NOT NULL DEFAULT 'd'", "'x'"),
    ("ENUM('a','b')", "MODIFY c ENUM('a','b') NOT NULL", "'b'"),
    ("DATETIME(6)", "MODIFY c DATETIME(6) NULL DEFAULT NULL ON UPDATE CURRENT_TIMESTAMP(6)", "NULL"),
)
"""Column, change, value of the rows."""


def test_rows_that_still_fit(servers: LendServers) -> None:
    tables = [f"s.t{number}" for number in range(len(FITS))]
    made = [
        f"CREATE TABLE {table} (id INT PRIMARY KEY, c {old}, v INT)"
        for table, (old, _, _) in zip(tables, FITS, strict=True)
    ]
    with cluster(servers(3), *made) as sites:
        one, two, _ = sites
        for table, (_, _, value) in zip(tables, FITS, strict=True):
            one.execute(f"INSERT INTO {table} VALUES (1, {value}, 1), (2, {value}, 2), (3, {value}, 3)")
        settle(sites)
        for site in (one, two):
            site.link.hold()
        for table, (_, change, value) in zip(tables, FITS, strict=True):
            one.execute(f"ALTER TABLE {table} {change}")
            two.execute(
                f"INSERT INTO {table} VALUES (10, {value}, 1)",
                f"UPDATE {table} SET v = 9 WHERE id = 1",
                f"UPDATE {table} SET id = 20 WHERE id = 2",
            )
        wait_for(lambda: one.link.statements_kept == len(FITS) and two.link.units_kept == 3 * len(FITS), 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, *tables)
        for table, (_, _, value) in zip(tables, FITS, strict=True):
            (same,) = one.execute(f"SELECT MIN(c <=> {value}) FROM {table}")[0]
            assert same == 1, table


def test_a_time_of_the_update_is_not_made_up(servers: LendServers) -> None:
    """An update that lacks the column keeps it, though the server would set it for one of an application."""
    with cluster(servers(3), "CREATE TABLE s.t (id INT PRIMARY KEY, v INT)") as sites:
        one, two, _ = sites
        one.execute("INSERT INTO s.t VALUES (1, 1), (2, 2)")
        settle(sites)
        for site in (one, two):
            site.link.hold()
        one.execute("ALTER TABLE s.t ADD c DATETIME(6) DEFAULT '2024-01-01' ON UPDATE CURRENT_TIMESTAMP(6)")
        two.execute("UPDATE s.t SET v = 9 WHERE id = 1", "UPDATE s.t SET id = 3 WHERE id = 2")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 2, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert {str(row[0]) for row in one.execute("SELECT c FROM s.t")} == {"2024-01-01 00:00:00"}


NEWER = "of a newer collation"
"""One that PyMySQL does not know."""


@pytest.mark.parametrize(
    ("old", "change", "reason"),
    [
        ("INT", "MODIFY c BIGINT", "the type differs"),
        ("INT", "MODIFY c INT NOT NULL", "column 2, c, is NULL in a row, and NOT NULL at this site"),
        ("ENUM('a','b')", "MODIFY c ENUM('a','b','c')", "the labels differ"),
        (f"ENUM('a','b') {NEWER}", f"MODIFY c ENUM('b','a') {NEWER}", "the labels differ"),
        ("VARCHAR(9) CHARACTER SET latin1", "MODIFY c VARCHAR(9) CHARACTER SET latin2", "character set or collation"),
    ],
)
def test_rows_that_do_not_fit_stop_every_site_alike(
    servers: LendServers, engine: Engine, old: str, change: str, reason: str
) -> None:
    collation = "utf8mb4_es_0900_ai_ci" if engine == "mysql" else "utf8mb4_nopad_bin"
    old, change = (text.replace(NEWER, f"CHARACTER SET utf8mb4 COLLATE {collation}") for text in (old, change))
    with cluster(servers(2), f"CREATE TABLE s.t (id INT PRIMARY KEY, c {old}, v INT)") as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
        one.execute("SET sql_mode = ''", f"ALTER TABLE s.t {change}")
        two.execute("INSERT INTO s.t (id, v) VALUES (1, 1)")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 1, 30, sites)
        one.link.release()
        two.link.release()
        reasons = {site.wait_stopped() for site in sites}
        (said,) = reasons
        assert reason in said
        assert "make it here what it is in the rows, and reload" in said
        assert one.applier.status.index == two.applier.status.index >= one.log.of_kind(PayloadKind.DDL)[0]
        for site in sites:
            site.stop()
            site.execute("SET SESSION sql_log_bin = 0", f"ALTER TABLE s.t MODIFY c {old}")
            site.start()
            wait_capturing(site)
        settle(sites)
        for site in sites:
            site.execute("SET SESSION sql_log_bin = 0", "UPDATE s.t SET c = 1", f"ALTER TABLE s.t {change}")
        one.execute("INSERT INTO s.t (id, c, v) VALUES (2, 1, 2)")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT id, v FROM s.t") == [(1, 1), (2, 2)]
