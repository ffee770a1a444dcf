"""How the replica process opens sessions, seen from the log: real replicated state, no server, no capture."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from mysqlraft import config
from mysqlraft.admin.status import State
from mysqlraft.ipc import Link, LogEntry, LogReader
from mysqlraft.mysql.connection import Session, SessionLost
from mysqlraft.mysql.schema import ensure_schema
from mysqlraft.replication import replica
from mysqlraft.replication.apply import ApplyState, ApplyStatus
from mysqlraft.replication.capture import Capture
from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, Position, Unit, decode
from mysqlraft.replication.replica import Reader, Replica, dump_server_id
from mysqlraft.replication.server_watch import ServerWatch
from mysqlraft.replication.state import ReplicationState
from mysqlraft.sandbox.servers import Server
from tests.harness.daemons import MINIMAL
from tests.replication.harness import wait_for

SETTINGS = config.parse(MINIMAL, Path("test.yaml"))
START = Position("binlog.000001", 157)


class FakeLink:
    """Takes proposals down."""

    def __init__(self) -> None:
        self.open: int | None = None
        self.proposed: list[tuple[int, int, bytes]] = []
        self.stopping = threading.Event()

    def open_session(self, session: int | None) -> None:
        self.open = session

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        assert session == self.open
        self.proposed.append((session, sequence, payload))


class Rig:
    """A replica whose log is written by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last_session: int = 0) -> None:
        self.link = FakeLink()
        self.state = ReplicationState(1, lambda first, last: [])
        self.started: list[Capture | None] = []
        self.replica = Replica(SETTINGS, cast(Link, self.link), cast(LogReader, None), last_session)
        monkeypatch.setattr(self.replica, "_start_capture", lambda state: self.started.append(None))
        self._index = 0

    def open(self) -> int:
        """Opens a session as `_on_ready` does with a server; returns it."""
        self.replica._open_session(self.state, Payload(PayloadKind.OPEN, Flavour.MYSQL, 0, START, (START.file, 157)))
        session, sequence, payload = self.link.proposed[-1]
        assert sequence == 1
        assert decode(payload).kind is PayloadKind.OPEN
        return session

    def commit(self, session: int, sequence: int, payload: bytes, origin: int = 1) -> None:
        self._index += 1
        entry: Any = LogEntry(self._index, origin, session, sequence, payload)
        self.replica._on_step(entry, self.state.step(entry), self.state)

    def commit_proposed(self, number: int = -1) -> None:
        self.commit(*self.link.proposed[number])


def test_capture_starts_when_the_log_holds_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    session = rig.open()
    assert abs(session / 1e6 - time.time()) < 10
    rig.commit(5, 1, rig.link.proposed[0][2], origin=2)
    assert not rig.started, "another site's OPEN"
    rig.commit_proposed()
    assert len(rig.started) == 1
    rig.commit_proposed()
    assert len(rig.started) == 1, "sent twice by consensus, accepted once"


def test_an_open_that_an_earlier_process_had_on_the_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    session = rig.open()
    rig.commit(session - 1000, 1, rig.link.proposed[0][2])
    assert not rig.started
    rig.commit_proposed()
    assert len(rig.started) == 1
    assert len(rig.link.proposed) == 1


def test_a_greater_session_in_the_log_is_followed_by_a_greater_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the clock has stepped back, and what an earlier process proposed comes before our OPEN."""
    rig = Rig(monkeypatch)
    session = rig.open()
    ahead = session + 10**12
    rig.commit(ahead, 1, rig.link.proposed[0][2])
    assert len(rig.link.proposed) == 2, "superseded"
    rig.commit_proposed(0)
    assert not rig.started, "ours was not accepted"
    again = rig.link.proposed[-1][0]
    assert again > ahead
    rig.commit_proposed()
    assert len(rig.started) == 1
    assert rig.link.open == again


def test_a_void_session_is_followed_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the same goes wrong at once again and again: then it takes somebody who looks at it."""
    rig = Rig(monkeypatch)
    rig.open()
    mark = Payload(PayloadKind.MARK, Flavour.MYSQL, 0, START, (START.file, 200)).encode()
    unit = Payload(PayloadKind.UNITS, Flavour.MYSQL, 0, START, (START.file, 200), units=[Unit(0, 0, b"", [])]).encode()
    for proposed in (mark, unit):
        rig.commit_proposed()
        session = rig.link.proposed[-1][0]
        rig.commit(session, 2, proposed)
        rig.commit(session, 3, b"garbage")
        assert rig.link.open is not None
        assert rig.link.open > session
        rig.commit(session, 4, proposed)
        assert rig.link.open == rig.link.proposed[-1][0], "what it still had on the way counts for nothing"
    for _ in range(2):
        rig.commit_proposed()
        rig.commit(rig.link.proposed[-1][0], 2, b"garbage")
    stop = rig.replica._capture_stop
    assert stop is not None
    assert "breaks the protocol again and again: not a payload" in stop.reason
    assert len(rig.replica._void) == 4


