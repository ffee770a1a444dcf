"""Rows written before their site ran a statement that adds columns: the same everywhere, whatever the order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import pytest

from mysqlraft.replication.additions import Additions
from mysqlraft.replication.entry import Ddl, PayloadKind
from mysqlraft.replication.short_rows import AddedValues
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import LendServers, ServerFactory
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, units_logged

pytestmark = pytest.mark.timeout(300)

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, u INT UNIQUE, v VARCHAR(100))"
MIGRATION = ("ALTER TABLE s.t ADD COLUMN c INT DEFAULT 5 NOT NULL", "ALTER TABLE s.t ALTER COLUMN c DROP DEFAULT")
"""What Django makes of a new field with a default."""


def meanwhile(sites: Sequence[SiteUnderTest], first: int, statements: Sequence[str], rows: Sequence[str]) -> None:
    """Site 1 runs statements and site 2 writes, before they hear of each other; ``first`` comes first in the log."""
    one, two = sites[:2]
    for site in (one, two):
        site.link.hold()
    one.execute(*statements)
    two.execute(*rows)
    wait_for(lambda: one.link.statements_kept == len(statements) and two.link.units_kept == len(rows), 30, sites)
    for site in (one, two) if first == 1 else (two, one):
        site.link.release()
    settle(sites)
    same_everywhere(sites, "s.t")


@pytest.mark.parametrize("first", [1, 2])
def test_a_row_gets_what_the_statement_gave_whatever_the_default_is_now(servers: LendServers, first: int) -> None:
    with cluster(servers(3), TABLE) as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        rows = ("INSERT INTO s.t VALUES (10, 10, 'new')", "UPDATE s.t SET id = 11, v = 'moved' WHERE id = 1")
        meanwhile(sites, first, MIGRATION, rows)
        for site in sites:
            assert site.execute("SELECT id, c FROM s.t ORDER BY id") == [(2, 5), (10, 5), (11, 5)]


@pytest.mark.parametrize("first", [1, 2])
def test_spellings_of_columns_and_their_defaults(servers: LendServers, first: int) -> None:
    """Columns in parentheses, strings one after the other, numbers with an exponent."""
    added = (
        "ALTER TABLE s.t ADD (a VARCHAR(9) DEFAULT 'a' 'b', b DOUBLE NOT NULL DEFAULT 1e-5, c DOUBLE DEFAULT -2.5E+3)",
        "ALTER TABLE s.t ADD d VARCHAR(9) DEFAULT _utf8mb4'a' \"b\" 'c', ADD e DOUBLE DEFAULT .5",
    )
    with cluster(servers(3), TABLE) as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        rows = ("INSERT INTO s.t VALUES (10, 10, 'new')", "UPDATE s.t SET id = 11 WHERE id = 1")
        meanwhile(sites, first, added, rows)
        for site in sites:
            assert site.execute("SELECT a, b, c, d, e FROM s.t") == [("ab", 1e-5, -2500.0, "abc", 0.5)] * 2


def test_names_in_other_letters_than_the_servers(server_factory: ServerFactory) -> None:
    """lower_case_table_names=1: such a statement is about its table, and not about all of the schema."""
    options = {"lower_case_table_names": "1"}
    other = "CREATE TABLE s.other (id INT PRIMARY KEY)"
    with cluster([server_factory(options=options), server_factory(options=options)], TABLE, other) as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        statements = ("ALTER TABLE S.T ADD c INT NOT NULL DEFAULT 4", "ALTER TABLE S.T MODIFY v VARCHAR(120) FIRST")
        meanwhile(sites, 1, statements, ["INSERT INTO s.other VALUES (1)"])
        meanwhile(sites, 1, ["ALTER TABLE S.T ADD d INT NOT NULL DEFAULT 4"], ["UPDATE S.T SET u = 7"])
        same_everywhere(sites, "s.other")


def test_maintenance_beside_writers(servers: LendServers, engine: Engine) -> None:
    """How rows lie is nothing to those that another site writes. A dump says such things of each of its tables."""
    partitioned = f"{TABLE.replace('u INT UNIQUE', 'u INT')} PARTITION BY HASH (id) PARTITIONS 2"
    statements = (
        "/*!40000 ALTER TABLE s.t DISABLE KEYS */",
        "ALTER TABLE s.t ENABLE KEYS",
        "ALTER TABLE s.t FORCE",
        "ALTER TABLE s.t ADD INDEX i (u)",
        f"ALTER TABLE s.t {'RENAME INDEX i TO j' if engine == 'mysql' else 'ORDER BY v, u DESC'}",
        *(f"ALTER TABLE s.t {verb} PARTITION p0" for verb in ("ANALYZE", "OPTIMIZE", "REPAIR", "REBUILD")),
    )
    with cluster(servers(2), partitioned) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        for site in sites:
            site.link.hold()
        one.execute(*statements)
        two.execute("INSERT INTO s.t VALUES (10, 10, 'new')", "UPDATE s.t SET v = 'newer' WHERE id = 1")
        wait_for(lambda: one.link.statements_kept >= 5 and two.link.units_kept == 2, 30, sites)
        two.link.release()
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_after_a_restart_the_binlog_tells_what_the_log_does_not(servers: LendServers) -> None:
    """The statement is lost on its way to the log; apply writes another site's row before capture reads it again."""
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        one.link.hold()
        one.execute(*MIGRATION)
        wait_for(lambda: one.link.statements_kept == 2, 30, sites)
        one.stop()
        one.link.kept.clear()
        two.execute("INSERT INTO s.t VALUES (2, 2, 'new')")
        wait_for(lambda: any(entry.origin == 2 for entry in one.log.entries[-1:]), 30, sites)
        one.start()
        wait_for(lambda: len(one.execute("SELECT c FROM s.t")) == 2, 30, sites)
        assert one.execute("SELECT c FROM s.t") == [(5,), (5,)]
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")


