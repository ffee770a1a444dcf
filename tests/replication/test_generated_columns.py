"""Generated columns of rows that come late or meet others. MariaDB 11.8 logs those of new rows only."""

from __future__ import annotations

import pytest

from mysqlraft.replication.capture import CaptureState, position_now
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers
from tests.replication.capture_rig import capturing, run
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import same_everywhere, units_logged
from tests.replication.test_own_writes import held_back, hold

pytestmark = pytest.mark.timeout(120)

TABLE = (
    "CREATE TABLE s.g (id INT PRIMARY KEY, a INT, v INT AS (a + 1) VIRTUAL, st INT AS (a + 2) STORED,"
    " i INT AS (a + 3) VIRTUAL, u INT UNIQUE, KEY (i), KEY (st))"
)


def all_computed(site: SiteUnderTest) -> None:
    """The table and its indexes hold what the row's other columns give."""
    rows = site.execute("SELECT id, a, v, st, i FROM s.g ORDER BY id")
    assert rows == [(key, a, a + 1, a + 2, a + 3) for key, a, *_ in rows]
    for index, column, more in (("i", "i", 3), ("st", "st", 2)):
        for key, a, *_ in rows:
            found = site.execute(f"SELECT id FROM s.g FORCE INDEX ({index}) WHERE {column} = {a + more}")
            assert (key,) in found
    assert [row[3] for row in site.execute("CHECK TABLE s.g EXTENDED")] == ["OK"]


def test_each_server_computes_them(servers: LendServers) -> None:
    """An update whose row is gone, one whose row is another, one of the primary key, and a unique value taken over."""
    with held_back(servers(2), TABLE) as (one, two):
        one.execute("INSERT INTO s.g (id, a, u) VALUES (1, 10, 1), (2, 20, 2), (3, 30, 3), (4, 40, 4), (5, 50, 5)")
        settle([one, two])
        hold(one)
        for number, statement in enumerate(
            (
                "UPDATE s.g SET a = 11 WHERE id = 1",
                "UPDATE s.g SET a = 21 WHERE id = 2",
                "UPDATE s.g SET id = 9, a = 31 WHERE id = 3",
                "UPDATE s.g SET a = 41, u = 44 WHERE id = 4",
                "DELETE FROM s.g WHERE id = 5",
                "UPDATE s.g SET a = a + 1 WHERE id = 1",
            ),
            1,
        ):
            one.execute(statement)
            wait_for(lambda n=number: one.link.units_kept == n, 30, one)  # type: ignore[misc]
        logged = units_logged(two)
        two.execute(
            "DELETE FROM s.g WHERE id = 1",
            "UPDATE s.g SET a = 22 WHERE id = 2",
            "DELETE FROM s.g WHERE id = 3",
            "INSERT INTO s.g (id, a, u) VALUES (6, 60, 44)",
            "UPDATE s.g SET a = 55 WHERE id = 5",
        )
        wait_for(lambda: units_logged(two) == logged + 5, 30, two)
        one.link.release()
        settle([one, two])
        same_everywhere([one, two], "s.g")
        for site in (one, two):
            assert site.execute("SELECT id, a, u FROM s.g ORDER BY id") == [
                (1, 12, 1),
                (2, 21, 2),
                (4, 41, 44),
                (9, 31, 3),
            ]
            all_computed(site)


@pytest.mark.parametrize("change", ["DROP TABLE s.g", "ALTER TABLE s.g DROP COLUMN v, DROP COLUMN st, DROP COLUMN i"])
def test_rows_are_carried_whose_generated_columns_are_gone(servers: LendServers, change: str) -> None:
    """A daemon that was down while an application changed rows and then dropped the table, or the columns."""
    with held_back(servers(2), TABLE) as (one, two):
        one.execute("INSERT INTO s.g (id, a, u) VALUES (1, 10, 1), (2, 20, 2), (3, 30, 3)")
        settle([one, two])
        one.stop()
        one.execute(
            "UPDATE s.g SET a = a + 1 WHERE id < 3",
            "UPDATE s.g SET id = 9 WHERE id = 3",
            "DELETE FROM s.g WHERE id = 1",
            "INSERT INTO s.g (id, a, u) VALUES (4, 40, 4)",
            change,
            "CREATE TABLE s.later (id INT PRIMARY KEY)",
            "INSERT INTO s.later VALUES (1)",
        )
        one.start()
        settle([one, two])
        same_everywhere([one, two], "s.later")
        if change.startswith("ALTER"):
            same_everywhere([one, two], "s.g")
            assert two.execute("SELECT * FROM s.g ORDER BY id") == [(2, 21, 2), (4, 40, 4), (9, 30, 3)]
        else:
            assert two.execute("SHOW TABLES IN s") == [("later",)]


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE s.g SET a = 11",
        "UPDATE s.g SET a = 11, b = 'y'",
        "UPDATE s.g SET id = 2",
        "UPDATE s.g SET id = 2, a = 11",
        "DELETE FROM s.g",
    ],
)
def test_rows_of_another_row_image_are_refused_once_the_table_is_gone(
    server: Server, image: str, statement: str
) -> None:
    run(
        server,
        "CREATE DATABASE s",
        "CREATE TABLE s.g (id INT PRIMARY KEY, a INT, v INT AS (a + 1) VIRTUAL, b TEXT)",
        "INSERT INTO s.g (id, a, b) VALUES (1, 10, 'x')",
    )
    with server.connect() as connection:
        now = position_now(connection)
    run(server, f"SET SESSION binlog_row_image = {image}", statement, "DROP TABLE s.g")
    with capturing(server, CaptureState(now, (now.file, now.offset), 0)) as rig:
        rig.wait(lambda: rig.error is not None)
        assert "binlog_row_image was not FULL" in str(rig.error)
