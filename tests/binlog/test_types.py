"""Every column type of both servers, with random values: images are cut where rows end, keys agree with the server."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pymysql
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mysqlraft.binlog.display import row_json
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.keys import compile_slicer, keys_of
from mysqlraft.binlog.rows import fields, image_of, layout_of, pick, primary_key
from mysqlraft.binlog.values import encode, literal, selected
from mysqlraft.sandbox.servers import Server
from tests.binlog.tap import events, rows_events, run
from tests.binlog.tap import settings as connect
from tests.binlog.types import SqlType, types_of

# No shrinking: a smaller example takes more tables than a test's time allows.
_PROPERTY = settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _create(columns: list[SqlType], *, keys: bool) -> str:
    lines = ["id INT NOT NULL PRIMARY KEY"]
    for n, column in enumerate(columns):
        lines.append(f"c{n} {column.declaration}")
        if keys and column.key:
            lines.append(f"KEY k{n} (c{n}{f'({column.prefix})' if column.prefix else ''})")
    return f"CREATE TABLE t ({', '.join(lines)})"


@_PROPERTY
@given(data=st.data())
def test_random_tables(server: Server, data: st.DataObject) -> None:
    """Images, key values there and back, and display, for rows of random tables."""
    types = types_of(server.engine)
    columns = data.draw(st.lists(st.sampled_from(types), min_size=1, max_size=12))
    rows = data.draw(
        st.lists(
            st.tuples(*(st.one_of(c.values, st.just("DEFAULT")) for c in columns)).map(list), min_size=1, max_size=5
        )
    )
    inserts = [f"({n}, {', '.join(row)})" for n, row in enumerate(rows)]
    names = ", ".join(["id", *(f"c{n}" for n in range(len(columns)))])
    found = events(
        server,
        "CREATE DATABASE IF NOT EXISTS d",
        "USE d",
        "DROP TABLE IF EXISTS t",
        _create(columns, keys=False),
        f"INSERT INTO t ({names}) VALUES {', '.join(inserts)}",
        "UPDATE t SET id = id + 1000",
        "DELETE FROM t",
        f"INSERT INTO t ({names}) VALUES {', '.join(inserts)}",
    )
    groups = list(rows_events(found))
    assert [sum(len(g.rows()) for g in groups if g.kind == kind) for kind in (0, 1, 2)] == [
        2 * len(rows),
        len(rows),
        len(rows),
    ]
    source = ServerKeySource(lambda: pymysql.connect(**connect(server)))
    with closing(source), server.connect("d") as connection:
        run(connection, "SET sql_mode = ''", "SET time_zone = '+00:00'")
        for group in groups:
            keys: list[int] = []
            slicer = compile_slicer(group.table, group.kind, group.layout, keys_of(group.table, source), source)
            assert slicer(group.images, 0, len(group.images), keys.append) == len(group.rows())
            assert group.table.named
            for before, after in group.rows():
                for image in filter(None, (before, after)):
                    values = fields(group.columns, image)
                    assert fields(group.columns, image_of(values)) == values
                    assert list(json.loads(row_json(group.columns, image))) == [c.name for c in group.columns]
        for group in groups[-1:]:
            for _, after in group.rows():
                assert after is not None
                _compare(connection, group.columns, fields(group.columns, after), columns, source)


def _compare(
    connection: Any, columns: Any, values: list[bytes | None], types: list[SqlType], source: ServerKeySource
) -> None:
    """Every key-capable value of a row: the server finds it by our literal, and we make the field of its answer."""
    number = int.from_bytes(values[0] or b"", "little")
    wanted = [
        (column, value)
        for column, value, kind in zip(columns[1:], values[1:], types, strict=True)
        if kind.key and value is not None
    ]
    if not wanted:
        return
    parts = []
    for column, value in wanted:
        parts += [selected(column, column.name), f"{column.name} = {literal(column, value, source.collations)}"]
    (answers,) = run(connection, f"SELECT {', '.join(parts)} FROM t WHERE id = {number}")
    for (column, value), answer, equal in zip(wanted, answers[::2], answers[1::2], strict=True):
        assert equal, (column, value, answer)
        made = encode(column, answer)
        if column.type.name in ("FLOAT", "DOUBLE"):
            made, value = (
                raw[:-1] + bytes((raw[-1] & 0x7F,)) if not any(raw[:-1]) else raw for raw in (made or b"", value)
            )
        assert made == value, (column, answer)


def test_a_thousand_columns(server: Server) -> None:
    """More columns than one length byte counts."""
    names = [f"c{n}" for n in range(1010)]
    found = events(
        server,
        "CREATE DATABASE w",
        "CREATE TABLE w.t (id INT PRIMARY KEY, " + ", ".join(f"{n} TINYINT" for n in names) + ")",
        "INSERT INTO w.t (id, c0, c500, c1009) VALUES (1, 2, 3, 4), (5, 6, NULL, 8)",
        "UPDATE w.t SET c1009 = 9",
    )
    write, update = rows_events(found)
    seen = [
        {c.name: v for c, v in zip(write.columns, fields(write.columns, after or b""), strict=True) if v is not None}
        for _, after in write.rows()
    ]
    one = [bytes((n,)) for n in range(10)]
    assert seen == [
        {"id": b"\1\0\0\0", "c0": one[2], "c500": one[3], "c1009": one[4]},
        {"id": b"\5\0\0\0", "c0": one[6], "c1009": one[8]},
    ]
    assert len(update.rows()) == 2
    before, after = update.rows()[1]
    wanted = primary_key(update.table)
    assert pick(update.columns, wanted, before or b"") == pick(update.columns, wanted, after or b"") == [b"\5\0\0\0"]
    assert layout_of(update.table, 1, update.columns, update.columns) != update.layout[:-1]


def test_large_values(server: Server) -> None:
    """A row larger than one packet of the protocol."""
    size = (16 << 20) + 100
    found = events(
        server,
        "CREATE DATABASE big",
        "CREATE TABLE big.t (id INT PRIMARY KEY, b LONGBLOB)",
        f"INSERT INTO big.t VALUES (1, REPEAT('x', {size})), (2, 'y')",
    )
    first, second = (after for group in rows_events(found) for _, after in group.rows())
    assert first is not None
    assert first.endswith(b"x" * size)
    assert len(first) == 1 + 4 + 4 + size
    assert (second or b"").endswith(b"y")
