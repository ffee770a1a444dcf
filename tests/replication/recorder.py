"""What capture makes of statements, without a log: payloads to feed the lanes with."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pymysql

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.position import file_number
from mysqlraft.binlog.stream import TransactionStream
from mysqlraft.replication.capture import Capture, CaptureState, position_now
from mysqlraft.replication.entry import Payload, PayloadKind, Position, decode
from mysqlraft.replication.pieces import joined
from mysqlraft.sandbox.servers import Server
from tests.replication.harness import TIMEOUT, wait_for


class _Keeper:
    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.encoded: list[bytes] = []

    def propose(self, session: int, sequence: int, payload: bytes) -> bool:
        self.encoded.append(payload)
        self.payloads.append(decode(payload))
        return True


class _Recording(Capture):
    """Tells how far it has read and handed over everything."""

    through: tuple[str, int] = ("", 0)

    def _idle(self, dump: DumpConnection, stream: TransactionStream) -> bool:
        if not self._units:
            self.through = stream.position.done
        return super()._idle(dump, stream)


def arguments(server: Server) -> dict[str, Any]:
    """Keyword arguments of ``pymysql.connect``."""
    return {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}


def here(server: Server) -> Position:
    """The end of the server's binlog."""
    with closing(server.connect()) as connection:
        return position_now(connection)


def record(server: Server, begin: Position, end: Position | None = None, **options: Any) -> list[Payload]:
    """The payloads of everything between two places in the server's binlog (default: up to its end), rows in pieces
    joined."""
    payloads = joined(_record(server, begin, end, **options).payloads)
    return [payload for payload in payloads if payload.kind is not PayloadKind.MARK]


def record_encoded(server: Server, begin: Position, end: Position | None = None, **options: Any) -> list[bytes]:
    """`record`, as the bytes that would be proposed."""
    return _record(server, begin, end, **options).encoded


def _record(server: Server, begin: Position, end: Position | None, **options: Any) -> _Keeper:
    end = end or here(server)
    keeper = _Keeper()
    capture = _Recording(
        arguments(server),
        keeper,  # type: ignore[arg-type]
        CaptureState(begin, (begin.file, begin.offset), 0),
        session=1,
        server_id=700,
        scan_server_id=701,
        replicated=lambda schema, table: schema not in ("mysql", "sys", "mysqlraft"),
        position="file",
        **options,
    )
    failed: list[BaseException] = []

    def run() -> None:
        try:
            capture.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wanted = file_number(end.file), end.offset

    def complete() -> bool:
        if failed:
            raise failed[0]
        done = capture.status()["position"]
        return any(
            (file_number(file), offset) >= wanted
            for file, offset in (capture.through, (done["file"], done["offset"]))
            if file
        )

    try:
        wait_for(complete, TIMEOUT, f"capture of {server}")
    finally:
        capture.stop()
        thread.join()
    return keeper


def connection(server: Server) -> pymysql.Connection[Any]:
    """A connection as apply opens it."""
    return pymysql.connect(**arguments(server), autocommit=True, charset="utf8mb4")
