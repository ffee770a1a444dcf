"""Which statements may stand before or after rows of their tables alike.

A statement *commutes with row writes* if a row written before it, by a table map of that time, and the same row written
after it leave the same table. This rests on how the row is written after it: columns that it lacks get what the ADD
COLUMN that added them gave to all rows (`added_columns`), never the default that the table has at that moment, and an
update keeps those of the row that it changes, if that keeps its primary key. Then a change of a default is nothing to
any row: one that has the column brings its value, and one that lacks it does not ask. So a commuting statement writes
no row, and nothing is to be written again because of it.

Known from the text alone, so some that would are not known: a DROP INDEX does not say whether the index is unique.
Whatever is not found here does not commute.
"""

from __future__ import annotations

from mysqlraft.binlog.statements import Reader, classify

_NO_ROWS = frozenset(("VIEW", "TRIGGER", "PROCEDURE", "FUNCTION", "PACKAGE", "LIBRARY", "EVENT"))
"""Triggers do not fire for what apply writes."""

_TYPES = frozenset(
    (
        *("TINYINT", "SMALLINT", "MEDIUMINT", "INT", "INTEGER", "BIGINT", "BOOL", "BOOLEAN", "BIT"),
        *("DECIMAL", "DEC", "NUMERIC", "FIXED", "FLOAT", "DOUBLE", "REAL"),
        *("DATE", "TIME", "DATETIME", "YEAR", "JSON", "VECTOR", "TIMESTAMP"),
        *("CHAR", "VARCHAR", "BINARY", "VARBINARY", "ENUM", "SET"),
        *("TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT", "TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB"),
    )
)
_ATTRIBUTES = frozenset(("UNSIGNED", "SIGNED", "ZEROFILL", "PRECISION", "ASCII", "UNICODE", "VISIBLE"))
_VALUES = frozenset(("NULL", "TRUE", "FALSE"))
_OPTIONS = frozenset(
    (
        *("COMMENT", "ROW_FORMAT", "AUTO_INCREMENT", "KEY_BLOCK_SIZE", "COMPRESSION", "ENCRYPTION", "PACK_KEYS"),
        *("STATS_PERSISTENT", "STATS_AUTO_RECALC", "STATS_SAMPLE_PAGES", "MAX_ROWS", "MIN_ROWS", "AVG_ROW_LENGTH"),
        *("CHARSET", "COLLATE", "ALGORITHM", "LOCK"),
    )
)
"""Of a table, each with one value. CHARSET and COLLATE are those of columns to come."""
_OF_STORAGE = (
    *((word, "PARTITION") for word in ("ANALYZE", "OPTIMIZE", "REPAIR", "REBUILD")),
    ("ORDER", "BY"),
)
"""How rows lie, which is nothing to any of them."""
_CHANGES = frozenset(("ADD", "ALTER", "CHANGE", "CONVERT", "DROP", "EXCHANGE", "MODIFY", "RENAME", "TRUNCATE"))
NO_COLUMN = frozenset(
    (
        *("INDEX", "KEY", "FULLTEXT", "SPATIAL", "UNIQUE", "PRIMARY", "CONSTRAINT", "FOREIGN", "CHECK", "PARTITION"),
        *("PERIOD", "SYSTEM"),
    )
)
"""What ALTER TABLE ... ADD may add beside columns."""


def commutes(text: str, schema: str) -> bool:
    """Whether the statement commutes with writes of rows. ``schema``: the session's default schema."""
    verb, _, kind = classify(text, schema).verb.partition(" ")
    reader = Reader(text)
    if kind in _NO_ROWS:
        return True
    if kind in ("DATABASE", "SCHEMA"):
        return verb == "ALTER" or (verb == "CREATE" and not _before(reader, kind, "REPLACE"))
    if verb == "CREATE" and kind in ("TABLE", "SEQUENCE"):
        return not _before(reader, kind, "REPLACE")
    if verb == "CREATE" and kind == "INDEX":
        return not _before(reader, kind, "REPLACE", "UNIQUE")
    return verb == "ALTER" and kind == "TABLE" and reader.whole and _alters(reader, schema)


def _before(reader: Reader, kind: str, *words: str) -> bool:
    """Whether one of the words stands before the kind of object."""
    at = reader.at
    while at < len(reader.tokens):
        word, quoted = reader.tokens[at]
        at += 1
        if not quoted and word.upper() == kind:
            return False
        if not quoted and word.upper() in words:
            return True
    return True


def skip_name(reader: Reader, schema: str) -> None:
    """To what follows the table's name in an ALTER TABLE."""
    while reader.word() != "TABLE":
        reader.at += 1
    reader.at += 1
    reader.take("IF", "EXISTS")
    reader.name(schema)


def skip_to_changes(reader: Reader, schema: str) -> None:
    """To the first change of an ALTER TABLE."""
    skip_name(reader, schema)
    if reader.take("WAIT"):
        reader.at += 1
    reader.take("NOWAIT")


def _alters(reader: Reader, schema: str) -> bool:
    skip_to_changes(reader, schema)
    while True:
        if not change_commutes(reader):
            return False
        if reader.at >= len(reader.tokens):
            return True
        if not reader.take(","):
            return False


