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
    """A disk write takes 0 to this long ..."""
    slow: int
    """... but eight times as long at this site, 0 for none."""
    turn: int
    """A site looks at its output 0 to this long after an input, and so sees several inputs at once."""
    witness: int
    """Which voter has no server, 0 for none."""
    priorities: tuple[int, ...]
    """Of the sites, in order."""
    duration: int
    damage: float
    """Probability that a chunk of a snapshot arrives damaged."""
    introductions: bool
    """Messages pass only between sites that would let each other in if they connected now."""


@dataclass(frozen=True)
class Schedule:
    profile: Profile
    events: tuple[Event, ...]


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(seed)
    special = Random(seed ^ 0xE1EC7)
    """Draws what was added later: so the rest of an old seed's schedule stays what it was."""
    rare = Random(seed ^ 0x4A4E)
    """The same, for what was added last."""
    voters = random.choice((1, 2, 3, 3, 3, 3, 4, 5, 5))
    if rare.random() < 0.04:
        voters = rare.choice((6, 7, 8, 9))
    sites = min(9, voters + random.choice((0, 0, 0, 1)))
    profile = Profile(
        sites=sites,
        voters=voters,
        drop=random.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
        duplicate=random.choice((0.0, 0.02, 0.1)),
        delay=random.choice((2, 5, 15, 40)),
        sync=random.choice((0, 3, 10, 40)),
        slow=rare.choice((0, 0, 0, 1 + seed % sites)),
        turn=random.choice((0, 0, 3)),
        witness=special.choice((0, 0, voters)) if voters > 1 else 0,
        priorities=tuple(special.choices((0, 0, 1, 5) if special.random() < 0.3 else (0,), k=sites)),
        duration=random.choice((60, 120, 200)) * TICK,
        damage=(0.0, 0.02, 0.3)[seed % 3],
        introductions=rare.random() < 0.5,
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
    for _ in range(rare.choice((0, 0, 0, 1))):
        # All sites lose their power at once, sometimes just after they took snapshots.
        start = rare.randrange(profile.duration)
        events.append(Event(start, rare.choice(("propose-leader", "snapshot-all")), 0, 0, rare.randrange(1, 5)))
        events.append(Event(start + rare.randrange(2 * TICK), "propose-leader", 0, 0, rare.randrange(1, 5)))
        events.append(Event(start + rare.randrange(1, 4 * TICK), "crash-all", 0, 0, rare.randrange(4)))
        events.append(Event(start + rare.randrange(5 * TICK, 9 * TICK), "restart-all", 0, 0, rare.randrange(3)))
    for _ in range(rare.choice((0, 0, 1, 3))):
        # Proposals again that may be under way, or of a proposer that began anew while consensus went on.
        start = rare.randrange(profile.duration)
        what = rare.choice(("propose-again", "propose-again", "new-session"))
        events.append(Event(start, what, rare.choice(ids), 0, rare.randrange(1, 9)))
    for _ in range(rare.choice((0, 0, 0, 2))):
        # A site reads again and again while others write.
        start, site = rare.randrange(profile.duration), rare.choice(ids)
        for _ in range(5):
            start += rare.randrange(8)
            events.append(Event(start, "read", site, 0, 0))
            events.append(Event(start + 1, "propose-leader", 0, 0, 1))
    if sites > 2:
        for _ in range(rare.choice((0, 0, 0, 1))):
            # Leadership is handed to a site that cannot be reached, late, so that nothing else ends that.
            start, site = profile.duration - rare.randrange(TICK, 12 * TICK), rare.choice(ids)
            events.append(Event(start, "isolate", site, 0, 0))
            events.append(Event(start + 1, "transfer", 0, site, 0))
            events.append(Event(start + rare.randrange(TICK, 20 * TICK), "heal", 0, 0, 0))
        for _ in range(rare.choice((0, 0, 0, 1))):
            # A site is removed, and another machine takes its place under its id.
            start, site = rare.randrange(profile.duration), rare.choice(ids)
            events.append(Event(start, "remove", site, 0, 0))
            for wait in sorted(rare.randrange(1, 6 * TICK) for _ in range(3)):
                events.append(Event(start + wait, "replace", site, 0, 0))
                events.append(Event(start + wait + rare.randrange(4), "change", site, 0, 1))
        for _ in range(rare.choice((0, 0, 0, 1, 3))):
            # A leader hands over and is cut off at that moment: for a while there are two, and it is asked.
            start = rare.randrange(profile.duration)
            events.append(Event(start, "abdicate-leader", 0, rare.choice((0, *ids)), rare.randrange(1, 6)))
            for _ in range(3):
                later = start + rare.randrange(2 * TICK, 14 * TICK)
                events.append(Event(later, "propose-leader", 0, 0, 1))
                events.append(Event(later + rare.randrange(3 * TICK), "read-leader", 0, 0, 0))
            events.append(Event(start + 20 * TICK, "heal", 0, 0, 0))
        if rare.random() < 0.1:
            # Of those that are left one may know more than all the others together.
            start = profile.duration * 2 // 3 + rare.randrange(profile.duration // 3)
            burning = rare.sample(ids, (sites + 1) // 2)
            away = start - rare.randrange(1, 15 * TICK)
            for site in [site for site in ids if site not in burning][1:]:
                events.append(Event(away, "isolate", site, 0, 0))
            for _ in range(3):
                events.append(Event(rare.randrange(away, start), "propose-leader", 0, 0, rare.randrange(1, 5)))
            events.append(Event(start, "disaster", 0, 0, sum(1 << (site - 1) for site in burning)))
    events.sort()
    return Schedule(profile, tuple(events))
