"""The driver's side of snapshots: the disk they are on, and the chunks that leave for others.

All writing is done by one thread, in order, so that neither heartbeats nor the log wait for a snapshot's bytes. Chunks
are read in other threads, one for each follower, and leave through a connection of their own
(channel.Channel.SNAPSHOT), paced to `bytes_per_second` for all followers together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from mysqlraft.raft.configuration import Configuration
from mysqlraft.raft.disk import DiskThread
from mysqlraft.raft.messages import Message, SnapshotChunk, SnapshotChunkRequest
from mysqlraft.raft.snapshot import Snapshot, SnapshotSender, SnapshotWork, chunk_checksum
from mysqlraft.raft.snapshot_store import SnapshotStore
from mysqlraft.raft.store import Base

PACED_CHUNKS_PER_SECOND = 10
"""With a limit, chunks are made so small that at least so many leave in a second: the follower is seen to go on."""
MIN_CHUNK_BYTES = 1024


class SnapshotTransfers:
    """Snapshots to and from other sites, and this site's own."""

    def __init__(
        self,
        store: SnapshotStore,
        *,
        chunk_bytes: int,
        bytes_per_second: int,
        send: Callable[[Sequence[Message]], None],
        done: Callable[[SnapshotWork, int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """`done` learns what a piece of work has come to, `failed` of an error of the disk. 0 bytes per second: no
        limit."""
        self.store = store
        self._chunk_bytes = chunk_bytes
        self._rate = bytes_per_second
        if bytes_per_second:
            self._chunk_bytes = min(chunk_bytes, max(MIN_CHUNK_BYTES, bytes_per_second // PACED_CHUNKS_PER_SECOND))
        self._send = send
        self._done = done
        self._failed = failed
        self._disk = DiskThread("raft-snapshots")
        self._readers: dict[int, DiskThread] = {}
        """By follower: what one waits for does not keep the others waiting."""
        self._senders: dict[int, SnapshotSender] = {}
        self._serving: dict[int, tuple[Snapshot, asyncio.Task[None]]] = {}
        self._verified: set[Snapshot] = set()
        self._free_at = 0.0
        """When the next chunk may leave."""
        self._stopped = False

    async def stop(self) -> bool:
        """Finish what the disk is doing; the rest is left for another time. See DiskThread.stop."""
        self._stopped = True
        tasks = [task for _, task in self._serving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return all(await asyncio.gather(*(thread.stop() for thread in (self._disk, *self._readers.values()))))

    async def save(
        self, base: Base, configuration_index: int, configuration: Configuration, data: Iterable[bytes]
    ) -> Snapshot:
        """Raises RuntimeError if this is stopped meanwhile."""
        given = self._until_stopped(data)
        made: Snapshot = await self._disk.run(self.store.save, base, configuration_index, configuration, given)
        return made

    async def reap(self, in_use: Sequence[Snapshot]) -> None:
        # What is still leaving is for followers that the core may have let go of meanwhile: a member that was removed.
        leaving = [snapshot for snapshot, task in self._serving.values() if not task.done()]
        await self._disk.run(self.store.reap, [*in_use, *leaving])

    def work(self, work: SnapshotWork) -> None:
        """Have it done after all that was asked for before."""

        def perform() -> int:
            return 0 if self._stopped else self.store.perform(work)

        def done(outcome: int, error: Exception | None) -> None:
            if self._stopped:
                return
            if error is not None:
                self._failed(error)
            else:
                self._done(work, outcome)

        self._disk.call(perform, done)

    def serve(self, request: SnapshotChunkRequest, snapshot: Snapshot) -> None:
        """Send what a follower asks for."""
        site = request.sender
        self._senders.setdefault(site, SnapshotSender()).request(request)
        serving = self._serving.get(site)
        if serving is None or serving[1].done():
            task = asyncio.get_running_loop().create_task(self._serve(request, snapshot))
            self._serving[site] = snapshot, task

    def _until_stopped(self, data: Iterable[bytes]) -> Iterator[bytes]:
        """A whole snapshot may take minutes on a disk that does not hang."""
        for part in data:
            if self._stopped:
                raise RuntimeError("the transfers of snapshots have been stopped")
            yield part

    async def _serve(self, request: SnapshotChunkRequest, snapshot: Snapshot) -> None:
        """Until the follower has what it asked for, and whatever it asks for meanwhile of the same snapshot."""
        sender = self._senders[request.sender]
        reader = self._readers.setdefault(request.sender, DiskThread(f"raft-snapshot-to-{request.sender}"))
        loop = asyncio.get_running_loop()
        try:
            if snapshot not in self._verified:
                # What is damaged here would be refused there only as a whole, again and again.
                await reader.run(lambda: [None for _ in self._until_stopped(self.store.data(snapshot))])
                self._verified.add(snapshot)
            while sender.name == (snapshot.last_index, snapshot.checksum) and (chunk := sender.next(self._chunk_bytes)):
                offset, length = chunk
                data = await reader.run(self.store.read, snapshot, offset, length)
                if self._rate:
                    self._free_at = max(self._free_at, loop.time()) + length / self._rate
                    await asyncio.sleep(self._free_at - loop.time())
                self._send(
                    [
                        SnapshotChunk(
                            request.sender, request.to, request.term, snapshot.last_index, snapshot.checksum,
                            offset, chunk_checksum(data), data,
                        )
                    ]
                )  # fmt: skip
        except Exception as error:
            self._failed(error)
