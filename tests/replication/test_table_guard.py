"""What keeps local payloads from the log while a table cannot be replicated, and how often the server is asked."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import pymysql
import pytest
from pymysql.constants import ER

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.mysql.definitions import definition_of
from mysqlraft.mysql.finding import Finding, Severity
from mysqlraft.mysql.preflight import table_errors
from mysqlraft.mysql.schema import describe
from mysqlraft.replication import table_guard
from mysqlraft.replication.entry import Ddl, Flavour, Payload, PayloadKind, Position
from mysqlraft.replication.table_guard import TableGuard
from mysqlraft.sandbox.servers import Server
from tests.replication.recorder import arguments


def payload(kind: PayloadKind, ddl: Ddl | None = None) -> bytes:
    return Payload(kind, Flavour.MYSQL, 0, Position("binlog.000001", 4), ("binlog.000001", 4), ddl=ddl).encode()


ROWS = payload(PayloadKind.UNITS)
STATEMENT = payload(PayloadKind.DDL, Ddl([("shop", "t")], b"ALTER TABLE t ADD x INT", "shop", {}, 0))
TABLE = [("shop", "t")]


class World:
    """A server of one table: its definition, and whether it can be replicated. Counts what it is asked."""

    def __init__(self) -> None:
        self.fit = True
        self.content = 0
        self.looks = 0
        self.definitions = 0
        self.error = 0
        """What the next questions for the definition end with."""

    def query(self, statement: str) -> Sequence[Sequence[Any]]:
        raise AssertionError(statement)

    def definition(self, schema: str, table: str) -> str:
        assert (schema, table) == ("shop", "t")
        self.definitions += 1
        if self.error:
            raise pymysql.err.OperationalError(self.error, "")
        return f"CREATE TABLE t COMMENT='{self.content}'"

    def close(self) -> None:
        pass

    def look(self, *_: object) -> tuple[Finding, ...]:
        self.looks += 1
        return () if self.fit else (Finding("primary_key", Severity.ERROR, "shop.t has no primary key", ""),)

    def change(self, *, fit: bool) -> None:
        """A statement takes effect."""
        self.content += 1
        self.fit = fit


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(table_guard, "table_errors", made.look)
    return made


@pytest.fixture
def guard(world: World) -> TableGuard:
    """One that has looked, and applied up to 7."""
    made = TableGuard(world, lambda schema, table: True)
    assert made.look(7) == ()
    world.looks = 0
    return made


def test_the_first_payload_is_looked_at(world: World) -> None:
    """Whatever came before the start is not known."""
    world.fit = False
    guard = TableGuard(world, lambda schema, table: True)
    assert guard.errors(ROWS, 0)
    world.fit = True
    assert not guard.errors(ROWS, 0)
    looks = world.looks
    assert not guard.errors(ROWS, 0)
    assert world.looks == looks


def test_without_statements_nothing_is_asked(guard: TableGuard, world: World) -> None:
    for applied in range(7, 20):
        assert guard.errors(ROWS, applied) == ()
    assert (world.looks, world.definitions) == (0, 0)


def test_every_local_statement_has_a_look(guard: TableGuard, world: World) -> None:
    for count in range(1, 4):
        assert guard.errors(STATEMENT, 7) == ()
        assert world.looks == count


def test_while_a_statement_runs_one_look_is_enough(guard: TableGuard, world: World) -> None:
    """And one when it is in the tables; in between only its own tables are asked for, by a query for each."""
    guard.statement_ahead(9, TABLE)
    for _ in range(100):
        assert guard.errors(ROWS, 8) == ()
    assert world.looks == 1
    assert world.definitions <= 102
    world.change(fit=True)
    for _ in range(100):
        assert guard.errors(ROWS, 8) == ()
    assert world.looks == 2
    for _ in range(100):
        assert guard.errors(ROWS, 9) == ()
    assert world.looks == 3


def test_an_effect_is_seen_before_its_index_is_in_the_tables(guard: TableGuard, world: World) -> None:
    guard.statement_ahead(9, TABLE)
    assert guard.errors(ROWS, 8) == ()
    world.change(fit=False)
    assert guard.errors(ROWS, 8)
    assert guard.errors(ROWS, 8), "it is not forgotten"
    assert guard.errors(ROWS, 9)
    world.change(fit=True)
    assert guard.errors(ROWS, 9) == ()


def test_the_next_statement_is_another(guard: TableGuard, world: World) -> None:
    """What was true while one ran says nothing of the next."""
    guard.statement_ahead(9, TABLE)
    assert guard.errors(ROWS, 8) == ()
    guard.statement_ahead(10, TABLE)
    assert guard.errors(ROWS, 9) == ()
    assert world.looks == 2


def test_a_statement_on_nobody_knows_what(guard: TableGuard, world: World) -> None:
    """Where its tables are not all known by name, nothing less than a look tells."""
    guard.statement_ahead(9, [*TABLE, ("shop", None)])
    for count in range(1, 4):
        assert guard.errors(ROWS, 8) == ()
        assert world.looks == count
    world.fit = False
    assert guard.errors(ROWS, 8)


@pytest.mark.parametrize("error", [ER.TABLEACCESS_DENIED_ERROR, ER.NOT_KEYFILE])
def test_an_error_is_no_definition(guard: TableGuard, world: World, error: int) -> None:
    """That the server cannot tell, before and after, does not mean that nothing has changed."""
    guard.statement_ahead(9, TABLE)
    world.error = error
    assert guard.errors(ROWS, 8) == ()
    world.change(fit=False)
    assert guard.errors(ROWS, 8)


@pytest.mark.parametrize("error", [ER.QUERY_INTERRUPTED, ER.STATEMENT_TIMEOUT, ER.LOCK_WAIT_TIMEOUT])
def test_a_question_that_was_cut_short_is_asked_again(guard: TableGuard, world: World, error: int) -> None:
    """A table that is not there is told from one that could not be looked at."""
    guard.statement_ahead(9, TABLE)
    world.error = ER.NO_SUCH_TABLE
    assert guard.errors(ROWS, 8) == ()
    world.change(fit=False)
    for data in (ROWS, STATEMENT):
        world.error = error
        with pytest.raises(pymysql.err.OperationalError):
            guard.errors(data, 8)
    world.error = 0
    assert guard.errors(ROWS, 8)


@dataclass
class Written:
    """A payload that capture has read; ``tainted``: some of it was committed while a table did not do, and nobody has
    seen all of them in order since."""

    data: bytes
    tainted: bool


EVENTS = ["write", "change here", "mend here", "announce", "effect", "bad effect", "in the tables", "propose"]
HISTORIES = 300


def test_what_was_written_to_a_table_that_does_not_do_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order things happen: local statements and rows, a remote statement's announcement, its effect and
    its index in the tables, and the proposals, which come later than what is proposed."""
    left = held = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        world = World()
        guard = TableGuard(world, lambda schema, table: True)
        read: deque[Written] = deque()

        def look(*arguments: object, world: World = world, read: deque[Written] = read) -> tuple[Finding, ...]:
            for each in read:
                each.tainted = each.tainted and not world.fit
            return world.look(*arguments)

        monkeypatch.setattr(table_guard, "table_errors", look)
        applied, running, done = 0, False, False
        for event in rng.choices(EVENTS, weights=(4, 1, 1, 3, 2, 2, 2, 8), k=80):
            match event:
                case "write":
                    read.append(Written(ROWS, not world.fit))
                case "change here" | "mend here":
                    world.change(fit=event == "mend here")
                    read.append(Written(STATEMENT, not world.fit))
                case "announce" if not running:
                    guard.statement_ahead(applied + 1, TABLE)
                    running, done = True, False
                case "effect" | "bad effect" if running and not done:
                    world.change(fit=event == "effect")
                    done = True
                case "in the tables" if done:
                    applied, running, done = applied + 1, False, False
                case "propose" if read:
                    if guard.errors(read[0].data, applied):
                        held += 1
                        continue
                    assert not read[0].tainted, f"seed {seed}"
                    read.popleft()
                    left += 1
        world.change(fit=True)
        assert all(not guard.errors(each.data, applied) for each in read), "once all is mended, all goes"
    print(f"{HISTORIES} histories: {left} payloads left, {held} times one was held")
    assert min(left, held) > HISTORIES


