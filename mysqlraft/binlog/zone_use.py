"""How a statement uses its session's time zone, found in its text.

A zone with summer time is no one offset from UTC. A statement that needs it for one moment only means the same under
the offset of that moment. One that converts rows needs it for as many moments as there are rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mysqlraft.binlog import commuting
from mysqlraft.binlog.added_columns import CLOCK
from mysqlraft.binlog.statements import Reader, classify

_LITERAL = re.compile(r"""(?P<quote>['"]?)\s*(?P<content>[\dT\s:./+-]{6,40}?)\s*(?P=quote)""")
_ONLY_DIGITS = 8
"""A number of fewer digits is taken for no date."""
_BEFORE_LITERAL = ("TIMESTAMP", "DATETIME", "DATE")
_STORED = ("STORED", "PERSISTENT")


@dataclass(slots=True)
class ZoneUse:
    """``literals``: of dates, as far as they become defaults or bounds of partitions. ``clock``: it puts its own time
    into rows. ``converted``: the columns whose values it may convert from or to TIMESTAMP. ``computed``: the words, in
    lower case, of the stored generated columns that it makes."""

    literals: list[str] = field(default_factory=list)
    clock: bool = False
    converted: list[str] = field(default_factory=list)
    computed: set[str] = field(default_factory=set)


def zone_use(text: str, schema: str, timestamps: frozenset[str] | None) -> ZoneUse:
    """``schema``: the session's default schema. ``timestamps``: the columns of its table that were of type TIMESTAMP,
    in lower case; None: not known."""
    found = ZoneUse()
    verb = classify(text, schema).verb
    if verb not in ("CREATE TABLE", "ALTER TABLE"):
        return found
    reader = Reader(text)
    _defaults(reader, found)
    if verb == "CREATE TABLE":
        # No rows are there, and those of a SELECT come by themselves.
        found.clock = False
        return found
    reader.at = 0
    commuting.skip_to_changes(reader, schema)
    while reader.at < len(reader.tokens):
        start = reader.at
        commuting.skip_change(reader)
        end, reader.at = reader.at, start
        _change(reader, end, timestamps, found)
        reader.at = end + 1
    return found


def _defaults(reader: Reader, found: ZoneUse) -> None:
    while reader.at < len(reader.tokens):
        if reader.take("ON", "UPDATE"):
            reader.at += 1
        elif reader.take("DEFAULT") or reader.take("STARTS"):
            if reader.word() == "(":
                _expression(reader, found)
            else:
                _value(reader, found)
        elif reader.take("UNIX_TIMESTAMP"):
            _expression(reader, found)
        elif reader.take("SYSTEM_TIME"):
            found.clock = True
        else:
            reader.at += 1


def _expression(reader: Reader, found: ZoneUse) -> None:
    """Takes what stands in parentheses."""
    depth = 0
    while reader.at < len(reader.tokens):
        word = reader.word()
        depth += (word == "(") - (word == ")")
        if depth <= 0:
            return
        if word in "()":
            reader.at += 1
        else:
            _value(reader, found)


def _value(reader: Reader, found: ZoneUse) -> None:
    if reader.word() in _BEFORE_LITERAL:
        reader.at += 1
    found.clock = found.clock or reader.word() in CLOCK
    if reader.at >= len(reader.tokens):
        return
    start = reader.at
    reader.at += 1
    literal = _LITERAL.fullmatch(reader.text(start))
    if literal is not None:
        content = literal["content"]
        if not content.isdigit() or len(content) >= _ONLY_DIGITS:
            found.literals.append(content)


def _change(reader: Reader, end: int, timestamps: frozenset[str] | None, found: ZoneUse) -> None:
    """Takes one change of ALTER TABLE, or the beginning of it."""
    words = {text.lower() for text, _ in reader.tokens[reader.at : end]}
    if not words.isdisjoint(word.lower() for word in _STORED):
        found.computed |= words
    changes = reader.take("CHANGE")
    if not changes and not reader.take("MODIFY"):
        return
    reader.take("COLUMN")
    reader.take("IF", "EXISTS")
    # A column may have any name, also that of a type.
    name, kind = reader.at, reader.at + 1 + changes
    if kind >= end:
        return
    column = reader.tokens[name][0].lower()
    was = None if timestamps is None else column in timestamps
    reader.at = kind
    if was is None or was != (reader.word() == "TIMESTAMP"):
        found.converted.append(reader.tokens[kind - 1][0])
