"""What the two processes of a daemon say to each other, over two socketpairs.

Each is a stream of msgpack arrays: a `Say` and its fields.

    control: consensus -> replica                 replica -> consensus
    START    path, text, session, applied, skips  PROPOSE  session, sequence, payload
    HELD     session, sequence                    STATUS   {...}
    STOP                                          ENDS     why
                                                  BEAT

    log: consensus -> replica                     replica -> consensus
    ENTRIES  [entry, ...]                         WANT     first index, credit in bytes
    FETCHED  [entry, ...], error                  CREDIT   bytes more
    REACH    index                                FETCH    first index, last index
                                                  REACHED  index

The log has a stream of its own because apply reads it itself: an entry goes from one process into the thread that
applies it without waking any other. Entries are pushed as they are committed, never asked for one by one: the replica
gives credit, an entry's payload uses it up, and what apply has taken becomes credit again. Proposals go the other way
without an answer; HELD says up to which one they are committed, which is what bounds the bytes outstanding. Both ends
always read, and everything that can queue is bounded by credit and window, so neither can block the other. REACH asks
apply to say at once when it is that far: somebody waits for it.

The end of a stream is the end of the other process. The replica then exits at once: its server keeps what it
committed, and everything else is in the log. ENDS is the last that it says if it cannot go on itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple, cast

import msgpack

logger = logging.getLogger(__name__)

MAX_MESSAGE = 256 << 20
"""Bytes. Far above any entry; a longer message means that the two processes do not speak the same language."""

CREDIT = 8 << 20
"""Bytes of committed entries that may wait in the replica for apply to take them."""
_CREDIT_STEP = CREDIT // 8
"""Credit is given back in steps of so many bytes at least: a message for each entry would wake consensus for each."""

BEAT_SECONDS = 1.0
"""How often the replica says at least that it is alive."""

EXIT_FAILED = 1
"""The replica's exit status when something went wrong that may not go wrong again."""
EXIT_ALONE = 9
"""The replica's exit status when consensus has closed a stream, or is gone."""
EXIT_STOPPED = 10
"""The replica's exit status when what went wrong would go wrong again: somebody has to mend it first."""

_READ = 1 << 18
_MILLISECONDS = 1000


class Say(IntEnum):
    START = 0
    HELD = 1
    STOP = 2
    PROPOSE = 3
    STATUS = 4
    BEAT = 5
    ENTRIES = 16
    FETCHED = 17
    WANT = 18
    CREDIT = 19
    FETCH = 20
    REACH = 21
    REACHED = 22
    ENDS = 32


class LogEntry(NamedTuple):
    """A committed entry as the replica sees it. Entries that are Raft's own have origin 0; their payload is a
    configuration, or empty."""

    index: int  # type: ignore[assignment]  # a tuple's own index() is of no use here
    origin: int
    session: int
    sequence: int
    payload: bytes


class SkipLists(NamedTuple):
    """What somebody has decided to go past: log indices of statements; own transactions, each as the fields of a
    `mysqlraft.binlog.place.Place` and the path of the file that it is to be kept in."""

    statements: list[int]
    captured: list[list[Any]]


NOTHING_SKIPPED = SkipLists([], [])


class LinkError(Exception):
    """What is no message, or an answer that says why there is no other."""


class SessionOver(Exception):
    """A proposal of a session that may not propose any more: its capture has to end."""


