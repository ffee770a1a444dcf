"""Statements of which two sites may run the same at once.

Applications make their tables at every start: IF NOT EXISTS, IF EXISTS, OR REPLACE. Run twice such a statement does
what it does once, so two sites that run the same do not mind that each gets the other's afterwards. MySQL's binlog says
which of them did nothing, and these go no further; MariaDB's does not say it of all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from mysqlraft.binlog.events import THREAD_SPECIFIC
from mysqlraft.binlog.session_context import SessionContext
from mysqlraft.binlog.statements import Reader, Statement, classify

ONLY_MAKES = 1
"""Bit of a `repetition`: the statement makes something that is not there, and changes nothing that is."""
_NOT_OF_DEFINITIONS = frozenset(("timestamp", "auto_increment_increment", "auto_increment_offset", "lc_time_names"))
_OTHER_ENGINE = re.compile(r"\bENGINE\s*=?\s*(?!InnoDB\b)\w", re.IGNORECASE)
_NAMED_ALIKE = dict.fromkeys(("TABLES", "VIEW", "SEQUENCE"), "TABLE") | {"SCHEMA": "DATABASE"}
_MARIADB_INDEXES = ("CREATE INDEX", "DROP INDEX")


def did_nothing(text: str, what: Statement, context: SessionContext, flags: int, *, mariadb: bool) -> bool:
    """Whether the binlog says that a statement changed nothing. ``flags``: of its event."""
    if not context.without_effect:
        return False
    if mariadb:
        # It numbers what ALTER TABLE and the like did, but for partitions.
        if what.verb == "ALTER TABLE":
            return not what.conditional and _alters_if(text) and "PARTITION" not in text.upper()
        return what.conditional and what.verb in _MARIADB_INDEXES
    if not what.conditional:
        return False
    if what.verb in ("DROP TABLE", "DROP TABLES"):
        # It has the flag but where the table is of an engine that is not transactional.
        return bool(flags & THREAD_SPECIFIC)
    # Tables of other engines are made without a transaction of the data dictionary.
    return what.verb != "CREATE TABLE" or _OTHER_ENGINE.search(text) is None


def repetition(text: str, schema: str, context: Mapping[str, Any]) -> int:
    """A number that two statements have in common if they may be run at two sites at once; 0 if there is no such other.

    A function of what the log holds. ``schema``: the session's default schema.
    """
    what = classify(text, schema)
    verb, _, kind = what.verb.partition(" ")
    if verb == "DROP" and what.conditional:
        # Of what is asked for each of its names. Tables and views share theirs, and DROP of the one spares the other.
        return xxh3_64_intdigest(_NAMED_ALIKE.get(kind, kind).encode()) & ~ONLY_MAKES or 2
    makes = (verb == "CREATE" and what.conditional) or (what.verb == "ALTER TABLE" and _alters_if(text))
    if not makes and not (verb == "CREATE" and what.replaces and kind not in ("TABLE", "SEQUENCE", "INDEX")):
        return 0
    settings = sorted(repr(item) for item in context.items() if item[0] not in _NOT_OF_DEFINITIONS)
    packed = msgpack.packb((text.strip(), schema, settings), unicode_errors="surrogateescape")
    number = xxh3_64_intdigest(packed)
    only_makes = makes and " DROP " not in text.upper()
    return number | ONLY_MAKES if only_makes else number & ~ONLY_MAKES or 2


def _alters_if(text: str) -> bool:
    """Whether each change of an ALTER TABLE is made only if it has not been made."""
    reader = Reader(text)
    while reader.at < len(reader.tokens) and not reader.take("TABLE"):
        reader.at += 1
    reader.take("IF", "EXISTS")
    if not reader.whole or reader.name("") is None:
        return False
    depth, conditional = 0, False
    while reader.at < len(reader.tokens):
        if not depth and (reader.take("IF", "EXISTS") or reader.take("IF", "NOT", "EXISTS")):
            conditional = True
            continue
        word = reader.word()
        depth += (word == "(") - (word == ")")
        reader.at += 1
        if not depth and word == ",":
            if not conditional:
                return False
            conditional = False
    return conditional
