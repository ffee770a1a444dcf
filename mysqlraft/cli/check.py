"""mysqlraft check"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import pymysql

from mysqlraft import config
from mysqlraft.cli import server
from mysqlraft.cli.errors import EXIT_NO, EXIT_UNREACHABLE, CommandError
from mysqlraft.config import Config
from mysqlraft.mysql import account
from mysqlraft.mysql.connection import SessionLost, StatementError, version_numbers
from mysqlraft.mysql.finding import Finding, literal
from mysqlraft.mysql.preflight import Inspection, any_case, explain, inspect
from mysqlraft.mysql.preflight_grants import grant_statements
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.trial import tried

HELP = "is the site's server fit to be replicated? If not, the SQL that makes it so"
DESCRIPTION = """\
Runs every preflight check against the site's server, with the daemon's own account, and prints for each finding what is
wrong, why it matters and the exact SQL that mends it, and the option for my.cnf. It also tries what apply will have to
do: it makes a table, a view, a trigger and the like in the daemon's own schema, outside the binlog, and drops them.
Errors keep replication from starting, warnings do not; once a site has applied anything, errors about a table keep only
its own writes back.

  mysqlraft check --config tokyo.yaml
  mysqlraft check --config tokyo.yaml --json
  mysqlraft check --config tokyo.yaml --sql | mysql -u root -p     run all of it
  mysqlraft check --config tokyo.yaml --grants mysql               how to create the account, without asking a server

exit status: 0 no errors; 1 errors were found; 3 the server cannot be asked
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--sql", action="store_true", help="print only the SQL that mends the findings")
    form.add_argument("--grants", choices=("mysql", "mariadb"), help="print the SQL that creates the account, and stop")
    parser.add_argument(
        "--from",
        dest="host",
        default="localhost",
        metavar="HOST",
        help="with --grants: where the daemon runs (localhost)",
    )


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    if settings.own.witness:
        fit = json.dumps({"server": None, "fit": True, "findings": []}, indent=2)
        print(fit if args.json else f"-- {settings.site} is a witness: it has no server to check")
        return 0
    if args.grants:
        print("\n".join(create_account(settings, args.grants == "mariadb", args.host)))
        return 0
    connection = server.connect(settings.server)
    try:
        filters = settings.replicate
        replicated = TableFilter(filters.include, filters.exclude, any_case=any_case(connection))
        inspection = inspect(connection, settings, replicated)
    except pymysql.err.MySQLError as error:
        raise CommandError(
            f"the server at {account.where(settings.server)} did not answer: {error.args[-1]}", EXIT_UNREACHABLE
        ) from None
    finally:
        connection.close()
    findings, errors = inspection.findings, inspection.errors
    if not inspection.server_errors:
        findings = (*findings, *_tried(settings, inspection))
    if args.json:
        shown = {
            "server": f"{inspection.flavour} {inspection.version}",
            "fit": not errors,
            "findings": [finding.to_dict() for finding in findings],
        }
        print(json.dumps(shown, indent=2))
    elif args.sql:
        for statement in dict.fromkeys(statement for finding in findings for statement in finding.sql):
            print(f"{statement};")
    else:
        print(f"{inspection.flavour} {inspection.version} at {account.where(settings.server)}")
        for finding in findings:
            print("\n".join(["", *explain(finding)]))
        print()
        others = f", {len(findings) - len(errors)} others" if len(findings) > len(errors) else ""
        print(
            "fit to be replicated" + others if not errors else f"not fit to be replicated: {len(errors)} errors{others}"
        )
    return EXIT_NO if errors else 0


def _tried(settings: Config, inspection: Inspection) -> list[Finding]:
    """What the account cannot do, though nothing on the list is missing."""
    mariadb = inspection.flavour == "mariadb"
    try:
        with closing(server.connect(settings.server)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT CURRENT_USER()")
            user, _, host = str((cursor.fetchone() or ("",))[0]).rpartition("@")
        grants = grant_statements(
            settings, mariadb, f"{literal(user)}@{literal(host)}", version_numbers(inspection.version)
        )
        return list(tried(lambda: server.connect(settings.server), grants))
    except (pymysql.err.MySQLError, SessionLost, StatementError) as error:
        raise CommandError(
            f"the server at {account.where(settings.server)}: what apply does cannot be tried: {error}",
            EXIT_UNREACHABLE,
        ) from None


def create_account(settings: Config, mariadb: bool, host: str) -> list[str]:
    """The statements that create the daemon's account with all that it needs."""
    who = f"{literal(settings.server.user)}@{literal(host)}"
    statements = [f"CREATE USER {who} IDENTIFIED BY 'choose a password'", *grant_statements(settings, mariadb, who)]
    return [f"{statement};" for statement in statements]
