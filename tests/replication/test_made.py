"""A statement that makes something else at another site is found."""

from __future__ import annotations

import threading

import pytest

from mysqlraft.mysql import opening
from mysqlraft.mysql.definitions import difference
from mysqlraft.replication.entry import PayloadKind, decode
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import LendServers, ServerFactory
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, wait_capturing
from tests.replication.test_ddl import definitions

pytestmark = pytest.mark.timeout(300)


def stated(site: SiteUnderTest) -> list[list[str]]:
    """Of which objects the statements in the log say what they made."""
    found = []
    for index in site.log.of_kind(PayloadKind.DDL):
        ddl = decode(site.log.entries[index - 1].payload).ddl
        assert ddl is not None
        found.append([] if ddl.made is None else [name for _, name, _ in ddl.made.definitions])
    return found


def test_a_table_that_is_another_one_here(servers: LendServers) -> None:
    """Made where the schema has another character set: nothing in the statement says so."""
    with cluster(servers(3)) as sites:
        one, two, three = sites
        two.execute("SET SESSION sql_log_bin = 0", "ALTER DATABASE s CHARACTER SET latin1")
        one.execute("CREATE TABLE s.made (id INT PRIMARY KEY, v VARCHAR(9))", "INSERT INTO s.made VALUES (1, 'é')")
        reason = two.wait_stopped()
        (index,) = one.log.of_kind(PayloadKind.DDL)
        assert f"log index {index}, from site 1: CREATE TABLE s.made" in reason
        assert "s.made is not what it is where the statement comes from: there: " in reason
        assert "utf8mb4" in reason.partition("there: ")[2].partition("; here: ")[0]
        assert "latin1" in reason.partition("; here: ")[2]
        print(reason)
        three.wait_applied(index)
        two.stop()
        two.start()
        assert two.wait_stopped() == reason, "it has run, and nothing was done about it"
        two.stop()
        collation = one.execute("SELECT @@collation_server")[0][0]
        two.execute(
            "SET SESSION sql_log_bin = 0", f"ALTER TABLE s.made CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}"
        )
        two.start()
        wait_capturing(two)
        settle(sites)
        same_everywhere(sites, "s.made")


def test_what_a_session_sets_and_no_binlog_carries(servers: LendServers, engine: Engine) -> None:
    """MariaDB: what utf8 means."""
    if engine == "mysql":
        return
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("SET old_mode = ''", "CREATE TABLE s.made (id INT PRIMARY KEY, v VARCHAR(9)) CHARACTER SET utf8")
        assert "utf8mb3" in two.wait_stopped()


def test_libraries(servers: LendServers, engine: Engine) -> None:
    """Code that routines of MySQL 9.2 and later share."""
    lent = servers(2)
    if engine == "mariadb" or lent[0].installation.version < (9, 2):
        return
    library = "CREATE LIBRARY IF NOT EXISTS s.l LANGUAGE JAVASCRIPT AS $$ export function event(n) { return n } $$"
    with cluster(lent) as sites:
        one, two = sites
        one.execute("CREATE LIBRARY s.gone LANGUAGE JAVASCRIPT AS $$ // it's nothing $$")
        settle(sites)
        for site in sites:
            site.link.hold()
        one.execute("ALTER LIBRARY s.gone COMMENT 'é'", "DROP LIBRARY s.gone", library, library)
        two.execute("INSERT INTO s.t VALUES (1, 1, 'x')", library)
        wait_for(lambda: (one.link.statements_kept, two.link.statements_kept) == (3, 1), 30, sites)
        for site in sites:
            site.link.release()
        settle(sites)
        one.execute(
            "ALTER LIBRARY s.l COMMENT 'é'",
            "CREATE FUNCTION s.f(n INT) RETURNS INT DETERMINISTIC LANGUAGE JAVASCRIPT USING (s.l) AS $$ return 1 $$",
        )
        settle(sites)
        shown = "SELECT library_name, library_definition, library_comment FROM information_schema.libraries"
        assert [site.execute(shown) for site in sites] == 2 * [[("l", " export function event(n) { return n } ", "é")]]
        assert stated(one)[-2:] == [["LIBRARY l"], ["FUNCTION f"]]
        two.execute("SET SESSION sql_log_bin = 0", "DROP LIBRARY s.l")
        one.execute("ALTER LIBRARY s.l COMMENT 'x'")
        assert "ALTER LIBRARY s.l COMMENT 'x'" in two.wait_stopped()


