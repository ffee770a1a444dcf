"""What apply will have to do, tried with the daemon's own account: statements of every kind, and their definers.

A list of privileges says what somebody thought of. Here the server says what it lets the account do. The statements run
as apply runs another site's, but in the daemon's own schema and outside the binlog, and what they make is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from mysqlraft.mysql.connection import Connect, Session, SessionLost, StatementError
from mysqlraft.mysql.finding import Finding, Severity
from mysqlraft.mysql.schema import CREATE_SCHEMA, SCHEMA
from mysqlraft.replication import ddl
from mysqlraft.replication.apply_session import setup
from mysqlraft.replication.entry import Ddl

# What for -> statements, each of which needs those before it. {n} begins the name of everything that they make;
# {somebody} is an account with privileges of its own, {nobody} one that does not exist.
_KINDS: dict[str, tuple[str, ...]] = {
    "tables and their indexes": (
        "CREATE TABLE {n}t (id INT PRIMARY KEY, v VARCHAR(9) DEFAULT '\xe9')",
        "ALTER TABLE {n}t ADD COLUMN w INT, ADD INDEX (w)",
        "CREATE TABLE {n}c (id INT PRIMARY KEY, FOREIGN KEY (id) REFERENCES {n}t (id))",
        "CREATE UNIQUE INDEX i ON {n}t (v)",
        "DROP TABLE {n}c",
        "TRUNCATE TABLE {n}t",
        "RENAME TABLE {n}t TO {n}r",
        "RENAME TABLE {n}r TO {n}t",
    ),
    "functions and procedures": (
        "CREATE DEFINER={somebody} FUNCTION {n}f() RETURNS INT MODIFIES SQL DATA SQL SECURITY INVOKER"
        " BEGIN DELETE FROM {n}t; RETURN 1; END",
        "ALTER FUNCTION {n}f COMMENT 'tried'",
        "CREATE DEFINER={nobody} PROCEDURE {n}p() DELETE FROM {n}t",
        "ALTER PROCEDURE {n}p COMMENT 'tried'",
        "CREATE VIEW {n}u AS SELECT {n}f() AS one",
    ),
    "views": (
        "CREATE DEFINER={somebody} SQL SECURITY DEFINER VIEW {n}v AS SELECT id FROM {n}t",
        "ALTER DEFINER={nobody} SQL SECURITY DEFINER VIEW {n}v AS SELECT id, v FROM {n}t",
    ),
    "triggers": (
        "CREATE DEFINER={somebody} TRIGGER {n}s BEFORE INSERT ON {n}t FOR EACH ROW SET @a = NEW.id",
        "DROP TRIGGER {n}s",
        "CREATE DEFINER={nobody} TRIGGER {n}s BEFORE INSERT ON {n}t FOR EACH ROW SET @a = NEW.id",
    ),
    "events": (
        "CREATE DEFINER={somebody} EVENT {n}e ON SCHEDULE EVERY 1 DAY DISABLE ON SLAVE DO SET @a = 1",
        "ALTER DEFINER={nobody} EVENT {n}e COMMENT 'tried'",
    ),
}
_DROPS = (
    *("DROP EVENT IF EXISTS {n}e", "DROP TRIGGER IF EXISTS {n}s", "DROP VIEW IF EXISTS {n}v, {n}u"),
    *("DROP PROCEDURE IF EXISTS {n}p", "DROP FUNCTION IF EXISTS {n}f", "DROP TABLE IF EXISTS {n}c, {n}r, {n}t"),
)
_CONTEXT = {
    "sql_mode": 0,
    "character_set_client": 8,
    "collation_connection": 8,
    "collation_server": 8,
    "foreign_key_checks": 1,
    "unique_checks": 0,
    "sql_auto_is_null": 0,
    "explicit_defaults_for_timestamp": 0,
    "lc_time_names": 0,
    "time_zone": "+01:00",
    "timestamp": "1700000000.5",
}
"""That of a session in latin1."""
_TRUST = (1418, 1419)
"""Errors of a server that takes triggers and functions from administrators only, because it writes a binlog."""


def tried(connect: Connect, grants: Sequence[str]) -> Iterator[Finding]:
    """What the account cannot do. ``grants``: the statements that would let it.

    Raises:
        SessionLost, StatementError: the server cannot be reached, or does not let the account begin.
    """
    session = Session(connect)
    names = {
        "n": f"{SCHEMA}.tried_{session.id}_",
        "somebody": f"`{'mariadb' if session.mariadb else 'mysql'}.sys`@`localhost`",
        "nobody": "`nobody`@`nowhere.invalid`",
    }
    try:
        setup(session)
        session.run([b"SET SESSION sql_log_bin = 0"])
        session.run([CREATE_SCHEMA.encode()])
        for kind, statements in _KINDS.items():
            finding = _try(session, kind, [statement.format(**names) for statement in statements], grants)
            if finding is not None:
                yield finding
    finally:
        for statement in _DROPS:
            with suppress(StatementError, SessionLost):
                session.run([statement.format(**names).encode()])
        session.close()


def _try(session: Session, kind: str, statements: Sequence[str], grants: Sequence[str]) -> Finding | None:
    for statement in statements:
        try:
            ddl.run(session, Ddl([], statement.encode("latin-1"), SCHEMA, dict(_CONTEXT), 0))
        except StatementError as error:
            trust = error.code in _TRUST
            return Finding(
                "tried",
                Severity.WARNING,
                f"the daemon's account cannot do what another site may do with {kind}: {error} ({statement})",
                "apply stops here at such a statement",
                (f"SET {'GLOBAL' if session.mariadb else 'PERSIST'} log_bin_trust_function_creators = 'ON'",)
                if trust
                else tuple(grants),
                ("log_bin_trust_function_creators = ON",) if trust else (),
            )
        finally:
            setup(session)
    return None
