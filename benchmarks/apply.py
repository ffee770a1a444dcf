"""Catching up a backlog: `python -m benchmarks.apply [--json] [--engine mysql|mariadb]`

A source's binlog holds 10,000 transactions that update one row each, or 100 that insert 1,000 rows each. The peer is a
native replica with 1 and with 4 workers, from START REPLICA until it has everything. Ours, stopped before the backlog
was written, is timed from the first byte read of it: a process captures it into a log on disk (synced), another applies
that log as it grows, certification, positions and progress row included. So both fetch, both store what they fetched,
and both servers are durable (sync_binlog = 1, innodb_flush_log_at_trx_commit = 1) and log what they write. Ours and the
peers take turns; medians of several rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pymysql

from benchmarks.report import Figure, arguments, chosen, publish
from mysqlraft.replication.apply import Applier, ApplyState
from mysqlraft.replication.capture import Capture, CaptureState, Link, position_now
from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, Position
from mysqlraft.replication.state import LogEntry
from mysqlraft.sandbox.servers import Server, start_all

TABLE = (
    "CREATE TABLE bench.t (id INT PRIMARY KEY, k INT NOT NULL, c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k))"
)
ROWS = 20_000
BULK = 1_000
DONE = "CREATE TABLE bench.done (id INT PRIMARY KEY)"
TIMEOUT = 300.0
SOURCE, TARGET = 1, 2
_RECORD = struct.Struct(">QQI")


@dataclass(frozen=True, slots=True)
class Entry:
    index: int
    origin: int
    session: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Backlog:
    """``made``: where its tables are made; ``units``: transactions or rows, whichever is counted."""

    name: str
    made: Position
    begin: Position
    end: Position
    units: int
    unit: str


class DiskLog:
    """Entries in a file, synced by the process that captures; the log that apply reads."""

    def __init__(self, path: Path, begin: Position, flavour: Flavour) -> None:
        path.touch()
        self._file = path.open("rb")
        opening = Payload(PayloadKind.OPEN, flavour, 0, begin, (begin.file, begin.offset))
        self._first: list[LogEntry] = [Entry(1, SOURCE, 1, 1, opening.encode())]
        self._index = 1
        self._complete, self._written = 0, 0
        self._changed = threading.Condition()

    def wrote(self, end: int) -> None:
        """Everything up to this offset is on disk."""
        with self._changed:
            self._written = end
            self._changed.notify_all()

    def want(self, first: int) -> None:
        assert first == 1

    awaited = 0

    def reached(self, index: int) -> None:
        raise AssertionError("nobody waits")

    def take(self, timeout: float | None = None) -> Sequence[LogEntry]:
        if self._first:
            first, self._first = self._first, []
            return first
        with self._changed:
            if self._complete == self._written:
                self._changed.wait(timeout)
        return list(self._read(min(self._written, self._complete + (1 << 20))))

    def _read(self, until: int) -> Iterator[LogEntry]:
        while self._complete < until:
            session, sequence, length = _RECORD.unpack(self._file.read(_RECORD.size))
            payload = self._file.read(length)
            self._complete += _RECORD.size + length
            self._index += 1
            yield Entry(self._index, SOURCE, session, sequence, payload)

    def fetch(self, first: int, last: int) -> Sequence[LogEntry]:
        raise AssertionError("nothing here is read twice")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apply", description=__doc__)
    arguments(parser)
    parser.add_argument("--single", type=int, default=10_000, help="transactions of one row (10,000)")
    parser.add_argument("--bulk", type=int, default=100, help=f"transactions of {BULK} rows (100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    args = parser.parse_args()
    installation = chosen(args)
    with tempfile.TemporaryDirectory(prefix="mysqlraft-apply-") as directory:
        servers = [
            Server.create(installation, Path(directory) / name, server_id=number, options=options)
            for number, (name, options) in enumerate(
                (
                    ("source", {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0", "max_binlog_size": "1G"}),
                    ("ours", {}),
                    ("native", {}),
                ),
                1,
            )
        ]
        try:
            start_all(servers)
            source, ours, native = servers
            figures: dict[str, Figure] = {}
            for backlog in _backlogs(source, args.single, args.bulk):
                figures |= _measure(source, ours, native, backlog, args.rounds, Path(directory))
        finally:
            for server in servers:
                server.remove()
    publish(
        args,
        f"a backlog applied, medians of {args.rounds} rounds, {installation.engine} {installation.version_text}",
        figures,
    )


def _backlogs(source: Server, single: int, bulk: int) -> Iterator[Backlog]:
    """Fills the source's binlog with one backlog, and with the next when that has been measured."""
    rng = random.Random(1)
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        made = position_now(connection)
        _prepare(source)
        begin = position_now(connection)
        for number in range(single):
            cursor.execute(
                f"UPDATE bench.t SET k = k + 1, c = '{rng.random()} {number}' WHERE id = {rng.randrange(ROWS)}"
            )
        cursor.execute("INSERT INTO bench.done VALUES (1)")
        yield Backlog("single", made, begin, position_now(connection), single, "transactions/s")
        made = position_now(connection)
        _prepare(source)
        begin = position_now(connection)
        for first in range(ROWS, ROWS + bulk * BULK, BULK):
            rows = (
                f"({n}, {rng.randrange(ROWS)}, '{rng.random()} {n}', 'pad {n}')" for n in range(first, first + BULK)
            )
            cursor.execute("INSERT INTO bench.t VALUES " + ",".join(rows))
        cursor.execute("INSERT INTO bench.done VALUES (1)")
        yield Backlog("bulk", made, begin, position_now(connection), bulk * BULK, "rows/s")


