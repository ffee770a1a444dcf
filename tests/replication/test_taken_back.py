"""Rows that are taken back in the binlog itself: ROLLBACK TO, and ROLLBACK, of transactions that leave in parts.

MariaDB writes these of a transaction in which a temporary table was made. MySQL leaves the rows out in the first place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mysqlraft.binlog.place import Place
from mysqlraft.replication.capture import CaptureState, UnitBroken, position_now
from mysqlraft.sandbox.servers import Engine, Server
from tests.replication.capture_rig import capturing, run

SMALL = 8192
"""Bytes of a part: eight rows or so."""


def rows(first: int, count: int) -> str:
    return "INSERT INTO d.t VALUES " + ", ".join(
        f"({number}, REPEAT('x', 1000))" for number in range(first, first + count)
    )


AFTER = [("d.t", "WRITE", None, 999)]
TEMPORARY = "CREATE TEMPORARY TABLE d.keeps_the_log (id INT)"

WAYS = {
    # statements between BEGIN and COMMIT -> the rows that are left
    "parts after the savepoint": ([rows(0, 3), "SAVEPOINT s", rows(10, 40), TEMPORARY, "ROLLBACK TO s"], range(3)),
    "parts before and after": (
        [rows(0, 30), "SAVEPOINT s", rows(100, 30), TEMPORARY, "ROLLBACK TO s", rows(200, 30)],
        [*range(30), *range(200, 230)],
    ),
    "nothing before": (["SAVEPOINT s", rows(0, 30), TEMPORARY, "ROLLBACK TO s", rows(50, 1)], [50]),
    "nothing left": (["SAVEPOINT s", rows(0, 30), TEMPORARY, "ROLLBACK TO s"], []),
    "two of them": (
        [
            *(rows(0, 2), "SAVEPOINT a", rows(10, 20), "SAVEPOINT b", rows(50, 20), TEMPORARY, "ROLLBACK TO b"),
            *(rows(100, 20), "ROLLBACK TO a", rows(200, 20)),
        ],
        [0, 1, *range(200, 220)],
    ),
    "to the same one twice": (
        [
            rows(0, 2),
            "SAVEPOINT a",
            rows(10, 20),
            TEMPORARY,
            "ROLLBACK TO a",
            rows(50, 20),
            "ROLLBACK TO a",
            rows(90, 1),
        ],
        [0, 1, 90],
    ),
    "in the middle of a part": (
        [rows(0, 3), "SAVEPOINT a", rows(10, 1), "SAVEPOINT b", rows(20, 30), TEMPORARY, "ROLLBACK TO b", rows(60, 20)],
        [0, 1, 2, 10, *range(60, 80)],
    ),
    "a name in other letters": (
        [rows(0, 3), "SAVEPOINT `né`", rows(10, 30), "SAVEPOINT b", TEMPORARY, "ROLLBACK TO `NÉ`", rows(60, 2)],
        [0, 1, 2, 60, 61],
    ),
    # The same name, or another one from MariaDB 11.5 on.
    "a name with an accent": (
        [
            rows(0, 3),
            "SAVEPOINT ne",
            rows(10, 9),
            "SAVEPOINT `né`",
            rows(50, 2),
            TEMPORARY,
            "ROLLBACK TO NE",
            rows(60, 2),
        ],
        None,
    ),
    "none is used": ([rows(0, 3), "SAVEPOINT a", rows(10, 30), "RELEASE SAVEPOINT a", rows(50, 30)], None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("xa", [False, True], ids=["", "xa"])
def test_rollback_to(server: Server, engine: Engine, way: str, xa: bool) -> None:
    statements, left = WAYS[way]
    if xa:
        if engine == "mysql":  # no temporary tables there
            statements = [statement for statement in statements if statement != TEMPORARY]
        statements = ["XA START 'x'", *statements, "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'"]
    else:
        statements = ["BEGIN", *statements, "COMMIT"]
    run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(1000))")
    with server.connect() as connection:
        now = position_now(connection)
    run(server, *statements)
    run(server, "INSERT INTO d.t VALUES (999, 'after')")
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM d.t WHERE id < 999 ORDER BY id")
        there = [number for (number,) in cursor.fetchall()]
    if left is not None:
        assert there == list(left)
    sessions = list(_sessions(server, CaptureState(now, (now.file, now.offset), 0)))
    # Without rows before the savepoint MariaDB logs a transaction that is rolled back, and then another one.
    assert len(sessions) == (2 if engine == "mariadb" and "nothing" in way else 1)
    assert sorted(row[3] for unit in sessions[-1][:-1] for row in unit) == there
    assert len(sessions[-1]) <= 2


def _sessions(server: Server, start: CaptureState) -> Iterator[list[Any]]:
    """What each session has captured, until one has all."""
    unfinished: list[Place] = []
    while True:
        with capturing(server, start, part_bytes=SMALL, unfinished=unfinished) as rig:
            rig.wait(lambda: isinstance(rig.error, UnitBroken) or (rig.log() and rig.log()[-1] == AFTER))
            yield rig.log()
            if not isinstance(rig.error, UnitBroken):
                return
            assert rig.error.unfinished is not None
            unfinished.append(rig.error.unfinished)


def test_parts_of_what_is_rolled_back(server: Server, engine: Engine) -> None:
    """Parts have left before it is known: the session ends, and the next one leaves it out."""
    run(server, "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(1000))")
    with capturing(server, part_bytes=SMALL) as rig:
        run(server, rows(1000, 1))
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        run(server, "BEGIN", rows(0, 40), TEMPORARY, "ROLLBACK", rows(500, 1))
        if engine == "mysql":
            rig.wait(lambda: rig.capture.status()["transactions"] == 2)
            return
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, UnitBroken)
        place, state = rig.error.unfinished, rig.state()
        assert place is not None
    with capturing(server, state, part_bytes=SMALL, unfinished=[place]) as rig:
        rig.wait(lambda: rig.capture.status()["transactions"] == 1)
        assert rig.log()[-1] == [("d.t", "WRITE", None, 500)]