@pytest.mark.parametrize("first", [1, 2])
def test_a_row_keeps_what_an_update_does_not_know_unless_it_moves(servers: LendServers, first: int) -> None:
    """The other site gives the column a value, and the rows are changed by who does not know the column."""
    with cluster(servers(3), "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(100))") as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 'old'), (2, 'old'), (3, 'old')")
        settle(sites)
        one, two = sites[:2]
        for site in (one, two):
            site.link.hold()
        one.execute("ALTER TABLE s.t ADD COLUMN c INT DEFAULT 5", "UPDATE s.t SET c = 9 WHERE id < 3")
        two.execute("UPDATE s.t SET id = 11 WHERE id = 1", "UPDATE s.t SET v = 'changed' WHERE id = 2")
        wait_for(lambda: one.link.units_kept == 1 and two.link.units_kept == 2, 30, sites)
        for site in (one, two) if first == 1 else (two, one):
            site.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        found = sites[2].execute("SELECT id, c FROM s.t ORDER BY id")
        assert found == ([(2, 9), (3, 5), (11, 5)] if first == 1 else [(1, 9), (2, 9), (3, 5), (11, 5)])


@pytest.mark.parametrize("first", [1, 2])
def test_values_of_every_type(servers: LendServers, engine: Engine, first: int) -> None:
    columns = (
        *("a INT UNSIGNED DEFAULT 4294967295", "b DECIMAL(9,2) NOT NULL DEFAULT -1.25", "c DOUBLE DEFAULT 0.1"),
        *("d VARCHAR(300) CHARACTER SET latin1 NOT NULL DEFAULT 'café'", "e CHAR(3) NOT NULL DEFAULT ''"),
        *("f ENUM('x','y') NOT NULL DEFAULT 'y'", "g SET('p','q') DEFAULT 'q,p'", "h BIT(10) DEFAULT b'1011'"),
        *(
            "i DATE NOT NULL DEFAULT '2024-02-29'",
            "j DATETIME(3) DEFAULT '2024-01-01 12:00:00.5'",
            "k TIME DEFAULT NULL",
        ),
        *("l VARBINARY(9) DEFAULT x'00ff'", "m TEXT", "n JSON", "o YEAR DEFAULT 2030", "p FLOAT NOT NULL DEFAULT 1.1"),
        *(
            "q BIGINT DEFAULT '-9'",
            "r MEDIUMINT NOT NULL DEFAULT TRUE",
            "w BLOB",
            "x TINYINT(1) DEFAULT FALSE",
            "s TIMESTAMP NULL",
        ),
        *(("y VECTOR(3)", "z VECTOR") if engine == "mysql" else ()),
    )
    names = [column.split()[0] for column in columns]
    add = f"ALTER TABLE s.t {', '.join(f'ADD COLUMN {column}' for column in columns)}"
    drop = f"ALTER TABLE s.t {', '.join(f'ALTER COLUMN {name} DROP DEFAULT' for name in names)}"
    with cluster(servers(3), TABLE) as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        meanwhile(sites, first, [add, drop], ["INSERT INTO s.t (id, u, v) VALUES (2, 2, 'new')"])
        listed = ", ".join(f"HEX({name})" for name in names)
        for site in sites:
            (old,), (new,) = (site.execute(f"SELECT {listed} FROM s.t WHERE id = {key}") for key in (1, 2))
            assert old == new
            assert old[3] == "636166E9"


