"""What is judged does not depend on who restarted when, on when members come and go, nor on what an origin proposes."""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mysqlraft.raft.configuration import Configuration, Server
from mysqlraft.replication import certify, runs
from mysqlraft.replication.entry import (
    Change,
    ChangeKind,
    Ddl,
    Flavour,
    OtherVersion,
    Payload,
    PayloadKind,
    Position,
    Unit,
)
from mysqlraft.replication.runs import Damaged
from mysqlraft.replication.state import ReplicationState, Step
from tests.harness.amount import histories
from tests.replication.harness import LoggedEntry

HISTORIES = histories(240)
TABLES = [b"\x01s\x00\x01%c\x00" % name for name in b"abc"]
STATEMENTS = [
    b"TRUNCATE TABLE a",
    b"CREATE TABLE IF NOT EXISTS a (id INT)",
    b"CREATE INDEX IF NOT EXISTS i ON a (id)",
    b"DROP TABLE IF EXISTS a",
    b"RENAME TABLE a TO aside, b TO a, aside TO b",
]
NOWHERE = Position("", 0), ("", 0)


class History(list[LoggedEntry]):
    """A random log in which sites lag, come and go. ``faulty``: what they propose may break the protocol."""

    def __init__(self, rng: random.Random, *, faulty: bool = False) -> None:
        super().__init__()
        self._rng, self._faulty = rng, faulty
        self._sessions: dict[int, int] = {}
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
                ddl = Ddl([("s", rng.choice("abc"[:tables]))], rng.choice(STATEMENTS), "s", {}, 0)
                self._say(PayloadKind.DDL, ddl=ddl)
            elif faulty and dice < 0.2:
                self._write_in_parts()
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

    def _write_in_parts(self) -> None:
        rng = self._rng
        site, count = rng.choice(sorted(self._members)), rng.randint(1, 4)
        pieces = rng.choice([1, 1, count, max(1, count - 1)])
        table = rng.choice(self._tables)
        for part in range(count):
            keys = struct.pack("<Q", rng.randint(1, self._keys))
            piece = (part, pieces) if part < pieces else (0, 1)
            unit = Unit(0, 0, keys, [Change(0, ChangeKind.UPDATE, b"", 1, b"", *piece)])
            self._say(PayloadKind.PART, [unit], site, tables=[table], part=part, last=part == count - 1)

    def _say(self, kind: PayloadKind, units: Iterable[Unit] = (), site: int | None = None, **fields: object) -> None:
        site = site or self._rng.choice(sorted(self._members))
        if self._faulty and self._rng.random() < 0.1:
            # It has seen that its session is void, or its capture has started anew.
            self._sessions[site] = self._sessions.get(site, 0) + 1
            self._sequences.pop(site, None)
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
        session, sequence = self._sessions.get(site, 1), self._sequences.get(site, 0) + 1
        self._sequences[site] = sequence
        data = payload.encode()
        if self._faulty and self._rng.random() < 0.1:
            sequence = self._rng.choice([sequence, sequence, 1, sequence + 1])
            data = self._spoilt(data)
        self.append(LoggedEntry(len(self) + 1, site, session, sequence, data))

    def _spoilt(self, data: bytes) -> bytes:
        rng = self._rng
        dice = rng.random()
        if dice < 0.2:
            return rng.randbytes(rng.randint(0, 40))
        if dice < 0.3:
            return data[: rng.randrange(len(data))]
        if dice < 0.5:
            spoilt = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                spoilt[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(spoilt)
        fields = msgpack.unpackb(data)
        place = fields
        while isinstance(place, list) and place:
            at = rng.randrange(len(place))
            if not isinstance(place[at], list) or rng.random() < 0.3:
                place[at] = rng.choice([None, -1, 0, 1, 3, 1 << 63, 0.5, True, "x", b"x", b"", [], [[]], {}, {"x": 1}])
                break
            place = place[at]
        return bytes(msgpack.packb(fields))


def fetching(log: History, fetched: list[int], first: int, last: int) -> Iterable[LoggedEntry]:
    for entry in log.fetch(first, last):
        fetched.append(entry.index)
        yield entry


def judged(step: Step) -> list[object]:
    """What has to be the same at every site of what a step says."""
    conflicts = [sorted(certification.writers) for _, certification in step.units]
    return [step.accepted, step.void, conflicts, step.certification and step.certification.verdict, step.missed]


def known_statements(state: ReplicationState) -> list[dict[str, Any]]:
    return [state.additions.__dict__, state.moves.__dict__]


class Site:
    """What a site's server holds: the state at some log index, and what is kept beside it."""

    def __init__(self, number: int, log: History, every: int, directory: Path | None) -> None:
        self.index, self._state, self._tables = 0, b"", b""
        self._statements: list[dict[str, Any]] = [{"_of": {}}, {"_moves": []}]
        self._number, self._log, self._every, self._directory = number, log, every, directory
        self.from_memos = 0

    def commit(self, state: ReplicationState) -> None:
        self._tables = state.dump_tables() or self._tables
        self.index, self._state, self._statements = state.index, state.dump(), deepcopy(known_statements(state))

    def start(self) -> ReplicationState:
        read: list[int] = []
        fetch = partial(fetching, self._log, read)
        state = ReplicationState.load(
            self._state,
            self._number,
            fetch,
            tables=self._tables,
            checkpoint_every=self._every,
            directory=self._directory,
        )
        assert state.index == self.index
        assert known_statements(state) == self._statements
        self.from_memos += bool(read) and read[0] > state.rebuild_from + 1
        return state


def damage(rng: random.Random, directory: Path) -> None:
    """Removes a file, cuts it short, or changes a byte of it."""
    files = sorted(directory.glob("*"))
    if not files:
        return
    path, dice = rng.choice(files), rng.random()
    content = bytearray(path.read_bytes())
    path.unlink()  # what looks at the file still sees it as it was
    if dice < 0.5:
        path.write_bytes(content[: rng.randint(0, len(content))])
    elif dice < 0.9 and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


@pytest.mark.timeout(300)
def test_a_restart_changes_nothing_that_is_judged() -> None:
    shaken = shake(HISTORIES)
    assert shaken.late > HISTORIES
    print(f"{HISTORIES} histories, {shaken}: judged alike")


@pytest.mark.timeout(300)
def test_whatever_an_origin_proposes_is_judged_alike() -> None:
    """It voids the origin's session at most, and never stops anybody."""
    shaken = shake(HISTORIES, faulty=True)
    assert shaken.void > HISTORIES
    print(f"{HISTORIES} histories, {shaken}: judged alike")


@pytest.mark.timeout(300)
def test_keys_in_files_change_nothing_that_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever becomes of the files."""
    caplog.set_level(logging.CRITICAL)
    for constant in ("SMALLEST", "CHUNK"):
        monkeypatch.setattr(runs, constant, 3)
    monkeypatch.setattr(certify, "GENERATION", 3)
    histories = HISTORIES // 8
    shaken = shake(histories, directory=tmp_path, faulty=True)
    assert shaken.from_memos > histories
    print(f"{histories} histories, {shaken}: judged alike")


@dataclass
class Shaken:
    """How many restarts, late units, void sessions, starts from memos, and files that were found damaged in use."""

    restarts: int = 0
    late: int = 0
    void: int = 0
    from_memos: int = 0
    damaged: int = 0


def shake(histories: int, *, faulty: bool = False, directory: Path | None = None) -> Shaken:
    """Follows random histories with restarts and without. The daemon dies at any moment, and forgets what its server
    has not committed."""
    seen = Shaken()
    for seed in range(histories):
        rng = random.Random(seed)
        log = History(rng, faulty=faulty)
        every = rng.choice([3, 10, 40])
        files = None if directory is None else directory / str(seed)
        steady = ReplicationState(1, log.fetch, checkpoint_every=every)
        shaken = ReplicationState(2, log.fetch, checkpoint_every=every, directory=files)
        site = Site(2, log, every, files)
        seen.late += log.late
        expected = []
        for entry in log:
            try:
                step = steady.step(entry)
            except OtherVersion:
                break
            seen.void += bool(step.void)
            expected.append((judged(step), steady.digest, steady.certifier.floor))
            if rng.random() < 0.05:
                seen.restarts += 1
                if files is not None and rng.random() < 0.2:
                    damage(rng, files)
                shaken = site.start()
            while shaken.index < entry.index:
                again = log[shaken.index]
                try:
                    found = judged(shaken.step(again)), shaken.digest, shaken.certifier.floor
                except Damaged:
                    # As the applier does.
                    shaken.certifier.runs.discard()
                    shaken = site.start()
                    seen.damaged += 1
                else:
                    assert found == expected[again.index - 1], f"seed {seed}: {again.index} is judged otherwise"
            if rng.random() < 0.4:
                site.commit(shaken)
        seen.from_memos += site.from_memos
    return seen
