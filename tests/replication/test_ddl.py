"""Statements that change the schema: in their place, once, and loud when they cannot be."""

from __future__ import annotations

from functools import partial

import pymysql
import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.mysql.connection import StatementError
from mysqlraft.replication import ddl
from mysqlraft.replication.apply_session import open_session, setup
from mysqlraft.replication.entry import Ddl, PayloadKind, decode
from mysqlraft.replication.filters import TableFilter
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import LendServers
from tests.replication.harness import SharedLog, SiteUnderTest, settle, wait_for
from tests.replication.recorder import connection
from tests.replication.test_apply import TABLE, cluster, same_everywhere, units_logged, wait_capturing

pytestmark = pytest.mark.timeout(300)


def statements_in(log: SharedLog) -> list[int]:
    """Log indices of statements."""
    return log.of_kind(PayloadKind.DDL)


def definitions(site: SiteUnderTest, *tables: str) -> list[str]:
    return [site.execute(f"SHOW CREATE TABLE {table}")[0][1] for table in tables]


def test_statements_among_writes(servers: LendServers) -> None:
    """Every statement at its place in the log, under its session's settings; sites may write right after it."""
    with cluster(servers(3)) as sites:
        one, two, three = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a')")
        one.execute(
            "SET NAMES latin1",
            "SET time_zone = '+05:00', sql_mode = 'ANSI_QUOTES'",
            'CREATE TABLE "made" (id INT PRIMARY KEY, "d" VARCHAR(9) DEFAULT \'é\', at TIMESTAMP DEFAULT'
            " '2024-01-01 12:00:00')",
            "INSERT INTO made (id) VALUES (1)",
            database="s",
        )
        settle(sites)
        two.execute("ALTER TABLE s.t ADD COLUMN more INT NOT NULL DEFAULT 5, ADD INDEX (v)", "UPDATE s.t SET more = 6")
        settle(sites)
        three.execute("RENAME TABLE s.made TO s.renamed", "INSERT INTO s.renamed (id) VALUES (3)")
        settle(sites)
        one.execute("CREATE DATABASE `other-ü`", "CREATE TABLE `other-ü`.x AS SELECT 1 AS id, 'x' AS v WHERE FALSE")
        one.execute("ALTER TABLE `other-ü`.x ADD PRIMARY KEY (id)", "INSERT INTO `other-ü`.x VALUES (1, 'y')")
        settle(sites)
        two.execute("TRUNCATE TABLE s.renamed", "INSERT INTO s.renamed (id) VALUES (9)", "DROP TABLE `other-ü`.x")
        settle(sites)
        same_everywhere(sites, "s.t", "s.renamed")
        found = [definitions(site, "s.t", "s.renamed") for site in sites]
        assert found[0] == found[1] == found[2]
        # This client sends UTF-8, whatever it told the server; the others must understand it as that server did.
        assert "DEFAULT 'Ã©'" in found[0][1]
        assert "2024-01-01 07:00:00" in found[0][1]
        assert all(site.execute("SHOW TABLES FROM `other-ü`") == [] for site in sites)


@pytest.mark.parametrize("ran", [False, True])
def test_a_crash_between_statement_and_progress(servers: LendServers, ran: bool) -> None:
    """The intent is there; whether the statement ran only the binlog knows."""
    with cluster(servers(2)) as sites:
        one, two = sites
        two.link.limit = len(one.log.entries)
        one.execute("CREATE TABLE s.made (id INT PRIMARY KEY)", "INSERT INTO s.made VALUES (1)")
        wait_for(lambda: bool(statements_in(one.log)), 30, one)
        (index,) = statements_in(one.log)
        two.link.limit = index - 1
        two.wait_applied(index - 1)
        two.stop()
        session = open_session(partial(connection, two.server))
        ddl.store_intent(session, ddl.Intent(index, *ddl.binlog_end(session)))
        if ran:
            statement = decode(one.log.entries[index - 1].payload).ddl
            assert statement is not None
            ddl.run(session, statement)
            setup(session)
        session.close()
        # The application's own statements are not taken for it.
        two.execute("CREATE TABLE s.local (id INT PRIMARY KEY)", "INSERT INTO s.t VALUES (5, 5, 'x')")
        two.link.limit = None
        two.start()
        two.wait_applied(index)
        assert two.execute("SHOW TABLES FROM s LIKE 'made'")
        print(f"{one.server.engine}: {'not run again' if ran else 'run'} after the crash")


