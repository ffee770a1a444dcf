"""Statements in the binlog: told apart just well enough to know what they change, and the session they ran in.

This is no SQL parser. It finds the verb, the kind of object and the names; a statement that changes the schema and
whose names it cannot find is treated as one that touches the default schema.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

from mysqlraft.binlog.errors import BinlogError


class StatementKind(Enum):
    """What a statement means for replication."""

    SCHEMA = "changes a schema or its tables"
    ROWS = "changes rows, logged as a statement"
    OTHER = "changes neither"


@dataclass(frozen=True, slots=True)
class Statement:
    """``objects``: (schema, table) that it touches; table None: the schema itself, or something else inside it.

    Of a statement that changes rows, only the schemas that it may name: before any full stop, and the default one.

    ``tables``: the same for telling whether two statements, or a statement and rows, meet: table None is anything in
    the schema, and a routine or trigger is "FUNCTION name".

    ``source``: the table whose definition CREATE TABLE ... LIKE copies. It is one of ``tables``, but no object.
    """

    kind: StatementKind
    verb: str
    objects: tuple[tuple[str, str | None], ...] = ()
    tables: tuple[tuple[str, str | None], ...] = ()
    source: tuple[str, str] | None = None


_TOKEN = re.compile(
    r"""\s+ | --[ \t][^\n]*(?:\n|$) | \#[^\n]*(?:\n|$)
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
        *("TRIGGER", "PROCEDURE", "FUNCTION", "SEQUENCE", "PACKAGE"),
    )
)
_OTHER_OBJECTS = frozenset(("USER", "ROLE", "SERVER", "EVENT", "TABLESPACE", "LOGFILE", "RESOURCE", "INSTANCE"))
# SELECT is in the binlog only when a function that it calls changes rows.
_ROWS = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "CALL", "WITH", "DO"))


_LONGEST = 4000
"""Tokens of a statement that are looked at."""


def _tokens(text: str, limit: int = _LONGEST) -> list[tuple[str, bool]]:
    """(word, whether it was quoted) without comments; strings are one token of an apostrophe."""
    found: list[tuple[str, bool]] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "quoted":
            found.append((match["quoted"].replace("``", "`"), True))
        elif kind == "word":
            found.append((match["word"], False))
        elif kind == "mark":
            found.append((match["mark"], False))
        elif kind == "string":
            # With ANSI_QUOTES a double-quoted string is a name.
            text = match["string"]
            found.append((text[1:-1].replace('""', '"'), True) if text[0] == '"' else ("'", False))
        if len(found) >= limit:
            break
    return found


class Reader:
    """A statement word by word. ``whole``: none of it was left out for its length."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.whole = len(self.tokens) < _LONGEST
        self.at = 0
        if self.take("SET", "STATEMENT"):  # MariaDB: SET STATEMENT variable = value FOR statement
            while self.at < len(self.tokens) and not self.take("FOR"):
                self.at += 1

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


def classify(text: str, schema: str) -> Statement:
    """What a statement is. ``schema``: the session's default schema."""
    reader = Reader(text)
    verb = reader.word()
    if verb in _ROWS:
        before = {a[0] for a, b in pairwise(reader.tokens) if b == (".", False)}
        return Statement(StatementKind.ROWS, verb, tuple((name, None) for name in sorted(before | {schema} - {""})))
    if verb not in ("CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME"):
        return Statement(StatementKind.OTHER, verb)
    reader.at += 1
    temporary = False
    if verb != "TRUNCATE" or reader.word() == "TABLE":
        # Between verb and object: OR REPLACE, TEMPORARY, DEFINER = ..., ALGORITHM = ..., UNIQUE and the like.
        while reader.at < len(reader.tokens) and reader.word() not in _OBJECTS | _OTHER_OBJECTS:
            temporary = temporary or reader.word() == "TEMPORARY"
            reader.at += 1
    kind = reader.word()
    if verb == "TRUNCATE" and kind not in _OBJECTS:
        kind, reader.at = "TABLE", reader.at - 1
    reader.at += 1
    if kind not in _OBJECTS or temporary:
        return Statement(StatementKind.OTHER, f"{verb} {kind}".strip())
    reader.take("WAIT") or reader.take("NOWAIT")
    reader.take("IF", "NOT", "EXISTS") or reader.take("IF", "EXISTS")
    objects, tables = _objects(reader, verb, kind, schema)
    source = _source(reader, schema) if (verb, kind) == ("CREATE", "TABLE") else None
    if source is not None:
        tables.append(source)
    # The names are in the client's character set, and a long list was not read to its end.
    if not all(name.isascii() for pair in tables for name in pair if name) or not (reader.whole or verb == "CREATE"):
        tables = [(name, None) for name, _ in objects]
    return Statement(StatementKind.SCHEMA, f"{verb} {kind}", tuple(objects), tuple(tables), source)


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
        tables = list(found)
    elif kind in ("INDEX", "TRIGGER"):
        if kind == "TRIGGER":
            add(reader.name(schema), inside=True)
        while reader.at < len(reader.tokens) and not reader.take("ON"):
            reader.at += 1
        add(reader.name(schema))
    elif kind in ("PROCEDURE", "FUNCTION", "PACKAGE"):
        reader.take("BODY")
        reader.take("IF", "NOT", "EXISTS") or reader.take("IF", "EXISTS")
        add(reader.name(schema), inside=True)
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