def test_the_binlog_is_read_once_for_all_columns() -> None:
    read: list[Additions] = []

    def pending() -> Additions:
        read.append(Additions())
        read[-1].enter(1, Ddl([("s", "t")], b"ALTER TABLE s.t ADD a INT, ADD b INT", "s", {}, 0))
        return read[-1]

    values = AddedValues(lambda: pytest.fail("nobody asks"), Additions, pending)
    assert sorted(values.additions("s", "t", ["a", "b", "c"])) == ["a", "b"]
    assert len(read) == 1


def test_the_time_of_the_statement(servers: LendServers) -> None:
    """It is not constant, so a row before it stops every site; but it is the same for every row after it."""
    added = "ALTER TABLE s.t ADD COLUMN c DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)"
    with cluster(servers(3), TABLE) as sites:
        one, two = sites[:2]
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        for site in (one, two):
            site.link.hold()
        one.execute("SET time_zone = '+05:00'", added)
        two.execute("INSERT INTO s.t VALUES (2, 2, 'new')")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 1, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert len(two.execute("SELECT DISTINCT c FROM s.t")) == 1


def test_columns_that_several_sites_added(servers: LendServers) -> None:
    """Rows that lack the columns of three statements, of which the last is of a site that has not heard of the rows."""
    with cluster(servers(3), TABLE) as sites:
        one, two, three = sites
        two.link.hold()
        two.execute("INSERT INTO s.t VALUES (1, 1, 'short')")
        wait_for(lambda: two.link.units_kept == 1, 30, sites)
        two.link.limit = len(two.log.entries)
        one.execute("ALTER TABLE s.t ADD a INT NOT NULL", "ALTER TABLE s.t ADD b INT DEFAULT 2, ALTER a SET DEFAULT 7")
        wait_for(lambda: len(one.log.of_kind(PayloadKind.DDL)) == 2, 30, sites)
        one.wait_applied()
        three.wait_applied()
        three.link.hold()
        three.execute("ALTER TABLE s.t ADD c INT DEFAULT 3", "ALTER TABLE s.t ALTER c SET DEFAULT 8")
        wait_for(lambda: three.link.statements_kept == 2, 30, sites)
        two.link.release()
        three.wait_applied()
        three.link.release()
        two.link.limit = None
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT * FROM s.t") == [(1, 1, "short", 0, 2, 3)]


ROUNDS = 5


def captured(site: SiteUnderTest, statements: int) -> bool:
    return site.link.statements_kept == statements


@pytest.mark.parametrize("key", ["", "UNIQUE"])
def test_random_histories(servers: LendServers, key: str) -> None:
    """As `test_added_columns_model.py` without servers. The third site writes nothing: it has the log's result."""
    rng = random.Random(9)
    with cluster(servers(3), f"CREATE TABLE s.t (id INT PRIMARY KEY, u INT {key}, v INT)") as sites:
        writers = sites[:2]
        columns: list[str] = []

        def write(site: SiteUnderTest, known: Sequence[str]) -> None:
            statements = []
            for _ in range(rng.randint(2, 5)):
                row, other, value = rng.randrange(6), rng.randrange(6), rng.randrange(10**6)
                choices = [
                    f"INSERT IGNORE INTO s.t (id, u, v) VALUES ({row}, {other}, {value})",
                    f"UPDATE s.t SET v = {value} WHERE id = {row}",
                    f"UPDATE IGNORE s.t SET id = {other}, v = {value} WHERE id = {row}",
                    f"UPDATE IGNORE s.t SET u = {other}, v = {value} WHERE id = {row}",
                    f"DELETE FROM s.t WHERE id = {row}",
                    f"REPLACE INTO s.t (id, u, v) VALUES ({row}, {other}, {value})",
                ]
                choices += [f"UPDATE s.t SET {name} = {value} WHERE id <= {row}" for name in known]
                statements.append(rng.choice(choices))
            if rng.random() < 0.5:
                statements = ["BEGIN", *statements, "COMMIT"]
            site.execute("SET sql_mode = ''", *statements)

        for number in range(ROUNDS):
            for site in writers:
                site.link.hold()
                write(site, columns)
            altering = rng.choice(writers)
            name = f"c{number}"
            statements = [f"ALTER TABLE s.t ADD {name} INT {rng.choice(('NOT NULL', ''))} DEFAULT {100 + number}"]
            for _ in range(rng.randint(0, 2)):
                change = rng.choice(("DROP DEFAULT", f"SET DEFAULT {rng.randrange(500, 600)}"))
                statements.append(f"ALTER TABLE s.t ALTER {rng.choice([*columns, name])} {change}")
            altering.execute(*statements)
            for site in writers:
                write(site, [*columns, name] if site is altering else columns)
            columns.append(name)
            wait_for(partial(captured, altering, len(statements)), 30, sites)
            for site in rng.sample(writers, 2):
                site.link.release()
            settle(sites)
            same_everywhere(sites, "s.t")


