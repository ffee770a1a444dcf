"""A TCP connection as a sequence of wire.py's frames, whoever has dialled it."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgpack

from mysqlraft.raft.wire import LENGTH, ProtocolError, frame, unpack

logger = logging.getLogger(__name__)

HELLO, PING, PONG, GOSSIP, CALL, ANSWER = 0, 100, 101, 102, 103, 104
"""What a frame is that is no message: see transport.py."""

MAX_FRAME_BYTES = 128 * 1024 * 1024
"""No frame of a peer's is longer. One large entry has to fit."""
MAX_HELLO_BYTES = 4096
TLS_HELLO = 0x160301
"""How a TLS connection begins."""
JOINED_BYTES = 64 * 1024
"""A frame of at most so many bytes is copied to be written in one piece, which is cheaper than two."""


class Frames(asyncio.Protocol, ABC):
    """A connection as a sequence of frames."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer_name = "?"
        self.closed = False
        self.max_frame = MAX_HELLO_BYTES
        self.heard_at = time.monotonic()
        """Moved on by the time in which this process stood still, see `stood_still`."""
        self._chunks: list[bytes] = []
        """The beginning of a frame."""
        self._missing = 0
        """At least so many bytes of it are to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer_name = shown(transport.get_extra_info("peername"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        try:
            self._split(data)
        except ProtocolError as error:
            self.on_garbage(str(error))
            self.abort()

    def _split(self, data: bytes) -> None:
        """Hand over the whole frames in `data`, and keep the rest."""
        view = memoryview(data)
        start, size = 0, len(data)
        while not self.closed:
            begun = start + LENGTH.size
            if size < begun:
                self._missing = begun - size
                break
            (length,) = LENGTH.unpack_from(data, start)
            if length > self.max_frame:
                if length >> 8 == TLS_HELLO:
                    raise ProtocolError("it speaks TLS, which this site does not: one has tls, the other insecure")
                raise ProtocolError(f"frame of {length} bytes, at most {self.max_frame} are allowed")
            end = begun + length
            if size < end:
                self._missing = end - size
                break
            self.on_frame(unpack(view[begun:end]))
            start = end
        if start < size and not self.closed:
            self._chunks.append(data[start:])

    def stood_still(self, seconds: float) -> None:
        """This process did not run for so long, and could not hear anybody: that time does not count as silence."""
        self.heard_at = min(time.monotonic(), self.heard_at + max(0.0, seconds))

    @property
    def silent_seconds(self) -> float:
        """For how long this process has run and heard nothing."""
        return time.monotonic() - self.heard_at

    @abstractmethod
    def on_frame(self, fields: list[Any]) -> None:
        """A whole frame has come."""

    def on_garbage(self, reason: str) -> None:
        logger.error("connection closed: garbage received peer=%s reason=%r", self.peer_name, reason)

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The peer's, verified; None without TLS."""
        return self.transport.get_extra_info("peercert") if self.transport is not None else None

    def send(self, *fields: object) -> None:
        self.send_bodies([msgpack.packb(fields)])

    def send_bodies(self, bodies: Iterable[bytes]) -> None:
        if self.transport is not None and not self.closed:
            parts = [part for body in bodies for part in frame(body)]
            if len(parts) == 2 and len(parts[1]) <= JOINED_BYTES:
                self.transport.write(b"".join(parts))
            else:
                self.transport.writelines(parts)

    def abort(self) -> None:
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close once what is buffered has left."""
        self.closed = True
        if self.transport is not None:
            self.transport.close()


def shown(address: object) -> str:
    """A socket's address, for people."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
