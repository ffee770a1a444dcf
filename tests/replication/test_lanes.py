"""Both lanes do what the semantics of a unit say, whatever is in the table already."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from unittest.mock import patch

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.rows import layout_of
from mysqlraft.binlog.tablemap import parse
from mysqlraft.mysql.connection import Session, StatementError
from mysqlraft.mysql.schema import ensure_schema
from mysqlraft.replication.apply_session import open_session
from mysqlraft.replication.batch import Batch
from mysqlraft.replication.batch_writer import BatchWriter
from mysqlraft.replication.careful_lane import CarefulLane
from mysqlraft.replication.entry import Change, ChangeKind, Payload
from mysqlraft.replication.pieces import joined
from mysqlraft.replication.row_events import Item, Statement, statements
from mysqlraft.replication.tables import LocalTables
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers
from tests.replication.harness import run
from tests.replication.recorder import connection, here, record
from tests.replication.reference import Row, RowChange, Table

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, u INT NOT NULL UNIQUE, v INT NOT NULL)"
ROUNDS = 150


class Lane:
    """A session of apply at a server, and both lanes over it."""

    def __init__(self, server: Server, session: Session, source: ServerKeySource) -> None:
        self.server, self.session = server, session
        self.tables = LocalTables(source)
        self.careful = CarefulLane(session, self.tables)
        self.writer = BatchWriter(session, self.careful)
        self.index = 0

    def apply_carefully(self, items: list[Item]) -> None:
        self.session.run([b"BEGIN"])
        self.session.run([*(statement.sql for statement in self.careful.apply(items)), b"COMMIT"])

    def apply_fast(self, items: list[Item]) -> None:
        """By the fast lane, which falls back to the careful one where it must."""
        self.index += 1
        self.writer.begin(Batch(self.index, self.index, b"x", statements(self.session.mariadb, items)))
        self.writer.finish()


@contextmanager
def lane_at(server: Server) -> Iterator[Lane]:
    session = open_session(partial(connection, server))
    source = ServerKeySource(partial(connection, server))
    try:
        ensure_schema(session.query)
        yield Lane(server, session, source)
    finally:
        source.close()
        session.close()


def items_of(payloads: list[Payload]) -> list[Item]:
    """Everything that the payloads write."""
    return [
        Item(payload.tables[change.table], change, unit.committed_at)
        for payload in joined(payloads)
        for unit in payload.units
        for change in unit.changes
    ]


class Encoder:
    """Changes of `TABLE` as the binlog holds them."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        table = parse(body)
        columns = table.columns
        self.layouts = {
            ChangeKind.WRITE: layout_of(table, ChangeKind.WRITE, after=columns),
            ChangeKind.UPDATE: layout_of(table, ChangeKind.UPDATE, before=columns, after=columns),
            ChangeKind.DELETE: layout_of(table, ChangeKind.DELETE, before=columns),
        }

    def item(self, change: RowChange) -> Item:
        before, after = change
        kind = ChangeKind.UPDATE if before and after else ChangeKind.WRITE if after else ChangeKind.DELETE
        images = b"".join(b"\0" + struct.pack("<iii", *row) for row in change if row)
        return Item(self.body, Change(0, kind, self.layouts[kind], 1, images), 1_700_000_000_000_000)


def merged(items: list[Item]) -> list[Item]:
    """Changes of one kind in a row made one, as capture makes them."""
    found: list[Item] = []
    for item in items:
        if found and found[-1].change.kind is item.change.kind:
            last = found[-1].change
            joined = Change(0, last.kind, last.layout, last.count + 1, last.images + item.change.images)
            found[-1] = Item(item.table, joined, item.committed_at)
        else:
            found.append(item)
    return found