def change_commutes(reader: Reader) -> bool:
    """Takes one change of an ALTER TABLE, if it is one that commutes."""
    if reader.take("ADD"):
        if reader.word() in ("INDEX", "KEY", "FULLTEXT", "SPATIAL"):
            skip_change(reader)
            return True
        if reader.word() in NO_COLUMN:
            return False
        reader.take("COLUMN")
        if reader.take("("):
            return _columns(reader)
        reader.take("IF", "NOT", "EXISTS")
        return _column(reader)
    if any(reader.take(*words) for words in _OF_STORAGE):
        while reader.at < len(reader.tokens) and reader.word() not in _CHANGES:
            reader.at += 1
        return reader.at == len(reader.tokens)
    if reader.take("ENABLE", "KEYS") or reader.take("DISABLE", "KEYS") or reader.take("FORCE"):
        return True
    if reader.take("RENAME", "INDEX") or reader.take("RENAME", "KEY"):
        reader.at += 3
        return True
    if reader.take("ALTER", "INDEX"):
        reader.at += 1
        reader.take("NOT")
        return any(reader.take(word) for word in ("VISIBLE", "INVISIBLE", "IGNORED"))
    if reader.take("ALTER"):
        reader.take("COLUMN")
        reader.at += 1
        return reader.take("DROP", "DEFAULT") or (reader.take("SET", "DEFAULT") and constant(reader))
    taken = False
    while reader.at < len(reader.tokens) and reader.word() != ",":
        if not _option(reader):
            return False
        taken = True
    return taken


def _option(reader: Reader) -> bool:
    if reader.take("ENGINE"):
        reader.take("=")
        return reader.take("INNODB")
    reader.take("DEFAULT")
    if reader.take("CHARACTER", "SET") or (reader.word() in _OPTIONS and reader.take(reader.word())):
        reader.take("=")
        reader.at += 1
        return True
    return False


def _columns(reader: Reader) -> bool:
    """Takes columns in parentheses, of which the opening one has been taken."""
    while reader.word() not in NO_COLUMN and _column(reader):
        if reader.take(")"):
            return True
        if not reader.take(","):
            return False
    return False


def _column(reader: Reader) -> bool:
    """Takes a column that comes last and whose value in rows that do not have it is a constant."""
    reader.at += 1
    if reader.word() not in _TYPES:
        return False
    # Without NULL it may bring a DEFAULT CURRENT_TIMESTAMP of its own, and a constant is in a time zone.
    may_be_null_only = reader.take("TIMESTAMP")
    reader.at += not may_be_null_only
    reader.take("VARYING")
    if reader.take("("):
        while reader.at < len(reader.tokens) and not reader.take(")"):
            reader.at += 1
    nullable, has_default = not may_be_null_only, False
    while reader.at < len(reader.tokens) and reader.word() not in (",", ")"):
        if reader.take("NOT", "NULL"):
            nullable = False
        elif reader.take("DEFAULT"):
            if may_be_null_only and reader.word() != "NULL":
                return False
            if not constant(reader):
                return False
            has_default = True
        elif reader.take("NULL"):
            nullable = True
        elif reader.take("CHARACTER", "SET") or reader.take("CHARSET") or reader.take("COLLATE"):
            reader.take("=")
            reader.at += 1
        elif reader.take("COMMENT") or reader.word() in _ATTRIBUTES:
            reader.at += 1
        else:
            return False
    return nullable or (has_default and not may_be_null_only)


def is_constant(word: str, quoted: bool) -> bool:
    """Whether a word of an expression is a literal: a string (one in double quotes may be a name), a number, NULL."""
    return not quoted and (word == "'" or word.upper() in _VALUES or word[:1].isdigit())


def constant(reader: Reader) -> bool:
    """Takes a literal. Strings one after the other are one."""
    signed = reader.take("-") or reader.take("+")
    word, quoted = reader.tokens[reader.at] if reader.at < len(reader.tokens) else ("", False)
    reader.at += 1
    if not signed and word.upper() in _VALUES and not quoted:
        return True
    introduced = word.upper() in ("B", "X", "N") or word.startswith("_")
    if not signed and (word == "'" or quoted or (introduced and reader.take("'"))):
        while reader.at < len(reader.tokens) and (reader.tokens[reader.at][1] or reader.word() == "'"):
            reader.at += 1
        return True
    if not word[:1].isdigit() and not (word == "." and reader.word()[:1].isdigit()):
        return False
    if word == "." or (reader.take(".") and reader.word()[:1].isdigit()):
        word = reader.word()
        reader.at += 1
    if word[:1].isdigit() and word[-1] in "eE" and not word.upper().startswith("0X"):
        reader.at += reader.word() in ("-", "+")
        reader.at += 1
    return True


def skip_change(reader: Reader, closing: str = ",") -> None:
    """Goes to the next comma outside parentheses, to a ``closing`` word outside them, or to the end."""
    depth = 0
    while reader.at < len(reader.tokens):
        word = reader.word()
        if not depth and word in (",", closing):
            return
        depth += (word == "(") - (word == ")")
        reader.at += 1
