"""Live traffic on every site at once, which can be counted afterwards.

Each writer is a thread with one connection to its own site's server. In each transaction it also stores its next
sequence number (table `shop.writes`), so at the end every site must hold exactly 1..n of each writer's n committed
transactions: a missing number is a lost transaction, one beyond n was never committed.

The application's own errors belong to the game: a duplicate key or a deadlock rolls the transaction back and is
counted; a connection that dies is opened again for as long as it takes. When it died inside COMMIT nobody knows the
outcome, so the writer looks for its row at its own server before it goes on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pymysql
from pymysql.constants import CR, ER

from mysqlraft.sandbox.shop import SCHEMA, TABLES, Plan, Planner

Connect = Callable[[], "pymysql.Connection[pymysql.cursors.Cursor]"]

# The server is not there, is going, or has gone.
_LOST = frozenset(
    {
        0,  # pymysql: the connection is closed on this side
        CR.CR_CONNECTION_ERROR,
        CR.CR_CONN_HOST_ERROR,
        CR.CR_SERVER_GONE_ERROR,
        CR.CR_SERVER_LOST,
        ER.SERVER_SHUTDOWN,
        ER.QUERY_INTERRUPTED,
        ER.CON_COUNT_ERROR,
        1927,  # MariaDB: connection was killed
        3169,  # MySQL: session was killed
    }
)
_RETRY = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, 1020})  # 1020: MariaDB's snapshot isolation
_REFUSED = frozenset({ER.DUP_ENTRY})

# How long a writer goes on knocking at a server that does not answer.
_PATIENCE = 120.0


@dataclass(slots=True)
class Tally:
    """What one writer has seen so far. Only its own thread writes it."""

    committed: int = 0
    refused: int = 0
    deadlocks: int = 0
    lost: int = 0
    unknown: int = 0
    latency: float = 0.0


class WorkloadError(RuntimeError):
    """A writer met an error that no application should see."""


class Writer:
    """One application thread at one site."""

    def __init__(self, site: int, number: int, connect: Connect, planner: Planner) -> None:
        self.site = site
        self.number = number
        self.tally = Tally()
        self.error: BaseException | None = None
        self._connect = connect
        self._planner = planner
        self._connection: pymysql.Connection[pymysql.cursors.Cursor] | None = None

    def run(self, stop: threading.Event, go: threading.Event, interval: float) -> None:
        """Writes until `stop`; at most one transaction every `interval` seconds; rests while `go` is not set."""
        due = time.monotonic()
        try:
            while not stop.is_set():
                if not go.is_set():
                    go.wait(0.1)
                    due = time.monotonic()
                    continue
                if interval:
                    wait = due - time.monotonic()
                    if wait > 0 and stop.wait(wait):
                        break
                    # A writer that was held up does not catch up in a burst.
                    due = max(due + interval, time.monotonic() - 5 * interval)
                self._once(self._planner.plan(), stop)
        except BaseException as error:
            self.error = error
        finally:
            self._close()

    def _once(self, plan: Plan, stop: threading.Event) -> None:
        """Runs the plan until it is committed or the application gives it up."""
        tally = self.tally
        sequence = tally.committed + 1
        while True:
            committing = False
            begun = time.monotonic()
            try:
                connection = self._connection or self._open()
                with connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO shop.writes (site, writer, seq, what) VALUES (%s, %s, %s, %s)",
                        (self.site, self.number, sequence, plan.name),
                    )
                    for statement, values in plan.statements:
                        cursor.execute(statement, values)
                committing = True
                committed_from = time.monotonic()
                connection.commit()
                tally.latency += time.monotonic() - committed_from
                tally.committed = sequence
                return
            except (pymysql.MySQLError, OSError) as error:
                code = error.args[0] if isinstance(error, pymysql.MySQLError) and error.args else 0
                if code in _REFUSED:
                    self._rollback()
                    tally.refused += 1
                    return
                if code in _RETRY:
                    self._rollback()
                    tally.deadlocks += 1
                elif code in _LOST:
                    self._close()
                    tally.lost += 1
                    if committing:
                        tally.unknown += 1
                        if self._is_there(sequence):
                            tally.committed = sequence
                            return
                    if not committing and time.monotonic() - begun > _PATIENCE:
                        raise
                else:
                    raise WorkloadError(f"site {self.site}, writer {self.number}, {plan.name!r}: {error}") from error
                if stop.is_set():
                    return

    def _is_there(self, sequence: int) -> bool:
        """Whether the transaction whose COMMIT got no answer is in the server."""
        while True:
            try:
                connection = self._connection or self._open()
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT COUNT(*) FROM shop.writes WHERE site = %s AND writer = %s AND seq = %s",
                        (self.site, self.number, sequence),
                    )
                    row = cursor.fetchone()
                connection.rollback()
                return bool(row and row[0])
            except (pymysql.MySQLError, OSError):
                self._close()

    def _open(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        """Connects, however long the server takes to come back."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                connection = self._connect()
                connection.autocommit(False)
                with connection.cursor() as cursor:
                    cursor.execute("SET SESSION innodb_lock_wait_timeout = 5")
                self._connection = connection
                return connection
            except (pymysql.MySQLError, OSError) as error:
                code = error.args[0] if isinstance(error, pymysql.MySQLError) and error.args else 0
                if code not in _LOST or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _rollback(self) -> None:
        try:
            if self._connection is not None:
                self._connection.rollback()
        except (pymysql.MySQLError, OSError):
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except (pymysql.MySQLError, OSError):
                connection._force_close()  # type: ignore[attr-defined]