def test_a_session_in_a_schema_that_the_other_site_does_not_have(servers: LendServers) -> None:
    """All that the statement names is replicated; and nothing unnamed is looked for in another schema."""
    (server,) = servers(1)
    session = open_session(partial(connection, server))
    run = partial(ddl.run, session)
    session.run([b"CREATE DATABASE app", b"CREATE TABLE app.model (id INT PRIMARY KEY)", b"CREATE DATABASE mysqlraft"])
    run(Ddl([], b"CREATE TABLE made (id INT PRIMARY KEY)", "app", {}, 0))
    intent = ddl.Intent(1, *ddl.binlog_end(session))
    made = Ddl([], b"CREATE TABLE app.t (id INT PRIMARY KEY)", "private", {}, 0)
    run(made)
    reader = {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}
    assert ddl.has_run(session, made, intent, lambda: DumpConnection(reader, 77_001))
    other = Ddl([], b"CREATE TABLE app.other (id INT PRIMARY KEY)", "private", {}, 0)
    assert not ddl.has_run(session, other, intent, lambda: DumpConnection(reader, 77_001))
    for statement in ("CREATE TABLE t (id INT PRIMARY KEY)", "CREATE TABLE app.u LIKE model"):
        with pytest.raises(StatementError):
            run(Ddl([], statement.encode(), "private", {}, 0))
    session.close()


