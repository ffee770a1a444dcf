"""Where in the binlog a stream is, and where the next one has to read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.dump import identity
from mysqlraft.binlog.events import rotate
from mysqlraft.binlog.gtid import DomainPositions, GtidSet


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """``file``, ``offset``, ``gtids``: where to read from; ``done``: (file, offset) up to which all has been read;
    ``identity``: of the file of ``done``, "" if not known.
    """

    file: str
    offset: int
    gtids: str
    done: tuple[str, int]
    identity: str = ""


def file_number(file: str) -> int:
    """The order of binlog files: ``binlog.000012`` -> 12."""
    return int(file.rpartition(".")[2] or 0)


class Cursor:
    """A stream's place: the file that is read, and where the last complete transaction ended.

    ``done``: what begins before it has been read by an earlier stream.
    """

    def __init__(self, position: StreamPosition, *, mariadb: bool) -> None:
        self.file = position.file
        self.at = (position.file, position.offset)
        # What lies between is read again for the sake of prepared XA transactions. Without such, nothing is: and then
        # the places must not be compared, for by its GTIDs a position may be that of another server.
        self.done = ("", 0) if position.done == self.at else position.done
        self._gtids: GtidSet | DomainPositions = (DomainPositions if mariadb else GtidSet)(position.gtids)
        self._has_gtids = bool(position.gtids)
        # (file, identity) of the file that is read, and of the one that `position.done` is in.
        self._identity = ("", "")
        self._done_identity = (position.done[0], position.identity)
        self._low = self._high = 0

    @property
    def position(self) -> StreamPosition:
        """After the last complete transaction."""
        return self.resuming(self.at[0], self.at[1], str(self._gtids) if self._has_gtids else "")

    def resuming(self, file: str, offset: int, gtids: str) -> StreamPosition:
        """The same, but to read again from an earlier place."""
        done = max(self.done, self.at, key=lambda at: (file_number(at[0]), at[1]))
        return StreamPosition(file, offset, gtids, done, self._identity_of(done[0]))

    def _identity_of(self, file: str) -> str:
        for known in (self._identity, self._done_identity):
            if known[0] == file:
                return known[1]
        return ""

    def is_done(self, offset: int) -> bool:
        """Whether this place in the file that is read lies before `done`."""
        return (file_number(self.file), offset) < (file_number(self.done[0]), self.done[1])

    def end(self, event: bytes) -> int:
        """Where the event ends in its file. The header counts to 4 GiB only; files may be larger."""
        low = int.from_bytes(event[13:17], "little")
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
        self.at = at

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
        if file_number(self.file) > file_number(self.at[0]):
            self.at = (self.file, 4)
