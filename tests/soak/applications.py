"""Applications that read and then write rows that only their own site ever writes, and check what they see.

Counters, registers, pairs that one transaction writes, rows that come and go: of each the application knows what it
committed last. It reads before it writes, and a second connection reads all the time. Rows of other kinds are written
at every site, alone and in one transaction with own rows, so that own units meet conflicts.

A COMMIT whose answer was lost may have happened or not: the next read decides, and from then on it counts.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

TABLES = (
    "CREATE DATABASE own",
    "CREATE TABLE own.counter (site VARCHAR(64) PRIMARY KEY, n BIGINT NOT NULL)",
    "CREATE TABLE own.register (site INT, k INT, v BIGINT NOT NULL, PRIMARY KEY (site, k))",
    "CREATE TABLE own.pair (site INT, side INT, v BIGINT NOT NULL, PRIMARY KEY (site, side))",
    "CREATE TABLE own.item (site INT, n INT, u VARCHAR(40) UNIQUE, v BIGINT NOT NULL, PRIMARY KEY (site, n))",
    "CREATE TABLE own.shared (id INT PRIMARY KEY, u INT UNIQUE, v VARCHAR(40))",
)
REGISTERS, ITEMS, SHARED = 5, 8, 30

Connect = Callable[[], "Connection[Any]"]
State = dict[tuple[str, int], int]
"""(kind, number) -> the value that was committed last; a row that is not there has none."""


class Application:
    """The application at one site: a thread that writes, and one that reads."""

    def __init__(self, site: int, connect: Connect, rate: float, seed: int) -> None:
        self.site = site
        self.violations: list[str] = []
        self.done: Counter[str] = Counter()
        self._connect = connect
        self._rate = rate
        self._rng = random.Random(seed * 100 + site)
        self._known: State = {}
        self._unsure: State | None = None
        """What is committed instead of `_known` if the COMMIT whose answer was lost has happened."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._write, self._watch)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def check(self, connection: Connection[Any], where: str) -> None:
        """Compares the rows of this site, as `where` shows them, with what was committed."""
        self._judge(self._rows(connection), where)

    def counted(self) -> int:
        """The increments that were acknowledged and stand."""
        return self._known.get(("counter", 0), 0)

    # Reading

    def _rows(self, connection: Connection[Any]) -> State:
        """The own rows, in one snapshot."""
        found: State = {}
        with connection.cursor() as cursor:
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            for kind, query in (
                ("counter", f"SELECT 0, n FROM own.counter WHERE site = 'site{self.site}'"),
                ("register", f"SELECT k, v FROM own.register WHERE site = {self.site}"),
                ("pair", f"SELECT side, v FROM own.pair WHERE site = {self.site}"),
                ("item", f"SELECT n, v FROM own.item WHERE site = {self.site}"),
            ):
                cursor.execute(query)
                found |= {(kind, int(number)): int(value) for number, value in cursor.fetchall()}
            cursor.execute("COMMIT")
        return found

    def _judge(self, rows: State, where: str) -> None:
        wanted = self._known
        if self._unsure is not None:
            if rows == self._unsure:
                self._known, self._unsure = self._unsure, None
                return
            if rows == self._known:
                return  # rolled back, or not shown yet; the writer decides after a lock on its rows
        if rows != wanted:
            self._report(where, rows, wanted)

    def _report(self, where: str, rows: State, wanted: State) -> None:
        differs = {key: (rows.get(key), wanted.get(key)) for key in rows | wanted if rows.get(key) != wanted.get(key)}
        self.violations.append(f"{time.strftime('%H:%M:%S')} site {self.site}, {where}: (seen, committed) {differs}")

    def _watch(self) -> None:
        """Reads all the time. While a COMMIT is on its way a read may show either side of it, so only what was known
        before and after the read counts: a row between the two."""
        while not self._stop.is_set():
            with suppress(pymysql.err.MySQLError, OSError), closing(self._connect()) as connection:
                while not self._stop.is_set():
                    with self._lock:
                        before = self._known, self._unsure
                    rows = self._rows(connection)
                    with self._lock:
                        after = self._known, self._unsure
                    self.done["reads"] += 1
                    if before == after and before[1] is None and rows != before[0] and not self._pending(rows):
                        self._report("watching", rows, before[0])
                    if rows.get(("pair", 0)) != rows.get(("pair", 1)):
                        self.violations.append(f"site {self.site}: half of a transaction: {rows}")
                    self._stop.wait(0.02)
            self._stop.wait(0.2)

    def _pending(self, rows: State) -> bool:
        """Whether the rows are those of the transaction that is being committed right now."""
        return rows == self._next

    # Writing

    _next: State | None = None

    def _write(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(self._connect()) as connection:
                    while not self._stop.is_set():
                        self._transaction(connection)
                        self._stop.wait(self._rng.expovariate(self._rate))
            except (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError, OSError):
                self.done["disconnected"] += 1
                self._stop.wait(0.2)

    def _transaction(self, connection: Connection[Any]) -> None:
        rng, site = self._rng, self.site
        rows = self._settled(connection)
        wanted = dict(rows)
        statements: list[str] = []
        for kind in rng.sample(("counter", "register", "pair", "item", "shared"), rng.choice((1, 1, 1, 2, 3))):
            if kind == "counter":
                # What every application does: read, add, write.
                wanted["counter", 0] = rows.get(("counter", 0), 0) + 1
                statements.append(
                    f"INSERT INTO own.counter (site, n) VALUES ('site{site}', {wanted['counter', 0]})"
                    f" ON DUPLICATE KEY UPDATE n = {wanted['counter', 0]}"
                    if rng.random() < 0.5
                    else f"INSERT INTO own.counter (site, n) VALUES ('site{site}', 1) ON DUPLICATE KEY UPDATE n = n + 1"
                )
            elif kind == "register":
                k = rng.randrange(REGISTERS)
                wanted["register", k] = rng.randrange(10**9)
                statements.append(
                    f"REPLACE INTO own.register (site, k, v) VALUES ({site}, {k}, {wanted['register', k]})"
                )
            elif kind == "pair":
                value = rng.randrange(10**9)
                for side in (0, 1):
                    wanted["pair", side] = value
                    statements.append(f"REPLACE INTO own.pair (site, side, v) VALUES ({site}, {side}, {value})")
            elif kind == "item":
                n = rng.randrange(ITEMS)
                if ("item", n) in rows and rng.random() < 0.4:
                    del wanted["item", n]
                    statements.append(f"DELETE FROM own.item WHERE site = {site} AND n = {n}")
                else:
                    wanted["item", n] = rng.randrange(10**9)
                    # The unique value moves from row to row.
                    unique = f"{site}-{n}-{rng.randrange(2)}"
                    statements.append(
                        f"INSERT INTO own.item (site, n, u, v) VALUES ({site}, {n}, '{unique}', {wanted['item', n]})"
                        f" ON DUPLICATE KEY UPDATE u = VALUES(u), v = VALUES(v)"
                    )
            else:
                statements.append(
                    f"REPLACE INTO own.shared (id, u, v) VALUES ({rng.randrange(SHARED)}, {rng.randrange(SHARED)},"
                    f" 'site{site}-{rng.randrange(10**6)}')"
                )
        with connection.cursor() as cursor:
            try:
                cursor.execute("BEGIN")
                for statement in statements:
                    cursor.execute(statement)
            except pymysql.err.OperationalError as error:
                if error.args[0] not in (1205, 1213):
                    raise
                cursor.execute("ROLLBACK")
                self.done["deadlocks"] += 1
                return
            with self._lock:
                self._next = wanted
                self._unsure = wanted
            cursor.execute("COMMIT")
            with self._lock:
                self._known, self._unsure = wanted, None
            self.done["transactions"] += 1

    def _settled(self, connection: Connection[Any]) -> State:
        """What the application reads before it writes; it also decides about a COMMIT whose answer was lost."""
        rows = self._rows(connection)
        with self._lock:
            self._judge(rows, "before a write")
            if self._unsure is not None:
                self._unsure = None  # a new connection sees what was committed: it was not
            if rows != self._known:
                self._known = rows  # reported once
        return rows


def applications(connects: dict[int, Connect], rate: float, seed: int) -> list[Application]:
    return [Application(site, connect, rate, seed) for site, connect in connects.items()]


def create(connection: Connection[Any]) -> None:
    """Makes the tables, at one site."""
    with connection.cursor() as cursor:
        for statement in TABLES:
            cursor.execute(statement)
        cursor.execute("INSERT INTO own.shared VALUES " + ", ".join(f"({n}, {n}, '')" for n in range(SHARED)))