def random_change(rng: random.Random, keyspace: int) -> RowChange:
    """Any change at all: its rows need not have been in any table."""

    def row() -> Row:
        return rng.randrange(keyspace), rng.randrange(keyspace), rng.randrange(1000)

    kind = rng.random()
    if kind < 0.4:
        return None, row()
    if kind < 0.7:
        before = row()
        key = before[0] if rng.random() < 0.6 else rng.randrange(keyspace)
        return before, (key, rng.randrange(keyspace), rng.randrange(1000))
    return row(), None


def random_table(rng: random.Random, keyspace: int) -> Table:
    table = Table()
    uniques = rng.sample(range(keyspace), keyspace)
    for key in range(keyspace):
        if rng.random() < 0.6:
            table[key] = (uniques[key], rng.randrange(1000))
    return table


def test_both_lanes_do_what_the_semantics_say(servers: LendServers) -> None:
    (server,) = servers(1)
    with server.connect() as client, client.cursor() as cursor, lane_at(server) as lane:
        begin = here(server)
        run(cursor, "CREATE DATABASE s", TABLE, "INSERT INTO s.t VALUES (1, 1, 1)")
        encoder = Encoder(record(server, begin)[-1].tables[0])
        fallbacks = 0
        for seed in range(ROUNDS):
            rng = random.Random(seed)
            keyspace = rng.choice([3, 8, 40])
            start = random_table(rng, keyspace)
            changes = [random_change(rng, keyspace) for _ in range(rng.randint(1, 12))]
            items = [encoder.item(change) for change in changes]
            if rng.random() < 0.5:
                items = merged(items)
            expected = Table(start)
            expected.apply(changes)
            rows = [(key, *values) for key, values in sorted(expected.items())]
            for apply in (lane.apply_carefully, lane.apply_fast):
                run(cursor, "DELETE FROM s.t")
                if start:
                    run(cursor, "INSERT INTO s.t VALUES " + ",".join(str((k, *v)) for k, v in start.items()))
                apply(items)
                assert run(cursor, "SELECT * FROM s.t ORDER BY id") == rows, (seed, apply, start, changes)
        fallbacks = lane.writer.fallbacks
    print(f"{ROUNDS} random units on {server.engine}: both lanes as the semantics say, {fallbacks} changes fell back")
    assert fallbacks > 10


def test_the_application_races_the_careful_lane(servers: LendServers) -> None:
    """A row that comes between lookup and write fails the write; it is looked up again, and gives way."""
    (server,) = servers(1)
    with server.connect() as client, client.cursor() as cursor, lane_at(server) as lane:
        begin = here(server)
        run(cursor, "CREATE DATABASE s", TABLE, "INSERT INTO s.t VALUES (1, 1, 1), (2, 2, 2)")
        encoder = Encoder(record(server, begin)[-1].tables[0])
        look_up = lane.careful.apply
        raced = iter(("INSERT INTO s.t VALUES (5, 9, 0)", ""))

        def apply(items: Iterable[Item]) -> list[Statement]:
            made = look_up(items)
            if statement := next(raced, ""):
                run(cursor, statement)
            return made

        with patch.object(lane.careful, "apply", apply):
            items = [encoder.item(((2, 2, 2), (2, 3, 3))), encoder.item(((1, 1, 1), (1, 9, 7)))]
            lane.writer.begin(Batch(1, 1, b"x", items))
            lane.writer.finish()
        assert lane.writer.fallbacks == 1
        assert run(cursor, "SELECT * FROM s.t ORDER BY id") == [(1, 9, 7), (2, 3, 3)]


