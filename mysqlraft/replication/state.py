"""The replicated state: what the committed log has done so far, and what its next entry means at this site.

Pure: no clock, no server, no sockets. `ReplicationState.step` is fed every committed entry in index order and

1. drops what the session rule drops (`mysqlraft.raft.sessions`): an entry counts only if it is the next of its
   origin's current session, or the OPEN of a greater one;
2. moves the origin's position and base;
3. certifies units and statements (`certify`);
4. returns a `Step`: what apply has to look at.

Units in parts take effect at the index of the last part. Until then only the indices of the parts are kept; at the
last one they are read again from the log, and only their keys (8 bytes each) stay in memory.

What survives a restart
-----------------------

`dump` is kept in the progress row, so it moves with the rows in one transaction. It holds every origin's position,
and a *checkpoint*: which entries of each origin counted up to an index at or below the floor. The certification map is
rebuilt from the entries above the checkpoint (`rebuild_from`), and the checkpoint is what makes that exact: without
it a duplicate in the log could not be told from the entry that it repeats.

The floor
---------

Row keys are forgotten at the lowest base of all members that write, and what has a base below that is judged without
them. So who is a member has to be the same at every site at the same index: it is what the log's configurations say,
never what a site's file does. A member that was never heard of holds the floor; one that was removed does not. Whoever
is added after keys were forgotten may well begin below the floor, which does not go down for it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

import msgpack
from xxhash import xxh3_64_intdigest

from mysqlraft.binlog.tablemap import names
from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.sessions import SessionTable
from mysqlraft.replication.certify import Certifier, TableName, Verdict, sorted_keys
from mysqlraft.replication.entry import Payload, PayloadKind, Position, Unit, decode
from mysqlraft.replication.policy import Certification

FORMAT = 4
CHECKPOINT_EVERY = 1024
"""Log indices between two checkpoints; a rebuild reads at most this many entries more than it needs."""
_PACKER = msgpack.Packer()
CHECKS = 8
"""Of the last so many checkpoints the running checksum is told to the other sites."""
LARGE_UNIT_WRITERS = 1000
"""Of a unit in parts, the first so many conflicting keys are described in the conflict history."""


class StateError(Exception):
    """The log or the stored state cannot be followed any further; the text says why."""


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

    ``units``: each unit with its certification, in order; for LARGE one, without changes or keys.
    ``certification``: of a statement.
    """

    index: int
    kind: StepKind = StepKind.NOTHING
    accepted: bool = False
    payload: Payload | None = None
    units: list[tuple[Unit, Certification]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    certification: Certification | None = None


class ReplicationState:
    """Follows the committed log at one site.

    Invariants: `index` is that of the last entry stepped; every origin's `base` is below `index`; the certifier's
    floor never goes down.
    """

    def __init__(self, site: int, fetch: Fetch, *, checkpoint_every: int = CHECKPOINT_EVERY) -> None:
        self.site = site
        self.index = 0
        self.members: tuple[int, ...] = ()
        """Who may write: the members with a server, of the last configuration in the log."""
        self.origins: dict[int, Origin] = {site: Origin()}
        self.digest = 0
        """The running checksum of all that was accepted and what was in conflict. The same at every site at the same
        index, or one of them has gone astray (mysqlraft.divergence)."""
        self.checks: tuple[tuple[int, int], ...] = ()
        """(index, digest) of the last checkpoints since this state was loaded; replaced, never changed."""
        self.sessions = SessionTable()
        self.certifier = Certifier()
        self._fetch = fetch
        self._checkpoint_every = checkpoint_every
        self._checkpoints: deque[_Checkpoint] = deque([_Checkpoint(0, {}, {})])
        self._large: dict[int, list[int]] = {}
        self._dumped: dict[int, bytes] = {}
        """What `dump` says of each origin, until an entry changes it: most entries are of one origin."""
        self._dumped_checkpoint: tuple[_Checkpoint | None, bytes] = None, b""

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
            PayloadError: a payload of another version, or none at all.
            StateError: the entry is not the next one, or breaks the order of parts.
        """
        if entry.index != self.index + 1:
            raise StateError(f"entry {entry.index} after {self.index}: entries must come in index order without gaps")
        step = Step(entry.index)
        if entry.origin and self.sessions.accept(entry.origin, entry.session, entry.sequence):
            step = self._accepted(entry)
            self._dumped.pop(entry.origin, None)
            self.digest = xxh3_64_intdigest(b"%d %b" % (entry.index, _told(step)), self.digest)
        elif not entry.origin and entry.payload:
            self._configured(entry)
        self.index = entry.index
        if self.index % self._checkpoint_every == 0:
            self.checks = (*self.checks[1 - CHECKS :], (self.index, self.digest))
            self._checkpoints.append(_Checkpoint.of(self))
        self._forget()
        return step

    def _configured(self, entry: LogEntry) -> None:
        try:
            configuration = Configuration.decode(entry.payload)
        except ConfigurationError as error:
            raise StateError(f"entry {entry.index}: {error}: it is of another version") from error
        self.members = tuple(site for site, server in configuration.servers.items() if not server.witness)
        for member in self.members:
            self.origins.setdefault(member, Origin())

    def _accepted(self, entry: LogEntry) -> Step:
        index = entry.index
        payload = decode(entry.payload)
        origin = self.origins.setdefault(entry.origin, Origin())
        step = Step(index, accepted=True, payload=payload)
        if (entry.sequence == 1) != (payload.kind is PayloadKind.OPEN):
            raise StateError(
                f"entry {index}: sequence {entry.sequence} of session {entry.session} of site {entry.origin} is "
                f"{payload.kind.name}; a session has one OPEN, and it comes first"
            )
        if payload.kind is PayloadKind.OPEN:
            origin.parts = []
            if origin.resume is None:
                origin.resume, origin.done, origin.base = payload.resume, payload.done, payload.base
            return step
        if payload.kind is not PayloadKind.PART and origin.parts:
            raise StateError(f"entry {index}: site {entry.origin} has not sent the last part of the unit before it")
        if payload.kind is PayloadKind.UNITS:
            step.kind = StepKind.UNITS
            self._certify_units(step, entry.origin, payload)
        elif payload.kind is PayloadKind.PART:
            if payload.part != len(origin.parts):
                raise StateError(f"entry {index}: part {payload.part} of site {entry.origin}, not {len(origin.parts)}")
            origin.parts.append(index)
            if not payload.last:
                # The position moves with the last part only: until then a restarting capture reads the unit again.
                return step
            step.kind, step.parts = StepKind.LARGE, origin.parts
            origin.parts = []
            self._large[index] = step.parts
            self._certify_large(step, entry.origin)
        elif payload.kind is PayloadKind.DDL:
            assert payload.ddl is not None
            step.kind = StepKind.DDL
            verdict = self.certifier.certify_ddl(index, entry.origin, payload.base, _lower(payload.ddl.tables))
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
            certifier.enter(index, origin, unit.base, unit.keys, tables, verdict, wild)
            step.units.append((unit, certification))

    def _certify_large(self, step: Step, origin: int) -> None:
        certifier = self.certifier
        tables: set[TableName] = set()
        wild: set[TableName] = set()
        verdict = Verdict.CLEAN
        writers: list[tuple[int, int, int]] = []
        whole = Unit(0, 0, b"", [])

        def keys() -> Iterator[bytes]:
            nonlocal verdict
            for payload in self.parts(step.parts):
                named = [_table_name(table) for table in payload.tables]
                tables.update(named)
                for unit in payload.units:
                    whole.base, whole.committed_at = unit.base, unit.committed_at
                    wild.update(named[number] for number in unit.wild)
                    verdict = max(verdict, certifier.judge(origin, unit.base, unit.keys, tables, wild))
                    if verdict is Verdict.CONFLICT and len(writers) < LARGE_UNIT_WRITERS:
                        writers.extend(certifier.conflicting(origin, unit.base, unit.keys))
                    yield unit.keys

        arrays: list[array[int]] = list(sorted_keys(keys()))
        certifier.enter_large(step.index, origin, whole.base, arrays, tables, verdict, wild)
        del writers[LARGE_UNIT_WRITERS:]
        step.units = [(whole, Certification(step.index, origin, origin == self.site, verdict, writers))]

    def parts(self, indices: list[int]) -> Iterator[Payload]:
        """The payloads at these log indices, read one after the other."""
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
        # An array of FORMAT, index, array of origins, checkpoint, crossed, digest, members and floor.
        return b"".join(
            (
                _PACKER.pack_array_header(8),
                msgpack.packb(FORMAT),
                msgpack.packb(self.index),
                _PACKER.pack_array_header(len(origins)),
                *origins,
                packed,
                msgpack.packb(self.certifier.crossed),
                msgpack.packb(self.digest),
                msgpack.packb(self.members),
                msgpack.packb(self.certifier.floor),
            )
        )

    def _dump_origin(self, number: int) -> bytes:
        o = self.origins[number]
        resume = None if o.resume is None else (o.resume.file, o.resume.offset, o.resume.gtids, o.resume.identity)
        packed: bytes = msgpack.packb((number, *self.sessions.last(number), resume, o.done, o.base, o.parts))
        self._dumped[number] = packed
        return packed

    @classmethod
    def load(
        cls, data: bytes, site: int, fetch: Fetch, *, checkpoint_every: int = CHECKPOINT_EVERY
    ) -> ReplicationState:
        """The state that `dump` saw, with its certification map rebuilt from the log.

        Empty `data` is the state before the first entry.

        Raises:
            StateError: the bytes are of another version, or the log contradicts them.
        """
        state = cls(site, fetch, checkpoint_every=checkpoint_every)
        if not data:
            return state
        _, applied, stored, (index, sessions, parts), crossed, digest, members, floor = _unpack(data)
        state._checkpoints = deque([_Checkpoint(index, sessions, parts)])
        state.index = index
        state.sessions = SessionTable.from_dict(sessions)
        state.certifier = Certifier(index)
        for number, indices in parts.items():
            state.origins.setdefault(number, Origin()).parts = list(indices)
        # While entries are stepped again, the floor is at most what it was then: a member's base is 0 until an entry of
        # its own says more.
        for number, _, _, resume, _, _, _ in stored:
            origin = state.origins.setdefault(number, Origin())
            origin.resume = None if resume is None else Position(*resume)
        if index < applied:
            for entry in fetch(index + 1, applied):
                state.step(entry)
        if state.index != applied:
            raise StateError(f"the log ends at {state.index}, but this server holds it up to {applied}")
        for number, session, sequence, resume, done, base, open_parts in stored:
            if state.sessions.last(number) != (session, sequence) or state.origins[number].parts != open_parts:
                raise StateError(
                    f"the log up to {applied} does not lead to the state stored in mysqlraft.progress (site {number}: "
                    f"{state.sessions.last(number)} instead of {(session, sequence)}): it is another cluster's log"
                )
            state.origins[number] = Origin(
                None if resume is None else Position(*resume), (done[0], done[1]), base, open_parts
            )
        state._dumped.clear()
        state.members = tuple(members)
        state.certifier.forget(floor)
        state._forget()
        state.certifier.crossed = crossed
        # Below the floor, entries that are stepped again may be judged otherwise: what was judged then is what counts.
        state.digest, state.checks = digest, ()
        return state


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
    told = bytes([certification.verdict is Verdict.CONFLICT for _, certification in step.units])
    return told if step.certification is None else told + bytes([step.certification.verdict])


@lru_cache(maxsize=4096)
def _table_name(body: bytes) -> TableName:
    """Schema and table of a table map; in lower case, since some servers do not tell the cases apart."""
    schema, table = names(body)
    return schema.lower(), table.lower()


def _lower(tables: Iterable[TableName]) -> list[TableName]:
    return [(schema.lower(), None if table is None else table.lower()) for schema, table in tables]


def _unpack(data: bytes) -> Any:
    try:
        dumped = msgpack.unpackb(data, strict_map_key=False)
        version = dumped[0]
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise StateError(f"mysqlraft.progress.state is not a dumped state: {error}") from None
    if version != FORMAT:
        raise StateError(
            f"mysqlraft.progress.state has format {version!r}, this mysqlraft reads {FORMAT}: run the one that wrote it"
        )
    return dumped
