"""Column types of both servers, with a strategy for SQL values of each."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from mysqlraft.sandbox.servers import Engine

Sql = st.SearchStrategy[str]


@dataclass(frozen=True)
class SqlType:
    """``key``: whether it may be part of a key; ``prefix``: the length to index it with, if it needs one."""

    declaration: str
    values: Sql
    key: bool = True
    prefix: int = 0


def _integers(bits: int, signed: bool) -> Sql:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.one_of(st.integers(low, high), st.sampled_from((low, high, 0, 1))).map(str)


def _decimals(whole: int, scale: int) -> Sql:
    def spell(sign: str, before: int, after: int) -> str:
        return f"{sign}{before}.{str(after).zfill(scale)}" if scale else f"{sign}{before}"

    return st.builds(spell, st.sampled_from(("", "-")), st.integers(0, 10**whole - 1), st.integers(0, 10**scale - 1))


def _hex(charset: str, encoding: str, most: int) -> Sql:
    texts = st.one_of(
        st.text(st.characters(codec=encoding), max_size=most),
        st.text("abcABC eéEÉsßSæ\t .\x00", max_size=most),
    )

    def literal(text: str) -> str:
        try:
            return f"_{charset} 0x{text.encode(encoding).hex()}" if text else "''"
        except UnicodeEncodeError:
            return "'x'"

    return texts.map(literal)


def _bytes(most: int) -> Sql:
    return st.binary(max_size=most).map(lambda value: f"x'{value.hex()}'")


def _dates() -> Sql:
    return st.one_of(st.dates().map(lambda day: f"'{day}'"), st.just("'0000-00-00'"), st.just("'2024-00-00'"))


def _datetimes(digits: int) -> Sql:
    return st.one_of(
        st.datetimes().map(
            lambda at: f"'{at:%Y-%m-%d %H:%M:%S.%f}'".replace("'9999-12-31 23:59:59.", "'9999-12-31 23:59:58.")
        ),
        st.just("'0000-00-00 00:00:00'"),
    )


def _timestamps() -> Sql:
    return st.one_of(
        st.integers(1, 2**31 - 2).map(lambda s: f"FROM_UNIXTIME({s}.123456)"), st.just("'0000-00-00 00:00:00'")
    )


def _times() -> Sql:
    def spell(sign: str, h: int, m: int, s: int, fraction: int) -> str:
        return f"'{sign}{h:02}:{m:02}:{s:02}.{fraction:06}'"

    small = st.integers(0, 59)
    return st.builds(spell, st.sampled_from(("", "-")), st.integers(0, 837), small, small, st.integers(0, 999_999))


_FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False).map(
        lambda x: f"{x!r}e0" if "e" not in repr(x) else repr(x)
    ),
    st.sampled_from(("0e0", "-0e0", "1.1", "-1.1")),
)
_LABELS = "('a','B','é','','x y')"
_SETS = "(" + ",".join(f"'m{n}'" for n in range(64)) + ")"

COMMON = (
    *(
        SqlType(f"{name}{' UNSIGNED' if not signed else ''}", _integers(bits, signed))
        for name, bits in (("TINYINT", 8), ("SMALLINT", 16), ("MEDIUMINT", 24), ("INT", 32), ("BIGINT", 64))
        for signed in (True, False)
    ),
    SqlType("FLOAT", _FLOATS),
    SqlType("DOUBLE", _FLOATS),
    SqlType("DECIMAL(20,7)", _decimals(13, 7)),
    SqlType("DECIMAL(65,30)", _decimals(35, 30)),
    SqlType("DECIMAL(9,9)", _decimals(0, 9)),
    SqlType("DECIMAL(5,0)", _decimals(5, 0)),
    SqlType("BIT(1)", _integers(1, False)),
    SqlType("BIT(9)", _integers(9, False)),
    SqlType("BIT(64)", _integers(64, False)),
    SqlType("YEAR", st.one_of(st.integers(1901, 2155), st.just(0)).map(str)),
    SqlType("DATE", _dates()),
    *(SqlType(f"TIME({n})", _times()) for n in (0, 1, 2, 3, 4, 5, 6)),
    *(SqlType(f"DATETIME({n})", _datetimes(n)) for n in (0, 1, 4, 6)),
    *(SqlType(f"TIMESTAMP({n}) NULL", _timestamps()) for n in (0, 3, 5)),
    SqlType("CHAR(10)", _hex("utf8mb4", "utf-8", 10)),
    SqlType("CHAR(200)", _hex("utf8mb4", "utf-8", 20)),
    SqlType("VARCHAR(20)", _hex("utf8mb4", "utf-8", 20)),
    SqlType("VARCHAR(300) COLLATE utf8mb4_bin", _hex("utf8mb4", "utf-8", 40)),
    SqlType("VARCHAR(20) CHARACTER SET latin1", _hex("latin1", "cp1252", 20)),
    SqlType("CHAR(9) CHARACTER SET utf16", _hex("utf16", "utf-16-be", 9)),
    SqlType("VARCHAR(9) CHARACTER SET sjis", _hex("sjis", "shift_jis", 9)),
    SqlType("BINARY(6)", _bytes(6)),
    SqlType("VARBINARY(300)", _bytes(40)),
    SqlType("TINYTEXT", _hex("utf8mb4", "utf-8", 20), prefix=10),
    SqlType("TEXT", _hex("utf8mb4", "utf-8", 30), prefix=7),
    SqlType("MEDIUMBLOB", _bytes(30), prefix=9),
    SqlType("LONGBLOB", _bytes(30), prefix=9),
    SqlType(f"ENUM{_LABELS}", st.integers(1, 5).map(str)),
    SqlType("SET('a','b','c')", st.integers(0, 7).map(str)),
    SqlType(f"SET{_SETS}", st.one_of(st.integers(0, 2**64 - 1), st.just(2**63)).map(str)),
    SqlType("JSON", st.sampled_from(("'{\"a\": [1, null]}'", "'[]'", "'\"x\"'")), key=False),
    SqlType("GEOMETRY", st.just("ST_GeomFromText('LINESTRING(0 0, 1 1)')"), key=False),
    SqlType("INT GENERATED ALWAYS AS (id + 1) VIRTUAL", st.just("DEFAULT")),
    SqlType("VARCHAR(30) GENERATED ALWAYS AS (CONCAT('x', id)) STORED", st.just("DEFAULT")),
)
_ADDRESSES = st.binary(min_size=16, max_size=16)
OWN: dict[Engine, tuple[SqlType, ...]] = {
    "mysql": (
        SqlType("VECTOR(3)", st.just("STRING_TO_VECTOR('[1, 2.5, -3]')"), key=False),
        SqlType("INT INVISIBLE", _integers(32, True)),
        SqlType("VARCHAR(20) COLLATE utf8mb4_0900_as_cs", _hex("utf8mb4", "utf-8", 20)),
        SqlType("VARCHAR(20) COLLATE utf8mb4_ja_0900_as_cs", _hex("utf8mb4", "utf-8", 20)),
    ),
    "mariadb": (
        SqlType("UUID", st.uuids().map(lambda u: f"'{u}'")),
        SqlType("INET6", st.ip_addresses(v=6).map(lambda a: f"'{a}'")),
        SqlType("INET4", st.ip_addresses(v=4).map(lambda a: f"'{a}'")),
        SqlType("VARCHAR(300) COMPRESSED", _hex("utf8mb4", "utf-8", 40), key=False),
        SqlType("BLOB COMPRESSED", _bytes(60), key=False),
        SqlType("VARCHAR(20) COLLATE utf8mb4_unicode_520_ci", _hex("utf8mb4", "utf-8", 20)),
        SqlType("VARCHAR(20) COLLATE uca1400_ai_ci", _hex("utf8mb4", "utf-8", 20)),
    ),
}


def types_of(engine: Engine) -> tuple[SqlType, ...]:
    """All types of a server."""
    return (*COMMON, *OWN[engine])