def test_many_rows_that_are_there_already(servers: LendServers) -> None:
    """Re-assertion of a large unit: every row exists, in groups that cost two round trips each."""
    (server,) = servers(1)
    with server.connect() as client, client.cursor() as cursor, lane_at(server) as lane:
        begin = here(server)
        run(cursor, "CREATE DATABASE s", TABLE)
        values = ",".join(f"({n}, {n * 7}, {n})" for n in range(3000))
        run(cursor, f"INSERT INTO s.t VALUES {values}")
        items = items_of(record(server, begin))
        wanted = run(cursor, "SELECT * FROM s.t ORDER BY id")
        run(cursor, "UPDATE s.t SET v = -v WHERE id % 3 = 0", "UPDATE s.t SET id = -id WHERE id % 5 = 0 AND id > 0")
        run(cursor, "DELETE FROM s.t WHERE id % 11 = 0")
        lane.apply_carefully(items)
        assert run(cursor, "SELECT * FROM s.t ORDER BY id") == wanted


def test_a_failing_statement_is_undone_and_leaves_the_transaction_open(servers: LendServers) -> None:
    """The facts that the fast lane is built on."""
    (server,) = servers(1)
    with server.connect() as client, client.cursor() as cursor, lane_at(server) as lane:
        begin = here(server)
        run(cursor, "CREATE DATABASE s", TABLE, "INSERT INTO s.t VALUES (1, 1, 1)")
        encoder = Encoder(record(server, begin)[-1].tables[0])
        items = [encoder.item((None, (n, n, n))) for n in (2, 3, 1, 4)]
        lane.apply_fast(items)
        assert lane.writer.fallbacks == 1
        assert run(cursor, "SELECT id FROM s.t ORDER BY id") == [(1,), (2,), (3,), (4,)]


def test_triggers_do_not_fire_and_foreign_keys_are_not_looked_at(servers: LendServers) -> None:
    source, target = servers(2)
    schema = (
        "CREATE DATABASE s",
        "CREATE TABLE s.parent (id INT PRIMARY KEY)",
        "CREATE TABLE s.child (id INT PRIMARY KEY, parent INT NOT NULL, FOREIGN KEY (parent) REFERENCES s.parent (id)"
        " ON DELETE CASCADE ON UPDATE CASCADE)",
        "CREATE TABLE s.noted (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(20))",
    )
    with source.connect() as client, client.cursor() as cursor:
        run(cursor, *schema)
        begin = here(source)
        run(cursor, "INSERT INTO s.parent VALUES (1), (2), (3)", "INSERT INTO s.child VALUES (10, 1), (20, 2)")
        run(cursor, "UPDATE s.parent SET id = 4 WHERE id = 3", "DELETE FROM s.child WHERE id = 10")
        run(cursor, "DELETE FROM s.parent WHERE id = 1")
        items = items_of(record(source, begin))
    for carefully in (False, True):
        with target.connect() as client, client.cursor() as cursor, lane_at(target) as lane:
            run(cursor, "DROP DATABASE IF EXISTS s", *schema)
            for event in ("INSERT", "UPDATE", "DELETE"):
                for table in ("parent", "child"):
                    run(
                        cursor,
                        f"CREATE TRIGGER s.{table}_{event} AFTER {event} ON s.{table} FOR EACH ROW"
                        f" INSERT INTO s.noted (what) VALUES ('{table} {event}')",
                    )
            # A child that only this site has, of a parent that goes away: it stays.
            run(cursor, "SET foreign_key_checks = 0", "INSERT INTO s.child VALUES (30, 1)", "DELETE FROM s.noted")
            (lane.apply_carefully if carefully else lane.apply_fast)(items)
            assert run(cursor, "SELECT * FROM s.parent ORDER BY id") == [(2,), (4,)]
            assert run(cursor, "SELECT * FROM s.child ORDER BY id") == [(20, 2), (30, 1)]
            assert run(cursor, "SELECT * FROM s.noted") == []


PREFIXED = (
    "c TEXT COLLATE utf8mb4_bin",
    "c TEXT COLLATE utf8mb4_unicode_ci",
    "c VARCHAR(200) COLLATE utf8mb4_general_ci",
    "c VARCHAR(200) CHARACTER SET latin1",
    "c BLOB",
    "c VARBINARY(200)",
)
"""Columns whose unique keys are on their first characters only."""


