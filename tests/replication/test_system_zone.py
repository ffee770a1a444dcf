"""Statements of a session in the machine's time zone, where that has summer time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.zone_use import ZoneUse, zone_use
from mysqlraft.replication.entry import PayloadKind, decode
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import ServerFactory
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere
from tests.replication.test_ddl import definitions

pytestmark = pytest.mark.timeout(300)

SUMMER, WINTER = 1_782_900_000, 1_767_300_000
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
TABLE = (
    "CREATE TABLE s.t (id INT PRIMARY KEY, ts TIMESTAMP(3) NULL, d DATETIME, v VARCHAR(9), c TIMESTAMP NOT NULL DEFAULT"
    " CURRENT_TIMESTAMP)"
)
ROWS = (
    "INSERT INTO s.t (id, ts, d) VALUES (1, '2026-07-01 12:00:00.5', '2026-07-01 12:00:00'),"
    " (2, '2026-01-01 12:00:00', '2026-01-01 12:00:00'), (3, NULL, NULL)"
)


@contextmanager
def far_apart(make: ServerFactory, monkeypatch: pytest.MonkeyPatch, *tables: str) -> Iterator[list[SiteUnderTest]]:
    """A server in Berlin, and one in New York."""
    made = []
    for zone in (BERLIN, "EST5EDT,M3.2.0,M11.1.0"):
        monkeypatch.setenv("TZ", zone)
        made.append(make())
    with cluster(made, *(tables or (TABLE,))) as sites:
        yield sites


def same_rows(sites: list[SiteUnderTest], *tables: str) -> None:
    """As `same_everywhere`, in one time zone."""
    settle(sites)
    for table in tables:
        found = [site.execute("SET time_zone = '+00:00'", f"SELECT * FROM {table} ORDER BY 1") for site in sites]
        assert found[0] == found[1], table
        shown = [site.execute("SET time_zone = '+00:00'", f"SHOW CREATE TABLE {table}")[0][1] for site in sites]
        assert shown[0] == shown[1], table


@pytest.mark.parametrize("moment", [SUMMER, WINTER])
def test_rows_of_summer_and_winter_are_converted(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    with far_apart(server_factory, monkeypatch) as sites:
        one = sites[0]
        assert one.execute("SELECT @@time_zone") == [("SYSTEM",)]
        one.execute(ROWS)
        settle(sites)
        one.execute(f"SET timestamp = {moment}", "ALTER TABLE s.t MODIFY ts DATETIME(3)")
        same_rows(sites, "s.t")
        # No rows were met since: how the column was is not known.
        one.execute(f"SET timestamp = {moment}", "ALTER TABLE s.t CHANGE ts ts TIMESTAMP(3) NULL")
        same_rows(sites, "s.t")
        one.execute("INSERT INTO s.t (id, ts) VALUES (4, '2025-12-01')")
        one.execute(f"SET timestamp = {moment}", "ALTER TABLE s.t MODIFY d TIMESTAMP NULL, MODIFY ts VARCHAR(30)")
        same_rows(sites, "s.t")
        assert [str(row[0]) for row in one.execute("SELECT ts FROM s.t")][:2] == [
            "2026-07-01 12:00:00.500",
            "2026-01-01 12:00:00.000",
        ]


def carried(site: SiteUnderTest) -> list[bool]:
    """Of the statements in the log on s.t: whether rows travel with them."""
    found = []
    for index in site.log.of_kind(PayloadKind.DDL):
        ddl = decode(site.log.entries[index - 1].payload).ddl
        assert ddl is not None
        if ddl.text.startswith("ALTER TABLE s.t "):
            found.append(ddl.parts > 0)
    return found


def test_rows_travel_only_where_some_may_be_converted(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with far_apart(server_factory, monkeypatch) as sites:
        one = sites[0]
        statements = {
            "MODIFY v VARCHAR(50)": False,
            "MODIFY ts TIMESTAMP(6) NULL": False,
            "ADD x INT NOT NULL DEFAULT 7, ADD y DATETIME DEFAULT NOW()": False,
            "ADD INDEX (d)": False,
            "FORCE": False,
            "CHANGE d e DATE": False,
            "CHANGE e f TIMESTAMP NULL": True,
        }
        one.execute(ROWS)
        for number, statement in enumerate(statements):
            one.execute(f"INSERT INTO s.t (id) VALUES ({100 + number})", f"ALTER TABLE s.t {statement}")
        wait_for(lambda: len(carried(one)) == len(statements), 60, sites)
        one.execute("SET time_zone = '+02:00'", "ALTER TABLE s.t MODIFY f DATETIME")
        same_rows(sites, "s.t")
        assert carried(one) == [*statements.values(), False]


def test_literals_are_of_their_own_season(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    with far_apart(server_factory, monkeypatch) as sites:
        one, two = sites
        one.execute(ROWS)
        settle(sites)
        two.link.hold()
        two.execute("INSERT INTO s.t (id) VALUES (9)")  # lacks what the statements of the first site add
        wait_for(lambda: two.link.units_kept == 1, 30, sites)
        for moment in (SUMMER, WINTER):
            one.execute(
                f"SET timestamp = {moment}",
                f"ALTER TABLE s.t ADD a{moment} TIMESTAMP NOT NULL DEFAULT '2026-07-01 12:00:00' ON UPDATE NOW()",
                f"ALTER TABLE s.t ADD b{moment} TIMESTAMP NULL DEFAULT '2026-01-01 12:00:00', ADD INDEX (d)",
                f"ALTER TABLE s.t ADD n{moment} DATETIME NULL DEFAULT CURRENT_TIMESTAMP",
                f"CREATE TABLE s.made{moment} (id INT PRIMARY KEY, a TIMESTAMP NULL DEFAULT '2026-07-01 12:00:00',"
                " b DATETIME DEFAULT NOW())",
                f"ALTER TABLE s.made{moment} ALTER a SET DEFAULT '2026-01-01 12:00:00'",
                f"INSERT INTO s.made{moment} VALUES (1, DEFAULT, '2000-01-01')",
            )
        wait_for(lambda: len(one.log.of_kind(PayloadKind.DDL)) == 10, 60, sites)
        two.link.release()
        same_rows(sites, "s.t", f"s.made{SUMMER}", f"s.made{WINTER}")
        column = f"a{WINTER}"
        assert len(set(two.execute(f"SELECT {column} FROM s.t"))) == 1


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (
            "CREATE TABLE s.made (id INT PRIMARY KEY, a TIMESTAMP NULL DEFAULT '2026-07-01', b TIMESTAMP NULL DEFAULT"
            " '2026-01-01')",
            "+01:00, +02:00",
        ),
        ("ALTER TABLE s.k MODIFY ts DATETIME", "ts is in the primary key"),
        ("ALTER TABLE s.k ADD g VARCHAR(40) AS (CONCAT(ts, 'x')) STORED", "a generated column depend on it (ts"),
    ],
)
def test_what_no_offset_can_say_stops_what_the_site_sends(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, statement: str, why: str
) -> None:
    key = "CREATE TABLE s.k (id INT, ts TIMESTAMP, v INT, PRIMARY KEY (id, ts))"
    with far_apart(server_factory, monkeypatch, TABLE, key) as sites:
        one, two = sites
        one.execute("INSERT INTO s.k VALUES (1, '2026-01-01', 1)")
        settle(sites)
        one.execute(statement)
        wait_for(lambda: bool(one.crashed), 30, sites)
        reason = str(one.crashed[0])
        assert reason.startswith(statement)
        assert why in reason
        assert "SET time_zone" in reason
        print(reason)
        one.crashed.clear()
        two.execute("INSERT INTO s.t (id) VALUES (1)")
        wait_for(lambda: one.execute("SELECT id FROM s.t") == [(1,)], 30, sites)


def test_a_zone_without_summer_time_needs_no_rows(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "JST-9")
    tokyo = server_factory()
    monkeypatch.setenv("TZ", "UTC")
    with cluster([tokyo, server_factory()], TABLE) as sites:
        one = sites[0]
        one.execute(ROWS, "ALTER TABLE s.t MODIFY ts DATETIME(3), ADD g VARCHAR(40) AS (CONCAT(c, 'x')) STORED")
        settle(sites)
        assert carried(one) == [False]
        assert definitions(sites[0], "s.t") == definitions(sites[1], "s.t")
        found = [site.execute("SELECT id, ts, g IS NOT NULL FROM s.t") for site in sites]
        assert found[0] == found[1]
        same_everywhere(sites)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("CREATE TABLE t (a DATE DEFAULT '2026-01-01', b DATETIME DEFAULT NOW())", ZoneUse(["2026-01-01"])),
        ("CREATE TABLE t (a DATE DEFAULT \"2026-01-01 1:2:3\" COMMENT '2026-02-02')", ZoneUse(["2026-01-01 1:2:3"])),
        ("ALTER TABLE t ADD b DATETIME DEFAULT (NOW() + INTERVAL '1' DAY), ADD c INT DEFAULT 123", ZoneUse(clock=True)),
        ("ALTER TABLE t ADD a TIMESTAMP DEFAULT 20260701120000 ON UPDATE NOW()", ZoneUse(["20260701120000"])),
        ("ALTER TABLE t ALTER a SET DEFAULT TIMESTAMP'2026-07-01 12:00:00'", ZoneUse(["2026-07-01 12:00:00"])),
        (
            "ALTER TABLE t PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (PARTITION p VALUES LESS THAN"
            " (UNIX_TIMESTAMP('2026-07-01')), PARTITION q VALUES LESS THAN MAXVALUE)",
            ZoneUse(["2026-07-01"]),
        ),
        (
            "CREATE TABLE t (d DATE) PARTITION BY RANGE COLUMNS (d) (PARTITION p VALUES LESS THAN ('2026-07-01'))",
            ZoneUse(),
        ),
        ("ALTER TABLE t MODIFY COLUMN `ts` DATETIME, CHANGE d e VARCHAR(9)", ZoneUse(converted=["ts"])),
        ("ALTER TABLE t MODIFY IF EXISTS d TIMESTAMP, MODIFY ts TIMESTAMP(6) NULL", ZoneUse(converted=["d"])),
        ("ALTER TABLE t CHANGE ts d DATETIME, CHANGE d ts TIMESTAMP", ZoneUse(converted=["d", "ts"])),
        ("CREATE VIEW v AS SELECT TIMESTAMP'2026-07-01'", ZoneUse()),
        ("TRUNCATE TABLE t", ZoneUse()),
    ],
)
def test_what_a_statement_uses(statement: str, expected: ZoneUse) -> None:
    assert zone_use(statement, "s", frozenset({"ts"})) == expected


@pytest.mark.parametrize(("zone", "offset"), [("JST-9", 540), ("XST3:30", -210), ("UTC", 0)])
def test_zones(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, zone: str, offset: int) -> None:
    monkeypatch.setenv("TZ", zone)
    server = server_factory()
    source = ServerKeySource(server.connect)
    assert source.system_offset_at("1700000000.25") == offset * 60
    assert source.system_offsets_of(["2026-07-01", "2026-01-01 12:00:00.5", "20260101", "0000-00-00", "1-1"]) == {
        offset * 60
    }
    assert not source.system_zone_varies()
    source.close()


def test_a_zone_with_summer_time(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setenv("TZ", BERLIN)
    server = server_factory()
    source = ServerKeySource(server.connect)
    assert source.system_zone_varies()
    assert [source.system_offset_at(f"{moment}.5") for moment in (SUMMER, WINTER)] == [7200, 3600]
    assert source.system_offsets_of(["2026-07-01 12:00:00"]) == {7200}
    assert source.system_offsets_of(["2026-01-01", "2026-07-01"]) == {3600, 7200}
    # The hour that there is twice is taken for the one that the server takes it for.
    with server.connect() as connection, connection.cursor() as cursor:
        for local in ("2026-10-25 02:30:00", "2026-03-29 02:30:00"):
            cursor.execute(
                f"SELECT TIMESTAMPDIFF(SECOND, FROM_UNIXTIME(0), '{local}') - UNIX_TIMESTAMP('{local}') + 3600"
            )
            taken = {int(row[0]) for row in cursor.fetchall() if row[0] is not None}
            # MariaDB 11.8 has no such time where there is none.
            assert source.system_offsets_of([local]) == taken or not taken
    source.close()
