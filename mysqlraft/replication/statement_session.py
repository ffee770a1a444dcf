"""Runs another site's statement in a session like the one that it ran in.

Everything of our own is sent first, in the session's own character set: the default schema by a command that only holds
its name, then one SET for all variables. From there on the server reads what it gets in the statement's character set,
and gets the statement, alone, byte for byte as it is in the binlog of its origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mysqlraft.binlog.collations import Collations
from mysqlraft.binlog.session_context import Context
from mysqlraft.mysql.connection import Session, StatementError, version_numbers
from mysqlraft.mysql.schema import quoted

_UNKNOWN_COLLATION = 1273
_UNKNOWN_VARIABLE = 1193
_NUMBER = re.compile(r"\d+(\.\d+)?")

# What the binlog does not carry, and how a statement does the same as at its origin, whatever was set there: it ran
# there, so a check that it passed may be left out; and tables that are not InnoDB's are not replicated.
_ALWAYS = {"default_storage_engine": "InnoDB", "innodb_strict_mode": 0}
_ALWAYS_MYSQL = {(8, 0, 30): {"sql_generate_invisible_primary_key": 0}, (8, 4): {"restrict_fk_on_non_standard_key": 0}}
"""By the first MySQL that has them."""
_COMMON = {8: "latin1", 33: "utf8mb3"} | dict.fromkeys((45, 46, 224, 255), "utf8mb4")
"""The character sets of most clients, by collation: the server need not be asked."""
_TIMESTAMP_DEFAULTS: dict[tuple[int, ...], int] = {(10, 6): 9, (10, 7): 5, (10, 8): 4, (10, 9): 2}
"""The first MariaDB of each series whose binlog says what ``explicit_defaults_for_timestamp`` was, and whose sessions
may set it. Before, it is the server's own alone."""
_COLLATION_MAPS = (11, 2)
"""The first MariaDB that has ``character_set_collations``; an empty map is not in its binlog."""


def prepare(session: Session, schema: str, context: Context) -> None:
    """Makes the session like the statement's; "" for no default schema. `apply_session.setup` is due afterwards.

    Raises:
        StatementError: this server has no such schema, collation or variable.
        SessionLost: the connection broke.
    """
    if schema:
        session.use(schema)
    session.run([f"SET SESSION {', '.join(_settings(session, context))}".encode()])


def _settings(session: Session, context: Context) -> Iterator[str]:
    numbers = version_numbers(session.version)
    wanted: dict[str, object] = dict(_ALWAYS)
    for first, variables in _ALWAYS_MYSQL.items():
        if not session.mariadb and numbers >= first:
            wanted |= variables
    if session.mariadb and numbers >= _COLLATION_MAPS:
        wanted["character_set_collations"] = ""
    wanted |= context
    if session.mariadb and numbers[2] < _TIMESTAMP_DEFAULTS.get(numbers[:2], 0):
        wanted.pop("explicit_defaults_for_timestamp", None)
    collations = Collations(session.query)
    try:
        if isinstance(client := wanted.get("character_set_client"), int):
            # MariaDB takes no collation's number for it.
            wanted["character_set_client"] = _COMMON.get(client) or collations.charset(client)
        if maps := context.get("character_set_collations"):
            wanted["character_set_collations"] = ",".join(
                f"{collations.charset(charset)}={collations.name(collation)}" for charset, collation in maps
            )
    except (LookupError, ValueError, TypeError) as error:
        raise StatementError(0, _UNKNOWN_COLLATION, str(error)) from None
    for name, value in wanted.items():
        if not name.isidentifier():
            raise StatementError(0, _UNKNOWN_VARIABLE, f"no server has a variable {name!r}")
        yield f"{name} = {_value(value)}"


def _value(value: object) -> str:
    text = str(value)
    return text if _NUMBER.fullmatch(text) else quoted(text)
