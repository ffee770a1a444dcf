"""Statements in the binlog: told apart just well enough to know what they change.

This is no SQL parser. It finds the verb, the kind of object and the names; a statement that changes the schema and
whose names it cannot find is treated as one that touches the default schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple


class StatementKind(Enum):
    """What a statement means for replication."""

    SCHEMA = "changes a schema or its tables"
    ROWS = "changes rows, logged as a statement"
    OTHER = "changes neither"
    UNKNOWN = "cannot be told"


@dataclass(frozen=True, slots=True)
class Statement:
    """``objects``: (schema, table) that it touches; table None: the schema itself, or something else inside it.

    Of a statement that changes rows, only the schemas that it may name: before any full stop, and the default one.

    ``tables``: the same for telling whether two statements, or a statement and rows, meet: table None is anything in
    the schema, and a routine, trigger or event is "FUNCTION name".

    ``source``: the table whose definition CREATE TABLE ... LIKE copies. It is one of ``tables``, but no object.
    ``conditional``: IF EXISTS or IF NOT EXISTS; ``replaces``: OR REPLACE. ``temporary``: it says that its tables are;
    then they are its objects, though it changes neither.
    """

    kind: StatementKind
    verb: str
    objects: tuple[tuple[str, str | None], ...] = ()
    tables: tuple[tuple[str, str | None], ...] = ()
    source: tuple[str, str] | None = None
    conditional: bool = False
    replaces: bool = False
    temporary: bool = False


_TOKEN = re.compile(
    r"""\s+ | --(?=[\x00-\x20\x7f]|$)[^\n]*(?:\n|$) | \#[^\n]*(?:\n|$)
      | /\*(?!M?!) .*? \*/
      | (?P<open>/\*M?!\d*) | (?P<close>\*/)
      | `(?P<quoted>(?:[^`]|``)*)`
      | (?P<string>'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*")
      | (?P<word>[\w$\u0080-\uffff]+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)

_OBJECTS = frozenset(
    (
        *("TABLE", "TABLES", "VIEW", "DATABASE", "SCHEMA", "INDEX"),
        *("TRIGGER", "PROCEDURE", "FUNCTION", "SEQUENCE", "PACKAGE", "LIBRARY", "EVENT"),
    )
)
# REFERENCE: of a SPATIAL REFERENCE SYSTEM
_OTHER_OBJECTS = frozenset(("USER", "ROLE", "SERVER", "TABLESPACE", "LOGFILE", "RESOURCE", "INSTANCE", "REFERENCE"))
_NEITHER = frozenset(
    (
        *("", "GRANT", "REVOKE", "SET", "FLUSH", "ANALYZE", "OPTIMIZE", "REPAIR", "CHECK", "CHECKSUM", "CACHE"),
        *("INSTALL", "UNINSTALL", "IMPORT", "BACKUP", "CLONE", "CHANGE", "START", "STOP", "RESET", "PURGE", "BINLOG"),
        *("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA", "LOCK", "UNLOCK", "USE", "HANDLER", "KILL"),
        *("SHUTDOWN", "RESTART", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "HELP", "PREPARE", "EXECUTE", "DEALLOCATE"),
    )
)
"""How statements begin that change neither a schema nor rows; "" for nothing but comments."""
# SELECT is in the binlog only when a function that it calls changes rows.
_ROWS = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "CALL", "WITH", "DO"))


_MARIADB = "/*M!"
_LONGEST = 4000
"""Tokens of a statement that are looked at."""
_WHOLE = frozenset(("ALTER", "DROP", "RENAME"))
"""All of these is looked at, as any part of it may name another table or do more; lists of partitions are long."""


class Word(NamedTuple):
    """A word, a mark or a string of a statement, and where it begins and ends. A string is an apostrophe."""

    text: str
    quoted: bool
    start: int
    end: int


def words(text: str) -> Iterator[Word]:
    """What a statement consists of, without comments."""
    for match in _TOKEN.finditer(text):
        kind, (start, end) = match.lastgroup, match.span()
        if kind == "quoted":
            yield Word(match["quoted"].replace("``", "`"), True, start, end)
        elif kind in ("word", "mark"):
            yield Word(match[kind], False, start, end)
        elif kind == "string":
            # With ANSI_QUOTES a double-quoted string is a name.
            string = match["string"]
            if string[0] == '"':
                yield Word(string[1:-1].replace('""', '"'), True, start, end)
            else:
                yield Word("'", False, start, end)


