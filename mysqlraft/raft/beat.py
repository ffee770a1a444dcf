"""Timers that need not be exact go off together: waking up costs an idle process more than most of what it does then.

The beats of a process are the whole multiples of a period, counted from an instant of its own. So a beat of 2 s is one
of 1 s and of 0.1 s, too, and the processes of one machine do not all wake up at once.
"""

from __future__ import annotations

import asyncio
import time

_ORIGIN = int(time.monotonic() * 1000) / 1000
"""In whole milliseconds, as uvloop counts: what is due together gets the same deadline."""
HEAR_SECONDS = 0.001
"""Within this time the loop gets to what came in while it stood still."""


def to_beat(seconds: float) -> float:
    """How long it is to a beat of this period, in seconds: half of one to one and a half, so that a timer that goes off
    a little early does not do so twice."""
    wait = seconds - (asyncio.get_running_loop().time() - _ORIGIN) % seconds
    return wait if wait >= seconds / 2 else wait + seconds
