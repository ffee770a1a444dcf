"""What must hold after every step, whatever has failed.

Names are those of the Raft paper's figure 3 where it has one. The running checksum of the log makes most of them
cheap: two entries with the same chain have equal logs before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mysqlraft.raft import Configuration, Entry, EntryKind, MemoryStore, Role, SessionTable
from mysqlraft.raft.core import RaftCore, Ready
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.messages import AppendResponse, Forward, Message, VoteRequest, VoteResponse
from mysqlraft.raft.quorum import majority
from mysqlraft.raft.store import Base
from tests.raft.ledger import Ledger

if TYPE_CHECKING:
    from tests.simulation.world import Site


class Violation(AssertionError):
    """Something that must never happen has happened."""


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
        self.accepted = 0
        self._ledger = Ledger()
        self._digests = [0]
        """Of the FSM that has applied the one true log, after each entry of it."""
        self._configurations: list[tuple[int, Configuration]] = []
        """Of the one true log."""
        self.installed = 0
        """Snapshots that were received and installed."""

    # ---- a core's output ------------------------------------------------------------------------------------------

    def ready(self, site: Site, ready: Ready) -> None:
        """A core has spoken."""
        for transition in ready.transitions:
            if transition.role is Role.LEADER and transition.reason.startswith("elected"):
                self._elected(site, transition.term)
        for entry in ready.entries_to_append:
            self._appended(site, entry)
        self._commit(site)
        log = site.participant.core.log
        self._base(site, "its log", log.base, log.configurations)
        self._base(site, "its disk", site.store.base, site.store.configurations())
        self._pinned(site)

    def _base(self, site: Site, where: str, base: Base, configurations: Sequence[tuple[int, Configuration]]) -> None:
        """What stands for the compacted entries is what they were."""
        if base.index == 0:
            return
        if base.index > len(self.committed):
            raise Violation(f"{where} at site {site.id} begins after {base}, which was never committed")
        last = self.committed[base.index - 1]
        if base != (last.index, last.term, last.chain):
            raise Violation(f"{where} at site {site.id} begins after {base}, where {last} was committed")
        true = [each for each in self._configurations if each[0] <= base.index][-1:]
        held = [each for each in configurations if each[0] <= base.index]
        if held != true:
            raise Violation(f"{where} at site {site.id} begins after {base.index} with {held} instead of {true}")

    def _pinned(self, site: Site) -> None:
        """A follower that is getting a snapshot will find the log after it: as long as it is heard of."""
        core = site.participant.core
        for follower, progress in core.progress.items():
            snapshot = progress.snapshot
            if snapshot is None or progress.silent_ticks or not progress.active:
                continue
            if core.log.base.index > snapshot.last_index:
                raise Violation(f"site {site.id} has compacted to {core.log.base} while {follower} gets {snapshot}")

    def applied(self, site: Site) -> None:
        """The FSM of a site is that of the one true log, however it got there."""
        ledger = site.ledger
        if ledger.digest != self._digests[ledger.index]:
            raise Violation(f"site {site.id} has another state after {ledger.index} entries than the log gives")

    def _elected(self, site: Site, term: int) -> None:
        other = self.leaders.setdefault(term, site.id)
        if other != site.id:
            raise Violation(f"election safety: sites {other} and {site.id} both lead term {term}")
        core = site.participant.core
        if self.committed:
            last = self.committed[-1]
            held = chain_at(core.log, last.index) == last.chain or core.log.base.index > last.index
            if core.role is Role.LEADER and core.term == term and not held:
                raise Violation(f"leader completeness: site {site.id} leads term {term} without committed {last}")

    def _appended(self, site: Site, entry: Entry) -> None:
        chain = self._chains.setdefault((entry.index, entry.term), entry.chain)
        if chain != entry.chain:
            raise Violation(f"log matching: site {site.id} has another log up to {entry} than somebody else")

    def _commit(self, site: Site) -> None:
        core = site.participant.core
        commit = core.log.commit
        if commit < site.commit:
            raise Violation(f"commit of site {site.id} went back from {site.commit} to {commit}")
        leads = core.term if core.role is Role.LEADER else 0
        led, site.led = site.led, leads
        if commit == site.commit:
            return
        if leads and leads == led and core.log.term(commit) != core.term:
            raise Violation(f"site {site.id} leads term {core.term} and commits {core.log.entry(commit)} by counting")
        base = core.log.base.index
        if base > len(self.committed):
            raise Violation(f"site {site.id} has a snapshot of what was never committed: {core.log.base}")
        for index in range(max(site.commit, base) + 1, min(commit, len(self.committed)) + 1):
            entry, true = core.log.entry(index), self.committed[index - 1]
            if entry.chain != true.chain:
                raise Violation(f"state machine safety: site {site.id} commits {entry}, where {true} was committed")
        while len(self.committed) < commit:
            entry = core.log.entry(len(self.committed) + 1)
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
        raise Violation(f"site {core.site} commits {entry}, which no majority has on disk in any of {configurations}")

    def _deliver(self, entry: Entry) -> None:
        """Every consumer of the log sees this: the rule that they all share must give each origin's proposals
        exactly once and in order."""
        self.committed.append(entry)
        self._ledger.apply(entry)
        self._digests.append(self._ledger.digest)
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((entry.index, Configuration.decode(entry.payload)))
        if entry.kind is not EntryKind.DATA:
            return
        key = (entry.origin, entry.session, entry.sequence)
        if self.proposed.get(key) != entry.payload:
            raise Violation(f"{entry} was never proposed so")
        session, last = self.sessions.last(entry.origin)
        if self.sessions.accept(*key):
            first = entry.session > session and entry.sequence == 1
            if not first and (entry.session, entry.sequence) != (session, last + 1):
                raise Violation(f"exactly once, in order: {entry} counts after {session}/{last}")
            self.accepted += 1
        else:
            old = entry.session < session or (entry.session == session and entry.sequence <= last)
            if not old:
                raise Violation(f"forwarding: gap before {entry}, the last of its origin was {session}/{last}")

    # ---- messages -------------------------------------------------------------------------------------------------

    def sent(self, site: Site, message: Message) -> None:
        """A message leaves a site: all that it promises has to be on its disk by now."""
        durable = site.store.hard_state
        pre = isinstance(message, VoteRequest | VoteResponse) and message.pre
        if not pre and message.term > durable.term:
            raise Violation(f"site {site.id} speaks in a term that its disk does not know, {durable.term}: {message}")
        if isinstance(message, VoteResponse) and message.granted and not message.pre:
            self._voted(site, message.term, message.to)
        elif isinstance(message, VoteRequest) and not message.pre:
            self._voted(site, message.term, site.id)
        elif isinstance(message, AppendResponse) and not message.rejected:
            self._acknowledged(site, message)
        elif isinstance(message, Forward) and message.sender != site.id:
            raise Violation(f"site {site.id} forwards for another: {message}")

    def _voted(self, site: Site, term: int, candidate: int) -> None:
        first = self._votes.setdefault((site.id, term), candidate)
        if first != candidate:
            raise Violation(f"site {site.id} voted for both {first} and {candidate} in term {term}")
        durable = site.store.hard_state
        if durable.term <= term and durable != (term, candidate):
            raise Violation(f"the vote of site {site.id} for {candidate} in term {term} is not on its disk: {durable}")

    def _acknowledged(self, site: Site, message: AppendResponse) -> None:
        if message.index > site.store.last_index:
            raise Violation(f"site {site.id} says it has {message.index}, its disk ends at {site.store.last_index}")
        leader = self._sites[message.to]
        if not leader.alive or message.index == 0:
            return
        core = leader.participant.core
        if core.role is not Role.LEADER or core.term != message.term or message.index > core.log.last_index:
            return
        if not self.holds(core.log, site.store, message.index):
            raise Violation(f"site {site.id} acknowledges {message.index} to {message.to}, but holds another on disk")

    @staticmethod
    def holds(log: RaftLog, store: MemoryStore, index: int) -> bool:
        """Whether a disk has a log's entry at `index`. What either has compacted was committed, and its place in the
        other's log or base is what `_base` and `_commit` look at."""
        if index < max(log.base.index, store.base.index):
            return index <= store.last_index
        return durable_chain(store, index) == chain_at(log, index)


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
