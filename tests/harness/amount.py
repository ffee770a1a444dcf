"""How much the models do: little in every run of the tests, more on demand (docs/contributing.md)."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("MYSQLRAFT_MODEL_TIMES", "1"))
"""How many times as many random histories, with further seeds."""


def histories(number: int) -> int:
    """So many in every run."""
    return number * TIMES