def test_a_prefix_key_is_looked_up_by_its_index(servers: LendServers) -> None:
    """Nothing but the row itself is locked, and no other row's lock is waited for; also in a table of 100,000 rows."""
    (server,) = servers(1)
    table = "CREATE TABLE s.p (id INT PRIMARY KEY, {}, v INT NOT NULL, UNIQUE KEY `k k` (c(9)))"
    variable = "cte_max_recursion_depth" if server.engine == "mysql" else "max_recursive_iterations"
    fill = (
        "INSERT INTO s.p WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"
        " SELECT i, CONCAT('a%_', CHAR(92 USING latin1), LPAD(i, 5, '0'), 'tail'), i FROM n"
    )
    with server.connect() as client, client.cursor() as cursor, server.connect() as other, other.cursor() as holder:
        run(cursor, "CREATE DATABASE s", f"SET SESSION {variable} = 1000000")
        for column in PREFIXED:
            rows = 99_999 if column is PREFIXED[1] else 500
            run(cursor, "DROP TABLE IF EXISTS s.p", table.format(column))
            begin = here(server)
            values = "(-1, CONCAT('a%_', CHAR(92 USING latin1), '00250other'), 7), (-2, 'short', 8), (-3, '', 9)"
            run(cursor, f"INSERT INTO s.p VALUES {values}")
            items = items_of(record(server, begin))
            run(cursor, "DELETE FROM s.p", fill.format(rows), "ANALYZE TABLE s.p")
            with lane_at(server) as lane:
                lane.session.run([b"SET SESSION innodb_lock_wait_timeout = 1"])
                # The application holds all rows but the one that has to give way.
                run(
                    holder,
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
                    "BEGIN",
                    "SELECT * FROM s.p WHERE id <> 250 FOR UPDATE",
                )
                started = time.monotonic()
                lane.apply_carefully(items)
                taken = time.monotonic() - started
                run(holder, "ROLLBACK")
            assert run(cursor, "SELECT id, v FROM s.p WHERE id < 0 OR id = 250 ORDER BY id") == [
                (-3, 9),
                (-2, 8),
                (-1, 7),
            ], column
            assert taken < 1, (column, rows, taken)


def test_a_prefix_key_that_is_equal_without_being_alike(servers: LendServers) -> None:
    """Two characters that equal one, or spaces at the end: only the exact condition finds the row in the way."""
    (server,) = servers(1)
    with server.connect() as client, client.cursor() as cursor, lane_at(server) as lane:
        run(cursor, "CREATE DATABASE s")
        for stored, written in (("ssx", "\u00df"), ("a  b", "a"), ("ab", "AB"), ("\u00df", "ss")):
            run(
                cursor,
                "DROP TABLE IF EXISTS s.p",
                "CREATE TABLE s.p (id INT PRIMARY KEY, c TEXT COLLATE utf8mb4_unicode_ci, UNIQUE KEY (c(2)))",
            )
            begin = here(server)
            run(cursor, f"INSERT INTO s.p VALUES (1, '{written}')")
            items = items_of(record(server, begin))
            run(cursor, "DELETE FROM s.p", f"INSERT INTO s.p VALUES (2, '{stored}')")
            lane.apply_fast(items)
            assert run(cursor, "SELECT * FROM s.p") == [(1, written)], (stored, written)
            # A batch that the careful lane cannot end is begun again, as apply does.
            run(cursor, "DELETE FROM s.p", f"INSERT INTO s.p VALUES (2, '{stored}')")
            with suppress(StatementError):
                lane.writer.begin(Batch(99, 99, b"x", items))
                lane.writer.finish()
            if lane.careful.exact:
                lane.session.run([b"ROLLBACK"])
                lane.writer.begin(Batch(99, 99, b"x", items))
                lane.writer.finish()
            assert run(cursor, "SELECT * FROM s.p") == [(1, written)], (stored, written)
            assert not lane.careful.exact
