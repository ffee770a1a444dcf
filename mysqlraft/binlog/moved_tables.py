"""Statements after which rows of a table are found under another name.

A row that was written before such a statement moves with the table or partition that it is in; one that is written
behind it goes where the name then leads. So the two are never the same, as they are with a table that is dropped,
truncated or only altered.
"""

from __future__ import annotations

from mysqlraft.binlog.statements import Reader, classify

_Name = tuple[str, str | None]


def moved(text: str, schema: str) -> frozenset[_Name]:
    """Schema and name, in lower case, of the tables from which the statement takes rows to another name; None: any
    table of the schema. ``schema``: the session's default schema."""
    verb, _, kind = classify(text, schema).verb.partition(" ")
    if verb not in ("ALTER", "RENAME") or kind not in ("TABLE", "TABLES"):
        return frozenset()
    reader = Reader(text)
    while not reader.take(kind):
        reader.at += 1
    return _renamed(reader, schema) if verb == "RENAME" else _altered(reader, schema)


def _renamed(reader: Reader, schema: str) -> frozenset[_Name]:
    """One after the other, as the server does it: a table may come back to its own name."""
    now: dict[_Name, _Name] = {}
    """Name -> the name that the table there had before the statement."""
    while reader.at < len(reader.tokens):
        reader.take("IF", "EXISTS")
        old = _name(reader, schema)
        while reader.at < len(reader.tokens) and not reader.take("TO"):
            reader.at += 1  # MariaDB: WAIT n, NOWAIT
        new = _name(reader, schema)
        if old is not None and new is not None:
            now[new] = now.pop(old, old)
        reader.at += 1
    return frozenset(before for name, before in now.items() if before != name)


def _altered(reader: Reader, schema: str) -> frozenset[_Name]:
    reader.take("IF", "EXISTS")
    table = _name(reader, schema)
    found: set[_Name | None] = set()
    while reader.at < len(reader.tokens):
        if reader.take("RENAME"):
            if reader.word() not in ("COLUMN", "INDEX", "KEY"):
                reader.take("TO") or reader.take("AS") or reader.take("=")
                if _name(reader, schema) != table:
                    found.add(table)
        elif reader.take("EXCHANGE", "PARTITION"):
            reader.at += 1
            reader.take("WITH", "TABLE")
            found |= {table, _name(reader, schema)}
        elif reader.take("CONVERT", "TABLE"):
            found |= {table, _name(reader, schema)}
        elif reader.take("CONVERT", "PARTITION"):
            found.add(table)
        else:
            reader.at += 1
    return frozenset(name for name in found if name is not None)


def _name(reader: Reader, schema: str) -> _Name | None:
    name = reader.name(schema)
    if name is None:
        return None
    # It is in the client's character set, which rows are not.
    return name[0].lower(), name[1].lower() if name[1].isascii() else None
