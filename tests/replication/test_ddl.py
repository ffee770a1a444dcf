"""Statements that change the schema: in their place, once, and loud when they cannot be."""

from __future__ import annotations

from functools import partial

import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.mysql.connection import StatementError
from mysqlraft.replication import ddl
from mysqlraft.replication.apply_session import open_session, setup
from mysqlraft.replication.entry import Ddl, PayloadKind, decode
from mysqlraft.replication.filters import TableFilter
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
    run(Ddl([], "CREATE TABLE made (id INT PRIMARY KEY)", "app", {}, 0))
    intent = ddl.Intent(1, *ddl.binlog_end(session))
    made = Ddl([], "CREATE TABLE app.t (id INT PRIMARY KEY)", "private", {}, 0)
    run(made)
    reader = {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}
    assert ddl.has_run(session, made, intent, lambda: DumpConnection(reader, 77_001))
    other = Ddl([], "CREATE TABLE app.other (id INT PRIMARY KEY)", "private", {}, 0)
    assert not ddl.has_run(session, other, intent, lambda: DumpConnection(reader, 77_001))
    for statement in ("CREATE TABLE t (id INT PRIMARY KEY)", "CREATE TABLE app.u LIKE model"):
        with pytest.raises(StatementError):
            run(Ddl([], statement, "private", {}, 0))
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
        two.execute("ALTER TABLE s.t ADD COLUMN w INT AFTER id, MODIFY b INT UNSIGNED")
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
