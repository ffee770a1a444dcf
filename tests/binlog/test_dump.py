"""What is left out where only statements are looked for."""

from __future__ import annotations

import pytest

from mysqlraft.binlog import dump as dumps
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import EventType, is_begin, rotate
from mysqlraft.replication.capture import position_now
from mysqlraft.sandbox.servers import Server
from tests.binlog.tap import run, settings


@pytest.mark.parametrize("read_size", [61, 997, dumps.READ_SIZE])
def test_a_skim_sees_every_statement(server: Server, monkeypatch: pytest.MonkeyPatch, read_size: int) -> None:
    """Wherever reads end; also one whose last word is BEGIN, and those in the next file."""
    monkeypatch.setattr(dumps, "READ_SIZE", read_size)
    with server.connect() as connection:
        begin = position_now(connection)
        run(
            connection,
            "DROP DATABASE IF EXISTS h",
            "CREATE DATABASE h",
            "CREATE TABLE h.t (a INT PRIMARY KEY, b VARCHAR(900))",
            *(f"INSERT INTO h.t VALUES ({number}, REPEAT('b', {number * 7}))" for number in range(60)),
            "ALTER TABLE h.t ADD c INT # BEGIN",
            "UPDATE h.t SET c = a",
            "FLUSH BINARY LOGS",
            "DELETE FROM h.t WHERE a > 3",
            "DROP TABLE h.t",
            "CREATE TABLE h.u (a INT PRIMARY KEY)",
            "INSERT INTO h.u VALUES (1)",
        )
        end = position_now(connection)
    found = {}
    for how in (DumpConnection.batch, DumpConnection.skim):
        dump = DumpConnection(settings(server), 900_002)
        seen: list[bytes] = []
        count, place = 0, (begin.file, begin.offset)
        try:
            dump.start_at(begin.file, begin.offset)
            while place != (end.file, end.offset):
                for event in how(dump):
                    assert not isinstance(event, LargeEvent)
                    count += 1
                    offset = int.from_bytes(event[13:17], "little")
                    place = rotate(event) if event[4] == EventType.ROTATE else (place[0], offset or place[1])
                    seen.append(event)
        finally:
            dump.close()
        statements = [event for event in seen if event[4] == EventType.QUERY and not is_begin(event)]
        found[how] = [event for event in statements if not event.endswith(b"COMMIT")]
        print(f"{how.__name__}: {count} events, {len(found[how])} statements")
    assert found[DumpConnection.skim] == found[DumpConnection.batch]
    assert any(event.endswith(b"# BEGIN") for event in found[DumpConnection.skim])
    assert len(found[DumpConnection.skim]) >= 6
