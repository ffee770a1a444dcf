"""A MariaDB server that crashed in a statement writes it into its binlog when it comes back, in nobody's name."""

from __future__ import annotations

import pytest

from mysqlraft.mysql.connection import Session, SessionLost
from mysqlraft.replication import ddl
from mysqlraft.replication.entry import Ddl
from tests.harness.pool import LendServers
from tests.replication.harness import settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere

pytestmark = pytest.mark.parametrize("engine", ["mariadb"], indirect=True)  # MySQL's do both in one transaction

_NOBODY = "SET SESSION pseudo_thread_id = 0"


@pytest.mark.parametrize("meanwhile", [False, True], ids=["next", "after rows of the application"])
@pytest.mark.parametrize(
    ("statement", "recovered"),
    [
        ("ALTER TABLE s.t ADD COLUMN w INT DEFAULT 5", ""),
        (
            "CREATE OR REPLACE TABLE s.t (id INT PRIMARY KEY)",
            "DROP TABLE IF EXISTS `s`.`t`",
        ),
        ("DROP TABLE s.other, s.more", "DROP TABLE `s`.`other`"),
        ("DROP SEQUENCE s.sequence", "DROP TABLE IF EXISTS `s`.`sequence`"),
        ("DROP SCHEMA w", "DROP TABLE IF EXISTS `w`.`t`"),
        ("DROP SCHEMA w", "DROP DATABASE IF EXISTS `w`"),
    ],
)
def test_it_was_a_statement_of_another_site(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch, statement: str, recovered: str, meanwhile: bool
) -> None:
    """It runs once here, and leaves this site for no other one."""
    run, crashes = ddl.run, [0]

    def crash(session: Session, change: Ddl) -> None:
        if not crashes:
            run(session, change)
            return
        crashes.pop()
        if meanwhile:
            two.execute("INSERT INTO s.rows VALUES (1)")
            wait_for(lambda: two.captured >= 1, 30, two)
        session.run([b"FLUSH BINARY LOGS", _NOBODY.encode(), recovered.encode() or change.statement])
        raise SessionLost("the server has crashed")

    tables = [f"CREATE TABLE s.{name} (id INT PRIMARY KEY)" for name in ("t", "other", "more", "rows")]
    tables += ["CREATE SEQUENCE s.sequence", "CREATE SCHEMA w", "CREATE TABLE w.t (id INT PRIMARY KEY)"]
    with cluster(servers(2), *tables) as sites:
        one, two = sites
        monkeypatch.setattr(ddl, "run", crash)
        one.execute(statement)
        settle(sites)
        assert not crashes
        shown = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ('s', 'w')"
        assert sorted(one.execute(shown)) == sorted(two.execute(shown))
        same_everywhere(sites, *([] if "DROP" in statement else ["s.t"]))
        one.execute("INSERT INTO s.rows VALUES (2)")
        settle(sites)
        same_everywhere(sites, "s.rows")


def test_it_was_the_applications(servers: LendServers) -> None:
    """It goes to the others, whatever apply has run before it."""
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("ALTER TABLE s.t ADD COLUMN w INT")
        settle(sites)
        two.execute("FLUSH BINARY LOGS", _NOBODY, "ALTER TABLE s.t ADD COLUMN x INT DEFAULT 7")
        settle(sites)
        assert "`x`" in one.execute("SHOW CREATE TABLE s.t")[0][1]
        one.execute("INSERT INTO s.t (id) VALUES (1)")
        settle(sites)
        same_everywhere(sites, "s.t")


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("DROP TABLE IF EXISTS `s`.`t`", "ALTER TABLE IF EXISTS s.t ADD COLUMN IF NOT EXISTS w INT"),
        ("DROP TRIGGER s.tr", "CREATE PROCEDURE s.p() SELECT 1"),
    ],
)
def test_it_was_the_applications_while_apply_waited(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch, here: str, there: str
) -> None:
    """A statement of another site on the same table, which does not drop it, was about to run."""
    run, crashes = ddl.run, [0]

    def crash(session: Session, change: Ddl) -> None:
        if not crashes:
            run(session, change)
            return
        crashes.pop()
        two.execute("FLUSH BINARY LOGS", _NOBODY, here)
        raise SessionLost("the server has crashed")

    tables = (
        "CREATE TABLE s.t (id INT PRIMARY KEY)",
        "CREATE TRIGGER s.tr BEFORE INSERT ON s.t FOR EACH ROW SET @a = 1",
    )
    with cluster(servers(2), *tables) as sites:
        one, two = sites
        monkeypatch.setattr(ddl, "run", crash)
        one.execute(there)
        wait_for(lambda: not crashes, 30, sites)
        if "TABLE" in here:
            assert "another site changed s.t at the same time" in one.wait_stopped()
            assert "another site changed s.t at the same time" in two.wait_stopped()
        else:
            settle(sites)
            assert not one.execute("SHOW TRIGGERS FROM s")
