"""Messages between sites over TCP.

Every site dials every other; a connection carries messages in the direction in which it was dialled (and answers to
pings in the other). There are three per pair and direction, so that bulk data never delays a heartbeat:

- CONTROL: everything small: heartbeats, votes, acknowledgements, commit notices, gossip.
- BULK: log entries and forwarded proposals.
- SNAPSHOT: the chunks of snapshots, which would keep the log's entries waiting.

Each outgoing connection has one owner task: dial, shake hands, watch, and after a failure wait and dial again. Sending
never waits: a message goes into the connection's buffer, or nowhere if there is no connection. A buffer beyond its
bound, or pings without an answer, end the connection. Raft is made for messages that get lost; it is only told when
that may have happened (`on_reset`).

With TLS (tls.py), that comes first. The dialler compares the site that it wants with the names in the certificate
before it says a word; the other end does the same with the site that the handshake claims.

Handshake: the dialler's first frame is [0, "mysqlraft", protocol version, cluster, its site, the site it wants,
channel, its incarnation, and its introduction: configuration index, name, address]. The answer is [0], or [0, reason
of the refusal], or [0, reason, configuration index] if by that configuration its site is not a member. After that come
frames of wire.py, and [100, number] ping, [101, number] pong, [102, status] gossip, [103, number, question],
[104, number, answer] (calls.py).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from random import Random
from typing import Any, NamedTuple, cast

import msgpack

from mysqlraft.raft import wire
from mysqlraft.raft.messages import AppendRequest, Forward, Message, SnapshotChunk
from mysqlraft.raft.tls import Tls, names, shown_names
from mysqlraft.raft.wire import LENGTH, ProtocolError

logger = logging.getLogger(__name__)

MAGIC = "mysqlraft"
HELLO, PING, PONG, GOSSIP, CALL, ANSWER = 0, 100, 101, 102, 103, 104

MAX_FRAME_BYTES = 128 * 1024 * 1024
"""No frame of a peer's is longer. One large entry has to fit."""
MAX_HELLO_BYTES = 4096
HANDSHAKE_SECONDS = 5.0
TLS_HELLO = 0x160301
"""How a TLS connection begins."""
JOINED_BYTES = 64 * 1024
"""A frame of at most so many bytes is copied to be written in one piece, which is cheaper than two."""
BACKLOG = 100
"""Connections that may wait to be accepted."""
MAX_STATUS_BYTES = 256 * 1024
GOSSIP_SECONDS = 1.0
REFUSAL_SECONDS = 60.0
"""How often the same refusal is logged."""
BACKOFF_SECONDS = (0.05, 2.0)
"""Wait before dialling again: at first, doubling, at most; each drawn between half of it and all of it."""


class Introduction(NamedTuple):
    """What a site says of itself when it dials another one: so a site that was away while the members changed, or
    that never was one, learns of members that its own configuration does not have."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    """Of the latest configuration in its log, in which it is a member; 0 if it is none."""
    name: str
    address: str
    """Its own in that configuration."""


class Channel(IntEnum):
    CONTROL = 0
    BULK = 1
    SNAPSHOT = 2


_NO_MEMBER = "is not a member of the cluster"
"""What that refusal says."""
_HELLO_TYPES = [str, int, int, int, int, int, str, str]
"""Of what follows the protocol version."""

PING_SECONDS = {Channel.CONTROL: 2.0, Channel.BULK: 5.0, Channel.SNAPSHOT: 10.0}
"""By channel. The control channel's pings also measure the round trip."""
SILENCE_SECONDS = {Channel.CONTROL: 5.0, Channel.BULK: 30.0, Channel.SNAPSHOT: 30.0}
"""A connection without any answer for this long is dead, whatever TCP thinks. (After a cut, TCP itself may wait for
minutes before it tries again.) On the others pings queue behind the data, which on a slow line may take longer than
that: there, data that the peer's system takes is an answer, too."""
_BYTES_ACKED = (120, "=Q")
"""Where tcp_info has tcpi_bytes_acked: linux/tcp.h, since Linux 4.1."""
BUFFER_BYTES = {Channel.CONTROL: 1024 * 1024, Channel.BULK: 96 * 1024 * 1024, Channel.SNAPSHOT: 32 * 1024 * 1024}
"""More than this unsent, and the connection is given up. Raft's windows keep the bulk below it, even when each of
them is overshot by one entry of the greatest size (forward.MAX_PAYLOAD_BYTES)."""


