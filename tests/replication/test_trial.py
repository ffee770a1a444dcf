"""The account that `mysqlraft check` prints can do all that apply has to do; what it lacks is found by trying."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from mysqlraft import config
from mysqlraft.mysql.connection import version_numbers
from mysqlraft.mysql.finding import Finding
from mysqlraft.mysql.preflight_grants import grant_statements
from mysqlraft.replication.capture import position_now
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.trial import tried
from mysqlraft.sandbox.servers import Engine, Server
from tests.harness.pool import LendServers
from tests.replication.harness import settle
from tests.replication.test_apply import TABLE, cluster, same_everywhere

pytestmark = pytest.mark.timeout(300)

ACCOUNT = ("daemon", "secret")
SCOPES = {"everything": "['*.*']", "two schemas": "['s.*', 'settle.*']"}


def make_account(server: Server, include: str) -> tuple[str, ...]:
    """Makes the daemon's account as it is printed; returns the grants."""
    settings = config.parse(
        "cluster: {id: shop, sites: [{id: 1, name: tokyo, address: '127.0.0.1:7450'}]}\n"
        "site: tokyo\ndata_dir: /var/lib/tokyo\ninsecure: true\nmysql: {user: daemon}\n"
        f"replicate: {{include: {include}}}\n",
        Path("tokyo.yaml"),
    )
    with closing(server.connect()) as root, root.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        version = version_numbers(str((cursor.fetchone() or ("",))[0]))
        grants = grant_statements(settings, server.engine == "mariadb", "daemon@localhost", version)
        for statement in (
            "SET SESSION sql_log_bin = 0",
            "CREATE USER daemon@localhost IDENTIFIED BY 'secret'",
            *grants,
        ):
            cursor.execute(statement)
    return grants


def try_it(server: Server, grants: tuple[str, ...]) -> list[Finding]:
    return list(tried(partial(server.connect, user=ACCOUNT[0], password=ACCOUNT[1]), grants))


STATEMENTS = (
    "CREATE TABLE s.made (id INT PRIMARY KEY, v VARCHAR(9), FOREIGN KEY (id) REFERENCES s.t (id))",
    "ALTER TABLE s.made ADD COLUMN w INT, ADD INDEX (w)",
    "CREATE DEFINER = nobody@nowhere FUNCTION s.f() RETURNS INT MODIFIES SQL DATA BEGIN DELETE FROM s.t; RETURN 1; END",
    "CREATE FUNCTION s.g() RETURNS INT RETURN 1",
    "CREATE DEFINER = app@localhost FUNCTION s.h() RETURNS INT RETURN 1",
    "CREATE PROCEDURE s.p() DELETE FROM s.t",
    "ALTER PROCEDURE s.p COMMENT 'x'",
    "CREATE VIEW s.v AS SELECT id, s.g() FROM s.t",
    "CREATE DEFINER = nobody@nowhere VIEW s.w AS SELECT id FROM s.t",
    "ALTER VIEW s.w AS SELECT id, v FROM s.t",
    "CREATE TRIGGER s.tr BEFORE INSERT ON s.t FOR EACH ROW SET NEW.v = 'x'",
    "CREATE DEFINER = nobody@nowhere TRIGGER s.tr2 BEFORE UPDATE ON s.t FOR EACH ROW SET NEW.v = 'x'",
    "CREATE EVENT s.e ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
    "ALTER EVENT s.e COMMENT 'x'",
    "CREATE DEFINER = nobody@nowhere EVENT s.e2 ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
    "CREATE TABLE s.copied LIKE s.t",
    "RENAME TABLE s.copied TO s.renamed",
    "TRUNCATE TABLE s.renamed",
    "ALTER TABLE s.renamed PARTITION BY HASH (id) PARTITIONS 2",
    "ALTER DATABASE s CHARACTER SET latin1",
)
REMOVED = (
    "DROP EVENT s.e",
    "DROP TRIGGER s.tr",
    "DROP VIEW s.v, s.w",
    "DROP PROCEDURE s.p",
    "DROP FUNCTION s.f",
    "DROP TABLE s.made, s.renamed",
    "DROP DATABASE s",
    "CREATE DATABASE s",
)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_printed_account_does_what_others_did(servers: LendServers, scope: str) -> None:
    lent = servers(2)
    for server in lent:
        make_account(server, SCOPES[scope])
    replicated = TableFilter(["s.*", "settle.*"])
    table = TABLE.replace("u INT UNIQUE", "u INT")
    with cluster(lent, table, account=ACCOUNT, replicated=replicated, capture={"replicated": replicated}) as sites:
        one, two = sites
        for site in sites:
            site.execute("SET SESSION sql_log_bin = 0", "CREATE USER app@localhost")
        one.execute(*STATEMENTS, database="s")
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a')", "INSERT INTO s.made VALUES (1, 'b', 2)")
        settle(sites)
        same_everywhere(sites, "s.t", "s.made")
        for kind, names in {
            "TABLE": "made renamed v w",
            "FUNCTION": "f g h",
            "PROCEDURE": "p",
            "TRIGGER": "tr tr2",
        }.items():
            for name in names.split():
                shown = [site.execute(f"SHOW CREATE {kind} s.{name}")[0][:6] for site in sites]
                assert shown[0] == shown[1]
        one.execute(*REMOVED)
        settle(sites)
        assert not two.execute("SHOW TABLES FROM s")


def test_nothing_is_found_and_nothing_is_left(server: Server) -> None:
    grants = make_account(server, SCOPES["two schemas"])
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        before = position_now(connection)
        assert try_it(server, grants) == []
        assert position_now(connection) == before
        for what in ("tables", "triggers", "events", "routines"):
            column = {"tables": "table", "triggers": "trigger", "events": "event", "routines": "routine"}[what]
            cursor.execute(f"SELECT COUNT(*) FROM information_schema.{what} WHERE {column}_schema = 'mysqlraft'")
            assert cursor.fetchall() == ((0,),)


def test_what_is_missing_is_found_with_its_remedy(server: Server, engine: Engine) -> None:
    grants = make_account(server, SCOPES["everything"])
    privileges = {
        "CREATE ROUTINE": "functions and procedures",
        "CREATE VIEW": "views",
        "EVENT": "events",
        "TRIGGER": "triggers",
    }
    privileges["SET USER" if engine == "mariadb" else "SYSTEM_USER"] = "views"
    with closing(server.connect()) as root, root.cursor() as cursor:
        for privilege, kind in privileges.items():
            cursor.execute(f"REVOKE {privilege} ON *.* FROM daemon@localhost")
            found = try_it(server, grants)
            assert any(f"with {kind}: error" in finding.what for finding in found), (privilege, found)
            for finding in found:
                for statement in finding.sql:
                    cursor.execute(statement)
            assert try_it(server, grants) == [], privilege
        cursor.execute("SET GLOBAL log_bin_trust_function_creators = OFF")
        found = try_it(server, grants)
        assert {finding.what.partition(" with ")[2].partition(":")[0] for finding in found} == {
            "functions and procedures",
            "triggers",
        }
        print(found[0].what)
        cursor.execute(found[0].sql[0])
        assert try_it(server, grants) == []
