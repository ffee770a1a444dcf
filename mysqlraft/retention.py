"""Which log entries a site may let go of while there are no snapshots of the tables to replace them."""

from __future__ import annotations

from collections.abc import Iterable


def compactable(commit_index: int, needed_from: int | None, stored: Iterable[int | None], keep: int) -> int:
    """The last log entry that a site may do without, 0 if that is none.

    ``needed_from``: the first one that its own replication would read again if it started now, 0 if that is not known
    yet, None if there is no replication here (a witness). ``stored``: for every other member the last committed entry
    that it said to have on its disk, None for one that has not said so yet: whoever leads next must have what it
    lacks. ``keep``: so many more stay.
    """
    last = commit_index if needed_from is None else min(commit_index, needed_from - 1)
    for each in stored:
        last = min(last, each or 0)
    return max(0, last - keep)
