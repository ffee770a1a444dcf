"""The relay delays without slowing down, keeps the order, cuts both ways of cutting, and heals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import uvloop

from mysqlraft.sandbox.relay import WINDOW, CutMode, Relay

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine on either event loop."""

    def runner(coroutine: Coroutine[Any, Any, None]) -> None:
        if request.param == "uvloop":
            uvloop.run(asyncio.wait_for(coroutine, 60))
        else:
            asyncio.run(asyncio.wait_for(coroutine, 60))

    return runner


class Peer:
    """A server that keeps the connections made to it."""

    def __init__(self) -> None:
        self._accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self._server: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(lambda r, w: self._accepted.put_nowait((r, w)), "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def accepted(self) -> Streams:
        return await asyncio.wait_for(self._accepted.get(), 10)

    def nobody_came(self) -> bool:
        return self._accepted.empty()

    def close(self) -> None:
        assert self._server is not None
        self._server.close()


@contextlib.asynccontextmanager
async def linked(delay: float = 0.0) -> AsyncIterator[tuple[Relay, Peer, Streams, Streams]]:
    """A relay with one connection through it: (relay, peer, the client's streams, the peer's streams)."""
    peer = Peer()
    async with Relay(await peer.start(), delay=delay) as relay:
        near = await asyncio.open_connection(*relay.address)
        far = await peer.accepted()
        yield relay, peer, near, far
        peer.close()
        for _, writer in (near, far):
            writer.close()


async def nothing_arrives(reader: asyncio.StreamReader, seconds: float = 0.2) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), seconds)
    except TimeoutError:
        return True
    return False


async def until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_round_trip_takes_twice_the_delay(run: Any, delay: float) -> None:
    async def main() -> None:
        async with linked(delay) as (_, _, near, far):
            times = []
            for _ in range(5):
                begin = time.monotonic()
                near[1].write(b"ping")
                assert await far[0].readexactly(4) == b"ping"
                far[1].write(b"pong")
                assert await near[0].readexactly(4) == b"pong"
                times.append(time.monotonic() - begin)
            assert min(times) >= 2 * delay - 0.002  # uvloop counts in whole milliseconds
            assert min(times) < 2 * delay + 0.05

    run(main())


def test_delay_does_not_cost_bandwidth_or_order(run: Any) -> None:
    async def main() -> None:
        block = os.urandom(1 << 20)
        count, delay = 60, 0.1
        async with linked(delay) as (relay, _, near, far):

            async def send() -> None:
                for _ in range(count):
                    near[1].write(block)
                    await near[1].drain()
                near[1].write_eof()

            begin = time.monotonic()
            sender = asyncio.ensure_future(send())
            digest = hashlib.sha256()
            while data := await far[0].read(1 << 20):
                digest.update(data)
            seconds = time.monotonic() - begin
            await sender
            assert digest.digest() == hashlib.sha256(block * count).digest()
            assert relay.forwarded == count << 20
            print(f"{count} MiB in {seconds:.2f} s at {delay * 1000:.0f} ms each way")
            # A relay that waited for every chunk would take 0.1 s for each 64-256 KiB: 24 s or more.
            assert seconds < 10

    run(main())


def test_order_survives_a_changing_delay(run: Any) -> None:
    async def main() -> None:
        rng = random.Random(7)
        async with linked(0.05) as (relay, _, near, far):
            sent = bytearray()
            for n in range(200):
                piece = n.to_bytes(4, "big")
                sent += piece
                near[1].write(piece)
                relay.set_delay(rng.choice([0.0, 0.01, 0.03]))
                await asyncio.sleep(0.001)
            assert await far[0].readexactly(len(sent)) == sent

    run(main())


def test_half_closed_connection_carries_the_other_half(run: Any) -> None:
    async def main() -> None:
        async with linked(0.02) as (relay, _, near, far):
            near[1].write(b"question")
            near[1].write_eof()
            assert await far[0].read() == b"question"
            far[1].write(b"answer")
            far[1].close()
            assert await near[0].read() == b"answer"
            await until(lambda: relay.connections == 0)

    run(main())


def test_reset_travels_behind_the_data(run: Any) -> None:
    async def main() -> None:
        async with linked(0.05) as (relay, _, near, far):
            near[1].write(b"last words")
            await near[1].drain()
            near[1].transport.abort()
            assert await far[0].readexactly(10) == b"last words"
            with contextlib.suppress(ConnectionResetError):
                assert await far[0].read() == b""
            far[1].close()
            await until(lambda: relay.connections == 0)

    run(main())


def test_receiver_that_does_not_read_holds_the_sender_back(run: Any) -> None:
    async def main() -> None:
        async with linked() as (relay, _, near, _far):
            # The far program's buffers fill up, then the kernel's, then the relay's.
            block = bytes(1 << 20)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 4 * WINDOW:
                    near[1].write(block)
                    await asyncio.wait_for(near[1].drain(), 0.5)
                    sent += len(block)
            assert sent < 2 * WINDOW
            relay.cut()

    run(main())


def test_reset_cut_ends_old_and_new_connections(run: Any) -> None:
    async def main() -> None:
        async with linked(0.01) as (relay, peer, near, far):
            relay.cut()
            for reader, _ in (near, far):
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
            with contextlib.suppress(ConnectionResetError):
                reader, writer = await asyncio.open_connection(*relay.address)
                assert await reader.read(1) == b""
                writer.close()
            assert peer.nobody_came()
            relay.heal()
            await _works(relay, peer)

    run(main())


def test_blackhole_tells_nobody(run: Any) -> None:
    async def main() -> None:
        async with linked(0.05) as (relay, peer, near, far):
            near[1].write(b"under way")
            await asyncio.sleep(0.01)
            relay.cut("blackhole")
            far[1].write(b"lost")
            assert await nothing_arrives(near[0])
            assert await nothing_arrives(far[0], 0.01)
            late = await asyncio.open_connection(*relay.address)
            late[1].write(b"hello?")
            assert await nothing_arrives(late[0])
            assert peer.nobody_came()
            # One side gives up; the other is not told.
            near[1].close()
            assert await nothing_arrives(far[0])
            relay.heal()
            with contextlib.suppress(ConnectionResetError):
                assert await far[0].read() == b""
            with contextlib.suppress(ConnectionResetError):
                assert await late[0].read() == b""
            late[1].close()
            await until(lambda: relay.connections == 0)
            await _works(relay, peer)

    run(main())


@pytest.mark.parametrize("mode", ["reset", "blackhole"])
def test_cut_while_much_is_under_way(run: Any, mode: CutMode) -> None:
    async def main() -> None:
        async with linked(0.5) as (relay, peer, near, _):
            near[1].write(bytes(8 << 20))
            await asyncio.sleep(0.1)
            relay.cut(mode)
            await asyncio.sleep(0.1)
            relay.heal()
            relay.set_delay(0)
            await _works(relay, peer)

    run(main())


def test_target_that_is_down(run: Any) -> None:
    async def main() -> None:
        peer = Peer()
        address = await peer.start()
        peer.close()
        async with Relay(address) as relay:
            reader, writer = await asyncio.open_connection(*relay.address)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            await until(lambda: relay.connections == 0)

    run(main())


def test_negative_delay_is_refused() -> None:
    with pytest.raises(ValueError, match="delay"):
        Relay(("127.0.0.1", 1), delay=-0.1)


async def _works(relay: Relay, peer: Peer) -> None:
    near = await asyncio.open_connection(*relay.address)
    far = await peer.accepted()
    near[1].write(b"back again")
    assert await far[0].readexactly(10) == b"back again"
    near[1].close()
    far[1].close()
