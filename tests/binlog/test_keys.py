"""Row keys against the server's own notion of equality: what it holds for equal must hash alike."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections import defaultdict
from typing import Any

import pymysql
import pytest

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.keys import UnhashableKey, compile_slicer, keys_of
from mysqlraft.sandbox.servers import Server
from tests.binlog.tap import RowsEvent, events, logs_generated_columns, rows_events, run, settings

# Letters with cases, accents, ligatures, contractions of many languages; ignorable, combining, wide characters; pads.
_PIECES = (
    *"aAbBcCdDeEhHlLnNsSzZ019 -_.",
    *("  ", "\t", "\x01", "\x7f", "aa", "ch", "CH", "Ch", "ll", "dz", "dzs", "DZS", "ccs", "cscs", "ij", "ss", "lj"),
    *("ä", "Ä", "ae", "æ", "Æ", "å", "Å", "ö", "oe", "ø", "ü", "ue", "ß", "ẞ", "ñ", "ç", "é", "e\u0301", "ı", "İ", "ł"),
    *("ĳ", "ǆ", "ǉ", "œ", "ﬀ", "²", "①", "٢", "Ａ", "ａ", "\u00ad", "\u200b", "\u0300", "\u00a0", "\u3000"),
    *(
        "あ",
        "ア",
        "ｱ",
        "か",
        "が",
        "カ",
        "ガ",
        "ー",
        "ゝ",
        "日",
        "本",
        "語",
        "한",
        "글",
        "я",
        "Я",
        "й",
        "и\u0306",
        "Σ",
        "ς",
        "σ",
    ),
    *("😀", "😁", "𝐀", "\ufffd", "ก", "เ", "กา", "क", "क्ष", "l·", "ŀ"),
)


def _texts(seed: int, count: int) -> list[str]:
    """Random short strings, with relatives of each: other case, padded, composed otherwise."""
    source = random.Random(seed)
    found: list[str] = ["", " ", "  "]
    while len(found) < count:
        text = "".join(source.choice(_PIECES) for _ in range(source.randint(1, 4)))
        found += [text, text.upper(), text.lower(), text + " ", text.swapcase()]
    return list(dict.fromkeys(found))


def _collations(server: Server) -> list[tuple[str, str, int]]:
    with server.connect() as connection:
        columns = {
            row[0]
            for row in run(connection, "SHOW COLUMNS FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY")
        }
        if "FULL_COLLATION_NAME" in columns:
            rows = run(
                connection,
                "SELECT FULL_COLLATION_NAME, CHARACTER_SET_NAME, ID"
                " FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY",
            )
        else:
            rows = run(connection, "SELECT COLLATION_NAME, CHARACTER_SET_NAME, ID FROM information_schema.COLLATIONS")
    return sorted((str(a), str(b), int(c)) for a, b, c in rows if b not in (None, "binary"))


def _check(connection: Any, source: ServerKeySource, name: str, charset: str, number: int, texts: list[str]) -> int:
    """Returns how many pairs of different strings the server holds for equal."""
    values = ", ".join(
        f"({n}, CONVERT(_utf8mb4 0x{text.encode().hex() or '20'} USING {charset}))" for n, text in enumerate(texts)
    )
    run(
        connection,
        "DROP TEMPORARY TABLE IF EXISTS a",
        "DROP TEMPORARY TABLE IF EXISTS b",
        f"CREATE TEMPORARY TABLE a (i INT, v VARCHAR(80), p VARCHAR(80)) CHARACTER SET {charset} COLLATE {name}",
        f"INSERT INTO a (i, v) VALUES {values}",
        "UPDATE a SET p = LEFT(v, 3)",
        "CREATE TEMPORARY TABLE b AS SELECT * FROM a",
    )
    raw = {int(i): bytes.fromhex(v) for i, v in run(connection, "SELECT i, HEX(v) FROM a")}
    fold = source.fold(number)
    equal = 0
    for column, prefix in (("v", 0), ("p", 3)):
        whole = fold.prefixed(prefix)
        folded = {}
        for i, value in raw.items():
            slow = whole(value)
            folded[i] = slow
            if fold.ascii is not None and value.isascii():
                quick = (value[:prefix] if prefix else value).translate(fold.ascii, fold.ignored).rstrip(fold.pad)
                assert quick == slow, (name, value)
        groups = defaultdict(list)
        for i, j in run(connection, f"SELECT a.i, b.i FROM a JOIN b ON a.{column} = b.{column} AND a.i < b.i"):
            equal += 1
            assert folded[i] == folded[j], (name, prefix, texts[i], texts[j], raw[i], raw[j], folded[i], folded[j])
            groups[i].append(j)
    return equal


@pytest.mark.timeout(600)
def test_every_collation(server: Server) -> None:
    """All collations of the server: strings equal under one fold alike, whole and cut to a prefix."""
    source = ServerKeySource(lambda: pymysql.connect(**settings(server)))
    pairs, quick = 0, 0
    with server.connect() as connection:
        run(connection, "SET sql_mode = ''", "CREATE DATABASE c", "USE c")
        found = _collations(server)
        for seed, (name, charset, number) in enumerate(found):
            pairs += _check(connection, source, name, charset, number, _texts(seed, 30))
            quick += source.fold(number).ascii is not None
    source.close()
    print(f"{len(found)} collations, {quick} with a quick way for ASCII, {pairs} pairs of equal strings")
    assert pairs > 20 * len(found)


@pytest.mark.parametrize(
    "name",
    [
        "utf8mb4_general_ci",
        "utf8mb4_unicode_ci",
        "latin1_swedish_ci",
        "latin1_german2_ci",
        "utf8mb4_bin",
        "utf8mb4_danish_ci",
    ],
)
def test_common_collations(server: Server, name: str) -> None:
    """More strings for the collations that everybody has."""
    source = ServerKeySource(lambda: pymysql.connect(**settings(server)))
    with server.connect() as connection:
        run(connection, "SET sql_mode = ''", "CREATE DATABASE c", "USE c")
        number = next(number for found, _, number in _collations(server) if found == name)
        assert _check(connection, source, name, name.partition("_")[0], number, _texts(7, 400)) > 100
    source.close()


def _hashes(server: Server, group: RowsEvent) -> list[int]:
    source = ServerKeySource(lambda: pymysql.connect(**settings(server)))
    keys: list[int] = []
    slicer = compile_slicer(group.table, group.kind, group.layout, keys_of(group.table, source), source)
    slicer(group.images, 0, len(group.images), keys.append)
    source.close()
    return keys


def test_keys_of_a_row(server: Server) -> None:
    """Primary key and unique keys, of both images, a NULL part left out, prefixes cut, zeros of both signs."""
    logged = logs_generated_columns(server)
    found = events(
        server,
        "CREATE DATABASE k",
        "USE k",
        "CREATE TABLE t (a INT, b VARCHAR(10), c VARCHAR(100), d DOUBLE, e INT,"
        f" v INT {'AS (a * 2) VIRTUAL' if logged else 'DEFAULT (a * 2)'},"
        " PRIMARY KEY (a, b), UNIQUE KEY (c(3)), UNIQUE KEY (d), UNIQUE KEY (e, a), UNIQUE KEY (v), KEY (e))",
        "INSERT INTO t (a, b, c, d, e) VALUES (1, 'x', 'abcdef', 0e0, NULL)",
        "INSERT INTO t (a, b, c, d, e) VALUES (2, 'X', NULL, 1, 7)",
        f"UPDATE t SET c = 'ABCxyz', d = -0e0, a = 3{'' if logged else ', v = 6'} WHERE a = 1",
        "DELETE FROM t WHERE a = 3",
    )
    insert, other, update, delete = (_hashes(server, group) for group in rows_events(found))
    assert len(insert) == 4  # PRIMARY, c, d, v
    assert len(other) == 4  # PRIMARY, d, e, v
    assert set(insert) < set(update)
    assert len(set(update) - set(insert)) == 2  # PRIMARY and v
    assert set(update) == set(insert) | set(delete)
    assert len(set(insert) & set(delete)) == 2  # c under its prefix, d by either zero
    # By name, not by value alone: no two keys of a table share a hash.
    assert len(set(insert) | set(other)) == 8


def test_seeds_agree_between_servers(server: Server) -> None:
    """The hash of one row, fixed: keys must agree among sites, versions and servers."""
    found = events(
        server,
        "CREATE DATABASE k",
        "CREATE TABLE k.t (id INT PRIMARY KEY, c VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci UNIQUE)",
        "INSERT INTO k.t VALUES (1, 'Straße ')",
    )
    (group,) = rows_events(found)
    assert struct.pack("<2Q", *_hashes(server, group)).hex() == _FIXED


_FIXED = "a150f4938afff9fcdb93e8ac9c6c8f76"


def test_refused_tables(server: Server) -> None:
    """What cannot be hashed from rows is refused by name, with what to do: drop a key, where that helps."""
    if server.engine == "mysql":
        definition = "id INT PRIMARY KEY, a VARCHAR(20), UNIQUE KEY f ((LOWER(a)))"
        row, why = "1, 'x'", "is on the expression"
    else:
        definition = (
            "id INT, s DATE, e DATE, PERIOD FOR p (s, e), PRIMARY KEY (id), UNIQUE KEY f (id, p WITHOUT OVERLAPS)"
        )
        row, why = "1, '2001-01-01', '2002-01-01'", "has a period"
    found = events(server, "CREATE DATABASE r", f"CREATE TABLE r.t ({definition})", f"INSERT INTO r.t VALUES ({row})")
    (group,) = rows_events(found)
    with pytest.raises(UnhashableKey, match=rf"r\.t: unique key f {why}.*\. Drop the key and reload"):
        _hashes(server, group)
    events(server, "ALTER TABLE r.t DROP INDEX f")
    assert len(_hashes(server, group)) == 1


@pytest.mark.parametrize(
    "before, write, after, why",
    [
        (
            "CREATE TABLE r.t (id INT)",
            ["INSERT INTO r.t VALUES (1)"],
            "ALTER TABLE r.t ADD PRIMARY KEY (id)",
            "it had no primary key",
        ),
        (
            "CREATE TABLE r.t (id INT PRIMARY KEY)",
            ["SET GLOBAL binlog_row_metadata = 'MINIMAL'", "INSERT INTO r.t VALUES (1)"],
            "SET GLOBAL binlog_row_metadata = 'FULL'",
            "binlog_row_metadata was not FULL",
        ),
    ],
)
def test_rows_that_nothing_helps(server: Server, before: str, write: list[str], after: str, why: str) -> None:
    """What is in the binlog stays as it was written, whatever is mended since."""
    *_, group = rows_events(events(server, "CREATE DATABASE r", before, *write))
    with server.connect() as connection:
        for statement in ("DO 0", after):
            run(connection, statement)
            with pytest.raises(UnhashableKey, match=rf"r\.t: rows were written while {why}.*exclude the table"):
                _hashes(server, group)


def test_large_strings_are_not_kept(server: Server) -> None:
    """MariaDB has unique keys on strings of any size."""
    with server.connect() as connection:
        source = ServerKeySource(server.connect)
        number = run(
            connection, "SELECT id FROM information_schema.collations WHERE collation_name = 'utf8mb4_unicode_ci'"
        )
        fold = source.fold(int(number[0][0])).prefixed(0)
        fold("ä".encode())
        tracemalloc.start()
        try:
            for n in range(100):
                fold(f"{n:03}ä".encode() * 2000)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        source.close()
        assert kept < 1 << 20, kept