def _prepare(server: Server) -> None:
    """The tables as they are before a backlog."""
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        for statement in ("DROP DATABASE IF EXISTS bench", "CREATE DATABASE bench", TABLE, DONE):
            cursor.execute(statement)
        for first in range(0, ROWS, 2000):
            rows = ",".join(f"({n}, {n}, 'row {n}', 'pad {n}')" for n in range(first, first + 2000))
            cursor.execute(f"INSERT INTO bench.t VALUES {rows}")


def _measure(
    source: Server, ours: Server, native: Server, backlog: Backlog, rounds: int, directory: Path
) -> dict[str, Figure]:
    workers = (1, 4)
    mine: list[float] = []
    theirs: dict[int, list[float]] = {count: [] for count in workers}
    memo = directory / f"memo-{backlog.name}"
    _before(source, backlog, memo)
    for number in range(rounds):
        mine.append(_ours(source, ours, backlog, directory / f"log-{backlog.name}-{number}", memo))
        _compare(source, ours)
        for count in workers:
            theirs[count].append(_native(source, native, backlog, count))
    rate = statistics.median(mine)
    return {
        f"{backlog.name}_{count}_worker{'s' if count > 1 else ''}": Figure(
            rate, statistics.median(theirs[count]), backlog.unit
        )
        for count in workers
    }


def _compare(source: Server, target: Server) -> None:
    """What was applied is what the source has."""
    sums = []
    for server in (source, target):
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("CHECKSUM TABLE bench.t")
            sums.append(cursor.fetchone())
    if sums[0] != sums[1]:
        raise AssertionError(f"the source holds {sums[0]}, the target {sums[1]}")


# Ours.


class _Nowhere:
    """A link that drops every proposal."""

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        pass


def _before(source: Server, backlog: Backlog, memo: Path) -> None:
    """A capture that has read the tables' first rows and is stopped: it leaves its memo."""
    capture = _capturing(_login(source), _Nowhere(), backlog.made, memo)
    thread = threading.Thread(target=capture.run, daemon=True)
    thread.start()

    def arrived() -> bool:
        stream = capture.status()["position"]
        return (stream["file"], stream["offset"]) >= (backlog.begin.file, backlog.begin.offset)

    _wait(arrived)
    capture.stop()
    thread.join()


