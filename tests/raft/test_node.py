"""The driver and the transport: real sockets, real LevelDBs, real time (short ticks)."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import create_autospec

import msgpack
import pytest
import uvloop

from mysqlraft.raft import (
    Configuration,
    LevelDBStore,
    MemoryStore,
    Node,
    Role,
    Server,
    SessionTable,
    StoreError,
    identity,
)
from mysqlraft.raft.bootstrap import bootstrap
from mysqlraft.raft.channel import PING_SECONDS, SILENCE_SECONDS, Channel
from mysqlraft.raft.configuration import ConfigurationError
from mysqlraft.raft.entry import Entry, EntryKind
from mysqlraft.raft.frames import HELLO, PING, PONG
from mysqlraft.raft.handshake import MAGIC
from mysqlraft.raft.identity import Rival
from mysqlraft.raft.link import Link, _Outgoing
from mysqlraft.raft.messages import AppendRequest, AppendResponse, Heartbeat, Message
from mysqlraft.raft.progress import ProgressState
from mysqlraft.raft.store import HardState, Write
from mysqlraft.raft.transport import Transport
from mysqlraft.raft.wire import LENGTH, PROTOCOL_VERSION
from tests.raft.everybody import Everybody
from tests.raft.ports import free_ports

TICK = 0.01


def run(work: Coroutine[Any, Any, None]) -> None:
    """On the loop that the daemon has: its transports differ from asyncio's own."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    uvloop.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Conditions here come true by themselves; run()'s timeout is what a failure hits."""
    while not condition():  # noqa: ASYNC110 - the conditions are of many kinds
        await asyncio.sleep(TICK / 2)


def members(count: int) -> Configuration:
    ports = free_ports(count)
    return Configuration(Server(site, f"site{site}", f"127.0.0.1:{ports[site - 1]}") for site in range(1, count + 1))


class Cluster:
    def __init__(self, configuration: Configuration, directory: Path) -> None:
        self.configuration = configuration
        self.directory = directory
        self.nodes: dict[int, Node] = {}
        self.stores: dict[int, LevelDBStore] = {}

    async def start(self, site: int) -> Node:
        store = LevelDBStore(self.directory / str(site), "test", site)
        bootstrap(store, self.configuration)
        node = Node(
            site, "test", store, self.configuration.servers[site].address, tick_seconds=TICK, random=Random(site)
        )
        await node.start()
        self.nodes[site], self.stores[site] = node, store
        return node

    async def stop(self, site: int) -> None:
        node = self.nodes.pop(site)
        await node.stop()
        self.stores.pop(site).close()

    async def leader(self) -> Node:
        await until(lambda: len({node.leader for node in self.nodes.values()} - {0}) == 1 and bool(self._leaders()))
        return self._leaders()[0]

    def _leaders(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.role is Role.LEADER]


@asynccontextmanager
async def cluster(count: int, directory: Path) -> AsyncIterator[Cluster]:
    made = Cluster(members(count), directory)
    try:
        for site in range(1, count + 1):
            await made.start(site)
        yield made
    finally:
        for site in list(made.nodes):
            await made.stop(site)


def delivered(node: Node) -> dict[int, list[bytes]]:
    """Per origin, the payloads that count."""
    sessions, found = SessionTable(), dict[int, list[bytes]]()
    index = 1
    while index <= node.commit_index:
        for entry in node.committed_entries(index, 10_000):
            assert entry.index == index
            index += 1
            if entry.origin and sessions.accept(entry.origin, entry.session, entry.sequence):
                found.setdefault(entry.origin, []).append(entry.payload)
    return found


def test_proposals_of_every_site_reach_every_site(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            for site, node in made.nodes.items():
                for sequence in range(1, 201):
                    node.propose(1, sequence, b"%d:%d" % (site, sequence))
            await until(lambda: all(node.outstanding_bytes == 0 for node in made.nodes.values()))
            last = max(node.commit_index for node in made.nodes.values())
            for node in made.nodes.values():
                await node.wait_committed(last)
                assert delivered(node) == {
                    site: [b"%d:%d" % (site, sequence) for sequence in range(1, 201)] for site in (1, 2, 3)
                }

    run(work())


def test_a_lone_node(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(1, tmp_path) as made:
            node = await made.leader()
            node.propose(1, 1, b"x")
            await node.wait_committed(3)
            assert delivered(node) == {1: [b"x"]}
            assert await node.read_index() == 3

    run(work())


def test_the_leader_stops_and_nothing_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            leader = await made.leader()
            others = [node for node in made.nodes.values() if node is not leader]
            for sequence in range(1, 500):
                for node in others:
                    node.propose(1, sequence, b"%d:%d" % (node.site, sequence))
                if sequence == 200:
                    await made.stop(leader.site)
                if sequence % 50 == 0:
                    await asyncio.sleep(0)
            await until(lambda: all(node.outstanding_bytes == 0 for node in others))
            await made.start(leader.site)
            await until(lambda: len({node.commit_index for node in made.nodes.values()}) == 1)
            expected = {node.site: [b"%d:%d" % (node.site, n) for n in range(1, 500)] for node in others}
            for node in made.nodes.values():
                assert delivered(node) == expected

    run(work())


def test_a_stopping_leader_hands_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            leader = await made.leader()
            await until(lambda: all(leader.transport.connected(site) for site in made.nodes if site != leader.site))
            await made.stop(leader.site)
            assert "hands over its leadership" in caplog.text

    run(work())


def test_a_restarted_site_knows_what_was_committed(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            node = made.nodes[1]
            node.propose(1, 1, b"x" * 1000)
            await until(lambda: node.outstanding_bytes == 0)
            commit = node.commit_index
            # Recorded when there is nothing else to write. It may be more by then: a busy machine changes the leader.
            await until(lambda: made.stores[1].commit >= commit)
            await asyncio.gather(*[made.stop(site) for site in (2, 3)])
            await made.stop(1)
            again = await made.start(1)  # alone: no leader can tell it
            assert again.commit_index >= commit
            assert delivered(again) == {1: [b"x" * 1000]}

    run(work())


def test_what_the_recorded_commit_index_is_behind_is_looked_at_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy site that is killed records it seconds behind: the loop must not stand still for all of that."""
    monkeypatch.setattr("mysqlraft.raft.participant.OBSERVE_BYTES", 1)
    configured = members(1)
    with closing(LevelDBStore(tmp_path / "1", "test", 1)) as store:
        bootstrap(store, configured)
        (first,) = store.entries(1, 1, 1)
        entries = [first]
        for sequence in range(1, 1001):
            follows = entries[-1]
            payload = f"{sequence}".encode()
            entries.append(Entry(follows.index + 1, 1, EntryKind.DATA, 1, 1, sequence, payload, follows.chain))
        store.write([Write(HardState(1, 1), entries[1:])])

    async def work() -> None:
        made = Cluster(configured, tmp_path)
        node = await made.start(1)
        try:
            looking = create_autospec(node._participant._observe_slice, side_effect=node._participant._observe_slice)
            monkeypatch.setattr(node._participant, "_observe_slice", looking)
            node.propose(1, 1000, b"1000")
            pumps = 0
            while node.outstanding_proposals:
                before = looking.call_count
                await asyncio.sleep(0)
                pumps += 1
                assert looking.call_count - before < 5, "in one turn of the loop"
            assert pumps > 200
        finally:
            await made.stop(1)

    run(work())