def test_a_statement_that_fails_stops_the_site_and_a_new_start_goes_on(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        one, two = sites
        two.execute("SET SESSION sql_log_bin = 0", "CREATE TABLE s.there (id INT PRIMARY KEY)")
        one.execute("INSERT INTO s.t VALUES (1, 1, 'before')", "CREATE TABLE s.there (id INT PRIMARY KEY, v INT)")
        one.execute("INSERT INTO s.there VALUES (1, 2)")
        reason = two.wait_stopped()
        (index,) = statements_in(one.log)
        assert f"log index {index}, from site 1: CREATE TABLE s.there" in reason
        assert "1050" in reason
        assert (two.applier.status.index, two.applier.status.stopped_at) == (index - 1, index)
        assert two.execute("SELECT id FROM s.t") == [(1,)]
        two.stop()
        two.execute("SET SESSION sql_log_bin = 0", "DROP TABLE s.there")
        two.start()
        wait_capturing(two)
        settle(sites)
        same_everywhere(sites, "s.t", "s.there")


def at_once(sites: list[SiteUnderTest], *statements: str) -> None:
    """The first sites run a statement each, before any of them hears of the others'."""
    for site in sites:
        site.link.hold()
    for site, statement in zip(sites, statements, strict=False):
        site.execute(statement)
    wait_for(lambda: all(site.link.statements_kept for site in sites[: len(statements)]), 30, sites)
    for site in sites:
        site.link.release()


def test_statements_of_two_sites_at_once_stop_every_site(servers: LendServers) -> None:
    with cluster(servers(3)) as sites:
        at_once(sites, "ALTER TABLE s.t ADD COLUMN one INT", "ALTER TABLE s.t ADD COLUMN two INT")
        reasons = {site.wait_stopped() for site in sites}
        (reason,) = reasons
        assert "another site changed s.t at the same time" in reason
        assert len({site.applier.status.index for site in sites}) == 1


def test_triggers_of_tables_that_are_not_replicated(servers: LendServers) -> None:
    """Made nowhere else, so dropped nowhere else, though the statement does not say on which table they are."""
    replicated = TableFilter(["s.*", "settle.*"], ["s.private"])
    with cluster(servers(2), TABLE, replicated=replicated, capture={"replicated": replicated}) as sites:
        one, two = sites
        trigger = "CREATE TRIGGER s.{} BEFORE INSERT ON s.{} FOR EACH ROW SET NEW.id = NEW.id"
        for site in sites:
            site.execute("CREATE TABLE s.private (id INT PRIMARY KEY)")
        two.execute(trigger.format("theirs", "private"))
        settle(sites)
        assert one.execute("SHOW TRIGGERS FROM s") == []
        one.execute(trigger.format("theirs", "private"), trigger.format("mine", "private"), trigger.format("ours", "t"))
        settle(sites)
        assert {row[0] for row in two.execute("SHOW TRIGGERS FROM s")} == {"theirs", "ours"}
        one.execute("DROP TRIGGER s.theirs", "DROP TRIGGER s.mine", "DROP TRIGGER s.ours")
        settle(sites)
        assert [row[0] for row in two.execute("SHOW TRIGGERS FROM s")] == ["theirs"]


def test_copies_of_a_definition_that_another_site_changes(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        at_once(sites, "ALTER TABLE s.t ADD COLUMN one INT", "CREATE TABLE s.copy LIKE s.t")
        (reason,) = {site.wait_stopped() for site in sites}
        assert "another site changed s.copy, s.t at the same time" in reason


def test_a_table_that_was_altered_here_and_nobody_knows_yet(servers: LendServers) -> None:
    """Apply knows the table's definition of before; what it makes of rows that fit that one is not taken for right."""
    with cluster(servers(3), "CREATE TABLE s.t (id INT PRIMARY KEY, a INT, b INT)") as sites:
        one, two, _ = sites
        one.execute("INSERT INTO s.t VALUES (1, 10, 100)")
        settle(sites)
        two.link.hold()
        two.execute("ALTER TABLE s.t MODIFY b INT UNSIGNED AFTER id")
        before = units_logged(one)
        one.execute("INSERT INTO s.t VALUES (2, 20, 200)")
        # It has to come before the statement in the log.
        wait_for(lambda: units_logged(one) > before, 30, sites)
        one.wait_applied()
        two.wait_applied()
        print(f"{two.server.engine}: (2, a 20, b 200) is {two.execute('SELECT * FROM s.t WHERE id = 2')} meanwhile")
        two.link.release()
        (reason,) = {site.wait_stopped() for site in sites}
        assert "another site wrote rows of s.t while the statement ran at site 2" in reason
        assert "make definition and rows of s.t equal" in reason


def test_truncate_while_others_write(servers: LendServers) -> None:
    """The truncating site runs it again, in its place, if writes of others came before it in the log."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        for truncated_last in (True, False):
            for site in sites:
                site.link.hold()
            one.execute("TRUNCATE TABLE s.t", "INSERT INTO s.t VALUES (10, 10, 'after')")
            two.execute("REPLACE INTO s.t VALUES (1, 1, 'theirs'), (20, 20, 'theirs')")
            wait_for(lambda: one.link.units_kept == 1 and two.link.units_kept == 1, 30, sites)
            for site in (two, one) if truncated_last else (one, two):
                site.link.release()
            settle(sites)
            same_everywhere(sites, "s.t")
            ids = {row[0] for row in one.execute("SELECT id FROM s.t")}
            assert ids == ({10} if truncated_last else {1, 10, 20})


def test_a_large_unit_and_a_statement_in_turn(servers: LendServers) -> None:
    with cluster(servers(2), TABLE, capture={"part_bytes": 4096}) as sites:
        one, _ = sites
        rows = ",".join(f"({n}, {n}, REPEAT('x', 90))" for n in range(300))
        one.execute(
            f"INSERT INTO s.t VALUES {rows}",
            "ALTER TABLE s.t ADD COLUMN w INT DEFAULT 3",
            "UPDATE s.t SET w = id",
            "ALTER TABLE s.t DROP COLUMN w",
            "UPDATE s.t SET v = CONCAT(v, id)",
        )
        settle(sites)
        same_everywhere(sites, "s.t")


RACED = "ALTER TABLE s.t ADD COLUMN at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)"


def race(sites: list[SiteUnderTest], statement: str, rows: str) -> None:
    """Site 1 runs a statement while site 2 writes; the rows come first in the log."""
    for site in sites:
        site.link.hold()
    sites[0].execute(statement)
    sites[1].execute(rows)
    wait_for(lambda: sites[0].link.statements_kept == 1 and sites[1].link.units_kept == 1, 30, sites)
    for site in reversed(sites):
        site.link.release()


def test_a_raced_statement_stops_every_site_and_skip_goes_on(servers: LendServers) -> None:
    with cluster(servers(3)) as sites:
        race(sites, RACED, "INSERT INTO s.t VALUES (1, 1, 'theirs')")
        (reason,) = {site.wait_stopped() for site in sites}
        (index,) = statements_in(sites[0].log)
        assert reason.startswith(f"log index {index}, from site 1: {RACED}: another site wrote rows of s.t while")
        assert f"`mysqlraft skip --index {index}`" in reason
        for site in sites:
            site.stop()
            if site.number != 1:
                site.execute("SET SESSION sql_log_bin = 0", RACED)
            site.execute("SET SESSION sql_log_bin = 0", "UPDATE s.t SET at = '2024-01-01'")
            site._options["skip"] = [index]
            site.start()
        for site in sites:
            wait_capturing(site)
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_statement_that_commutes_does_not_mind_being_raced(servers: LendServers) -> None:
    with cluster(servers(3)) as sites:
        race(sites, "ALTER TABLE s.t ADD COLUMN more INT NOT NULL DEFAULT 5", "INSERT INTO s.t VALUES (1, 1, 'theirs')")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert sites[0].execute("SELECT id, more FROM s.t") == [(1, 5)]


def test_tables_made_at_two_sites_at_once(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        at_once(sites, *(f"CREATE TABLE s.made_{site.number} (id INT PRIMARY KEY)" for site in sites))
        settle(sites)
        same_everywhere(sites, "s.made_1", "s.made_2")


def test_a_unit_that_does_not_know_a_new_unique_key(servers: LendServers) -> None:
    """Site 2's row has no hash of the key; the row of site 1 that collides with it is written again."""
    with cluster(servers(3), "CREATE TABLE s.t (id INT PRIMARY KEY, e VARCHAR(9))") as sites:
        one, two, _ = sites
        two.link.hold()
        two.execute("INSERT INTO s.t VALUES (1, 'x')")
        wait_for(lambda: two.link.units_kept == 1, 30, sites)
        one.execute("ALTER TABLE s.t ADD UNIQUE KEY (e)")
        wait_for(lambda: bool(statements_in(one.log)), 30, sites)
        one.wait_applied()
        one.link.hold()
        one.execute("INSERT INTO s.t VALUES (2, 'x')")
        wait_for(lambda: one.link.units_kept == 1, 30, sites)
        two.link.release()
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT id FROM s.t") == [(2,)]


SETTINGS = (
    ("SET explicit_defaults_for_timestamp = OFF", "(id INT PRIMARY KEY, a TIMESTAMP)"),
    ("SET NAMES utf8mb4 COLLATE utf8mb4_unicode_520_ci", "(id INT PRIMARY KEY, a VARCHAR(9) DEFAULT 'é')"),
    ("SET character_set_client = utf8mb3, collation_connection = utf8mb3_bin", "(id INT PRIMARY KEY, a CHAR(9))"),
    ("SET collation_database = latin1_bin", "(id INT PRIMARY KEY, a VARCHAR(9))"),
    ("SET collation_server = latin1_bin", "(id INT PRIMARY KEY, a VARCHAR(9))"),
    ("SET time_zone = '+09:00'", "(id INT PRIMARY KEY, a TIMESTAMP NULL DEFAULT '2024-01-01 12:00:00')"),
    ("SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'", "(\"id\" INT PRIMARY KEY, a VARCHAR(9) DEFAULT '\\')"),
    ("SET sql_mode = 'REAL_AS_FLOAT'", "(id INT PRIMARY KEY, a REAL)"),
    ("SET lc_time_names = 'de_DE', auto_increment_increment = 3", "(id INT AUTO_INCREMENT PRIMARY KEY)"),
    ("SET foreign_key_checks = 0", "(id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES nowhere (id))"),
    ("SET innodb_strict_mode = OFF", "(id INT PRIMARY KEY) ROW_FORMAT = COMPRESSED KEY_BLOCK_SIZE = 5"),
)
SETTINGS_OF_ONE_KIND = {
    "mariadb": (
        ("SET NAMES utf8mb4 COLLATE utf8mb4_uca1400_spanish_as_cs", "(id INT PRIMARY KEY, a VARCHAR(9) DEFAULT 'é')"),
        ("SET NAMES utf8mb3 COLLATE utf8mb3_uca1400_ai_ci", "(id INT PRIMARY KEY, a VARCHAR(9) DEFAULT 'é')"),
        ("SET sql_mode = 'ORACLE'", "(id INT PRIMARY KEY, a VARCHAR2(9))"),
    ),
    "mysql": (
        ("SET default_collation_for_utf8mb4 = utf8mb4_general_ci", "(id INT PRIMARY KEY, a CHAR(9)) CHARSET utf8mb4"),
        ("SET sql_generate_invisible_primary_key = ON", "(a INT)"),
        ("SET sql_require_primary_key = ON, default_collation_for_utf8mb4 = 255", "(a INT PRIMARY KEY)"),
    ),
}


def test_the_settings_that_a_statement_depends_on(servers: LendServers, engine: Engine) -> None:
    """Whatever the session of a statement was like, its table is the same at every site."""
    with cluster(servers(2)) as sites:
        one, _ = sites
        cases = SETTINGS + SETTINGS_OF_ONE_KIND[engine]
        for number, (setting, definition) in enumerate(cases):
            one.execute(setting, f"CREATE TABLE s.case_{number} {definition}", database="s")
        settle(sites)
        for number, case in enumerate(cases):
            found = [definitions(site, f"s.case_{number}") for site in sites]
            assert found[0] == found[1], case


def test_checks_that_a_statement_did_without(servers: LendServers, engine: Engine) -> None:
    """A MariaDB session may add a CHECK that rows violate, and drop what may not be there; a MySQL session may make
    foreign keys to what is not unique."""
    with cluster(servers(2)) as sites:
        one, two = sites
        if engine == "mysql":
            parent = "CREATE TABLE s.parent (id INT PRIMARY KEY, k INT, KEY (k))"
            child = "CREATE TABLE s.child (id INT PRIMARY KEY, k INT, FOREIGN KEY (k) REFERENCES s.parent (k))"
            one.execute(parent, "SET restrict_fk_on_non_standard_key = OFF", child)
            settle(sites)
            assert definitions(one, "s.child") == definitions(two, "s.child")
            return
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a')")
        one.execute("SET check_constraint_checks = 0", "ALTER TABLE s.t ADD CONSTRAINT c CHECK (u > 5)")
        one.execute("SET check_constraint_checks = 0", "INSERT INTO s.t VALUES (2, 2, 'b')", "UPDATE s.t SET v = 'c'")
        one.execute("SET sql_if_exists = 1", "ALTER TABLE s.nope ADD COLUMN w INT", "DROP TABLE s.nope")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert definitions(one, "s.t") == definitions(two, "s.t")


def test_events_run_at_the_site_that_made_them(servers: LendServers) -> None:
    """They are at every site, and disabled at all but the one that made them or enabled them last."""
    states = "SELECT event_name, status, definer, event_comment FROM information_schema.events ORDER BY event_name"
    with cluster(servers(2)) as sites:
        one, two = sites
        for site in sites:
            site.execute("SET GLOBAL event_scheduler = ON")
        one.execute(
            "CREATE EVENT s.each ON SCHEDULE EVERY 1 SECOND DO INSERT INTO s.t (id) SELECT IFNULL(MAX(id), 0) + 1"
            " FROM s.t",
            "CREATE EVENT s.later ON SCHEDULE AT '2036-01-01' DISABLE COMMENT 'é' DO SET @a = 1",
            "CREATE EVENT s.once ON SCHEDULE AT CURRENT_TIMESTAMP + INTERVAL 1 SECOND DO SET @a = 1",
        )
        wait_for(lambda: two.execute("SELECT COUNT(*) FROM s.t") > [(2,)], 30, sites)
        disabled = "REPLICA_SIDE_DISABLED" if one.server.engine == "mysql" else "SLAVESIDE_DISABLED"
        assert two.execute(states)[0] == ("each", disabled, "root@localhost", "")
        # What is over at the site that ran it is over everywhere.
        wait_for(lambda: not two.execute("SHOW EVENTS FROM s LIKE 'once'"), 30, sites)
        assert two.execute(states)[1] == ("later", disabled, "root@localhost", "é")
        two.execute("ALTER EVENT s.each COMMENT 'mine'")
        settle(sites)
        assert one.execute(states)[0] == ("each", "ENABLED", "root@localhost", "mine")
        two.execute("ALTER EVENT s.each ENABLE")
        settle(sites)
        assert [site.execute(states)[0][1] for site in sites] == [disabled, "ENABLED"]
        one.execute("SET NAMES gbk", "ALTER EVENT s.later DISABLE", "ALTER EVENT s.later DO SET @b = '中'")
        two.execute("DROP EVENT s.each")
        settle(sites)
        two.execute("DROP EVENT s.later")
        settle(sites)
        assert [site.execute(states) for site in sites] == [[], []]
        same_everywhere(sites, "s.t")


HARMLESS = (
    "CREATE TABLE IF NOT EXISTS s.t (id INT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS s.t LIKE s.other",
    "DROP TABLE IF EXISTS s.nope, s.never",
    "CREATE DATABASE IF NOT EXISTS s",
    "DROP DATABASE IF EXISTS nope",
    "DROP VIEW IF EXISTS s.nope",
    "DROP TRIGGER IF EXISTS s.nope",
    "DROP PROCEDURE IF EXISTS s.nope",
    "DROP FUNCTION IF EXISTS s.nope",
    "DROP EVENT IF EXISTS s.nope",
    "CREATE VIEW IF NOT EXISTS s.v AS SELECT 1",
    "CREATE PROCEDURE IF NOT EXISTS s.p() SELECT 1",
    "CREATE TRIGGER IF NOT EXISTS s.tr BEFORE INSERT ON s.other FOR EACH ROW SET @a = 1",
    "CREATE EVENT IF NOT EXISTS s.e ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
    "CREATE OR REPLACE VIEW s.w AS SELECT id FROM s.t",
)
HARMLESS_IN_MARIADB = (
    "ALTER TABLE s.t ADD COLUMN IF NOT EXISTS u INT",
    "CREATE INDEX IF NOT EXISTS i ON s.t (v)",
    "DROP INDEX IF EXISTS nope ON s.t",
    "DROP SEQUENCE IF EXISTS s.nope",
    "ALTER TABLE IF EXISTS s.nope ADD COLUMN w INT",
)
OTHER = "CREATE TABLE s.other (id INT PRIMARY KEY)"


def test_what_applications_run_at_every_start_stops_nobody(servers: LendServers, engine: Engine) -> None:
    """Two sites at once, first where some of it makes something, then where nothing does; and writers beside them."""
    statements = HARMLESS + (HARMLESS_IN_MARIADB if engine == "mariadb" else ())
    with cluster(servers(2), TABLE, OTHER) as sites:
        logged = []
        for turn in range(2):
            logged.append(len(statements_in(sites[0].log)))
            for site in sites:
                site.link.hold()
            for site in sites:
                site.execute(*statements, f"INSERT INTO s.t VALUES ({turn * 10 + site.number}, NULL, 'x')")
            wait_for(lambda: all(site.link.units_kept for site in sites), 30, sites)
            for site in sites:
                site.link.release()
            settle(sites)
        count = len(statements_in(sites[0].log)) - logged[1]
        print(f"{engine}: {count} of {2 * len(statements)} statements that do nothing are in the log")
        if engine == "mysql":
            assert count == 2, "but for OR REPLACE nothing was done"
        same_everywhere(sites, "s.t", "s.other")
        assert definitions(sites[0], "s.t", "s.v", "s.w") == definitions(sites[1], "s.t", "s.v", "s.w")


def test_a_table_that_two_new_sites_make(servers: LendServers) -> None:
    """The same definition, and rows at once; another definition is another matter."""
    with cluster(servers(2)) as sites:
        for site in sites:
            site.link.hold()
        for site in sites:
            site.execute(
                "CREATE DATABASE IF NOT EXISTS app",
                "CREATE TABLE IF NOT EXISTS app.made (id INT PRIMARY KEY, v INT)",
                f"INSERT INTO app.made VALUES ({site.number}, 1), (9, {site.number})",
            )
        wait_for(lambda: all(site.link.units_kept for site in sites), 30, sites)
        for site in sites:
            site.link.release()
        settle(sites)
        same_everywhere(sites, "app.made")
        assert sites[0].execute("SELECT id FROM app.made ORDER BY id") == [(1,), (2,), (9,)]
        at_once(sites, *(f"CREATE TABLE IF NOT EXISTS app.x (id INT, n{site.number} INT)" for site in sites))
        (reason,) = {site.wait_stopped() for site in sites}
        assert "another site changed app.x at the same time" in reason


def test_a_table_that_is_made_with_rows_unless_it_is_there(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        one, two = sites
        make = "CREATE TABLE IF NOT EXISTS s.made (PRIMARY KEY (id)) AS SELECT 7 AS id"
        one.execute(make, make, "INSERT INTO s.made VALUES (8)")
        settle(sites)
        assert two.execute("SELECT id FROM s.made ORDER BY id") == [(7,), (8,)]
        # MySQL's binlog has it with the partitions behind all else.
        one.execute(
            "CREATE TABLE s.p (PRIMARY KEY (id)) COMMENT 'é START TRANSACTION' PARTITION BY RANGE (id)"
            " (PARTITION low VALUES LESS THAN (9) COMMENT 'é', PARTITION ü VALUES LESS THAN (99)) SELECT * FROM s.made"
        )
        settle(sites)
        same_everywhere(sites, "s.p")
        assert definitions(one, "s.p") == definitions(two, "s.p")


def test_tables_whose_names_differ_in_case_or_accents(servers: LendServers) -> None:
    """To the server they are different tables; its information_schema does not always say so."""
    names = ("s.other", "s.`OTHER`", "s.`öther`")
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute(*(f"CREATE TABLE {name} (n{n} INT PRIMARY KEY, v INT)" for n, name in enumerate(names)))
        for site in sites:
            site.execute(*(f"INSERT INTO {name} VALUES ({site.number}, 1)" for name in names))
            settle(sites)
        two.execute(*(f"ALTER TABLE {name} MODIFY v BIGINT" for name in names))
        settle(sites)
        same_everywhere(sites, *names)


def test_a_table_of_another_engine_does_nothing_in_mysqls_dictionary(servers: LendServers) -> None:
    """It is made and dropped all the same."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("CREATE TABLE IF NOT EXISTS s.m (id INT PRIMARY KEY) ENGINE = MyISAM")
        settle(sites)
        assert two.execute("SHOW TABLES FROM s LIKE 'm'")
        one.execute("DROP TABLE IF EXISTS s.m, s.nope")
        settle(sites)
        assert not two.execute("SHOW TABLES FROM s LIKE 'm'")


def test_a_long_statement(servers: LendServers) -> None:
    """What it changes is known to its end."""
    conditions = " AND ".join(f"u <> {number}" for number in range(1500))
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute(
            f"ALTER TABLE s.t ADD CONSTRAINT c CHECK ({conditions}), RENAME TO s.r", "INSERT INTO s.r (id) VALUES (1)"
        )
        settle(sites)
        same_everywhere(sites, "s.r")
        assert definitions(one, "s.r") == definitions(two, "s.r")


def test_a_list_of_which_not_all_is_there(servers: LendServers, engine: Engine) -> None:
    """MariaDB drops the rest, and writes all of it to its binlog."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("CREATE TABLE s.a (id INT PRIMARY KEY)", "CREATE VIEW s.v AS SELECT 1")
        for statement in ("DROP TABLE s.a, s.nope", "DROP VIEW s.v, s.nope"):
            with pytest.raises(pymysql.err.OperationalError):
                one.execute(statement)
        settle(sites)
        assert one.execute("SHOW TABLES FROM s") == two.execute("SHOW TABLES FROM s")
        assert len(one.execute("SHOW TABLES FROM s")) == (3 if engine == "mysql" else 1)


def test_a_procedure_that_uses_a_temporary_table(servers: LendServers) -> None:
    """To the end of the call its events have the flag of statements on temporary tables."""
    with cluster(servers(2), TABLE, "CREATE TABLE s.gone (id INT PRIMARY KEY)") as sites:
        one, two = sites
        for change in ("TRUNCATE TABLE s.t", "ALTER TABLE s.t ADD w INT", "CREATE INDEX i ON s.t (w)"):
            one.execute("REPLACE INTO s.t (id) VALUES (1)")
            one.execute(
                f"CREATE PROCEDURE s.p() BEGIN CREATE TEMPORARY TABLE s.t2 (id INT); {change};"
                " DROP TABLE IF EXISTS s.gone; DROP TEMPORARY TABLE s.t2; END",
                "CALL s.p()",
                "DROP PROCEDURE s.p",
            )
            settle(sites)
            assert one.execute("SELECT * FROM s.t") == two.execute("SELECT * FROM s.t"), change
        assert definitions(one, "s.t") == definitions(two, "s.t")
        assert not two.execute("SHOW TABLES FROM s LIKE 'gone'")


def test_rows_of_a_database_that_is_gone(servers: LendServers) -> None:
    """They are read ahead while a row is written again."""
    with cluster(servers(2)) as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
        two.execute("INSERT INTO s.t VALUES (1, 1, 'two')")
        one.execute("CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, u INT UNIQUE)")
        one.execute("INSERT INTO s.t VALUES (1, 1, 'one')", "INSERT INTO d.t VALUES (1, 1)", "DROP DATABASE d")
        wait_for(lambda: one.link.statements_kept == 3 and two.link.units_kept == 1, 30, sites)
        two.link.release()
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_temporary_tables_with_the_names_of_others(servers: LendServers, engine: Engine) -> None:
    """A session that logs statements writes what it does to them as of any table; MariaDB so writes RENAME always."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a')")
        settle(sites)
        before = definitions(two, "s.t")
        formats = ("ROW", "STATEMENT") if engine == "mysql" else ("ROW", "MIXED", "STATEMENT")
        for number, form in enumerate(formats):
            one.execute(
                f"SET SESSION binlog_format = {form}",
                "CREATE TEMPORARY TABLE s.t (id INT PRIMARY KEY)",
                "ALTER TABLE s.t ADD COLUMN w INT",
                "CREATE INDEX i ON s.t (w)",
                "DROP INDEX i ON s.t",
                "TRUNCATE TABLE s.t",
                f"RENAME TABLE s.t TO s.u{number}" if engine == "mariadb" else f"ALTER TABLE s.t RENAME TO s.u{number}",
                f"DROP TABLE s.u{number}",
            )
            settle(sites)
        one.execute("RENAME TABLE s.t TO s.v, s.v TO s.t", "ALTER TABLE s.t COMMENT 'x'", "RENAME TABLE s.t TO s.w")
        one.execute("RENAME TABLE s.w TO s.t")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT id FROM s.t") == [(1,)]
        assert definitions(two, "s.t")[0] == f"{before[0]} COMMENT='x'"


def test_two_tables_change_places(servers: LendServers) -> None:
    """By way of a third name, which is no table's afterwards, as it is with a temporary table that gets another one."""
    with cluster(servers(2), TABLE, "CREATE TABLE s.new LIKE s.t") as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old')", "INSERT INTO s.new VALUES (2, 2, 'new')")
        settle(sites)
        one.execute("RENAME TABLE s.t TO s.aside, s.new TO s.t, s.aside TO s.new", "UPDATE s.t SET v = 'now'")
        settle(sites)
        two.execute("RENAME TABLE s.new TO s.gone, s.t TO s.new", "INSERT INTO s.new VALUES (3, 3, 'two')")
        settle(sites)
        same_everywhere(sites, "s.new", "s.gone")
        assert one.execute("SELECT v FROM s.new ORDER BY id") == [("now",), ("two",)]


CHANGES_PLACES = "RENAME TABLE s.t TO s.aside, s.new TO s.t, s.aside TO s.new"
ROTATES = "RENAME TABLE s.t TO s.gone, s.new TO s.t"
RENAMES = "ALTER TABLE s.t RENAME TO s.gone"
EXCHANGES = "ALTER TABLE s.parts EXCHANGE PARTITION p1 WITH TABLE s.whole"
CONVERTS = "ALTER TABLE s.parts CONVERT PARTITION p0 TO TABLE s.gone"
PARTS = (
    "CREATE TABLE s.parts (id INT PRIMARY KEY, v VARCHAR(9)) PARTITION BY RANGE (id)"
    " (PARTITION p0 VALUES LESS THAN (100), PARTITION p1 VALUES LESS THAN (1000))"
)


@pytest.mark.parametrize(
    ("statement", "rows", "tables"),
    [
        (CHANGES_PLACES, "INSERT INTO s.t VALUES (200, 2, 'two')", ("s.t", "s.new")),
        (CHANGES_PLACES, "UPDATE s.new SET v = 'two' WHERE id = 101", ("s.t", "s.new")),
        (RENAMES, "INSERT INTO s.t VALUES (200, 2, 'two')", ("s.t", "s.gone")),
        (ROTATES, "INSERT INTO s.t VALUES (200, 2, 'two')", ("s.t", "s.gone")),
        (EXCHANGES, "INSERT INTO s.whole VALUES (200, 'two')", ("s.whole", "s.parts")),
        (EXCHANGES, "UPDATE s.parts SET v = 'two' WHERE id = 300", ("s.whole", "s.parts")),
    ],
)
def test_rows_that_missed_a_statement_which_took_them_along(
    servers: LendServers, statement: str, rows: str, tables: tuple[str, ...]
) -> None:
    """At their origin they went with the table; elsewhere they would go to the one that has its name now."""
    take_along(servers, statement, rows, tables)


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)
def test_rows_that_went_with_a_partition(servers: LendServers) -> None:
    take_along(servers, CONVERTS, "UPDATE s.parts SET v = 'two' WHERE id = 5", ("s.parts", "s.gone"))


def take_along(servers: LendServers, statement: str, rows: str, tables: tuple[str, ...]) -> None:
    """Site 1 runs the statement while rows of site 2 wait to be sent. All sites stop, and `skip` goes on."""
    definitions = ("CREATE TABLE s.new LIKE s.t", PARTS, "CREATE TABLE s.whole (id INT PRIMARY KEY, v VARCHAR(9))")
    with cluster(servers(3), TABLE, *definitions) as sites:
        one, two, _ = sites
        one.execute("INSERT INTO s.t VALUES (100, 1, 'old')", "INSERT INTO s.new VALUES (101, 1, 'new')")
        one.execute("INSERT INTO s.parts VALUES (5, 'low'), (300, 'high')")
        settle(sites)
        two.link.hold()
        two.execute(rows)
        wait_for(lambda: two.link.units_kept == 1, 30, sites)
        one.execute(statement)
        wait_for(lambda: bool(statements_in(one.log)), 30, sites)
        (moved,) = statements_in(one.log)
        for site in sites:
            site.wait_applied(moved)
        two.link.release()
        (reason,) = {site.wait_stopped() for site in sites}
        (index,) = {site.applier.status.stopped_at for site in sites}
        assert f"before {statement!r} ran there (log index {moved}, from site 1)" in reason
        assert f"`mysqlraft skip --index {index}`" in reason
        for site in sites:
            site.stop()
            if statement == RENAMES:
                site.execute("SET SESSION sql_log_bin = 0", "CREATE TABLE s.t LIKE s.gone")
            for table in tables:
                site.execute("SET SESSION sql_log_bin = 0", f"DELETE FROM {table}")
            site._options["skip"] = [index]
            site.start()
        for site in sites:
            wait_capturing(site)
        settle(sites)
        same_everywhere(sites, *tables)
        # The rows of the unit are in the table of its name.
        assert [("two",)] in [one.execute(f"SELECT v FROM {table}") for table in tables]


def test_a_trigger_on_a_table_of_its_own_schema(servers: LendServers) -> None:
    """Its session has no default schema, and the statement names that of the trigger only."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("CREATE TRIGGER s.tr BEFORE INSERT ON t FOR EACH ROW SET NEW.v = 'set'")
        settle(sites)
        two.execute("INSERT INTO s.t VALUES (1, 1, 'given')")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT v FROM s.t") == [("set",)]


def test_statements_behind_comments(servers: LendServers) -> None:
    """As drivers send what files hold; the last is how dumps of MariaDB begin, which MySQL reads as a comment."""
    comments = ("--\n-- A table.\n--\n", "--\r\n", "#\n/**/", "/*M!999999\\- enable the sandbox mode */\n")
    with cluster(servers(2)) as sites:
        one, two = sites
        for number, comment in enumerate(comments):
            one.execute(f"{comment}CREATE TABLE s.made{number} (id INT PRIMARY KEY)")
            settle(sites)
            two.execute(f"{comment}ALTER TABLE {comment} s.made{number} ADD n INT DEFAULT 5")
            settle(sites)
            one.execute(f"INSERT INTO s.made{number} (id) VALUES (1)")
        settle(sites)
        same_everywhere(sites, *(f"s.made{number}" for number in range(len(comments))))
