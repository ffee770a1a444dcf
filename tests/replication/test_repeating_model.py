"""Random histories of sites that make and drop the same things at once: who goes on to the end holds the same."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from mysqlraft.binlog.commuting import commutes
from mysqlraft.binlog.repeating import repetition
from mysqlraft.replication.certify import Certifier, Verdict

HISTORIES = 3000
TABLE = (("s", "t"),)

MAKE = "CREATE TABLE IF NOT EXISTS t (id INT PRIMARY KEY)"
INDEX = "CREATE INDEX IF NOT EXISTS i ON t (id)"
COLUMN = "ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT"
DROP = "DROP TABLE IF EXISTS t"
BARE = "CREATE TABLE t (id INT PRIMARY KEY)"

Table = frozenset[str] | None
"""What a table has beside its key; None: it is not there."""


def run(table: Table, statement: str) -> Table:
    """What the statement makes of the table. Raises KeyError where a server would refuse it."""
    if statement == DROP:
        return None
    if statement == BARE and table is not None:
        raise KeyError(statement)
    if statement in (MAKE, BARE):
        return frozenset() if table is None else table
    if table is None:
        raise KeyError(statement)
    return table | {statement}


@dataclass
class Site:
    table: Table = None
    applied: int = 0
    base: int = 0
    waiting: deque[tuple[int, str]] = field(default_factory=deque)


def history(rng: random.Random, *, says_nothing_was_done: bool) -> str:
    """ "equal", "stopped" or "different", of sites whose servers leave out of the binlog what did nothing, or not."""
    sites = [Site() for _ in range(rng.randint(2, 3))]
    certifier = Certifier()
    log: list[tuple[int, str]] = []
    known = rng.sample([MAKE, INDEX, COLUMN, DROP, BARE], rng.randint(1, 4))
    left = rng.randint(2, 12)
    while True:
        dice = rng.random()
        number = rng.randrange(len(sites))
        site = sites[number]
        if dice < 0.4 and left:
            statement = rng.choice(known)
            try:
                after = run(site.table, statement)
            except KeyError:
                continue
            finally:
                left -= 1
            if after != site.table or not says_nothing_was_done:
                site.waiting.append((site.applied, statement))
            site.table = after
        elif dice < 0.7 and site.waiting:
            base, statement = site.waiting.popleft()
            free = commutes(statement, "s")
            verdict = certifier.certify_ddl(
                len(log) + 1, number + 1, base, TABLE, commutes=free, repetition=repetition(statement, "s", {})
            )
            if verdict is Verdict.CONFLICT or (verdict is Verdict.REASSERT and not free):
                return "stopped"
            log.append((number, statement))
            site.base = base
            certifier.forget(min(each.base for each in sites))
        elif site.applied < len(log):
            origin, statement = log[site.applied]
            site.applied += 1
            if origin != number:
                try:
                    site.table = run(site.table, statement)
                except KeyError:
                    return "stopped"  # loudly, at this site
        elif not left and not any(each.waiting or each.applied < len(log) for each in sites):
            return "equal" if len({each.table for each in sites}) == 1 else "different"


@pytest.mark.parametrize("says_nothing_was_done", [True, False])
def test_sites_that_run_the_same_at_once(says_nothing_was_done: bool) -> None:
    found = {"equal": 0, "stopped": 0, "different": 0}
    for seed in range(HISTORIES):
        found[history(random.Random(seed), says_nothing_was_done=says_nothing_was_done)] += 1
    print(f"{HISTORIES} histories: {found}")
    assert not found["different"]
    assert found["equal"] > HISTORIES // 4
