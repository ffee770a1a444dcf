"""What the demo shows while it runs: a row for each site, redrawn in place, or in a pipe a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

# How often a pipe gets a line, in seconds.
_EVERY = 2.0
_HEADER = ("site", "role", "writes", "tx/s", "applied", "lag s", "conflicts", "state")


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site at one moment. `None` is shown as a dash: the daemon did not say."""

    name: str
    role: str
    writes: int
    rate: float
    applied: int | None
    lag: float | None
    conflicts: int | None
    state: str

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            self.role,
            f"{self.writes:,}",
            f"{self.rate:.0f}",
            "-" if self.applied is None else f"{self.applied:,}",
            "-" if self.lag is None else f"{self.lag:.1f}",
            "-" if self.conflicts is None else f"{self.conflicts:,}",
            self.state,
        )


class Board:
    """Steps with the time they took, and the live table."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._begun = time.monotonic()
        self._drawn = 0
        self._last = 0.0

    def say(self, text: str) -> None:
        """One step, with the time since the beginning; below the table, if there is one."""
        self._drawn = 0
        self._print(f"[{time.monotonic() - self._begun:5.1f} s] {text}")

    def plain(self, text: str = "") -> None:
        self._drawn = 0
        self._print(text)

    def draw(self, rows: Sequence[SiteRow], *, final: bool = False) -> None:
        """The table: over the last one, or as one line in a pipe (the whole of it if `final`)."""
        if self._terminal or final:
            lines = _table(rows)
            if self._terminal and self._drawn:
                # Up to the first line of the last table, and clear from there.
                self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._print("\n".join(lines))
            self._drawn = len(lines)
        elif time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self.say(_line(rows))

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _table(rows: Sequence[SiteRow]) -> list[str]:
    table = [_HEADER, *(row.cells() for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_HEADER))]
    # Texts to the left, numbers to the right.
    left = (0, 1, len(_HEADER) - 1)
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]
    return ["", *(f"  {line}" for line in lines), ""]


def _line(rows: Sequence[SiteRow]) -> str:
    """All sites in one line, and what is unusual."""
    applied = [row.applied for row in rows if row.applied is not None]
    lags = [(row.lag, row.name) for row in rows if row.lag is not None]
    conflicts = max((row.conflicts for row in rows if row.conflicts is not None), default=0)
    leader = next((row.name for row in rows if row.role == "leader"), "none")
    unusual = [f"{row.name}: {row.state}" for row in rows if row.state != "ok"]
    parts = [
        f"{sum(row.writes for row in rows):,} writes ({sum(row.rate for row in rows):.0f}/s)",
        f"applied {min(applied):,} to {max(applied):,}" if applied else "applied -",
        "worst lag {:.1f} s ({})".format(*max(lags)) if lags else "lag -",
        f"{conflicts:,} conflicts",
        f"leader {leader}",
        *unusual,
    ]
    return " | ".join(parts)
