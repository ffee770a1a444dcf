"""Preflight on real servers: each finding appears, its printed SQL is run, and it is gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pymysql
import pytest

from mysqlraft import config
from mysqlraft.config import Config
from mysqlraft.mysql.finding import Finding, Severity
from mysqlraft.mysql.preflight import Inspection, explain, inspect
from mysqlraft.mysql.preflight_grants import grant_statements
from mysqlraft.sandbox.servers import Engine, Server
from tests.binlog.tap import logs_generated_columns
from tests.harness.pool import ServerFactory

SETTINGS = """\
cluster:
  id: test
  sites:
    - {id: 1, name: tokyo, address: "127.0.0.1:7450"}
    - {id: 2, name: oslo, address: "127.0.0.1:7460"}
    - {id: 3, name: lima, address: "127.0.0.1:7470"}
site: oslo
data_dir: data
insecure: true
mysql: {user: root}
"""

SYSTEM = ("mysql", "sys", "performance_schema", "information_schema", "mysqlraft")


def settings(more: str = "") -> Config:
    return config.parse(SETTINGS + more, Path("test.yaml"))


def replicated(patterns: tuple[str, ...]) -> Callable[[str, str], bool]:
    return lambda schema, table: (
        schema not in SYSTEM and any(fnmatchcase(f"{schema}.{table}", pattern) for pattern in patterns)
    )


def look(connection: pymysql.Connection[Any], read: Config | None = None) -> Inspection:
    read = read or settings()
    return inspect(connection, read, replicated(read.replicate.include))


def found(inspection: Inspection, check: str) -> list[Finding]:
    findings = [finding for finding in inspection.findings if finding.check == check]
    for finding in findings:
        print("\n".join(explain(finding)))
    return findings


def run(connection: pymysql.Connection[Any], *statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def test_a_private_server_is_fit(server: Server) -> None:
    """The sandbox's servers lack nothing but what depends on the site."""
    with server.connect() as connection:
        inspection = look(connection)
        assert inspection.flavour == server.engine
        assert inspection.errors == ()
        for finding in inspection.findings:
            run(connection, *finding.sql)
        # What takes another start: who holds a lock on MySQL.
        assert [finding.check for finding in look(connection).findings if not finding.restart] == []


BOTH = ("mysql", "mariadb")


@pytest.mark.parametrize(
    ("engines", "name", "bad", "severity"),
    [
        (BOTH, "binlog_format", "STATEMENT", Severity.ERROR),
        (BOTH, "binlog_format", "MIXED", Severity.ERROR),
        (BOTH, "binlog_row_image", "MINIMAL", Severity.ERROR),
        (BOTH, "binlog_row_image", "NOBLOB", Severity.ERROR),
        (BOTH, "binlog_row_metadata", "MINIMAL", Severity.ERROR),
        (("mysql",), "binlog_row_value_options", "PARTIAL_JSON", Severity.ERROR),
        (("mysql",), "binlog_order_commits", "OFF", Severity.ERROR),
        (("mariadb",), "binlog_alter_two_phase", "ON", Severity.ERROR),
        (BOTH, "read_only", "ON", Severity.ERROR),
        (("mysql",), "super_read_only", "ON", Severity.ERROR),
        (("mariadb",), "slave_exec_mode", "IDEMPOTENT", Severity.ERROR),
        (("mariadb",), "slave_run_triggers_for_rbr", "YES", Severity.ERROR),
        (BOTH, "log_bin_trust_function_creators", "OFF", Severity.WARNING),
        (BOTH, "sync_binlog", "0", Severity.WARNING),
        (BOTH, "innodb_flush_log_at_trx_commit", "2", Severity.WARNING),
        (BOTH, "binlog_expire_logs_seconds", "3600", Severity.WARNING),
        (BOTH, "max_allowed_packet", "16777216", Severity.WARNING),
        (BOTH, "auto_increment_increment", "1", Severity.WARNING),
        (BOTH, "auto_increment_offset", "3", Severity.WARNING),
    ],
)
def test_settings(
    server: Server, engine: Engine, engines: tuple[str, ...], name: str, bad: str, severity: Severity
) -> None:
    with server.connect() as connection:
        quoted = bad if bad.isdigit() else f"'{bad}'"
        if engine not in engines:
            # The other server has no such variable, so there is nothing to find.
            assert not found(look(connection), name)
            return
        run(connection, f"SET GLOBAL {name} = {quoted}")
        (finding,) = found(look(connection), name)
        assert finding.severity is severity
        assert bad in finding.what
        assert finding.options[0].startswith(f"{name} =")
        run(connection, *finding.sql)
        assert not found(look(connection), name)