def without_mariadb(text: str) -> str:
    """A statement of MySQL's, which does not run what MariaDB does of comments that begin with M!."""
    while _MARIADB in text and (
        mark := next((found for found in _TOKEN.finditer(text) if (found["open"] or "").startswith(_MARIADB)), None)
    ):
        text = f"{text[: mark.start()]}/* !{text[mark.start() + len(_MARIADB) :]}"
    return text


class Reader:
    """A statement word by word. ``whole``: none of it was left out for its length."""

    def __init__(self, text: str) -> None:
        rest = words(text)
        self._words = list(islice(rest, _LONGEST))
        self.whole = len(self._words) < _LONGEST
        self.tokens = [(word.text, word.quoted) for word in self._words]
        self._text = text
        self.at = 0
        while self.take("SET", "STATEMENT"):  # MariaDB: SET STATEMENT variable = value FOR statement
            while self.at < len(self.tokens) and not self.take("FOR"):
                self.at += 1
        start = self.at
        if self.take("ANALYZE"):  # MariaDB: ANALYZE [FORMAT = JSON] statement, which it runs
            self.take("FORMAT", "=", "JSON") or self.take("FORMAT", "=", "TRADITIONAL")
            if self.word() not in _ROWS:
                self.at = start
        if not self.whole and self.word() in _WHOLE:
            self._words += rest
            self.tokens = [(word.text, word.quoted) for word in self._words]
            self.whole = True

    def word(self) -> str:
        """The next word in capitals, without taking it; "" at the end or if it is quoted."""
        if self.at < len(self.tokens):
            text, quoted = self.tokens[self.at]
            if not quoted:
                return text.upper()
        return ""

    def take(self, *words: str) -> bool:
        """Takes the given words if they come next."""
        start = self.at
        for word in words:
            if self.word() != word:
                self.at = start
                return False
            self.at += 1
        return True

    def span(self, start: int) -> tuple[int, int]:
        """Where the text from token `start` to the last one taken begins and ends in the statement."""
        return self._words[start].start, self._words[self.at - 1].end

    def text(self, start: int) -> str:
        """The statement's own text from token `start` to the last one taken."""
        first, end = self.span(start)
        return self._text[first:end]

    def name(self, default: str) -> tuple[str, str] | None:
        """Takes ``[schema.]name``."""
        if self.at >= len(self.tokens) or (not self.tokens[self.at][1] and not self._is_name()):
            return None
        first = self.tokens[self.at][0]
        self.at += 1
        if self.at + 1 < len(self.tokens) and self.tokens[self.at] == (".", False):
            second = self.tokens[self.at + 1][0]
            self.at += 2
            return first, second
        return default, first

    def _is_name(self) -> bool:
        text = self.tokens[self.at][0]
        return text[0].isalnum() or text[0] in "_$" or text[0] >= "\x80"


@lru_cache(maxsize=4)  # The same one is asked about again and again, and may be long.
def classify(text: str, schema: str) -> Statement:
    """What a statement is. ``schema``: the session's default schema."""
    reader = Reader(text)
    verb = reader.word()
    if verb in _ROWS:
        before = {a[0] for a, b in pairwise(reader.tokens) if b == (".", False)}
        return Statement(StatementKind.ROWS, verb, tuple((name, None) for name in sorted(before | {schema} - {""})))
    if verb not in ("CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME"):
        return Statement(StatementKind.OTHER if verb in _NEITHER else StatementKind.UNKNOWN, verb)
    reader.at += 1
    temporary = replaces = False
    if verb != "TRUNCATE" or reader.word() == "TABLE":
        # Between verb and object: OR REPLACE, TEMPORARY, DEFINER = ..., ALGORITHM = ..., UNIQUE and the like.
        while reader.at < len(reader.tokens) and reader.word() not in _OBJECTS | _OTHER_OBJECTS:
            temporary = temporary or reader.word() == "TEMPORARY"
            replaces = replaces or reader.word() == "REPLACE"
            account = reader.take("DEFINER", "=")  # which may be called like an object
            reader.at += 1
            if account and reader.take("@"):
                reader.at += 1
    kind = reader.word()
    if verb == "TRUNCATE" and kind not in _OBJECTS:
        kind, reader.at = "TABLE", reader.at - 1
    reader.at += 1
    if kind not in _OBJECTS:
        known = kind in _OTHER_OBJECTS
        return Statement(StatementKind.OTHER if known else StatementKind.UNKNOWN, f"{verb} {kind}".strip())
    if kind == "PACKAGE":
        reader.take("BODY")
    conditional = reader.take("IF", "NOT", "EXISTS") or reader.take("IF", "EXISTS")
    objects, tables = _objects(reader, verb, kind, schema)
    if temporary:
        return Statement(StatementKind.OTHER, f"{verb} {kind}", tuple(objects), temporary=True)
    source = _source(reader, schema) if (verb, kind) == ("CREATE", "TABLE") else None
    if source is not None:
        tables.append(source)
    # The names are in the client's character set, and a long list was not read to its end.
    if not all(name.isascii() for pair in tables for name in pair if name) or not (reader.whole or verb == "CREATE"):
        tables = [(name, None) for name, _ in objects]
    return Statement(
        StatementKind.SCHEMA, f"{verb} {kind}", tuple(objects), tuple(tables), source, conditional, replaces
    )


