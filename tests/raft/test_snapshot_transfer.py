"""Snapshots between running nodes: real sockets, real disks, a small FSM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mysqlraft.raft import FileSnapshotStore, LevelDBStore, Limits, Node, Role
from mysqlraft.raft.bootstrap import bootstrap
from mysqlraft.raft.channel import Channel
from mysqlraft.raft.fsm import Applier
from mysqlraft.raft.messages import Message, SnapshotChunk, SnapshotChunkRequest
from mysqlraft.raft.snapshot import Snapshot
from mysqlraft.raft.snapshot_transfer import SnapshotTransfers
from mysqlraft.raft.store import Base, StoreError
from tests.raft.ledger import Ledger
from tests.raft.test_node import TICK, members, run, until

ELECTION_TICKS = 80
"""Long: a busy machine must not change the leader, whose snapshot it is."""
PAYLOAD = 20_000
KEPT = 150
"""Of so many payloads the state consists: 3 MB."""


class Site:
    def __init__(self, node: Node, store: LevelDBStore, snapshots: FileSnapshotStore) -> None:
        self.node, self.store, self.snapshots = node, store, snapshots
        self.ledger = Ledger(KEPT)
        self.applier = Applier(node, self.ledger, snapshot_entries=50, trailing_entries=5)
        self.applying = asyncio.get_running_loop().create_task(self.applier.run())
        self.chunks: list[SnapshotChunk] = []
        """That have arrived here."""
        self.attempts: set[int] = set()
        """Of the requests that have left here: each asks for what was on its way in the one before, once more."""
        take: Callable[[Message], None] = node.transport.on_message
        give: Callable[[Iterable[Message]], None] = node.transport.send

        def on_message(message: Message) -> None:
            if isinstance(message, SnapshotChunk):
                self.chunks.append(message)
            take(message)

        def send(messages: Iterable[Message]) -> None:
            messages = list(messages)
            self.attempts |= {each.attempt for each in messages if isinstance(each, SnapshotChunkRequest)}
            give(messages)

        node.transport.on_message = on_message
        node.transport.send = send  # type: ignore[method-assign]


class Sites:
    def __init__(self, directory: Path, rate: int) -> None:
        self.directory, self.rate = directory, rate
        self.configuration = members(3)
        self.running: dict[int, Site] = {}

    async def start(self, site: int) -> Site:
        store = LevelDBStore(self.directory / str(site), "test", site)
        bootstrap(store, self.configuration)
        snapshots = FileSnapshotStore(self.directory / str(site) / "snapshots")
        node = Node(
            site, "test", store, self.configuration.servers[site].address, tick_seconds=TICK, random=Random(site),
            snapshots=snapshots, snapshot_bytes_per_second=self.rate,
            limits=Limits(election_ticks=ELECTION_TICKS, snapshot_chunk_bytes=50_000, snapshot_window_bytes=400_000),
        )  # fmt: skip
        await node.start()
        made = self.running[site] = Site(node, store, snapshots)
        return made

    async def stop(self, site: int) -> None:
        stopped = self.running.pop(site)
        stopped.applying.cancel()
        await asyncio.gather(stopped.applying, return_exceptions=True)
        await stopped.node.stop()
        stopped.snapshots.close()
        stopped.store.close()

    async def leader(self) -> Site:
        await until(lambda: any(site.node.role is Role.LEADER for site in self.running.values()))
        return next(site for site in self.running.values() if site.node.role is Role.LEADER)

    async def write(self, count: int) -> None:
        """So many more entries, committed and applied at all sites that run."""
        leader = await self.leader()
        node, before = leader.node, leader.ledger.sessions.last(leader.node.site)[1]
        for sequence in range(before + 1, before + count + 1):
            node.propose(1, sequence, b"%06d" % sequence * (PAYLOAD // 6))
            await until(lambda: node.outstanding_bytes < 1_000_000)
        await until(lambda: leader.ledger.sessions.last(node.site)[1] == before + count)

    async def equal(self) -> None:
        def done() -> bool:
            failed = [site for site in self.running.values() if site.applying.done()]
            if failed:
                raise AssertionError from failed[0].applying.exception()
            return len({(site.ledger.index, site.ledger.digest) for site in self.running.values()}) == 1

        await until(done)


@asynccontextmanager
async def behind(directory: Path, rate: int = 0) -> AsyncIterator[tuple[Sites, int]]:
    """Three sites, of which one (it does not lead, and is down) misses more than the log still holds."""
    sites = Sites(directory, rate)
    try:
        for site in (1, 2, 3):
            await sites.start(site)
        leader = await sites.leader()
        await sites.write(10)
        await sites.equal()
        away = next(site for site in sites.running if site != leader.node.site)
        await sites.stop(away)
        await sites.write(300)
        leader = await sites.leader()
        await until(lambda: leader.store.base.index > 200)
        yield sites, away
    finally:
        for site in list(sites.running):
            await sites.stop(site)


def test_a_follower_far_behind_catches_up_by_snapshot_while_writes_go_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path, rate=5_000_000) as (sites, away):
            leader = await sites.leader()
            term, contact = leader.node.term, []
            joined = await sites.start(away)
            while joined.applier.restored == 0 or joined.ledger.index < leader.store.base.index:
                await sites.write(5)
                status = joined.node.status()
                if status["receiving"] is not None and status["receiving"]["received"]:
                    contact.append(status["last_contact_ms"])
            await sites.write(20)
            await sites.equal()
            assert joined.applier.restored == 1
            assert leader.node.term == term, "nobody missed its heartbeats"
            assert max(contact) < ELECTION_TICKS * TICK * 1000
            assert len(list(joined.ledger.kept)) == KEPT
            print(f"longest without a heartbeat: {max(contact)} ms, looked at {len(contact)} times")
            print(f"{sum(len(chunk.data) for chunk in joined.chunks)} bytes in {len(joined.chunks)} chunks")

    run(work())


def test_a_broken_connection_is_resumed_and_not_begun_anew(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path, rate=5_000_000) as (sites, away):
            joined = await sites.start(away)
            await until(lambda: joined.node.status()["receiving"] is not None)
            size = joined.node.status()["receiving"]["bytes"]
            for share in (1_000_000, 2_000_000):
                await until(lambda share=share: sum(len(chunk.data) for chunk in joined.chunks) > share)  # type: ignore[misc]
                for connection in list(joined.node.transport.listener.incoming):
                    if connection.channel is Channel.SNAPSHOT:
                        connection.abort()
            await sites.equal()
            total = sum(len(chunk.data) for chunk in joined.chunks)
            assert len({chunk.last_index for chunk in joined.chunks}) == 1
            again = len(joined.attempts) - 1
            assert total <= size + again * 400_000, "at most a window is sent again each time"
            assert [chunk.offset for chunk in joined.chunks].count(0) == 1

    run(work())


def test_a_restarted_follower_goes_on_from_its_disk(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path, rate=5_000_000) as (sites, away):
            joined = await sites.start(away)
            await until(lambda: sum(len(chunk.data) for chunk in joined.chunks) > 1_500_000)
            await sites.stop(away)
            joined = await sites.start(away)
            await sites.equal()
            assert joined.chunks[0].offset > 1_000_000
            await until(lambda: joined.applier.restored == 1)  # said after the state is there

    run(work())


def test_a_damaged_chunk_is_refused_and_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with behind(tmp_path) as (sites, away):
            leader = await sites.leader()
            send = leader.node.transport.send

            def damaging(messages: Any) -> None:
                for message in messages:
                    refused = sites.running[away].node._participant.receiver.refused
                    if isinstance(message, SnapshotChunk) and message.offset == 100_000 and not refused:
                        message = message._replace(data=b"?" + message.data[1:])
                    send([message])

            assert leader.node._transfers is not None
            leader.node._transfers._send = damaging
            joined = await sites.start(away)
            await sites.equal()
            assert joined.node._participant.receiver.refused == 1
            assert not [record for record in caplog.records if "garbage" in record.getMessage()]

    run(work())


def test_a_transfer_is_paced_and_shown(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path, rate=2_000_000) as (sites, away):
            leader = await sites.leader()
            began = asyncio.get_running_loop().time()
            joined = await sites.start(away)
            await until(lambda: sum(len(chunk.data) for chunk in joined.chunks) > 1_000_000)
            receiving, sending = joined.node.status()["receiving"], leader.node.status()["peers"][away]["snapshot"]
            assert leader.node.status()["peers"][away]["state"] == "snapshot"
            assert receiving["index"] == sending["index"]
            assert receiving["bytes"] == sending["bytes"] > 3_000_000
            assert 500_000 < receiving["received"] < 3_000_000
            assert 500_000 < sending["sent"] < 3_000_000
            await sites.equal()
            took = asyncio.get_running_loop().time() - began
            assert took > receiving["bytes"] / 2_000_000 * 0.9
            assert joined.node.status()["receiving"] is None
            assert joined.node.status()["snapshot"]["index"] == receiving["index"]
            assert leader.node.status()["peers"][away]["snapshot"] is None

    run(work())


def test_a_site_restarts_from_its_own_snapshot_and_the_log_after_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path) as (sites, _):
            leader = await sites.leader()
            site = leader.node.site
            digest, index = leader.ledger.digest, leader.ledger.index
            await sites.stop(site)
            again = await sites.start(site)
            await until(lambda: again.ledger.index >= index)
            await until(lambda: again.applier.restored == 1)  # said after the state is there
            assert again.ledger.digest == digest

    run(work())


def test_compacted_entries_are_swept_from_the_disk(tmp_path: Path) -> None:
    async def work() -> None:
        async with behind(tmp_path) as (sites, _):
            leader = await sites.leader()
            store = leader.store

            def first() -> int:
                return int.from_bytes(next(iter(store._db.iterator(prefix=b"r", include_value=False)))[1:], "big")

            # The log may be compacted again between one look and the other.
            await until(lambda: store.base.index > 200 and first() == store.base.index + 1)

    run(work())


def test_what_still_leaves_for_a_removed_member_is_not_reaped(tmp_path: Path) -> None:
    """The core knows nothing of that transfer any more, and a part that is gone would end the leader."""

    async def work() -> None:
        store, size, rate = FileSnapshotStore(tmp_path), 100_000, 200_000
        failures: list[Exception] = []
        chunks: list[Any] = []
        transfers = SnapshotTransfers(
            store,
            chunk_bytes=size,
            bytes_per_second=rate,
            send=chunks.extend,
            done=lambda work, outcome: None,
            failed=failures.append,
        )

        async def save(index: int) -> Snapshot:
            return await transfers.save(Base(index, 1, 1), 1, members(3), [bytes([index]) * size])

        leaving = await save(1)
        transfers.serve(SnapshotChunkRequest(1, 2, 1, 7, 1, leaving.checksum, 1, 0, size), leaving)
        await until(lambda: len(chunks) > 0)
        for index in (2, 3, 4):
            await save(index)
            await transfers.reap([])
        await until(lambda: bool(failures) or sum(len(chunk.data) for chunk in chunks) == size)
        assert failures == []
        await until(lambda: transfers._serving[2][1].done())
        await transfers.reap([])
        with pytest.raises(StoreError, match="holds no snapshot up to 1"):
            store.read(leaving, 0, 1)
        await transfers.stop()

    run(work())


@pytest.mark.parametrize("slow", ["save", "data"])
def test_a_snapshot_that_takes_long_is_no_hung_disk(slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of transfers waits for no more than a part of it, and whoever waits for the whole is told."""
    begun = threading.Event()

    def endless(*_: object) -> Iterator[bytes]:
        while True:
            begun.set()
            time.sleep(0.01)
            yield b"y"

    async def work() -> None:
        store, failures = FileSnapshotStore(tmp_path), list[Exception]()
        snapshot = store.save(Base(9, 1, 1), 1, members(3), [b"x"])
        transfers = SnapshotTransfers(
            store, chunk_bytes=9, bytes_per_second=0, send=lambda _: None, done=print, failed=failures.append
        )

        async def save() -> None:
            await transfers.save(Base(10, 1, 1), 1, members(3), endless() if slow == "save" else [b"y"])
            await transfers.reap([])

        if slow == "data":
            monkeypatch.setattr(store, "data", endless)
            transfers.serve(SnapshotChunkRequest(1, 2, 3, 4, 9, snapshot.checksum, 0, 0, 1), snapshot)
            await until(begun.is_set)
        saving = asyncio.create_task(save())
        await until(begun.is_set)
        assert await transfers.stop()
        assert failures == []
        with pytest.raises(RuntimeError, match="stopped"):
            await saving

    run(work())