class _Messages:
    """The messages in a stream of bytes."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE, strict_map_key=False)

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """The messages that `data` completes. Raises LinkError."""
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except (ValueError, msgpack.UnpackException) as error:
            raise LinkError(f"the other process of this daemon sent no message: {error!r}") from error


class Channel(asyncio.Protocol):
    """The consensus process's end of a stream: calls ``received(message)`` for each, and ``closed(why)`` at the end;
    ``why`` is "" if it is the replica process that has closed it."""

    def __init__(self, received: Callable[[list[Any]], None], closed: Callable[[str], None]) -> None:
        self._received = received
        self._closed = closed
        self._messages = _Messages()
        self._transport: asyncio.Transport | None = None
        self._why = ""

    def say(self, *message: Any) -> None:
        """Sends a message; does nothing once the channel is closed."""
        if self._transport is not None:
            self._transport.write(msgpack.packb(message))

    def close(self, why: str = "") -> None:
        if self._transport is not None:
            self._why = self._why or why
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._messages.feed(data):
                self._received(message)
        except LinkError as error:
            self.close(str(error))
        except Exception as error:
            logger.exception("a message of the replica process cannot be dealt with")
            self.close(f"internal error in the consensus process, {type(error).__name__}: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        # A connection that was reset is one that the other process has closed, by its end.
        self._closed(self._why or ("" if exc is None or isinstance(exc, OSError) else str(exc)))


class Link:
    """The replica process's end of the control stream, for threads that block.

    Made first of all in the process: `read_start` takes the first message, then `start` the rest. `stopping` is set
    when consensus asks for an orderly end.
    """

    def __init__(self, sock: socket.socket, end: Callable[[], None] | None = None) -> None:
        """``end`` is called, in whatever thread notices, when consensus is gone; if not given, it ends the process."""
        self._socket = sock
        self._end = end or _exit
        self._messages = self._read()
        self._sending = threading.Lock()
        self._window = threading.Condition()
        self._outstanding: deque[tuple[int, int, int]] = deque()  # (session, sequence, bytes), in order
        self._outstanding_bytes = 0
        self._session: int | None = None
        self._reported: dict[str, Any] | None = None
        self.window_bytes = 16 << 20
        self.stopping = threading.Event()

    def read_start(self) -> tuple[str, str, int, int, SkipLists]:
        """(path, text) of the configuration, the last session that an earlier replica process of this daemon proposed
        in, the last log index that one has applied, and what is skipped; call it once, before `start`. Raises EOFError
        when consensus is gone already."""
        message = next(self._messages, None)
        if message is None:
            raise EOFError
        if message[0] != Say.START:
            raise LinkError(f"expected START, not message {message[0]}")
        return message[1], message[2], message[3], message[4], SkipLists(*message[5])

    def start(self, on_stop: Callable[[], None] = lambda: None) -> None:
        """Reads on in a thread of its own; ``on_stop`` is called in it when `stopping` is set."""
        self._on_stop = on_stop
        threading.Thread(target=self._serve, name="link", daemon=True).start()

    def open_session(self, session: int | None) -> None:
        """Only this session may propose from now on (None: no one); what others still have outstanding is forgotten."""
        with self._window:
            self._session = session
            self._outstanding.clear()
            self._outstanding_bytes = 0
            self._window.notify_all()

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """Hands over a proposal; waits while more than `window_bytes` are outstanding.

        Raises:
            SessionOver: the session may not propose any more.
        """
        with self._window:
            self._window.wait_for(lambda: self._outstanding_bytes < self.window_bytes or self._session != session)
            if self._session != session:
                raise SessionOver(f"session {session} is over")
            self._outstanding.append((session, sequence, len(payload)))
            self._outstanding_bytes += len(payload)
            # With the lock held: no other session's proposal may overtake this one.
            self._say(Say.PROPOSE, session, sequence, payload)

    def last_words(self, why: str) -> None:
        """Tells consensus why this process is about to end."""
        self._say(Say.ENDS, why)

    def is_open(self, session: int) -> bool:
        """Whether the session may propose."""
        return self._session == session

    @property
    def outstanding_bytes(self) -> int:
        return self._outstanding_bytes

    def report(self, status: dict[str, Any]) -> None:
        """Tells consensus how the replica is, unless that is what it was told last."""
        if status != self._reported:
            self._reported = status
            self._say(Say.STATUS, status)

    def beat(self) -> None:
        """Says that this process is alive; due every `BEAT_SECONDS`, as a status is only sent when it has changed."""
        self._say(Say.BEAT)

    def _say(self, *message: Any) -> None:
        data = msgpack.packb(message)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            self._end()

    def _read(self) -> Iterator[list[Any]]:
        """The messages, until consensus is gone."""
        messages = _Messages()
        while True:
            try:
                data = self._socket.recv(_READ)
            except OSError:
                return
            if not data:
                return
            yield from messages.feed(data)

    def _serve(self) -> None:
        try:
            for message in self._messages:
                self._received(message)
        except LinkError as error:
            self.last_words(str(error))
        self._end()

    def _received(self, message: list[Any]) -> None:
        say = message[0]
        if say == Say.HELD:
            self._held(message[1], message[2])
        elif say == Say.STOP:
            self.stopping.set()
            self._on_stop()
        else:
            raise LinkError(f"message {say} is not for the replica process")

    def _held(self, session: int, sequence: int) -> None:
        with self._window:
            while self._outstanding and self._outstanding[0][:2] <= (session, sequence):
                self._outstanding_bytes -= self._outstanding.popleft()[2]
            self._window.notify_all()


class LogReader:
    """The replica process's end of the log stream: `mysqlraft.replication.apply.CommittedLog`, for one thread."""

    def __init__(self, sock: socket.socket, stopping: threading.Event, end: Callable[[], None] | None = None) -> None:
        """``stopping``: an answer to `fetch` is not waited for any more once it is set. ``end``: as of `Link`."""
        self._socket = sock
        self._stopping = stopping
        self._end = end or _exit
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._messages = _Messages()
        self._entries: list[LogEntry] = []
        self._fetched: tuple[list[LogEntry], str | None] | None = None
        self._taken_bytes = 0
        self._called = False
        self.awaited = 0
        """An index that somebody waits for, 0 if nobody does: `reached` is due when it is applied."""

    def want(self, first: int) -> None:
        """Asks for all committed entries from index ``first`` on, once and for all."""
        self._say(Say.WANT, first, CREDIT)

    def take(self, timeout: float | None = None) -> list[LogEntry]:
        """The next entries, or none after ``timeout`` seconds, or when somebody begins to wait (`awaited`)."""
        while not self._entries and not self._called and self._receive(timeout):
            pass
        self._called = False
        entries, self._entries = self._entries, []
        self._taken_bytes += sum([len(entry.payload) for entry in entries])
        if self._taken_bytes >= _CREDIT_STEP:
            self._say(Say.CREDIT, self._taken_bytes)
            self._taken_bytes = 0
        return entries

    def reached(self, index: int) -> None:
        """Everything up to ``index`` is applied, and that is at least what was awaited."""
        self.awaited = 0
        self._say(Say.REACHED, index)

    def fetch(self, first: int, last: int) -> Iterator[LogEntry]:
        """Reads committed entries from ``first`` to ``last`` again, a bounded chunk at a time.

        Waits until they are committed, if they are not yet known to be.

        Raises:
            LinkError: the log does not hold them any more, or consensus asks for an end.
        """
        while first <= last:
            self._say(Say.FETCH, first, last)
            entries, error = self._answer()
            if error is not None:
                raise LinkError(error)
            yield from entries
            first = entries[-1].index + 1

    def _answer(self) -> tuple[list[LogEntry], str | None]:
        """The answer to a FETCH. It may take as long as it takes to find a leader: only an end is not waited for."""
        while (answer := self._fetched) is None:
            if not self._receive(0.5) and self._stopping.is_set():
                raise LinkError("asked to stop")
        self._fetched = None
        return answer

    def _say(self, *message: Any) -> None:
        try:
            self._socket.sendall(msgpack.packb(message))
        except OSError:
            self._end()

    def _receive(self, timeout: float | None) -> bool:
        """Takes in what has arrived; False if nothing has, within ``timeout`` seconds."""
        if timeout != 0 and not self._poll.poll(None if timeout is None else timeout * _MILLISECONDS):
            return False
        try:
            data = self._socket.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        for message in self._messages.feed(data):
            if message[0] == Say.ENTRIES:
                self._entries += [LogEntry(*entry) for entry in message[1]]
            elif message[0] == Say.REACH:
                self.awaited, self._called = message[1], True
            else:
                self._fetched = [LogEntry(*entry) for entry in message[1]], message[2]
        return True


def _exit() -> None:
    """At once, from any thread: there is nobody left to work for, and nothing that would have to be put away."""
    os._exit(EXIT_ALONE)
