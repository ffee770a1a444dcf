"""What is judged does not depend on who restarted when, nor on when members come and go."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest

from mysqlraft.raft.configuration import Configuration, Server
from mysqlraft.replication.entry import Change, ChangeKind, Ddl, Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.replication.state import ReplicationState, Step
from tests.replication.harness import LoggedEntry

HISTORIES = 600
TABLES = [b"\x01s\x00\x01%c\x00" % name for name in b"abc"]
NOWHERE = Position("", 0), ("", 0)


class History(list[LoggedEntry]):
    """A random log in which sites lag, come and go."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._members = set(range(1, rng.randint(2, 4) + 1))
        self._sequences: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        self.late = 0
        """Units of members that were added and had not caught up."""
        self._keys, self._lag, tables = rng.choice([3, 20, 200]), rng.choice([2, 8, 30]), rng.randint(1, 3)
        self._tables = TABLES[:tables]
        self._configure()
        for _ in range(rng.randint(20, 200)):
            dice = rng.random()
            if dice < 0.03:
                self._change_members()
            elif dice < 0.06:
                self._say(PayloadKind.DDL, ddl=Ddl([("s", rng.choice("abc"[:tables]))], "TRUNCATE", "s", {}, 0))
            else:
                self._write()

    def fetch(self, first: int, last: int) -> Iterable[LoggedEntry]:
        return iter(self[first - 1 : last])

    def _configure(self) -> None:
        servers = [Server(site, f"site{site}", f"127.0.0.1:{7450 + site}") for site in sorted(self._members)]
        servers.append(Server(15, "witness", "127.0.0.1:7465", witness=True))
        self.append(LoggedEntry(len(self) + 1, 0, 0, 0, Configuration(servers).encode()))

    def _change_members(self) -> None:
        outside = set(range(1, 6)) - self._members
        if len(self._members) > 1 and self._rng.random() < 0.5:
            self._members.remove(self._rng.choice(sorted(self._members)))
        elif outside:
            self._members.add(self._rng.choice(sorted(outside)))
        self._configure()

    def _write(self) -> None:
        rng = self._rng
        keys = b"".join(struct.pack("<Q", rng.randint(1, self._keys)) for _ in range(rng.randint(1, 3)))
        unit = Unit(0, 0, keys, [Change(0, ChangeKind.UPDATE, b"", 1, b"")], [0] if rng.random() < 0.05 else [])
        self._say(PayloadKind.UNITS, tables=[rng.choice(self._tables)], units=[unit])

    def _say(self, kind: PayloadKind, units: Iterable[Unit] = (), **fields: object) -> None:
        site = self._rng.choice(sorted(self._members))
        if site not in self._sequences:
            self._append(site, Payload(PayloadKind.OPEN, Flavour.MYSQL, 0, *NOWHERE))
        # A site that was away goes on from where it was.
        known = self._bases.get(site, 0)
        base = max(known, len(self) - self._rng.randint(0, self._lag)) if self._rng.random() < 0.9 else known
        self._bases[site] = base
        self.late += base < max(self._bases.values()) - self._lag
        units = [Unit(base, 0, unit.keys, unit.changes, unit.wild) for unit in units]
        self._append(site, Payload(kind, Flavour.MYSQL, base, *NOWHERE, units=units, **fields))  # type: ignore[arg-type]

    def _append(self, site: int, payload: Payload) -> None:
        self._sequences[site] = self._sequences.get(site, 0) + 1
        self.append(LoggedEntry(len(self) + 1, site, 1, self._sequences[site], payload.encode()))


def judged(step: Step) -> list[object]:
    """What has to be the same at every site of what a step says."""
    conflicts = [sorted(certification.writers) for _, certification in step.units]
    return [conflicts, step.certification and step.certification.verdict]


@pytest.mark.timeout(300)
def test_a_restart_changes_nothing_that_is_judged() -> None:
    restarts = late = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        log = History(rng)
        every = rng.choice([3, 10, 40])
        steady = ReplicationState(1, log.fetch, checkpoint_every=every)
        shaken = ReplicationState(2, log.fetch, checkpoint_every=every)
        late += log.late
        for entry in log:
            said, again = judged(steady.step(entry)), judged(shaken.step(entry))
            assert said == again, f"seed {seed}: entry {entry.index} is judged otherwise after a restart"
            assert steady.digest == shaken.digest, f"seed {seed}: the running checksums differ at {entry.index}"
            assert steady.certifier.floor == shaken.certifier.floor, f"seed {seed}: at {entry.index}"
            if rng.random() < 0.05:
                shaken = ReplicationState.load(shaken.dump(), 2, log.fetch, checkpoint_every=every)
                restarts += 1
    assert late > HISTORIES
    print(f"{HISTORIES} histories, {restarts} restarts, {late} units of members behind the others: judged alike")
