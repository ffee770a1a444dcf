"""The replicated state: what the committed log has done so far, and what its next entry means at this site.

Pure: no clock, no server, no sockets. `ReplicationState.step` is fed every committed entry in index order and

1. drops what the session rule drops (`mysqlraft.raft.sessions`): an entry counts only if it is the next of its
   origin's current session, or the OPEN of a greater one;
2. moves the origin's position and base;
3. certifies units and statements (`certify`);
4. returns a `Step`: what apply has to look at.

An entry that breaks the protocol (no payload, a part out of order, a first entry that is no OPEN) is the fault of its
origin, and must not stop anybody else. It *voids* its origin's session: it does nothing, no later entry of the session
counts, and the parts of an incomplete unit are dropped, as when a greater session begins. This is a function of the
log, so every site does it alike. The origin sees it, too, and opens a session that begins where its last unit ended.

Units in parts take effect at the index of the last part. Until then only the indices of the parts are kept; at the
last one they are read again from the log, and only their keys (8 bytes each) stay in memory.

What survives a restart
-----------------------

`dump` is kept in the progress row, so it moves with the rows in one transaction. It holds every origin's position,
and a *checkpoint*: which entries of each origin counted up to an index at or below the floor. The certification map is
rebuilt from the entries above the checkpoint (`rebuild_from`), and the checkpoint is what makes that exact: without
it a duplicate in the log could not be told from the entry that it repeats.

What certification knows of tables is no function of the log above the checkpoint. So `dump_tables` is kept as well, in
the same transaction, in a row of its own that is written when the checkpoint passes the index of the one before: it
says what they were at an index not below the checkpoint, and a rebuild goes on from there exactly. While a silent
member holds the floor the checkpoint stays where it is, and nothing is written but `dump`, whose size does not grow.

A rebuild reads all that was written since the slowest member wrote last. So with a directory the keys are kept in files
beside the log, with memos of the whole state (`runs`), and a start reads on from the last memo. What it comes to must
be what the progress row says, digest included; if not, or if a file is missing or damaged, the log is read from the
checkpoint.

The floor
---------

Row keys are forgotten at the lowest base of all members that write, and what has a base below that is judged without
them. So who is a member has to be the same at every site at the same index: it is what the log's configurations say,
never what a site's file does. A member that was never heard of holds the floor; one that was removed does not. Whoever
is added after keys were forgotten may well begin below the floor, which does not go down for it.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgpack
import zstandard
from xxhash import xxh3_64_intdigest

from mysqlraft.binlog.commuting import commutes
from mysqlraft.binlog.repeating import repetition
from mysqlraft.binlog.tablemap import names
from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.sessions import SessionTable
from mysqlraft.replication.additions import Additions
from mysqlraft.replication.certify import Certifier, TableName, Verdict, sorted_keys
from mysqlraft.replication.entry import OtherVersion, Payload, PayloadError, PayloadKind, Position, Unit, decode
from mysqlraft.replication.moved_rows import Move, Moves
from mysqlraft.replication.pieces import PieceOrder, joined
from mysqlraft.replication.policy import Certification
from mysqlraft.replication.runs import Damaged, Memo, Runs

FORMAT = 5
OLDEST_FORMAT = 4
"""The mysqlraft before stored this one: the same fields, and text was UTF-8."""
_TEXT = "surrogateescape"
"""How names that are no UTF-8 are stored."""
CHECKPOINT_EVERY = 1024
"""Log indices between two checkpoints."""
CHECKPOINTS = 64
"""So many are held; of more, every second one goes. A rebuild reads at most a small part more than it needs."""
_log = logging.getLogger(__name__)
_PACKER = msgpack.Packer()
CHECKS = 8
"""Of the last so many checkpoints the running checksum is told to the other sites."""
LARGE_UNIT_WRITERS = 1000
"""Of a unit in parts, the first so many conflicting keys are described in the conflict history."""
LARGE_UNIT_CONTESTED = 100_000
"""With more contested keys a unit in parts is written again with all its rows."""


LOAD_ANEW = (
    "Bring the schema mysqlraft back from a backup of the same moment as the tables, else load this site anew from "
    "another one; then reload (SIGHUP)"
)


class StateError(Exception):
    """The log or the stored state cannot be followed any further; the text says why."""


class _Violation(Exception):
    """The entry breaks the protocol; the text says how."""


class LogEntry(Protocol):
    """What is looked at of a committed entry.

    Entries that Raft itself appends have origin 0; their payload is a `Configuration`, or empty.
    """

    @property
    def index(self) -> int: ...
    @property
    def origin(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


Fetch = Callable[[int, int], Iterable[LogEntry]]
"""(first, last) -> the committed entries from index first to last, both included, one after the other."""


@dataclass(slots=True)
class Origin:
    """What the log holds of one site's capture.

    ``resume``/``done`` are those of `Payload`, None until its first OPEN. ``base`` never goes down. ``parts`` are the
    log indices of the unit in parts that is not complete yet.
    """

    resume: Position | None = None
    done: tuple[str, int] = ("", 0)
    base: int = 0
    parts: list[int] = field(default_factory=list)


class StepKind(Enum):
    NOTHING = "nothing"
    """No rows: a Raft entry, a dropped one, OPEN, MARK, or a part of a unit whose last part is still to come."""
    UNITS = "units"
    LARGE = "large"
    """The last part of a unit in parts: `parts` are the log indices to read it from."""
    DDL = "ddl"


@dataclass(slots=True)
class Step:
    """What one committed entry means here.

    ``units``: each unit with its certification, in order; for LARGE one, without changes or keys. ``parts``: of LARGE,
    and those that hold the rows which a statement carries. ``certification``: of a statement. ``void``: how the entry
    broke the protocol, which has voided its session. ``missed``: a statement that one of the units did not know, and
    which took its rows elsewhere.
    """

    index: int
    kind: StepKind = StepKind.NOTHING
    accepted: bool = False
    payload: Payload | None = None
    units: list[tuple[Unit, Certification]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    certification: Certification | None = None
    alone: bool = True
    missed: Move | None = None
    void: str = ""


class ReplicationState:
    """Follows the committed log at one site.

    Invariants: `index` is that of the last entry stepped; every origin's `base` is below `index`; the certifier's
    floor never goes down.
    """

    def __init__(
        self, site: int, fetch: Fetch, *, checkpoint_every: int = CHECKPOINT_EVERY, directory: Path | None = None
    ) -> None:
        """`directory`: for the files of `runs`; without it all keys stay in memory."""
        self.site = site
        self.index = 0
        self.members: tuple[int, ...] = ()
        """Who may write: the members with a server, of the last configuration in the log."""
        self.origins: dict[int, Origin] = {site: Origin()}
        self.digest = 0
        """The running checksum of all that was accepted and what was in conflict. The same at every site at the same
        index, or one of them has gone astray (mysqlraft.divergence)."""
        self.checks: tuple[tuple[int, int], ...] = ()
        """(index, digest) of the last checkpoints since this process began; replaced, never changed."""
        self.sessions = SessionTable()
        self.certifier = Certifier(runs=Runs(directory))
        self.additions = Additions()
        self.moves = Moves()
        self._directory = directory
        self._fetch = fetch
        self._checkpoint_every = checkpoint_every
        self._checkpoints: deque[_Checkpoint] = deque([_Checkpoint(0, {}, {})])
        self._large: dict[int, list[int]] = {}
        self._statements: list[int] = []
        """Log indices of those above the floor."""
        self._dumped: dict[int, bytes] = {}
        """What `dump` says of each origin, until an entry changes it: most entries are of one origin."""
        self._dumped_checkpoint: tuple[_Checkpoint | None, bytes] = None, b""
        self._tables_at = 0
        """The log index of what `dump_tables` said last."""
        self._exact = True
        """Whether it is what it would be without any restart; if not, it is worth no memo."""

    @property
    def floor(self) -> int:
        """The lowest base of all members: but for those that were added late, no unit to come has a lower one."""
        return min([self.origins[member].base for member in self.members], default=0)

    @property
    def rebuild_from(self) -> int:
        """A restart reads the log from the entry after this index."""
        return self._checkpoints[0].index

    @property
    def needed_from(self) -> int:
        """The lowest log index that this site may still have to read, open parts included."""
        first = self._checkpoints[0]
        open_parts = [parts[0] for parts in first.parts.values() if parts]
        open_parts += [origin.parts[0] for origin in self.origins.values() if origin.parts]
        return min([first.index + 1, *open_parts])

    def indices_of(self, index: int) -> list[int]:
        """The log indices that hold what the entry at `index`, a last writer, wrote: several for a unit in parts."""
        return self._large.get(index, [index])

    def step(self, entry: LogEntry) -> Step:
        """Takes the next committed entry.

        Raises:
            OtherVersion: a payload of another version.
            StateError: the entry is not the next one, or a configuration of another version.
            Damaged: a file of `runs` is; load the state again.
        """
        if entry.index != self.index + 1:
            raise StateError(f"entry {entry.index} after {self.index}: entries must come in index order without gaps")
        step = Step(entry.index)
        if entry.origin and self.sessions.accept(entry.origin, entry.session, entry.sequence):
            try:
                step = self._accepted(entry, self._checked(entry))
            except _Violation as violation:
                step.void = str(violation)
                self.sessions.void(entry.origin)
                self.origins.setdefault(entry.origin, Origin()).parts = []
            self._dumped.pop(entry.origin, None)
            self.digest = xxh3_64_intdigest(b"%d %b" % (entry.index, _told(step)), self.digest)
        elif not entry.origin and entry.payload:
            self._configured(entry)
        self.index = entry.index
        if self.index % self._checkpoint_every == 0:
            self.checks = (*self.checks[1 - CHECKS :], (self.index, self.digest))
            self._checkpoints.append(_Checkpoint.of(self))
            if len(self._checkpoints) > CHECKPOINTS:
                first, *rest = self._checkpoints
                self._checkpoints = deque([first, *rest[1::2]])
        self._forget()
        self.certifier.tend(self._memo if self._exact else None)
        return step

    def _configured(self, entry: LogEntry) -> None:
        try:
            configuration = Configuration.decode(entry.payload)
        except ConfigurationError as error:
            raise StateError(f"entry {entry.index}: {error}: it is of another version") from error
        self.members = tuple(site for site, server in configuration.servers.items() if not server.witness)
        for member in self.members:
            self.origins.setdefault(member, Origin())

    def _checked(self, entry: LogEntry) -> Payload:
        """The entry's payload, with which nothing more can go wrong. Changes nothing.

        Raises:
            OtherVersion: it is of another version.
            _Violation: it breaks the protocol.
        """
        try:
            payload = decode(entry.payload)
            for table in payload.tables:
                _table_name(table)
        except OtherVersion as error:
            raise OtherVersion(f"entry {entry.index}: {error}") from None
        except (PayloadError, IndexError) as error:
            raise _Violation(str(error)) from None
        if (entry.sequence == 1) != (payload.kind is PayloadKind.OPEN):
            raise _Violation(
                f"sequence {entry.sequence} is {payload.kind.name}; a session has one OPEN, and it comes first"
            )
        if max([payload.base, *[unit.base for unit in payload.units]]) >= entry.index:
            raise _Violation("its base is an entry that comes later")
        known = self.origins.get(entry.origin)
        parts = len(known.parts) if known is not None and payload.kind is not PayloadKind.OPEN else 0
        if payload.kind is PayloadKind.PART and payload.part != parts:
            raise _Violation(f"part {payload.part} of a unit, not {parts}")
        carried = payload.ddl.parts if payload.ddl is not None else 0
        if payload.kind is not PayloadKind.PART and parts != carried:
            raise _Violation(f"{payload.kind.name} after {parts} parts of a unit that has begun, not {carried}")
        if carried and known is not None:
            for _ in self._in_order(known.parts):
                pass
        return payload

    def _accepted(self, entry: LogEntry, payload: Payload) -> Step:
        index = entry.index
        origin = self.origins.setdefault(entry.origin, Origin())
        step = Step(index, accepted=True, payload=payload)
        if payload.kind is PayloadKind.OPEN:
            origin.parts = []
            if origin.resume is None:
                origin.resume, origin.done, origin.base = payload.resume, payload.done, payload.base
            return step
        if payload.kind is PayloadKind.UNITS:
            step.kind = StepKind.UNITS
            self._certify_units(step, entry.origin, payload)
        elif payload.kind is PayloadKind.PART:
            origin.parts.append(index)
            if not payload.last:
                # The position moves with the last part only: until then a restarting capture reads the unit again.
                return step
            step.kind, step.parts = StepKind.LARGE, origin.parts
            origin.parts = []
            self._certify_large(step, entry.origin)
            self._large[index] = step.parts
        elif payload.kind is PayloadKind.DDL:
            assert payload.ddl is not None
            step.kind, step.parts = StepKind.DDL, origin.parts
            origin.parts = []
            ddl = payload.ddl
            self.additions.enter(index, ddl)
            self.moves.enter(index, entry.origin, ddl)
            self._statements.append(index)
            tables, number = _lower(ddl.tables), repetition(ddl.text, ddl.schema, ddl.context)
            step.alone = self.certifier.alone(entry.origin, payload.base, tables, number)
            verdict = self.certifier.certify_ddl(
                index, entry.origin, payload.base, tables, commutes=commutes(ddl.text, ddl.schema), repetition=number
            )
            step.certification = Certification(index, entry.origin, entry.origin == self.site, verdict)
        origin.resume, origin.done = payload.resume, payload.done
        origin.base = max(origin.base, payload.base)
        return step

    def _certify_units(self, step: Step, origin: int, payload: Payload) -> None:
        index, own, certifier = step.index, origin == self.site, self.certifier
        named = [_table_name(table) for table in payload.tables]
        every = tuple(dict.fromkeys(named))
        clean = Certification(index, origin, own, Verdict.CLEAN)
        for unit in payload.units:
            tables = every if len(every) == 1 else tuple({named[change.table] for change in unit.changes})
            wild = tuple({named[number] for number in unit.wild}) if unit.wild else ()
            verdict = certifier.judge(origin, unit.base, unit.keys, tables, wild)
            certification = clean
            if verdict is Verdict.CONFLICT:
                writers = certifier.conflicting(origin, unit.base, unit.keys)
                certification = Certification(index, origin, own, verdict, writers)
            elif verdict is not Verdict.CLEAN:
                certification = Certification(index, origin, own, verdict)
            if own and verdict is not Verdict.CLEAN and certifier.by_keys_alone(origin, unit.base, tables, wild):
                contested = certifier.contested(origin, unit.base, unit.keys)
                certification = replace(certification, contested=contested)
            certifier.enter(index, origin, unit.base, unit.keys, tables, verdict, wild)
            step.missed = step.missed or self.moves.missed(origin, unit.base, tables)
            step.units.append((unit, certification))

    def _certify_large(self, step: Step, origin: int) -> None:
        """Raises _Violation, before anything is entered: the pieces of a row do not fit each other."""
        certifier, own = self.certifier, origin == self.site
        tables: set[TableName] = set()
        wild: set[TableName] = set()
        verdict = Verdict.CLEAN
        writers: list[tuple[int, int, int]] = []
        whole = Unit(0, 0, b"", [])
        contested: set[int] = set()

        def keys() -> Iterator[bytes]:
            nonlocal verdict
            for payload in self._in_order(step.parts):
                named = [_table_name(table) for table in payload.tables]
                tables.update(named)
                for unit in payload.units:
                    whole.base, whole.committed_at = unit.base, unit.committed_at
                    wild.update(named[number] for number in unit.wild)
                    found = certifier.judge(origin, unit.base, unit.keys, tables, wild)
                    verdict = max(verdict, found)
                    if found is not Verdict.CLEAN and own and len(contested) <= LARGE_UNIT_CONTESTED:
                        contested.update(certifier.contested(origin, unit.base, unit.keys))
                    if verdict is Verdict.CONFLICT and len(writers) < LARGE_UNIT_WRITERS:
                        writers.extend(certifier.conflicting(origin, unit.base, unit.keys))
                    yield unit.keys

        arrays: list[array[int]] = list(sorted_keys(keys()))
        exact = (
            own and len(contested) <= LARGE_UNIT_CONTESTED and certifier.by_keys_alone(origin, whole.base, tables, wild)
        )
        certifier.enter_large(step.index, origin, whole.base, arrays, tables, verdict, wild)
        step.missed = self.moves.missed(origin, whole.base, tables)
        del writers[LARGE_UNIT_WRITERS:]
        certification = Certification(step.index, origin, own, verdict, writers, contested if exact else None)
        step.units = [(whole, certification)]

    def parts(self, indices: list[int]) -> Iterator[Payload]:
        """The payloads at these log indices, read one after the other; each row in the part of its last piece, if that
        of its first is among them."""
        return joined(self._parts(indices))

    def _in_order(self, indices: list[int]) -> Iterator[Payload]:
        """The parts as they are. Raises _Violation: the pieces of a row do not fit each other."""
        order = PieceOrder()
        for payload in self._parts(indices):
            try:
                order.follow(payload)
            except PayloadError as error:
                raise _Violation(str(error)) from None
            yield payload

    def _parts(self, indices: list[int]) -> Iterator[Payload]:
        wanted = set(indices)
        for entry in self._fetch(indices[0], indices[-1]):
            if entry.index in wanted:
                wanted.remove(entry.index)
                yield decode(entry.payload)
        if wanted:
            raise StateError(f"the log does not hold entries {sorted(wanted)}, parts of a unit that it completes")

    def _forget(self) -> None:
        floor = self.floor
        if floor > self.certifier.floor:
            self.certifier.forget(floor)
            self.additions.forget(floor)
            self.moves.forget(floor)
            self._statements = [index for index in self._statements if index > floor]
            for index in [index for index in self._large if index <= floor]:
                del self._large[index]
            checkpoints = self._checkpoints
            while len(checkpoints) > 1 and checkpoints[1].index <= floor:
                checkpoints.popleft()

    def dump(self) -> bytes:
        """The bytes of the progress row's `state` column."""
        checkpoint, packed = self._dumped_checkpoint
        if checkpoint is not self._checkpoints[0]:
            checkpoint = self._checkpoints[0]
            packed = msgpack.packb((checkpoint.index, checkpoint.sessions, checkpoint.parts))
            self._dumped_checkpoint = checkpoint, packed
        origins = [self._dumped.get(number) or self._dump_origin(number) for number in self.origins]
        # An array of FORMAT, index, array of origins, checkpoint, nothing (before: the crossed units), digest, members
        # and floor. New fields are appended, and one that is absent has its default.
        return b"".join(
            (
                _PACKER.pack_array_header(8),
                msgpack.packb(FORMAT),
                msgpack.packb(self.index),
                _PACKER.pack_array_header(len(origins)),
                *origins,
                packed,
                b"\x90",
                msgpack.packb(self.digest),
                msgpack.packb(self.members),
                msgpack.packb(self.certifier.floor),
            )
        )

    def _dump_origin(self, number: int) -> bytes:
        o = self.origins[number]
        resume = None if o.resume is None else o.resume.fields
        packed: bytes = msgpack.packb((number, *self.sessions.last(number), resume, o.done, o.base, o.parts))
        self._dumped[number] = packed
        return packed

    def dump_tables(self) -> bytes | None:
        """What has to be kept beside `dump`, from the same transaction on; None: what it was before will do."""
        if self._checkpoints[0].index <= self._tables_at:
            return None
        self._tables_at = self.index
        return zstandard.compress(self._pack_tables())

    def _pack_tables(self) -> bytes:
        bases = {number: origin.base for number, origin in self.origins.items()}
        known = (self.index, self.certifier.floor, self.members, bases, self.certifier.tables)
        packed: bytes = msgpack.packb(known, unicode_errors=_TEXT)
        return packed

    def _restore_tables(self, floor: int, members: Iterable[int], bases: dict[int, int], tables: Any) -> None:
        self.members = tuple(members)
        for number, base in bases.items():
            self.origins.setdefault(number, Origin()).base = base
        self.certifier.restore(floor, tables)

    def _memo(self) -> Memo:
        checkpoints = [(each.index, each.sessions, each.parts) for each in self._checkpoints]
        state = msgpack.packb((self.dump(), self._pack_tables(), checkpoints, self._large, self._statements))
        return Memo(self.index, self.certifier.floor, state)

    @classmethod
    def load(
        cls,
        data: bytes,
        site: int,
        fetch: Fetch,
        *,
        tables: bytes = b"",
        checkpoint_every: int = CHECKPOINT_EVERY,
        directory: Path | None = None,
    ) -> ReplicationState:
        """The state that `dump` saw, with its certification map.

        Empty `data` is the state before the first entry. ``tables``: what `dump_tables` said last; empty as long as it
        has not said anything. ``directory``: what it was when the state ran.

        Raises:
            StateError: the bytes are of another version, or the log contradicts them.
        """
        stored = _Stored.of(data, tables) if data else None
        runs = Runs(directory)
        if stored is not None:
            for memo in runs.memos(stored.index):
                if memo.index < stored.checkpoint.index:
                    continue  # The log may begin at the checkpoint.
                state = cls(site, fetch, checkpoint_every=checkpoint_every)
                state._directory, state.certifier.runs = directory, runs
                if state._goes_on(memo, stored):
                    runs.settle()
                    return state
        runs.discard()
        state = cls(site, fetch, checkpoint_every=checkpoint_every, directory=directory)
        if stored is not None:
            state._rebuild(stored)
        return state

    def take_checks(self, before: ReplicationState) -> None:
        """Keeps what the state that this one replaces knew of checkpoints: a running checksum is the log's alone, so a
        failure of a session with the server does not take it back."""
        known = {index: digest for index, digest in before.checks if index <= self.index} | dict(self.checks)
        self.checks = tuple(sorted(known.items())[-CHECKS:])

    def _goes_on(self, memo: Memo, stored: _Stored) -> bool:
        """Follows the log from the memo to what is stored, and whether that is where it leads."""
        data, tables, checkpoints, self._large, self._statements = msgpack.unpackb(memo.state, strict_map_key=False)
        then = _Stored.of(data, b"")
        self._take(then)
        self._restore_tables(*_unpack_tables(tables)[1:])
        self._checkpoints = deque(_Checkpoint(*each) for each in checkpoints)
        self._exact = False
        # Those that were forgotten since may have left the log.
        self._statements = [index for index in self._statements if index > stored.floor]
        for index in self._statements:
            for entry in self._fetch(index, index):
                ddl = decode(entry.payload).ddl
                assert ddl is not None
                self.additions.enter(index, ddl)
                self.moves.enter(index, entry.origin, ddl)
        try:
            for entry in self._fetch(self.index + 1, stored.index) if self.index < stored.index else ():
                self.step(entry)
        except Damaged as error:
            _log.warning("%s", error)
            return False
        led_to = (self.index, self.digest, self.members, self.certifier.floor)
        if led_to != (stored.index, stored.digest, stored.members, stored.floor):
            return False
        found = {number: (self.sessions.last(number), origin) for number, origin in self.origins.items()}
        if found != stored.origins:
            return False
        self._loaded(stored)
        return True

    def _take(self, stored: _Stored) -> None:
        """All of it but for what certification knows."""
        self.index, self.digest, self.members = stored.index, stored.digest, stored.members
        sessions = {number: last for number, (last, _) in stored.origins.items() if last != (0, 0)}
        self.sessions = SessionTable.from_dict(sessions)
        self.origins = {self.site: Origin(), **{number: origin for number, (_, origin) in stored.origins.items()}}
        self._dumped.clear()

    def _loaded(self, stored: _Stored) -> None:
        self._exact = True
        self._tables_at = stored.tables_at
        # Until another one is stored.
        later = [each for each in self._checkpoints if each.index > stored.checkpoint.index]
        self._checkpoints = deque([stored.checkpoint, *later])

    def _rebuild(self, stored: _Stored) -> None:
        checkpoint = stored.checkpoint
        self._checkpoints = deque([checkpoint])
        self.index = checkpoint.index
        self.sessions = SessionTable.from_dict(checkpoint.sessions)
        self.certifier = Certifier(checkpoint.index, self.certifier.runs)
        self._exact = False
        for number, indices in checkpoint.parts.items():
            self.origins.setdefault(number, Origin()).parts = list(indices)
        # While entries are stepped again, the floor is at most what it was then: a member's base is 0 until an entry of
        # its own says more.
        for number, (_, origin) in stored.origins.items():
            self.origins.setdefault(number, Origin()).resume = origin.resume
        if stored.tables is not None and self.index == stored.tables_at:
            self._restore_tables(*stored.tables)
        for entry in self._fetch(self.index + 1, stored.index) if self.index < stored.index else ():
            self.step(entry)
            if stored.tables is not None and self.index == stored.tables_at:
                self._restore_tables(*stored.tables)
        if self.index != stored.index:
            raise StateError(f"the log ends at {self.index}, but this server holds it up to {stored.index}")
        for number, (last, origin) in stored.origins.items():
            if self.sessions.last(number) != last or self.origins[number].parts != origin.parts:
                raise StateError(
                    f"the log up to {stored.index} does not lead to the state stored in mysqlraft.progress (site "
                    f"{number}: {self.sessions.last(number)} instead of {last}): it is another cluster's log"
                )
        # Below the floor, entries that are stepped again may be judged otherwise: what was judged then is what counts.
        self._take(stored)
        self.checks = ()
        self.certifier.forget(stored.floor)
        self.additions.forget(stored.floor)
        self.moves.forget(stored.floor)
        self._loaded(stored)
        if stored.tables is None and checkpoint.index:
            self.certifier.restore_crossed(stored.crossed)
            self._tables_at = -1
        self.certifier.put_by(self._memo)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the progress row holds, and the row beside it: ``tables`` at log index ``tables_at``, not below the
    checkpoint's; None if a format before has not left any. ``origins``: (session, sequence), and the rest."""

    index: int
    origins: dict[int, tuple[tuple[int, int], Origin]]
    checkpoint: _Checkpoint
    crossed: list[tuple[str, str | None, int, int]]
    digest: int
    members: tuple[int, ...]
    floor: int
    tables_at: int
    tables: tuple[int, list[int], dict[int, int], Any] | None

    @classmethod
    def of(cls, data: bytes, tables: bytes) -> _Stored:
        """Raises StateError."""
        _, applied, listed, checkpoint, crossed, digest, members, floor = _unpack(data)
        origins = {
            number: (
                (session, sequence),
                Origin(None if resume is None else Position(*resume), (done[0], done[1]), base, parts),
            )
            for number, session, sequence, resume, done, base, parts in listed
        }
        tables_at, known = 0, None
        if tables:
            tables_at, *known = _unpack_tables(zstandard.decompress(tables))
            if not checkpoint[0] <= tables_at <= applied:
                raise StateError(
                    f"mysqlraft.certification is of log index {tables_at}, mysqlraft.progress of {checkpoint[0]} to "
                    f"{applied}: they do not belong together"
                )
        return cls(
            applied, origins, _Checkpoint(*checkpoint), crossed, digest, tuple(members), floor, tables_at,
            None if known is None else tuple(known),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Which entries counted up to `index`: origin -> (session, sequence), and the parts open there."""

    index: int
    sessions: dict[int, tuple[int, int]]
    parts: dict[int, list[int]]

    @classmethod
    def of(cls, state: ReplicationState) -> _Checkpoint:
        parts = {number: list(origin.parts) for number, origin in state.origins.items() if origin.parts}
        return cls(state.index, state.sessions.to_dict(), parts)


def _told(step: Step) -> bytes:
    """What was judged, as far as it is the same at every site: of units only whether they are in conflict. After a
    restart, a unit whose base lies before the checkpoint may count as re-asserted to be on the safe side."""
    if step.void:
        return b"void"
    told = bytes([certification.verdict is Verdict.CONFLICT for _, certification in step.units])
    return told if step.certification is None else told + bytes([step.certification.verdict])


@lru_cache(maxsize=4096)
def _table_name(body: bytes) -> TableName:
    """Schema and table of a table map; in lower case, since some servers do not tell the cases apart."""
    schema, table = names(body)
    return schema.lower(), table.lower()


def _lower(tables: Iterable[TableName]) -> list[TableName]:
    return [(schema.lower(), None if table is None else table.lower()) for schema, table in tables]


def _unpack_tables(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False, unicode_errors=_TEXT)


def _unpack(data: bytes) -> Any:
    try:
        dumped = msgpack.unpackb(data, strict_map_key=False, unicode_errors=_TEXT)
        version = dumped[0]
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise StateError(f"mysqlraft.progress.state is not a dumped state: {error}. {LOAD_ANEW}") from None
    if version not in (OLDEST_FORMAT, FORMAT):
        raise StateError(
            f"mysqlraft.progress.state has format {version!r}, this mysqlraft reads {OLDEST_FORMAT} and {FORMAT}: run "
            "the one that wrote it"
        )
    return dumped
