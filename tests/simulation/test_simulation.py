"""Whole clusters under faults. The long run is `python -m tests.simulation`."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.simulation.__main__ import main
from tests.simulation.bugs import planted
from tests.simulation.checks import History, Read, Violation
from tests.simulation.runner import Failure, explain, minimized, run_schedule, run_seed
from tests.simulation.schedule import draw
from tests.simulation.world import World

SEEDS = 200
"""A look at what the seeds do; `tests/run.sh` runs ten times as many before."""


@pytest.mark.timeout(900)
def test_no_seed_breaks_a_rule() -> None:
    """In one process: other tests need the other core. A fault that never happens would find nothing."""
    began = time.monotonic()
    failures: list[Failure] = []
    did: Counter[str] = Counter()
    for seed in range(SEEDS):
        failure, world = run_schedule(seed, draw(seed))
        failures += [failure] if failure is not None else []
        checks = world.checks
        did["writes"] += checks.history.writes
        did["reads"] += checks.history.reads
        did["leaders"] += len(checks.leaders)
        did["snapshots installed"] += checks.installed
        did["clusters recovered"] += checks.forced is not None
        did["of more than 5 sites"] += len(world.sites) > 5
    if failures:
        pytest.fail(f"{len(failures)} of {SEEDS} seeds\n{explain(failures[0])}")
    print(f"{SEEDS} seeds in {time.monotonic() - began:.0f} s, none broke a rule; {dict(did)}")
    assert did["writes"] > 100 * SEEDS
    assert did["reads"] > SEEDS
    assert did["snapshots installed"] > SEEDS // 10
    assert did["clusters recovered"] > SEEDS // 100
    assert did["of more than 5 sites"] > SEEDS // 20


def test_a_seed_decides_everything() -> None:
    assert draw(7) == draw(7)
    ends = []
    for _ in range(2):
        world = World(7, draw(7))
        world.run()
        ends.append((world.time, [entry.record for entry in world.checks.committed]))
    assert ends[0] == ends[1]


def test_a_failure_is_explained_by_a_small_schedule() -> None:
    with planted("votes go to logs that are behind"):
        failure = next(failure for seed in range(100) if (failure := run_seed(seed)) is not None)
        drawn, small = draw(failure.seed), minimized(failure, attempts=300)
        again = minimized(failure, attempts=300)
        outcomes = [run_schedule(failure.seed, small)[0] for _ in range(2)]
        told = explain(failure)
    print(f"seed {failure.seed}: {len(drawn.events)} events, {len(small.events)} of them are enough to break the rule")
    assert again == small
    assert set(small.events) < set(drawn.events)
    assert len(small.events) * 4 < len(drawn.events)
    assert outcomes[0] == outcomes[1] == Failure(failure.seed, failure.rule, outcomes[0].reason if outcomes[0] else "")
    assert run_schedule(failure.seed, small)[0] is None, "without the bug nothing is wrong with it"
    assert failure.reason in told
    assert "schedule (times in ticks):" in told
    assert "VoteRequest term=" in told
    assert max(map(len, told.splitlines()[:20])) < 300


def test_a_history_that_is_not_linearizable_is_found() -> None:
    history = History()
    early = Read(0, history.returned)
    history.asked((1, 1, 1))
    history.asked((1, 1, 2))
    history.write_returned((1, 1, 1), 5)
    history.read_returned(2, 4, early)  # it began before the write was answered
    with pytest.raises(Violation, match="linearizable: site 2 reads at 4, 5 was answered before"):
        history.read_returned(2, 4, Read(5, history.returned))
    history.asked((2, 1, 1))
    history.write_returned((1, 1, 2), 4)  # so did this
    with pytest.raises(Violation, match="linearizable: write"):
        history.write_returned((2, 1, 1), 3)


@pytest.mark.parametrize("nothing", [["--seeds", "0"], ["--seeds", "-5"], ["--jobs", "0"]])
def test_no_seeds_have_not_passed(nothing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["simulation", *nothing])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
