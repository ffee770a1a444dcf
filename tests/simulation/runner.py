"""Run seeds; when one fails, tell what happened and make its schedule smaller."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

from mysqlraft.raft.messages import Heartbeat, HeartbeatResponse
from mysqlraft.raft.roles import Transition
from tests.simulation.checks import Violation
from tests.simulation.schedule import TICK, Schedule, draw
from tests.simulation.world import World

CALM: dict[str, Any] = {
    "drop": 0.0, "duplicate": 0.0, "damage": 0.0, "sync": 0, "slow": 0, "turn": 0, "delay": 2, "witness": 0,
    "introductions": False,
}  # fmt: skip
"""Weather without anything special."""


_ENDS = ("to", "sender")


class Failure(NamedTuple):
    seed: int
    rule: str
    """Which one was broken; the name of the exception if the core itself gave up."""
    reason: str


def run_seed(seed: int) -> Failure | None:
    """None if all went well."""
    return run_schedule(seed, draw(seed))[0]


def run_schedule(seed: int, schedule: Schedule) -> tuple[Failure | None, World]:
    """The same with another schedule; the seed decides the rest."""
    world = World(seed, schedule)
    try:
        world.run()
    except Violation as violation:
        return Failure(seed, violation.rule, str(violation)), world
    except Exception as error:  # an exception in the core is as much of a failure as a broken rule
        return Failure(seed, type(error).__name__, f"{type(error).__name__}: {error}"), world
    return None, world


def run_seeds(start: int, count: int, jobs: int) -> Iterator[Failure | None]:
    """The outcome of each seed, in no particular order."""
    seeds = range(start, start + count)
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=16)


def minimized(failure: Failure, attempts: int = 2000) -> Schedule:
    """A smaller schedule that still breaks the same rule: events are left out, in halves, quarters and so on down to
    single ones (delta debugging), and the weather gets calmer. It gives up after so many `attempts`."""
    schedule = draw(failure.seed)
    left = attempts

    def breaks(candidate: Schedule) -> bool:
        nonlocal left
        left -= 1
        outcome = run_schedule(failure.seed, candidate)[0]
        return outcome is not None and outcome.rule == failure.rule

    def calmed() -> Iterator[Schedule]:
        for name, value in CALM.items():
            if getattr(schedule.profile, name) != value:
                yield replace(schedule, profile=replace(schedule.profile, **{name: value}))

    before = None
    while schedule != before and left > 0:  # less of the one can make less of the other possible
        before = schedule
        size = max(1, len(schedule.events) // 2)
        while size and left > 0:
            position = 0
            while position < len(schedule.events) and left > 0:
                events = schedule.events[:position] + schedule.events[position + size :]
                if breaks(fewer := replace(schedule, events=events)):
                    schedule = fewer
                else:
                    position += size
            size //= 2
        for calmer in calmed():
            if left > 0 and breaks(calmer):
                schedule = calmer
                break
    return schedule


def explain(failure: Failure, trace_lines: int = 120) -> str:
    """What a failing seed does, for people."""
    drawn, schedule = draw(failure.seed), minimized(failure)
    smaller, world = run_schedule(failure.seed, schedule)
    return "\n".join(
        [
            f"seed {failure.seed}: {failure.reason}",
            f"minimized from {len(drawn.events)} events to {len(schedule.events)}: "
            f"{smaller.reason if smaller else 'passes, which it must not'}",
            "weather:",
            *[f"  {field.name} = {getattr(schedule.profile, field.name)}" for field in fields(schedule.profile)],
            "schedule (times in ticks):",
            *[f"  {event}" for event in schedule.events],
            "the last things that happened:",
            *_happened(world.trace, trace_lines),
        ]
    )


def _happened(trace: deque[tuple[Any, ...]], lines: int) -> list[str]:
    """The end of a trace, one thing a line; of the heartbeats only how many there were."""
    told: list[str] = []
    beats = 0
    for time, what, *about in reversed(trace):
        if about and isinstance(about[-1], (Heartbeat, HeartbeatResponse)):
            beats += 1
            continue
        if beats:
            told.append(f"         ({beats} heartbeats and answers, arrived or lost)")
            beats = 0
        told.append(f"{time / TICK:7.1f}  {' '.join([what, *map(_told, about)])}")
        if len(told) >= lines:
            break
    return told[::-1]


def _told(about: Any) -> str:
    if isinstance(about, Transition):
        return f"becomes {about.role.value}, term {about.term}, leader {about.leader}: {about.reason}"
    if not hasattr(about, "sender"):
        return str(about)
    said = " ".join(f"{name}={_short(value)}" for name, value in about._asdict().items() if name not in _ENDS)
    return f"{about.sender}->{about.to} {type(about).__name__} {said}"


def _short(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"({_short(value[0])} ... {_short(value[-1])}: {len(value)})"
    if isinstance(value, bytes) and len(value) > 20:
        return f"{len(value)}B"
    return str(value)
