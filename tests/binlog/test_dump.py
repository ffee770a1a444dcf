"""What is left out where only statements are looked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mysqlraft.binlog import dump as dumps
from mysqlraft.binlog.dump import DumpConnection, LargeEvent
from mysqlraft.binlog.events import EventType, is_begin, rotate
from mysqlraft.replication.capture import position_now
from mysqlraft.replication.entry import Position
from mysqlraft.sandbox.servers import Server
from tests.binlog.tap import run, settings

HEARTBEATS = (EventType.HEARTBEAT, EventType.HEARTBEAT_V2)


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
        found[how] = [event for event in read(server, begin, end, how) if is_statement(event)]
    assert found[DumpConnection.skim] == found[DumpConnection.batch]
    assert any(event.endswith(b"# BEGIN") for event in found[DumpConnection.skim])
    assert len(found[DumpConnection.skim]) >= 6


@pytest.mark.parametrize("most", [0, 3_000, 1 << 20])
@pytest.mark.parametrize("read_size", [997, dumps.READ_SIZE])
def test_what_was_peeked_at_is_still_to_come(
    server: Server, monkeypatch: pytest.MonkeyPatch, read_size: int, most: int
) -> None:
    """All of it, in pieces of the usual size, whether the peek saw the end of the binlog or held too much before."""
    monkeypatch.setattr(dumps, "READ_SIZE", read_size)
    with server.connect() as connection:
        begin = position_now(connection)
        run(
            connection,
            "CREATE DATABASE h",
            "CREATE TABLE h.t (a INT PRIMARY KEY, b VARCHAR(900))",
            *(f"INSERT INTO h.t VALUES ({number}, REPEAT('b', {number * 7}))" for number in range(60)),
            "FLUSH BINARY LOGS",
            "DROP TABLE h.t",
        )
        end = position_now(connection)
    expected = read(server, begin, end, DumpConnection.batch)
    statements = [event for event in expected if is_statement(event)]
    peeked: list[bytes] = []

    def see(event: bytes | LargeEvent) -> bool:
        assert not isinstance(event, LargeEvent)
        peeked.append(event)
        return not is_statement(event) or sum(map(is_statement, peeked)) < len(statements)

    assert read(server, begin, end, DumpConnection.batch, lambda dump: dump.peek(see, most)) == expected
    seen = [event for event in peeked if is_statement(event)]
    assert seen == statements[: len(seen)]
    print(f"{len(seen)} of {len(statements)} statements were seen before")
    assert bool(seen) == bool(most)
    assert seen == statements or most < 1 << 20


def read(
    server: Server,
    begin: Position,
    end: Position,
    how: Callable[[DumpConnection], list[bytes | LargeEvent]],
    first: Callable[[DumpConnection], None] = lambda dump: None,
) -> list[bytes]:
    """The events between two places, as the binlog has them. ``first``: done before any is read."""
    dump = DumpConnection(settings(server), 900_002)
    seen: list[bytes] = []
    place = begin.file, begin.offset
    try:
        dump.start_at(*place)
        first(dump)
        while True:
            for event in how(dump):
                assert not isinstance(event, LargeEvent)
                offset = int.from_bytes(event[13:17], "little")
                place = rotate(event) if event[4] == EventType.ROTATE else (place[0], offset or place[1])
                if event[4] not in HEARTBEATS:
                    seen.append(event)
                # More may follow it: MariaDB writes a checkpoint some time after each new file. A skim may pass over
                # the last event together with that.
                if place >= (end.file, end.offset):
                    print(f"{len(seen)} events")
                    return seen
    finally:
        dump.close()


def is_statement(event: bytes) -> bool:
    return event[4] == EventType.QUERY and not is_begin(event) and not event.endswith(b"COMMIT")
