"""A statement as text, read as the server that ran it read it.

A statement is in the binlog byte for byte as the client sent it, in the client's character set. In some of these a byte
that looks like a quotation mark or a backslash is half of a character, so a statement must not be taken apart before it
is text. The server is asked what it says: no two programs agree on every byte of every character set.
"""

from __future__ import annotations

import re

from mysqlraft.binlog.collations import Collations
from mysqlraft.binlog.events import Query
from mysqlraft.binlog.keys import KeySource
from mysqlraft.binlog.session_context import session_context
from mysqlraft.binlog.statements import without_mariadb

_UTF8 = frozenset(("utf8mb4", "utf8mb3", "utf8", "ascii", "binary"))
_AS_BYTES = frozenset(("swe7",))
"""Its letters in place of ASCII's brackets are still brackets to the server's parser."""
_LONGEST = 8 << 20
"""Bytes of a statement that are looked at; nobody names objects after so many."""

# Characters that end in a byte of ASCII. Statements may hold bytes that are no text, in comments for one.
_PAIRS = {
    "gbk": rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]",
    "gb18030": rb"[\x81-\xfe](?:[\x40-\x7e\x80-\xfe]|[\x30-\x39][\x81-\xfe][\x30-\x39])",
    "big5": rb"[\xa1-\xf9][\x40-\x7e\xa1-\xfe]",
    "sjis": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
    "cp932": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
    "euckr": rb"[\x81-\xfe][\x41-\x5a\x61-\x7a\x81-\xfe]",
}
_UNREADABLE = "\ufffd".encode()


def statement_text(statement: bytes, collation: int, collations: Collations) -> str:
    """The statement as text. ``collation``: the number of one of its client's character set.

    Raises:
        LookupError: the server has no such collation.
        pymysql.err.MySQLError: the server cannot be asked.
    """
    if statement.isascii():
        return statement.decode()
    charset = collations.charset(collation)
    if charset in _UTF8 or charset in _AS_BYTES:
        return statement.decode("utf-8", "surrogateescape")
    found = collations.text(statement[:_LONGEST], charset)
    if found is None:
        found = re.sub(_PAIRS.get(charset, rb"[\x80-\xff]"), _UNREADABLE, statement, flags=re.DOTALL).decode(
            "utf-8", "replace"
        )
    return found


def characters_of(statement: bytes, collation: int, collations: Collations) -> list[bytes]:
    """The statement's characters; none holds a byte that the server's parser would take for another one. Raises as
    `statement_text` does."""
    charset = collations.charset(collation)
    if charset in _UTF8:
        return [one.encode("utf-8", "surrogateescape") for one in statement.decode("utf-8", "surrogateescape")]
    return re.findall(_PAIRS.get(charset, rb"[\x80-\xff]") + rb"|.", statement, re.DOTALL)


def text_of(found: Query, statement: bytes, source: KeySource, *, mariadb: bool) -> str:
    """What the statement of an event says; nothing is asked of the server for plain ASCII.

    Raises:
        BinlogError: the event says things of the session that this mysqlraft does not know.
        pymysql.err.MySQLError: the server cannot be asked.
    """
    if statement.isascii():
        text = statement.decode()
    else:
        client = session_context(found.status, 0, mariadb=mariadb).variables.get("character_set_client", 45)
        text = source.text(statement, int(client))
    return text if mariadb else without_mariadb(text)
