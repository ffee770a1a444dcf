"""Timers of a process that go off together."""

from __future__ import annotations

import asyncio
import math

import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mysqlraft.raft.beat import to_beat

PERIODS = st.sampled_from([0.1, 0.3, 1.0, 2.0, 5.0])


def beat_after(now: float, seconds: float) -> float:
    """When the timer goes off that is set at `now`."""
    loop = asyncio.new_event_loop()
    try:
        loop.time = lambda: now  # type: ignore[method-assign]

        async def wait() -> float:
            return to_beat(seconds)

        return now + loop.run_until_complete(wait())
    finally:
        loop.close()


@given(st.integers(0, 10**9), PERIODS)
def test_a_beat_is_about_one_period_away(milliseconds: int, seconds: float) -> None:
    now = milliseconds / 1000
    assert 0.499 * seconds <= beat_after(now, seconds) - now <= 1.501 * seconds


@given(st.integers(0, 10**9), PERIODS, st.integers(-40, 40))
def test_a_timer_that_goes_off_early_or_late_loses_no_beat_and_repeats_none(
    milliseconds: int, seconds: float, off: int
) -> None:
    beat = beat_after(milliseconds / 1000, seconds)
    assert math.isclose(beat_after(beat + off / 1000, seconds), beat + seconds, abs_tol=1e-5)


@given(st.integers(0, 10**9), st.integers(0, 2000))
def test_a_beat_of_a_multiple_is_one_of_both(milliseconds: int, later: int) -> None:
    now = milliseconds / 1000
    apart = beat_after(now, 2.0) - beat_after(now + later / 1000, 0.1)
    assert math.isclose(apart, round(apart, 1), abs_tol=1e-5)


def test_what_is_due_together_goes_off_in_one_turn() -> None:
    """Of uvloop, which the daemon runs on: its clock stands still during a turn."""

    async def timer(seconds: float) -> float:
        await asyncio.sleep(to_beat(seconds))
        return asyncio.get_running_loop().time()

    async def timers() -> None:
        period = 0.2
        while True:
            begun = await timer(period)
            waiting = []
            for _ in range(5):
                waiting.append(asyncio.create_task(timer(period)))
                await asyncio.sleep(0.003)
            set_within = asyncio.get_running_loop().time() - begun
            went_off = {await each for each in waiting}
            # On a busy machine not all are set for the same beat, or one of them is set late.
            if set_within < period / 2 and len(went_off) == 1:
                return

    uvloop.run(asyncio.wait_for(timers(), 20))