_Names = list[tuple[str, str | None]]


def _source(reader: Reader, schema: str) -> tuple[str, str] | None:
    """After the name of a new table: that of the one that it is to be like."""
    reader.take("(")
    return reader.name(schema) if reader.take("LIKE") else None


def _objects(reader: Reader, verb: str, kind: str, schema: str) -> tuple[_Names, _Names]:
    """`Statement.objects` and `Statement.tables`."""
    found: _Names = []
    tables: _Names = []

    def add(name: tuple[str, str] | None, *, inside: bool = False) -> None:
        if name is not None:
            found.append((name[0], None) if inside else name)
            tables.append((name[0], f"{kind} {name[1]}") if inside else name)

    if kind in ("DATABASE", "SCHEMA"):
        # ALTER DATABASE may leave the name out.
        if reader.at < len(reader.tokens) and reader.word() not in (
            "CHARACTER",
            "DEFAULT",
            "COLLATE",
            "CHARSET",
            "READ",
        ):
            found.append((reader.tokens[reader.at][0], None))
        else:
            found.append((schema, None))
        # Whoever has something inside has the schema, so making it meets only what is done to the schema itself.
        tables = [(name, f"DATABASE {name}" if verb == "CREATE" else None) for name, _ in found]
    elif kind in ("INDEX", "TRIGGER"):
        if kind == "TRIGGER":
            trigger = reader.name(schema)
            add(trigger, inside=True)
            # In a session without a default schema the table is in that of the trigger.
            schema = schema or (trigger or ("", ""))[0]
        while reader.at < len(reader.tokens) and not reader.take("ON"):
            reader.at += 1
        add(reader.name(schema))
    elif kind in ("PROCEDURE", "FUNCTION", "PACKAGE", "LIBRARY"):
        add(reader.name(schema), inside=True)
    elif kind == "EVENT":
        add(reader.name(schema), inside=True)
        while verb == "ALTER" and reader.at < len(reader.tokens) and not reader.take("DO"):
            if reader.take("RENAME", "TO"):
                add(reader.name(schema), inside=True)
            reader.at += 1
    else:
        add(reader.name(schema))
        if verb == "RENAME" or (verb == "DROP" and kind in ("TABLE", "TABLES", "VIEW", "SEQUENCE")):
            while reader.at < len(reader.tokens):
                if reader.take("TO") or reader.take(","):
                    reader.take("IF", "EXISTS")
                    add(reader.name(schema))
                else:
                    reader.at += 1
        elif verb == "ALTER":
            while reader.at < len(reader.tokens):
                if reader.take("RENAME"):
                    if reader.word() not in ("COLUMN", "INDEX", "KEY"):
                        reader.take("TO") or reader.take("AS") or reader.take("=")
                        add(reader.name(schema))
                elif reader.take("EXCHANGE", "PARTITION"):
                    reader.at += 1
                    if reader.take("WITH", "TABLE"):
                        add(reader.name(schema))
                elif reader.take("CONVERT", "TABLE"):  # MariaDB: a table becomes a partition, or the other way round
                    add(reader.name(schema))
                elif reader.take("CONVERT", "PARTITION"):
                    reader.at += 1
                    if reader.take("TO", "TABLE"):
                        add(reader.name(schema))
                else:
                    reader.at += 1
    return found or [(schema, None)], tables or [(schema, None)]
