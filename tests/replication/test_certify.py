"""The certifier against the plainest map of last writers, across generations, large units and forgetting."""

from __future__ import annotations

import random
from array import array

import pytest

from mysqlraft.replication import certify
from mysqlraft.replication.certify import Certifier, Verdict, sorted_keys


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
        verdict = certifier.judge(origin, base, packed(keys), ())
        assert verdict is plain.judge(origin, base, keys)
        if verdict is Verdict.CONFLICT:
            assert sorted(certifier.conflicting(origin, base, packed(keys))) == sorted(
                (key, *plain.last[key][:2])
                for key in keys
                if key in plain.last and plain.last[key][0] > base and plain.last[key][1] != origin
            )
        if len(keys) > 20:
            halves = (packed(keys[:9]), packed(keys[9:]))
            certifier.enter_large(index, origin, sorted_keys(halves), (), verdict)
        else:
            certifier.enter(index, origin, packed(keys), (), verdict)
        plain.enter(index, origin, keys, verdict)
        if rng.random() < 0.3:
            certifier.forget(min(bases.values()))
    assert certifier.floor > 0


def test_what_lies_below_the_floor_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "GENERATION", 100)
    certifier = Certifier()
    for index in range(1, 2001):
        certifier.certify(index, 1, index - 1, packed([index * 3, index * 3 + 1]), ("s",))
        certifier.forget(index - 60)
    assert len(certifier) <= 300
    certifier.forget(2000)
    assert len(certifier) == 0


def test_a_unit_rebuilt_from_below_the_floor_is_written_again() -> None:
    certifier = Certifier(floor=10)
    assert certifier.certify(12, 1, 5, packed([1]), ()) is Verdict.REASSERT
    assert certifier.certify(13, 1, 10, packed([2]), ()) is Verdict.CLEAN


def test_statements_and_rows_of_a_schema() -> None:
    certifier = Certifier()
    certifier.certify(1, 2, 0, packed([1]), ("s",))
    assert certifier.certify_ddl(2, 1, 0, ("s",)) is Verdict.REASSERT  # rows of another origin came first
    assert certifier.certify_ddl(3, 1, 2, ("other",)) is Verdict.CLEAN
    assert certifier.certify_ddl(4, 2, 1, ("s",)) is Verdict.CONFLICT
    assert certifier.certify(5, 3, 1, packed([9]), ("s",)) is Verdict.REASSERT
    assert certifier.certify(6, 3, 5, packed([9]), ("s",)) is Verdict.CLEAN
