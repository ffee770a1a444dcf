"""The driver: gives the pure part (participant.py) its clock, its network and its disk.

One thread, the event loop's, owns all Raft state. Whatever comes in is fed to the participant at once, and `_pump`
takes out what is to be done: immediately while nothing is being written, else once for all that came in this turn of
the loop. Only the synced write runs in another thread; one is under way at a time, and all that is ready when it ends
is the next one. So an idle site writes immediately, and a busy one writes large batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mysqlraft.raft.beat import to_beat
from mysqlraft.raft.calls import Calls
from mysqlraft.raft.configuration import NOBODY, Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.counters import Counters
from mysqlraft.raft.disk import DiskThread, Sweeper
from mysqlraft.raft.entry import Entry
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.log import LogDivergence
from mysqlraft.raft.messages import Message
from mysqlraft.raft.participant import Participant
from mysqlraft.raft.peers import Membership, Peers
from mysqlraft.raft.ready import Ready
from mysqlraft.raft.roles import Role
from mysqlraft.raft.snapshot import Snapshot, SnapshotWork
from mysqlraft.raft.snapshot_store import SnapshotStore
from mysqlraft.raft.snapshot_transfer import SnapshotTransfers
from mysqlraft.raft.store import Compacted, Store, StoreError, Write
from mysqlraft.raft.ticker import Ticker
from mysqlraft.raft.tls import Tls
from mysqlraft.raft.transport import Transport

logger = logging.getLogger(__name__)

HANDOVER_SECONDS = 1.0
RECORD_SECONDS = 1.0
"""How often a commit index that no other write has carried is written down. It is a hint for the next start."""


@dataclass(slots=True)
class _Waiter:
    index: int
    future: asyncio.Future[None]


class Node:
    """One running site of the cluster. Everything here is called on the event loop.

    The caller opens the store, bootstraps it if it is a founding site's, and closes it after `stop` if that says so.
    """

    def __init__(
        self,
        site: int,
        cluster: str,
        store: Store,
        listen: str,
        *,
        addresses: Mapping[int, str] | None = None,
        limits: Limits | None = None,
        tick_seconds: float = 0.1,
        random: Random | None = None,
        tls: Tls | None = None,
        names: Mapping[int, str] | None = None,
        snapshots: SnapshotStore | None = None,
        snapshot_bytes_per_second: int = 0,
    ) -> None:
        """`addresses` ("host:port" by site) are used instead of those in the configuration: for a way around. `names`
        are used where the configuration has none: with `tls`, a site's certificate has to hold its name. Without
        `snapshots` this site neither gives nor takes any; they leave at `snapshot_bytes_per_second` at most, 0 for as
        fast as they can."""
        random = random or Random()
        self.site = site
        self._store = store
        self._listen = listen
        self._tick_seconds = tick_seconds
        latest = snapshots.latest() if snapshots is not None else None
        self._participant = Participant(site, store, random, limits, latest)
        self._core = self._participant.core
        # The transport asks the peers, and is told of them.
        self._peers = Peers(self._core, addresses or {}, names or {}, lambda peers: self.transport.set_peers(peers))
        self.transport = Transport(
            site,
            cluster,
            self._peers,
            on_message=self._on_message,
            on_reset=self._on_reset,
            random=Random(random.getrandbits(64)),
            tls=tls,
        )
        self.transport.on_failure = self._fail
        self._counters = Counters()
        self.calls = Calls(self.transport.call, random.getrandbits(62))
        self.transport.on_call = self.calls.received
        self._transfers: SnapshotTransfers | None = None
        if snapshots is not None:
            self._transfers = SnapshotTransfers(
                snapshots,
                chunk_bytes=self._core.limits.snapshot_chunk_bytes,
                bytes_per_second=snapshot_bytes_per_second,
                send=self.transport.send,
                done=self._on_snapshot_work,
                failed=self._fail,
            )
        self._sweeper = Sweeper(store, self._fail)
        self._pump_scheduled = False
        self._queue: list[Ready] = []
        """Given out by the core, not yet handed to the writer."""
        self._writing = False
        self._writer: DiskThread | None = None
        self._ticker = Ticker(tick_seconds, self._pass_ticks, self._quiet_ticks, self._pump)
        self._recorder: asyncio.TimerHandle | None = None
        self._waiters: list[_Waiter] = []
        self._watchers: list[Callable[[], None]] = []
        self._reads: set[asyncio.Future[int]] = set()
        self._transition: asyncio.Future[None] | None = None
        self._last_commit = self.commit_index
        self._failed: asyncio.Future[None] | None = None
        self._stopped = False
        self._disk_came_back = True

    # ---- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, dial, tick. Raises OSError if it cannot listen."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        await self.transport.start(self._listen)
        self._writer = DiskThread("raft-writer")
        self._peers.refresh()
        self._ticker.start()
        self._recorder = loop.call_later(to_beat(RECORD_SECONDS), self._record)
        self._sweeper.start()  # what a compaction before the last end has left
        self._schedule_pump()

    async def stop(self) -> bool:
        """Hand over leadership if this site has it, close all connections, finish what the disk is doing. Bounded:
        whether the disk has come back from all calls. If not, the store cannot be closed; the process can end."""
        if self._stopped:
            return self._disk_came_back
        if self.role is Role.LEADER and not self.failed.done():
            await self._hand_over()
        self._stopped = True
        self._stop_timers()
        await self.calls.stop()
        self._peers.stop()
        await self.transport.stop()
        ending = [self._sweeper.stop()]
        if self._transfers is not None:
            ending.append(self._transfers.stop())
        if self._writer is not None:
            if not self._writing and not self.failed.done() and (commit := self._core.commit_to_record()) is not None:
                self._start_write([commit], [])
            ending.append(self._writer.stop())
        self._disk_came_back = all(await asyncio.gather(*ending))
        stopped = ConnectionError("the node has stopped")
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(stopped)
        for read in self._reads:
            if not read.done():
                read.set_exception(stopped)
        return self._disk_came_back

    @property
    def failed(self) -> asyncio.Future[None]:
        """Gets the exception that this site cannot live with (a storage error, a log that differs). The daemon has to
        exit then: its supervisor starts it again from what is on disk."""
        if self._failed is None:
            raise RuntimeError("the node is not started")
        return self._failed

    # ---- proposals and what became of them ------------------------------------------------------------------------

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """Have `payload` put into the log, wherever the leader is: in order, at least once, and counting once by the
        rule of sessions.SessionTable. Returns at once; see `outstanding_bytes` for when to hold back."""
        self._ticker.catch_up()
        self._participant.propose(session, sequence, payload)
        self._schedule_pump()

    @property
    def outstanding_bytes(self) -> int:
        """Of this site's proposals that are not yet committed."""
        return self._participant.forwarder.outstanding_bytes

    @property
    def outstanding_proposals(self) -> int:
        """How many of this site's proposals are not yet committed: the last so many of its session."""
        return len(self._participant.forwarder)

    @property
    def commit_index(self) -> int:
        """Everything up to here is committed, and on this site's disk."""
        log = self._core.log
        return min(log.commit, log.stable)

    @property
    def first_index(self) -> int:
        """The first entry that is still in the log."""
        return self._core.log.first_index

    @property
    def last_index(self) -> int:
        return self._core.log.last_index

    def committed_entries(self, first_index: int, max_bytes: int) -> Sequence[Entry]:
        """The committed entries from `first_index` on: at least one if there is one, no more than fit into
        `max_bytes`. Raises Compacted if they are no longer in the log, and StoreError if they are damaged, which ends
        this site, too."""
        try:
            return self._core.log.slice(first_index, self.commit_index, max_bytes)
        except Compacted:
            raise
        except StoreError as error:
            self._fail(error)  # of what this site has acknowledged
            raise

    async def wait_committed(self, index: int) -> None:
        """Until `commit_index` is at least `index`."""
        if self.commit_index >= index:
            return
        waiter = _Waiter(index, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter.future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def watch_commits(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` whenever `commit_index` has grown, until what this returns is called."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    # ---- compaction and snapshots ---------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot | None:
        """The latest that this site holds, of its own or received."""
        return self._core.snapshot

    def snapshot_data(self, snapshot: Snapshot) -> Iterator[bytes]:
        """What the FSM had put into it. Reads the disk; raises StoreError if it is damaged."""
        if self._transfers is None:
            raise RuntimeError("the node has no snapshots")
        return self._transfers.store.data(snapshot)

    async def save_snapshot(self, index: int, data: Iterable[bytes]) -> Snapshot:
        """Keep a snapshot of the FSM after the committed entry `index`. `data` is read in another thread. Raises
        StoreError, and RuntimeError when this node stops meanwhile."""
        if self._transfers is None:
            raise RuntimeError("the node has no snapshots")
        snapshot = await self._transfers.save(*self._core.log.snapshot_point(index), data)
        self._ticker.catch_up()
        self._core.install(snapshot)
        in_use = [
            progress.snapshot for progress in self._core.followers.progress.values() if progress.snapshot is not None
        ]
        await self._transfers.reap(in_use)
        logger.info("snapshot taken site=%d index=%d bytes=%d", self.site, index, snapshot.size)
        return snapshot

    def compact(self, index: int) -> int:
        """See RaftCore.compact. The space is freed later, and slowly."""
        self._ticker.catch_up()
        reached = self._participant.compact(index)
        self._schedule_pump()
        return reached

    def _on_snapshot_work(self, work: SnapshotWork, outcome: int) -> None:
        if self._stopped or self.failed.done():
            return
        self._ticker.catch_up()
        try:
            if self._participant.snapshot_work_done(work, outcome):
                logger.info("snapshot installed site=%d index=%d", self.site, work.snapshot.last_index)
        except Exception as error:
            self._fail(error)
        self._schedule_pump()

    # ---- the cluster ----------------------------------------------------------------------------------------------

    @property
    def leader(self) -> int:
        """The leader's site id as far as this site knows, 0 for none."""
        return self._core.leader

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def role(self) -> Role:
        return self._core.role

    @property
    def configuration(self) -> Configuration | None:
        """The members by the latest configuration in this site's log; None before it has one."""
        return self._core.configuration

    @property
    def configuration_index(self) -> int:
        return self._core.configuration_index

    @property
    def transferee(self) -> int:
        """Whom this leader is handing over to, 0 for nobody."""
        return self._core.transferee

    def lag(self, site: int) -> str:
        """See Followers.lag."""
        return self._core.followers.lag(site)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if it is not in the log."""
        return self._core.log.term(index)

    @property
    def membership(self) -> tuple[Membership, str]:
        """See Peers.membership."""
        return self._peers.membership

    async def next_transition(self) -> None:
        """Until the next change of role, term or leader, or the end of a transfer."""
        if self._transition is None:
            self._transition = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._transition)

    async def read_index(self) -> int:
        """An index that covers everything committed, anywhere, before this call: once it is applied here, a local
        read is linearizable. Asks again until it gets an answer; bound it with asyncio.timeout."""
        patience = self._core.limits.election_ticks * self._tick_seconds
        while True:
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._reads.add(answer)
            try:
                self._ticker.catch_up()
                self._core.read_index(answer)
                self._schedule_pump()
                async with asyncio.timeout(patience):
                    return await answer
            except TimeoutError:
                continue  # with a fresh future: a late answer to this attempt is not one to the next
            finally:
                self._reads.discard(answer)

    def transfer(self, target: int = NOBODY) -> int:
        """See RaftCore.transfer."""
        self._ticker.catch_up()
        chosen = self._core.transfer(target)
        self._schedule_pump()
        return chosen

    def propose_change(self, change: Change, server: Server, expected_index: int, force: bool = False) -> int:
        """See RaftCore.propose_change."""
        self._ticker.catch_up()
        index = self._core.propose_change(change, server, expected_index, force)
        self._schedule_pump()
        return index

    def status(self) -> dict[str, Any]:
        """What there is to know, for people and programs."""
        self._ticker.catch_up()
        core, log, receiver = self._core, self._core.log, self._participant.receiver
        configuration = core.configuration
        peers: dict[int, dict[str, Any]] = {}
        for site in configuration.servers if configuration is not None else ():
            if site == self.site:
                continue
            progress = core.followers.progress.get(site)
            round_trip = self.transport.round_trip(site)
            peers[site] = {
                "connected": self.transport.connected(site),
                "problem": self.transport.problem(site),
                "rtt_ms": None if round_trip is None else round(round_trip * 1000, 3),
                "match": progress.match if progress else None,
                "next": progress.next_index if progress else None,
                "inflight_bytes": progress.inflights.bytes if progress else None,
                "state": progress.state.value if progress else None,
                "snapshot": None
                if progress is None or progress.snapshot is None
                else {
                    "index": progress.snapshot.last_index,
                    "bytes": progress.snapshot.size,
                    "sent": progress.snapshot_offset,
                },
            }
        return {
            "site": self.site,
            "role": core.role.value,
            "term": core.term,
            "leader": core.leader,
            "commit_index": self.commit_index,
            "first_index": log.first_index,
            "last_index": log.last_index,
            "stable_index": log.stable,
            "last_contact_ms": round(core.ticks_since_leader * self._tick_seconds * 1000),
            "outstanding_proposals": self.outstanding_proposals,
            "outstanding_bytes": self.outstanding_bytes,
            "storage_stalled": core.storage_stalled,
            "configuration_index": core.configuration_index,
            "configuration_committed": core.configuration_index <= core.commit_index,
            "membership": self.membership[0].value,
            "membership_reason": self.membership[1],
            "transfer": core.transferee or None,
            "members": {
                site: server.shown()
                for site, server in (configuration.servers.items() if configuration is not None else ())
            },
            "peers": peers,
            "snapshot": None
            if core.snapshot is None
            else {
                "index": core.snapshot.last_index,
                "bytes": core.snapshot.size,
            },
            "receiving": None
            if receiver.snapshot is None
            else {
                "index": receiver.snapshot.last_index,
                "bytes": receiver.snapshot.size,
                "received": receiver.written,
                "refused": receiver.refused,
            },
            "log_bytes": self._store.size(),
            "counters": self._counters.to_dict(),
        }

    # ---- inputs ---------------------------------------------------------------------------------------------------

    def _quiet_ticks(self) -> int:
        """How many ticks nobody has to wake up for: only so many that a stall of half an election timeout is told from
        a leader that is silent for as long."""
        return min(self._participant.quiet_ticks, max(0, self._core.limits.election_ticks // 2 - 1))

    def _pass_ticks(self, ticks: int) -> None:
        try:
            for site in self._core.followers.overdue():
                if self.transport.delivers(site):
                    self._core.followers.delayed(site)
            for _ in range(ticks):
                self._participant.tick()
        except Exception as error:
            self._fail(error)

    def _record(self) -> None:
        self._recorder = asyncio.get_running_loop().call_later(to_beat(RECORD_SECONDS), self._record)
        if not self._writing and not self._queue and (commit := self._core.commit_to_record()) is not None:
            self._start_write([commit], [])

    def _on_message(self, message: Message) -> None:
        if self._stopped or self.failed.done():
            return
        self._ticker.catch_up()
        try:
            self._participant.step(message)
        except Exception as error:
            self._fail(error)
        if self._writing:
            self._schedule_pump()
        else:
            self._pump()  # nothing to wait for: whoever is idle saves a turn of the loop

    def _on_reset(self, site: int) -> None:
        self._ticker.catch_up()
        self._participant.connection_lost(site)
        self._schedule_pump()

    # ---- outputs --------------------------------------------------------------------------------------------------

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled and self._writer is not None:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_pump)

    def _scheduled_pump(self) -> None:
        self._pump_scheduled = False
        self._pump()

    def _pump(self) -> None:
        if self._stopped or self.failed.done():
            return
        try:
            ready = self._participant.ready()
            self._ticker.settle()
            if self._participant.observing:
                self._schedule_pump()
            if ready is None:
                return
            self._take(ready)
        except Exception as error:
            self._fail(error)
            return
        # The others first: their disks are to work at the same time as ours, whose thread waits for the interpreter
        # anyway until this turn is over.
        if ready.messages:
            self.transport.send(ready.messages)
        self._start_next_write()
        self._tell_commit()

    def _take(self, ready: Ready) -> None:
        for transition in ready.transitions:
            role, term, leader, reason = transition
            logger.info(
                "role change site=%d role=%s term=%d leader=%d reason=%r", self.site, role.value, term, leader, reason
            )
            self._counters.transition(transition)
            if self._transition is not None:
                self._transition.set_result(None)
                self._transition = None
        if ready.entries_to_append:
            self._counters.appended(ready.entries_to_append[-1].index, asyncio.get_running_loop().time())
        for read in ready.read_states:
            if not read.context.done():
                read.context.set_result(read.index)
        if ready.write is not None or ready.promises:
            self._queue.append(ready)
        if self._transfers is not None and (ready.chunk_requests or ready.snapshot_work):
            for work in ready.snapshot_work:
                self._transfers.work(work)
            for request in ready.chunk_requests:
                progress = self._core.followers.progress.get(request.sender)
                if progress is not None and progress.snapshot is not None:
                    self._transfers.serve(request, progress.snapshot)
        self._peers.refresh()

    def _start_next_write(self) -> None:
        if self._writing or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._start_write([ready.write for ready in batch if ready.write is not None], batch)

    def _start_write(self, writes: list[Write], batch: list[Ready]) -> None:
        if self._writer is None:
            return
        try:
            prepared = self._store.prepare(writes)
        except Exception as error:
            self._fail(error)
            return
        self._writing = True
        begun = asyncio.get_running_loop().time()
        self._writer.call(prepared, lambda _, error: self._written(batch, begun, error))

    def _written(self, batch: list[Ready], begun: float, error: Exception | None) -> None:
        self._writing = False
        self._counters.writes.observe(asyncio.get_running_loop().time() - begun)
        if error is not None:
            self._fail(error)
            return
        if self._stopped or self.failed.done():
            return
        promises: list[Message] = []
        try:
            for ready in batch:
                self._participant.advance(ready)
                promises += ready.promises
                if ready.write is not None and ready.write.rebase is not None:
                    self._sweeper.start()
        except Exception as failure:
            self._fail(failure)
            return
        if promises:
            self.transport.send(promises)
        self._start_next_write()
        self._pump()
        self._tell_commit()

    def _tell_commit(self) -> None:
        commit = self.commit_index
        if commit == self._last_commit:
            return
        self._last_commit = commit
        self._counters.committed(commit, asyncio.get_running_loop().time())
        for watcher in self._watchers:
            watcher()
        for waiter in [waiter for waiter in self._waiters if waiter.index <= commit]:
            self._waiters.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _fail(self, error: Exception) -> None:
        """This site can no longer keep its promises: it says nothing more. Any exception out of the pure part is of
        this kind, expected or not: it leaves a state that nobody has thought about."""
        if self.failed.done():
            return
        expected = isinstance(error, StoreError | LogDivergence | ConfigurationError)
        logger.critical("raft stopped site=%d reason=%r", self.site, str(error), exc_info=None if expected else error)
        self.failed.set_exception(error)
        self.failed.exception()  # whoever awaits it still gets it; this only keeps asyncio from complaining
        self._stop_timers()

    def _stop_timers(self) -> None:
        self._ticker.stop()
        if self._recorder is not None:
            self._recorder.cancel()

    async def _hand_over(self) -> None:
        configuration = self._core.configuration
        voters = configuration.voters if configuration is not None else ()
        if not self._core.accepts_proposals or not any(self.transport.connected(site) for site in voters):
            return
        chosen = self.transfer()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANDOVER_SECONDS):
                while self.role is Role.LEADER:
                    await self.next_transition()
        logger.info("leadership handed over site=%d to=%d done=%s", self.site, chosen, self.role is not Role.LEADER)
