"""Run seeds; when one fails, tell what happened and make its schedule smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.schedule import TICK, Schedule, draw
from tests.simulation.world import World


class Failure(NamedTuple):
    seed: int
    reason: str


def run_seed(seed: int) -> Failure | None:
    """None if all went well."""
    return _outcome(seed, draw(seed))[0]


def _outcome(seed: int, schedule: Schedule) -> tuple[Failure | None, World]:
    world = World(seed, schedule)
    try:
        world.run()
    except Exception as error:  # an exception in the core is as much of a failure as a broken rule
        return Failure(seed, f"{type(error).__name__}: {error}"), world
    return None, world


def run_seeds(start: int, count: int, jobs: int) -> Iterator[Failure | None]:
    """The outcome of each seed, in no particular order."""
    seeds = range(start, start + count)
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=16)


def minimized(seed: int) -> Schedule:
    """A schedule with fewer events that still fails, for whatever reason."""
    schedule = draw(seed)
    size = max(1, len(schedule.events) // 2)
    while True:
        position = 0
        removed = False
        while position < len(schedule.events):
            fewer = replace(schedule, events=schedule.events[:position] + schedule.events[position + size :])
            if _outcome(seed, fewer)[0] is not None:
                schedule, removed = fewer, True
            else:
                position += size
        if size == 1 and not removed:
            return schedule
        size = max(1, size // 2)


def explain(seed: int, trace_lines: int = 120) -> str:
    """What a failing seed does, for people."""
    schedule = minimized(seed)
    failure, world = _outcome(seed, schedule)
    trace = [
        f"{entry[0] / TICK if isinstance(entry[0], int) else 0:7.1f}  {' '.join(map(str, entry[1:]))}"
        for entry in list(world.trace)[-trace_lines:]
    ]
    return "\n".join(
        [
            f"seed {seed}: {failure.reason if failure else 'passes once its schedule is minimized'}",
            f"profile: {schedule.profile}",
            "schedule, minimized (times in ticks):",
            *[f"  {event}" for event in schedule.events],
            f"the last {len(trace)} things that happened:",
            *trace,
        ]
    )