_CHANNELS: dict[type[Message], Channel] = {
    AppendRequest: Channel.BULK,
    Forward: Channel.BULK,
    SnapshotChunk: Channel.SNAPSHOT,
}
"""Of the messages that do not go by control."""


class _Frames(asyncio.Protocol, ABC):
    """A connection as a sequence of frames."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer_name = "?"
        self.closed = False
        self.max_frame = MAX_HELLO_BYTES
        self.heard_at = time.monotonic()
        self._chunks: list[bytes] = []
        """The beginning of a frame."""
        self._missing = 0
        """At least so many bytes of it are to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer_name = _shown(transport.get_extra_info("peername"))

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
            self.on_frame(wire.unpack(view[begun:end]))
            start = end
        if start < size and not self.closed:
            self._chunks.append(data[start:])

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
            parts = [part for body in bodies for part in wire.frame(body)]
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


def _shown(address: object) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


class _Incoming(_Frames):
    """A connection that a peer has dialled."""

    def __init__(self, owner: Transport) -> None:
        super().__init__()
        self._owner = owner
        self.site = 0
        self.channel = Channel.CONTROL
        self.dialled_at = self.heard_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner.incoming.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner.incoming.discard(self)

    def on_frame(self, fields: list[Any]) -> None:
        if not self.site:
            self._greet(fields)
        elif fields[0] < PING:
            message = wire.decode(fields)
            if message.sender != self.site or message.to != self._owner.site:
                raise ProtocolError(f"message from {message.sender} to {message.to} on a connection from {self.site}")
            self._owner.on_message(message)
        elif fields[0] == PING and len(fields) == 2:
            self.send(PONG, fields[1])
        elif fields[0] == GOSSIP and len(fields) == 2 and type(fields[1]) is bytes:
            self._owner.heard_status(self.site, fields[1])
        elif fields[0] in (CALL, ANSWER) and [type(field) for field in fields[1:]] == [int, bytes]:
            self._owner.on_call(self.site, fields[0] == CALL, fields[1], fields[2])
        else:
            raise ProtocolError(f"unknown frame {fields[0]}")

    def on_garbage(self, reason: str) -> None:
        logger.error(
            "connection closed: garbage received peer=%s site=%s reason=%r", self.peer_name, self.site or "?", reason
        )

    def _greet(self, fields: list[Any]) -> None:
        if len(fields) < 3 or fields[:2] != [HELLO, MAGIC]:
            raise ProtocolError("the first frame is not a mysqlraft handshake")
        reason = self._owner.refusal(fields) or self._owner.misnamed(fields[4], self.certificate, fields[9])
        if reason is not None:
            self._owner.log_refusal(reason, self.peer_name)
            stranger_as_of = self._owner.stranger_as_of(fields[4]) if _NO_MEMBER in reason else 0
            self.send(HELLO, reason, *([stranger_as_of] if stranger_as_of else []))
            self.close()
            return
        self.site, self.channel = fields[4], Channel(fields[6])
        self._owner.on_introduction(self.site, Introduction(*fields[8:]))
        self.max_frame = MAX_FRAME_BYTES
        for other in list(self._owner.incoming):
            if other is not self and (other.site, other.channel) == (self.site, self.channel):
                other.abort()  # the peer has dialled anew, so that one is dead
        self.send(HELLO)


class _Outgoing(_Frames):
    """A connection that this site has dialled."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[str | None] = loop.create_future()
        """The reason of a refusal, None if the peer took us."""
        self.stranger_as_of = 0
        """The configuration index by which the peer says that we are not a member."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.rtt = 0.0
        self._ping = 0
        self._ping_at = 0.0

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

    @property
    def bytes_acked(self) -> int:
        """How much of what was sent the peer's system has."""
        assert self.transport is not None
        offset, form = _BYTES_ACKED
        connected = self.transport.get_extra_info("socket")
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + struct.calcsize(form))
        return int(struct.unpack_from(form, info, offset)[0])

    def ping(self) -> None:
        self._ping += 1
        self._ping_at = time.monotonic()
        self.send(PING, self._ping)

    def on_frame(self, fields: list[Any]) -> None:
        if not self.greeted.done():
            if fields[0] != HELLO or len(fields) > 3 or (len(fields) == 3 and type(fields[2]) is not int):
                raise ProtocolError("the first frame is not an answer to a mysqlraft handshake")
            self.stranger_as_of = fields[2] if len(fields) == 3 else 0
            self.greeted.set_result(str(fields[1]) if len(fields) > 1 else None)
        elif fields[0] == PONG and len(fields) == 2:
            if fields[1] == self._ping:
                self.rtt = self.heard_at - self._ping_at
        else:
            raise ProtocolError(f"unknown frame {fields[0]}")


