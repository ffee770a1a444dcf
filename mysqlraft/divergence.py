"""The divergence alarm: sites that follow the same log must come to the same conclusions.

Every site keeps a running checksum of the conflicts that certification found in the log (`ReplicationState.digest`)
and notes it at each checkpoint, beside the log's own (`Entry.chain`). Both are functions of the log alone, so at the
same index they are equal everywhere. The sites tell each other the last few, and `Watch` compares. Where they differ,
the site that is alone with what it has stops replicating: the majority has what the others will go by. Without a
majority nobody can say who is right, and all that differ stop.

As the checksums run on, no checkpoint has to be compared by everybody: whoever has once gone astray differs for ever.
Not covered is what is in the tables: this is about what was decided, not about what a server made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KEPT = 256
"""Checkpoints that are remembered, so that a site far behind finds what the others said when they were there."""
GRACE_SECONDS = 10.0
"""How long the others may take to say what they have, before a difference without a majority counts."""

Check = tuple[int, str]
"""The index of a checkpoint, and what a site has there."""


class Watch:
    """What all sites have said, as one site hears it."""

    def __init__(self, site: int) -> None:
        self._site = site
        self._said: dict[int, dict[int, str]] = {}
        self._differs_since: dict[int, float] = {}

    def hear(self, site: int, checks: Iterable[Sequence[object]]) -> None:
        """What a site has said; anything that is no check is ignored: it comes from another version, perhaps."""
        for check in checks:
            match check:
                case [int(index), str(value)]:
                    self._said.setdefault(index, {})[site] = value
        for index in sorted(self._said)[:-KEPT]:
            del self._said[index]
            self._differs_since.pop(index, None)

    def verdict(self, sites: int, now: float) -> str:
        """Why this site has to stop, of a cluster of so many; "" if it has not to."""
        for index, said in self._said.items():
            own = said.get(self._site)
            if own is None or len(set(said.values())) == 1:
                continue
            since = self._differs_since.setdefault(index, now)
            groups: dict[str, list[int]] = {}
            for site, value in sorted(said.items()):
                groups.setdefault(value, []).append(site)
            if 2 * len(groups[own]) > sites:
                continue  # the others stop
            majority = next((group for group in groups.values() if 2 * len(group) > sites), None)
            if majority is not None:
                return _reason(index, f"sites {majority}, a majority, have another")
            if len(said) >= sites or now - since >= GRACE_SECONDS:
                others = [site for site, value in sorted(said.items()) if value != own]
                return _reason(index, f"sites {others} have another, and no majority has the same")
        return ""


def _reason(index: int, who: str) -> str:
    return (
        f"this site has diverged: at index {index} its running checksum differs ({who}); its tables can no longer be "
        "trusted: compare them, and let the site rejoin with an empty data_dir and another site's data"
    )