def test_a_capture_that_waits_for_the_server_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply opens the next session meanwhile; only the next capture waits."""

    class Waiting:
        def stop(self) -> None:
            stopped.set()

    rig = Rig(monkeypatch)
    session = rig.open()
    rig.commit_proposed()
    stopped, answered = threading.Event(), threading.Event()
    thread = threading.Thread(target=answered.wait, daemon=True)
    thread.start()
    rig.replica._capture, rig.replica._capture_thread = cast(Capture, Waiting()), thread
    apply = threading.Thread(target=rig.commit, args=(session, 2, b"garbage"), daemon=True)
    apply.start()
    apply.join(10)
    assert not apply.is_alive()
    assert stopped.is_set()
    assert rig.link.proposed[-1][0] == rig.link.open
    assert rig.link.open != session
    answered.set()


def test_another_sites_void_session_is_only_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    session = rig.open()
    rig.commit_proposed()
    rig.commit(5, 1, b"garbage", origin=2)
    assert rig.link.open == session
    assert list(rig.replica._void) == [(2, 2, rig.replica._void[0][2])]


def test_a_session_is_greater_than_any_of_this_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consensus would refuse a proposal in an older one."""
    ahead = time.time_ns() // 1000 + 10**12
    assert Rig(monkeypatch, last_session=ahead).open() == ahead + 1


def test_a_new_site_begins_where_it_began_the_first_time(server: Server) -> None:
    """What is committed while the first OPEN is on its way, and lost with the process, is captured all the same."""
    mysql = replace(SETTINGS.server, socket=server.socket, user=server.user)
    settings = replace(SETTINGS, mysql=mysql)
    session = Session(server.connect)
    ensure_schema(session.query)
    session.query("CREATE DATABASE d")
    found = []
    for index in (7, 9):
        link = FakeLink()
        state = ReplicationState(1, lambda first, last: [])
        state.index = index
        with patch.object(type(mysql), "read_password", lambda self: server.password):
            Replica(settings, cast(Link, link), cast(LogReader, None), 0)._on_ready(state)
        payload = decode(link.proposed[0][2])
        found.append((payload.base, payload.resume, payload.done))
        session.query("CREATE TABLE IF NOT EXISTS d.t (id INT PRIMARY KEY)")
    assert found[0] == found[1]
    assert found[0][0] == 7
    assert found[0][1].identity.startswith(f"{server.server_id}-")
    session.close()


def test_a_server_that_does_not_come_to_an_end_shows(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for room on its disk: it answers whoever asks. A statement may take any time."""
    monkeypatch.setattr(replica, "BUSY_AFTER", 0.2)
    rig, session = Rig(monkeypatch), Session(server.connect)
    watch = ServerWatch(server.connect, None)
    watch.session = session
    rig.replica._applier = cast(Any, SimpleNamespace(status=ApplyStatus(ApplyState.RUNNING), watch=watch))

    def sleep() -> None:
        with suppress(SessionLost):
            session.run([b"DO SLEEP(1000)"])

    thread = threading.Thread(target=sleep)
    thread.start()
    wait_for(lambda: "room on its disk" in rig.replica._judge()[1], 30, watch)
    assert rig.replica._judge()[0] is State.RETRYING
    watch.runs_statement = True
    assert rig.replica._judge()[0] is State.STARTING
    session.abort()
    thread.join()
    session.close()


def test_server_ids_are_distinct_and_out_of_the_way() -> None:
    ids = {dump_server_id("shop", site, reader) for site in range(1, 16) for reader in Reader}
    assert len(ids) == 60
    assert all(3 << 30 <= one < 1 << 32 for one in ids)
