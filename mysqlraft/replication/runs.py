"""Sorted runs of row keys with their last writers: what certification holds of a member that is far behind.

Theory of operation
-------------------

A member that is silent holds the floor, and above the floor no key may be forgotten. So what no longer belongs into a
dictionary becomes a *run*: sorted, never changed, in a file. When `FANOUT` runs are of one size they are merged into
the next size, a little for every key that comes in. There are then few runs whatever is held, a look-up in each takes
three pages of a file that the kernel may drop from memory, mostly one if it is in vain, and this process holds a byte
for every sixty keys.

The files are a cache of the log. A *memo* names the runs that hold all keys up to a log index, and keeps what else the
state was at that index; with it a start has to read the log from there on only. The two last memos are kept: the last
one may be of an index that the site's server had not committed when it died. A memo or a run that is damaged, missing
or of another version is no reason to judge otherwise: all of them are removed, and the log is read from the checkpoint.

A disk that takes no file costs memory: the run stays there, and is written later.

A run's file
------------

Groups of a filter and up to `GROUP` blocks; a block is `BLOCK` keys and as many writers (8 bytes each, the last block
filled up). Then each block's first key, each block's and each filter's checksum, and the trailer: magic, keys, last log
index, checksum of all that is not a group. Filters and blocks are checked when they are looked at first. The bytes are
in the order of this machine.

A filter has a bit for each value of a key's lowest bits (keys are hashes), set if a key of the group has it. It spares
seven of eight look-ups in vain most of their time, and all pages but its own.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import uuid
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgpack
from xxhash import xxh3_64_digest, xxh3_64_intdigest

logger = logging.getLogger(__name__)

BLOCK = 512
GROUP = 8
FANOUT = 4
"""Runs of one size that are merged."""
SMALLEST = 1 << 17
"""Keys of the smallest size; the next is `FANOUT` times that."""
CHUNK = 1024
"""Keys of each run that are merged at a time: a millisecond or two."""
WORK = 8
"""Keys merged for each one that is entered: more than there are sizes."""
SYNC_BYTES = 8 << 20
"""A file is synced after so many, so that its end does not take long."""
MEMOS = 2
MEMO_VERSION = 1

_BLOCK_BYTES = 16 * BLOCK
_FILTER_BITS = 8 * BLOCK * GROUP
_FILTER_BYTES = _FILTER_BITS // 8
_ONE = ord("1")
_GROUP_BYTES = _FILTER_BYTES + GROUP * _BLOCK_BYTES
_PAD = (1 << 64) - 1
_MAGIC = 0x6D72_7275_6E73_0002
_TRAILER = "=QQQQ"
_TRAILER_BYTES = struct.calcsize(_TRAILER)


class Damaged(Exception):
    """A file is not what was written; all of them have been removed."""


class Memo(NamedTuple):
    """``state``: what else the state was at log index ``index``. ``floor``: its floor."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    floor: int
    state: bytes


