"""Ticks that come late and are not noticed: to the core each has come in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mysqlraft.raft import beat
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.messages import Heartbeat
from mysqlraft.raft.participant import Participant
from mysqlraft.raft.roles import Role
from mysqlraft.raft.ticker import Ticker
from tests.raft.cluster import Cluster, Driven, configuration, proposal, ranked, store

SECONDS = 0.1
LIMITS = Limits(election_ticks=10, heartbeat_ticks=3, preference_ticks=20)


class Loop:
    """An event loop's clock and timers, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, (), self)  # type: ignore[arg-type]
        self._timers.append(timer)
        return timer

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def get_debug(self) -> bool:
        return False

    @property
    def due(self) -> float:
        return min(timer.when() for timer in self._timers)

    def run_until(self, until: float) -> int:
        """How many timers have gone off."""
        count = 0
        while self._timers and self.due <= until:
            timer = min(self._timers, key=lambda each: each.when())
            self._timers.remove(timer)
            self.now = max(self.now, timer.when())
            timer._run()
            count += 1
        self.now = max(self.now, until)
        return count


class Counting:
    """A core that does something with every `patience` ticks in a row without any input."""

    def __init__(self, time: Callable[[], float] = lambda: 0.0) -> None:
        self.patience = 5
        self.elapsed = 0
        self.did: list[float] = []
        """And when."""
        self.ticks = 0
        self._time = time

    @property
    def quiet(self) -> int:
        return max(0, self.patience - self.elapsed - 1)

    def tick(self) -> None:
        self.ticks += 1
        self.elapsed += 1
        if self.elapsed >= self.patience:
            self.elapsed = 0
            self.did.append(round(self._time(), 6))


