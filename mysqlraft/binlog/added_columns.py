"""Columns that statements add, and what they put into the rows that are there.

ALTER TABLE ... ADD COLUMN gives every row of the table the same value, if its DEFAULT is a constant: that of the
statement, whatever becomes of the default later. A row written by a site that did not know the statement yet lacks the
column; it gets the same value, so that it is the same row whether it comes before the statement or after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mysqlraft.binlog import commuting
from mysqlraft.binlog.statements import Reader, classify

CLOCK = frozenset(("CURRENT_TIMESTAMP", "NOW", "LOCALTIME", "LOCALTIMESTAMP"))
"""The statement's own time, which the other sites set before they run it."""
_OF_EACH_ROW = frozenset(("AUTO_INCREMENT", "AS", "GENERATED", "SERIAL"))
_BY_SETTINGS = "TIMESTAMP"
"""The type of columns whose implicit NULL and DEFAULT depend on explicit_defaults_for_timestamp."""


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """``value``: SQL for what the statement puts into every row; "" for the implicit default of a NOT NULL column, None
    if it is no constant. ``unless_there``: nothing happens if there is a column of that name.
    """

    name: str
    value: str | None
    unless_there: bool = False


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """The columns that a statement adds to its tables. ``whole``: it does nothing else."""

    added: tuple[AddedColumn, ...]
    whole: bool


def column_change(text: str, schema: str, explicit_timestamps: bool = False) -> ColumnChange:
    """``schema``: the session's default schema. ``explicit_timestamps``: explicit_defaults_for_timestamp was ON."""
    verb, _, kind = classify(text, schema).verb.partition(" ")
    if verb != "ALTER" or kind != "TABLE":
        return ColumnChange((), verb == "TRUNCATE" or commuting.commutes(text, schema))
    reader = Reader(text)
    commuting.skip_to_changes(reader, schema)
    added: list[AddedColumn] = []
    whole = reader.whole
    while reader.at < len(reader.tokens):
        start = reader.at
        columns = _added(reader, explicit_timestamps)
        added += columns
        if not columns:
            reader.at = start
            if not commuting.change_commutes(reader):
                whole = False
                reader.at = start
        commuting.skip_change(reader)
        reader.at += 1
    return ColumnChange(tuple(added), whole)


def gives_each_row_its_own(text: str, schema: str) -> bool:
    """Whether a statement may put values into rows that differ from site to site: numbers in an order that is the
    server's, random ones."""
    verb, _, kind = classify(text, schema).verb.partition(" ")
    if verb != "ALTER" or kind != "TABLE":
        return False
    reader = Reader(text)
    commuting.skip_to_changes(reader, schema)
    while reader.at < len(reader.tokens):
        adds = reader.word() == "ADD"
        end = _end_of_change(reader)
        while reader.at < end:
            if reader.take("SERIAL"):
                return True
            if reader.take("AUTO_INCREMENT"):
                # With a number it is the table's next value.
                if reader.word() != "=" and not reader.word()[:1].isdigit():
                    return True
            elif adds and reader.take("DEFAULT"):
                if _default(reader) is None:
                    return True
            else:
                reader.at += 1
        reader.at = end + 1
    return not reader.whole


def _end_of_change(reader: Reader) -> int:
    start = reader.at
    commuting.skip_change(reader)
    end, reader.at = reader.at, start
    return end


def _added(reader: Reader, explicit_timestamps: bool) -> list[AddedColumn]:
    """Takes ADD COLUMN with all that belongs to it; none if it is something else."""
    if not reader.take("ADD"):
        return []
    if not reader.take("COLUMN") and reader.word() in commuting.NO_COLUMN:
        return []
    if not reader.take("("):
        unless_there = reader.take("IF", "NOT", "EXISTS")
        return [_column(reader, explicit_timestamps, unless_there)] if reader.at < len(reader.tokens) else []
    found: list[AddedColumn] = []
    while reader.at < len(reader.tokens) and reader.word() not in commuting.NO_COLUMN:
        found.append(_column(reader, explicit_timestamps, False))
        commuting.skip_change(reader, ")")
        if reader.take(")"):
            return found
        reader.at += 1
    return []


def _column(reader: Reader, explicit_timestamps: bool, unless_there: bool) -> AddedColumn:
    name = reader.tokens[reader.at][0]
    reader.at += 1
    return AddedColumn(name, _value(reader, explicit_timestamps), unless_there)


def _value(reader: Reader, explicit_timestamps: bool) -> str | None:
    """Takes a column's type and attributes."""
    implicit: str | None = "NULL" if explicit_timestamps or reader.word() != _BY_SETTINGS else None
    value: str | None = None
    depth = 0
    while reader.at < len(reader.tokens) and (depth or reader.word() not in (",", ")")):
        word = reader.word()
        depth += (word == "(") - (word == ")")
        if depth:
            pass
        elif word in _OF_EACH_ROW:
            return None
        elif reader.take("NOT", "NULL"):
            implicit = "" if implicit is not None else None
            continue
        elif word == "NULL":
            implicit = "NULL"
        elif reader.take("DEFAULT"):
            value = _default(reader)
            if value is None:
                return None
            continue
        reader.at += 1
    return implicit if value is None else value


def _default(reader: Reader) -> str | None:
    """Takes what follows DEFAULT; None if its value is not that of the statement alone."""
    start = reader.at
    if reader.word() in CLOCK:
        reader.at += 1
        if reader.take("("):
            while reader.at < len(reader.tokens) and not reader.take(")"):
                reader.at += 1
        return reader.text(start)
    if reader.word() == "(":
        depth = 0
        while reader.at < len(reader.tokens):
            word, quoted = reader.tokens[reader.at]
            reader.at += 1
            depth += (word == "(") - (word == ")")
            if not depth:
                return reader.text(start)
            # Not a quotient: how many digits it has depends on div_precision_increment, which no binlog carries.
            if word not in "()+-*.'" and not commuting.is_constant(word, quoted) and word.upper() not in CLOCK:
                return None
        return None
    return reader.text(start) if commuting.constant(reader) else None
