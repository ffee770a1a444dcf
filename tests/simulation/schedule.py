"""What goes wrong, and when: drawn from the seed before the run, so that a failing run's can be made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

TICK = 10
"""Units of virtual time per nominal tick."""


class Event(NamedTuple):
    """Something that is done to the cluster."""

    time: int
    what: str
    site: int
    other: int
    number: int

    def __str__(self) -> str:
        return f"{self.time / TICK:7.1f}  {self.what} site={self.site} other={self.other} number={self.number}"


@dataclass(frozen=True)
class Profile:
    """The kind of weather."""

    sites: int
    voters: int
    drop: float
    """Probability that a message vanishes ..."""
    duplicate: float
    """... arrives twice."""
    delay: int
    """Messages take 1 to this long, drawn for each: so they overtake each other."""
    sync: int
    """A disk write takes 0 to this long."""
    turn: int
    """A site looks at its output 0 to this long after an input, and so sees several inputs at once."""
    witness: int
    """Which voter has no server, 0 for none."""
    priorities: tuple[int, ...]
    """Of the sites, in order."""
    duration: int
    damage: float
    """Probability that a chunk of a snapshot arrives damaged."""


@dataclass(frozen=True)
class Schedule:
    profile: Profile
    events: tuple[Event, ...]


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(seed)
    special = Random(seed ^ 0xE1EC7)
    """Draws what was added later: so the rest of an old seed's schedule stays what it was."""
    voters = random.choice((1, 2, 3, 3, 3, 3, 4, 5, 5))
    sites = voters + random.choice((0, 0, 0, 1))
    profile = Profile(
        sites=sites,
        voters=voters,
        drop=random.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
        duplicate=random.choice((0.0, 0.02, 0.1)),
        delay=random.choice((2, 5, 15, 40)),
        sync=random.choice((0, 3, 10, 40)),
        turn=random.choice((0, 0, 3)),
        witness=special.choice((0, 0, voters)) if voters > 1 else 0,
        priorities=tuple(special.choices((0, 0, 1, 5) if special.random() < 0.3 else (0,), k=sites)),
        duration=random.choice((60, 120, 200)) * TICK,
        damage=(0.0, 0.02, 0.3)[seed % 3],
    )
    events: list[Event] = []
    ids = range(1, sites + 1)

    def at() -> int:
        return random.randrange(profile.duration)

    for _ in range(random.randrange(10, 60)):
        events.append(Event(at(), "propose", random.choice(ids), 0, random.randrange(1, 9)))
    for _ in range(random.choice((0, 1, 3, 8))):
        start = at()
        site = random.choice(ids)
        events.append(Event(start, "crash", site, 0, random.randrange(4)))
        events.append(Event(start + random.randrange(1, 30 * TICK), "restart", site, 0, random.randrange(3)))
    for _ in range(random.choice((0, 0, 1, 3, 6))):
        start = at()
        until = start + random.randrange(TICK, 40 * TICK)
        kind = random.choice(("isolate", "cut", "cut-one-way", "split"))
        site, other = random.choice(ids), random.choice(ids)
        number = random.randrange(1, 1 << sites)
        events.append(Event(start, kind, site, other, number))
        events.append(Event(until, "heal", 0, 0, 0))
    for _ in range(random.choice((0, 0, 2, 5, 9))):
        # Whoever leads then: these make logs that differ, which is where the difficult rules are needed.
        start = at()
        until = start + random.randrange(TICK, 30 * TICK)
        kind = random.choice(("crash-leader", "isolate-leader", "whisper-leader", "whisper-leader"))
        events.append(Event(start, "propose-leader", 0, 0, random.randrange(1, 5)))
        events.append(Event(start + random.randrange(3), kind, 0, random.choice(ids), random.randrange(4)))
        events.append(Event(start + random.randrange(5), "propose-leader", 0, 0, random.randrange(1, 5)))
        for _ in range(3):  # about when an old leader still believes that it leads, and a new one does
            events.append(Event(start + random.randrange(10 * TICK, 22 * TICK), "read-leader", 0, 0, 0))
        events.append(Event(until, "heal", 0, 0, 0))
        events.append(Event(until + random.randrange(5), "restart-all", 0, 0, random.randrange(3)))
    for _ in range(random.choice((0, 0, 1, 2))):
        start = at()
        site = random.choice(ids)
        events.append(Event(start, "stall-disk", site, 0, random.randrange(TICK, 30 * TICK)))
    for _ in range(random.choice((0, 1, 2, 5))):
        events.append(Event(at(), "reset", random.choice(ids), random.choice(ids), 0))
    for _ in range(random.choice((0, 0, 1, 4))):
        events.append(Event(at(), "transfer", 0, random.choice((0, *ids)), 0))
    for _ in range(random.choice((0, 2, 6))):
        events.append(Event(at(), "read", random.choice(ids), 0, 0))
    if sites > 2:
        for _ in range(random.choice((0, 0, 0, 2, 6))):
            events.append(Event(at(), "change", random.choice(ids), 0, random.randrange(3)))
        for _ in range(special.choice((0, 0, 2, 6))):
            start = special.randrange(profile.duration)
            events.append(Event(start, "set", special.choice(ids), 0, special.randrange(8)))
        for _ in range(special.choice((0, 0, 2, 6))):
            # Decided on what is known now, asked for a while later.
            wait = special.randrange(1, 20 * TICK)
            start = special.randrange(profile.duration)
            events.append(Event(start, "late-change", special.choice(ids), wait, special.randrange(3)))
            events.append(Event(start + special.randrange(wait), "change", special.choice(ids), 0, 1))
        for _ in range(special.choice((0, 0, 0, 2, 4))):
            # A site that lags: it hears nothing of what is proposed meanwhile, and is to be promoted at once.
            start, site = special.randrange(profile.duration), special.choice(ids)
            events.append(Event(start, "demote", site, 0, 0))
            events.append(Event(start + TICK, "isolate", site, 0, 0))
            for wait in range(25):
                events.append(Event(start + (2 + wait) * TICK, "propose-leader", 0, 0, 2))
            events.append(Event(start + 28 * TICK, "heal", 0, 0, 0))
            for wait in range(6):
                events.append(Event(start + 28 * TICK + wait, "promote", site, 0, 0))
    for _ in range(random.choice((0, 0, 1, 3, 8))):
        # A snapshot and at once compaction, up to it or to some entries before. On the leader it is what makes others
        # need it; on all at the same time, what makes logs begin at different places.
        what = random.choice(("snapshot", "snapshot-leader", "snapshot-leader", "snapshot-all"))
        events.append(Event(at(), what, random.choice(ids), 0, random.choice((0, 0, 0, 1, 5))))
    for _ in range(random.choice((0, 0, 1, 3))):
        # Somebody is away while the log goes on without him and is compacted: he needs a snapshot, while more happens.
        start = at()
        away, site = random.randrange(TICK, 30 * TICK), random.choice(ids)
        events.append(Event(start, random.choice(("crash", "isolate")), site, 0, random.randrange(4)))
        for _ in range(3):
            events.append(Event(start + random.randrange(away), "propose-leader", 0, 0, random.randrange(1, 9)))
        events.append(Event(start + away, "snapshot-all", 0, 0, 0))
        events.append(Event(start + away + 1, "heal", 0, 0, 0))
        events.append(Event(start + away + 1, "restart", site, 0, random.randrange(3)))
        for _ in range(random.randrange(4)):
            when = start + away + random.randrange(10 * TICK)
            what = random.choice(("crash", "reset", "snapshot-leader", "snapshot-all", "propose-leader"))
            events.append(Event(when, what, site, random.choice(ids), random.randrange(1, 4)))
            events.append(Event(when + random.randrange(5 * TICK), "restart", site, 0, random.randrange(3)))
    events.sort()
    return Schedule(profile, tuple(events))
