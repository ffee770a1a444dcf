"""When a leader gives way to a voter that should rather lead: hysteresis, and nothing else.

A voter of a greater rank (`Server.rank`) takes over by leadership transfer once it has been fit to lead for a while
without a break. After a transfer that failed the wait doubles, up to a bound. So a site that comes and goes, or that
cannot lead for a reason that its leader does not see, moves the leadership seldom or not at all.
"""

from __future__ import annotations

from mysqlraft.raft.configuration import NOBODY

LONGEST = 8
"""The wait after failures is at most this many times the first."""


class Preference:
    """One leader's memory of the voter that should lead in its place."""

    def __init__(self, stable_ticks: int) -> None:
        """`stable_ticks`: how long a candidate has to be fit, before the first attempt."""
        self._stable_ticks = stable_ticks
        self._candidate = NOBODY
        self._fit_ticks = 0
        self._failures = 0
        self._attempted = NOBODY

    def tick(self, candidate: int) -> bool:
        """A tick has passed, and `candidate` is fit now (NOBODY: none is). Whether to hand over to it."""
        if candidate != self._candidate:
            self._candidate, self._fit_ticks = candidate, 0
        if candidate == NOBODY:
            return False
        self._fit_ticks += 1
        return self._fit_ticks > self._stable_ticks * (1 << self._failures if candidate == self._attempted else 1)

    def failed(self, site: int) -> None:
        """A transfer to `site` came to nothing."""
        again = site == self._attempted
        self._failures = min(self._failures + 1, LONGEST.bit_length() - 1) if again else 1
        self._attempted, self._fit_ticks = site, 0