class Counting(ServerKeySource):
    """Counts the questions about every table."""

    looks = 0

    def query(self, statement: str) -> Sequence[Sequence[Any]]:
        self.looks += "FROM information_schema.tables WHERE table_type = 'BASE TABLE'" in statement
        return super().query(statement)


UNFITTING = [
    # a statement, and what mends it
    ("ALTER TABLE shop.t ENGINE = MyISAM", "ALTER TABLE shop.t ENGINE = InnoDB"),
    ("ALTER TABLE shop.t MODIFY n INT, DROP PRIMARY KEY", "ALTER TABLE shop.t ADD PRIMARY KEY (n)"),
    ("CREATE TABLE shop.u (a INT)", "DROP TABLE shop.u"),
    ("RENAME TABLE away.v TO shop.v", "DROP TABLE shop.v"),
]


def test_on_a_server(server: Server) -> None:
    """Each statement is seen as soon as it has had its effect; rows of its tables are not taken for one."""
    source = Counting(lambda: pymysql.connect(**arguments(server), autocommit=True))
    guard = TableGuard(source, lambda schema, table: schema == "shop")
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        for statement in (
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (n INT AUTO_INCREMENT PRIMARY KEY, a INT)",
            "CREATE DATABASE away",
            "CREATE TABLE away.v (a INT)",
        ):
            cursor.execute(statement)
        assert guard.look(1) == ()
        for index, (statement, mended) in enumerate(UNFITTING, 2):
            guard.statement_ahead(index, [("shop", "t"), ("shop", "u"), ("shop", "v"), ("away", "v")])
            assert guard.errors(ROWS, index - 1) == ()
            looks = source.looks
            cursor.execute(f"INSERT INTO shop.t VALUES ({10 * index}, 1)")
            assert guard.errors(ROWS, index - 1) == ()
            assert source.looks == looks, f"not yet: {statement}"
            cursor.execute(statement)
            found = guard.errors(ROWS, index - 1)
            print(f"{statement}: {found[0].what}")
            assert guard.errors(ROWS, index) == found, "and still when it is in the tables"
            cursor.execute(mended)
            assert guard.errors(ROWS, index) == ()
            looks = source.looks
            assert guard.errors(ROWS, index) == ()
            assert source.looks == looks, "it is covered"
    guard.close()


