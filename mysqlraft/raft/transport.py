"""Messages between sites over TCP.

Every site dials every other; a connection carries messages in the direction in which it was dialled (and answers to
pings in the other). There are three per pair and direction: channel.py.

Each outgoing connection has one owner task, its `Link`. Sending never waits: a message goes into the connection's
buffer, or nowhere if there is no connection. A buffer beyond its bound, or pings without an answer, end the connection.
Raft is made for messages that get lost; it is only told when that may have happened (`on_reset`).

A connection begins with handshake.py. After that come frames of wire.py, and [100, number] ping, [101, number] pong,
[102, status] gossip, [103, number, question], [104, number, answer] (calls.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from random import Random

import msgpack

from mysqlraft.raft import wire
from mysqlraft.raft.beat import to_beat
from mysqlraft.raft.channel import OF_MESSAGE, Channel
from mysqlraft.raft.frames import ANSWER, CALL, GOSSIP
from mysqlraft.raft.handshake import Acquaintances, Handshake
from mysqlraft.raft.link import Link
from mysqlraft.raft.listener import Listener
from mysqlraft.raft.messages import AppendRequest, Message
from mysqlraft.raft.tls import Tls

MAX_STATUS_BYTES = 256 * 1024
GOSSIP_SECONDS = 1.0


def _unexpected(error: Exception) -> None:
    raise error


class Transport:
    """This site's connections."""

    def __init__(
        self,
        site: int,
        cluster: str,
        acquaintances: Acquaintances,
        on_message: Callable[[Message], None],
        on_reset: Callable[[int], None],
        random: Random,
        tls: Tls | None = None,
    ) -> None:
        """`on_message` takes what arrives, `on_reset(site)` learns that what was sent there lately may be lost."""
        self.on_message = on_message
        self.on_call: Callable[[int, bool, int, bytes], None] = lambda site, asks, number, body: None
        """A CALL or an ANSWER has arrived. May be set later."""
        self.on_failure: Callable[[Exception], None] = _unexpected
        """A connection's owner has met what nobody has thought of, and has ended. May be set later."""
        self.handshake = Handshake(site, cluster, random.getrandbits(63), acquaintances, tls)
        self.listener = Listener(self.handshake, self)
        self._on_reset = on_reset
        self._random = random
        self._links: dict[int, dict[Channel, Link]] = {}
        self._status = b""
        self._status_of: dict[int, tuple[bytes, float]] = {}
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self, address: str) -> None:
        """Listen on "host:port". Raises OSError."""
        await self.listener.start(address)
        self._housekeeping = asyncio.get_running_loop().create_task(self._keep_house(), name="transport")

    async def stop(self) -> None:
        tasks = [link.task for links in self._links.values() for link in links.values()]
        if self._housekeeping is not None:
            tasks.append(self._housekeeping)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()
        await self.listener.stop()

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """Keep connections to these sites, and to no others."""
        for site in [site for site in self._links if addresses.get(site) != self._links[site][Channel.BULK].address]:
            for link in self._links.pop(site).values():
                link.task.cancel()
        self.listener.keep(addresses)
        for site, address in addresses.items():
            if site != self.handshake.site and site not in self._links:
                self._links[site] = {
                    channel: Link(
                        site, address, channel, self.handshake, self._random, self._link_changed, self.on_failure
                    )
                    for channel in Channel
                }

    def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their way, in order per receiver and channel; those to sites out of reach are dropped."""
        queues: dict[Link, list[bytes]] = {}
        packed: wire.Packed | None = None
        for message in messages:
            links = self._links.get(message.to)
            if links is None:
                continue
            link = links[OF_MESSAGE.get(type(message), Channel.CONTROL)]
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

    def delivers(self, site: int) -> bool:
        """Whether log entries are on their way to `site`, and are getting there, though perhaps slowly."""
        links = self._links.get(site)
        return links is not None and links[Channel.BULK].delivers

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

    def heard_status(self, site: int, status: bytes) -> None:
        """`site` has published it."""
        self._status_of[site] = (status, time.monotonic())

    def _link_changed(self, link: Link) -> None:
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

    async def _keep_house(self) -> None:
        """Gossip, and close incoming connections whose other end has vanished."""
        while True:
            wait = to_beat(GOSSIP_SECONDS)
            due = time.monotonic() + wait
            await asyncio.sleep(wait)
            stood_still = time.monotonic() - due
            if self._status:
                body = msgpack.packb((GOSSIP, self._status))
                for links in self._links.values():
                    links[Channel.CONTROL].send_bodies([body])
            self.listener.close_silent(stood_still)
