"""Where in the binlog a stream is, and where the next one has to read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.dump import identity
from mysqlraft.binlog.events import rotate
from mysqlraft.binlog.gtid import DomainPositions, GtidSet
from mysqlraft.binlog.place import gtid_text


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """``file``, ``offset``, ``gtids``: where to read from; ``done``: (file, offset) up to which all has been read;
    ``identity``: of the file of ``done``, "" if not known, and then the place is none to read on from by file.

    Where they are not the same, ``passed`` is the GTIDs of all that has been read, and ``begun`` that of a transaction
    of which the statement has been read, but not the rows: another server has neither this file nor this place.
    """

    file: str
    offset: int
    gtids: str
    done: tuple[str, int]
    identity: str = ""
    passed: str = ""
    begun: str = ""


def file_number(file: str) -> int:
    """The order of binlog files: ``binlog.000012`` -> 12."""
    return int(file.rpartition(".")[2] or 0)


class Cursor:
    """A stream's place: the file that is read, and where the last complete transaction ended.

    ``done``: what begins before it has been read by an earlier stream.
    """

    def __init__(self, position: StreamPosition, *, mariadb: bool, elsewhere: tuple[str, int] | None = None) -> None:
        """``elsewhere``: reading begins by GTIDs, in files that may be another server's; the end of its binlog then.
        Up to there the server has, between what is new, transactions that were read elsewhere, in any order. It does
        not send those that are in the position's GTIDs; but a place between them is none to read on from by file."""
        self._start = position
        self._elsewhere = elsewhere
        self.file = position.file
        self.at = (position.file, position.offset)
        # What lies between is read again for the sake of prepared XA transactions.
        self.done = ("", 0) if elsewhere is not None or position.done == self.at else position.done
        self._kind = DomainPositions if mariadb else GtidSet
        self._gtids: GtidSet | DomainPositions = self._kind(position.gtids)
        self._has_gtids = bool(position.gtids)
        # None: they are those up to `at`.
        self._passed = self._kind(position.passed) if position.passed else None
        self._begun = position.begun
        self._entered = elsewhere is None
        # (file, identity) of the file that is read, and of the one that `position.done` is in.
        self._identity = ("", "")
        self._done_identity = (position.done[0], position.identity) if elsewhere is None else ("", "")
        self._low = self._high = 0

    @property
    def position(self) -> StreamPosition:
        """After the last complete transaction."""
        if not self._entered:
            return self._start
        return self.resuming(self.at[0], self.at[1], str(self._gtids) if self._has_gtids else "")

    def resuming(self, file: str, offset: int, gtids: str) -> StreamPosition:
        """The same, but to read again from an earlier place."""
        done = max(self.done, self.at, key=_order)
        passed = ""
        if self._passed is not None:
            passed = str(self._passed)
        elif self._has_gtids and (self._begun or done == self.at):
            passed = str(self._gtids)
        return StreamPosition(
            file,
            offset,
            gtids,
            done,
            "" if self._elsewhere is not None else self.identity_of(done[0]),
            "" if passed == gtids else passed,
            self._begun,
        )

    def identity_of(self, file: str) -> str:
        for known in (self._identity, self._done_identity):
            if known[0] == file:
                return known[1]
        return ""

    @property
    def looks_back(self) -> bool:
        """Whether transactions may come that have been read."""
        return bool(self.done[0]) or self._elsewhere is not None

    def begin(self, start: int, gtid: tuple[Any, ...]) -> bool:
        """A transaction begins there; whether all of it has been read before."""
        if self._elsewhere is None:
            return self._is_before_done(start + 1)
        if not self._entered:
            # All that the server has before it is in the GTIDs.
            self._entered = True
            self.at = (self.file, start)
        return bool(gtid) and self._passed is not None and self._passed.holds(*gtid)

    def has_begun(self, start: int, gtid: tuple[Any, ...] | None) -> bool:
        """Whether the statement of the transaction that begins there has been read before."""
        return self._is_before_done(start) or (bool(self._begun) and gtid_text(gtid) == self._begun)

    def part_read(self, start: int, gtid: tuple[Any, ...] | None) -> None:
        """The statement of the transaction that begins there has been read, its rows have not."""
        self.done = (self.file, start + 1)
        self._begun = gtid_text(gtid)

    def _is_before_done(self, offset: int) -> bool:
        return (file_number(self.file), offset) < _order(self.done)

    def end(self, event: bytes) -> int:
        """Where the event ends in its file. The header counts to 4 GiB only; files may be larger. MariaDB from 11.4 on
        says it only of events that begin or end a group: this is where the last one ended, then."""
        low = int.from_bytes(event[13:17], "little") or self._low
        if low < self._low and self._low - low > 1 << 31:
            self._high += 1 << 32
            self._low = low
        elif low > self._low:
            self._low = low
        return self._high + low

    def start(self, event: bytes) -> int:
        """Where the event begins in its file."""
        return self.end(event) - int.from_bytes(event[9:13], "little")

    def advance(self, at: tuple[str, int], gtid: tuple[Any, ...] | None) -> None:
        """A transaction is complete that ends there."""
        if gtid:
            self._gtids.add(*gtid)
            self._has_gtids = True
            if self._passed is not None and not self._passed.holds(*gtid):
                self._passed.add(*gtid)
            if self._begun and gtid_text(gtid) == self._begun:
                self._begun = ""
        self._go_to(at)

    def _go_to(self, at: tuple[str, int]) -> None:
        self.at = at
        looks_back = self._passed is not None or self._elsewhere is not None
        if looks_back and _order(at) >= _order(self._elsewhere or self.done):
            # Whatever was read before lies behind now.
            self._elsewhere = self._passed = None

    def rotate(self, event: bytes) -> None:
        """ROTATE: another file begins, or the dump."""
        file, offset = rotate(event)
        self.file = file
        self._low, self._high = offset & 0xFFFFFFFF, offset >> 32 << 32

    def identify(self, event: bytes) -> None:
        """FORMAT_DESCRIPTION: which file this is, of those that had its name."""
        self._identity = (self.file, identity(event))

    def enter(self) -> None:
        """Nothing of the file has been read yet: if it is a later one, there is where to go on."""
        if self._entered and file_number(self.file) > file_number(self.at[0]):
            self._go_to((self.file, 4))


def _order(place: tuple[str, int]) -> tuple[int, int]:
    return file_number(place[0]), place[1]
