"""Statements without the limits that they set to their own waiting.

MariaDB's may say how long they wait for their tables (WAIT n, NOWAIT), or how long they run (SET STATEMENT ... FOR).
That is meant for where they are made, by somebody who tries again later. Elsewhere their tables may be in use at every
moment, and a statement that gives way at once would never come through.
"""

from __future__ import annotations

from mysqlraft.binlog import commuting
from mysqlraft.binlog.statements import Reader, classify

_LIMITS = ("LOCK_WAIT_TIMEOUT", "INNODB_LOCK_WAIT_TIMEOUT", "MAX_STATEMENT_TIME")
_WITH_CLAUSE = (
    "DROP TABLE",
    "DROP TABLES",
    "RENAME TABLE",
    "RENAME TABLES",
    "TRUNCATE TABLE",
    "CREATE INDEX",
    "DROP INDEX",
)
_BEFORE_NAMES = ("TRUNCATE", "TABLE", "TABLES", "INDEX", "EXISTS", "ON", "TO", ",", ".")


def patient(text: str, schema: str) -> str:
    """A statement of MariaDB's, waiting as its session does. ``schema``: the session's default schema."""
    cuts = [*_settings(text), *_clauses(text, schema)]
    for start, end, instead in reversed(cuts):
        text = text[:start] + instead + text[end:]
    return text


def _settings(text: str) -> list[tuple[int, int, str]]:
    """What SET STATEMENT gives to limits, each to be what the session has."""
    reader = Reader(text)
    end, reader.at = reader.at, 0
    found: list[tuple[int, int, str]] = []
    if not reader.take("SET", "STATEMENT"):
        return found
    while reader.at < end:
        name = reader.tokens[reader.at][0].upper()
        reader.at += 1
        if name in _LIMITS and (reader.take("=") or reader.take(":", "=")):
            first = reader.at
            depth = 0
            while reader.at < end - 1 and (depth or reader.word() not in (",", "FOR")):
                depth += (reader.word() == "(") - (reader.word() == ")")
                reader.at += 1
            found.append((*reader.span(first), f"@@SESSION.{name}"))
    return found


def _clauses(text: str, schema: str) -> list[tuple[int, int, str]]:
    """WAIT n and NOWAIT."""
    verb = classify(text, schema).verb
    reader = Reader(text)
    found: list[tuple[int, int, str]] = []
    if verb == "ALTER TABLE":
        commuting.skip_name(reader, schema)
        if (clause := _clause(reader)) is not None:
            found.append(clause)
    elif verb in _WITH_CLAUSE:
        depth = 0
        before = ""
        while reader.at < len(reader.tokens):
            if not depth and before not in _BEFORE_NAMES and (clause := _clause(reader)) is not None:
                found.append(clause)
                continue
            before = reader.word()
            depth += (before == "(") - (before == ")")
            reader.at += 1
    return found


def _clause(reader: Reader) -> tuple[int, int, str] | None:
    first = reader.at
    if reader.take("WAIT"):
        if not reader.word()[:1].isdigit():
            reader.at = first
            return None
        reader.at += 1
    elif not reader.take("NOWAIT"):
        return None
    return (*reader.span(first), "")