def test_a_dump_that_is_loaded_is_no_victim(server: Server) -> None:
    """Whatever the daemon asks about a table, no statement of the application's ends in a deadlock with it."""
    tables = [f"t{number}" for number in range(3)]
    stop = threading.Event()
    asked = 0

    def ask() -> None:
        nonlocal asked
        source = ServerKeySource(lambda: pymysql.connect(**arguments(server), autocommit=True))
        while not stop.is_set():
            for table in tables:
                source.unique_keys("app", table)
                with suppress(pymysql.err.ProgrammingError):  # it is dropped now and then
                    source.definition("app", table)
                describe(source.query, "app", table)
                with suppress(pymysql.err.ProgrammingError):
                    definition_of(source.query, "app", table, mariadb=server.engine == "mariadb")
                asked += 1
            table_errors(source.query, lambda schema, table: schema == "app")
        source.close()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    try:
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE app")
            for thread in threads:
                thread.start()
            for table in tables * 25:
                for statement in (
                    f"DROP TABLE IF EXISTS app.{table}",
                    f"CREATE TABLE app.{table} (id INT PRIMARY KEY, a INT, s VARCHAR(9), UNIQUE (a, s), KEY (s))",
                    f"LOCK TABLES app.{table} WRITE",
                    f"ALTER TABLE app.{table} DISABLE KEYS",
                    f"INSERT INTO app.{table} VALUES (1, 1, 'a'), (2, 2, 'b')",
                    f"ALTER TABLE app.{table} ENABLE KEYS",
                    "UNLOCK TABLES",
                ):
                    cursor.execute(statement)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"75 tables loaded, the tables asked about {asked} times")
