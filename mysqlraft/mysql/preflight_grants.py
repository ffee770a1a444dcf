"""Preflight: may the daemon's account do what it has to?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mysqlraft.config import Config
from mysqlraft.mysql.finding import Finding, Severity, identifier, literal

OWN_SCHEMA = "mysqlraft"

# Privilege -> what it is for.
_GLOBAL_MYSQL = {
    "REPLICATION SLAVE": "to read the binlog",
    "REPLICATION CLIENT": "to ask for the binlog's position",
    "BINLOG_ADMIN": "to replay row events",
    "SESSION_VARIABLES_ADMIN": "to replay row events and statements under their origin's settings",
    "XA_RECOVER_ADMIN": "to see that no prepared XA transaction is open when the site joins",
}
_GLOBAL_MARIADB = {
    "REPLICATION SLAVE": "to read the binlog",
    "BINLOG MONITOR": "to ask for the binlog's position",
    "BINLOG REPLAY": "to replay row events",
    "BINLOG ADMIN": "to keep the text of what it replays out of the binlog",
}
# What a view, trigger or routine that somebody else has made takes to be made here, under that definer.
_DEFINER_MYSQL = ("SET_ANY_DEFINER", "ALLOW_NONEXISTENT_DEFINER")
_DEFINER_MYSQL_8_0 = ("SET_USER_ID",)
# Only who has it may name a definer who has it: an administrator.
_DEFINER_SYSTEM = ("SYSTEM_USER",)
_SYSTEM_USERS = (8, 0, 16)
_DEFINER_MARIADB = ("SET USER",)
_DEFINERS_SPLIT = (8, 2)
"""The first MySQL that has two privileges instead of SET_USER_ID."""

# What it takes to see who keeps apply waiting for a row, and to end that connection (apply.yield_after).
_YIELD_MYSQL = {"*.*": ("PROCESS", "CONNECTION_ADMIN"), "`performance_schema`.*": ("SELECT",)}
_YIELD_MARIADB = {"*.*": ("PROCESS", "CONNECTION ADMIN")}

_DAM = "LOCK TABLES"
"""What it takes to insert a row where sessions of the application lock the gap one after the other."""

_ROWS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_SCHEMA = ("CREATE", "DROP", "ALTER", "INDEX", "REFERENCES", "CREATE VIEW", "SHOW VIEW", "TRIGGER")
_PROGRAMS = ("CREATE ROUTINE", "ALTER ROUTINE", "EXECUTE", "EVENT")
"""For functions, procedures and events that somebody makes at another site."""

# What a server prints for privileges that go by two names.
_SYNONYMS = {"REPLICATION CLIENT": "BINLOG MONITOR", "ALL": "ALL PRIVILEGES"}


def wanted_privileges(config: Config, mariadb: bool) -> dict[str, tuple[str, ...]]:
    """Scope, as SQL writes it (``*.*``, `` `shop`.* ``) -> the privileges needed there."""
    wanted = {"*.*": tuple(_GLOBAL_MARIADB if mariadb else _GLOBAL_MYSQL)}
    for scope in _replicated(config):
        wanted[scope] = (*wanted.get(scope, ()), *_ROWS, *_SCHEMA)
    if "*.*" not in _replicated(config):
        wanted.setdefault(_scope(OWN_SCHEMA), (*_ROWS, "CREATE", "DROP", "ALTER", "INDEX"))
    return {scope: tuple(dict.fromkeys(privileges)) for scope, privileges in wanted.items()}


def _replicated(config: Config) -> list[str]:
    """The scopes of what is replicated."""
    return list(dict.fromkeys(_scope(pattern.partition(".")[0]) for pattern in config.replicate.include))


def definer_privileges(mariadb: bool, version: tuple[int, ...]) -> tuple[str, ...]:
    """What it takes to run statements with a DEFINER who is somebody else, or not known at this site."""
    if mariadb:
        return _DEFINER_MARIADB
    definers = _DEFINER_MYSQL if version >= _DEFINERS_SPLIT else _DEFINER_MYSQL_8_0
    return (*definers, *_DEFINER_SYSTEM) if version >= _SYSTEM_USERS else definers


def grant_statements(
    config: Config, mariadb: bool, account: str, version: tuple[int, ...] = _DEFINERS_SPLIT
) -> tuple[str, ...]:
    """Everything that an account (quoted, 'user'@'host') needs. ``version``: of the server, if it is known."""
    wanted = wanted_privileges(config, mariadb)
    wanted["*.*"] = (*wanted["*.*"], *definer_privileges(mariadb, version))
    for scope in _replicated(config):
        wanted[scope] = (*wanted[scope], *_PROGRAMS, _DAM)
    if _scope(OWN_SCHEMA) in wanted:
        # Where `mysqlraft check` tries what apply will have to do elsewhere.
        wanted[_scope(OWN_SCHEMA)] = (*_ROWS, *_SCHEMA, *_PROGRAMS)
    for scope, privileges in (_YIELD_MARIADB if mariadb else _YIELD_MYSQL).items():
        if not set(privileges) <= set(wanted["*.*"]):
            wanted[scope] = (*wanted.get(scope, ()), *privileges)
    return tuple(f"GRANT {', '.join(privileges)} ON {scope} TO {account}" for scope, privileges in wanted.items())


def check_grants(
    query: Callable[[str], Sequence[tuple[Any, ...]]], config: Config, mariadb: bool, version: tuple[int, ...]
) -> Iterator[Finding]:
    user, _, host = str(query("SELECT CURRENT_USER()")[0][0]).rpartition("@")
    account = f"{literal(user)}@{literal(host)}"
    held = _held(query, mariadb)
    reasons = _GLOBAL_MARIADB if mariadb else _GLOBAL_MYSQL
    for scope, privileges in wanted_privileges(config, mariadb).items():
        missing = [one for one in privileges if not _covered(one, scope, held)]
        if missing:
            whys = [f"{one} {reasons[one]}" for one in missing if one in reasons]
            if len(whys) < len(missing):
                whys.append("the rest to apply what other sites did")
            yield Finding(
                "grants",
                Severity.ERROR,
                f"{account} lacks {', '.join(missing)} on {scope}",
                "; ".join(whys).replace("the rest ", "" if len(whys) == 1 else "the rest "),
                (f"GRANT {', '.join(missing)} ON {scope} TO {account}",),
            )
    for scope in _replicated(config):
        if missing := [one for one in _PROGRAMS if not _covered(one, scope, held)]:
            yield Finding(
                "grants",
                Severity.WARNING,
                f"{account} lacks {', '.join(missing)} on {scope}",
                "replication stops here when somebody creates a function, procedure or event at another site, or a "
                "view that calls one",
                (f"GRANT {', '.join(missing)} ON {scope} TO {account}",),
            )
        if not _covered(_DAM, scope, held):
            yield Finding(
                "grants",
                Severity.WARNING,
                f"{account} lacks {_DAM} on {scope}",
                "transactions of the application that lock the gap between two rows, one after the other, keep a row "
                "out that apply has to insert there",
                (f"GRANT {_DAM} ON {scope} TO {account}",),
            )
    if missing := [one for one in definer_privileges(mariadb, version) if not _covered(one, "*.*", held)]:
        yield Finding(
            "grants",
            Severity.WARNING,
            f"{account} lacks {', '.join(missing)}",
            "replication stops here when somebody creates a view, trigger or routine at another site: it cannot be "
            "given its definer",
            (f"GRANT {', '.join(missing)} ON *.* TO {account}",),
        )
    if config.apply.yield_after is not None:
        for scope, privileges in (_YIELD_MARIADB if mariadb else _YIELD_MYSQL).items():
            if missing := [one for one in privileges if not _covered(one, scope, held)]:
                yield Finding(
                    "grants",
                    Severity.WARNING,
                    f"{account} lacks {', '.join(missing)} on {scope}",
                    "it cannot end the application's transaction that keeps a row from apply for longer than "
                    "apply.yield_after: apply waits for as long as that takes",
                    (f"GRANT {', '.join(missing)} ON {scope} TO {account}",),
                )


def _scope(schema: str) -> str:
    """A schema pattern of the configuration, as GRANT writes it."""
    if schema.strip("*") == "":
        return "*.*"
    if "*" in schema or "?" in schema:
        # Only in a pattern are % and _ wildcards that have to be escaped; GRANT takes a plain name as it is.
        schema = schema.replace("_", "\\_").replace("%", "\\%").replace("*", "%").replace("?", "_")
    return identifier(schema) + ".*"


_GRANT = re.compile(r"GRANT (.+?) ON (\*\.\*|`(?:[^`]|``)*`\.\*) TO ")


def _held(query: Callable[[str], Sequence[tuple[Any, ...]]], mariadb: bool) -> dict[str, set[str]]:
    """Scope -> privileges, those of the active roles included."""
    statement = "SHOW GRANTS"
    if not mariadb and (roles := str(query("SELECT CURRENT_ROLE()")[0][0])) != "NONE":
        statement = f"SHOW GRANTS FOR CURRENT_USER() USING {roles}"
    held: dict[str, set[str]] = {}
    for (line,) in query(statement):
        if match := _GRANT.match(line):
            privileges = {one.strip() for one in match[1].split(",")}
            held.setdefault(match[2], set()).update(_SYNONYMS.get(one, one) for one in privileges)
    return held


def _covered(privilege: str, scope: str, held: dict[str, set[str]]) -> bool:
    privilege = _SYNONYMS.get(privilege, privilege)
    return any(
        (privilege in privileges or "ALL PRIVILEGES" in privileges) and _includes(granted, scope)
        for granted, privileges in held.items()
    )


def _includes(granted: str, scope: str) -> bool:
    """Whether what is granted on one scope holds on the other."""
    if granted in ("*.*", scope):
        return True
    if scope == "*.*":
        return False
    pattern = "".join(
        ".*" if one == "%" else "." if one == "_" else re.escape(one.removeprefix("\\"))
        for one in re.findall(r"\\.|.", granted, re.DOTALL)
    )
    return re.fullmatch(pattern, scope, re.DOTALL) is not None
