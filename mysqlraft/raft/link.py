"""An outgoing connection: dial, shake hands, watch, and after a failure wait and dial again."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable
from random import Random
from typing import Any

from mysqlraft.raft.beat import HEAR_SECONDS, to_beat
from mysqlraft.raft.channel import BUFFER_BYTES, PING_SECONDS, SILENCE_SECONDS, Channel
from mysqlraft.raft.frames import HELLO, PING, PONG, Frames
from mysqlraft.raft.handshake import HANDSHAKE_SECONDS, Handshake
from mysqlraft.raft.identity import Rival
from mysqlraft.raft.wire import ProtocolError

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.05, 2.0)
"""Wait before dialling again: at first, doubling, at most; each drawn between half of it and all of it."""
_TCP_INFO = "=24x I 92x Q 16x I"
"""Of tcp_info in linux/tcp.h (Linux 4.6 and later): tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes."""


class _Outgoing(Frames):
    """A connection that this site has dialled."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[str | None] = loop.create_future()
        """The reason of a refusal, None if the peer took us."""
        self.stranger_as_of = 0
        """The configuration index by which the peer says that we are not a member."""
        self.rival: Rival | None = None
        """The daemon that, as the peer says, is this site."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.rtt = 0.0
        self._ping = 0
        self._ping_at = 0.0
        self._acknowledged = 0
        """Bytes that the peer's system has taken, as far as was seen; and when more of them were seen last."""
        self._acknowledged_at = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the peer took us. The future is cancelled when its answer did not come in time."""
        return self.greeted.done() and not self.greeted.cancelled() and self.greeted.result() is None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.greeted.done():
            self.greeted.set_result(f"the connection was closed during the handshake ({exc or 'by the peer'})")
        if not self.lost.done():
            self.lost.set_result(None)

    def delivers(self, seconds: float) -> bool:
        """Whether data is still on its way to the peer's system, and some has got there in the last `seconds`, or
        since this was asked before. False if it is not known."""
        connected = self.transport.get_extra_info("socket") if self.transport is not None else None
        if connected is None:
            return False  # it is lost; with TLS, `connection_lost` comes a moment later
        try:
            info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, struct.calcsize(_TCP_INFO))
            unacknowledged, acknowledged, unsent = struct.unpack(_TCP_INFO, info)
        except (OSError, ValueError, struct.error):
            return False  # ValueError: it is closed, and that is not reported yet
        assert self.transport is not None
        now = time.monotonic()
        if acknowledged > self._acknowledged:
            self._acknowledged, self._acknowledged_at = acknowledged, now
        under_way = self.transport.get_write_buffer_size() or unsent or unacknowledged
        return bool(under_way) and now - self._acknowledged_at < seconds

    def ping(self) -> None:
        self._ping += 1
        self._ping_at = time.monotonic()
        self.send(PING, self._ping)

    def on_frame(self, fields: list[Any]) -> None:
        if not self.greeted.done():
            if fields[0] != HELLO or [type(field) for field in fields[2:]] not in ([], [int], [int, float, str]):
                raise ProtocolError("the first frame is not an answer to a mysqlraft handshake")
            self.stranger_as_of = fields[2] if len(fields) > 2 else 0
            self.rival = Rival(fields[4], fields[3], True) if len(fields) > 4 else None
            self.greeted.set_result(str(fields[1]) if len(fields) > 1 else None)
        elif fields[0] == PONG and len(fields) == 2:
            if fields[1] == self._ping:
                self.rtt = self.heard_at - self._ping_at
        else:
            raise ProtocolError(f"unknown frame {fields[0]}")


class Link:
    """The owner of one outgoing connection to one peer, through all its lives."""

    def __init__(
        self,
        site: int,
        address: str,
        channel: Channel,
        handshake: Handshake,
        random: Random,
        changed: Callable[[Link], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """`changed` is called when the connection was made, or lost; `failed` with what nobody has thought of."""
        self.site = site
        self.address = address
        self.channel = channel
        self._handshake = handshake
        self._random = random
        self._changed = changed
        self._failed = failed
        self.connection: _Outgoing | None = None
        """The one that may be used, if there is one."""
        self.problem: str | None = "not connected yet"
        """Why there is none."""
        self.task = asyncio.get_running_loop().create_task(self._own(), name=f"link-{site}-{channel.name.lower()}")
        self.task.add_done_callback(self._ended)

    def send_bodies(self, bodies: list[bytes]) -> None:
        connection = self.connection
        if connection is None or connection.closed or connection.transport is None:
            return
        connection.send_bodies(bodies)
        if connection.transport.get_write_buffer_size() > BUFFER_BYTES[self.channel]:
            self._report("send queue over its bound")
            connection.abort()

    @property
    def delivers(self) -> bool:
        """Whether data is getting to the peer, though perhaps slowly. Of control that is never said: there, silence is
        what counts."""
        connection = self.connection
        if connection is None or self.channel is Channel.CONTROL:
            return False
        return connection.delivers(PING_SECONDS[self.channel])

    async def _own(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while True:
            connection, problem = await self._dial()
            if connection is not None:
                wait = shortest
                self.connection, self.problem = connection, None
                logger.info("connected site=%d address=%s channel=%s", self.site, self.address, self.channel.name)
                self._changed(self)
                try:
                    problem = await self._watch(connection)
                finally:
                    self.connection = None
                    connection.abort()
                self._report(problem)
                self._changed(self)
            else:
                self._report(problem)
            await asyncio.sleep(wait * self._random.uniform(0.5, 1.0))
            wait = min(2 * wait, longest)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody dials any more: as it was cancelled, or this must not go unnoticed."""
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failed(error)

    async def _dial(self) -> tuple[_Outgoing | None, str]:
        """A connection past the handshake, or what went wrong."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        connection: _Outgoing | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                tls = self._handshake.tls
                _, connection = await loop.create_connection(
                    _Outgoing, host.strip("[]"), int(port), ssl=None if tls is None else tls.client
                )
                refused = self._handshake.misnamed(self.site, connection.certificate)
                if refused is None:
                    connection.send(*self._handshake.hello(self.site, self.channel))
                    refused = await connection.greeted
            if refused is None:
                return connection, ""
            problem = refused
            if connection.stranger_as_of:
                self._handshake.acquaintances.called_stranger(self.site, connection.stranger_as_of)
            if connection.rival is not None:
                self._handshake.on_rival(self.site, connection.rival)
        except TimeoutError:
            problem = f"no answer within {HANDSHAKE_SECONDS:.0f} s"
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one, a certificate that is not
            problem = str(error) or "the connection was closed during the TLS handshake"
        finally:
            if connection is not None and not connection.accepted:
                connection.abort()
        return None, problem

    async def _watch(self, connection: _Outgoing) -> str:
        """Until the connection is lost: why it was. Silence is only the time in which this process could have heard
        something: after a stall of its own (a halted process, a paused machine) the peer is given the rest of it."""
        silence = SILENCE_SECONDS[self.channel]
        while True:
            connection.ping()
            wait = to_beat(PING_SECONDS[self.channel])
            due = time.monotonic() + wait
            await asyncio.wait([connection.lost], timeout=wait)
            connection.stood_still(time.monotonic() - due)
            if self.delivers:
                connection.heard_at = time.monotonic()
            if connection.silent_seconds > silence and not connection.lost.done():
                # What came in during a stall may still be in the socket.
                await asyncio.wait([connection.lost], timeout=HEAR_SECONDS)
            if connection.lost.done():
                return "the connection was lost"
            if connection.silent_seconds > silence:
                return f"nothing heard for {silence:.0f} s"

    def _report(self, problem: str) -> None:
        """Once for each new problem, not for each attempt."""
        if problem != self.problem:
            self.problem = problem
            logger.warning(
                "not connected site=%d address=%s channel=%s reason=%r",
                self.site, self.address, self.channel.name, problem,
            )  # fmt: skip
