"""Which log entries a site may let go of."""

from __future__ import annotations

import pytest

from mysqlraft.retention import compactable


@pytest.mark.parametrize(
    ("commit", "needed", "stored", "keep", "last"),
    [
        (1000, 900, [1000, 1000], 100, 799),  # what its own replication reads again stays
        (1000, 900, [1000, 500], 100, 400),  # and what a member has not stored
        (1000, None, [990], 100, 890),  # a witness reads nothing again
        (1000, 0, [1000], 100, 0),  # it is not known yet what its replication needs
        (1000, 900, [1000, None], 100, 0),  # nothing heard of a member since the start
        (1000, 900, [1000], 5000, 0),
        (1000, 1001, [], 1, 999),  # a lone site
        (1000, 2000, [3000], 1, 999),  # nothing is gone that is not committed here
    ],
)
def test_what_somebody_needs_stays(
    commit: int, needed: int | None, stored: list[int | None], keep: int, last: int
) -> None:
    assert compactable(commit, needed, stored, keep) == last
