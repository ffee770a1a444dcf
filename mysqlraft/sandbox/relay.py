"""A TCP link that can be slow or cut: a relay on loopback between two programs of this machine.

    relay = Relay(target=("127.0.0.1", 7001), delay=0.05)     # 100 ms round trip
    await relay.start()
    ...connect to relay.address...
    relay.cut()       # as if the cable were pulled
    relay.heal()
    await relay.close()

Delay is a property of the line, not of its bandwidth: every chunk read is stamped, and written when its time has come,
in order, while later chunks keep coming in. A sender is held back only when more than `WINDOW` bytes are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections import deque
from typing import Final, Literal, Self, cast

from mysqlraft.sandbox.ports import LOOPBACK

Address = tuple[str, int]
CutMode = Literal["reset", "blackhole"]

WINDOW: Final = 64 * 1024 * 1024
"""Bytes under way in one direction of one connection: 640 MB/s at 100 ms."""

_WRITE_BUFFER: Final = 1024 * 1024
"""Bytes handed to the receiver's socket before it has to take some."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing resets the connection instead of ending it in good order."""


class Relay:
    """Relays every connection made to `address` to `target`.

    Belongs to one event loop; its methods are called from there. `delay` is in seconds, in each direction: half the
    round-trip time.
    """

    def __init__(self, target: Address, *, listen: Address = (LOOPBACK, 0), delay: float = 0.0) -> None:
        self._listen = listen
        self.target = target
        self._delay = _checked(delay)
        self._cut: CutMode | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.forwarded = 0
        """Bytes delivered so far, both directions together."""

    @property
    def address(self) -> Address:
        """Where to connect to instead of the target. Known once the relay has started."""
        if self._server is None:
            raise RuntimeError("the relay has not been started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    @property
    def delay(self) -> float:
        """Seconds that each direction takes."""
        return self._delay

    @property
    def connections(self) -> int:
        """Connections that are open, or that a blackhole holds."""
        return len(self._links)

    @property
    def cut_mode(self) -> CutMode | None:
        """How the link is cut; None while it is whole."""
        return self._cut

    async def start(self) -> None:
        """Begins to listen. Raises OSError if the address is taken."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, *self._listen)

    async def close(self) -> None:
        """Resets every connection and stops listening."""
        self._reset_links()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def set_delay(self, delay: float) -> None:
        """Changes the delay (seconds, each direction) of what is sent from now on. Nothing overtakes anything."""
        self._delay = _checked(delay)

    def cut(self, mode: CutMode = "reset") -> None:
        """Cuts the link.

        `reset`: connections are reset now, and new ones as soon as they are made: both ends notice.
        `blackhole`: everything under way and everything sent from now on is lost, and neither end is told; a new
        connection is accepted and goes nowhere. This is what a real cut looks like until somebody's timer runs out.
        """
        self._cut = mode
        if mode == "reset":
            self._reset_links()
        else:
            for link in self._links:
                link.lose()

    def heal(self, *, reset: bool = True) -> None:
        """Mends the link. Connections that were held in a blackhole lost bytes and are reset: both ends reconnect.

        Without `reset` they stay lost, and neither end is told: as when an address has moved to another machine, or a
        gateway has forgotten them.
        """
        if self._cut is not None:
            self._cut = None
            if reset:
                self._reset_links()

    def forget(self, link: _Link) -> None:
        """A link is over."""
        self._links.discard(link)

    def _reset_links(self) -> None:
        for link in tuple(self._links):
            link.reset()

    def _accept(self) -> asyncio.Protocol:
        link = _Link(self)
        self._links.add(link)
        return link.near


class _Mark(enum.Enum):
    """What a line carries beside bytes."""

    END = "end of stream"
    RESET = "connection reset, or closed altogether"


class _Link:
    """One connection through the relay: two ends (near made it, far is the target) and a line each way."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        there, back = _Line(relay, self), _Line(relay, self)
        self.near = _End(self, outgoing=there, incoming=back)
        self.far = _End(self, outgoing=back, incoming=there)
        self.lost = False
        self._connecting: asyncio.Task[None] | None = None

    def opened(self) -> None:
        """The near end is there."""
        if self._relay.cut_mode == "reset":
            self.reset()
        elif self._relay.cut_mode == "blackhole":
            self.lose()
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, *self._relay.target)
        except OSError:
            self.reset()

    def lose(self) -> None:
        """From now on whatever is sent, either way, disappears, the news of a close included."""
        self.lost = True
        self.near.outgoing.stop()
        self.far.outgoing.stop()

    def arrived(self, mark: _Mark) -> None:
        """A line has delivered its end, or the news of a reset."""
        if mark is _Mark.RESET:
            self.reset()
        elif self.near.outgoing.ended and self.far.outgoing.ended:
            self.near.close()
            self.far.close()

    def forget_if_over(self) -> None:
        if self.near.closed and self.far.closed:
            self._relay.forget(self)

    def reset(self) -> None:
        """Ends the link at once; what is under way is lost."""
        self.lose()
        if self._connecting is not None:
            self._connecting.cancel()
        self.near.abort()
        self.far.abort()
        self._relay.forget(self)