class Run(Protocol):
    """Invariants: keys are sorted, none twice; ``last`` is the log index of the last writer."""

    @property
    def last(self) -> int: ...
    def __len__(self) -> int: ...
    def get(self, key: int) -> int:
        """The writer of `key`, 0 if there is none."""
        ...

    def items(self, first: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
        """At most so many keys from position `first` on, and their writers; at least one if there is one."""
        ...


class MemoryRun:
    """Keys and their writers, or the one writer of all, in arrays."""

    __slots__ = ("_keys", "_writers", "last")

    def __init__(self, keys: array[int], writers: array[int] | int, last: int) -> None:
        self._keys, self._writers, self.last = keys, writers, last

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: int) -> int:
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            return 0
        return self._writers if isinstance(self._writers, int) else self._writers[at]

    def items(self, first: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
        keys, writers = self._keys[first : first + count], self._writers
        return keys, [writers] * len(keys) if isinstance(writers, int) else writers[first : first + count]


class FileRun:
    """A run in a file, mapped: as LevelDB's tables are. A disk that fails under it ends the process."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and ValueError if it is damaged."""
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _FILTER_BYTES + _BLOCK_BYTES + _TRAILER_BYTES:
                raise ValueError("it is too short")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        self._bytes = memoryview(mapped)
        magic, count, last, checksum = struct.unpack(_TRAILER, self._bytes[-_TRAILER_BYTES:])
        self._count: int = count
        self.last: int = last
        blocks = -(-self._count // BLOCK)
        groups = -(-blocks // GROUP)
        index = groups * _FILTER_BYTES + blocks * _BLOCK_BYTES
        if magic != _MAGIC or size != index + 16 * blocks + 8 * groups + _TRAILER_BYTES:
            raise ValueError("it is no run, or not a whole one")
        if checksum != xxh3_64_intdigest(self._bytes[index : size - 8]):
            raise ValueError("its index is damaged")
        self._words = self._bytes[:index].cast("Q")
        self._firsts = array("Q", self._bytes[index : index + 8 * blocks].tobytes())
        self._checksums = self._bytes[index + 8 * blocks : index + 16 * blocks].cast("Q")
        self._filter_checksums = self._bytes[index + 16 * blocks : index + 16 * blocks + 8 * groups].cast("Q")
        self._sound = bytearray(blocks)
        self._filter_sound = bytearray(groups)

    def __len__(self) -> int:
        return self._count

    def get(self, key: int) -> int:
        block = bisect_right(self._firsts, key) - 1
        if block < 0:
            return 0
        group = block // GROUP
        if not self._filter_sound[group]:
            self._check_filter(group)
        bit = key % _FILTER_BITS
        if not self._bytes[group * _GROUP_BYTES + (bit >> 3)] & 128 >> (bit & 7):
            return 0
        if not self._sound[block]:
            self._check(block)
        words, start = self._words, _place(block) // 8
        end = start + BLOCK
        at = bisect_left(words, key, start, end)
        return words[at + BLOCK] if at < end and words[at] == key else 0

    def items(self, first: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
        """Those of one block."""
        block, at = divmod(first, BLOCK)
        if first >= self._count:
            return (), ()
        if not self._sound[block]:
            self._check(block)
        start = _place(block) // 8 + at
        count = min(count, BLOCK - at, self._count - first)
        return self._words[start : start + count].tolist(), self._words[start + BLOCK : start + BLOCK + count].tolist()

    def _check(self, block: int) -> None:
        """Raises Damaged."""
        at = _place(block)
        if xxh3_64_intdigest(self._bytes[at : at + _BLOCK_BYTES]) != self._checksums[block]:
            raise Damaged(f"{self.path} is damaged")
        self._sound[block] = 1

    def _check_filter(self, group: int) -> None:
        """Raises Damaged."""
        at = group * _GROUP_BYTES
        if xxh3_64_intdigest(self._bytes[at : at + _FILTER_BYTES]) != self._filter_checksums[group]:
            raise Damaged(f"{self.path} is damaged")
        self._filter_sound[group] = 1


def _place(block: int) -> int:
    """At which byte it begins."""
    group, number = divmod(block, GROUP)
    return group * _GROUP_BYTES + _FILTER_BYTES + number * _BLOCK_BYTES


class _FileWriter:
    """Writes a run's file from keys in order."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = path.open("xb")
        self._keys, self._writers = array("Q"), array("Q")
        self._firsts, self._checksums, self._filter_checksums = array("Q"), array("Q"), array("Q")
        self.count = self._unsynced = 0

    def add(self, keys: Sequence[int], writers: Sequence[int]) -> None:
        """Raises OSError."""
        self._keys.extend(keys)
        self._writers.extend(writers)
        self.count += len(keys)
        while len(self._keys) >= GROUP * BLOCK:
            self._group(self._keys[: GROUP * BLOCK], self._writers[: GROUP * BLOCK])
            del self._keys[: GROUP * BLOCK], self._writers[: GROUP * BLOCK]

    def _group(self, keys: array[int], writers: array[int]) -> None:
        digits = bytearray(b"0" * _FILTER_BITS)
        for key in keys:
            digits[key % _FILTER_BITS] = _ONE
        bits = int(digits, 2).to_bytes(_FILTER_BYTES)
        self._filter_checksums.append(xxh3_64_intdigest(bits))
        self._file.write(bits)
        missing = -len(keys) % BLOCK
        keys.extend([_PAD] * missing)
        writers.extend([0] * missing)
        for at in range(0, len(keys), BLOCK):
            block = keys[at : at + BLOCK].tobytes() + writers[at : at + BLOCK].tobytes()
            self._firsts.append(keys[at])
            self._checksums.append(xxh3_64_intdigest(block))
            self._file.write(block)
        self._unsynced += _GROUP_BYTES
        if self._unsynced >= SYNC_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def finish(self, last: int) -> FileRun:
        """Raises OSError."""
        if self._keys:
            self._group(self._keys, self._writers)
        index = b"".join(part.tobytes() for part in (self._firsts, self._checksums, self._filter_checksums))
        index += struct.pack("=QQQ", _MAGIC, self.count, last)
        self._file.write(index + struct.pack("=Q", xxh3_64_intdigest(index)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        try:
            return FileRun(self.path)
        except ValueError as error:
            raise OSError(f"{self.path} cannot be read again: {error}") from None

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


class _Merge:
    """Several runs into one, a piece at a time. Writers below ``least`` are left out."""

    def __init__(self, runs: list[Run], output: _FileWriter, least: int) -> None:
        self.runs = runs
        self.output = output
        self._least = least
        self._at = [0] * len(runs)

    def step(self) -> tuple[int, bool]:
        """How many keys were taken, and whether that was all. Raises OSError, Damaged."""
        heads = [run.items(at, CHUNK) for run, at in zip(self.runs, self._at, strict=True)]
        unfinished = [keys[-1] for keys, _ in heads if len(keys)]
        if not unfinished:
            return 0, True
        # What is above the first of the pieces' ends may still come from that run.
        end, taken = min(unfinished), 0
        merged: dict[int, int] = {}
        for number, (keys, writers) in enumerate(heads):
            count = bisect_right(keys, end)
            self._at[number] += count
            taken += count
            piece = dict(zip(keys[:count], writers[:count], strict=True))
            for key in merged.keys() & piece.keys():
                piece[key] = max(piece[key], merged[key])
            merged.update(piece)
        found = sorted(merged)
        kept = [merged[key] for key in found]
        if min(kept) < self._least:
            found = [key for key in found if merged[key] >= self._least]
            kept = [merged[key] for key in found]
        self.output.add(found, kept)
        return taken, False


class Runs:
    """The runs of one certification map, in the order in which they came.

    Without a directory they stay in memory. A directory is for one `Runs` at a time.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._runs: list[Run] = []
        self._memos: list[tuple[Memo, list[str]]] = []
        self._merge: _Merge | None = None
        self._debt = 0
        self._files: set[str] = set()
        """Those made or found, and not removed yet."""
        self._refused = False

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __len__(self) -> int:
        """How many keys are held; one that is in several runs counts in each."""
        return sum(map(len, self._runs))

    @property
    def last(self) -> int:
        """The last log index of all."""
        return max((run.last for run in self._runs), default=0)

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    def above(self, base: int) -> list[Run]:
        """The runs that hold a log index above `base`."""
        return [run for run in self._runs if run.last > base]

    def add(self, keys: array[int], writers: array[int] | int, last: int) -> None:
        """Takes sorted keys, none twice, and their writers (or the one of all), the last of which has index `last`."""
        self._runs.append(MemoryRun(keys, writers, last))

    def tend(self, entered: int, least: int) -> None:
        """Merges a little, `entered` keys having come in since the last time; writers below `least` may be left out.

        Raises:
            Damaged: a run is; all of them have been removed.
        """
        if self._directory is None or len(self._runs) < FANOUT:
            return
        self._debt = min(self._debt + WORK * entered, WORK * SMALLEST)
        try:
            while self._debt > 0:
                if self._merge is None and not self._begin(least):
                    self._debt = 0
                    return
                assert self._merge is not None
                taken, done = self._merge.step()
                self._debt -= taken
                if done:
                    self._end()
        except OSError as error:
            self._cannot(error)
            self._abandon()
        except Damaged:
            self.discard()
            raise

    def _begin(self, least: int) -> bool:
        """Whether there is something to be merged."""
        sizes: dict[int, list[Run]] = {}
        for run in self._runs:
            if isinstance(run, FileRun):
                sizes.setdefault(_size(len(run)), []).append(run)
        for _, runs in sorted(sizes.items()):
            if len(runs) >= FANOUT:
                self._merge = _Merge(runs[:FANOUT], _FileWriter(self._new()), least)
                return True
        return False

    def _end(self) -> None:
        merge = self._merge
        assert merge is not None
        made = []
        if merge.output.count:
            made.append(merge.output.finish(max(run.last for run in merge.runs)))
            self._files.add(made[0].path.name)
        else:
            merge.output.abandon()
        self._merge = None
        gone = set(map(id, merge.runs))
        at = next(number for number, run in enumerate(self._runs) if id(run) in gone)
        rest = [run for run in self._runs if id(run) not in gone]
        self._runs = [*rest[:at], *made, *rest[at:]]
        self._sweep()

    def _abandon(self) -> None:
        if self._merge is not None:
            self._merge.output.abandon()
            self._merge = None
        self._debt = 0

    def write(self) -> bool:
        """Puts into files what is still in memory; whether that is so now."""
        if self._directory is None:
            return False
        for number, run in enumerate(self._runs):
            if isinstance(run, MemoryRun):
                output = None
                try:
                    self._directory.mkdir(mode=0o700, exist_ok=True)
                    output = _FileWriter(self._new())
                    at = 0
                    while at < len(run):
                        keys, writers = run.items(at, CHUNK)
                        output.add(keys, writers)
                        at += len(keys)
                    made = self._runs[number] = output.finish(run.last)
                    self._files.add(made.path.name)
                except OSError as error:
                    if output is not None:
                        output.abandon()
                    self._cannot(error)
                    return False
        return True

    def remember(self, memo: Memo) -> None:
        """All keys up to the memo's index are in runs, but for those up to its floor."""
        if not self._runs or not self.write():
            return
        assert self._directory is not None
        names = [run.path.name for run in self._runs if isinstance(run, FileRun)]
        packed = msgpack.packb((MEMO_VERSION, *memo, names))
        path = self._memo_path(memo.index)
        partial = self._directory / f"partial-{memo.index}"
        try:
            with partial.open("wb") as file:
                file.write(xxh3_64_digest(packed) + packed)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            _sync_directory(self._directory)
        except OSError as error:
            _remove(partial)
            self._cannot(error)
            return
        self._refused = False
        gone = self._memos[: 1 - MEMOS]
        self._memos = [*self._memos[len(gone) :], (memo, names)]
        for old, _ in gone:
            _remove(self._memo_path(old.index))
        self._sweep()

    def memos(self, applied: int) -> Iterator[Memo]:
        """The memos of indices up to `applied`, the last one first; the runs are those of the one that came last."""
        if self._directory is None:
            return
        found = []
        for path in self._listed():
            if not path.name.startswith("memo-"):
                continue
            try:
                sealed = path.read_bytes()
                if sealed[:8] != xxh3_64_digest(sealed[8:]):
                    raise ValueError("its checksum is wrong")
                version, index, floor, state, names = msgpack.unpackb(sealed[8:])
                if version == MEMO_VERSION:
                    found.append((Memo(index, floor, state), list(names)))
            except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
                logger.warning("certification: %s cannot be used: %s", path, error)
        for number, (memo, names) in enumerate(sorted(found)[::-1]):
            if memo.index > applied:
                continue
            self._abandon()
            try:
                self._runs = [FileRun(self._directory / name) for name in names]
            except (OSError, ValueError) as error:
                logger.warning("certification: a run of log index %d cannot be used: %s", memo.index, error)
                continue
            self._memos = sorted(found)[: len(found) - number]
            yield memo

    def settle(self) -> None:
        """Removes what the memos in use do not name."""
        memos = {f"memo-{memo.index}" for memo, _ in self._memos}
        self._files = {path.name for path in self._listed()} - memos
        self._sweep()

    def forget(self, floor: int) -> None:
        """Drops the runs that hold no log index above `floor`; their files stay as long as a memo names them."""
        merging = set() if self._merge is None else set(map(id, self._merge.runs))
        self._runs = [run for run in self._runs if run.last > floor or id(run) in merging]

    @property
    def floors(self) -> list[int]:
        """Those of the memos: what is above one of them is of use to a start, at least."""
        return [memo.floor for memo, _ in self._memos]

    def discard(self) -> None:
        """Removes everything, memos first."""
        self._abandon()
        self._runs, memos, self._memos = [], self._memos, []
        for memo, _ in memos:
            _remove(self._memo_path(memo.index))
        self.settle()

    def _listed(self) -> list[Path]:
        try:
            return [] if self._directory is None else list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._cannot(error)
            return []

    def _memo_path(self, index: int) -> Path:
        assert self._directory is not None
        return self._directory / f"memo-{index}"

    def _new(self) -> Path:
        assert self._directory is not None
        # A name of its own: the process before may not have ended yet.
        return self._directory / f"run-{uuid.uuid4().hex}"

    def _sweep(self) -> None:
        """Removes the files that nobody needs any more."""
        if self._directory is None:
            return
        needed = {name for _, names in self._memos for name in names}
        needed |= {run.path.name for run in self._runs if isinstance(run, FileRun)}
        if self._merge is not None:
            needed.add(self._merge.output.path.name)
        for name in self._files - needed:
            _remove(self._directory / name)
        self._files &= needed

    def _cannot(self, error: OSError) -> None:
        """Once, until it works again."""
        if not self._refused:
            logger.warning("certification: keys stay in memory, as %s cannot be used: %s", self._directory, error)
            self._refused = True


def _size(count: int) -> int:
    """Which size a run of so many keys has."""
    size = 0
    while count >= SMALLEST * FANOUT:
        count //= FANOUT
        size += 1
    return size


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
