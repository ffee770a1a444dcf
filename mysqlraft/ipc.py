"""What the two processes of a daemon say to each other, over one socketpair.

A frame is a big-endian u32 length and that many bytes of msgpack: an array of a `Say` and its fields.

    consensus -> replica                          replica -> consensus
    START    path, text, last session             WANT     first index, credit in bytes
    ENTRIES  commit index, [entry, ...]           CREDIT   bytes more
    HELD     session, sequence                    PROPOSE  session, sequence, payload
    FETCHED  request, [entry, ...], error         FETCH    request, first index, last index
    STOP                                          STATUS   {...}

Committed entries are pushed as they come, never asked for one by one: the replica gives credit, an entry's payload
uses it up, and what has been taken by apply becomes credit again. Proposals go the other way without an answer; HELD
says up to which one they are committed, which is what bounds the bytes outstanding. Both ends always read,
and everything that can queue is bounded by credit and window, so neither can block the other.

The end of the stream is the end of the other process. The replica then exits at once: its server keeps what it
committed, and everything else is in the log.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple, cast

import msgpack

MAX_FRAME = 256 << 20
"""Bytes. Far above any entry; a longer frame means that the two processes do not speak the same language."""

CREDIT = 8 << 20
"""Bytes of committed entries that may wait in the replica for apply to take them."""

EXIT_STOPPED = 10
"""The replica's exit status when what went wrong would go wrong again: somebody has to mend it first."""

_LENGTH = struct.Struct(">I")


class Say(IntEnum):
    START = 0
    ENTRIES = 1
    HELD = 2
    FETCHED = 3
    STOP = 4
    WANT = 16
    CREDIT = 17
    PROPOSE = 18
    FETCH = 19
    STATUS = 20


class LogEntry(NamedTuple):
    """A committed entry as the replica sees it. Entries that are Raft's own have origin 0 and no payload."""

    index: int  # type: ignore[assignment]  # a tuple's own index() is of no use here
    origin: int
    session: int
    sequence: int
    payload: bytes


class LinkError(Exception):
    """A frame that is none, or an answer that says why there is no other."""


class SessionOver(Exception):
    """A proposal of a session that may not propose any more: its capture has to end."""


def frame(*message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(packed)) + packed


class Channel(asyncio.Protocol):
    """The consensus process's end: calls ``received(message)`` for each frame and ``closed()`` at the end."""

    def __init__(self, received: Callable[[list[Any]], None], closed: Callable[[], None]) -> None:
        self._received = received
        self._closed = closed
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def say(self, *message: Any) -> None:
        """Sends a message; does nothing once the channel is closed."""
        if self._transport is not None:
            self._transport.write(frame(*message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise LinkError(f"the replica process sent a frame of {length} bytes")
            if len(buffer) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            with memoryview(buffer) as view:
                message = msgpack.unpackb(view[at : at + length], strict_map_key=False)
            at += length
            self._received(message)
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed()


class Link:
    """The replica process's end, for threads that block.

    Made first of all in the process: `read_start` takes the first message, then `start` the rest. `stopping` is set
    when consensus asks for an orderly end.
    """

    def __init__(self, sock: socket.socket, end: Callable[[], None] | None = None) -> None:
        """``end`` is called, in whatever thread notices, when consensus is gone; if not given, it ends the process."""
        self._socket = sock
        self._end = end or _exit
        self._stream = sock.makefile("rb", buffering=1 << 18)
        self._sending = threading.Lock()
        self._entries: queue.SimpleQueue[list[LogEntry]] = queue.SimpleQueue()
        self._window = threading.Condition()
        self._outstanding: deque[tuple[int, int, int]] = deque()  # (session, sequence, bytes), in order
        self._outstanding_bytes = 0
        self._session: int | None = None
        self._fetching = threading.Lock()
        self._fetched: queue.SimpleQueue[tuple[list[LogEntry], str | None]] = queue.SimpleQueue()
        self._requests = 0
        self.window_bytes = 16 << 20
        self.commit_index = 0
        self.stopping = threading.Event()

    def read_start(self) -> tuple[str, str, int]:
        """(path, text) of the configuration, and the last session that an earlier replica process of this daemon
        proposed in; call it once, before `start`. Raises EOFError when consensus is gone already."""
        message = self._read()
        if message[0] != Say.START:
            raise LinkError(f"expected START, not message {message[0]}")
        return message[1], message[2], message[3]

    def start(self, on_stop: Callable[[], None] = lambda: None) -> None:
        """Reads on in a thread of its own; ``on_stop`` is called in it when `stopping` is set."""
        self._on_stop = on_stop
        threading.Thread(target=self._serve, name="link", daemon=True).start()

    # Committed entries.

    def want(self, first: int) -> None:
        """Asks for all committed entries from index ``first`` on, once and for all."""
        self._say(Say.WANT, first, CREDIT)

    def take(self, timeout: float | None = None) -> list[LogEntry]:
        """The next entries, or none after ``timeout`` seconds."""
        try:
            entries = self._entries.get(timeout=timeout)
        except queue.Empty:
            return []
        self._say(Say.CREDIT, sum(len(entry.payload) for entry in entries))
        return entries

    def fetch(self, first: int, last: int) -> Iterator[LogEntry]:
        """Reads committed entries from ``first`` to ``last`` again, a bounded chunk at a time.

        Waits until they are committed, if they are not yet known to be.

        Raises:
            LinkError: the log does not hold them any more, or consensus asks for an end.
        """
        while first <= last:
            with self._fetching:
                self._requests += 1
                self._say(Say.FETCH, self._requests, first, last)
                entries, error = self._answer()
            if error is not None:
                raise LinkError(error)
            yield from entries
            first = entries[-1].index + 1

    def _answer(self) -> tuple[list[LogEntry], str | None]:
        """The answer to a FETCH. It may take as long as it takes to find a leader: only an end is not waited for."""
        while True:
            try:
                return self._fetched.get(timeout=0.5)
            except queue.Empty:
                if self.stopping.is_set():
                    raise LinkError("asked to stop") from None

    # Proposals.

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

    @property
    def outstanding_bytes(self) -> int:
        return self._outstanding_bytes

    def report(self, status: dict[str, Any]) -> None:
        """Tells consensus how the replica is."""
        self._say(Say.STATUS, status)

    # The wire.

    def _say(self, *message: Any) -> None:
        data = frame(*message)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            self._end()

    def _read(self) -> list[Any]:
        """The next message. Raises EOFError when consensus is gone."""
        try:
            head = self._stream.read(_LENGTH.size)
            (length,) = _LENGTH.unpack(head) if len(head) == _LENGTH.size else (0,)
            body = self._stream.read(length)
        except OSError as error:
            raise EOFError from error
        if not length or len(body) < length:
            raise EOFError
        message: list[Any] = msgpack.unpackb(body, strict_map_key=False)
        return message

    def _serve(self) -> None:
        try:
            while True:
                self._received(self._read())
        except EOFError:
            self._end()

    def _received(self, message: list[Any]) -> None:
        say = message[0]
        if say == Say.ENTRIES:
            self.commit_index = message[1]
            if message[2]:
                self._entries.put([LogEntry(*entry) for entry in message[2]])
        elif say == Say.HELD:
            self._held(message[1], message[2])
        elif say == Say.FETCHED:
            self._fetched.put(([LogEntry(*entry) for entry in message[2]], message[3]))
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


def _exit() -> None:
    """At once, from any thread: there is nobody left to work for, and nothing that would have to be put away."""
    os._exit(0)