class _Link:
    """The owner of one outgoing connection to one peer, through all its lives."""

    def __init__(self, owner: Transport, site: int, address: str, channel: Channel) -> None:
        self._owner = owner
        self.site = site
        self.address = address
        self.channel = channel
        self.connection: _Outgoing | None = None
        """The one that may be used, if there is one."""
        self.problem: str | None = "not connected yet"
        """Why there is none."""
        self.task = asyncio.get_running_loop().create_task(self._own(), name=f"link-{site}-{channel.name.lower()}")

    def send_bodies(self, bodies: list[bytes]) -> None:
        connection = self.connection
        if connection is None or connection.closed or connection.transport is None:
            return
        connection.send_bodies(bodies)
        if connection.transport.get_write_buffer_size() > BUFFER_BYTES[self.channel]:
            self._report("send queue over its bound")
            connection.abort()

    async def _own(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while True:
            connection, problem = await self._dial()
            if connection is not None:
                wait = shortest
                self.connection, self.problem = connection, None
                logger.info("connected site=%d address=%s channel=%s", self.site, self.address, self.channel.name)
                self._owner.link_reset(self)
                try:
                    problem = await self._watch(connection)
                finally:
                    self.connection = None
                    connection.abort()
                self._report(problem)
                self._owner.link_reset(self)
            else:
                self._report(problem)
            await asyncio.sleep(wait * self._owner.random.uniform(0.5, 1.0))
            wait = min(2 * wait, longest)

    async def _dial(self) -> tuple[_Outgoing | None, str]:
        """A connection past the handshake, or what went wrong."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        connection: _Outgoing | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                tls = self._owner.tls
                _, connection = await loop.create_connection(
                    _Outgoing, host.strip("[]"), int(port), ssl=None if tls is None else tls.client
                )
                refused = self._owner.misnamed(self.site, connection.certificate)
                if refused is None:
                    connection.send(*self._owner.hello(self.site, self.channel))
                    refused = await connection.greeted
            if refused is None:
                return connection, ""
            problem = refused
            if connection.stranger_as_of:
                self._owner.on_stranger(self.site, connection.stranger_as_of)
        except TimeoutError:
            problem = f"no answer within {HANDSHAKE_SECONDS:.0f} s"
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one, a certificate that is not
            problem = str(error) or "the connection was closed during the TLS handshake"
        finally:
            if connection is not None and not connection.accepted:
                connection.abort()
        return None, problem

    async def _watch(self, connection: _Outgoing) -> str:
        """Until the connection is lost: why it was."""
        acked = 0
        while True:
            connection.ping()
            await asyncio.wait([connection.lost], timeout=PING_SECONDS[self.channel])
            if connection.lost.done():
                return "the connection was lost"
            if self.channel is not Channel.CONTROL and (now_acked := connection.bytes_acked) > acked:
                acked = now_acked
                connection.heard_at = time.monotonic()
            if time.monotonic() - connection.heard_at > SILENCE_SECONDS[self.channel]:
                return f"nothing heard for {SILENCE_SECONDS[self.channel]:.0f} s"

    def _report(self, problem: str) -> None:
        """Once for each new problem, not for each attempt."""
        if problem != self.problem:
            self.problem = problem
            logger.warning(
                "not connected site=%d address=%s channel=%s reason=%r",
                self.site, self.address, self.channel.name, problem,
            )  # fmt: skip


class Transport:
    """This site's connections."""

    def __init__(
        self,
        site: int,
        cluster: str,
        on_message: Callable[[Message], None],
        on_reset: Callable[[int], None],
        known: Callable[[int, Introduction], bool],
        random: Random,
        tls: Tls | None = None,
        name_of: Callable[[int], str | None] = lambda site: None,
    ) -> None:
        """`on_message` takes what arrives, `on_reset(site)` learns that what was sent there lately may be lost, and
        `known(site, introduction)` tells whether a site is one to talk with. With `tls`, `name_of(site)` is what its
        certificate has to name. The other hooks may be set later."""
        self.introduction: Callable[[], Introduction] = lambda: Introduction(0, "", "")
        """What this site says of itself."""
        self.stranger_as_of: Callable[[int], int] = lambda site: 0
        """By the committed configuration of which index a site is not a member, 0 if that is not known for sure."""
        self.on_introduction: Callable[[int, Introduction], None] = lambda site, introduction: None
        """A site that is known has introduced itself."""
        self.on_stranger: Callable[[int, int], None] = lambda site, index: None
        """A peer says that by its configuration of this index this site is not a member."""
        self.on_call: Callable[[int, bool, int, bytes], None] = lambda site, asks, number, body: None
        """A CALL or an ANSWER has arrived."""
        self.site = site
        self.cluster = cluster
        self.on_message = on_message
        self.random = random
        self.tls = tls
        """May be replaced at any time: connections that are there go on, new ones take the new certificates. It
        never becomes None, nor something after None."""
        self.incoming: set[_Incoming] = set()
        self._on_reset = on_reset
        self._known = known
        self._name_of = name_of
        self._incarnation = random.getrandbits(63)
        self._links: dict[int, dict[Channel, _Link]] = {}
        self._listening: list[socket.socket] = []
        self._greeting: set[asyncio.Task[None]] = set()
        self._refusals: dict[str, float] = {}
        """reason -> when it was logged last; of few kinds, as sites and reasons are."""
        self._status = b""
        self._status_of: dict[int, tuple[bytes, float]] = {}
        self._tasks: list[asyncio.Task[None]] = []

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
            self._listening.append(listening)
        self._tasks = [loop.create_task(self._accept(listening), name="accept") for listening in self._listening]
        self._tasks.append(loop.create_task(self._keep_house(), name="transport"))

    async def stop(self) -> None:
        tasks = [link.task for links in self._links.values() for link in links.values()]
        tasks += [*self._tasks, *self._greeting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()
        for listening in self._listening:
            listening.close()
        for connection in list(self.incoming):
            connection.abort()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if not self._listening:
            raise RuntimeError("the transport is not started")
        port: int = self._listening[0].getsockname()[1]
        return port

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """Keep connections to these sites, and to no others."""
        for site in [site for site in self._links if addresses.get(site) != self._links[site][Channel.BULK].address]:
            for link in self._links.pop(site).values():
                link.task.cancel()
        for connection in [each for each in self.incoming if each.site and each.site not in addresses]:
            connection.abort()  # it dials again, and hears then why it is not taken any more
        for site, address in addresses.items():
            if site != self.site and site not in self._links:
                self._links[site] = {channel: _Link(self, site, address, channel) for channel in Channel}

    def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their way, in order per receiver and channel; those to sites out of reach are dropped."""
        queues: dict[_Link, list[bytes]] = {}
        packed: wire.Packed | None = None
        for message in messages:
            links = self._links.get(message.to)
            if links is None:
                continue
            link = links[_CHANNELS.get(type(message), Channel.CONTROL)]
            if link.connection is None:
                continue
            if type(message) is AppendRequest:
                if packed is None or message.entries is not packed.entries:
                    packed = wire.pack_entries(message.entries)
                body = wire.encode_append(message, packed)
            else:
                body = wire.encode(message)
            if link in queues:
                queues[link].append(body)
            else:
                queues[link] = [body]
        for link, bodies in queues.items():
            link.send_bodies(bodies)

    def call(self, site: int, asks: bool, number: int, body: bytes) -> bool:
        """Send a CALL or an ANSWER on its way to `site`; False if there is none."""
        links = self._links.get(site)
        if links is None or links[Channel.CONTROL].connection is None:
            return False
        links[Channel.CONTROL].send_bodies([msgpack.packb((CALL if asks else ANSWER, number, body))])
        return True

    def publish(self, status: bytes) -> None:
        """Tell all peers this status within a second, and from then on every second. Raises ValueError if it is too
        large to travel beside heartbeats."""
        if len(status) > MAX_STATUS_BYTES:
            raise ValueError(f"a status of {len(status)} bytes; at most {MAX_STATUS_BYTES} are allowed")
        self._status = status

    def status_of(self, site: int) -> tuple[bytes, float] | None:
        """The last status that `site` has published, and its age in seconds."""
        heard = self._status_of.get(site)
        return None if heard is None else (heard[0], time.monotonic() - heard[1])

    def connected(self, site: int) -> bool:
        links = self._links.get(site)
        return links is not None and all(link.connection is not None for link in links.values())

    def round_trip(self, site: int) -> float | None:
        """Seconds that the last ping took."""
        links = self._links.get(site)
        connection = links[Channel.CONTROL].connection if links else None
        return connection.rtt or None if connection else None

    def problem(self, site: int) -> str | None:
        """Why there is no connection to `site`, None if there is one."""
        links = self._links.get(site)
        if links is None:
            return "no address is known"
        return next((link.problem for link in links.values() if link.problem is not None), None)

    # ---- for the connections --------------------------------------------------------------------------------------

    def hello(self, site: int, channel: Channel) -> tuple[object, ...]:
        own = (wire.PROTOCOL_VERSION, self.cluster, self.site, site, int(channel), self._incarnation)
        return (HELLO, MAGIC, *own, *self.introduction())

    def refusal(self, fields: list[Any]) -> str | None:
        """Why the peer that sent this handshake is not one to talk with, None if it is."""
        if fields[2] != wire.PROTOCOL_VERSION:
            return f"protocol version {fields[2]!r:.20} is spoken there, {wire.PROTOCOL_VERSION} by site {self.site}"
        if [type(field) for field in fields[3:]] != _HELLO_TYPES or fields[6] not in list(Channel):
            raise ProtocolError("malformed handshake")
        _, _, _, cluster, sender, wanted, _, incarnation, *introduction = fields
        if cluster != self.cluster:
            return f"cluster {cluster!r:.80} is not cluster {self.cluster!r}, to which site {self.site} belongs"
        if wanted != self.site:
            return f"site {sender} looks for site {wanted} here, but this is site {self.site}"
        if sender == self.site and incarnation != self._incarnation:
            return f"another daemon calls itself site {self.site}, too"
        if sender == self.site or not self._known(sender, Introduction(*introduction)):
            return f"site {sender} {_NO_MEMBER} as site {self.site} knows it"
        return None

    def log_refusal(self, reason: str, peer: str) -> None:
        """Once in a while for each reason: a site that was removed dials on."""
        now = time.monotonic()
        if now - self._refusals.get(reason, -REFUSAL_SECONDS) >= REFUSAL_SECONDS:
            self._refusals[reason] = now
            logger.error("connection refused: %s peer=%s", reason, peer)

    def misnamed(self, site: int, certificate: Mapping[str, Any] | None, introduced: str = "") -> str | None:
        """Why a peer with this certificate is not `site`, None if it is (or there is no TLS). `introduced`: the name
        that it gives itself, which counts if no other is known."""
        if self.tls is None:
            return None
        name = self._name_of(site) or introduced
        if not name:
            return f"the name of site {site}, which its certificate has to hold, is not known at site {self.site}"
        if certificate is None or name not in names(certificate):
            return f"the certificate shown is not that of site {site}, {name}, but of {shown_names(certificate or {})}"
        return None

    def heard_status(self, site: int, status: bytes) -> None:
        self._status_of[site] = (status, time.monotonic())

    def link_reset(self, link: _Link) -> None:
        """A connection was made, or lost."""
        links = self._links.get(link.site, {})
        if links.get(link.channel) is not link:
            return
        if link.channel is Channel.CONTROL and link.connection is None:
            # The same path is dead for the data, only that this would be noticed much later.
            for channel in (Channel.BULK, Channel.SNAPSHOT):
                connection = links[channel].connection
                if connection is not None:
                    connection.abort()
        if link.channel is not Channel.SNAPSHOT:  # what is lost there is asked for again
            self._on_reset(link.site)

    async def _accept(self, listening: socket.socket) -> None:
        """Accepts by hand: an asyncio server would keep the certificates that it began with for ever, and say nothing
        of handshakes that fail."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, or a connection that ended before we looked
                logger.warning("a connection cannot be accepted reason=%r", str(error))
                await asyncio.sleep(BACKOFF_SECONDS[0])
                continue
            greeting = loop.create_task(self._greet(accepted, address), name="greeting")
            self._greeting.add(greeting)
            greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket, address: object) -> None:
        tls = self.tls
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: _Incoming(self), accepted, ssl=None if tls is None else tls.server
                )
        except TimeoutError:
            logger.error(
                "connection refused: no TLS handshake within %.0f s peer=%s", HANDSHAKE_SECONDS, _shown(address)
            )
        except OSError as error:
            logger.error("connection refused: no TLS handshake peer=%s reason=%r", _shown(address), str(error))

    async def _keep_house(self) -> None:
        """Gossip, and close incoming connections whose other end has vanished."""
        while True:
            await asyncio.sleep(GOSSIP_SECONDS)
            if self._status:
                body = msgpack.packb((GOSSIP, self._status))
                for links in self._links.values():
                    links[Channel.CONTROL].send_bodies([body])
            now = time.monotonic()
            for connection in list(self.incoming):
                silent = now - connection.heard_at > 2 * SILENCE_SECONDS[connection.channel]
                # Who has not said who it is has to do so at once: byte by byte, it could take hours.
                late = not connection.site and now - connection.dialled_at > HANDSHAKE_SECONDS
                if silent or late:
                    connection.abort()
