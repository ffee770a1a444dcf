"""What must hold after every step, whatever has failed.

Names are those of the Raft paper's figure 3 where it has one. The running checksum of the log makes most of them
cheap: two entries with the same chain have equal logs before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mysqlraft.raft import Entry, EntryKind, MemoryStore, Role, SessionTable
from mysqlraft.raft.core import RaftCore, Ready
from mysqlraft.raft.messages import AppendResponse, Forward, Message, VoteRequest, VoteResponse
from mysqlraft.raft.quorum import majority

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

    # ---- a core's output ------------------------------------------------------------------------------------------

    def ready(self, site: Site, ready: Ready) -> None:
        """A core has spoken."""
        for transition in ready.transitions:
            if transition.role is Role.LEADER and transition.reason.startswith("elected"):
                self._elected(site, transition.term)
        for entry in ready.entries_to_append:
            self._appended(site, entry)
        self._commit(site)

    def _elected(self, site: Site, term: int) -> None:
        other = self.leaders.setdefault(term, site.id)
        if other != site.id:
            raise Violation(f"election safety: sites {other} and {site.id} both lead term {term}")
        core = site.participant.core
        if self.committed:
            last = self.committed[-1]
            held = core.log.last_index >= last.index and core.log.entry(last.index).chain == last.chain
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
        for index in range(site.commit + 1, min(commit, len(self.committed)) + 1):
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
        if durable_chain(site.store, message.index) != core.log.entry(message.index).chain:
            raise Violation(f"site {site.id} acknowledges {message.index} to {message.to}, but holds another on disk")


def durable_chain(store: MemoryStore, index: int) -> int | None:
    """The chain of the entry that is on disk at `index`, None if there is none."""
    if not 1 <= index <= store.last_index:
        return None
    return store.entries(index, index, 1)[0].chain