def test_a_linearizable_read_at_every_site(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            leader = await made.leader()
            leader.propose(1, 1, b"x")
            await until(lambda: leader.outstanding_bytes == 0)
            for node in made.nodes.values():
                assert await node.read_index() >= leader.commit_index

    run(work())


def test_status_tells_the_state_of_the_peers(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            leader = await made.leader()
            await until(lambda: all(peer["connected"] for peer in leader.status()["peers"].values()))
            await until(lambda: all(peer["match"] == leader.last_index for peer in leader.status()["peers"].values()))
            status = leader.status()
            assert (status["role"], status["leader"]) == ("leader", leader.site)
            assert set(status["members"]) == {1, 2, 3}
            assert all(peer["state"] == "replicate" for peer in status["peers"].values())
            gone = next(site for site in made.nodes if site != leader.site)
            await made.stop(gone)
            await until(lambda: leader.status()["peers"][gone]["problem"] is not None)

    run(work())


class FailingStore(MemoryStore):
    """A disk that is full from some moment on."""

    full = False

    def write(self, writes: Any) -> None:
        if self.full:
            raise StoreError("no space left on device")
        super().write(writes)


def test_a_storage_error_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        configuration = members(1)
        store = FailingStore()
        bootstrap(store, configuration)
        node = Node(1, "test", store, configuration.servers[1].address, tick_seconds=TICK)
        await node.start()
        await until(lambda: node.role is Role.LEADER)
        await node.wait_committed(2)
        store.full = True
        node.propose(1, 1, b"x")
        with pytest.raises(StoreError, match="no space left"):
            await node.failed
        node.propose(1, 2, b"y")
        assert node.commit_index == 2
        await node.stop()

    run(work())
    assert "no space left" in caplog.text


def test_an_exception_nobody_thought_of_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    """It has left the core in a state that nobody has thought of either."""

    async def work() -> None:
        configuration = members(1)
        store = MemoryStore()
        bootstrap(store, configuration)
        node = Node(1, "test", store, configuration.servers[1].address, tick_seconds=TICK)
        await node.start()

        def broken(message: Message) -> None:
            raise KeyError("a bug")

        node._participant.step = broken  # type: ignore[method-assign]
        node._on_message(BEAT)
        with pytest.raises(KeyError):
            await node.failed
        await node.stop()

    run(work())
    assert "raft stopped" in caplog.text


def test_a_link_that_ends_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its site would get nothing any more, and nobody would know."""

    async def broken(link: Link, connection: object) -> str:
        raise KeyError("a bug")

    monkeypatch.setattr(Link, "_watch", broken)

    async def work() -> None:
        configuration = members(2)
        nodes = []
        for site in (1, 2):
            store = MemoryStore()
            bootstrap(store, configuration)
            nodes.append(Node(site, "test", store, configuration.servers[site].address, tick_seconds=TICK))
            await nodes[-1].start()
        for node in nodes:
            with pytest.raises(KeyError):
                await node.failed
            await node.stop()

    run(work())


class HangingStore(MemoryStore):
    """A disk that does not come back from a write, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = threading.Event()
        self.release = threading.Event()

    def write(self, writes: Any) -> None:
        if self.hangs.is_set():
            self.release.wait(20)
        super().write(writes)


def test_a_hung_disk_keeps_neither_the_loop_nor_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mysqlraft.raft.disk.LAST_CALL_SECONDS", 0.05)

    async def work() -> None:
        configuration = members(1)
        store = HangingStore()
        bootstrap(store, configuration)
        node = Node(1, "test", store, configuration.servers[1].address, tick_seconds=TICK)
        await node.start()
        await until(lambda: node.role is Role.LEADER)
        store.hangs.set()
        node.propose(1, 1, b"x")
        await until(lambda: node.role is not Role.LEADER)  # its clock goes on, and it gives up its office
        assert node.status()["storage_stalled"]
        assert not await node.stop()
        store.release.set()

    run(work())


def test_a_hung_removal_of_what_was_compacted_does_not_keep_the_exit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mysqlraft.raft.disk.LAST_CALL_SECONDS", 0.05)
    asked, release = threading.Event(), threading.Event()

    class Store(MemoryStore):
        def sweep(self, count: int) -> bool:
            asked.set()
            release.wait(20)
            return False

    async def work() -> None:
        configuration = members(1)
        store = Store()
        bootstrap(store, configuration)
        node = Node(1, "test", store, configuration.servers[1].address, tick_seconds=TICK)
        await node.start()
        await until(asked.is_set)
        assert not await node.stop()
        assert not await node.stop()
        assert not release.is_set()

    run(work())
    release.set()
    assert "the disk has not come back from a call within 0 s: leaving without it thread=raft-sweeper" in caplog.text


def test_a_waiter_is_told_when_the_node_stops(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(1, tmp_path) as made:
            node = await made.leader()
            waiter = asyncio.create_task(node.wait_committed(1000))
            await asyncio.sleep(0)
            await made.stop(1)
            with pytest.raises(ConnectionError):
                await waiter

    run(work())


def test_a_large_entry_passes(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(3, tmp_path) as made:
            leader = await made.leader()
            follower = next(node for node in made.nodes.values() if node is not leader)
            follower.propose(1, 1, b"z" * 20_000_000)
            # Committed is not yet on this site's disk.
            await until(lambda: follower.outstanding_bytes == 0 and follower.commit_index == follower.last_index)
            assert delivered(follower) == {follower.site: [b"z" * 20_000_000]}

    run(work())


def test_committed_entries_from_memory_and_from_disk(tmp_path: Path) -> None:
    from mysqlraft.raft import Limits

    async def work() -> None:
        configuration = members(1)
        store = LevelDBStore(tmp_path, "test", 1)
        bootstrap(store, configuration)
        node = Node(
            1, "test", store, configuration.servers[1].address, tick_seconds=TICK, limits=Limits(cache_bytes=50_000)
        )
        await node.start()
        for sequence in range(1, 1001):
            node.propose(1, sequence, b"%d" % sequence * 50)
        await until(lambda: node.outstanding_bytes == 0)
        assert len(delivered(node)[1]) == 1000
        assert node.committed_entries(node.commit_index + 1, 1000) == []
        with pytest.raises(StoreError):
            node.committed_entries(0, 1000)
        await node.stop()
        store.close()

    run(work())


# ---- the transport -------------------------------------------------------------------------------------------------


class Ends:
    """Two transports."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.resets: list[int] = []

    def transport(
        self, site: int, cluster: str = "test", known: Callable[[int], bool] = lambda site: True
    ) -> Transport:
        return Transport(site, cluster, Everybody(known), self.received.append, self.resets.append, Random(site))


def with_transports(work: Callable[[Ends, Transport, Transport], Awaitable[None]], **options: Any) -> None:
    async def both() -> None:
        ends = Ends()
        first, second = ends.transport(1), ends.transport(2, **options)
        await first.start("127.0.0.1:0")
        await second.start("127.0.0.1:0")
        try:
            first.set_peers({2: f"127.0.0.1:{second.listener.port}"})
            await work(ends, first, second)
        finally:
            await first.stop()
            await second.stop()

    run(both())


BEAT = Heartbeat(2, 1, 1, 0, 0, 1)


def test_messages_arrive_and_resets_are_told() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        assert ends.resets == [2, 2]
        first.send([BEAT, BEAT._replace(round=2)])
        await until(lambda: len(ends.received) == 2)
        assert ends.received == [BEAT, BEAT._replace(round=2)]
        await until(lambda: first.round_trip(2) is not None)
        for connection in list(second.listener.incoming):
            connection.abort()
        await until(lambda: len(ends.resets) >= 6)  # lost and made again, both of them
        await until(lambda: first.connected(2))

    with_transports(work)


def test_a_dead_control_connection_takes_the_bulk_connection_with_it() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        bulk = next(each for each in second.listener.incoming if each.channel is Channel.BULK)
        next(each for each in second.listener.incoming if each.channel is Channel.CONTROL).abort()
        await until(lambda: bulk.closed)
        await until(lambda: first.connected(2))

    with_transports(work)


class SlowPeer:
    """Takes connections, and answers no ping on the bulk connection, which it reads slowly at first."""

    def __init__(self) -> None:
        self.pause = 0.1
        """Seconds after 64 KiB each."""
        self.reads = asyncio.Event()
        self.reads.set()
        self.over = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = (await self._frame(reader))[6]
        writer.write(framed(HELLO))
        with suppress(ConnectionError, EOFError):
            while channel != Channel.BULK:
                kind, number = await self._frame(reader)
                if kind == PING:
                    writer.write(framed(PONG, number))
            while not self.over:
                await self.reads.wait()
                if not await reader.read(64 * 1024):
                    break
                await asyncio.sleep(self.pause)
        writer.transport.abort()

    async def _frame(self, reader: asyncio.StreamReader) -> list[Any]:
        fields: list[Any] = msgpack.unpackb(await reader.readexactly(*LENGTH.unpack(await reader.readexactly(4))))
        return fields


@pytest.mark.parametrize("then", ["it takes nothing more", "it has all and answers nothing"])
def test_a_slow_line_is_not_a_dead_one(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long entry may take longer than a ping is waited for, which queues behind it."""
    silence = 1.5
    monkeypatch.setitem(PING_SECONDS, Channel.BULK, 0.1)
    monkeypatch.setitem(SILENCE_SECONDS, Channel.BULK, silence)
    slow = socket.create_server(("127.0.0.1", 0))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        peer = SlowPeer()
        async with await asyncio.start_server(peer.serve, sock=slow, limit=64 * 1024):
            first.set_peers({2: f"127.0.0.1:{slow.getsockname()[1]}"})
            await until(lambda: first.connected(2))
            await until(lambda: not first.delivers(2))
            entry = Entry(1, 1, EntryKind.DATA, payload=bytes(32 * 1024 * 1024))
            first.send([AppendRequest(2, 1, 1, 0, 0, 0, 0, (entry,))])
            await until(lambda: first.delivers(2))
            begun, resets = time.monotonic(), len(ends.resets)
            await until(lambda: time.monotonic() > begun + 2 * silence or len(ends.resets) > resets)
            assert len(ends.resets) == resets
            if then == "it takes nothing more":
                peer.reads.clear()
            peer.pause = 0
            await until(lambda: not first.delivers(2))
            await until(lambda: len(ends.resets) > resets)
            first.set_peers({})
            peer.over = True
            peer.reads.set()

    with_transports(work)


def test_a_line_that_has_just_closed_delivers_nothing() -> None:
    """Whoever asks may do so before the loss is reported: uvloop has a socket that is none by then."""

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        connection = first._links[2][Channel.BULK].connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        for _ in range(9):
            assert not connection.delivers(1.0)
            await asyncio.sleep(0)

    with_transports(work)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """All links are pinged often, and given up soon: after so many seconds."""
    silence = 0.4
    for channel in Channel:
        monkeypatch.setitem(PING_SECONDS, channel, 0.1)
        monkeypatch.setitem(SILENCE_SECONDS, channel, silence)
    monkeypatch.setattr("mysqlraft.raft.transport.GOSSIP_SECONDS", 0.1)
    return silence


def test_who_stood_still_does_not_take_its_peers_for_dead(impatient: float) -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2) and first.round_trip(2) is not None)
        made, resets = set(second.listener.incoming), len(ends.resets)
        for _ in range(3):
            time.sleep(3 * impatient)  # noqa: ASYNC251 - a halted process
            awake = time.monotonic()
            await until(lambda awake=awake: all(each.heard_at > awake + impatient / 2 for each in made))  # type: ignore[misc]
        assert (second.listener.incoming, len(ends.resets)) == (made, resets)

    with_transports(work)


def test_what_came_in_while_this_site_stood_still_is_heard_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read after the timer has gone off, which is the order of uvloop."""
    monkeypatch.setattr("mysqlraft.raft.link.HEAR_SECONDS", 10.0)
    monkeypatch.setattr("mysqlraft.raft.link.to_beat", lambda seconds: 0.0)
    pings = 0

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        first.set_peers({})
        link = Link(
            2, "127.0.0.1:1", Channel.CONTROL, first.handshake, Random(1), lambda link: None, lambda error: None
        )
        link.task.cancel()
        connection = _Outgoing()

        def ping() -> None:
            nonlocal pings
            pings += 1
            if pings == 1:
                connection.heard_at -= 100
                asyncio.get_running_loop().call_later(0.05, heard)

        def heard() -> None:
            connection.heard_at = time.monotonic()
            connection.lost.set_result(None)

        connection.ping = ping  # type: ignore[method-assign]
        assert await link._watch(connection) == "the connection was lost"

    with_transports(work)


def test_a_stall_makes_up_for_no_silence_after_it() -> None:
    """Whoever was heard at its end would else be waited for twice as long."""

    async def work() -> None:
        connection = _Outgoing()
        connection.stood_still(100.0)
        assert 0.0 <= connection.silent_seconds < 50.0
        connection.heard_at -= 200
        connection.stood_still(100.0)
        assert 100.0 <= connection.silent_seconds < 150.0

    run(work())


def test_a_dead_line_is_found_by_a_busy_site_too(impatient: float) -> None:
    """Its loop stands still again and again."""

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        peer = SlowPeer()
        async with await asyncio.start_server(peer.serve, "127.0.0.1", 0) as server:
            first.set_peers({2: f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
            await until(lambda: first.connected(2))
            link = first._links[2][Channel.BULK]
            while link.connection is not None:
                time.sleep(impatient / 2)  # noqa: ASYNC251 - a busy loop
                await asyncio.sleep(0.001)
            assert link.problem == "nothing heard for 0 s"
            first.set_peers({})
            peer.over = True

    with_transports(work)


def test_a_connection_that_has_just_been_lost_delivers_nothing() -> None:
    """With TLS, its socket is gone a moment before anybody is told."""

    async def work() -> None:
        connection = _Outgoing()
        transport = create_autospec(asyncio.Transport, instance=True)
        transport.get_extra_info.return_value = None
        connection.connection_made(transport)
        assert not connection.delivers(1.0)

    run(work())


def test_a_line_that_delivers_is_given_time(tmp_path: Path) -> None:
    """Acknowledgements of site 3 are missing, for longer than the watchdog waits."""

    async def work() -> None:
        cluster = Cluster(members(3), tmp_path)
        for site in (1, 2, 3):
            await cluster.start(site)
        leader = await cluster.leader()
        late = next(node for node in cluster.nodes.values() if node is not leader)
        progress = leader._core.followers.progress[late.site]
        await until(lambda: progress.state is ProgressState.REPLICATE)
        send = late.transport.send
        late.transport.send = lambda messages: send(  # type: ignore[method-assign]
            [each for each in messages if not isinstance(each, AppendResponse)]
        )
        asked: list[int] = []
        slow = True

        def delivers(site: int) -> bool:
            asked.append(site)
            return slow

        leader.transport.delivers = delivers  # type: ignore[method-assign]
        leader.propose(1, 1, b"x")
        await until(lambda: len(asked) >= 4)
        assert set(asked) == {late.site}
        assert progress.state is ProgressState.REPLICATE
        slow = False
        await until(lambda: progress.state is ProgressState.PROBE)
        for site in (1, 2, 3):
            await cluster.stop(site)

    run(work())


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"cluster": "other"}, "cluster 'test' is not cluster 'other'"),
        ({"known": lambda site: False}, "site 1 is not a member of the cluster"),
    ],
)
def test_strangers_are_refused_with_a_reason_on_both_sides(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: reason in (first.problem(2) or ""))
        assert not first.connected(2)

    with_transports(work, **options)
    assert f"connection refused: {reason}" in caplog.text
    assert "not connected site=2" in caplog.text


def test_the_wrong_site_at_an_address_is_found(caplog: pytest.LogCaptureFixture) -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        first.set_peers({3: f"127.0.0.1:{second.listener.port}"})
        await until(lambda: "but this is site 2" in (first.problem(3) or ""))

    with_transports(work)


async def raw(port: int, *bodies: bytes) -> bytes:
    """Say this to a transport; what it answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        writer.write(body)
    data = await reader.read()
    writer.close()
    return data


def framed(*fields: object) -> bytes:
    body: bytes = msgpack.packb(fields)
    return LENGTH.pack(len(body)) + body


FIRST = Random(1).getrandbits(63)
"""The incarnation of the first of two transports."""


def hello(version: int = PROTOCOL_VERSION, site: int = 1, incarnation: int = FIRST) -> bytes:
    return framed(0, MAGIC, version, "test", site, 2, int(Channel.CONTROL), incarnation, 0, "", "")


def test_another_protocol_version_is_refused() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        answer = await raw(second.listener.port, hello(version=PROTOCOL_VERSION + 1))
        assert f"protocol version {PROTOCOL_VERSION + 1} is spoken there".encode() in answer

    with_transports(work)


def test_a_second_daemon_with_the_same_site_id_is_refused() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        assert b"another daemon calls itself site 2" in await raw(second.listener.port, hello(site=2))

    with_transports(work)


def test_another_daemon_with_a_sites_identity_is_refused_and_the_first_one_not_disturbed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(identity, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr("mysqlraft.raft.link.PING_SECONDS", dict.fromkeys(Channel, 0.1))

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        resets = len(ends.resets)
        rivals: list[tuple[int, Rival]] = []
        copy = Transport(1, "test", Everybody(), ends.received.append, lambda site: None, Random(7))
        copy.handshake.on_rival = lambda by, rival: rivals.append((by, rival))
        await copy.start("127.0.0.1:0")
        copy.set_peers({2: f"127.0.0.1:{second.listener.port}"})
        await until(lambda: len(rivals) >= 3)
        await copy.stop()
        by, rival = rivals[0]
        assert (by, rival.where, rival.proven) == (2, "127.0.0.1", True)
        assert 0.2 < rival.seconds < 30
        assert first.connected(2)
        assert len(ends.resets) == resets, "nothing of the first one's was lost"

    with_transports(work)
    told = [record.getMessage() for record in caplog.records if "another daemon is site 1" in record.getMessage()]
    assert sum("connection refused" in line for line in told) == 1, "one line at the one that refuses"
    assert len(told) <= 1 + 2 * len(Channel), "and two at most, for each channel, at the one that is refused"


def test_a_restarted_daemon_takes_its_place_at_once_and_after_a_power_cut_once_silence_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr("mysqlraft.raft.listener.SILENCE_SECONDS", dict.fromkeys(Channel, 0.2))
    monkeypatch.setattr("mysqlraft.raft.transport.GOSSIP_SECONDS", 0.1)

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        first.set_peers({})  # it has ended, and its system has said so
        await until(lambda: not second.listener.incoming)
        reader, writer = await asyncio.open_connection("127.0.0.1", second.listener.port)
        writer.write(hello(incarnation=8))
        assert await reader.readexactly(len(framed(0))) == framed(0)
        # Nothing more is heard of it. The next one is not told that two are alive.
        rivals: list[Rival] = []
        again = Transport(1, "test", Everybody(), ends.received.append, lambda site: None, Random(9))
        again.handshake.on_rival = lambda by, rival: rivals.append(rival)
        await again.start("127.0.0.1:0")
        again.set_peers({2: f"127.0.0.1:{second.listener.port}"})
        await until(lambda: again.connected(2))
        assert rivals == []
        assert await reader.read() == b"", "what was left of it is closed"
        await again.stop()
        writer.close()

    with_transports(work)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        LENGTH.pack(5000) + b"x" * 5000,
        LENGTH.pack(3) + b"\xc1\xc1\xc1",
        framed(1, 2, 3),
        framed(0, MAGIC, PROTOCOL_VERSION),
        framed(0, MAGIC, PROTOCOL_VERSION, "test", "1", 2, 0, 0, 0, "", ""),
        framed(0, MAGIC, PROTOCOL_VERSION, "test", 1, 2, 0, 0, 0, "", b"address"),
        framed(0, MAGIC, PROTOCOL_VERSION, "test", 1, 2, 9, 0, 0, "", ""),
        hello() + LENGTH.pack(1 << 31),
        hello() + framed("x"),
        hello() + framed(6, 2, 1, 1),
        hello() + framed(6, 2, 3, 1, 0, 0, 1),
        hello() + framed(102, "text"),
        hello() + framed(3, 2, 1, 1, 0, 0, 0, 0, [b"\x00" * 64]),
    ],
    ids=range(15),
)
def test_garbage_closes_the_connection_and_harms_nothing(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        await until(lambda: first.connected(2))
        with suppress(ConnectionError):
            await raw(second.listener.port, garbage)
        assert ends.received == []
        await until(lambda: first.connected(2))  # a handshake in its name took its place for a moment

        def arrived() -> bool:
            first.send([BEAT])
            return BEAT in ends.received

        await until(arrived)

    with_transports(work)
    assert "garbage received" in caplog.text


def test_a_frame_may_arrive_byte_by_byte() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        first.set_peers({})
        reader, writer = await asyncio.open_connection("127.0.0.1", second.listener.port)
        for byte in hello() + framed(6, *BEAT) + framed(6, *BEAT):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await until(lambda: ends.received == [BEAT, BEAT])
        writer.close()
        del reader

    with_transports(work)


def test_a_stranger_who_takes_its_time_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mysqlraft.raft.listener.HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr("mysqlraft.raft.transport.GOSSIP_SECONDS", 0.1)

    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        first.set_peers({})
        reader, writer = await asyncio.open_connection("127.0.0.1", second.listener.port)
        writer.write(LENGTH.pack(4000))
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            # What it says is never silent, and never whole.
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.05)
        with suppress(ConnectionError):  # a reset, if a byte was still on its way
            assert not answer.result(), "nobody spoke with it"
        writer.close()

    with_transports(work)


def test_gossip_reaches_the_peers() -> None:
    async def work(ends: Ends, first: Transport, second: Transport) -> None:
        with pytest.raises(ValueError, match="at most"):
            first.publish(bytes(1 << 20))
        first.publish(b"all is well")
        assert second.status_of(1) is None
        await until(lambda: second.status_of(1) is not None)
        heard = second.status_of(1)
        assert heard is not None
        assert heard[0] == b"all is well"
        assert 0 <= heard[1] < 5

    with_transports(work)


def test_bootstrap_refuses_another_configuration_on_disk(tmp_path: Path) -> None:
    store = LevelDBStore(tmp_path, "test", 1)
    bootstrap(store, members(3))
    with pytest.raises(ConfigurationError, match="cannot be bootstrapped again"):
        bootstrap(store, members(3))
    store.write([Write(commit=1)])
    store.close()
