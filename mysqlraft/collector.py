"""Python's cycle collector, set for a process that runs a node."""

from __future__ import annotations

import gc


def settle() -> None:
    """To be called when all that stays is there: modules, connections, the cluster's state.

    Entries are freed by their reference counts, and what forms cycles is rare (a task that has ended, an exception): so
    the collector, which by default looks at everything that is young after every 700 new objects, finds nothing there
    again and again. It goes on looking, but seldom, and no more at what was there at the start.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
