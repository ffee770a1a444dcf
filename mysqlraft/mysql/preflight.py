"""Everything that the daemon needs of its site's server, checked, each finding with the SQL that mends it.

The daemon runs these checks before it starts replication, and ``mysqlraft check`` at any time. They only read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pymysql

from mysqlraft.config import Config
from mysqlraft.mysql.finding import Finding, Severity, literal
from mysqlraft.mysql.preflight_grants import check_grants
from mysqlraft.mysql.preflight_tables import Query, Replicated, check_tables

__all__ = ["Finding", "Inspection", "Severity", "inspect"]

MIN_MYSQL = (8, 0)
MIN_MARIADB = (10, 6)
DAY = 86_400
MIN_PACKET = 64 << 20
MAX_CLOCK_DIFFERENCE = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the server is, and what is to be mended, errors first."""

    flavour: str
    version: str
    findings: tuple[Finding, ...]
    tables: frozenset[Finding] = frozenset()
    """Those of the findings that are about a table, which a statement mends: also one of another site, by apply."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def server_errors(self) -> tuple[Finding, ...]:
        """The errors that are about no table: its settings, its version, what the account may do."""
        return tuple(finding for finding in self.errors if finding not in self.tables)


def inspect(connection: pymysql.Connection[Any], config: Config, replicated: Replicated) -> Inspection:
    """Runs every check over a connection of the daemon's own account.

    ``replicated(schema, table)`` is the filter of the configuration.

    Raises:
        pymysql.err.MySQLError: the server cannot be asked.
    """

    query = partial(_query, connection)
    version, mariadb, numbers = _version(query)
    flavour = "mariadb" if mariadb else "mysql"
    if numbers[:2] < (MIN_MARIADB if mariadb else MIN_MYSQL):
        wanted = ".".join(map(str, MIN_MARIADB if mariadb else MIN_MYSQL))
        finding = Finding(
            "version",
            Severity.ERROR,
            f"{flavour} {version} is older than {wanted}",
            "its binlog does not carry what replication needs; upgrade the server",
        )
        return Inspection(flavour, version, (finding,))
    variables = {str(name): str(value) for name, value in query("SHOW GLOBAL VARIABLES")}
    server = _Server(query, variables, mariadb, config)
    tables = tuple(check_tables(query, replicated, variables, numbers, mariadb=mariadb))
    findings = [
        *server.settings(),
        *server.position(),
        *server.binlog_filters(),
        *server.clock(),
        *check_grants(query, config, mariadb, numbers),
        *tables,
    ]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Inspection(flavour, version, tuple(findings), frozenset(tables))


def table_errors(query: Query, replicated: Replicated) -> tuple[Finding, ...]:
    """What `inspect` finds wrong with the tables, as far as it keeps them from being replicated.

    Raises:
        pymysql.err.MySQLError: the server cannot be asked.
    """
    _, mariadb, numbers = _version(query)
    variables = {str(row[0]): str(row[1]) for row in query("SHOW GLOBAL VARIABLES LIKE 'innodb_native_foreign_keys'")}
    found = check_tables(query, replicated, variables, numbers, mariadb=mariadb)
    return tuple(finding for finding in found if finding.severity is Severity.ERROR)


def any_case(connection: pymysql.Connection[Any]) -> bool:
    """Whether names of schemas and tables that differ only in case are the same to the server.

    Raises:
        pymysql.err.MySQLError: the server cannot be asked.
    """
    return bool(_query(connection, "SELECT @@global.lower_case_table_names")[0][0])


def _query(connection: pymysql.Connection[Any], sql: str) -> Sequence[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _version(query: Query) -> tuple[str, bool, tuple[int, ...]]:
    """(as the server says it, whether it is MariaDB, numbers)."""
    version = str(query("SELECT VERSION()")[0][0])
    # MariaDB puts "5.5.5-" before its version for old clients.
    numbers = tuple(int(n) for n in re.findall(r"\d+", version.removeprefix("5.5.5-"))[:3])
    return version, "mariadb" in version.lower(), numbers


@dataclass(frozen=True, slots=True)
class _Server:
    """The checks of the server's settings."""

    query: Query
    variables: dict[str, str]
    mariadb: bool
    config: Config

    def wrong(
        self, name: str, value: str, why: str, severity: Severity = Severity.ERROR, check: str | None = None
    ) -> Finding:
        """A variable that can be set while the server runs."""
        quoted = value if value.isdigit() else literal(value)
        how = "GLOBAL" if self.mariadb else "PERSIST"
        return Finding(
            check or name,
            severity,
            f"{name} is {self.variables[name] or 'empty'}, not {value or 'empty'}",
            why,
            (f"SET {how} {name} = {quoted}",),
            (f"{name} = {value}",),
        )

    def settings(self) -> Iterator[Finding]:
        variables = self.variables
        if variables.get("log_bin") != "ON":
            yield Finding(
                "log_bin",
                Severity.ERROR,
                "the server writes no binlog",
                "the binlog is where local transactions are captured from",
                options=("log_bin = binlog",),
                restart=True,
            )
        later = "; sessions keep the old value until they reconnect"
        for name, allowed, severity, why in (
            ("binlog_format", "ROW", Severity.ERROR, "statements cannot be certified or applied exactly" + later),
            ("binlog_row_image", "FULL", Severity.ERROR, "every row key is looked at, changed or not" + later),
            ("binlog_row_metadata", "FULL", Severity.ERROR, "key columns, signedness and collations are read from it"),
            ("binlog_row_value_options", "", Severity.ERROR, "partial JSON has no full image of the row" + later),
            ("binlog_order_commits", "ON", Severity.ERROR, "the binlog must hold transactions in commit order"),
            (
                "binlog_alter_two_phase",
                "OFF",
                Severity.ERROR,
                "a statement in two binlog events cannot be given one place in the log",
            ),
            ("read_only", "OFF", Severity.ERROR, "the site's server is written to, by applications and by the daemon"),
            ("super_read_only", "OFF", Severity.ERROR, "the daemon writes what other sites committed"),
            (
                # MySQL's is a matter of its own replication.
                "slave_exec_mode" if self.mariadb else "",
                "STRICT",
                Severity.ERROR,
                "a row that is there already, or missing, has to be noticed where another site's rows are written",
            ),
            (
                "slave_run_triggers_for_rbr",
                "NO",
                Severity.ERROR,
                "a trigger's changes come from its origin; a site that ran it again would differ from the others",
            ),
            (
                "log_bin_trust_function_creators",
                "ON",
                Severity.WARNING,
                "the daemon's account may not create the triggers and functions that another site created",
            ),
            (
                "default_storage_engine",
                "InnoDB",
                Severity.WARNING,
                "a CREATE TABLE that names no engine makes tables that cannot be replicated" + later,
            ),
            (
                # MySQL's and MariaDB's name for the same.
                "innodb_force_primary_key" if self.mariadb else "sql_require_primary_key",
                "ON",
                Severity.INFO,
                "a table without a primary key can be made, and keeps what this site writes from the others; the "
                "server can refuse it from the start",
            ),
            (
                "sync_binlog",
                "1",
                Severity.WARNING,
                "after a crash of the machine the server may have lost a transaction that is in the history already: "
                "this site would then differ from the others",
            ),
            (
                "innodb_flush_log_at_trx_commit",
                "1",
                Severity.WARNING,
                "after a crash of the machine the server may have lost transactions that were committed",
            ),
        ):
            value = variables.get(name)
            # The server says 1 or ON for the same thing, depending on the variable and its version.
            if value is not None and value.upper() not in (
                allowed.upper(),
                {"OFF": "0", "ON": "1"}.get(allowed, allowed),
            ):
                yield self.wrong(name, allowed, why, severity)
        if not self.mariadb and variables.get("performance_schema") == "OFF":
            yield Finding(
                "performance_schema",
                Severity.INFO,
                "performance_schema is OFF",
                "whose row apply waits for cannot be told, so no transaction yields to it (apply.yield_after)",
                options=("performance_schema = ON",),
                restart=True,
            )
        if variables["server_id"] == "0":
            why = "the server refuses a connection that reads the binlog; any number that no other server has will do"
            yield self.wrong("server_id", str(self.config.own.id), why)
        if variables["lower_case_table_names"] != "0":
            yield Finding(
                "lower_case_table_names",
                Severity.INFO,
                f"lower_case_table_names is {variables['lower_case_table_names']}",
                "names that differ only in case are the same table here; they must be so at every site: give each "
                "server the same setting before it has data (`mysqlraft status` names a site that differs)",
            )
        retention = int(variables.get("binlog_expire_logs_seconds", "0"))
        if 0 < retention < DAY:
            why = (
                "a daemon that is down for longer than this finds its place in the binlog gone; 3 days are a good start"
            )
            yield self.wrong("binlog_expire_logs_seconds", str(3 * DAY), why, Severity.WARNING)
        if int(variables["max_allowed_packet"]) < MIN_PACKET:
            why = (
                "a row that another site accepted may need up to one and a half times its size here, or this site "
                "stops at it; use the same value at every site"
            )
            yield self.wrong("max_allowed_packet", str(MIN_PACKET), why, Severity.WARNING)
        yield from self.auto_increment()

    def auto_increment(self) -> Iterator[Finding]:
        sites = [site.id for site in self.config.cluster.sites]
        if len(sites) < 2:
            return
        own = self.config.own.id
        increment = max(sites)
        why = (
            "two sites can generate the same AUTO_INCREMENT value, which is a conflict; with an increment of "
            f"{increment} and its site id as offset each site has values of its own (sessions keep the old ones until "
            "they reconnect)"
        )
        if int(self.variables["auto_increment_increment"]) < increment:
            yield self.wrong("auto_increment_increment", str(increment), why, Severity.WARNING)
        if int(self.variables["auto_increment_offset"]) != own:
            yield self.wrong("auto_increment_offset", str(own), why, Severity.WARNING)

    def position(self) -> Iterator[Finding]:
        mode = self.variables.get("gtid_mode", "ON")
        if mode == "ON":
            return
        steps = [f"gtid_mode = '{step}'" for step in ("OFF_PERMISSIVE", "ON_PERMISSIVE", "ON")]
        current = {"OFF": 0, "OFF_PERMISSIVE": 1, "ON_PERMISSIVE": 2}.get(mode, 0)
        sql = ("SET PERSIST enforce_gtid_consistency = 'ON'", *(f"SET PERSIST {step}" for step in steps[current:]))
        if self.config.capture.position == "gtid":
            severity, why = Severity.ERROR, "capture.position is gtid; `auto` or `file` do without"
        else:
            severity, why = Severity.INFO, "capture names its place by binlog file and offset, which is as good here"
        yield Finding(
            "gtid_mode",
            severity,
            f"gtid_mode is {mode}",
            why,
            sql,
            ("enforce_gtid_consistency = ON", "gtid_mode = ON"),
        )

    def binlog_filters(self) -> Iterator[Finding]:
        if self.variables.get("log_bin") != "ON":
            return
        newer = not self.mariadb and "binlog_transaction_dependency_tracking" not in self.variables
        try:
            rows = self.query("SHOW BINARY LOG STATUS" if newer else "SHOW MASTER STATUS")
        except pymysql.err.OperationalError as error:
            if error.args[0] in (1227, 1142):  # access denied: a finding of the grants
                return
            raise
        for name, value in zip(("binlog_do_db", "binlog_ignore_db"), rows[0][2:4], strict=True):
            if value:
                yield Finding(
                    name,
                    Severity.ERROR,
                    f"{name} is {value}",
                    "what the server leaves out of its binlog cannot be captured; use `replicate` in the configuration",
                    options=(f"# remove every {name} line",),
                    restart=True,
                )

    def clock(self) -> Iterator[Finding]:
        before = time.time()
        server = float(self.query("SELECT UNIX_TIMESTAMP(NOW(6))")[0][0])
        after = time.time()
        away = max(before - server, server - after, 0.0)
        if away > MAX_CLOCK_DIFFERENCE:
            yield Finding(
                "clock",
                Severity.WARNING,
                f"the server's clock and this machine's are {away:.1f} s apart",
                "lag in seconds is shown wrong by as much; run NTP on both (timedatectl set-ntp true)",
            )
        zone = self.variables["time_zone"]
        if zone == "SYSTEM" and self.variables["system_time_zone"] not in ("UTC", "GMT", "Etc/UTC"):
            why = (
                "where each site has its machine's time zone, NOW() in a DATETIME column means another instant at "
                "each; look first at applications that rely on local time"
            )
            yield self.wrong("time_zone", "+00:00", why, Severity.WARNING)


def explain(finding: Finding) -> Iterator[str]:
    """The finding for people, in lines."""
    yield f"{finding.severity.value}: {finding.what}"
    yield f"    {finding.why}"
    for statement in finding.sql:
        yield f"    {statement};"
    if finding.options:
        first = "restart the server with" if finding.restart else "so that it lasts, also" if finding.sql else "set"
        yield f"    {first}, in [mysqld]: {'; '.join(finding.options)}"