@pytest.mark.parametrize(
    ("check", "bad", "engines"),
    [
        ("log_bin", {"skip_log_bin": None}, ("mysql",)),
        ("binlog_do_db", {"binlog_do_db": "shop"}, BOTH),
        ("binlog_ignore_db", {"binlog_ignore_db": "shop"}, BOTH),
        ("server_id", {"server_id": "0"}, ("mysql",)),
        ("time_zone", {}, BOTH),
        ("gtid_mode", {}, ("mysql",)),
    ],
)
def test_settings_of_the_start(
    server_factory: ServerFactory,
    engine: Engine,
    check: str,
    bad: dict[str, str | None],
    engines: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What only an option of the server's start can make wrong."""
    if engine not in engines:
        return
    if check == "time_zone":
        monkeypatch.setenv("TZ", "Asia/Tokyo")
    server = server_factory(options=bad, gtid=check != "gtid_mode")
    with server.connect() as connection:
        (finding,) = found(look(connection), check)
        assert finding.restart or finding.sql
        assert finding.restart == (check in ("log_bin", "binlog_do_db", "binlog_ignore_db"))
        run(connection, *finding.sql)
        if not finding.restart:
            assert not found(look(connection), check)
    if check == "gtid_mode":
        assert finding.severity is Severity.INFO


def test_gtid_asked_for(server_factory: ServerFactory, engine: Engine) -> None:
    server = server_factory(gtid=False)
    read = settings("capture: {position: gtid}\n")
    with server.connect() as connection:
        findings = found(look(connection, read), "gtid_mode")
        if engine == "mariadb":
            assert not findings
            return
        assert findings[0].severity is Severity.ERROR
        run(connection, *findings[0].sql)
        assert not found(look(connection, read), "gtid_mode")


TABLES = [
    # check, statements, the table named, engines for which it is one
    ("primary_key", ["CREATE TABLE shop.t (a INT, b INT)"], "shop.t", BOTH),
    ("primary_key", ["CREATE TABLE shop.t (id INT, `Row_ID` INT, UNIQUE (id))"], "shop.t", BOTH),
    ("primary_key", ["CREATE TABLE shop.t (a INT NOT NULL, b INT NOT NULL, UNIQUE u (a, b))"], "shop.t", BOTH),
    ("primary_key", ["CREATE TABLE shop.t (a TEXT NOT NULL, UNIQUE u (a(10)))"], "shop.t", BOTH),
    ("primary_key", ["CREATE TABLE shop.`we``ird` (`a``b` INT NOT NULL UNIQUE)"], "shop.we`ird", BOTH),
    ("engine", ["CREATE TABLE shop.t (a INT PRIMARY KEY) ENGINE = MyISAM"], "shop.t", BOTH),
    (
        "functional_index",
        ["CREATE TABLE shop.t (a INT PRIMARY KEY, b VARCHAR(20), UNIQUE KEY low ((LOWER(b))))"],
        "shop.t",
        ("mysql",),
    ),
    *(
        (
            "generated_column",
            [
                "CREATE TABLE shop.plain (id INT PRIMARY KEY, at TIMESTAMP, d DATETIME, y INT AS (YEAR(d)) STORED)",
                "CREATE TABLE shop.computed (id INT PRIMARY KEY, s INT, d DATETIME AS (FROM_UNIXTIME(s)))",
                f"CREATE TABLE shop.t (id INT PRIMARY KEY, at TIMESTAMP, {columns})",
            ],
            "shop.t",
            ("mysql",),
        )
        for columns in (
            "day DATE AS (DATE(at)) STORED",
            "day DATE AS (DATE(at)), KEY days (id, day)",
            "day DATE AS (DATE(at)), y INT AS (YEAR(day)) STORED",
            "d DATETIME, other TIMESTAMP AS (d) STORED",
            "seconds INT, d DATETIME AS (FROM_UNIXTIME(seconds)) STORED",
            "seconds INT, d VARCHAR(9) AS (FROM_UNIXTIME(seconds, '%Y')), y INT AS (YEAR(d)), KEY (y)",
            "d DATETIME, utc DATETIME AS (CONVERT_TZ(d, 'SYSTEM', '+00:00')) STORED",
        )
    ),
    *(
        (
            "without_overlaps",
            [
                "CREATE TABLE shop.plain (id INT, a DATE NOT NULL, b DATE NOT NULL, PRIMARY KEY (id, b, a))",
                f"CREATE TABLE shop.t (id INT, a DATE, b DATE, PERIOD FOR p (a, b), {keys})",
            ],
            "shop.t",
            ("mariadb",),
        )
        for keys in (
            "PRIMARY KEY (id, p WITHOUT OVERLAPS)",
            "PRIMARY KEY (id), UNIQUE `u``u` (id, p WITHOUT OVERLAPS), UNIQUE u (id, a, b)",
        )
    ),
    *(
        (
            "cascade",
            [
                "CREATE TABLE shop.p (a INT, b INT, PRIMARY KEY (a, b))",
                "CREATE TABLE shop.t (id INT PRIMARY KEY, x INT, y INT,"
                f" CONSTRAINT parent FOREIGN KEY (x, y) REFERENCES shop.p (a, b) {action})",
            ],
            "shop.t",
            ("mariadb",),
        )
        for action in ("ON DELETE CASCADE", "ON UPDATE CASCADE", "ON DELETE SET NULL ON UPDATE CASCADE")
    ),
]


def test_unique_keys_with_generated_columns(server: Server) -> None:
    """MariaDB 11.8 does not log their values."""
    read = settings("replicate: {include: ['shop.*']}\n")
    with server.connect() as connection:
        run(connection, "CREATE DATABASE shop")
        run(connection, "CREATE TABLE shop.t (id INT PRIMARY KEY, a INT, g INT AS (a + 1), UNIQUE u (a, g), KEY (g))")
        findings = found(look(connection, read), "generated_key")
        assert len(findings) == (not logs_generated_columns(server))
        for finding in findings:
            assert finding.severity is Severity.ERROR
            assert finding.what.startswith("shop.t has the unique index u ")
            run(connection, *finding.sql)
        assert not found(look(connection, read), "generated_key")


@pytest.mark.parametrize(("check", "statements", "named", "engines"), TABLES)
def test_tables(
    server: Server, engine: Engine, check: str, statements: list[str], named: str, engines: tuple[str, ...]
) -> None:
    read = settings("replicate: {include: ['shop.*']}\n")
    with server.connect() as connection:
        run(connection, "CREATE DATABASE shop")
        if engine not in engines and check != "cascade":
            return  # it has none
        run(connection, *statements)
        findings = found(look(connection, read), check)
        if engine not in engines:
            assert not findings
            return
        (finding,) = findings
        assert finding.severity is Severity.ERROR
        assert finding.what.startswith(named + " ")
        run(connection, *finding.sql)
        assert not found(look(connection, read), check)
        # What is not replicated is not looked at.
        run(connection, "CREATE DATABASE other", "CREATE TABLE other.t (a INT) ENGINE = MyISAM")
        assert not look(connection, read).errors


@pytest.mark.parametrize("made", ["TABLE shop.t (id INT PRIMARY KEY) WITH SYSTEM VERSIONING", "SEQUENCE shop.t"])
def test_what_only_mariadb_has(server: Server, engine: Engine, made: str) -> None:
    if engine == "mysql":
        return
    with server.connect() as connection:
        run(connection, "CREATE DATABASE shop", f"CREATE {made}")
        (finding,) = found(look(connection), "table_type")
        assert finding.severity is Severity.ERROR
        assert "exclude it" in finding.why
        assert not found(look(connection, settings("replicate: {include: ['app.*']}\n")), "table_type")


def test_cascades_of_a_mysql_that_does_not_log_them(server: Server, engine: Engine) -> None:
    """innodb_native_foreign_keys can only be set at the start; the check itself is told so here."""
    if engine == "mariadb":
        return
    from mysqlraft.mysql.preflight_tables import check_tables

    with server.connect() as connection:
        run(
            connection,
            "CREATE DATABASE shop",
            "CREATE TABLE shop.p (a INT PRIMARY KEY)",
            "CREATE TABLE shop.t (id INT PRIMARY KEY, x INT, FOREIGN KEY (x) REFERENCES shop.p (a) ON DELETE CASCADE)",
        )

        def query(sql: str) -> Any:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()

        def cascades(variables: dict[str, str], version: tuple[int, ...]) -> list[Finding]:
            return [*check_tables(query, replicated(("shop.*",)), variables, version, mariadb=False)]

        assert not cascades({"innodb_native_foreign_keys": "OFF"}, (9, 7, 0))
        assert cascades({"innodb_native_foreign_keys": "ON"}, (9, 7, 0))
        (finding,) = cascades({}, (8, 4, 0))
        run(connection, *finding.sql)
        assert not cascades({}, (8, 4, 0))


@pytest.mark.parametrize(
    "replicate",
    ["{include: ['*.*']}", "{include: ['shop.*', 'stock.orders']}", "{include: ['shop_*.*', 's?op.*']}"],
)
def test_grants(server: Server, engine: Engine, replicate: str) -> None:
    read = settings(f"replicate: {replicate}\n")
    with server.connect() as root:
        run(root, "CREATE USER 'raft daemon'@'localhost' IDENTIFIED BY 'secret'")
        with server.connect(user="raft daemon", password="secret") as connection:
            findings = found(look(connection, read), "grants")
            assert findings
            severities = [finding.severity for finding in findings]
            assert severities[0] is Severity.ERROR
            assert severities.count(Severity.WARNING) >= 3, "definers, programs, transactions that keep apply waiting"
            for finding in findings:
                run(root, *finding.sql)
        with server.connect(user="raft daemon", password="secret") as connection:
            assert not found(look(connection, read), "grants")
            # One of them taken away again is missed, by its name.
            gone = "BINLOG_ADMIN" if engine == "mysql" else "BINLOG REPLAY"
            run(root, f"REVOKE {gone} ON *.* FROM 'raft daemon'@'localhost'")
            (finding,) = found(look(connection, read), "grants")
            assert finding.sql == (f"GRANT {gone} ON *.* TO 'raft daemon'@'localhost'",)


def test_the_readme_grants_what_is_printed() -> None:
    """And so does the account that the compose file makes."""
    root = Path(__file__).parents[2]
    read = settings("replicate: {include: ['*.*']}\n")
    for mariadb, name in ((False, "README.md"), (True, "README.md"), (False, "deploy/compose/account.sh")):
        text = " ".join((root / name).read_text().split())
        for statement in grant_statements(read, mariadb, "x"):
            for privilege in statement.removeprefix("GRANT ").partition(" ON ")[0].split(", "):
                assert re.search(rf"\b{privilege}\b", text), (name, privilege)


def test_what_somebody_elses_view_takes_to_be_made(server: Server, engine: Engine) -> None:
    """Without what preflight warns of, the statement fails; with it, and nothing more, it is done."""
    read = settings("replicate: {include: ['*.*']}\n")
    statement = "CREATE DEFINER = nobody@nowhere VIEW shop.v AS SELECT 1"
    with server.connect() as root:
        run(root, "CREATE DATABASE shop", "CREATE USER raft@localhost IDENTIFIED BY 'secret'")
        run(root, *grant_statements(read, engine == "mariadb", "raft@localhost"))
        with server.connect(user="raft", password="secret") as connection:
            assert not found(look(connection, read), "grants")
            run(connection, statement, "DROP VIEW shop.v")
        definers = "SET USER" if engine == "mariadb" else "SET_ANY_DEFINER, ALLOW_NONEXISTENT_DEFINER"
        run(root, f"REVOKE {definers} ON *.* FROM raft@localhost")
        with server.connect(user="raft", password="secret") as connection:
            (finding,) = found(look(connection, read), "grants")
            assert finding.severity is Severity.WARNING
            with pytest.raises(pymysql.err.OperationalError):
                run(connection, statement)
            run(root, *finding.sql)
        with server.connect(user="raft", password="secret") as connection:
            run(connection, statement)


def test_grants_by_a_role(server: Server, engine: Engine) -> None:
    read = settings("replicate: {include: ['shop.*']}\n")
    with server.connect() as root:
        run(root, "CREATE ROLE replicator", "CREATE USER raft@localhost IDENTIFIED BY 'secret'")
        role = "replicator" if engine == "mariadb" else "'replicator'@'%'"
        run(root, *grant_statements(read, engine == "mariadb", role), f"GRANT {role} TO raft@localhost")
        given = f"SET DEFAULT ROLE {role} {'FOR' if engine == 'mariadb' else 'TO'} raft@localhost"
        run(root, given)
        with server.connect(user="raft", password="secret") as connection:
            assert not found(look(connection, read), "grants")


def test_the_whole_as_json(server: Server) -> None:
    with server.connect() as connection:
        run(connection, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT)")
        inspection = look(connection)
        severities = [finding.severity for finding in inspection.findings]
        assert severities == sorted(severities, key=list(Severity).index), "errors come first"
        shown = [finding.to_dict() for finding in inspection.errors]
        assert shown[0]["sql"] == [
            "ALTER TABLE `shop`.`t` ADD COLUMN `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY"
        ]