class _End(asyncio.Protocol):
    """The relay's socket to one of the two programs."""

    def __init__(self, link: _Link, *, outgoing: _Line, incoming: _Line) -> None:
        self._link = link
        self.outgoing = outgoing
        self._incoming = incoming
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are not of asyncio's class.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.outgoing.source = transport
        # What the other end has said meanwhile may go out now.
        self._incoming.attach(transport)
        if self is self._link.near:
            self._link.opened()

    def data_received(self, data: bytes) -> None:
        self.outgoing.put(data)

    def eof_received(self) -> bool:
        """The program has nothing more to say, but may still listen: its socket stays open."""
        self.outgoing.put(_Mark.END)
        return True

    def pause_writing(self) -> None:
        self._incoming.block()

    def resume_writing(self) -> None:
        self._incoming.unblock()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.outgoing.put(_Mark.RESET)
        self._link.forget_if_over()

    def close(self) -> None:
        """Closes the socket once all has been written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Resets the connection."""
        if self._transport is None or self.closed:
            return
        with contextlib.suppress(OSError):
            linger = (socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.get_extra_info("socket").setsockopt(*linger)
        self._transport.abort()


class _Line:
    """One direction of a link: a queue of chunks, each with the time at which it is due at the other end."""

    def __init__(self, relay: Relay, link: _Link) -> None:
        self._relay = relay
        self._link = link
        self.source: asyncio.Transport | None = None
        self.ended = False
        """The end of the stream has been delivered."""
        self._sink: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes | _Mark]] = deque()
        self._under_way = 0
        self._last_due = 0.0
        self._stopped = False
        self._blocked = False
        self._holding_source = False
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, sink: asyncio.Transport) -> None:
        """The other end is there."""
        self._sink = sink
        self._deliver()

    def put(self, item: bytes | _Mark) -> None:
        """Sends a chunk, or the news of an end."""
        if self._stopped:
            return
        now = asyncio.get_running_loop().time()
        self._last_due = max(self._last_due, now + self._relay.delay)
        self._queue.append((self._last_due, item))
        if isinstance(item, bytes):
            self._under_way += len(item)
        if self._under_way > WINDOW and not self._holding_source and self.source is not None:
            self._holding_source = True
            self.source.pause_reading()
        if self._timer is None:
            self._deliver()

    def block(self) -> None:
        """The receiver takes nothing more for now."""
        self._blocked = True

    def unblock(self) -> None:
        self._blocked = False
        self._deliver()

    def stop(self) -> None:
        """Loses all that is under way and all that comes."""
        self._stopped = True
        self._queue.clear()
        self._under_way = 0
        self._let_source_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _deliver(self) -> None:
        """Writes what is due, and sets the timer for what comes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sink is None or self._blocked or self._stopped:
            return
        now = asyncio.get_running_loop().time()
        chunks: list[bytes] = []
        size = 0
        mark: _Mark | None = None
        # A buffer's worth at a time: the receiver may block before the rest, and other lines have their turn.
        while self._queue and self._queue[0][0] <= now and mark is None and size < _WRITE_BUFFER:
            item = self._queue.popleft()[1]
            if isinstance(item, bytes):
                chunks.append(item)
                size += len(item)
            else:
                mark = item
        if chunks:
            self._under_way -= size
            self._relay.forwarded += size
            self._sink.write(b"".join(chunks))
        if self._under_way <= WINDOW:
            self._let_source_go()
        if mark is not None:
            self._finish(mark)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._queue and not self._blocked:
            self._timer = asyncio.get_running_loop().call_at(self._queue[0][0], self._deliver)

    def _finish(self, mark: _Mark) -> None:
        if mark is _Mark.END:
            self.ended = True
            if self._sink is not None and not self._sink.is_closing():
                self._sink.write_eof()
        self._link.arrived(mark)

    def _let_source_go(self) -> None:
        if self._holding_source and self.source is not None:
            self._holding_source = False
            if not self.source.is_closing():
                self.source.resume_reading()


def _checked(delay: float) -> float:
    if not 0 <= delay < float("inf"):
        raise ValueError(f"delay must be a number of seconds, 0 or more, not {delay!r}")
    return delay