def test_each_object_is_stated_once_nothing_lies_ahead_of_it(servers: LendServers) -> None:
    """Statements in a row on one table, captured late: the last one says what it is."""
    with cluster(servers(2)) as sites:
        one, _ = sites
        one.stop()
        one.execute(
            "CREATE TABLE s.a (id INT AUTO_INCREMENT PRIMARY KEY)",
            "CREATE TABLE s.b (id INT PRIMARY KEY)",
            "ALTER TABLE s.a ADD COLUMN v INT",
            "INSERT INTO s.a (v) VALUES (5), (6)",
            "ALTER TABLE s.a ADD COLUMN w INT, COMMENT 'é'",
            "CREATE VIEW s.v AS SELECT v FROM s.a",
            "CREATE FUNCTION s.f() RETURNS INT RETURN 1",
            "CREATE TRIGGER s.tr BEFORE INSERT ON s.b FOR EACH ROW SET @a = 1",
            "CREATE EVENT s.e ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
            "CREATE DATABASE other CHARACTER SET latin1",
            "DROP TABLE s.b",
        )
        one.start()
        wait_capturing(one)
        settle(sites)
        assert stated(one) == [*([], [], [], ["a"], ["v"], ["FUNCTION f"], [], ["EVENT e"], ["DATABASE other"], ["b"])]
        assert definitions(sites[0], "s.a", "s.v") == definitions(sites[1], "s.a", "s.v")


def test_a_statement_of_this_site_that_nobody_knows_yet(servers: LendServers, engine: Engine) -> None:
    """The table is another one here for a good reason, and the same everywhere in the end."""
    make, index = (
        "CREATE TABLE IF NOT EXISTS s.made (id INT PRIMARY KEY, v INT)",
        "CREATE INDEX IF NOT EXISTS i ON s.made (v)",
    )
    if engine == "mysql":
        index = "CREATE TRIGGER IF NOT EXISTS s.tr BEFORE INSERT ON s.made FOR EACH ROW SET @a = 1"
    with cluster(servers(2)) as sites:
        one, two = sites
        two.link.hold()
        two.execute(make, index)
        wait_for(lambda: two.link.statements_kept == 2, 30, sites)
        one.execute(make)
        two.wait_applied()
        one.execute(index)
        two.wait_applied()
        two.link.release()
        settle(sites)
        assert definitions(one, "s.made") == definitions(two, "s.made")