@pytest.fixture(params=[0.0, 0.017, 0.049, 0.051, 0.099], ids="beat+{:.3f}".format)
def loop(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Loop:
    """`request.param`: where the beats are, which is another place in every process."""
    loop = Loop()
    monkeypatch.setattr(beat, "_ORIGIN", request.param)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def ticker_of(core: Counting, due: Callable[[], None] = lambda: None) -> Ticker:
    def passed(ticks: int) -> None:
        for _ in range(ticks):
            core.tick()

    return Ticker(SECONDS, passed, lambda: core.quiet, due)


@given(st.lists(st.tuples(st.floats(0.001, 1.5), st.integers(1, 15)), max_size=20))
def test_it_is_as_if_every_tick_had_come_in_time(inputs: list[tuple[float, int]]) -> None:
    """Each input, so long after the one before, starts the count again with another patience."""
    with pytest.MonkeyPatch.context() as patch:
        loop = Loop()
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        core, prompt = Counting(loop.time), Counting(lambda: begun + prompt.ticks * SECONDS)
        ticker = ticker_of(core)
        ticker.start()
        begun = ticker._at
        for pause, patience in inputs:
            at = loop.now + pause
            if abs((at - begun) / SECONDS % 1 - 0.5) > 0.49:
                at += SECONDS / 10  # not at the very moment of a tick
            loop.run_until(at)
            while begun + (prompt.ticks + 1) * SECONDS <= at:
                prompt.tick()
            ticker.catch_up()
            assert (core.ticks, core.elapsed, core.did) == (prompt.ticks, prompt.elapsed, prompt.did)
            for each in (core, prompt):
                each.elapsed, each.patience = 0, patience
            ticker.settle()


def test_it_goes_off_only_when_a_tick_is_noticed(loop: Loop) -> None:
    core = Counting(loop.time)
    due: list[float] = []
    ticker = ticker_of(core, lambda: due.append(round(loop.now, 6)))
    ticker.start()
    assert loop.run_until(loop.now + 10) in (19, 20)
    assert due == core.did


def test_what_a_tick_does_is_not_done_before_its_time(loop: Loop) -> None:
    """An input may come in when the timer is already due, and has not yet gone off."""
    core = Counting()
    ticker = ticker_of(core)
    ticker.start()
    loop.now = loop.due + SECONDS / 2
    ticker.catch_up()
    assert (core.ticks, core.did) == (4, [])
    loop.run_until(loop.now)
    assert (core.ticks, core.did) == (5, [0.0])


def test_time_is_not_caught_up_after_a_stall(loop: Loop) -> None:
    core = Counting(loop.time)
    ticker = ticker_of(core)
    ticker.start()
    loop.now = loop.due + 3.0
    loop.run_until(loop.now)
    assert (core.ticks, core.did) == (4, []), "those that it slept through, which do nothing"
    loop.run_until(loop.now + 0.01)
    assert core.ticks == 5
    assert SECONDS / 2 <= loop.due - 4 * SECONDS - loop.now <= 3 * SECONDS / 2


def test_what_came_in_during_a_stall_is_heard_first(loop: Loop) -> None:
    core = Counting(loop.time)
    ticker = ticker_of(core)
    ticker.start()
    loop.now = loop.due + 3.0
    loop.run_until(loop.now)
    ticker.catch_up()
    core.elapsed = 0
    ticker.settle()
    # One tick at once, and from then on with the beat: the first of those half a tick later, at the earliest.
    loop.run_until(loop.now + 3.4 * SECONDS)
    assert core.did == []


def test_who_is_late_each_time_is_not_later_each_time(loop: Loop) -> None:
    """A busy loop gets to its timers a tick and a half late: a heartbeat leaves as much later, not a period later."""
    core = Counting(loop.time)
    ticker = ticker_of(core)
    ticker.start()
    begun = loop.now
    while len(core.did) < 10:
        loop.now = max(loop.now, loop.due) + 1.5 * SECONDS
        loop.run_until(loop.now)
    for before, after in pairwise([begun, *core.did]):
        assert after - before < (core.patience + 1.5 + 1.5 + 1) * SECONDS


def test_it_goes_on_whatever_became_of_a_tick(loop: Loop) -> None:
    def failing() -> None:
        raise RuntimeError("in a callback")

    core = Counting(loop.time)
    ticker = ticker_of(core, failing)
    ticker.start()
    handler: list[object] = []
    loop.call_exception_handler = handler.append  # type: ignore[attr-defined]
    loop.run_until(loop.now + 2)
    assert len(handler) == len(core.did) > 2


def test_it_stops(loop: Loop) -> None:
    core = Counting()
    ticker = ticker_of(core, lambda: ticker.stop())
    ticker.start()
    assert loop.run_until(loop.now + 10) == 1
    ticker.catch_up()
    ticker.settle()
    assert core.ticks == core.patience


def test_ticks_of_who_waits_for_something_are_not_quiet() -> None:
    cluster = Cluster(configuration(3), LIMITS)
    leader = cluster.elect(1)
    cluster.tick()
    assert leader.quiet_ticks == LIMITS.heartbeat_ticks - 2
    leader.propose([proposal(b"x")])
    cluster.sites[1].run()
    assert leader.quiet_ticks == 0


def test_ticks_of_who_writes_are_not_quiet() -> None:
    cluster = Cluster(configuration(1), LIMITS)
    leader = cluster.elect(1)
    leader.propose([proposal(b"x")])
    cluster.sites[1].ready()
    assert leader.quiet_ticks == 0
    cluster.sites[1].sync()
    assert leader.quiet_ticks > 0


def test_ticks_of_who_has_proposed_are_not_quiet() -> None:
    site = Participant(1, store([1], configuration(3)), Random(1))
    site.core.step(Heartbeat(1, 2, 1, 0, 0, 1))
    assert site.quiet_ticks >= LIMITS.election_ticks - 1
    site.propose(1, 1, b"x")
    assert site.ready() is not None
    assert site.quiet_ticks == 0


@pytest.mark.parametrize("seed", range(40))
def test_a_quiet_tick_does_nothing_but_count(seed: int) -> None:
    """Of a core, whatever it is in the middle of."""
    random = Random(seed)
    members = ranked(("voter", 1), ("voter", random.randrange(3)), ("voter", 1), ("witness", 0))
    cluster = Cluster(members, LIMITS)
    quiet: Counter[Role | None] = Counter()
    for number in range(1, 2000):
        site = cluster.sites[random.choice([*cluster.sites])]
        leaders = [each.core for each in cluster.sites.values() if each.core.accepts_proposals]
        what = random.random()
        if what < 0.9:
            quiet[_tick(site)] += 1
            if random.random() < 0.9:
                cluster.settle()
        elif what < 0.95 and leaders:
            leaders[0].propose([proposal(b"x", number)])
            if random.random() < 0.5:
                cluster.settle()
        elif what < 0.96 and leaders:
            leaders[0].transfer()
        elif what < 0.98:
            cluster.down = {random.choice([*cluster.sites])}
        else:
            cluster.down = set()
    assert quiet[Role.FOLLOWER] > 10
    assert quiet[Role.LEADER] > 10


def _tick(site: Driven) -> Role | None:
    """What the core is, if the tick was quiet."""
    core = site.core
    outstanding = site.ready()
    quiet, before = core.quiet_ticks, (core.role, core.term, core.vote, core.leader, core.transferee)
    core.tick()
    if not quiet or outstanding:
        return None
    assert (core.role, core.term, core.vote, core.leader, core.transferee) == before
    assert core.quiet_ticks >= quiet - 1
    assert core.ready() is None
    return core.role