# Status variables of a QUERY event: code, then a value whose length the code tells.

_FIXED: dict[int, tuple[str, tuple[str, ...]]] = {
    0: ("<I", ("flags",)),
    1: ("<Q", ("sql_mode",)),
    3: ("<HH", ("auto_increment_increment", "auto_increment_offset")),
    4: ("<HHH", ("character_set_client", "collation_connection", "collation_server")),
    7: ("<H", ("lc_time_names",)),
    8: ("<H", ("collation_database",)),
    9: ("<Q", ("",)),
    10: ("<I", ("",)),
    13: ("<3s", ("microseconds",)),
    16: ("<B", ("explicit_defaults_for_timestamp",)),
    17: ("<Q", ("",)),
    18: ("<H", ("default_collation_for_utf8mb4",)),
    19: ("<B", ("sql_require_primary_key",)),
    20: ("<B", ("default_table_encryption",)),
    21: ("<B", ("",)),  # MySQL >= 9.6, with statements that change rows
    128: ("<3s", ("microseconds",)),
    129: ("<Q", ("",)),
    130: ("<H", ("",)),
}
_NO_FOREIGN_KEY_CHECKS = 1 << 26
_RELAXED_UNIQUE_CHECKS = 1 << 27
_AUTO_IS_NULL = 1 << 14


def session_context(status: bytes, timestamp: int) -> tuple[dict[str, Any], list[str]]:
    """(session variables fit for SET SESSION, schemas that the server says the statement touches).

    ``timestamp``: the event's, in seconds.

    Raises:
        BinlogError: a status variable that this mysqlraft does not know, so that what follows it cannot be read.
    """
    context: dict[str, Any] = {}
    schemas: list[str] = []
    at = 0
    try:
        while at < len(status):
            code = status[at]
            at += 1
            if code in _FIXED:
                form, names = _FIXED[code]
                values = struct.unpack_from(form, status, at)
                at += struct.calcsize(form)
                context.update((name, value) for name, value in zip(names, values, strict=True) if name)
            elif code == 2:  # catalog, with a terminating zero
                at += status[at] + 2
            elif code in (5, 6):
                value = status[at + 1 : at + 1 + status[at]].decode()
                at += 1 + status[at]
                if code == 5 and value:
                    context["time_zone"] = value
            elif code == 11:  # invoker: user, host
                at += 1 + status[at]
                at += 1 + status[at]
            elif code == 12:
                count = status[at]
                at += 1
                for _ in range(count if count != 254 else 0):
                    end = status.index(b"\0", at)
                    schemas.append(status[at:end].decode("utf-8", "surrogateescape"))
                    at = end + 1
            elif code == 131:  # MariaDB 11: default collations of character sets
                at += 1 + 4 * status[at]
            else:
                raise BinlogError(
                    f"a statement in the binlog carries status variable {code}, unknown to this mysqlraft"
                )
    except (IndexError, ValueError, struct.error):
        raise BinlogError("the status variables of a statement are cut short") from None
    flags = context.pop("flags", 0)
    fraction = int.from_bytes(context.pop("microseconds", b""), "little")
    context["foreign_key_checks"] = int(not flags & _NO_FOREIGN_KEY_CHECKS)
    context["unique_checks"] = int(not flags & _RELAXED_UNIQUE_CHECKS)
    context["sql_auto_is_null"] = int(bool(flags & _AUTO_IS_NULL))
    context["timestamp"] = f"{timestamp}.{fraction:06}"
    return context, schemas
