"""The two ends of each socketpair: flow control both ways, re-reading, and what the end of one means for the other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from mysqlraft.ipc import (
    CREDIT,
    EXIT_ALONE,
    MAX_MESSAGE,
    Channel,
    Link,
    LinkError,
    LogEntry,
    LogReader,
    Say,
    SessionOver,
    SkipLists,
)
from mysqlraft.raft.store import Compacted, StoreError
from mysqlraft.supervisor import unreadable


class Consensus:
    """The other end of a link, in an event loop of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[list[Any]] = []
        self.changed = threading.Condition()
        self.closed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._channel = Channel(self._received, lambda why: self.closed.set())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(
            self._loop.create_connection(lambda: self._channel, sock=sock), self._loop
        ).result(5)

    def say(self, *message: Any) -> None:
        self._loop.call_soon_threadsafe(self._channel.say, *message)

    def wait(self, wanted: Callable[[list[list[Any]]], bool]) -> list[list[Any]]:
        with self.changed:
            assert self.changed.wait_for(lambda: wanted(self.heard), 10), self.heard
            return list(self.heard)

    def _received(self, message: list[Any]) -> None:
        with self.changed:
            self.heard.append(message)
            self.changed.notify_all()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._channel.close)
        assert self.closed.wait(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def pair() -> Iterator[tuple[Link, Consensus]]:
    """Both ends of a control stream."""
    ours, theirs = socket.socketpair()
    link, consensus = Link(theirs, lambda: None), Consensus(ours)
    try:
        yield link, consensus
    finally:
        consensus.close()
        theirs.close()


@contextmanager
def log_pair() -> Iterator[tuple[LogReader, Consensus, threading.Event]]:
    """Both ends of a log stream, and what tells the reader that an end was asked for."""
    ours, theirs = socket.socketpair()
    stopping = threading.Event()
    reader, consensus = LogReader(theirs, stopping, lambda: None), Consensus(ours)
    try:
        yield reader, consensus, stopping
    finally:
        consensus.close()
        theirs.close()


def entries(first: int, last: int, size: int = 10) -> list[LogEntry]:
    return [LogEntry(index, 1, 7, index, bytes(size)) for index in range(first, last + 1)]


def test_the_first_message() -> None:
    with pair() as (link, consensus):
        skips = SkipLists([7], [["binlog.000001", 4, "1-2", "0-1-3", "/x"]])
        consensus.say(Say.START, "tokyo.yaml", "site: tokyo", 42, 57, skips)
        assert link.read_start() == ("tokyo.yaml", "site: tokyo", 42, 57, skips)


def test_consensus_gone_before_the_first_message() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            Link(theirs).read_start()


def test_committed_entries_use_credit_and_taking_them_gives_it_back_in_steps() -> None:
    with log_pair() as (reader, consensus, _):
        reader.want(5)
        assert consensus.wait(lambda heard: len(heard) == 1) == [[Say.WANT, 5, CREDIT]]
        consensus.say(Say.ENTRIES, entries(5, 7))
        assert reader.take(10) == entries(5, 7)
        assert reader.take(0) == []
        assert reader.take(0.01) == []
        consensus.say(Say.ENTRIES, entries(8, 9, CREDIT // 2))
        taken = reader.take(10)
        while len(taken) < 2:
            taken += reader.take(10)
        assert taken == entries(8, 9, CREDIT // 2)
        heard = consensus.wait(lambda heard: sum(more for say, more, *_ in heard[1:]) == CREDIT + 30)
        assert all(say == Say.CREDIT for say, *_ in heard[1:])


def test_fetch_asks_on_until_it_has_everything() -> None:
    with log_pair() as (reader, consensus, _):
        found: list[LogEntry] = []
        fetching = threading.Thread(target=lambda: found.extend(reader.fetch(3, 8)))
        fetching.start()
        consensus.wait(lambda heard: heard == [[Say.FETCH, 3, 8]])
        # What is committed meanwhile is kept for `take`.
        consensus.say(Say.ENTRIES, entries(9, 10))
        consensus.say(Say.FETCHED, entries(3, 6), None)
        consensus.wait(lambda heard: heard[-1] == [Say.FETCH, 7, 8])
        consensus.say(Say.FETCHED, entries(7, 8), None)
        fetching.join(10)
        assert found == entries(3, 8)
        assert reader.take(10) == entries(9, 10)


def test_fetch_says_why_it_cannot() -> None:
    with log_pair() as (reader, consensus, _):
        failures: list[LinkError] = []

        def fetch() -> None:
            try:
                list(reader.fetch(3, 8))
            except LinkError as error:
                failures.append(error)

        fetching = threading.Thread(target=fetch)
        fetching.start()
        consensus.wait(lambda heard: heard == [[Say.FETCH, 3, 8]])
        consensus.say(Say.FETCHED, [], "entry 3 is not in the log any more")
        fetching.join(10)
        assert "not in the log any more" in str(failures[0])


def test_fetch_does_not_wait_beyond_the_end() -> None:
    with log_pair() as (reader, _, stopping):
        stopping.set()
        with pytest.raises(LinkError, match="asked to stop"):
            list(reader.fetch(3, 8))


def test_proposals_wait_for_the_window() -> None:
    with pair() as (link, consensus):
        link.start()
        link.window_bytes = 100
        link.open_session(7)
        for sequence in (1, 2):
            link.propose(7, sequence, bytes(60))
        third = threading.Thread(target=link.propose, args=(7, 3, b"third"))
        third.start()
        consensus.wait(lambda heard: len(heard) == 2)
        third.join(0.1)
        assert third.is_alive(), "120 bytes of 100 are outstanding"
        assert link.outstanding_bytes == 120
        consensus.say(Say.HELD, 7, 1)
        assert consensus.wait(lambda heard: len(heard) == 3)[-1] == [Say.PROPOSE, 7, 3, b"third"]
        third.join(10)
        consensus.say(Say.HELD, 7, 3)
        consensus.say(Say.STOP)
        assert link.stopping.wait(10)  # it comes after HELD
        assert link.outstanding_bytes == 0


def test_a_session_that_is_over_proposes_nothing() -> None:
    with pair() as (link, consensus):
        link.start()
        link.window_bytes = 1
        link.open_session(7)
        link.propose(7, 1, b"open")
        failures: list[Exception] = []

        def blocked() -> None:
            try:
                link.propose(7, 2, b"units")
            except SessionOver as error:
                failures.append(error)

        waiting = threading.Thread(target=blocked)
        waiting.start()
        link.open_session(8)
        waiting.join(10)
        assert len(failures) == 1
        link.propose(8, 1, b"open")
        assert [message[1:3] for message in consensus.wait(lambda heard: len(heard) == 2)] == [[7, 1], [8, 1]]


def test_stop() -> None:
    with pair() as (link, consensus):
        link.start()
        consensus.say(Say.STOP)
        assert link.stopping.wait(10)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 << 20])
def test_frames_of_any_size_and_cut_anywhere(size: int) -> None:
    with pair() as (link, consensus):
        link.start()
        link.open_session(1)
        link.propose(1, 1, bytes(size))
        link.report({"state": "running"})
        heard = consensus.wait(lambda heard: len(heard) == 2)
        assert heard == [[Say.PROPOSE, 1, 1, bytes(size)], [Say.STATUS, {"state": "running"}]]


def test_a_report_that_says_nothing_new_wakes_nobody() -> None:
    with pair() as (link, consensus):
        for state in ("starting", "running", "running", "stopping"):
            link.report({"state": state})
        heard = consensus.wait(lambda heard: [Say.STATUS, {"state": "stopping"}] in heard)
        assert [report["state"] for _, report in heard] == ["starting", "running", "stopping"]


@pytest.mark.parametrize("garbage", [b"\xc1", bytes(MAX_MESSAGE + 1)], ids=["no msgpack", "too long"])
def test_what_is_no_message_is_refused(garbage: bytes) -> None:
    whys: list[str] = []
    channel = Channel(lambda message: None, whys.append)
    transport = Mock(asyncio.Transport)
    channel.connection_made(transport)
    channel.data_received(garbage)
    transport.close.assert_called_once()
    channel.connection_lost(None)
    assert "sent no message" in whys[0]


REPLICA = """
import socket, sys, time
from mysqlraft.ipc import Link
link = Link(socket.socket(fileno=int(sys.argv[1])))
link.start()
print("up", flush=True)
while True:
    time.sleep(60)
"""


def test_the_end_of_consensus_ends_the_replica() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        replica = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
        )
    with replica:
        assert replica.stdout is not None
        assert replica.stdout.readline() == b"up\n"
        ours.close()
        assert replica.wait(5) == EXIT_ALONE


def test_what_to_do_about_a_log_that_begins_too_late() -> None:
    assert unreadable(StoreError("damaged")) == "damaged"
    said = unreadable(Compacted("entry 3 is not in the log any more, it begins at 9"))
    assert said.startswith("entry 3 is not in the log any more, it begins at 9: the tables of this site's server")
    assert "reload" in said