def _ours(source: Server, target: Server, backlog: Backlog, path: Path, memo: Path) -> float:
    """Units per second, from the start of capture until the last is visible at the target."""
    _prepare(target)
    with closing(target.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("DROP DATABASE IF EXISTS mysqlraft")
    flavour = Flavour.MARIADB if source.engine == "mariadb" else Flavour.MYSQL
    log = DiskLog(path, backlog.begin, flavour)
    ready = threading.Event()
    applier = Applier(
        site=TARGET,
        connect=_login(target),
        log=log,
        dump_server_id=99,
        look_ahead_server_id=98,
        on_ready=lambda state: ready.set(),
    )
    thread = threading.Thread(target=applier.run, daemon=True)
    thread.start()
    ready.wait(TIMEOUT)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_capture, args=(_login(source), backlog, path, memo, there), daemon=True
    )
    process.start()
    there.close()
    here.recv()  # its modules are imported
    began = time.perf_counter()
    here.send(None)
    listening = threading.Thread(target=_listen, args=(here, log), daemon=True)
    listening.start()

    def arrived() -> bool:
        if applier.status.state is ApplyState.STOPPED:
            raise RuntimeError(applier.status.reason)
        if not process.is_alive():
            raise RuntimeError("the process that captures has ended")
        return _done(target)

    _wait(arrived)
    took = time.perf_counter() - began
    process.terminate()
    process.join()
    applier.stop()
    thread.join()
    return backlog.units / took


def _listen(pipe: Pipe, log: DiskLog) -> None:
    try:
        while True:
            log.wrote(pipe.recv())
    except EOFError:
        pass


class _Writer:
    """The log's writing end: each payload synced before it counts, as a follower's log store does it."""

    def __init__(self, path: Path, pipe: Pipe) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._pipe = pipe
        self._end = 0

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        record = _RECORD.pack(session, sequence, len(payload)) + payload
        os.write(self._file, record)
        os.fdatasync(self._file)
        self._end += len(record)
        self._pipe.send(self._end)


def _capture(login: dict[str, Any], backlog: Backlog, path: Path, memo: Path, pipe: Pipe) -> None:
    """The process that captures."""
    capture = _capturing(login, _Writer(path, pipe), backlog.begin, memo)
    pipe.send(None)
    pipe.recv()
    capture.run()


def _capturing(login: dict[str, Any], link: Link, begin: Position, memo: Path) -> Capture:
    return Capture(
        login,
        link,
        CaptureState(begin, (begin.file, begin.offset), 0),
        session=1,
        server_id=98,
        scan_server_id=97,
        replicated=lambda schema, table: schema == "bench",
        position="file",
        memo=memo,
    )


def _login(server: Server) -> dict[str, Any]:
    return {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}


# The peer.


def _native(source: Server, replica: Server, backlog: Backlog, workers: int) -> float:
    """Units per second, from START REPLICA until the last is visible."""
    _prepare(replica)
    host, port = source.address
    begin = backlog.begin
    if source.engine == "mysql":
        before: tuple[str, ...] = (
            "STOP REPLICA",
            "RESET REPLICA ALL",
            "RESET BINARY LOGS AND GTIDS",
            f"SET GLOBAL replica_parallel_workers = {workers}",
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, SOURCE_USER = '{source.user}',"
            f" SOURCE_PASSWORD = '{source.password}', SOURCE_LOG_FILE = '{begin.file}',"
            f" SOURCE_LOG_POS = {begin.offset}, SOURCE_AUTO_POSITION = 0, GET_SOURCE_PUBLIC_KEY = 1",
        )
        start, stop = "START REPLICA", "STOP REPLICA"
    else:
        before = (
            "STOP SLAVE",
            "RESET SLAVE ALL",
            "RESET MASTER",
            "SET GLOBAL gtid_slave_pos = ''",
            f"SET GLOBAL slave_parallel_threads = {workers if workers > 1 else 0}",
            f"CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = '{source.user}',"
            f" MASTER_PASSWORD = '{source.password}', MASTER_LOG_FILE = '{begin.file}',"
            f" MASTER_LOG_POS = {begin.offset}, MASTER_USE_GTID = no",
        )
        start, stop = "START SLAVE", "STOP SLAVE"
    with closing(replica.connect()) as connection, connection.cursor() as cursor:
        for statement in before:
            cursor.execute(statement)
        began = time.perf_counter()
        cursor.execute(start)
        _wait(lambda: _done(replica))
        took = time.perf_counter() - began
        cursor.execute(stop)
    return backlog.units / took


def _done(server: Server) -> bool:
    """Whether the last transaction of the backlog is visible."""
    connection = _watchers.get(server.port)
    if connection is None:
        connection = _watchers[server.port] = server.connect()
    with connection.cursor() as cursor:
        return bool(cursor.execute("SELECT 1 FROM bench.done"))


_watchers: dict[int, pymysql.Connection[Any]] = {}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {TIMEOUT:g} s")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
