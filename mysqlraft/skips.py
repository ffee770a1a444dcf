"""What somebody decided to go past at this site (`mysqlraft skip`), kept in ``data_dir``.

A statement at which replication stops is in the log for good, so whoever has done by hand what it does says so. A
transaction of the site's own that cannot be carried is in its binlog for good, and is left out. Either must outlast
every restart: the file is replaced as a whole, and synced, before the answer.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mysqlraft.binlog.place import Place
from mysqlraft.ipc import SkipLists

FILE = "skipped.json"
ROWS_DIRECTORY = "skipped"
"""Where the transactions are kept that are left out."""


@dataclass(frozen=True, slots=True)
class Skip:
    """``index``: in the log. ``reason``: why replication had stopped there. ``by``, ``at``: who said so, and when."""

    index: int
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class CapturedSkip:
    """A transaction of this site's binlog. ``rows``: the file that it is kept in; others as in `Place` and `Skip`."""

    file: str
    offset: int
    identity: str
    gtid: str
    rows: str
    reason: str
    by: str
    at: str


class Skips:
    """The decisions of one site."""

    def __init__(self, directory: Path) -> None:
        """Reads what was decided before.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        self._path = directory / FILE
        self._made: tuple[Skip | CapturedSkip, ...] = ()
        if self._path.exists():
            try:
                self._made = tuple(_read(entry) for entry in json.loads(self._path.read_text()))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"{self._path} is damaged ({error}): put its list of skipped statements right"
                ) from None

    @property
    def indices(self) -> list[int]:
        return [skip.index for skip in self._made if isinstance(skip, Skip)]

    @property
    def lists(self) -> SkipLists:
        """What the replica process has to know of it."""
        captured = [skip for skip in self._made if isinstance(skip, CapturedSkip)]
        fields = [[skip.file, skip.offset, skip.identity, skip.gtid, skip.rows] for skip in captured]
        return SkipLists(self.indices, fields)

    def add(self, index: int, reason: str, by: str) -> Skip:
        """Keeps a decision. Raises OSError; then it may not last, and `indices` is what the file says."""
        skip = Skip(index, reason, by, _now())
        self._keep(skip)
        return skip

    def add_captured(self, place: Place, reason: str, by: str) -> CapturedSkip:
        """The same for a transaction of this site's binlog."""
        rows = self._path.parent / ROWS_DIRECTORY / f"{place.file}-{place.offset}-{place.identity}.jsonl"
        skip = CapturedSkip(place.file, place.offset, place.identity, place.gtid, str(rows), reason, by, _now())
        if all(made.rows != skip.rows for made in self._made if isinstance(made, CapturedSkip)):
            self._keep(skip)
        return skip

    def _keep(self, skip: Skip | CapturedSkip) -> None:
        made = (*self._made, skip)
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump([asdict(each) for each in made], file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._path)
        self._made = made  # what is read at the next start, if the directory reaches the disk
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _read(entry: dict[str, Any]) -> Skip | CapturedSkip:
    return Skip(**entry) if "index" in entry else CapturedSkip(**entry)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
