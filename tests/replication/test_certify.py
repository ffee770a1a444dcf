"""The certifier against the plainest map of last writers, across generations, large units and forgetting."""

from __future__ import annotations

import random
from array import array

import pytest

from mysqlraft.replication import certify
from mysqlraft.replication.certify import Certifier, Verdict, sorted_keys

T = (("s", "t"),)
OTHER = (("s", "other"),)


class Plain:
    """The definition: every writer of every key, and nothing forgotten."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[int, int, bool]] = {}

    def judge(self, origin: int, base: int, keys: list[int]) -> Verdict:
        above = [self.last[key] for key in keys if key in self.last and self.last[key][0] > base]
        if any(writer != origin for _, writer, _ in above):
            return Verdict.CONFLICT
        return Verdict.REASSERT if any(rewritten for _, _, rewritten in above) else Verdict.CLEAN

    def enter(self, index: int, origin: int, keys: list[int], verdict: Verdict) -> None:
        self.last.update(dict.fromkeys(keys, (index, origin, verdict is not Verdict.CLEAN)))


def packed(keys: list[int]) -> bytes:
    return array("Q", keys).tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_generations_and_large_units_are_one_map(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "GENERATION", 20)
    monkeypatch.setattr(certify, "SEGMENT", 8)
    rng = random.Random(seed)
    certifier, plain = Certifier(), Plain()
    bases = dict.fromkeys(range(1, 5), 0)
    for index in range(1, 400):
        origin = rng.randint(1, 4)
        bases[origin] = base = rng.randint(bases[origin], index - 1) if rng.random() < 0.5 else bases[origin]
        keys = rng.sample(range(120), rng.randint(30, 90) if rng.random() < 0.1 else rng.randint(1, 6))
        verdict = certifier.judge(origin, base, packed(keys), T)
        assert verdict is plain.judge(origin, base, keys)
        if verdict is Verdict.CONFLICT:
            assert sorted(certifier.conflicting(origin, base, packed(keys))) == sorted(
                (key, *plain.last[key][:2])
                for key in keys
                if key in plain.last and plain.last[key][0] > base and plain.last[key][1] != origin
            )
        if len(keys) > 20:
            halves = (packed(keys[:9]), packed(keys[9:]))
            certifier.enter_large(index, origin, base, sorted_keys(halves), T, verdict)
        else:
            certifier.enter(index, origin, base, packed(keys), T, verdict)
        plain.enter(index, origin, keys, verdict)
        certifier.tend()
        if rng.random() < 0.3:
            certifier.forget(min(bases.values()))
    assert certifier.floor > 0


def test_what_lies_below_the_floor_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "GENERATION", 100)
    certifier = Certifier()
    for index in range(1, 2001):
        certifier.certify(index, 1, index - 1, packed([index * 3, index * 3 + 1]), T)
        certifier.tend()
        certifier.forget(index - 60)
    assert len(certifier) <= 300
    certifier.forget(2000)
    assert len(certifier) == 0


def test_a_unit_rebuilt_from_below_the_floor_is_written_again() -> None:
    certifier = Certifier(floor=10)
    assert certifier.certify(12, 1, 5, packed([1]), T) is Verdict.REASSERT
    assert certifier.certify(13, 1, 10, packed([2]), T) is Verdict.REASSERT  # 12 counts as a write of all rows
    assert certifier.certify(14, 1, 13, packed([2]), T) is Verdict.CLEAN


def test_statements_and_rows_of_a_schema() -> None:
    certifier = Certifier()
    certifier.certify(1, 2, 0, packed([1]), T)
    assert certifier.certify_ddl(2, 1, 0, T) is Verdict.REASSERT  # rows of another origin came first
    assert certifier.certify_ddl(3, 1, 2, OTHER) is Verdict.CLEAN
    assert certifier.certify_ddl(4, 2, 1, T) is Verdict.CONFLICT
    assert certifier.certify(5, 3, 1, packed([9]), T) is Verdict.REASSERT
    assert certifier.certify(6, 3, 5, packed([9]), T) is Verdict.CLEAN


def test_a_statement_meets_its_tables_only() -> None:
    certifier = Certifier()
    assert certifier.certify_ddl(1, 1, 0, OTHER) is Verdict.CLEAN
    assert certifier.certify_ddl(2, 2, 0, T) is Verdict.CLEAN
    assert certifier.certify(3, 3, 0, packed([1]), (("s", "third"),)) is Verdict.CLEAN
    assert certifier.certify_ddl(4, 3, 0, (("s", None),)) is Verdict.CONFLICT  # the whole schema
    assert certifier.certify_ddl(5, 1, 3, (("s", "fourth"),)) is Verdict.CONFLICT
    assert certifier.certify_ddl(6, 1, 5, (("elsewhere", None),)) is Verdict.CLEAN


def test_a_statement_is_raced_by_rows_that_came_after_it_at_its_origin() -> None:
    certifier = Certifier()
    certifier.certify(1, 2, 0, packed([1]), T)
    assert certifier.certify_ddl(2, 1, 1, T) is Verdict.CLEAN  # it knew them
    certifier.certify(3, 1, 1, packed([2]), T)
    assert certifier.certify_ddl(4, 1, 2, T) is Verdict.CLEAN  # its own, which came before it
    certifier.certify(5, 2, 4, packed([3]), T)
    assert certifier.certify_ddl(6, 1, 4, OTHER) is Verdict.CLEAN
    assert certifier.certify_ddl(7, 1, 4, T) is Verdict.REASSERT


def test_a_statement_is_raced_by_its_origins_own_unit_if_that_is_written_again() -> None:
    """The other's row was in the origin's tables when the statement ran, its own unit written again was not."""
    certifier = Certifier()
    certifier.certify(5, 2, 0, packed([1]), T)
    assert certifier.certify(6, 1, 0, packed([1]), T) is Verdict.CONFLICT
    assert certifier.certify_ddl(7, 1, 5, T) is Verdict.REASSERT


def test_what_makes_a_statement_raced_survives_a_rebuild() -> None:
    """A rebuilt map errs to REASSERT, but not in what stops sites."""
    certifier, rebuilt = Certifier(), Certifier()
    certifier.certify(5, 1, 3, packed([1]), T)
    certifier.forget(4)
    rebuilt.forget(4)
    rebuilt.certify(5, 1, 3, packed([1]), T)
    rebuilt.restore(certifier.floor, certifier.tables)
    assert rebuilt.certify(6, 1, 4, packed([1]), T) is certifier.certify(6, 1, 4, packed([1]), T) is Verdict.CLEAN
    assert rebuilt.certify_ddl(7, 1, 4, T) is certifier.certify_ddl(7, 1, 4, T) is Verdict.CLEAN


def test_a_unit_from_before_a_statement_is_a_write_of_its_whole_table() -> None:
    """It lacks the keys of a unique key that the statement made."""
    certifier = Certifier()
    certifier.certify_ddl(1, 1, 0, T)
    assert certifier.certify(2, 2, 0, packed([1]), T) is Verdict.REASSERT
    assert certifier.certify(3, 1, 1, packed([2]), T) is Verdict.REASSERT
    assert certifier.certify(4, 1, 3, packed([3]), T) is Verdict.CLEAN


def test_a_wild_unit_meets_every_row_of_its_table() -> None:
    certifier = Certifier()
    certifier.certify(1, 2, 0, packed([1]), T)
    assert certifier.certify(2, 1, 1, packed([2]), T, wild=T) is Verdict.CLEAN
    assert certifier.certify(3, 2, 1, packed([3]), T) is Verdict.REASSERT
    assert certifier.certify(4, 1, 2, packed([4]), OTHER, wild=OTHER) is Verdict.CLEAN
    assert certifier.certify(5, 1, 2, packed([5]), T, wild=T) is Verdict.REASSERT


MAKES, REPLACES, INDEXES = 0x11, 0x20, 0x31
"""Repetitions: of a statement that only makes something, one that may replace it, and another one that only makes."""


@pytest.mark.parametrize("repetition", [MAKES, REPLACES])
def test_the_same_statement_of_two_sites_at_once(repetition: int) -> None:
    certifier = Certifier()
    assert certifier.certify_ddl(1, 1, 0, T, repetition=repetition) is Verdict.CLEAN
    assert certifier.certify_ddl(2, 2, 0, T, repetition=repetition) is Verdict.CLEAN
    assert certifier.certify_ddl(3, 3, 0, T, repetition=0x40) is Verdict.CONFLICT
    assert certifier.certify_ddl(4, 4, 0, T, repetition=repetition) is Verdict.CONFLICT  # of what the third one did
    assert certifier.certify_ddl(5, 1, 4, T, repetition=repetition) is Verdict.CLEAN


def test_rows_race_a_statement_that_another_site_ran_too() -> None:
    certifier = Certifier()
    certifier.certify_ddl(1, 1, 0, T, repetition=REPLACES)
    certifier.certify(2, 1, 1, packed([1]), T)
    assert certifier.certify_ddl(3, 2, 0, T, repetition=REPLACES) is Verdict.REASSERT
    assert certifier.certify_ddl(4, 2, 3, T, repetition=REPLACES) is Verdict.CLEAN


def test_two_sites_that_start_with_the_same_statements() -> None:
    """CREATE TABLE IF NOT EXISTS and CREATE INDEX IF NOT EXISTS: neither undoes what the other made."""
    for order in ("1122", "1212", "1221"):
        certifier = Certifier()
        statements = {"1": iter((MAKES, INDEXES)), "2": iter((MAKES, INDEXES))}
        for index, site in enumerate(order, 1):
            verdict = certifier.certify_ddl(index, int(site), 0, T, repetition=next(statements[site]))
            assert verdict is Verdict.CLEAN, (order, index)


def test_what_only_makes_something_does_not_stand_beside_what_the_other_site_does_not_have() -> None:
    certifier = Certifier()
    certifier.certify_ddl(1, 1, 0, T, repetition=MAKES)
    assert certifier.certify_ddl(2, 2, 0, T, repetition=INDEXES) is Verdict.CONFLICT
