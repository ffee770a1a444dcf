"""The cluster in virtual time: sites, their disks and the network between them.

Every site runs the same Participant that node.py drives; this file is the other driver. It takes a seed's schedule,
applies it, lets the observer (checks.py) look at everything, and at the end heals all and demands liveness.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random

from mysqlraft.raft import (
    Change,
    Configuration,
    ConfigurationError,
    Limits,
    MemorySnapshotStore,
    MemoryStore,
    NotLeader,
    Participant,
    Ready,
    Role,
    Server,
    bootstrap,
)
from mysqlraft.raft.messages import Message, SnapshotChunk, SnapshotChunkRequest
from mysqlraft.raft.snapshot import SnapshotSender, SnapshotWork, chunk_checksum
from tests.raft.ledger import Ledger
from tests.simulation.checks import Checks, Violation
from tests.simulation.schedule import TICK, Event, Schedule

LIMITS = Limits(
    election_ticks=10,
    heartbeat_ticks=2,
    append_bytes=1200,
    probe_bytes=300,
    window_bytes=4000,
    watchdog_ticks=30,
    preference_ticks=30,
    cache_bytes=4000,
    snapshot_chunk_bytes=60,
    snapshot_window_bytes=240,
)
CALM_TICKS = 600
"""Within this long after the last fault everything has to be settled."""
TRACE_LENGTH = 400
QUIET_TICKS = 100
"""For so long, once all is settled, nobody else may take over where priorities differ."""


class Site:
    """One site: what survives a crash (the stores, the replica's counters) and what does not (the participant, the
    FSM)."""

    def __init__(self, number: int, world: World, configuration: Configuration | None) -> None:
        self.id = number
        self._world = world
        self.store = MemoryStore()
        self.snapshots = MemorySnapshotStore()
        if configuration is not None:
            bootstrap(self.store, configuration)
        self.alive = True
        self.incarnation = 0
        self.commit = 0
        """The greatest commit index seen in this incarnation."""
        self.led = 0
        """The term that it led when it was last looked at, 0 if it did not lead."""
        self.recent_last: deque[int] = deque(maxlen=2 * LIMITS.election_ticks)
        """While it leads: the last index of its log at each of its last ticks."""
        self.session = 1
        self.sequence = 0
        self.period = world.random.choice((8, 9, 10, 10, 10, 11, 12))
        """Its clock's tick, in units of time: clocks differ."""
        self.stalled_until = 0
        self.outstanding: deque[Ready] = deque()
        self._turn_pending = False
        self._snapshot_work: deque[SnapshotWork] = deque()
        self._senders: dict[int, SnapshotSender] = {}
        self.ledger = Ledger()
        self.participant = self._new_participant()

    def _new_participant(self) -> Participant:
        latest = self.snapshots.latest()
        participant = Participant(self.id, self.store, Random(self._world.random.getrandbits(32)), LIMITS, latest)
        self.commit = participant.core.log.commit
        self.ledger = Ledger()
        if latest is not None:
            self.ledger.restore(self.snapshots.data(latest))
        return participant

    def crash(self, survivors: int) -> None:
        self.alive = False
        self.led = 0
        self.incarnation += 1
        self.outstanding.clear()
        self._turn_pending = False
        self._snapshot_work.clear()
        self._senders.clear()
        self.store.crash(survivors)
        self.snapshots.crash(self._world.random.randrange(2000), self._world.random.random() < 0.2)

    def restart(self, how: int) -> None:
        """`how` 0: the replica process outlived the consensus process, and proposes again, in the same session, what
        it has not seen come back. Else it has a new session."""
        self.alive = True
        self.participant = self._new_participant()
        session, last = self._world.checks.sessions.last(self.id)
        if how == 0:
            first = last + 1 if session == self.session else 1
            for sequence in range(first, self.sequence + 1):
                payload = self._world.checks.proposed[self.id, self.session, sequence]
                self.participant.propose(self.session, sequence, payload)
        else:
            self.session += 1
            self.sequence = 0
        self.turn()

    def propose(self, count: int) -> None:
        for _ in range(count):
            self.sequence += 1
            payload = b"%d/%d/%d" % (self.id, self.session, self.sequence) * self._world.random.choice((1, 5, 40))
            self._world.checks.proposed[self.id, self.session, self.sequence] = payload
            self.participant.propose(self.session, self.sequence, payload)

    def input_taken(self) -> None:
        """Look at the output, now or a little later."""
        wait = self._world.schedule.profile.turn
        if wait and not self._world.calm:
            if not self._turn_pending:
                self._turn_pending = True
                incarnation = self.incarnation
                self._world.after(self._world.random.randrange(wait + 1), lambda: self._late_turn(incarnation))
        else:
            self.turn()

    def _late_turn(self, incarnation: int) -> None:
        if self.alive and incarnation == self.incarnation:
            self._turn_pending = False
            self.turn()

    def turn(self) -> None:
        world = self._world
        while (ready := self.participant.ready()) is not None:
            world.checks.ready(self, ready)
            for transition in ready.transitions:
                world.note("site", self.id, transition)
            for read in ready.read_states:
                if read.index < read.context:
                    raise Violation(
                        f"linearizable read: site {self.id} may read at {read.index}, {read.context} was committed"
                    )
            for message in ready.messages:
                world.send(self, message)
            if ready.write is not None or ready.promises:
                self.outstanding.append(ready)
                if ready.write is not None:
                    self.store.begin([ready.write])
                if len(self.outstanding) == 1:
                    self._begin_sync()
            for request in ready.chunk_requests:
                self._serve(request)
            for work in ready.snapshot_work:
                self._snapshot_work.append(work)
                if len(self._snapshot_work) == 1:
                    self._begin_snapshot_work()
        self._apply()

    def _apply(self) -> None:
        """Feed the FSM what is committed and on disk here, from a snapshot if the log does not reach back so far."""
        log = self.participant.core.log
        base, end = log.base.index, min(log.commit, log.stable)
        if self.ledger.index < base <= end:
            latest = self.snapshots.latest()
            if latest is None or latest.last_index < base:
                raise Violation(f"site {self.id} has compacted up to {base} and holds no snapshot of that: {latest}")
            self.ledger.restore(self.snapshots.data(latest))
        while self.ledger.index < end:
            for entry in log.slice(self.ledger.index + 1, end, 10_000):
                self.ledger.apply(entry)
        self._world.checks.applied(self)

    def snapshot(self, trailing: int) -> None:
        """Take one of what is applied, and compact the log but for so many entries before it."""
        index = self.ledger.index
        log = self.participant.core.log
        latest = self.snapshots.latest()
        if log.base.index < index and (latest is None or latest.last_index < index):
            point = self.participant.core.snapshot_point(index)
            latest = self.snapshots.save(*point, self.ledger.snapshot())
            self.participant.core.install(latest)
            in_use = [each.snapshot for each in self.participant.core.progress.values() if each.snapshot is not None]
            self.snapshots.reap(in_use)
        if latest is not None:
            self.participant.compact(latest.last_index - trailing)

    def _serve(self, request: SnapshotChunkRequest) -> None:
        sender = self._senders.setdefault(request.sender, SnapshotSender())
        sender.request(request)
        wanted = (request.last_index, request.snapshot_checksum)
        snapshot = next((each for each in self.snapshots.saved if (each.last_index, each.checksum) == wanted), None)
        if snapshot is None:
            raise Violation(f"site {self.id} does not hold the snapshot any more that it offered: {request}")
        while (chunk := sender.next(LIMITS.snapshot_chunk_bytes)) is not None:
            data = self.snapshots.read(snapshot, *chunk)
            checksum = chunk_checksum(data)
            if not self._world.calm and self._world.random.random() < self._world.schedule.profile.damage:
                data = bytes([data[0] ^ 1]) + data[1:]
            self._world.send(
                self,
                SnapshotChunk(
                    request.sender, self.id, request.term, *wanted, chunk[0], checksum, data
                ),
            )  # fmt: skip

    def _begin_snapshot_work(self) -> None:
        world = self._world
        delay = 0 if world.calm else world.random.randrange(world.schedule.profile.sync + 1)
        incarnation = self.incarnation
        world.after(delay, lambda: self._snapshot_work_done(incarnation))

    def _snapshot_work_done(self, incarnation: int) -> None:
        if not self.alive or incarnation != self.incarnation:
            return
        work = self._snapshot_work.popleft()
        outcome = self.snapshots.perform(work)
        if self.participant.snapshot_work_done(work, outcome):
            self._world.checks.installed += 1
            self._world.note("site", self.id, "installs", work.snapshot)
        if self._snapshot_work:
            self._begin_snapshot_work()
        self.turn()

    def _begin_sync(self) -> None:
        world = self._world
        delay = 0 if world.calm else world.random.randrange(world.schedule.profile.sync + 1)
        if world.time < self.stalled_until:
            delay += self.stalled_until - world.time
        incarnation = self.incarnation
        world.after(delay, lambda: self._synced(incarnation, len(self.outstanding)))

    def _synced(self, incarnation: int, count: int) -> None:
        """The disk is done with all that was there when the sync began."""
        if not self.alive or incarnation != self.incarnation:
            return
        for _ in range(min(count, len(self.outstanding))):
            ready = self.outstanding.popleft()
            if ready.write is not None:
                self.store.sync()
            self.participant.advance(ready)
            for message in ready.promises:
                self._world.send(self, message)
        if self.outstanding:
            self._begin_sync()
        self.turn()


