"""Where a unit in parts wrote each of its row keys last.

A conflict with such a unit shows what it wrote. To read all its parts for each conflict would stop apply for minutes;
to keep its rows would take any amount of memory. So the parts are read once, and what is kept is where each row is: 24
bytes a key, in a temporary file that is mapped into memory, which the kernel takes away as it needs.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A row: the number of its part in the unit, of its change in the part, and where its images begin in that."""

    part: int
    change: int
    offset: int


class LargeRows:
    """Row key -> the last place that wrote it. `add` every part, in order; then `find`; `close` at the end."""

    def __init__(self) -> None:
        with _naming_the_directory():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._ends: list[int] = [0]
        self._map: mmap.mmap | None = None
        self._views: list[memoryview] = []

    def add(self, rows: Iterable[tuple[int, int, int]]) -> None:
        """The next part: (key, change, offset) of every row key in it, in the order of its rows. Raises OSError."""
        last = {key: (change, offset) for key, change, offset in rows}
        keys = sorted(last)
        places = [last[key] for key in keys]
        columns = (keys, [change for change, _ in places], [offset for _, offset in places])
        with _naming_the_directory():
            for column in columns:
                self._file.write(array("Q", column))
        self._ends.append(self._ends[-1] + len(keys))

    def find(self, key: int) -> Place | None:
        """Where the key was written last; None if the unit never did."""
        for part in range(len(self._ends) - 2, -1, -1):
            start, end = self._ends[part : part + 2]
            if start == end:
                continue
            numbers, count = self._numbers(), end - start
            # Three columns for each part, one after the other.
            keys = numbers[3 * start : 3 * start + count]
            at = bisect_left(keys, key)
            if at < count and keys[at] == key:
                return Place(part, numbers[3 * start + count + at], numbers[3 * start + 2 * count + at])
        return None

    def close(self) -> None:
        for view in self._views:
            view.release()
        self._views.clear()
        if self._map is not None:
            self._map.close()
        self._file.close()

    def _numbers(self) -> memoryview:
        if not self._views:
            with _naming_the_directory():
                self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._views = [memoryview(self._map).cast("Q"), memoryview(self._map)]
        return self._views[0]


@contextmanager
def _naming_the_directory() -> Iterator[None]:
    """An error says which directory it is about."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "any directory"
        text = f"temporary file in {where}: {error.strerror}. The environment's TMPDIR names another directory"
        raise OSError(error.errno, text) from error
