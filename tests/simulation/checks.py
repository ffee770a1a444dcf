"""What must hold after every step, whatever has failed.

Names are those of the Raft paper's figure 3 where it has one. The running checksum of the log makes most of them
cheap: two entries with the same chain have equal logs before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mysqlraft.raft import Configuration, Entry, EntryKind, MemoryStore, Role, SessionTable
from mysqlraft.raft.core import RaftCore
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.messages import AppendResponse, Forward, Message, VoteRequest, VoteResponse
from mysqlraft.raft.quorum import majority
from mysqlraft.raft.ready import Ready
from mysqlraft.raft.store import Base
from tests.raft.ledger import Ledger

if TYPE_CHECKING:
    from tests.simulation.world import Site


class Violation(AssertionError):
    """Something that must never happen has happened."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class Read(NamedTuple):
    """A linearizable read, and what had happened when it was asked for."""

    committed: int
    """This many entries were committed."""
    returned: int
    """The greatest index of anything that some client had had an answer about."""


class History:
    """What clients saw, wherever: writes (proposals) and reads of an FSM, each begun at one moment and answered at a
    later one.

    A write's place in the one order is the index of its entry, a read's is the index that its FSM had reached. The
    history is linearizable iff what begins after another thing's answer has no earlier place. As time only goes on,
    the greatest place answered so far is all that has to be remembered.
    """

    def __init__(self) -> None:
        self.returned = 0
        """The greatest place of anything that was answered."""
        self._asked: dict[tuple[int, int, int], int] = {}
        """A write that was not answered -> `returned` when it began."""
        self.reads = self.writes = 0
        """How many were answered."""

    def asked(self, write: tuple[int, int, int]) -> None:
        self._asked.setdefault(write, self.returned)

    def write_returned(self, write: tuple[int, int, int], place: int) -> None:
        """Whoever proposed it sees it applied; a second time after a restart, which tells it nothing new."""
        before = self._asked.pop(write, None)
        if before is None:
            return
        self.writes += 1
        if place <= before:
            raise Violation("linearizable", f"write {write} is at {place}, {before} was answered before it began")
        self.returned = max(self.returned, place)

    def read_returned(self, site: int, place: int, read: Read) -> None:
        self.reads += 1
        if place < read.returned:
            raise Violation("linearizable", f"site {site} reads at {place}, {read.returned} was answered before")
        self.returned = max(self.returned, place)

    def lost_after(self, place: int) -> None:
        """A disaster took what came later."""
        self.returned = min(self.returned, place)
        self._asked.clear()


