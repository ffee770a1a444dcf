"""Cores joined by a lossless network without delay, for tests of single rules. Writes are synced when the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from mysqlraft.raft import Configuration, HardState, Limits, MemoryStore, RaftCore, Ready, Role, Server, Write
from mysqlraft.raft.entry import Entry, EntryKind, payload_checksum
from mysqlraft.raft.messages import Message, Proposal

LIMITS = Limits(election_ticks=10, heartbeat_ticks=1)


def configuration(voters: int, nonvoters: int = 0) -> Configuration:
    return Configuration(
        Server(site, f"site{site}", f"host{site}:1000", site <= voters) for site in range(1, voters + nonvoters + 1)
    )


def ranked(*servers: tuple[str, int]) -> Configuration:
    """Voters of these kinds ("voter" or "witness") and priorities."""
    return Configuration(
        Server(site, f"site{site}", f"host{site}:1000", True, kind == "witness", priority)
        for site, (kind, priority) in enumerate(servers, 1)
    )


def chained(*terms: int, configured: Configuration | None = None) -> list[Entry]:
    """A log with entries of these terms; the first is a configuration if one is given."""
    entries: list[Entry] = []
    chain = 0
    for index, term in enumerate(terms, 1):
        first = index == 1 and configured is not None
        kind = EntryKind.CONFIGURATION if first else EntryKind.DATA
        payload = configured.encode() if first and configured is not None else b"%d@%d" % (index, term)
        entry = Entry(index, term, kind, payload=payload, previous_chain=chain)
        chain = entry.chain
        entries.append(entry)
    return entries


def store(terms: Iterable[int], members: Configuration, term: int | None = None, vote: int = 0) -> MemoryStore:
    """A disk with such a log."""
    entries = chained(*terms, configured=members)
    made = MemoryStore()
    made.write([Write(HardState(entries[-1].term if term is None else term, vote), entries)])
    return made


def proposal(payload: bytes, sequence: int = 1, origin: int = 1, session: int = 1) -> Proposal:
    return Proposal(origin, session, sequence, payload, payload_checksum(payload))


class Driven:
    """One core, its disk, and what came out of it."""

    def __init__(self, site: int, disk: MemoryStore, limits: Limits = LIMITS, seed: int = 0) -> None:
        self.disk = disk
        self.core = RaftCore(site, disk, Random(seed or site), limits)
        self.unsynced: list[Ready] = []

    def ready(self) -> list[Message]:
        """What leaves now; writes are only queued."""
        messages: list[Message] = []
        while (ready := self.core.ready()) is not None:
            messages += ready.messages
            if ready.write is not None or ready.promises:
                if ready.write is not None:
                    self.disk.begin([ready.write])
                self.unsynced.append(ready)
        return messages

    def sync(self) -> list[Message]:
        """All queued writes are on disk: what leaves because of that."""
        messages: list[Message] = []
        while self.unsynced:
            ready = self.unsynced.pop(0)
            if ready.write is not None:
                self.disk.sync()
            self.core.advance(ready)
            messages += ready.promises
        return messages

    def run(self) -> list[Message]:
        """Sync and look again until nothing more comes."""
        messages: list[Message] = []
        while True:
            new = self.ready() + self.sync()
            if not new and not self.unsynced:
                return messages
            messages += new

    def step(self, *messages: Message) -> list[Message]:
        for message in messages:
            self.core.step(message)
        return self.run()

    def tick(self, count: int = 1) -> list[Message]:
        messages: list[Message] = []
        for _ in range(count):
            self.core.tick()
            messages += self.run()
        return messages


class Cluster:
    """Several of them, and the messages between them."""

    def __init__(
        self, members: Configuration, limits: Limits = LIMITS, logs: dict[int, list[int]] | None = None
    ) -> None:
        self.sites = {
            site: Driven(site, store((logs or {}).get(site, [1]), members), limits) for site in members.servers
        }
        self.drop: Callable[[Message], bool] = lambda message: False
        self.down: set[int] = set()

    def settle(self) -> None:
        """Deliver until nothing is on the way."""
        while True:
            messages = [m for site, driven in self.sites.items() if site not in self.down for m in driven.run()]
            if not messages:
                return
            for message in messages:
                if message.to in self.sites and message.to not in self.down and not self.drop(message):
                    self.sites[message.to].core.step(message)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for site, driven in self.sites.items():
                if site not in self.down:
                    driven.core.tick()
            self.settle()

    def campaign(self, site: int) -> RaftCore:
        """Let one site's election timeout pass, and those of the others not."""
        core = self.sites[site].core
        for _ in range(2 * core.limits.election_ticks):
            if core.role is not Role.FOLLOWER:
                break
            core.tick()
        self.settle()
        return core

    def elect(self, site: int) -> RaftCore:
        """`site` leads, by the usual way."""
        core = self.campaign(site)
        assert core.role is Role.LEADER
        return core

    def cut(self, *sites: int) -> None:
        """These can only talk with each other; the rest among themselves."""
        self.drop = lambda message: (message.sender in sites) != (message.to in sites)

    def heal(self) -> None:
        self.drop = lambda message: False

    def propose(self, leader: int, *payloads: bytes) -> None:
        self.sites[leader].core.propose([proposal(payload) for payload in payloads])
        self.settle()

    def payloads(self, site: int) -> list[bytes]:
        """What is committed there, without the first configuration and without no-ops."""
        log = self.sites[site].core.log
        return [
            log.entry(index).payload for index in range(2, log.commit + 1) if log.entry(index).kind is EntryKind.DATA
        ]
