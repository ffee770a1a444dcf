"""The divergence alarm: who stops when sites come to different conclusions."""

from __future__ import annotations

from itertools import product

import pytest

from mysqlraft.divergence import GRACE_SECONDS, KEPT, Watch


def stopped(values: dict[int, str], sites: int, now: float = 0.0, index: int = 4096) -> set[int]:
    """Which of the sites that said these values stop, each hearing all that was said."""
    found = set()
    for own in values:
        watch = Watch(own)
        for site, value in values.items():
            watch.hear(site, [(index, value)])
        watch.verdict(sites, 0.0)
        if watch.verdict(sites, now):
            found.add(own)
    return found


@pytest.mark.parametrize(
    ("values", "sites", "expected"),
    [
        ({1: "a", 2: "a", 3: "a"}, 3, set()),
        ({1: "a", 2: "a", 3: "b"}, 3, {3}),
        ({1: "a", 2: "b", 3: "c"}, 3, {1, 2, 3}),
        ({1: "a", 2: "a", 3: "b", 4: "b"}, 4, {1, 2, 3, 4}),
        ({1: "a", 2: "a", 3: "a", 4: "b", 5: "c"}, 5, {4, 5}),
        ({1: "a", 2: "b"}, 2, {1, 2}),
        ({1: "a"}, 1, set()),
        ({1: "a", 2: "a", 3: "b"}, 6, set()),
        ({1: "a", 2: "b"}, 3, set()),
    ],
)
def test_the_odd_one_out_stops(values: dict[int, str], sites: int, expected: set[int]) -> None:
    assert stopped(values, sites) == expected


def test_who_is_silent_is_waited_for_and_not_for_ever() -> None:
    values = {1: "a", 2: "b"}
    assert stopped(values, 3, GRACE_SECONDS - 0.1) == set()
    assert stopped(values, 3, GRACE_SECONDS) == {1, 2}
    assert stopped({1: "a", 2: "a", 3: "b"}, 6, GRACE_SECONDS) == {1, 2, 3}, "no majority of six has the same"


def test_a_majority_never_stops_and_two_groups_never_go_on() -> None:
    for values in product("ab", repeat=5):
        said = dict(enumerate(values, 1))
        going = {site for site in said if site not in stopped(said, 5, GRACE_SECONDS)}
        assert len({said[site] for site in going}) == 1
        assert len(going) >= 3


def test_a_site_that_was_far_behind_finds_what_the_others_said_then() -> None:
    watch = Watch(3)
    for index in range(1, 101):
        for site in (1, 2):
            watch.hear(site, [(index, f"{index}")])
    watch.hear(3, [(1, "1")])
    assert watch.verdict(3, 0.0) == ""
    watch.hear(3, [(2, "other")])
    reason = watch.verdict(3, 0.0)
    assert reason.startswith(
        "this site has diverged: at index 2 its running checksum differs (sites [1, 2], a majority"
    )
    for index in range(1, 10 * KEPT):
        watch.hear(1, [(index, "x")])
    assert len(watch._said) == KEPT


def test_what_another_version_says_is_ignored() -> None:
    watch = Watch(1)
    watch.hear(1, [(1, "a")])
    watch.hear(2, [(1,), ("1", "b"), (1, None), {"index": 1}, "text", (1, "a", "b")])  # type: ignore[list-item]
    assert watch.verdict(2, 100.0) == ""
