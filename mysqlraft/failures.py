"""Failures one after the other: which of them is worth another try.

What fails again and again without getting anywhere in between would go on like that, whatever the pause. Pure.
"""

from __future__ import annotations

import re
from typing import Any

SAME = 3
"""So often in a row the same failure is tried again, but for the last time."""
ANY = 10
"""The same for failures that are different ones."""

_NUMBERS = re.compile(r"\d+")


class Failures:
    """A row of failures without progress between them. ``in_a_row``: how many it has."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._same = 0
        self._what = ""
        self._reached: Any = None

    def failed(self, what: str, reached: Any, *, healthy: bool = False) -> bool:
        """Takes a failure; whether it has come so often that it is not to be tried again.

        ``what``: two are the same if it differs in numbers only. ``reached``: how far the work has got; anything else
        than the last time is progress. ``healthy``: there was nothing left to do, so none could be made.
        """
        if healthy or reached != self._reached:
            self.in_a_row = self._same = 0
        self._reached = reached
        what = _NUMBERS.sub("#", what)
        self._same = self._same + 1 if what == self._what else 1
        self._what = what
        self.in_a_row += 1
        return self._same >= SAME or self.in_a_row >= ANY
