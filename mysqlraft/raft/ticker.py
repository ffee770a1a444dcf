"""A node's clock: it ticks when a tick is noticed by anybody, and makes up for the others.

Most ticks of an idle core are only counted, until a heartbeat is due or an election timeout is over, and waking up for
each would cost more than all else that an idle node does. So the timer is set for the first one that may do more, and
whatever comes in before that is preceded by the ticks that have passed. To the core it is as if each had come in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mysqlraft.raft.beat import HEAR_SECONDS, to_beat


class Ticker:
    """Invariant: the timer goes off `_quiet` + 1 ticks after `_at`."""

    def __init__(
        self, seconds: float, passed: Callable[[int], None], quiet: Callable[[], int], due: Callable[[], None]
    ) -> None:
        """`seconds`: of a tick. `passed(n)`: so many have passed. `quiet()`: so many from now on do nothing but count,
        as long as nothing else comes in. `due()`: the last one may have done more."""
        self._seconds = seconds
        self._passed = passed
        self._quiet_ticks = quiet
        self._due = due
        self._loop: asyncio.AbstractEventLoop
        self._begun = 0.0
        self._ticks = 0
        """Counted since then."""
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin()
        self._set()

    def stop(self) -> None:
        self._quiet = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _at(self) -> float:
        """When, by the loop's clock, the last tick was that is counted."""
        return self._begun + self._ticks * self._seconds

    def catch_up(self) -> None:
        """Count the ticks that have passed. To be called before anything else is fed to the core."""
        if self._quiet:
            passed = int((self._loop.time() - self._at) / self._seconds)
            if passed > 0:
                passed = min(passed, self._quiet)
                self._quiet -= passed
                self._count(passed)

    def settle(self) -> None:
        """To be called after something else was fed to the core: ticks may be noticed that would not have been."""
        if self._quiet and self._quiet_ticks() < self._quiet:
            self._set()

    def _begin(self) -> None:
        """The next tick is at a beat."""
        self._begun = self._loop.time() + to_beat(self._seconds) - self._seconds
        self._ticks = 0

    def _count(self, ticks: int) -> None:
        self._ticks += ticks
        self._passed(ticks)

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._quiet = self._quiet_ticks()
        due = self._at + (self._quiet + 1) * self._seconds
        self._timer = self._loop.call_at(due, self._go_off)

    def _go_off(self) -> None:
        late = self._loop.time() >= self._at + (self._quiet + 2) * self._seconds
        if late and self._quiet:
            # After a stall (a suspended machine, a long pause, a busy loop) what came in meanwhile is heard before the
            # last tick does anything. The others do nothing: not to count them would have a leader that is busy late
            # with its heartbeat once more, and again and again.
            self._timer = self._loop.call_at(self._loop.time() + HEAR_SECONDS, self._go_off)
            self.catch_up()
            return
        ticks, self._quiet = self._quiet + 1, 0
        self._count(ticks)
        if late:
            self._begin()  # more of the time that it stood still is not caught up: that would start elections
        try:
            self._due()
        finally:
            if self._timer is not None:  # else stopped meanwhile
                self._set()
