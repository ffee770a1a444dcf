"""A capture at work on a test server, and what it proposed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mysqlraft.binlog.rows import columns_of, fields, split
from mysqlraft.binlog.tablemap import names, parse
from mysqlraft.binlog.values import scalar
from mysqlraft.replication.capture import Capture, CaptureState, position_now
from mysqlraft.replication.entry import Payload, PayloadKind, decode
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.pieces import joined
from mysqlraft.sandbox.servers import Server

PROGRESS = (
    "CREATE DATABASE IF NOT EXISTS mysqlraft",
    "CREATE TABLE mysqlraft.progress"
    " (id TINYINT UNSIGNED PRIMARY KEY, applied BIGINT UNSIGNED NOT NULL, state LONGBLOB)",
    "INSERT INTO mysqlraft.progress VALUES (1, 0, '')",
)


def run(server: Server, *statements: str) -> None:
    """Runs statements on one connection, in autocommit mode."""
    with server.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


class Rig:
    """A capture in a thread; `payloads` holds what it proposed, decoded."""

    def __init__(
        self, server: Server, start: CaptureState, *, tls: bool = False, server_id: int = 900_002, **options: Any
    ) -> None:
        self.server = server
        self.start_state = start
        self.payloads: list[Payload] = []
        self.error: BaseException | None = None
        self._sequence = 1
        self._syncs = 0
        self.gate: Callable[[Payload], None] = lambda payload: None
        connect: dict[str, Any] = {"user": server.user, "password": server.password}
        if tls:
            connect |= {"host": server.address[0], "port": server.port}
        else:
            connect |= {"unix_socket": str(server.socket), "ssl_disabled": True}
        settings: dict[str, Any] = {"replicated": TableFilter(), "mark_seconds": 60.0} | options
        self.capture = Capture(
            connect, self, start, session=7, server_id=server_id, scan_server_id=server_id + 1, **settings
        )
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.capture.run()
        except BaseException as error:
            self.error = error

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        assert (session, sequence) == (7, self._sequence + 1)
        self._sequence = sequence
        decoded = decode(payload)
        self.gate(decoded)
        self.payloads.append(decoded)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.capture.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def wait(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Waits for a condition; a capture that has ended meanwhile is a failure, unless that is the condition."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.error is not None:
                raise AssertionError("capture ended") from self.error
            assert time.monotonic() < deadline, (self.capture.status(), self.log())
            time.sleep(0.005)

    def sync(self) -> None:
        """Waits until everything that the server has in its binlog was captured."""
        self._syncs += 1
        name = f"sync_db_{self._syncs}"
        run(self.server, f"CREATE DATABASE {name}", f"DROP DATABASE {name}")
        wanted = f"DROP DATABASE {name}"
        self.wait(lambda: any(p.ddl is not None and p.ddl.text == wanted for p in self.payloads))

    def state(self) -> CaptureState:
        """What the replicated state would hold now."""
        last = next(p for p in reversed(self.payloads) if p.kind is not PayloadKind.PART or p.last)
        return CaptureState(last.resume, last.done, last.base)

    def log(self) -> list[Any]:
        """Readable: one list a unit, of (table, kind, before, after); a statement as text; "MARK"."""
        found: list[Any] = []
        for payload in joined(self.payloads):
            if payload.ddl is not None:
                if "sync_db" not in payload.ddl.text:
                    found.append(payload.ddl.text)
            elif payload.kind is PayloadKind.MARK:
                found.append("MARK")
            for number, unit in enumerate(payload.units):
                rows = list(_rows(payload, number))
                if payload.kind is PayloadKind.PART and payload.part:
                    found[-1] += rows
                else:
                    found.append(rows)
                assert len(unit.keys) % 8 == 0
        return found


def _rows(payload: Payload, number: int) -> Iterator[tuple[str, str, Any, Any]]:
    for change in payload.units[number].changes:
        body = payload.tables[change.table]
        table = parse(body)
        before_columns, after_columns = columns_of(table, change.kind, change.layout)
        rows = list(split(table, change.kind, change.layout, change.images))
        assert len(rows) == change.count
        for before, after in rows:
            yield (
                ".".join(names(body)),
                change.kind.name,
                None if before is None else _first(before_columns, before),
                None if after is None else _first(after_columns, after),
            )


def _first(columns: Any, image: bytes) -> Any:
    value = fields(columns, image)[0]
    return None if value is None else scalar(columns[0], value)


@contextmanager
def capturing(server: Server, start: CaptureState | None = None, **options: Any) -> Iterator[Rig]:
    """A running capture, from the server's present position on unless told otherwise."""
    if start is None:
        with server.connect() as connection:
            now = position_now(connection)
        start = CaptureState(now, (now.file, now.offset), 0)
    rig = Rig(server, start, **options)
    rig.start()
    try:
        yield rig
    finally:
        rig.stop()