class Checks:
    """The omniscient observer of one cluster."""

    def __init__(self, sites: Mapping[int, Site]) -> None:
        self._sites = sites
        self.leaders: dict[int, int] = {}
        """term -> who led it."""
        self._chains: dict[tuple[int, int], int] = {}
        """(index, term) -> the chain of that entry, in whatever log."""
        self.committed: list[Entry] = []
        """The one true log."""
        self._votes: dict[tuple[int, int], int] = {}
        """(site, term) -> whom it granted its vote."""
        self.sessions = SessionTable()
        self.proposed: dict[tuple[int, int, int], bytes] = {}
        """(origin, session, sequence) -> payload."""
        self._ledger = Ledger()
        self._digests = [0]
        """Of the FSM that has applied the one true log, after each entry of it."""
        self._configurations: list[tuple[int, Configuration]] = []
        """Of the one true log."""
        self.installed = 0
        """Snapshots that were received and installed."""
        self.history = History()
        self.forced: Configuration | None = None
        """The members of the last recovery."""
        self._bases: dict[tuple[int, str], tuple[object, ...]] = {}
        """(site, where) -> the base and configurations that were looked at last."""

    # ---- a core's output ------------------------------------------------------------------------------------------

    def ready(self, site: Site, ready: Ready) -> None:
        """A core has spoken."""
        core = site.participant.core
        if core.term < site.term:
            raise Violation("terms grow", f"site {site.id} went back from term {site.term} to {core.term}")
        site.term = core.term
        for transition in ready.transitions:
            if transition.role is Role.LEADER and transition.reason.startswith("elected"):
                self._elected(site, transition.term)
        if ready.write is not None:
            for entry in ready.write.entries:
                self._appended(site, entry)
        self._commit(site)
        log, store = core.log, site.store
        if log.base.index:
            self._base(site, "its log", log.base, log.configurations)
        if store.base.index:
            self._base(site, "its disk", store.base, store.configurations())
        if core.followers.progress:
            self._pinned(site)
        if site.acknowledged[0] > store.last_index:
            self._gone(site)

    def all_written(self, site: Site) -> None:
        """Its core has nothing more for the disk."""
        log, store = site.participant.core.log, site.store
        if (log.base, log.last_index, log.stable) != (store.base, store.last_index, store.last_index):
            raise Violation(
                "the disk is the log",
                f"site {site.id} has a log after {log.base} up to {log.last_index} (on disk: {log.stable}), "
                f"and a disk after {store.base} up to {store.last_index}",
            )

    def _base(self, site: Site, where: str, base: Base, configurations: Sequence[tuple[int, Configuration]]) -> None:
        """What stands for the compacted entries is what they were, but for members that were forced outside the log."""
        looked_at = (base, *configurations[:2])
        if self._bases.get((site.id, where)) == looked_at:
            return
        self._bases[site.id, where] = looked_at
        if base.index > len(self.committed):
            raise Violation("compaction", f"{where} at site {site.id} begins after {base}, which was never committed")
        last = self.committed[base.index - 1]
        if base != (last.index, last.term, last.chain):
            raise Violation("compaction", f"{where} at site {site.id} begins after {base}, where {last} was committed")
        true = [each for each in self._configurations if each[0] <= base.index][-1:]
        held = [each for each in configurations if each[0] <= base.index]
        if held != true and [members for _, members in held] != [self.forced]:
            raise Violation(
                "compaction", f"{where} at site {site.id} begins after {base.index} with {held} instead of {true}"
            )

    def _gone(self, site: Site) -> None:
        """What was acknowledged is on the disk no more: it must not have been what is committed."""
        index, chain = site.acknowledged
        if index <= len(self.committed) and self.committed[index - 1].chain == chain:
            raise Violation("promises", f"site {site.id} acknowledged {self.committed[index - 1]} and has lost it")

    def _pinned(self, site: Site) -> None:
        """A follower that is getting a snapshot will find the log after it: as long as it is heard of."""
        core = site.participant.core
        for follower, progress in core.followers.progress.items():
            snapshot = progress.snapshot
            if snapshot is None or progress.silent_ticks or not progress.active:
                continue
            if not progress.catching_up and progress.match >= snapshot.last_index:
                continue  # it has that one, and nothing is kept: it says so late, after a silence
            if core.log.base.index > snapshot.last_index:
                raise Violation(
                    "pins", f"site {site.id} has compacted to {core.log.base} while {follower} gets {snapshot}"
                )

    def applied(self, site: Site) -> None:
        """The FSM of a site is that of the one true log, however it got there."""
        ledger = site.ledger
        if ledger.digest != self._digests[ledger.index]:
            raise Violation(
                "equal states", f"site {site.id} has another state after {ledger.index} entries than the log gives"
            )

    def may_read(self, site: Site, index: int, read: Read) -> None:
        if not read.committed <= index <= len(self.committed):
            raise Violation(
                "linearizable",
                f"site {site.id} may read at {index}: {read.committed} were committed when it asked for that, "
                f"{len(self.committed)} are now",
            )

    def _elected(self, site: Site, term: int) -> None:
        other = self.leaders.setdefault(term, site.id)
        if other != site.id:
            raise Violation("election safety", f"sites {other} and {site.id} both lead term {term}")
        core = site.participant.core
        if self.committed:
            last = self.committed[-1]
            held = chain_at(core.log, last.index) == last.chain or core.log.base.index > last.index
            if core.role is Role.LEADER and core.term == term and not held:
                raise Violation("leader completeness", f"site {site.id} leads term {term} without committed {last}")

    def _appended(self, site: Site, entry: Entry) -> None:
        chain = self._chains.setdefault((entry.index, entry.term), entry.chain)
        if chain != entry.chain:
            raise Violation("log matching", f"site {site.id} has another log up to {entry} than somebody else")
        if entry.kind is EntryKind.CONFIGURATION:
            self._changed(site, entry)

    def _changed(self, site: Site, entry: Entry) -> None:
        """Of two configurations in a row any two majorities share a voter, and a leader appends the second when the
        first and an entry of its own term have committed: so no two leaders can change the same one."""
        core = site.participant.core
        position = next((n for n, each in enumerate(core.log.configurations) if each[0] == entry.index), 0)
        if position == 0:
            return  # the first, or compacted meanwhile
        (index, before), (_, after) = core.log.configurations[position - 1 : position + 1]
        if after == self.forced:
            return
        leads = core.role is Role.LEADER and entry.term == core.term
        if len({*before.voters} ^ {*after.voters}) > 1 and (leads or self.forced is None):
            raise Violation("configuration safety", f"site {site.id} goes from {before} to {after} in one step")
        if leads:
            if index > core.log.commit:
                raise Violation("configuration safety", f"site {site.id} appends {entry}, {index} has not committed")
            if core.log.term(core.log.commit) != core.term:
                raise Violation("configuration safety", f"site {site.id} appends {entry} before it has committed any")

    def _commit(self, site: Site) -> None:
        core = site.participant.core
        log = core.log
        commit = log.commit
        if commit < site.commit:
            raise Violation("commit grows", f"commit of site {site.id} went back from {site.commit} to {commit}")
        leads = core.term if core.role is Role.LEADER else 0
        led, site.led = site.led, leads
        if commit == site.commit:
            return
        if leads and leads == led and log.term(commit) != core.term:
            raise Violation(
                "commit by counting", f"site {site.id} leads term {core.term} and commits {log.entry(commit)}"
            )
        base = log.base.index
        if base > len(self.committed):
            raise Violation("compaction", f"site {site.id} has a snapshot of what was never committed: {log.base}")
        for index in range(max(site.commit, base) + 1, min(commit, len(self.committed)) + 1):
            entry, true = log.entry(index), self.committed[index - 1]
            if entry.chain != true.chain:
                raise Violation("state machine safety", f"site {site.id} commits {entry}, where {true} was committed")
        while len(self.committed) < commit:
            entry = log.entry(len(self.committed) + 1)
            self._majority_holds(core, entry)
            self._deliver(entry)
        site.commit = commit

    def _majority_holds(self, core: RaftCore, entry: Entry) -> None:
        """A newly committed entry is on the disks of a majority of the voters. They may be those of the configuration
        before the latest: the leader can have appended that one after it committed the entry."""
        configurations = [configuration for _, configuration in core.log.configurations[-2:]]
        for configuration in configurations:
            voters = configuration.voters
            holders = [voter for voter in voters if durable_chain(self._sites[voter].store, entry.index) == entry.chain]
            if len(holders) >= majority(len(voters)):
                return
        raise Violation(
            "commit by majority", f"site {core.site} commits {entry}, which no majority has on disk in {configurations}"
        )

    def _deliver(self, entry: Entry) -> None:
        """Every consumer of the log sees this: the rule that they all share must give each origin's proposals
        exactly once and in order."""
        self.committed.append(entry)
        before = self._ledger.count
        self._ledger.apply(entry)
        counts = self._ledger.count > before
        self._digests.append(self._ledger.digest)
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((entry.index, Configuration.decode(entry.payload)))
        if entry.kind is not EntryKind.DATA:
            return
        key = (entry.origin, entry.session, entry.sequence)
        if self.proposed.get(key) != entry.payload:
            raise Violation("exactly once, in order", f"{entry} was never proposed so")
        session, last = self.sessions.last(entry.origin)
        if self.sessions.accept(*key) != counts:
            raise Violation("exactly once, in order", f"two consumers do not agree whether {entry} counts")
        if counts:
            first = entry.session > session and entry.sequence == 1
            if not first and (entry.session, entry.sequence) != (session, last + 1):
                raise Violation("exactly once, in order", f"{entry} counts after {session}/{last}")
        else:
            old = entry.session < session or (entry.session == session and entry.sequence <= last)
            if not old:
                raise Violation("forwarding", f"a gap before {entry}, the last of its origin was {session}/{last}")

    # ---- messages -------------------------------------------------------------------------------------------------

    def sent(self, site: Site, message: Message) -> None:
        """A message leaves a site: all that it promises has to be on its disk by now."""
        durable = site.store.hard_state
        if message.term > durable.term and not getattr(message, "pre", False):
            raise Violation(
                "promises", f"site {site.id} speaks in a term that its disk does not know, {durable.term}: {message}"
            )
        if isinstance(message, AppendResponse):
            if not message.rejected:
                self._acknowledged(site, message)
        elif isinstance(message, VoteResponse):
            if message.granted and not message.pre:
                self._voted(site, message.term, message.to)
        elif isinstance(message, VoteRequest):
            if not message.pre:
                self._voted(site, message.term, site.id)
        elif isinstance(message, Forward):
            self._forwarded(site, message)

    def _voted(self, site: Site, term: int, candidate: int) -> None:
        first = self._votes.setdefault((site.id, term), candidate)
        if first != candidate:
            raise Violation("one vote a term", f"site {site.id} voted for both {first} and {candidate} in term {term}")
        durable = site.store.hard_state
        if durable.term <= term and durable != (term, candidate):
            raise Violation(
                "promises", f"the vote of site {site.id} for {candidate} in term {term} is not on its disk: {durable}"
            )

    def _acknowledged(self, site: Site, message: AppendResponse) -> None:
        if message.index > site.store.last_index:
            raise Violation(
                "promises", f"site {site.id} says it has {message.index}, its disk ends at {site.store.last_index}"
            )
        chain = durable_chain(site.store, message.index)
        if chain is not None:
            site.acknowledged = (message.index, chain)
        leader = self._sites[message.to]
        if not leader.alive or message.index == 0:
            return
        core = leader.participant.core
        if core.role is not Role.LEADER or core.term != message.term or message.index > core.log.last_index:
            return
        if not self.holds(core.log, site.store, message.index):
            raise Violation(
                "promises", f"site {site.id} acknowledges {message.index} to {message.to}, but holds another on disk"
            )

    def _forwarded(self, site: Site, message: Forward) -> None:
        if message.sender != site.id:
            raise Violation("forwarding", f"site {site.id} forwards for another: {message}")
        if not message.start:
            return
        session, last = self.sessions.last(site.id)
        done = last if session == message.session else 0
        if session <= message.session and message.first_sequence > done + 1:
            raise Violation("forwarding", f"site {site.id} starts after {done} has committed with {message}")

    @staticmethod
    def holds(log: RaftLog, store: MemoryStore, index: int) -> bool:
        """Whether a disk has a log's entry at `index`. What either has compacted was committed, and its place in the
        other's log or base is what `_base` and `_commit` look at."""
        if index < log.base.index or index < store.base.index:
            return index <= store.last_index
        return durable_chain(store, index) == chain_at(log, index)

    # ---- new disks and lost ones ----------------------------------------------------------------------------------

    def is_member(self, site: int) -> bool:
        """By the last configuration that has committed."""
        return not self._configurations or site in self._configurations[-1][1]

    def replaced(self, site: Site) -> None:
        """Its disks are empty: nothing that it has ever said binds it."""
        self._votes = {vote: candidate for vote, candidate in self._votes.items() if vote[0] != site.id}
        site.acknowledged = (0, 0)

    def disaster(self, left: Sequence[MemoryStore], members: Configuration) -> None:
        """These disks are all that there is, and `members` were forced on them. The most complete log among them has to
        survive, with all that was committed in it; what goes beyond that may come back or not."""
        best = max(left, key=lambda store: (_last_term(store), store.last_index))
        kept = min(len(self.committed), best.last_index)
        while kept > best.base.index and durable_chain(best, kept) != self.committed[kept - 1].chain:
            kept -= 1
        committed = self.committed[:kept]
        self.committed, self.sessions, self._ledger = [], SessionTable(), Ledger()
        self._digests, self._configurations = [0], []
        for entry in committed:
            self._deliver(entry)
        self.forced = members
        for site in self._sites.values():
            site.acknowledged = (0, 0)
        self.leaders.clear()
        self._votes.clear()
        self._chains.clear()
        self._bases.clear()
        self.history.lost_after(kept)


def _last_term(store: MemoryStore) -> int:
    if store.last_index == store.base.index:
        return store.base.term
    return store.entries(store.last_index, store.last_index, 1)[0].term


def durable_chain(store: MemoryStore, index: int) -> int | None:
    """The chain of the log that is on disk up to `index`, None if it does not hold that entry."""
    if index == store.base.index:
        return store.base.chain
    if not store.base.index < index <= store.last_index:
        return None
    return store.entries(index, index, 1)[0].chain


def chain_at(log: RaftLog, index: int) -> int | None:
    """The same of a log in memory."""
    if index == log.base.index:
        return log.base.chain
    if not log.base.index < index <= log.last_index:
        return None
    return log.entry(index).chain
