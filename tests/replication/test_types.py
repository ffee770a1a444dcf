"""The type matrix: every column type of both servers arrives as it left, by either lane.

What one server's application writes is captured and applied to another, by the fast lane and by the careful lane, and
compared by CHECKSUM TABLE and column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pymysql
import pytest
from pymysql.cursors import Cursor

from mysqlraft.sandbox.servers import Engine, Installation
from tests.binlog.tap import logs_generated_columns
from tests.harness.pool import LendServers
from tests.replication.harness import run
from tests.replication.recorder import here, record
from tests.replication.test_lanes import items_of, lane_at

pytestmark = pytest.mark.timeout(300)

# column definition -> literals; NULL is added to each. The table has an integer primary key.
COMMON: dict[str, Sequence[str]] = {
    "TINYINT": ("-128", "0", "127"),
    "TINYINT UNSIGNED": ("0", "128", "255"),
    "BOOLEAN": ("TRUE", "FALSE"),
    "SMALLINT": ("-32768", "32767"),
    "SMALLINT UNSIGNED": ("65535",),
    "MEDIUMINT": ("-8388608", "8388607"),
    "MEDIUMINT UNSIGNED": ("16777215",),
    "INT": ("-2147483648", "2147483647"),
    "INT UNSIGNED ZEROFILL": ("0", "7", "4294967295"),
    "BIGINT": ("-9223372036854775808", "9223372036854775807"),
    "BIGINT UNSIGNED": ("0", "18446744073709551615"),
    "FLOAT": ("-3.402823466e38", "1.175494351e-38", "0.1", "-0.0"),
    "DOUBLE": ("-1.7976931348623157e308", "2.2250738585072014e-308", "0.1", "-0.0"),
    "DECIMAL(1,0)": ("-9", "0", "9"),
    "DECIMAL(10,5)": ("-99999.99999", "0.00001", "12345.67890"),
    "DECIMAL(65,30)": ("-99999999999999999999999999999999999.999999999999999999999999999999", "0.1"),
    "BIT(1)": ("b'0'", "b'1'"),
    "BIT(10)": ("b'0'", "b'1000000001'"),
    "BIT(64)": ("0", "18446744073709551615", "1"),
    "DATE": ("'0000-00-00'", "'2024-00-15'", "'1000-01-01'", "'9999-12-31'"),
    "TIME": ("'-838:59:59'", "'00:00:00'", "'838:59:59'"),
    "TIME(6)": ("'-838:59:58.999999'", "'12:34:56.000001'", "'-00:00:00.000001'"),
    "DATETIME": ("'0000-00-00 00:00:00'", "'2024-02-29 23:59:59'", "'9999-12-31 23:59:59'"),
    "DATETIME(3)": ("'2024-02-29 23:59:59.999'", "'0000-00-00 00:00:00'"),
    "DATETIME(6)": ("'9999-12-31 23:59:59.999999'",),
    "TIMESTAMP NULL": ("'0000-00-00 00:00:00'", "'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'"),
    "TIMESTAMP(6) NULL": ("'2038-01-19 03:14:07.999999'", "'2024-03-31 02:30:00.000001'"),
    "YEAR": ("0", "1901", "2155"),
    "CHAR(0)": ("''",),
    "CHAR(10)": ("''", "'a'", "'trailing  '", "'éüß'"),
    "CHAR(255) CHARACTER SET utf8mb4": ("REPEAT('😀', 255)", "''"),
    "VARCHAR(0)": ("''",),
    "VARCHAR(85)": ("''", "'a '", "REPEAT('é', 85)"),
    "VARCHAR(300)": ("REPEAT('x', 300)", "'quote \\' backslash \\\\ zero \\0 newline \\n'"),
    "VARCHAR(16000)": ("REPEAT('long', 4000)",),
    "BINARY(6)": ("''", "0x610000", "0x000000000000", "0xFFFFFFFFFFFF"),
    "BINARY(255)": ("0x20",),
    "VARBINARY(10)": ("''", "0x00", "0x61000000", "0x2020"),
    "VARBINARY(1000)": ("REPEAT(0xFE, 1000)",),
    "TINYTEXT": ("''", "REPEAT('t', 255)"),
    "TEXT": ("REPEAT('text', 10000)",),
    "MEDIUMTEXT": ("REPEAT('m', 70000)",),
    "LONGTEXT": ("REPEAT('l', 70000)", "''"),
    "TINYBLOB": ("0x00", "REPEAT(0xFF, 255)"),
    "BLOB": ("REPEAT(0xAB, 65535)",),
    "MEDIUMBLOB": ("REPEAT(0x00, 70000)",),
    "LONGBLOB": ("REPEAT(0xCD, 4194304)",),
    "ENUM('a','b','c''d','é')": ("'a'", "'c''d'", "'é'", "''"),
    "SET('x','y','z','w,'' ')".replace("w,'' ", "w''"): ("''", "'x'", "'x,y,z'", "'z,w'''"),
    "JSON": (
        "'{}'",
        "'[]'",
        "'null'",
        '\'{"a": [1, -2.5, "é😀", null, true], "b": {"c": 18446744073709551615}}\'',
        "'\"text\"'",
    ),
    "GEOMETRY": (
        "ST_GeomFromText('POINT(1 2)')",
        "ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 1),LINESTRING(0 0,1 1))')",
    ),
    "POINT": ("ST_GeomFromText('POINT(-1.5 2.5)')",),
    "LINESTRING": ("ST_GeomFromText('LINESTRING(0 0,1 1,2 2)')",),
    "POLYGON": ("ST_GeomFromText('POLYGON((0 0,10 0,10 10,0 10,0 0),(5 5,7 5,7 7,5 7,5 5))')",),
    "MULTIPOINT": ("ST_GeomFromText('MULTIPOINT(0 0,20 20)')",),
    "MULTILINESTRING": ("ST_GeomFromText('MULTILINESTRING((10 10,20 20),(15 15,30 15))')",),
    "MULTIPOLYGON": ("ST_GeomFromText('MULTIPOLYGON(((0 0,3 0,3 3,0 3,0 0)))')",),
    "GEOMETRYCOLLECTION": ("ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 1))')",),
}
ONLY: dict[Engine, dict[str, Sequence[str]]] = {
    "mysql": {
        "VECTOR(3)": ("STRING_TO_VECTOR('[1,-2.5,3e10]')", "STRING_TO_VECTOR('[0]')"),
        "VECTOR(16383)": (f"STRING_TO_VECTOR('[{','.join(['0.5'] * 16383)}]')",),
        "POINT SRID 4326": ("ST_GeomFromText('POINT(45 90)', 4326)",),
    },
    "mariadb": {
        "INET4": ("'0.0.0.0'", "'192.168.0.1'", "'255.255.255.255'"),
        "INET6": ("'::'", "'2001:db8::ff00:42:8329'", "'::ffff:192.0.2.128'"),
        "UUID": ("'00000000-0000-0000-0000-000000000000'", "'6ccd780c-baba-1026-9564-5b8c656024db'"),
        "VARCHAR(1000) COMPRESSED": ("REPEAT('compress me ', 80)", "''"),
        "BLOB COMPRESSED": ("REPEAT('compress me ', 800)", "''"),
        "LONGTEXT COMPRESSED": ("REPEAT('compress me ', 8000)",),
    },
}
VECTORS_OF_MARIADB = {
    "VECTOR(3)": ("VEC_FromText('[1,-2.5,3e10]')", "VEC_FromText('[0,0,0]')"),
    "VECTOR(4000)": (f"VEC_FromText('[{','.join(['0.5'] * 4000)}]')",),
}
"""From 11.7 on."""
SKIPPED_CHARSETS = ("binary", "filename")


def equal(cursors: Sequence[Cursor], table: str) -> None:
    """The table is the same at all servers: by checksum and by every column of every row."""
    sums = [run(cursor, f"CHECKSUM TABLE {table}") for cursor in cursors]
    schema, name = table.split(".")
    columns = run(
        cursors[0],
        "SELECT column_name, data_type FROM information_schema.columns"
        f" WHERE table_schema = '{schema}' AND table_name = '{name}' ORDER BY ordinal_position",
    )
    # PyMySQL takes a vector for text.
    selected = ", ".join(f"HEX({column})" if kind == "vector" else column for column, kind in columns)
    rows: list[list[tuple[Any, ...]]] = [
        run(cursor, f"SELECT {selected} FROM {table} ORDER BY 1") for cursor in cursors
    ]
    for other in rows[1:]:
        assert len(other) == len(rows[0])
        for mine, theirs in zip(rows[0], other, strict=True):
            for number, (left, right) in enumerate(zip(mine, theirs, strict=True)):
                assert left == right, f"{table}, row {mine[0]}, column {number + 1}"
    assert all(each == sums[0] for each in sums), f"checksums of {table}: {sums}"


def replicate(servers: LendServers, schema: Sequence[str], writes: Sequence[str], tables: Sequence[str]) -> int:
    """Runs the writes at one server and has them applied at another, by each lane in turn; compares all tables.

    Returns how many changes were applied by each lane.
    """
    source, target = servers(2)
    variables = ("SET sql_mode = ''", "SET time_zone = '+00:00'")
    with source.connect(client_flag=0) as here_client, here_client.cursor() as cursor:
        run(cursor, *variables, *schema)
        begin = here(source)
        run(cursor, *writes)
        items = items_of(record(source, begin))
        for carefully in (False, True):
            with target.connect() as client, client.cursor() as there, lane_at(target) as lane:
                run(there, "DROP DATABASE IF EXISTS s", *variables, *schema)
                if carefully:
                    lane.apply_carefully(items)
                    # Once more, now that all rows are there: what re-assertion does.
                    lane.apply_carefully(items)
                else:
                    lane.apply_fast(items)
                    assert lane.writer.fallbacks == 0
                for table in tables:
                    equal((cursor, there), table)
    return len(items)


def types_of(engine: Engine, installation: Installation) -> dict[str, Sequence[str]]:
    vectors = engine == "mariadb" and installation.version >= (11, 7, 0)
    return {**COMMON, **ONLY[engine], **(VECTORS_OF_MARIADB if vectors else {})}


def test_every_type(servers: LendServers, engine: Engine, installation: Installation) -> None:
    schema, writes, tables = ["CREATE DATABASE s CHARACTER SET utf8mb4"], [], []
    types = types_of(engine, installation)
    for number, (kind, literals) in enumerate(types.items()):
        table = f"s.t{number}"
        tables.append(table)
        schema.append(f"CREATE TABLE {table} (id INT PRIMARY KEY, c {kind})")
        values = ["NULL", *literals]
        rows = ",".join(f"({n}, {value})" for n, value in enumerate(values))
        writes.append(f"INSERT INTO {table} VALUES {rows}")
        # Every value after every other, NULL too.
        writes.append(f"UPDATE {table} SET c = {values[-1]} WHERE id = 0")
        writes.append(f"UPDATE {table} SET c = NULL WHERE id = 1")
        writes.append(f"INSERT INTO {table} SELECT id + 100, c FROM {table}")
        writes.append(f"DELETE FROM {table} WHERE id = 100")
        if len(values) > 2:
            writes.append(f"UPDATE {table} SET c = {values[1]}, id = id + 500 WHERE id = 2")
    changes = replicate(servers, schema, writes, tables)
    print(f"{engine}: {len(types)} types, {changes} changes by each lane")


def test_every_character_set(servers: LendServers, engine: Engine) -> None:
    server = servers(1)[0]
    with server.connect() as client, client.cursor() as cursor:
        charsets = [str(row[0]) for row in run(cursor, "SHOW CHARACTER SET") if row[0] not in SKIPPED_CHARSETS]
    schema, writes, tables = ["CREATE DATABASE s"], [], []
    for charset in charsets:
        table = f"s.t_{charset}"
        tables.append(table)
        schema.append(
            f"CREATE TABLE {table} (id VARCHAR(20) PRIMARY KEY, c CHAR(20), v VARCHAR(200), t TEXT, e ENUM('a','b'),"
            f" UNIQUE (c)) CHARACTER SET {charset}"
        )
        texts = ["abc", "ABD ", "Straße", "żółć", "日本語", "привет", ""]
        kept = [f"('{n}{text}', '{n}{text}', '{text}', REPEAT('{text}', 50), 'b')" for n, text in enumerate(texts)]
        writes += [f"INSERT IGNORE INTO {table} VALUES {row}" for row in kept]
        writes.append(f"UPDATE {table} SET v = 'x', id = CONCAT(id, 'y') WHERE id LIKE '1%'")
        writes.append(f"DELETE FROM {table} WHERE id LIKE '2%'")
    changes = replicate(servers, schema, writes, tables)
    print(f"{engine}: {len(charsets)} character sets, {changes} changes by each lane")


KEYS = (
    ("INT, SMALLINT UNSIGNED", ("-5, 65535", "-5, 1", "0, 0")),
    ("VARCHAR(30) COLLATE utf8mb4_general_ci, INT", ("'Müller', 1", "'müller', 2", "'', 1")),
    ("CHAR(30) COLLATE utf8mb4_unicode_ci", ("'Straße'", "'zebra '", "'ÅNGSTRÖM'")),
    ("VARCHAR(30) COLLATE utf8mb4_bin", ("'a'", "'A'", "'a  b'")),
    ("BINARY(4), VARBINARY(8)", ("0x61, 0x00", "0x6100, 0x0000", "'', ''")),
    ("DATE, TIME(3)", ("'0000-00-00', '-838:59:59'", "'2024-01-01', '10:00:00.123'")),
    ("DATETIME(6), TIMESTAMP(2)", ("'2024-01-01 00:00:00.000001', '2024-07-01 00:00:00.25'",)),
    ("DECIMAL(20,6), DOUBLE", ("-1.5, 0.1", "0, -0.0", "12345678901234.123456, 1e300")),
    ("ENUM('x','y'), SET('a','b','c')", ("'x', ''", "'y', 'a,c'")),
    ("BIT(12), YEAR", ("b'101', 1999", "0, 0")),
    ("BIGINT UNSIGNED, MEDIUMINT, TINYINT", ("18446744073709551615, -8388608, -128",)),
    ("FLOAT", ("0.1", "1e10", "-0.5")),
)


def test_every_kind_of_key(servers: LendServers, engine: Engine) -> None:
    """Primary keys of every type, single and composite, and the same columns as a unique key."""
    schema, writes, tables = ["CREATE DATABASE s CHARACTER SET utf8mb4"], [], []
    for number, (kinds, values) in enumerate(KEYS):
        names = [f"k{n}" for n in range(len(values[0].split(", ")))]
        parts = _split(kinds)
        columns = ", ".join(f"{name} {kind} NOT NULL" for name, kind in zip(names, parts, strict=True))
        reversed_names = ", ".join(reversed(names))
        for unique in (False, True):
            table = f"s.t{number}{'u' if unique else ''}"
            tables.append(table)
            if unique:
                keys = f"id INT AUTO_INCREMENT PRIMARY KEY, v INT, {columns}, UNIQUE ({', '.join(names)})"
            else:
                keys = f"{columns}, v INT, PRIMARY KEY ({reversed_names})"
            schema.append(f"CREATE TABLE {table} ({keys})")
            for n, value in enumerate(values):
                writes.append(f"INSERT INTO {table} (v, {', '.join(names)}) VALUES ({n}, {value})")
            writes.append(f"UPDATE {table} SET v = v + 100")
            writes.append(f"DELETE FROM {table} WHERE v = 100")
            writes.append(f"INSERT INTO {table} (v, {', '.join(names)}) VALUES (7, {values[0]})")
    changes = replicate(servers, schema, writes, tables)
    print(f"{engine}: {len(KEYS)} kinds of keys, {changes} changes by each lane")


def _split(kinds: str) -> list[str]:
    """At commas outside parentheses."""
    found, depth = [""], 0
    for letter in kinds:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [kind.strip() for kind in found]


def test_generated_invisible_and_many_columns(servers: LendServers, engine: Engine) -> None:
    many = ", ".join(f"c{n} {'SMALLINT' if n % 3 else 'VARCHAR(3)'}" for n in range(1010))
    values = ", ".join(f"'{n % 1000}'" if n % 2 else "NULL" for n in range(1010))
    schema = [
        "CREATE DATABASE s CHARACTER SET utf8mb4",
        "CREATE TABLE s.g (id INT PRIMARY KEY, a INT, v INT GENERATED ALWAYS AS (a * 2) VIRTUAL, b VARCHAR(20),"
        " st VARCHAR(40) GENERATED ALWAYS AS (CONCAT(b, '-', a)) STORED, z INT, UNIQUE (st))",
        "CREATE TABLE s.i (id INT PRIMARY KEY, hidden INT INVISIBLE DEFAULT 5, b INT)",
        f"CREATE TABLE s.m (id INT PRIMARY KEY, {many})",
        "CREATE TABLE s.p (id INT, k VARCHAR(500), b BLOB, PRIMARY KEY (id, k(10)), UNIQUE (b(20)))",
    ]
    if not logs_generated_columns(servers(1)[0]):
        schema[1] = schema[1].replace("UNIQUE (st)", "KEY (st)")
    writes = [
        "INSERT INTO s.g (id, a, b, z) VALUES (1, 10, 'x', 1), (2, NULL, 'y', 2), (3, 30, NULL, 3)",
        "UPDATE s.g SET a = a + 1",
        "UPDATE s.g SET id = 20 WHERE id = 2",
        "INSERT INTO s.i (id, b) VALUES (1, 1)",
        "INSERT INTO s.i (id, hidden, b) VALUES (2, 7, 2)",
        "UPDATE s.i SET hidden = 8 WHERE id = 1",
        f"INSERT INTO s.m VALUES (1, {values}), (2, {values})",
        "UPDATE s.m SET c1009 = 5, c0 = 'z' WHERE id = 2",
        "INSERT INTO s.p VALUES (1, REPEAT('k', 400), REPEAT('b', 100)), (1, 'other', 'unique')",
        "UPDATE s.p SET k = CONCAT(k, '!') WHERE k LIKE 'k%'",
        "DELETE FROM s.p WHERE k = 'other'",
    ]
    replicate(servers, schema, writes, ["s.g", "s.i", "s.m", "s.p"])


@pytest.mark.parametrize("engine", ["mysql"])
def test_a_primary_key_that_the_server_generated(servers: LendServers) -> None:
    schema = ["CREATE DATABASE s", "SET sql_generate_invisible_primary_key = 1", "CREATE TABLE s.t (a INT)"]
    replicate(servers, schema, ["INSERT INTO s.t VALUES (1), (2), (2)", "DELETE FROM s.t WHERE a = 1"], ["s.t"])


def test_the_matrix_is_complete(servers: LendServers, engine: Engine, installation: Installation) -> None:
    """Whatever word the server takes for a type makes a column of a type that is in the matrix."""
    with servers(1)[0].connect() as client, client.cursor() as cursor:
        run(cursor, "SET sql_mode = ''", "CREATE DATABASE s", "USE s")

        def made(declaration: str) -> str | None:
            """The type of a column declared so; None if the server does not take it."""
            try:
                run(cursor, f"CREATE TABLE x (id INT PRIMARY KEY, c {declaration})")
            except pymysql.err.MySQLError:
                return None
            kind = str(run(cursor, "SHOW COLUMNS FROM x LIKE 'c'")[0][1])
            run(cursor, "DROP TABLE x")
            return kind.partition("(")[0].partition(" ")[0]

        covered = {declaration: made(declaration) for declaration in types_of(engine, installation)}
        assert None not in covered.values(), covered
        words = {str(row[0]) for row in run(cursor, "SELECT word FROM information_schema.keywords")}
        words |= {str(row[0]) for row in run(cursor, "SELECT plugin_name FROM information_schema.plugins")}
        found = {word: made(word) or made(f"{word}(5)") or made(f"{word}('a')") for word in sorted(words)}
        types = {word: kind for word, kind in found.items() if kind is not None}
        assert len(types) > 40
        assert set(types.values()) <= set(covered.values()), types
        print(
            f"{engine}: {len(words)} words, of which {len(types)} are types: {', '.join(sorted(set(types.values())))}"
        )
