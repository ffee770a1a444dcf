"""From binlog to encoded entries: `python -m benchmarks.capture [--json]`

Ours: `Capture` as the daemon runs it, row keys and encoding included, proposing to nobody. Peer: mysql-replication's
BinLogStreamReader, with the values of every row read. Both read the same binlog of the same private server, in turn,
several rounds; a round's clock starts at its first payload or row, so that logging in does not count for either.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent

from benchmarks.report import Figure, arguments, chosen, publish
from mysqlraft.replication.capture import Capture, CaptureState, position_now
from mysqlraft.replication.entry import Position
from mysqlraft.replication.filters import TableFilter
from mysqlraft.sandbox.servers import Server

TABLE = """CREATE TABLE bench.orders (
    id INT UNSIGNED NOT NULL PRIMARY KEY, code VARCHAR(40) NOT NULL UNIQUE, name VARCHAR(100), amount DECIMAL(12,2),
    quantity INT, created DATETIME(3), note TEXT)"""
ROW = "({0}, 'code-{0}', 'Some Name {0}', {1}.50, {1}, '2026-01-02 03:04:05.678', 'a note of some length')"
ROUNDS = 3
MULTI = 1000
"""Rows of one statement in the multi-row case."""


class _Done(Exception):
    """All that is to be measured has been proposed."""


class _Clock:
    """A link that knows how many rows came between its first payload and its last."""

    def __init__(self, rows: int) -> None:
        # A payload's rows count once it has been taken over: the last ones are not waited for.
        self._wanted = rows * 9 // 10
        self._before = 0
        self._started = 0.0
        self.capture: Capture | None = None
        self.rate = 0.0

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        assert self.capture is not None
        now, rows = time.perf_counter(), self.capture.status()["rows"]
        if not self._started:
            self._started, self._before = now, rows
        elif rows >= self._wanted:
            self.rate = (rows - self._before) / (now - self._started)
            raise _Done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    arguments(parser)
    parser.add_argument("--single", type=int, default=30_000, help="single-row transactions (30,000)")
    parser.add_argument("--multi", type=int, default=200_000, help="rows in statements of 1,000 (200,000)")
    args = parser.parse_args()
    installation = chosen(args)
    with (
        tempfile.TemporaryDirectory(prefix="mysqlraft-capture-") as directory,
        Server.create(
            installation,
            Path(directory) / "server",
            options={"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0", "max_binlog_size": "1G"},
        ) as server,
    ):
        begin, middle = _load(server, args.single, args.multi)
        single = _compare(server, begin, args.single, args.single // 10)
        multi = _compare(server, middle, args.multi, args.multi // 10)
    publish(
        args,
        f"rows from binlog to entries, {ROUNDS} rounds in turn, {installation.engine} {installation.version_text}",
        {"single_row": single, "multi_row": multi},
    )


def _load(server: Server, single: int, multi: int) -> tuple[Position, Position]:
    """Fills the binlog; where the single-row transactions begin, and where the statements of many rows do."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE bench")
        cursor.execute(TABLE)
        begin = position_now(connection)
        for number in range(single):
            cursor.execute("INSERT INTO bench.orders VALUES " + ROW.format(number, number % 1000))
        middle = position_now(connection)
        for first in range(single, single + multi, MULTI):
            rows = (ROW.format(number, number % 1000) for number in range(first, first + MULTI))
            cursor.execute("INSERT INTO bench.orders VALUES " + ",".join(rows))
        return begin, middle


def _compare(server: Server, begin: Position, rows: int, peer_rows: int) -> Figure:
    """Medians of `ROUNDS` rounds in turn. The peer reads fewer rows of the same: it takes long enough."""
    connect: dict[str, Any] = {
        "unix_socket": str(server.socket),
        "user": server.user,
        "password": server.password,
        "ssl_disabled": True,
    }
    ours, peer = [], []
    for _ in range(ROUNDS):
        ours.append(_ours(connect, begin, rows))
        peer.append(_peer(connect, begin, peer_rows))
    return Figure(statistics.median(ours), statistics.median(peer), "rows/s")


def _ours(connect: dict[str, Any], begin: Position, rows: int) -> float:
    clock = _Clock(rows)
    start = CaptureState(begin, (begin.file, begin.offset), 0)
    clock.capture = Capture(
        connect,
        clock,
        start,
        session=1,
        server_id=4_000_001,
        scan_server_id=4_000_003,
        replicated=TableFilter(),
        position="file",
    )
    with suppress(_Done):
        clock.capture.run()
    return clock.rate


def _peer(connect: dict[str, Any], begin: Position, rows: int) -> float:
    stream = BinLogStreamReader(
        connection_settings=connect,
        server_id=4_000_002,
        log_file=begin.file,
        log_pos=begin.offset,
        resume_stream=True,
        only_events=[WriteRowsEvent],
    )
    seen, started = 0, 0.0
    try:
        for event in stream:
            count = len(event.rows)  # decodes them
            if not started:
                started = time.perf_counter()
                continue
            seen += count
            if seen >= rows:
                break
        return seen / (time.perf_counter() - started)
    finally:
        stream.close()


if __name__ == "__main__":
    main()
