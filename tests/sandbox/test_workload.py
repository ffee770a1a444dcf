"""Does the workload count right, whatever happens to its server?"""

from __future__ import annotations

import random
import time

import pytest

from mysqlraft.sandbox.servers import Server
from mysqlraft.sandbox.shop import Planner
from mysqlraft.sandbox.workload import Workload, create_tables, wrong_counts


def run_until(workload: Workload, committed: int) -> None:
    """Waits for so many commits in all; the workload must get there."""
    deadline = time.monotonic() + 60
    while workload.committed() < committed:
        workload.check()
        assert time.monotonic() < deadline, f"only {workload.committed()} transactions in 60 s"
        time.sleep(0.02)


def wrong(server: Server, workload: Workload) -> list[str]:
    with server.connect() as connection:
        return wrong_counts(connection, workload.expected())


def test_a_seed_fixes_what_is_tried() -> None:
    def plans(seed: str, site: int) -> list[object]:
        planner = Planner(random.Random(seed), site, keys=50)
        return [planner.plan() for _ in range(300)]

    assert plans("a", 1) == plans("a", 1)
    assert plans("a", 1) != plans("b", 1)


def test_every_committed_transaction_is_counted(server: Server) -> None:
    with server.connect() as connection:
        create_tables(connection)
    workload = Workload({1: server.connect}, writers=3, keys=30)
    workload.start()
    run_until(workload, 400)
    workload.stop()
    total = workload.total()
    assert wrong(server, workload) == []
    assert total.refused > 0, "no two transactions ever wanted the same key"
    print(f"{total.committed} committed, {total.refused} refused, {total.deadlocks} deadlocks")

    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM shop.writes WHERE writer = 2 AND seq = 5")
        cursor.execute("INSERT INTO shop.writes VALUES (1, 9, 1, 'nobody')")
    found = wrong(server, workload)
    assert len(found) == 2
    assert "writer 2" in found[0]
    assert "does not exist" in found[1]


def test_the_rate_is_kept(server: Server) -> None:
    with server.connect() as connection:
        create_tables(connection)
    workload = Workload({1: server.connect}, writers=2, rate=40)
    begun = time.monotonic()
    workload.start()
    run_until(workload, 60)
    workload.stop()
    took = time.monotonic() - begun
    tried = workload.total().committed + workload.total().refused
    assert tried / took < 60


@pytest.mark.timeout(180)
def test_a_killed_server_loses_and_doubles_nothing(server: Server) -> None:
    with server.connect() as connection:
        create_tables(connection)
    workload = Workload({1: server.connect}, writers=4, keys=100)
    workload.start()
    kills = 3
    for kill in range(1, kills + 1):
        run_until(workload, kill * 150)
        server.kill()
        server.start()
    run_until(workload, (kills + 1) * 150)
    workload.stop()
    total = workload.total()
    assert wrong(server, workload) == []
    assert total.lost >= kills
    print(f"{total.committed} committed across {kills} kills; {total.unknown} COMMITs without an answer, read back")
