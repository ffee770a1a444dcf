"""The cluster in virtual time: sites, their disks and the network between them.

Every site runs the same Participant that node.py drives; this file is the other driver. It takes a seed's schedule,
applies it, lets the observer (checks.py) look at everything, and at the end heals all and demands liveness.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from random import Random
from typing import Any

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
from mysqlraft.raft.quorum import majority
from mysqlraft.raft.recovery import recover
from mysqlraft.raft.snapshot import SnapshotSender, SnapshotWork, chunk_checksum
from tests.raft.ledger import Ledger
from tests.simulation.checks import Checks, Read, Violation
from tests.simulation.schedule import TICK, Event, Schedule

LIMITS = Limits(
    election_ticks=10,
    heartbeat_ticks=2,
    append_bytes=1200,
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
STORM = 10_000
"""More at one moment is messages that bring forth messages."""
QUIET_TICKS = 50
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
        self.lost = False
        """In a disaster: it never comes back."""
        self.term = 0
        """The greatest term ..."""
        self.commit = 0
        """... and commit index seen in this incarnation."""
        self.acknowledged = (0, 0)
        """The last entry that it has told a leader to have, and its chain."""
        self.led = 0
        """The term that it led when it was last looked at, 0 if it did not lead."""
        self.recent_last: deque[int] = deque(maxlen=2 * LIMITS.election_ticks)
        """While it leads: the last index of its log at each of its last ticks."""
        self.session = 1
        self.sequence = 0
        self.reads: list[tuple[int, Read]] = []
        """(index, read): those that may be served when so much is applied."""
        self.period = world.random.choice((8, 9, 10, 10, 10, 11, 12))
        """Its clock's tick, in units of time: clocks differ."""
        self.stalled_until = 0
        self._sync_time = (world.schedule.profile.sync + 1) * (8 if number == world.schedule.profile.slow else 1)
        """Its disk takes less than this for a write."""
        self.outstanding: deque[Ready] = deque()
        self._turn_pending = False
        self._snapshot_work: deque[SnapshotWork] = deque()
        self._senders: dict[int, SnapshotSender] = {}
        self.ledger = Ledger()
        self.participant = self._new_participant()

    def _new_participant(self) -> Participant:
        latest = self.snapshots.latest()
        participant = Participant(self.id, self.store, Random(self._world.random.getrandbits(32)), LIMITS, latest)
        self.term, self.commit = participant.core.term, participant.core.log.commit
        self.ledger = Ledger()
        if latest is not None:
            self.ledger.restore(self.snapshots.data(latest))
        return participant

    def crash(self, survivors: int) -> None:
        """Of the writes that are not synced the first `survivors` are there nevertheless, and often a part of the one
        after those: the core must not rely on a batch being atomic."""
        world = self._world
        self.alive = False
        self.led = 0
        self.incarnation += 1
        self.outstanding.clear()
        self._turn_pending = False
        self._snapshot_work.clear()
        self._senders.clear()
        self.reads.clear()
        self.store.crash(survivors, world.below(8))
        self.snapshots.crash(world.below(2000), world.below(5) == 0)

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
            self.begin_session()
        self.turn()

    def begin_session(self) -> None:
        """The replica process begins anew."""
        self.session += 1
        self.sequence = 0

    def propose(self, count: int) -> None:
        checks = self._world.checks
        for _ in range(count):
            self.sequence += 1
            key = (self.id, self.session, self.sequence)
            payload = b"%d/%d/%d" % key * (1, 5, 40)[self._world.below(3)]
            checks.proposed[key] = payload
            checks.history.asked(key)
            self.participant.propose(self.session, self.sequence, payload)

    def propose_again(self, count: int) -> None:
        """A client that does not know what became of its last proposals."""
        proposed = self._world.checks.proposed
        for sequence in range(max(1, self.sequence - count), self.sequence + 1):
            self.participant.propose(self.session, sequence, proposed[self.id, self.session, sequence])

    def read(self) -> None:
        checks = self._world.checks
        self.participant.core.read_index(Read(len(checks.committed), checks.history.returned))

    def input_taken(self) -> None:
        """Look at the output, now or a little later."""
        wait = self._world.schedule.profile.turn
        if wait and not self._world.calm:
            if not self._turn_pending:
                self._turn_pending = True
                self._world.after(self._world.below(wait + 1), self._late_turn, self.incarnation)
        else:
            self.turn()

    def _late_turn(self, incarnation: int) -> None:
        if self.alive and incarnation == self.incarnation:
            self._turn_pending = False
            self.turn()

    def turn(self) -> None:
        """As node.py does it: one Ready for all inputs since the last."""
        world = self._world
        ready = self.participant.ready()
        if ready is not None:
            world.checks.ready(self, ready)
            for transition in ready.transitions:
                world.note("site", self.id, transition)
            for read in ready.read_states:
                world.checks.may_read(self, read.index, read.context)
                self.reads.append((read.index, read.context))
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
        log = self.participant.core.log
        if self.ledger.index < log.commit and self.ledger.index < log.stable:
            self._apply()
        if self.reads:
            self._serve_reads()

    def _apply(self) -> None:
        """Feed the FSM what is committed and on disk here, from a snapshot if the log does not reach back so far."""
        log, ledger, checks = self.participant.core.log, self.ledger, self._world.checks
        base, end = log.base.index, min(log.commit, log.stable)
        if ledger.index < base:
            if end < base:
                return  # a snapshot's base is being written
            latest = self.snapshots.latest()
            if latest is None or latest.last_index < base:
                raise Violation(
                    "compaction", f"site {self.id} has compacted up to {base} and holds no snapshot of that: {latest}"
                )
            ledger.restore(self.snapshots.data(latest))
        while ledger.index < end:
            for entry in log.slice(ledger.index + 1, end, 10_000):
                counted = ledger.count
                ledger.apply(entry)
                if entry.origin == self.id and ledger.count > counted:
                    checks.history.write_returned((entry.origin, entry.session, entry.sequence), entry.index)
        checks.applied(self)

    def _serve_reads(self) -> None:
        waiting, self.reads = self.reads, []
        for index, read in waiting:
            if index <= self.ledger.index:
                self._world.checks.history.read_returned(self.id, self.ledger.index, read)
            else:
                self.reads.append((index, read))

    def snapshot(self, trailing: int) -> None:
        """Take one of what is applied, and compact the log but for so many entries before it."""
        index = self.ledger.index
        log = self.participant.core.log
        latest = self.snapshots.latest()
        if log.base.index < index and (latest is None or latest.last_index < index):
            point = self.participant.core.log.snapshot_point(index)
            latest = self.snapshots.save(*point, self.ledger.snapshot())
            self.participant.core.install(latest)
            in_use = [
                each.snapshot for each in self.participant.core.followers.progress.values() if each.snapshot is not None
            ]
            self.snapshots.reap(in_use)
        if latest is not None:
            self.participant.compact(latest.last_index - trailing)

    def _serve(self, request: SnapshotChunkRequest) -> None:
        sender = self._senders.setdefault(request.sender, SnapshotSender())
        sender.request(request)
        wanted = (request.last_index, request.snapshot_checksum)
        snapshot = next((each for each in self.snapshots.saved if (each.last_index, each.checksum) == wanted), None)
        if snapshot is None:
            raise Violation("compaction", f"site {self.id} does not hold the snapshot that it offered: {request}")
        while (chunk := sender.next(LIMITS.snapshot_chunk_bytes)) is not None:
            data = self.snapshots.read(snapshot, *chunk)
            checksum = chunk_checksum(data)
            if not self._world.calm and self._world.chance(self._world.schedule.profile.damage):
                data = bytes([data[0] ^ 1]) + data[1:]
            self._world.send(
                self,
                SnapshotChunk(
                    request.sender, self.id, request.term, *wanted, chunk[0], checksum, data
                ),
            )  # fmt: skip

    def _begin_snapshot_work(self) -> None:
        world = self._world
        delay = 0 if world.calm else world.below(self._sync_time)
        world.after(delay, self._snapshot_work_done, self.incarnation)

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
        delay = 0 if world.calm else world.below(self._sync_time)
        if world.time < self.stalled_until:
            delay += self.stalled_until - world.time
        world.after(delay, self._synced, self.incarnation, len(self.outstanding))

    def _synced(self, incarnation: int, count: int) -> None:
        """The disk is done with all that was there when the sync began; what has come since waits for the next."""
        if not self.alive or incarnation != self.incarnation:
            return
        done = [self.outstanding.popleft() for _ in range(count)]
        for ready in done:
            if ready.write is not None:
                self.store.sync()
        for ready in done:
            self.participant.advance(ready)
            for message in ready.promises:
                self._world.send(self, message)
        if self.outstanding:
            self._begin_sync()
        self.turn()
        if not self.outstanding:
            self._world.checks.all_written(self)