@pytest.mark.parametrize("call", ["perform", "save", "data"])
def test_a_hung_disk_does_not_keep_the_process_from_ending(call: str) -> None:
    """Neither the end of transfers, nor that of the loop and of the interpreter, which wait for executors' threads."""
    program = """
import asyncio, sys, threading
import uvloop
from mysqlraft.raft import MemorySnapshotStore, disk
from mysqlraft.raft.messages import SnapshotChunkRequest
from mysqlraft.raft.snapshot import Snapshot, SnapshotWork, WorkKind
from mysqlraft.raft.snapshot_transfer import SnapshotTransfers
from mysqlraft.raft.store import Base
from tests.raft.cluster import configuration

disk.LAST_CALL_SECONDS = 0.1
hangs = threading.Event()

def hang(*arguments):
    hangs.set()
    threading.Event().wait()

async def main():
    store = MemorySnapshotStore()
    snapshot = store.save(Base(9, 1, 1), 1, configuration(3), [b"x"])
    setattr(store, sys.argv[1], hang)
    transfers = SnapshotTransfers(
        store, chunk_bytes=9, bytes_per_second=0, send=print, done=print, failed=print
    )
    transfers.work(SnapshotWork(WorkKind.OPEN, snapshot))
    transfers.serve(SnapshotChunkRequest(1, 2, 3, 4, 9, snapshot.checksum, 0, 0, 1), snapshot)
    saving = asyncio.create_task(transfers.save(Base(10, 1, 1), 1, configuration(3), [b"y"]))
    while not hangs.is_set():
        await asyncio.sleep(0.01)
    print("whole" if await transfers.stop() else "left")

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, call], capture_output=True, text=True, timeout=20, check=True
    )
    assert ended.stdout.endswith("left\n")
    assert "the disk has not come back from a call within 0 s: leaving without it thread=raft-snapshot" in ended.stderr