def test_a_column_in_the_midst_that_nobody_knows_yet(servers: LendServers) -> None:
    """Apply does not write rows with what it knew of the table before, into the wrong columns."""
    with cluster(servers(3), TABLE) as sites:
        one, two, _ = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')")
        settle(sites)
        two.link.hold()
        two.execute("ALTER TABLE s.t ADD COLUMN w INT AFTER id")
        one.execute("INSERT INTO s.t VALUES (2, 2, 'new')")
        assert "column 2 is u LONG in the rows, and w int" in two.wait_stopped()
        assert two.execute("SELECT id FROM s.t") == [(1,)]


def test_a_value_that_no_statement_tells_stops_every_site(servers: LendServers) -> None:
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
        one.execute("ALTER TABLE s.t ADD COLUMN n INT AUTO_INCREMENT, ADD KEY (n)")
        two.execute("INSERT INTO s.t VALUES (1, 1, 'short')")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 1, 30, sites)
        one.link.release()
        two.link.release()
        for site in sites:
            reason = site.wait_stopped()
            assert "s.t: the rows lack n: they were written before 'ALTER TABLE s.t ADD COLUMN n INT" in reason
            assert "is not the same for every row" in reason


def test_stored_columns_are_computed_or_stop_every_site(servers: LendServers, engine: Engine) -> None:
    """MariaDB computes them for statements only. There the column goes until the rows are in."""
    added = "ALTER TABLE s.t ADD COLUMN g INT AS (u + 1) STORED, ADD COLUMN c INT DEFAULT 5"
    with cluster(servers(3), TABLE) as sites:
        one, two, _ = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")
        settle(sites)
        for site in (one, two):
            site.link.hold()
        one.execute(added)
        two.execute("INSERT INTO s.t VALUES (9, 9, 'x')", "UPDATE s.t SET u = 20 WHERE id = 1")
        two.execute("UPDATE s.t SET id = 30 WHERE id = 3", "DELETE FROM s.t WHERE id = 2")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 4, 30, sites)
        one.link.release()
        two.link.release()
        if engine == "mariadb":
            for site in sites:
                assert "SET SESSION sql_log_bin = 0, drop g, reload, and add it again" in site.wait_stopped()
                site.stop()
                site.execute("SET SESSION sql_log_bin = 0", "ALTER TABLE s.t DROP COLUMN g")
                site.start()
            settle(sites)
            for site in sites:
                site.execute(
                    "SET SESSION sql_log_bin = 0", "ALTER TABLE s.t ADD COLUMN g INT AS (u + 1) STORED AFTER v"
                )
        settle(sites)
        same_everywhere(sites, "s.t")
        assert sorted(one.execute("SELECT id, g, c FROM s.t")) == [(1, 21, 5), (9, 10, 5), (30, 4, 5)]


def test_rows_that_pass_such_a_statement_stop_every_site_at_it(servers: LendServers) -> None:
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
        one.execute("ALTER TABLE s.t ADD COLUMN n INT AUTO_INCREMENT, ADD KEY (n)")
        two.execute("INSERT INTO s.t VALUES (1, 1, 'short')")
        wait_for(lambda: one.link.statements_kept == 1 and two.link.units_kept == 1, 30, sites)
        two.link.release()
        one.link.release()
        (reason,) = {site.wait_stopped() for site in sites}
        assert "another site wrote rows of s.t while the statement ran at site 1" in reason


def test_a_statement_behind_rows_that_are_looked_at_again(servers: LendServers) -> None:
    """A local statement changes the table before rows are in; what was taken from the log behind them is not lost."""
    with cluster(servers(2), TABLE, capture={"mark_seconds": 60.0}) as (one, two):
        two.execute("INSERT INTO s.t VALUES (1, 1, 'known')")
        settle([one, two])
        one.link.hold()
        one.link.limit = len(one.log.entries)
        before = units_logged(two)
        two.execute("INSERT INTO s.t VALUES (2, 2, 'short')")
        wait_for(lambda: units_logged(two) > before, 30, two)
        two.execute("CREATE TABLE s.made (id INT PRIMARY KEY)")
        wait_for(lambda: bool(two.log.of_kind(PayloadKind.DDL)), 30, two)
        one.execute("ALTER TABLE s.t ADD w INT DEFAULT 7")
        wait_for(lambda: one.link.statements_kept == 1, 30, one)
        last = two.log.of_kind(PayloadKind.DDL)[-1]
        with one.log.changed:
            one.link.limit = None
        one.wait_applied(last)
        assert one.execute("SELECT COUNT(*) FROM s.made") == [(0,)]
        one.link.release()
        settle([one, two])
        same_everywhere([one, two], "s.t")
