"""The demo's play: everybody writes, one site is cut off and comes back, nobody writes, all are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mysqlraft.admin.status import State, own
from mysqlraft.sandbox.board import Board, SiteRow
from mysqlraft.sandbox.cluster import Cluster, Status
from mysqlraft.sandbox.compare import Comparison, compare
from mysqlraft.sandbox.workload import Workload, create_tables, missing_tables, wrong_counts

# Transactions a second at each site: enough for collisions all the time, and bearable for six servers on two cores.
RATE = 40.0

# When the one site is cut off and comes back, as parts of the time of writing.
_CUT, _HEAL = 0.35, 0.7

_REDRAW = 0.5

# How long the last transactions may take to reach every site.
_PATIENCE = 120.0


@dataclass(slots=True)
class Verdict:
    """How the demo ended."""

    comparison: Comparison
    # What is wrong with the number of transactions at each site: none when each is there exactly once.
    miscounted: dict[str, list[str]]
    transactions: int
    conflicts: int
    settled_after: float
    cut: str | None

    @property
    def good(self) -> bool:
        return self.comparison.identical and not any(self.miscounted.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "identical": self.comparison.identical,
            "exactly_once": not any(self.miscounted.values()),
            "transactions": self.transactions,
            "conflicts": self.conflicts,
            "settled_after_seconds": round(self.settled_after, 3),
            "cut_off": self.cut,
            "tables": [
                {"table": table.title, "rows": table.rows, "identical": not table.differences}
                for table in self.comparison.tables
            ],
        }


class Show:
    """One run of the demo on a cluster that has started."""

    def __init__(self, cluster: Cluster, board: Board, seconds: float) -> None:
        self._cluster = cluster
        self._board = board
        self._seconds = seconds
        self._workload = Workload(cluster.connects, writers=2, rate=RATE)
        self._isolated: int | None = None
        self._last: tuple[float, dict[int, int]] = (time.monotonic(), {})

    def run(self) -> Verdict:
        board, cluster, workload = self._board, self._cluster, self._workload
        with cluster[1].server.connect() as connection:
            create_tables(connection)
        cluster.wait_everywhere(missing_tables, _PATIENCE)
        board.say(f"schema shop created at {cluster[1].name}; it is at every site now")
        board.say(f"applications write at every site for {self._seconds:g} s, many of them to the same rows")
        workload.start()
        try:
            cut = self._play()
        finally:
            workload.stop()
        total = workload.total()
        board.say(
            f"writing has stopped: {total.committed:,} transactions committed,"
            f" {total.refused:,} refused by a unique key, {total.deadlocks:,} deadlocks retried"
        )
        begun = time.monotonic()
        expected = workload.expected()
        cluster.wait_everywhere(lambda connection: wrong_counts(connection, expected), _PATIENCE, self._draw)
        settled = time.monotonic() - begun
        rows = self._rows()
        board.draw(rows, final=True)
        board.say(f"every site has applied everything, {settled:.1f} s after the last write")
        comparison = compare(cluster.connects)
        for line in comparison.lines():
            board.plain(f"  {line}")
        miscounted = {}
        for site in cluster:
            with site.server.connect() as connection:
                miscounted[site.name] = wrong_counts(connection, expected)
            for line in miscounted[site.name]:
                board.plain(f"  at {site.name}: {line}")
        conflicts = max((row.conflicts or 0 for row in rows), default=0)
        return Verdict(comparison, miscounted, total.committed, conflicts, settled, cut)

    def _play(self) -> str | None:
        """The time of writing. Returns the name of the site that was cut off."""
        begun = time.monotonic()
        cut: int | None = None
        # A site of fewer than three cannot be missed: the others would have no majority.
        steps: list[tuple[float, Callable[[], None]]] = []
        if len(self._cluster) >= 3:
            steps = [(_CUT * self._seconds, self._isolate), (_HEAL * self._seconds, self._reconnect)]
        while (elapsed := time.monotonic() - begun) < self._seconds:
            while steps and elapsed >= steps[0][0]:
                steps.pop(0)[1]()
                cut = cut or self._isolated
            self._workload.check()
            self._draw()
            time.sleep(min(_REDRAW, max(0.0, begun + self._seconds - time.monotonic())))
        for _, step in steps:
            step()
            cut = cut or self._isolated
        return None if cut is None else self._cluster[cut].name

    def _isolate(self) -> None:
        leader = self._cluster.leader()
        self._isolated = max(site.number for site in self._cluster if site.number != leader)
        self._cluster.cut(self._isolated)
        self._board.say(f"{self._cluster[self._isolated].name} is cut off from all others; it goes on writing")

    def _reconnect(self) -> None:
        assert self._isolated is not None
        self._cluster.heal(self._isolated)
        self._board.say(f"{self._cluster[self._isolated].name} is connected again")
        self._isolated = None

    def _draw(self) -> None:
        self._board.draw(self._rows())

    def _rows(self) -> list[SiteRow]:
        now = time.monotonic()
        writes = {site.number: self._workload.committed(site.number) for site in self._cluster}
        then, before = self._last
        rows = []
        statuses = self._cluster.statuses()
        for site in self._cluster:
            rate = (writes[site.number] - before.get(site.number, 0)) / max(now - then, 0.001)
            status = statuses[site.number]
            cut = site.number == self._isolated
            rows.append(_row(site.name, writes[site.number], rate, status, cut))
        if now - then >= 1 or not before:
            self._last = (now, writes)
        return rows


def _row(name: str, writes: int, rate: float, status: Status | None, cut: bool) -> SiteRow:
    """A site's row, from what its daemon says."""
    if status is None:
        return SiteRow(name, "-", writes, rate, None, None, None, "no answer")
    said = own(status)
    state = "ok" if said["state"] == State.RUNNING else f"{said['state']}: {said['reason']}"
    return SiteRow(
        name,
        said["role"],
        writes,
        rate,
        said["applied"],
        said["lag"]["seconds"],
        said["conflicts"],
        "CUT OFF" if cut else state,
    )