def test_the_time_zone_of_the_machine(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in Tokyo and one elsewhere, both in their machine's zone."""
    monkeypatch.setenv("TZ", "JST-9")
    tokyo = server_factory()
    monkeypatch.setenv("TZ", "UTC")
    with cluster([tokyo, server_factory()]) as sites:
        one, _ = sites
        assert one.execute("SELECT @@system_time_zone, @@time_zone") == [("JST", "SYSTEM")]
        one.execute("CREATE TABLE s.made (id INT PRIMARY KEY, a TIMESTAMP NULL DEFAULT '2024-01-01 12:00:00')")
        settle(sites)
        shown = [site.execute("SET time_zone = '+00:00'", "SHOW CREATE TABLE s.made") for site in sites]
        assert shown[0] == shown[1]
        assert "2024-01-01 03:00:00" in shown[1][0][1]
        # A table of this name is no event.
        one.execute(
            "CREATE TABLE s.events (id INT PRIMARY KEY, a DATETIME)",
            "INSERT INTO s.events VALUES (1, '2024-01-01 12:00:00')",
            "ALTER TABLE s.events MODIFY a TIMESTAMP NULL",
        )
        settle(sites)
        for site in sites:
            stored = site.execute("SET time_zone = '+00:00'", "SELECT a FROM s.events")[0][0]
            assert str(stored) == "2024-01-01 03:00:00"


IN_TURN = (
    "CREATE DATABASE d",
    "CREATE TABLE s.made (id INT PRIMARY KEY)",
    "RENAME TABLE s.made TO s.renamed",
    "ALTER TABLE s.renamed ADD v INT, COMMENT 'x'",
    "CREATE VIEW s.v AS SELECT id FROM s.renamed",
    "CREATE OR REPLACE VIEW s.v AS SELECT v FROM s.renamed",
    "CREATE TRIGGER s.tr BEFORE INSERT ON s.renamed FOR EACH ROW SET NEW.v = 1",
    "CREATE EVENT s.e ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
    "ALTER EVENT s.e COMMENT 'x'",
    "CREATE FUNCTION s.f() RETURNS INT DETERMINISTIC RETURN 1",
    "ALTER FUNCTION s.f COMMENT 'x'",
    "CREATE PROCEDURE s.p() SET @a = 1",
    "ALTER DATABASE s CHARACTER SET latin1",
    "DROP PROCEDURE s.p",
    "DROP FUNCTION s.f",
    "DROP EVENT s.e",
    "DROP TRIGGER s.tr",
    "DROP VIEW s.v",
    "DROP TABLE s.renamed",
    "DROP DATABASE d",
)


def test_a_statement_that_is_in_the_binlog_and_not_done(server_factory: ServerFactory, engine: Engine) -> None:
    """Semi-synchronous replication holds it up there until a replica answers; here none does for a while."""
    what = "source" if engine == "mysql" else "master"
    with cluster([server_factory(), server_factory()]) as sites:
        one, _ = sites
        if engine == "mysql":
            one.execute("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'")
        else:
            one.execute("SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC'")
        one.execute(f"SET GLOBAL rpl_semi_sync_{what}_timeout = 400")
        for statement in IN_TURN:
            # It no longer waits once it has waited in vain.
            semi_sync = f"SET GLOBAL rpl_semi_sync_{what}_enabled ="
            one.execute(f"{semi_sync} OFF", f"{semi_sync} ON", statement, f"{semi_sync} OFF")
            settle(sites)
        said = [name for names in stated(one) for name in names]
        assert {"DATABASE d", "made", "renamed", "v", "EVENT e", "FUNCTION f", "PROCEDURE p"} <= set(said)
        for site in sites:
            assert site.execute("SHOW TABLES FROM s") == [("t",)]


def test_a_statement_that_does_not_come_to_its_end(
    server_factory: ServerFactory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capture says what it waits for, and goes on once that is gone. MariaDB shows at once what the statement did."""
    impatient = opening._SESSION.replace("lock_wait_timeout = 20", "lock_wait_timeout = 1")
    monkeypatch.setattr(opening, "_SESSION", impatient)
    what = "source" if engine == "mysql" else "master"
    with cluster([server_factory(), server_factory()]) as sites:
        one, _ = sites
        if engine == "mysql":
            one.execute("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'")
        else:
            one.execute("SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC'")
        one.execute(f"SET GLOBAL rpl_semi_sync_{what}_timeout = 600000")
        one.execute(f"SET GLOBAL rpl_semi_sync_{what}_enabled = ON")
        statement = threading.Thread(target=one.execute, args=("ALTER TABLE s.t ADD c INT",))
        statement.start()
        try:
            if engine == "mysql":
                capture = one.capture
                assert capture is not None
                said = "s.t is still locked by a statement that the binlog holds already"
                wait_for(lambda: said in capture.status()["last_error"], 30, one)
        finally:
            one.execute(f"SET GLOBAL rpl_semi_sync_{what}_enabled = OFF")
            statement.join()
        settle(sites)
        same_everywhere(sites, "s.t")


def test_settings_of_servers_that_show_definitions_otherwise(
    server_factory: ServerFactory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever connection a question comes over, its answer is in the same form at every site."""
    monkeypatch.setattr(opening, "RENEW_SECONDS", 0.0)
    options = {"default_time_zone": "+05:00", "sql_mode": "ANSI_QUOTES"}
    if engine == "mysql":
        options |= {"show_gipk_in_create_table_and_information_schema": "OFF", "show_create_table_verbosity": "ON"}
    with cluster([server_factory(options=options), server_factory()]) as sites:
        one, _ = sites
        one.execute("CREATE TABLE s.made (id INT PRIMARY KEY, a TIMESTAMP NULL DEFAULT '2024-01-01 12:00:00')")
        settle(sites)
        assert stated(one)[-1] == ["made"]
        if engine == "mysql":
            # The server writes such a statement anew, as it would show it to this session.
            settings = "SET sql_generate_invisible_primary_key = ON, show_create_table_verbosity = OFF"
            one.execute(settings, "CREATE TABLE s.keyed (a INT)")
            one.execute("INSERT INTO s.keyed VALUES (1), (1)", "DELETE FROM s.keyed LIMIT 1")
            settle(sites)
            assert stated(one)[-1] == ["keyed"]
            same_everywhere(sites, "s.keyed")


def test_differences_are_shown_by_line() -> None:
    assert difference("a\nb\nc", "a\nx\nc") == "there: b; here: x"
    assert difference("a\nb", "b\na") == "there: in another order; here: in another order"
    assert difference("", "a") == "it exists only here"
