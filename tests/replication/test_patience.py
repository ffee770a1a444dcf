"""Limits of MariaDB's statements to their own waiting count where they are made, and nowhere else."""

from __future__ import annotations

from contextlib import closing

import pytest

from mysqlraft.replication.patience import patient
from tests.harness.pool import LendServers
from tests.replication.harness import settle, wait_for
from tests.replication.test_apply import cluster

SESSION = "@@SESSION.LOCK_WAIT_TIMEOUT"


@pytest.mark.parametrize(
    ("statement", "elsewhere"),
    [
        ("ALTER TABLE t NOWAIT ADD c INT", "ALTER TABLE t  ADD c INT"),
        ("ALTER TABLE IF EXISTS s.t WAIT 5 ADD wait INT", "ALTER TABLE IF EXISTS s.t  ADD wait INT"),
        ("ALTER TABLE t ADD nowait INT, ADD COLUMN wait INT", "ALTER TABLE t ADD nowait INT, ADD COLUMN wait INT"),
        ("DROP TABLE t, nowait /* x */ WAIT 0 RESTRICT", "DROP TABLE t, nowait /* x */  RESTRICT"),
        ("RENAME TABLE t NOWAIT TO u, v WAIT 1 TO nowait", "RENAME TABLE t  TO u, v  TO nowait"),
        ("TRUNCATE TABLE s.nowait NOWAIT", "TRUNCATE TABLE s.nowait "),
        ("TRUNCATE nowait NOWAIT", "TRUNCATE nowait "),
        ("CREATE INDEX i ON t (nowait, `wait`) WAIT 2 COMMENT 'NOWAIT'", None),
        ("DROP INDEX nowait ON t NOWAIT", "DROP INDEX nowait ON t "),
        ("CREATE TABLE t (nowait INT, wait INT)", "CREATE TABLE t (nowait INT, wait INT)"),
        ("CREATE PROCEDURE p() ALTER TABLE t NOWAIT FORCE", "CREATE PROCEDURE p() ALTER TABLE t NOWAIT FORCE"),
        (
            "SET STATEMENT lock_wait_timeout=1 FOR DROP TABLE t",
            f"SET STATEMENT lock_wait_timeout={SESSION} FOR DROP TABLE t",
        ),
        (
            "SET STATEMENT sql_mode = '', Lock_Wait_Timeout = IF(1, 2, 3), a=1 FOR ALTER TABLE t NOWAIT FORCE",
            f"SET STATEMENT sql_mode = '', Lock_Wait_Timeout = {SESSION}, a=1 FOR ALTER TABLE t  FORCE",
        ),
        (
            "SET STATEMENT `lock_wait_timeout` := 1 FOR SET STATEMENT lock_wait_timeout=2 FOR DROP TABLE t",
            f"SET STATEMENT `lock_wait_timeout` := {SESSION} FOR SET STATEMENT lock_wait_timeout={SESSION}"
            " FOR DROP TABLE t",
        ),
        (
            "SET STATEMENT max_statement_time=0.5 FOR DROP TABLE t",
            "SET STATEMENT max_statement_time=@@SESSION.MAX_STATEMENT_TIME FOR DROP TABLE t",
        ),
    ],
)
def test_words(statement: str, elsewhere: str | None) -> None:
    assert patient(statement, "s") == (elsewhere or statement.replace("WAIT 2", ""))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["mariadb"])
@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE s.t NOWAIT ADD c INT",
        "SET STATEMENT lock_wait_timeout = 0, max_statement_time = 0.1 FOR ALTER TABLE s.t ADD c INT",
        "SET STATEMENT lock_wait_timeout := 0 FOR SET STATEMENT max_statement_time = 0.1 FOR ALTER TABLE s.t ADD c INT",
    ],
)
def test_a_table_that_is_always_in_use(servers: LendServers, statement: str) -> None:
    """A transaction uses it until the statement waits for it."""
    with cluster(servers(2), "CREATE TABLE s.t (id INT PRIMARY KEY)") as sites:
        one, two = sites
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT COUNT(*) FROM s.t")
            one.execute(statement)
            waiting = (
                "SELECT 1 FROM information_schema.processlist WHERE state LIKE '%metadata lock' AND time_ms > 1000"
            )
            wait_for(lambda: bool(two.execute(waiting)), 30, sites)
            assert two.applier.status.retries == 0
            cursor.execute("COMMIT")
        settle(sites)
        assert two.execute("SHOW COLUMNS FROM s.t LIKE 'c'")
