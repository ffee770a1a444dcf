"""The simulator finds bugs: each of these is planted, and found by some seed. `python -m tests.simulation.plant` runs
through the rare ones, too."""

from __future__ import annotations

import pytest

from mysqlraft.raft import RaftCore
from mysqlraft.raft.sessions import SessionTable
from tests.simulation.bugs import BUGS, RARE, planted
from tests.simulation.runner import run_seed

ENOUGH_SEEDS = 200
"""A planted bug has to be found within so many."""


@pytest.mark.parametrize("name", [name for name in BUGS if name not in RARE])
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        for seed in range(ENOUGH_SEEDS):
            if (failure := run_seed(seed)) is not None:
                print(f"{name}: found after {seed + 1} seeds: {failure.rule}")
                return
    pytest.fail(f"{name}: not found by {ENOUGH_SEEDS} seeds")


def test_every_bug_is_taken_out_again() -> None:
    accept, ready = SessionTable.accept, RaftCore.ready
    for name in BUGS:
        with planted(name):
            pass
    assert SessionTable.accept is accept
    assert RaftCore.ready is ready
