"""When a failure is not worth another try."""

from __future__ import annotations

from mysqlraft.failures import ANY, SAME, Failures


def test_the_same_failure_without_progress() -> None:
    failures = Failures()
    assert [failures.failed("killed, log index 7", None) for _ in range(SAME)] == [False, False, True]
    assert failures.in_a_row == SAME


def test_numbers_make_no_difference() -> None:
    failures = Failures()
    assert [failures.failed(f"at 0x{n} of {n}", (5,)) for n in range(SAME + 1)] == [False, False, True, True]


def test_progress_begins_another_row() -> None:
    failures = Failures()
    for index in range(20):
        assert not failures.failed("killed", (index,))
        assert not failures.failed("killed", (index,))
    assert not failures.failed("killed", (index,), healthy=True), "nothing was left to do"
    assert failures.in_a_row == 1


def test_different_failures_come_to_an_end_as_well() -> None:
    failures = Failures()
    found = [failures.failed(f"way {'ab'[n % 2]}", (5,)) for n in range(ANY)]
    assert found == [False] * (ANY - 1) + [True]
