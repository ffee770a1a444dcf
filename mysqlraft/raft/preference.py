"""When a leader gives way to a voter that should rather lead: hysteresis, and nothing else.

A voter of a greater rank (`Server.rank`) takes over by leadership transfer once it has been fit to lead for a while
without a break. After a transfer that failed the wait for that voter doubles, up to a bound. So a site that comes and
goes, or that cannot lead for a reason that its leader does not see, moves the leadership seldom or not at all, and
does not keep the proposals waiting, which a transfer stops.
"""

from __future__ import annotations

from collections.abc import Collection

LONGEST = 8
"""The wait after failures is at most this many times the first."""


class Preference:
    """One leader's memory of the voters that should lead in its place."""

    def __init__(self, stable_ticks: int, at_once: bool = False) -> None:
        """`stable_ticks`: how long a voter has to be fit, before the first attempt; if `at_once`, only before those
        that come after a failure."""
        self._stable_ticks = stable_ticks
        self._at_once = at_once
        self._fit_ticks: dict[int, int] = {}
        """Of those who are fit now: for how long, or since the last failure."""
        self._failures: dict[int, int] = {}

    def tick(self, fit: Collection[int]) -> None:
        """A tick has passed, and these sites are fit now."""
        self._fit_ticks = {site: self._fit_ticks.get(site, 0) + 1 for site in fit}

    def due(self, site: int) -> bool:
        """Whether it has been fit for long enough."""
        failures = self.failures(site)
        if self._at_once and not failures:
            return site in self._fit_ticks
        return self._fit_ticks.get(site, 0) > self._stable_ticks * min(1 << failures, LONGEST)

    def failures(self, site: int) -> int:
        """How many transfers to it came to nothing."""
        return self._failures.get(site, 0)

    def failed(self, site: int) -> None:
        """One more did."""
        self._failures[site] = self.failures(site) + 1
        self._fit_ticks[site] = 0