class World:
    """One run of one schedule."""

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.schedule = schedule
        self.random = Random(seed ^ 0x5EED)
        self._draw = self.random.random
        self.time = 0
        self.calm = False
        self._queue: defaultdict[int, list[tuple[Callable[..., None], tuple[Any, ...]]]] = defaultdict(list)
        """time -> what happens then, in order."""
        self._cut: set[tuple[int, int]] = set()
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE_LENGTH)
        """(when, what, about what ...), the last of them."""
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
            self.after(self.below(TICK), self._tick, each)

    def note(self, what: str, *about: object) -> None:
        self.trace.append((self.time, what, *about))

    def below(self, bound: int) -> int:
        """One of 0 .. bound-1; randrange takes five times as long."""
        return int(self._draw() * bound)

    def chance(self, probability: float) -> bool:
        return self._draw() < probability

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        self._queue[self.time + delay].append((action, arguments))

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Violation."""
        for event in self.schedule.events:
            self.after(event.time, self._apply, event)
        self._run_until(self.schedule.profile.duration)
        self._calm_down()
        deadline = self.time + CALM_TICKS * TICK
        while not self._settled():
            if self.time >= deadline:
                raise Violation("liveness", f"not settled {CALM_TICKS} ticks after the last fault: {self._unsettled()}")
            self._run_until(self.time + 5 * TICK)
        if any(self.schedule.profile.priorities) or self.schedule.profile.witness:
            terms = {site.id: site.participant.core.term for site in self._members()}
            self._run_until(self.time + QUIET_TICKS * TICK)
            if terms != {site.id: site.participant.core.term for site in self._members()}:
                raise Violation("flapping", f"the leadership moved after all was settled: {self._unsettled()}")

    def _run_until(self, end: int) -> None:
        queue = self._queue
        for now in range(self.time, end + 1):
            if now in queue:
                self.time = now
                for number, (action, arguments) in enumerate(queue[now]):  # it may grow meanwhile
                    if number > STORM:
                        raise Violation("storm", f"more than {STORM} things happen at once: {action} {arguments}")
                    action(*arguments)
                del queue[now]
        self.time = end

    def _tick(self, site: Site) -> None:
        self.after(site.period, self._tick, site)
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
        profile = self.schedule.profile
        if profile.introductions and not self._acquainted(site, self.sites[message.to]):
            self.note("no connection", message)
        elif self.calm:
            self.after(1 + self.below(3), self._deliver, message)
        elif (site.id, message.to) in self._cut or self.chance(profile.drop):
            self.note("lost", message)
        else:
            self.after(1 + self.below(profile.delay), self._deliver, message)
            if self.chance(profile.duplicate):
                self.after(1 + self.below(4 * profile.delay), self._deliver, message)

    def _deliver(self, message: Message) -> None:
        site = self.sites[message.to]
        if site.alive:
            self.note("arrives", message)
            site.participant.step(message)
            site.input_taken()

    @staticmethod
    def _acquainted(sender: Site, receiver: Site) -> bool:
        """Whether there would be connections between two sites that have just started: each has to know the other as
        a member, or believe what it says when it introduces itself. Those that exist last longer."""
        one, other = sender.participant.core, receiver.participant.core
        return not receiver.alive or (
            one.members.knows(other.site, other.members.introduction)
            and other.members.knows(one.site, one.members.introduction)
        )

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
        elif event.what == "disaster":
            self._disaster(event.number)
        elif event.what in ("snapshot-all", "crash-all"):
            for each in self.sites.values():
                self._apply_to(each, event._replace(what=event.what.removesuffix("-all")))
        elif event.what == "restart-all":
            for each in self.sites.values():
                if not (each.alive or each.lost):
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
            if not (site.alive or site.lost):
                site.restart(event.number)
        elif not site.alive:
            return
        elif event.what == "propose":
            site.propose(event.number)
            site.input_taken()
        elif event.what == "propose-again":
            site.propose_again(event.number)
            site.input_taken()
        elif event.what == "new-session":
            site.begin_session()
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
            site.read()
            site.input_taken()
        elif event.what == "abdicate":
            self._transfer(event.other, site)
            self.after(event.number, self._apply_to, site, event._replace(what="isolate"))
        elif event.what == "replace":
            self._replace(site)
        elif event.what in ("change", "demote", "promote", "remove", "set"):
            self._change(event)
        elif event.what == "late-change":
            for leader in self._leaders():
                known = leader.participant.core.configuration_index
                self.after(event.other, self._change, event, known)

    def _leaders(self) -> list[Site]:
        return [site for site in self.sites.values() if site.alive and site.participant.core.role is Role.LEADER]

    def _transfer(self, target: int, *leaders: Site) -> None:
        for leader in leaders or self._leaders():
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
            if core.configuration is None or self.sites[site].lost:
                continue
            present = core.configuration.servers.get(site)
            if present is None:
                change = Change.ADD_NONVOTER
            elif event.what == "set":
                change = Change.READDRESS if number < 3 else Change.PRIORITIZE
            elif event.what in ("promote", "demote", "remove"):
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
                raise Violation("compare-and-set", f"site {core.site} took a change of {known}, {latest} is in force")
            if change is Change.PROMOTE and not self.checks.holds(core.log, self.sites[site].store, needed):
                raise Violation("catch-up", f"site {site} is promoted without entry {needed} on its disk")
            leader.input_taken()

    def _replace(self, site: Site) -> None:
        """By one with empty disks, if it is no member any more and no site takes it for one still: that one could be
        elected by it, which has forgotten what it had acknowledged, or promote it before it hears of the loss. So ids
        are not to be used again before."""
        others = [each for each in self.sites.values() if each is not site]
        latest = [each.store.configurations()[-1:] for each in others]
        # What is on no disk yet counts, too.
        latest += [[*each.participant.core.log.configurations[-1:]] for each in others if each.alive]
        counted = any(site.id in configuration for each in latest for _, configuration in each)
        if not (counted or self.checks.is_member(site.id)):
            site.crash(0)
            site.store, site.snapshots = MemoryStore(), MemorySnapshotStore()
            self.checks.replaced(site)
            site.restart(1)

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

    def _disaster(self, burning: int) -> None:
        """The sites in `burning` (a bit each) never come back. If that leaves no majority, the others are stopped and
        recovered as the cluster's only members. Those of them whose log is behind their snapshot do not count as left:
        a log is what can be recovered."""
        known = [
            configuration
            for site in self.sites.values()
            for _, configuration in site.participant.core.log.configurations[-1:]
        ]
        leaders = self._leaders()
        before = leaders[-1].participant.core.configuration if leaders else known[0] if known else None
        if before is None:
            return
        left: dict[int, Site] = {}
        for number in before.servers:
            site = self.sites[number]
            latest = site.snapshots.latest()
            behind = latest is not None and latest.last_index > site.store.last_index
            if not (burning >> (number - 1) & 1 or site.lost or behind or site.store.last_index == 0):
                left[number] = site
        voters = [number for number in before.voters if number in left]
        if len(voters) >= majority(len(before.voters)) or all(before.servers[each].witness for each in left):
            return
        members = Configuration(before.servers[number]._replace(voter=True) for number in left)
        self._cut.clear()
        for when, actions in self._queue.items():
            if when > self.time:
                actions[:] = [each for each in actions if each[0] != self._deliver]
        for site in self.sites.values():
            if site.alive:
                site.crash(0)
            site.lost = site.id not in left
        for site in left.values():
            recover(site.store, site.id, members)
        self.checks.disaster([site.store for site in left.values()], members)
        for site in left.values():
            self.note("site", site.id, "is recovered with", members)
            self.after(1, self._apply_to, site, Event(self.time, "restart", site.id, 0, 1))

    # ---- the end --------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self.calm = True
        self.note("CALM")
        self._cut.clear()
        for site in self.sites.values():
            if site.lost:
                continue
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