class Workload:
    """Writers at every site.

    Args:
        connects: how to reach each site's own server, by site number.
        writers: threads at each site.
        rate: transactions a second at each site; 0 for as many as it takes.
        seed: fixes what each writer tries (not how the sites interleave).
        keys: how many accounts there may be: the fewer, the more conflicts.
    """

    def __init__(
        self, connects: dict[int, Connect], *, writers: int = 2, rate: float = 0, seed: int = 1, keys: int = 400
    ) -> None:
        self._interval = writers / rate if rate else 0.0
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self.writers = [
            Writer(site, number, connect, Planner(random.Random(f"{seed}/{site}/{number}"), site, keys))
            for site, connect in connects.items()
            for number in range(1, writers + 1)
        ]
        self._threads = [
            threading.Thread(
                target=writer.run,
                args=(self._stop, self._go, self._interval),
                name=f"writer-{writer.site}-{writer.number}",
                daemon=True,
            )
            for writer in self.writers
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends all writers; raises the first error that one of them met."""
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join(_PATIENCE + 10)
            if thread.is_alive():
                raise WorkloadError(f"{thread.name} does not end")
        self.check()

    def pause(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def check(self) -> None:
        for writer in self.writers:
            if writer.error is not None:
                raise writer.error

    def committed(self, site: int | None = None) -> int:
        return sum(writer.tally.committed for writer in self._of(site))

    def total(self, site: int | None = None) -> Tally:
        """The sums over one site's writers, or over all."""
        total = Tally()
        for writer in self._of(site):
            tally = writer.tally
            total.committed += tally.committed
            total.refused += tally.refused
            total.deadlocks += tally.deadlocks
            total.lost += tally.lost
            total.unknown += tally.unknown
            total.latency += tally.latency
        return total

    def expected(self) -> dict[tuple[int, int], int]:
        """(site, writer) -> number of committed transactions."""
        return {(writer.site, writer.number): writer.tally.committed for writer in self.writers}

    def _of(self, site: int | None) -> list[Writer]:
        return [writer for writer in self.writers if site is None or writer.site == site]


def create_tables(connection: pymysql.Connection[pymysql.cursors.Cursor]) -> None:
    """Creates the application's schema at one site; replication carries it to the others."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {SCHEMA}")
        for statement in TABLES.values():
            cursor.execute(statement)


def missing_tables(connection: pymysql.Connection[pymysql.cursors.Cursor]) -> list[str]:
    """Which of the application's tables a site does not have yet."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (SCHEMA,))
        there = {row[0] for row in cursor.fetchall()}
    return [f"no table shop.{name}" for name in TABLES if name not in there]


def wrong_counts(
    connection: pymysql.Connection[pymysql.cursors.Cursor], expected: dict[tuple[int, int], int]
) -> list[str]:
    """What one site's `shop.writes` holds other than exactly 1..n of each writer: empty when all is well."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT site, writer, COUNT(*), MIN(seq), MAX(seq) FROM shop.writes GROUP BY site, writer")
        rows: Sequence[tuple[int, ...]] = cursor.fetchall()
    found = {(site, writer): (count, low, high) for site, writer, count, low, high in rows}
    wrong = []
    for (site, writer), n in sorted(expected.items()):
        count, low, high = found.pop((site, writer), (0, 1, 0))
        if (count, low, high) != (n, 1, n):
            wrong.append(f"site {site} writer {writer}: committed 1..{n}, here are {count} rows, {low}..{high}")
    wrong.extend(f"site {site} writer {writer}: rows of a writer that does not exist" for site, writer in found)
    return wrong
