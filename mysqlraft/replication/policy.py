"""Conflict policies: what every site writes for a unit, given what certification says about it.

A policy is a pure function of the unit and its certification, both of which are the same at every site; so all sites
decide alike without asking each other. Apply writes the changes that the policy returns and nothing else, which is
the seam for others: first_write_wins would return the inverse changes at the unit's origin and none elsewhere, a
per-column policy would return merged images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.entry import Change, Unit


@dataclass(frozen=True, slots=True)
class Certification:
    """What the log says about one unit.

    ``own``: this site is its origin, and holds the unit's rows since its local commit. ``writers``: (key, index,
    origin) of each last writer that it conflicts with, empty unless the verdict is CONFLICT. ``contested``: the keys
    for which an own unit is written again; None: they are not known, or not all that it may be for.
    """

    index: int
    origin: int
    own: bool
    verdict: Verdict
    writers: Sequence[tuple[int, int, int]] = ()
    contested: Set[int] | None = None


class Decision(NamedTuple):
    """``changes``: what this site writes, in the unit's place in the log. ``resolution``: for the conflict history."""

    changes: Sequence[Change]
    resolution: str


Policy = Callable[[Unit, Certification], Decision]


def last_write_wins(unit: Unit, certification: Certification) -> Decision:
    """The later unit in log order is applied in full; its origin writes it again only if it has to (DESIGN 8)."""
    if certification.own and certification.verdict is Verdict.CLEAN:
        return Decision((), "last_write_wins: applied")
    return Decision(unit.changes, "last_write_wins: applied")
