"""Whole clusters under faults. The long run is `python -m tests.simulation`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mysqlraft.raft.sessions import SessionTable
from tests.simulation.bugs import BUGS, planted
from tests.simulation.runner import explain, run_seed, run_seeds
from tests.simulation.schedule import draw

SEEDS = 200
ENOUGH_SEEDS = 1500
"""A planted bug has to be found within so many."""


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_rule() -> None:
    failures = [failure for failure in run_seeds(0, SEEDS, jobs=1) if failure is not None]
    if failures:
        pytest.fail(explain(failures[0].seed))
    print(f"{SEEDS} seeds, none broke a rule")


def test_a_seed_decides_everything() -> None:
    assert draw(7) == draw(7)
    from tests.simulation.world import World

    ends = []
    for _ in range(2):
        world = World(7, draw(7))
        world.run()
        ends.append((world.time, [entry.record for entry in world.checks.committed]))
    assert ends[0] == ends[1]


@pytest.fixture
def found() -> Iterator[dict[str, int]]:
    seeds: dict[str, int] = {}
    yield seeds
    for name, seed in seeds.items():
        print(f"{name}: found after {seed + 1} seeds")


@pytest.mark.parametrize(
    "name",
    [
        "messages are not withheld",
        "two votes in one term",
        "what is forwarded twice counts twice",
        "a witness keeps the leadership",
        "equals take the leadership from each other",
        "whoever lags is promoted",
        "the configuration index is not compared",
    ],
)
def test_planted_bugs_are_found(name: str, found: dict[str, int]) -> None:
    """A few here; tests/simulation/plant.py runs through all."""
    with planted(name):
        found[name] = next(seed for seed in range(ENOUGH_SEEDS) if run_seed(seed) is not None)


def test_every_bug_has_a_name_and_is_taken_out_again() -> None:
    accept = SessionTable.accept
    for name in BUGS:
        with planted(name):
            pass
    assert SessionTable.accept is accept
