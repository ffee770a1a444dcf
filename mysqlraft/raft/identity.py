"""Which daemon is a site, when two say that they are: a copied file, or a machine that comes back from a clone.

Each daemon has an incarnation, drawn at its start. The one whose connections are here *holds* the site's place. Another
one takes it once the holder has no connection for control any more: a daemon that ended has none as soon as its
system has said so, and one whose machine lost its power, or moved away, after a few seconds of silence. Until then the
other one is refused, and dials again. If the holder has been heard meanwhile, well after the other one came first, both
are alive: that is proven, and said. The other one then stops (`mysqlraft.daemon`), and the holder is not disturbed.

Pure: the caller has the clock. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PROOF_SECONDS = 1.0
"""What the holder had sent before the other one came may be read later than that, but not so much later."""
CHALLENGERS = 8
"""Of one site, so many are remembered."""


class Rival(NamedTuple):
    """The daemon that holds the place. ``where``: whence it has dialled; ``seconds``: for how long it has held the
    place here; ``proven``: it is alive for sure, and not what is left of a daemon that ended."""

    where: str
    seconds: float
    proven: bool


@dataclass(slots=True)
class _Holder:
    incarnation: int
    where: str
    since: float
    challenged: dict[int, float] = field(default_factory=dict)
    """Incarnation -> when it came first."""


class Identities:
    """Who holds the place of each site, as seen from here."""

    def __init__(self) -> None:
        self._holders: dict[int, _Holder] = {}

    def claim(self, site: int, incarnation: int, where: str, heard: Mapping[int, float], now: float) -> Rival | None:
        """A daemon says that it is `site`: None if it has the place, from now on or already; else who has it.

        ``heard``: for each incarnation with a connection for control, when it was heard last.
        """
        holder = self._holders.get(site)
        if holder is None or (holder.incarnation != incarnation and holder.incarnation not in heard):
            self._holders[site] = _Holder(incarnation, where, now)
            return None
        if holder.incarnation == incarnation:
            holder.where = where
            return None
        if len(holder.challenged) >= CHALLENGERS and incarnation not in holder.challenged:
            del holder.challenged[next(iter(holder.challenged))]
        first = holder.challenged.setdefault(incarnation, now)
        proven = heard[holder.incarnation] >= first + PROOF_SECONDS
        return Rival(holder.where, now - holder.since, proven)