class World:
    """One run of one schedule."""

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.schedule = schedule
        self.random = Random(seed ^ 0x5EED)
        self.time = 0
        self.calm = False
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._cut: set[tuple[int, int]] = set()
        self.trace: deque[tuple[object, ...]] = deque(maxlen=TRACE_LENGTH)
        profile = schedule.profile
        configuration = Configuration(
            Server(
                site,
                f"site{site}",
                f"host{site}:1000",
                site <= profile.voters,
                site == profile.witness,
                profile.priorities[site - 1],
            )
            for site in range(1, profile.sites + 1)
        )
        self.sites: dict[int, Site] = {}
        self.checks = Checks(self.sites)
        for site in range(1, profile.sites + 1):
            self.sites[site] = Site(site, self, configuration if site <= profile.voters else None)
        for each in self.sites.values():
            self.after(self.random.randrange(TICK), lambda each=each: self._tick(each))  # type: ignore[misc]

    def note(self, *what: object) -> None:
        self.trace.append((self.time, *what))

    def after(self, delay: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.time + delay, self._count, action))

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Violation."""
        for event in self.schedule.events:
            self.after(event.time, lambda event=event: self._apply(event))  # type: ignore[misc]
        self._run_until(self.schedule.profile.duration)
        self._calm_down()
        deadline = self.time + CALM_TICKS * TICK
        while not self._settled():
            if self.time >= deadline:
                raise Violation(f"liveness: not settled {CALM_TICKS} ticks after the last fault: {self._unsettled()}")
            self._run_until(self.time + 5 * TICK)
        if any(self.schedule.profile.priorities) or self.schedule.profile.witness:
            terms = {site.id: site.participant.core.term for site in self._members()}
            self._run_until(self.time + QUIET_TICKS * TICK)
            if terms != {site.id: site.participant.core.term for site in self._members()}:
                raise Violation(f"flapping: the leadership moved after all was settled: {self._unsettled()}")

    def _run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.time, _, action = heapq.heappop(heap)
            action()
        self.time = end

    def _tick(self, site: Site) -> None:
        self.after(site.period, lambda: self._tick(site))
        if site.alive:
            site.participant.tick()
            core = site.participant.core
            if core.role is Role.LEADER and core.term == site.led:
                site.recent_last.append(core.log.last_index)
            else:
                site.recent_last.clear()
            site.input_taken()

    # ---- the network ----------------------------------------------------------------------------------------------

    def send(self, site: Site, message: Message) -> None:
        self.checks.sent(site, message)
        if message.to not in self.sites:
            raise Violation(f"message to a site that does not exist: {message}")
        profile, random = self.schedule.profile, self.random
        if self.calm:
            self._deliver_after(random.randrange(1, 4), message)
            return
        if (site.id, message.to) in self._cut or random.random() < profile.drop:
            self.note("lost", message)
            return
        self._deliver_after(random.randrange(1, profile.delay + 1), message)
        if random.random() < profile.duplicate:
            self._deliver_after(random.randrange(1, 4 * profile.delay + 1), message)

    def _deliver_after(self, delay: int, message: Message) -> None:
        self.after(delay, lambda: self._deliver(message))

    def _deliver(self, message: Message) -> None:
        site = self.sites[message.to]
        if site.alive:
            self.note("arrives", message)
            site.participant.step(message)
            site.input_taken()

    # ---- the schedule ---------------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        if self.calm:
            return
        self.note("EVENT", event)
        site = self.sites.get(event.site)
        if event.what == "heal":
            self._cut.clear()
        elif event.what == "transfer":
            self._transfer(event.other)
        elif event.what == "snapshot-all":
            for each in self.sites.values():
                if each.alive:
                    self._apply_to(each, event._replace(what="snapshot"))
        elif event.what == "restart-all":
            for each in self.sites.values():
                if not each.alive:
                    each.restart(event.number)
        elif event.what.endswith("-leader"):
            self._apply_to_leaders(event)
        elif event.what == "split":
            inside = {number for number in self.sites if event.number >> (number - 1) & 1}
            self._cut |= {(a, b) for a in self.sites for b in self.sites if (a in inside) != (b in inside)}
        elif site is not None:
            self._apply_to(site, event)

    def _apply_to_leaders(self, event: Event) -> None:
        for site in self._leaders():
            if event.what == "whisper-leader":
                # It reaches only one other site, and that one only it.
                pair = {site.id, event.other}
                self._cut |= {(a, b) for a in self.sites for b in self.sites if (a in pair) != (b in pair)}
            else:
                self._apply_to(site, event._replace(what=event.what.removesuffix("-leader")))

    def _apply_to(self, site: Site, event: Event) -> None:
        others = [number for number in self.sites if number != site.id]
        if event.what == "restart":
            if not site.alive:
                site.restart(event.number)
        elif not site.alive:
            return
        elif event.what == "propose":
            site.propose(event.number)
            site.input_taken()
        elif event.what == "snapshot":
            site.snapshot(event.number)
            site.input_taken()
        elif event.what == "crash":
            site.crash(event.number)
        elif event.what == "isolate":
            self._cut |= {(site.id, other) for other in others} | {(other, site.id) for other in others}
        elif event.what == "cut":
            self._cut |= {(site.id, event.other), (event.other, site.id)}
        elif event.what == "cut-one-way":
            self._cut.add((site.id, event.other))
        elif event.what == "stall-disk":
            site.stalled_until = self.time + event.number
        elif event.what == "reset":
            site.participant.connection_lost(event.other)
            site.input_taken()
        elif event.what == "read":
            site.participant.core.read_index(len(self.checks.committed))
            site.input_taken()
        elif event.what in ("change", "demote", "promote", "set"):
            self._change(event)
        elif event.what == "late-change":
            for leader in self._leaders():
                known = leader.participant.core.configuration_index
                self.after(event.other, lambda known=known: self._change(event, known))  # type: ignore[misc]

    def _leaders(self) -> list[Site]:
        return [site for site in self.sites.values() if site.alive and site.participant.core.role is Role.LEADER]

    def _transfer(self, target: int) -> None:
        for leader in self._leaders():
            try:
                leader.participant.core.transfer(target)
            except (NotLeader, ConfigurationError):
                continue
            leader.input_taken()

    def _change(self, event: Event, known: int | None = None) -> None:
        """`known`: the index of the configuration that whoever wishes this has seen, if it may be an old one."""
        site, number = event.site, event.number
        for leader in () if self.calm else self._leaders():
            core = leader.participant.core
            if core.configuration is None:
                continue
            present = core.configuration.servers.get(site)
            if present is None:
                change = Change.ADD_NONVOTER
            elif event.what == "set":
                change = Change.READDRESS if number < 3 else Change.PRIORITIZE
            elif event.what in ("promote", "demote"):
                change = Change(event.what)
            elif not present.voter:
                change = Change.PROMOTE
            else:
                change = Change.REMOVE if number == 0 else Change.DEMOTE
            witness = site == self.schedule.profile.witness
            server = Server(site, f"site{site}", f"host{site}:{1000 + number}", witness=witness, priority=number)
            latest = core.configuration_index
            needed = self._to_catch_up(leader)
            try:
                core.propose_change(change, server, latest if known is None else known)
            except (NotLeader, ConfigurationError):
                continue
            if known is not None and known != latest:
                raise Violation(f"compare-and-set: site {core.site} took a change of {known}, but {latest} is in force")
            if change is Change.PROMOTE and not self.checks.holds(core.log, self.sites[site].store, needed):
                raise Violation(f"catch-up: site {site} is promoted without entry {needed} on its disk")
            leader.input_taken()

    @staticmethod
    def _to_catch_up(leader: Site) -> int:
        """What a member needs to have been caught up: at least what the leader's log held two election timeouts ago,
        or what it began its term with."""
        core = leader.participant.core
        if len(leader.recent_last) == leader.recent_last.maxlen:
            return leader.recent_last[0]
        first = core.log.last_index
        while core.log.term(first - 1) == core.term:
            first -= 1
        return first if core.log.term(first - 1) is not None else 0  # where its term began is compacted away

    # ---- the end --------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self.calm = True
        self.note("CALM")
        self._cut.clear()
        for site in self.sites.values():
            site.stalled_until = 0
            if not site.alive:
                site.restart(1)
            site.propose(1)
            site.input_taken()

    def _members(self) -> list[Site]:
        """The sites that the last committed configuration has, by the best-informed leader."""
        leaders = sorted(self._leaders(), key=lambda site: site.participant.core.term)
        if not leaders or (configuration := leaders[-1].participant.core.configuration) is None:
            return []
        return [self.sites[site] for site in configuration.servers]

    def _settled(self) -> bool:
        members = self._members()
        if not members:
            return False
        last = {site.participant.core.log.last_index for site in members}
        commits = {site.participant.core.log.commit for site in members}
        leaders = {site.participant.core.leader for site in members}
        configurations = {site.participant.core.configuration for site in members}
        if len(leaders) != 1 or len(configurations) != 1 or self._outranked(leaders.pop(), configurations.pop()):
            return False
        return (
            len(last) == 1
            and last == commits
            and {site.ledger.index for site in members} == last
            and all(len(site.participant.forwarder) == 0 for site in members)
            and all(self.checks.sessions.last(site.id) == (site.session, site.sequence) for site in members)
        )

    @staticmethod
    def _outranked(leader: int, configuration: Configuration | None) -> bool:
        """Whether some voter should rather lead: a preferred one, or any if a witness leads."""
        servers = configuration.servers if configuration is not None else {}
        return leader in servers and any(
            server.voter and server.rank > servers[leader].rank for server in servers.values()
        )

    def _unsettled(self) -> str:
        return "; ".join(
            f"site {site.id}: {core.role.value} term {core.term} leader {core.leader} log {core.log.last_index} "
            f"commit {core.log.commit} base {core.log.base.index} applied {site.ledger.index} "
            f"not committed {len(site.participant.forwarder)} "
            f"accepted {self.checks.sessions.last(site.id)} of {(site.session, site.sequence)}"
            for site in self.sites.values()
            for core in (site.participant.core,)
        )
