"""The connections that other sites have dialled: accepting them, greeting them, and handing on what comes by them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mysqlraft.raft import wire
from mysqlraft.raft.channel import SILENCE_SECONDS, Channel
from mysqlraft.raft.frames import ANSWER, CALL, GOSSIP, HELLO, MAX_FRAME_BYTES, PING, PONG, Frames, shown
from mysqlraft.raft.handshake import HANDSHAKE_SECONDS, Handshake, Refusal
from mysqlraft.raft.messages import Message
from mysqlraft.raft.wire import ProtocolError

logger = logging.getLogger(__name__)

BACKLOG = 100
"""Connections that may wait to be accepted."""
ACCEPT_AGAIN_SECONDS = 0.05
"""After one could not be accepted."""


class Receiver(Protocol):
    """Who gets what arrives; see Transport."""

    on_message: Callable[[Message], None]
    on_call: Callable[[int, bool, int, bytes], None]

    def heard_status(self, site: int, status: bytes) -> None: ...


class Incoming(Frames):
    """A connection that a peer has dialled."""

    def __init__(self, others: set[Incoming], handshake: Handshake, receiver: Receiver) -> None:
        """`others`: all that there are; it adds and removes itself."""
        super().__init__()
        self._others = others
        self._handshake = handshake
        self._receiver = receiver
        self.site = 0
        """The peer, once it has said who it is."""
        self.channel = Channel.CONTROL
        self.incarnation = 0
        self.pinged_at = 0.0
        """When the peer's daemon has shown last that it is alive, whether or not this process stood still."""
        self.dialled_at = self.heard_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._others.discard(self)

    def on_frame(self, fields: list[Any]) -> None:
        if not self.site:
            self._greet(fields)
        elif fields[0] < PING:
            message = wire.decode(fields)
            if message.sender != self.site or message.to != self._handshake.site:
                raise ProtocolError(f"message from {message.sender} to {message.to} on a connection from {self.site}")
            self._receiver.on_message(message)
        elif fields[0] == PING and len(fields) == 2:
            self.pinged_at = time.monotonic()
            self.send(PONG, fields[1])
        elif fields[0] == GOSSIP and len(fields) == 2 and type(fields[1]) is bytes:
            self._receiver.heard_status(self.site, fields[1])
        elif fields[0] in (CALL, ANSWER) and [type(field) for field in fields[1:]] == [int, bytes]:
            self._receiver.on_call(self.site, fields[0] == CALL, fields[1], fields[2])
        else:
            raise ProtocolError(f"unknown frame {fields[0]}")

    def on_garbage(self, reason: str) -> None:
        logger.error(
            "connection closed: garbage received peer=%s site=%s reason=%r", self.peer_name, self.site or "?", reason
        )

    def _greet(self, fields: list[Any]) -> None:
        admitted = self._handshake.admit(fields, self.certificate)
        if not isinstance(admitted, Refusal):
            same = [other for other in self._others if other.site == admitted.site and not other.closed]
            heard = {other.incarnation: other.pinged_at for other in same if other.channel is Channel.CONTROL}
            host = self.peer_name.rpartition(":")[0]  # the port is another one each time
            admitted = self._handshake.claim(admitted, host, heard) or admitted
        if isinstance(admitted, Refusal):
            if admitted.rival is None or admitted.rival.proven:
                self._handshake.log_refusal(admitted.reason, self.peer_name)
            self.send(HELLO, *admitted.fields)
            self.close()
            return
        self.site, self.channel, self.incarnation, introduction = admitted
        self.pinged_at = time.monotonic()
        self._handshake.acquaintances.introduced(self.site, introduction)
        self.max_frame = MAX_FRAME_BYTES
        for other in list(self._others):
            if other is self or other.site != self.site:
                continue
            if other.channel is self.channel or other.incarnation != self.incarnation:
                other.abort()  # the peer has dialled anew, so that one is dead
        self.send(HELLO)


class Listener:
    """The address that this site listens on, and the connections that were dialled there."""

    def __init__(self, handshake: Handshake, receiver: Receiver) -> None:
        self.incoming: set[Incoming] = set()
        self._handshake = handshake
        self._receiver = receiver
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._greeting: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """Listen on "host:port". Raises OSError."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, *_, where in dict.fromkeys(found):
            listening = socket.create_server(where[:2], family=family, backlog=BACKLOG)
            listening.setblocking(False)
            self._sockets.append(listening)
        self._accepting = [loop.create_task(self._accept(listening), name="accept") for listening in self._sockets]

    async def stop(self) -> None:
        tasks = [*self._accepting, *self._greeting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        for connection in list(self.incoming):
            connection.abort()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if not self._sockets:
            raise RuntimeError("the transport is not started")
        port: int = self._sockets[0].getsockname()[1]
        return port

    def keep(self, sites: Mapping[int, object]) -> None:
        """Close the connections of all other sites: they dial again, and hear then why they are not taken any more."""
        for connection in [each for each in self.incoming if each.site and each.site not in sites]:
            connection.abort()

    def close_silent(self, stood_still: float) -> None:
        """Close the connections whose other end has vanished, and those of who does not say who it is. This process
        did not run for so many seconds since this was called last."""
        now = time.monotonic()
        for connection in list(self.incoming):
            connection.stood_still(stood_still)
            silent = connection.silent_seconds > 2 * SILENCE_SECONDS[connection.channel]
            # Who has not said who it is has to do so at once: byte by byte, it could take hours.
            late = not connection.site and now - connection.dialled_at > HANDSHAKE_SECONDS
            if silent or late:
                connection.abort()

    async def _accept(self, listening: socket.socket) -> None:
        """Accepts by hand: an asyncio server would keep the certificates that it began with for ever, and say nothing
        of handshakes that fail."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, or a connection that ended before we looked
                logger.warning("a connection cannot be accepted reason=%r", str(error))
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            greeting = loop.create_task(self._greet(accepted, address), name="greeting")
            self._greeting.add(greeting)
            greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket, address: object) -> None:
        tls = self._handshake.tls
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: Incoming(self.incoming, self._handshake, self._receiver),
                    accepted,
                    ssl=None if tls is None else tls.server,
                )
        except TimeoutError:
            logger.error(
                "connection refused: no TLS handshake within %.0f s peer=%s", HANDSHAKE_SECONDS, shown(address)
            )
        except OSError as error:
            reason = (
                str(error) or "the other end has closed it: it may not believe this site's certificate, and says why"
            )
            logger.error("connection refused: no TLS handshake peer=%s reason=%r", shown(address), reason)
