"""Statements that somebody decided not to have run at this site, kept in ``data_dir``.

A statement at which replication stops is in the log for good, so whoever has done by hand what it does says so
(`mysqlraft skip`), and that must outlast every restart: the file is replaced as a whole, and synced, before the answer.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

FILE = "skipped.json"


@dataclass(frozen=True, slots=True)
class Skip:
    """``index``: in the log. ``reason``: why replication had stopped there. ``by``, ``at``: who said so, and when."""

    index: int
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
        self._made: tuple[Skip, ...] = ()
        if self._path.exists():
            try:
                self._made = tuple(Skip(**entry) for entry in json.loads(self._path.read_text()))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self._path} is damaged ({error}): put its list of skipped statements right"
                ) from None

    @property
    def indices(self) -> list[int]:
        return [skip.index for skip in self._made]

    def add(self, index: int, reason: str, by: str) -> Skip:
        """Keeps a decision. Raises OSError; then it may not last, and `indices` is what the file says."""
        skip = Skip(index, reason, by, datetime.now(UTC).isoformat(timespec="seconds"))
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
        return skip
